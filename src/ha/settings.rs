//! Changes of the dynamic configuration: a merge patch or a replacement, checked before it is written. Pure.
//!
//! Unknown keys survive. What breaks the timing rule is refused with the numbers: a stored value that every node would pass
//! over with a complaint helps nobody. In agent mode everything is written, as by Patroni, whose members adjust what breaks the rule.

use serde_json::Value;

use super::rules::{Mode, Rules};

/// A change.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A JSON merge patch: null deletes, objects merge.
    Patch(Value),
    /// All of it.
    Replace(Value),
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// There is no configuration to patch.
    NoConfig,
    /// A rule, in words.
    Rule(String),
}

/// The configuration after a change.
///
/// # Errors
/// It would not be used as it stands.
pub fn changed(environment: &Rules, before: Option<&Value>, change: &Change) -> Result<Value, Wrong> {
    let after = match (change, before) {
        (Change::Patch(_), None) => return Err(Wrong::NoConfig),
        (Change::Patch(patch), Some(before)) => {
            let mut after = before.clone();
            merge(&mut after, patch);
            after
        }
        (Change::Replace(value), _) => value.clone(),
    };
    match environment.mode {
        Mode::Node => {}
        Mode::Agent { .. } => return Ok(after),
    }
    let known = before.map_or_else(Vec::new, |before| environment.with_config(before).1);
    let (_, complaints) = environment.with_config(&after);
    // What was wrong before does not stand in the way of something else.
    let news: Vec<_> = complaints.into_iter().filter(|complaint| !known.contains(complaint)).collect();
    if news.is_empty() { Ok(after) } else { Err(Wrong::Rule(news.join("; "))) }
}

/// A merge patch applied, as Patroni does it: a null removes what is there, and stays in what is new (`slots: {name: null}` is a
/// physical slot).
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        match target.get_mut(key) {
            _ if value.is_null() => drop(target.shift_remove(key)),
            Some(there) if there.is_object() => merge(there, value),
            Some(_) | None => drop(target.insert(key.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_merges_objects_and_null_deletes() {
        let mut value = json!({"ttl": 10, "postgresql": {"parameters": {"a": 1, "b": 2}}, "pause": true});
        merge(
            &mut value,
            &json!({"pause": null, "postgresql": {"parameters": {"a": null, "c": {"d": null}}}}),
        );
        assert_eq!(value, json!({"ttl": 10, "postgresql": {"parameters": {"b": 2, "c": {"d": null}}}}));
        merge(&mut value, &json!({"slots": {"new": null}}));
        merge(&mut value, &json!({"slots": {"other": 0}, "postgresql": 1}));
        assert_eq!(value, json!({"ttl": 10, "postgresql": 1, "slots": {"new": null, "other": 0}}));
    }
}
