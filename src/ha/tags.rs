//! Tags: what a node is good for, in Patroni's names. One reader for a node's own and for those that others publish.
//!
//! What is published keeps the words and types that were configured, without those that say nothing (Patroni's filter).
//! A contradiction between a switch and its priority is resolved in favour of the switch, and said.

use serde_json::{Map, Value};

use crate::types::NodeName;

/// Switches of which only a set one is published.
const SWITCHES: [&str; 5] = ["clonefrom", "nofailover", "noloadbalance", "nosync", "nostream"];
/// A switch that overrules a priority.
const OVERRULED: [(&str, &str); 2] = [("nofailover", "failover_priority"), ("nosync", "sync_priority")];
/// The priority of a node that says nothing.
const USUAL: u32 = 1;

/// A node's tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    /// `nofailover`, or a `failover_priority` of zero.
    pub failover: Failover,
    /// `failover_priority`: at equal positions the higher one leads. Zero: never.
    pub failover_priority: u32,
    /// `sync_priority`: the higher one is chosen as a synchronous standby first. Zero (or `nosync`): never.
    pub sync_priority: u32,
    /// `clonefrom`.
    pub clone: CloneSource,
    /// `nostream`.
    pub stream: Streaming,
    /// `replicatefrom`: the member to stream from.
    pub replicate_from: Option<NodeName>,
    published: Map<String, Value>,
}

/// Whether a node may ever lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failover {
    /// It may.
    #[default]
    Allowed,
    /// Tagged `nofailover`.
    Never,
}

/// Whether new nodes copy from this one rather than from the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneSource {
    /// Only when it leads.
    Ordinary,
    /// Tagged `clonefrom`.
    Preferred,
}

/// Whether a standby streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    /// It does.
    Allowed,
    /// Tagged `nostream`: it reads the archive only.
    Never,
}

impl Default for Tags {
    fn default() -> Self {
        Self {
            failover: Failover::Allowed,
            failover_priority: USUAL,
            sync_priority: USUAL,
            clone: CloneSource::Ordinary,
            stream: Streaming::Allowed,
            replicate_from: None,
            published: Map::new(),
        }
    }
}

impl Tags {
    /// Reads tags as they are configured, or as another member publishes them.
    pub fn from_json(tags: &Map<String, Value>) -> Self {
        if tags.is_empty() {
            return Self::default();
        }
        let failover_priority = priority(tags, "nofailover", "failover_priority");
        Self {
            failover: if failover_priority == 0 { Failover::Never } else { Failover::Allowed },
            failover_priority,
            sync_priority: priority(tags, "nosync", "sync_priority"),
            clone: if is_set(tags, "clonefrom") { CloneSource::Preferred } else { CloneSource::Ordinary },
            stream: Streaming::of(tags),
            replicate_from: replicate_from(tags),
            published: filtered(tags),
        }
    }

    /// As Patroni publishes them.
    pub fn to_json(&self) -> Map<String, Value> {
        self.published.clone()
    }

    /// The same while this standby is about to stop: the leader drops it from the synchronous set first, so that no commit
    /// waits for it.
    pub fn of_a_leaving_standby(&self) -> Map<String, Value> {
        let mut tags = self.published.clone();
        tags.insert("nosync".to_owned(), Value::Bool(true));
        tags.insert("sync_priority".to_owned(), 0.into());
        tags
    }
}

impl Streaming {
    /// The same of tags of which nothing else is wanted.
    pub fn of(tags: &Map<String, Value>) -> Self {
        if is_set(tags, "nostream") { Self::Never } else { Self::Allowed }
    }
}

/// Whom a member wants to stream from.
pub fn replicate_from(tags: &Map<String, Value>) -> Option<NodeName> {
    tags.get("replicatefrom").and_then(Value::as_str).map(NodeName::from)
}

/// Contradictions in configured tags, in Patroni's words.
pub fn contradictions(tags: &Map<String, Value>) -> Vec<String> {
    let contradiction = |(switch, priority): &(&str, &str)| {
        let wanted = number(tags.get(*priority)?)?;
        let set = is_set(tags, switch);
        tags.get(*switch).filter(|_| set == (wanted > 0))?;
        let set = if set { "True" } else { "False" };
        Some(format!(
            "Conflicting configuration between {switch}: {set} and {priority}: {wanted}. Defaulting to {switch}: {set}"
        ))
    };
    OVERRULED.iter().filter_map(contradiction).collect()
}

/// Whether a switch is on, in any spelling.
pub fn is_set(tags: &Map<String, Value>, name: &str) -> bool {
    match tags.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::Bool(set)) => *set,
        Some(Value::String(text)) => {
            !matches!(text.to_ascii_lowercase().as_str(), "" | "false" | "off" | "no" | "0")
        }
        Some(value @ Value::Number(_)) => number(value) != Some(0),
        Some(Value::Array(_) | Value::Object(_)) => true,
    }
}

fn filtered(tags: &Map<String, Value>) -> Map<String, Value> {
    let says_something = |(name, value): &(&String, &Value)| {
        let overrules = OVERRULED.iter().find(|(switch, _)| switch == name);
        let explicit =
            overrules.is_some_and(|(_, priority)| tags.contains_key(*priority)) && !value.is_null();
        !SWITCHES.contains(&name.as_str()) || is_set(tags, name) || explicit
    };
    tags.iter().filter(says_something).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The switch overrules the priority in both directions.
fn priority(tags: &Map<String, Value>, switch: &str, name: &str) -> u32 {
    let wanted = tags.get(name).and_then(number);
    let wanted = wanted.map(|n| u32::try_from(n.max(0)).unwrap_or(u32::MAX));
    match tags.get(switch) {
        None | Some(Value::Null) => wanted.unwrap_or(USUAL),
        Some(_) if is_set(tags, switch) => 0,
        Some(_) => wanted.filter(|n| *n > 0).unwrap_or(USUAL),
    }
}

fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(tags: Value) -> Map<String, Value> {
        tags.as_object().cloned().unwrap()
    }

    fn read(tags: Value) -> Tags {
        Tags::from_json(&map(tags))
    }

    #[test]
    fn only_what_says_something_is_published_in_its_own_type_and_order() {
        let tags = json!({"failover_priority": "1", "nofailover": true, "clonefrom": false, "zone": "a", "nosync": false});
        let published = Value::Object(read(tags).to_json()).to_string();
        assert_eq!(published, r#"{"failover_priority":"1","nofailover":true,"zone":"a"}"#);
        let explicit = json!({"nosync": false, "sync_priority": 2});
        assert_eq!(Value::Object(read(explicit.clone()).to_json()), explicit);
        assert!(Tags::default().to_json().is_empty());
    }

    #[test]
    fn a_switch_overrules_its_priority_in_both_directions() {
        let priority = |tags| read(tags).failover_priority;
        assert_eq!(priority(json!({})), 1);
        assert_eq!(priority(json!({"failover_priority": 7})), 7);
        assert_eq!(priority(json!({"failover_priority": -1})), 0);
        assert_eq!(priority(json!({"failover_priority": 7, "nofailover": true})), 0);
        assert_eq!(priority(json!({"failover_priority": 0, "nofailover": false})), 1);
        assert_eq!(read(json!({"failover_priority": 0})).failover, Failover::Never);
        assert_eq!(read(json!({"nosync": true})).sync_priority, 0);
        assert_eq!(read(json!({"nosync": true})).failover, Failover::Allowed);
    }

    #[test]
    fn a_contradiction_is_said_in_patronis_words() {
        let said = |tags| contradictions(&map(tags));
        assert_eq!(
            said(json!({"nofailover": true, "failover_priority": "1"})),
            [
                "Conflicting configuration between nofailover: True and failover_priority: 1. Defaulting to nofailover: True"
            ]
        );
        assert_eq!(said(json!({"nosync": false, "sync_priority": 0})).len(), 1);
        assert_eq!(said(json!({"nosync": true, "sync_priority": 0})), [""; 0]);
        assert_eq!(said(json!({"failover_priority": 0})), [""; 0]);
    }

    #[test]
    fn a_leaving_standby_keeps_its_other_tags() {
        let tags = read(json!({"zone": "a"})).of_a_leaving_standby();
        assert_eq!(Value::Object(tags), json!({"zone": "a", "nosync": true, "sync_priority": 0}));
    }
}
