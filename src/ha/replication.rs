//! What the stored configuration says of replication: slots, the synchronous set's limits, the length of the history.
//!
//! Patroni's names, spellings and defaults. What cannot be used is left out with a complaint, one for each.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::postgres::{PERMANENT_SLOTS, Slot, SlotKind};
use crate::types::SlotName;

/// How long the slot of an absent member is kept unless the configuration says otherwise.
const MEMBER_SLOTS_TTL: Duration = Duration::from_secs(30 * 60);
/// PostgreSQL's limit for a slot's name.
const LONGEST_NAME: usize = 63;

/// What the stored configuration says of replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    /// `use_slots`.
    pub slots: UseSlots,
    /// `member_slots_ttl`: how long the slot of an absent member is kept. Zero: only members that are there have slots, and
    /// only where they stream from.
    pub member_slots_ttl: Duration,
    /// Slots that exist whoever leads.
    pub permanent: BTreeMap<SlotName, Permanent>,
    /// Slots that are none of ours.
    pub ignored: Vec<Matcher>,
    /// `maximum_lag_on_syncnode`: a standby further behind the first one confirms no commits.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// `max_timelines_history`: rows that the history keeps; all of them when `None`.
    pub max_timelines_history: Option<usize>,
}

/// Whether standbys have slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseSlots {
    /// They do.
    Yes,
    /// They live on what `wal_keep_size` keeps.
    No,
}

/// A slot that exists whoever leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permanent {
    /// What it is.
    pub kind: SlotKind,
    /// Where.
    pub clusters: Clusters,
}

/// `cluster_type`: the clusters in which a permanent slot exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clusters {
    /// All.
    Any,
    /// Those with a primary.
    Primary,
    /// Standby clusters.
    Standby,
}

/// One entry of `ignore_slots`: what it names must be equal, what it does not name may be anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Matcher {
    name: Option<String>,
    kind: Option<String>,
    database: Option<String>,
    plugin: Option<String>,
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            slots: UseSlots::Yes,
            member_slots_ttl: MEMBER_SLOTS_TTL,
            permanent: BTreeMap::new(),
            ignored: Vec::new(),
            maximum_lag_on_syncnode: None,
            max_timelines_history: None,
        }
    }
}

impl Replication {
    /// From the stored configuration, and what in it could not be used.
    pub fn of(config: &Value) -> (Self, Vec<String>) {
        let mut complaints = Vec::new();
        let mut read = Self::default();
        let mut complain = |key: &str, value: &Value, expected: &str| {
            complaints.push(format!("{key} is {value}, expected {expected}: it is not used"));
        };
        if config.pointer("/postgresql/use_slots").and_then(super::rules::flag) == Some(false) {
            read.slots = UseSlots::No;
        }
        if let Some(value) = config.get("member_slots_ttl").filter(|v| !v.is_null()) {
            match duration(value) {
                Some(ttl) => read.member_slots_ttl = ttl,
                None => complain("member_slots_ttl", value, "seconds, or a number with ms, s, min, h or d"),
            }
        }
        if let Some(value) = config.get("maximum_lag_on_syncnode").filter(|v| !v.is_null()) {
            match integer(value) {
                Some(limit) => read.maximum_lag_on_syncnode = u64::try_from(limit).ok().filter(|n| *n > 0),
                None => complain("maximum_lag_on_syncnode", value, "a number of bytes, or -1"),
            }
        }
        if let Some(value) = config.get("max_timelines_history").filter(|v| !v.is_null()) {
            match integer(value).map(usize::try_from) {
                Some(Ok(rows)) => read.max_timelines_history = Some(rows).filter(|n| *n > 0),
                Some(Err(_)) | None => {
                    complain("max_timelines_history", value, "a number of rows, 0 for all")
                }
            }
        }
        let named = PERMANENT_SLOTS.iter().find_map(|key| config.get(*key)?.as_object());
        for (name, value) in named.into_iter().flatten() {
            match permanent(name, value) {
                Some(slot) => drop(read.permanent.insert(SlotName(name.clone()), slot)),
                None => complain(
                    &format!("slots.{name}"),
                    value,
                    "a physical slot, or a logical one with database and plugin",
                ),
            }
        }
        let matchers = config.get("ignore_slots").and_then(Value::as_array);
        read.ignored = matchers.into_iter().flatten().filter_map(Value::as_object).map(matcher).collect();
        (read, complaints)
    }

    /// Whether the configuration says that this slot is none of ours.
    pub fn ignores(&self, slot: &Slot) -> bool {
        self.ignored.iter().any(|matcher| matcher.fits(slot))
    }
}

impl Matcher {
    fn fits(&self, slot: &Slot) -> bool {
        let (kind, database, plugin) = match &slot.kind {
            SlotKind::Physical => ("physical", None, None),
            SlotKind::Logical { database, plugin } => {
                ("logical", Some(database.as_str()), Some(plugin.as_str()))
            }
        };
        let same =
            |wanted: &Option<String>, is: Option<&str>| wanted.as_deref().is_none_or(|w| Some(w) == is);
        same(&self.name, Some(slot.name.0.as_str()))
            && same(&self.kind, Some(kind))
            && same(&self.database, database)
            && same(&self.plugin, plugin)
            && *self != Self::default()
    }
}

fn matcher(entry: &Map<String, Value>) -> Matcher {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    Matcher { name: text("name"), kind: text("type"), database: text("database"), plugin: text("plugin") }
}

fn permanent(name: &str, value: &Value) -> Option<Permanent> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(letters) {
        return None;
    }
    let clusters = match value.get("cluster_type").and_then(Value::as_str) {
        Some("primary") => Clusters::Primary,
        Some("standby") => Clusters::Standby,
        Some(_) | None => Clusters::Any,
    };
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let kind = match (value, text("type").as_deref()) {
        // Patroni's short form of a physical slot: its name, and nothing or a number.
        (Value::Null | Value::Number(_), _) | (_, Some("physical")) => SlotKind::Physical,
        (_, Some("logical")) => SlotKind::Logical { database: text("database")?, plugin: text("plugin")? },
        (_, Some(_) | None) => return None,
    };
    Some(Permanent { kind, clusters })
}

fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// Seconds, or a text with a unit.
fn duration(value: &Value) -> Option<Duration> {
    if let Some(seconds) = value.as_u64() {
        return Some(Duration::from_secs(seconds));
    }
    let text = value.as_str()?.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit.trim() {
        "" | "s" => Some(Duration::from_secs(number)),
        "ms" => Some(Duration::from_millis(number)),
        "min" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        "d" => number.checked_mul(86_400).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Horizon, SlotWal};
    use serde_json::json;

    fn slot(name: &str, kind: SlotKind) -> Slot {
        Slot {
            name: SlotName(name.into()),
            kind,
            active: false,
            restart_lsn: None,
            confirmed: None,
            wal: SlotWal::Kept,
            horizon: Horizon::Free,
            synchronised: false,
        }
    }

    fn logical() -> SlotKind {
        SlotKind::Logical { database: "app".into(), plugin: "pgoutput".into() }
    }

    #[test]
    fn nothing_said_is_patronis_default() {
        assert_eq!(Replication::of(&json!({})), (Replication::default(), vec![]));
    }

    #[test]
    fn patronis_spellings_are_read() {
        let (read, complaints) = Replication::of(&json!({
            "member_slots_ttl": "2h", "maximum_lag_on_syncnode": "-1", "max_timelines_history": 5,
            "postgresql": {"use_slots": "off"},
            "permanent_slots": {
                "a": null, "b": 0, "c": {"type": "physical", "cluster_type": "standby"},
                "d": {"type": "logical", "database": "app", "plugin": "pgoutput"}},
        }));
        assert_eq!(complaints, [""; 0]);
        assert_eq!(read.member_slots_ttl, Duration::from_secs(7200));
        assert_eq!((read.slots, read.maximum_lag_on_syncnode), (UseSlots::No, None));
        assert_eq!(read.max_timelines_history, Some(5));
        let kinds: Vec<_> = read.permanent.values().map(|p| (p.kind.clone(), p.clusters)).collect();
        let physical = || SlotKind::Physical;
        assert_eq!(
            kinds,
            [
                (physical(), Clusters::Any),
                (physical(), Clusters::Any),
                (physical(), Clusters::Standby),
                (logical(), Clusters::Any)
            ]
        );
    }

    #[test]
    fn what_cannot_be_used_is_said_and_left_out() {
        let (read, complaints) = Replication::of(&json!({
            "member_slots_ttl": "soon",
            "slots": {"Bad-Name": null, "half": {"type": "logical", "database": "app"}, "fine": null},
        }));
        assert_eq!(complaints.len(), 3, "{complaints:?}");
        assert_eq!(read.permanent.len(), 1);
        assert_eq!(read.member_slots_ttl, MEMBER_SLOTS_TTL);
    }

    #[test]
    fn a_matcher_fits_what_it_names_and_an_empty_one_nothing() {
        let config =
            json!({"ignore_slots": [{"type": "logical", "plugin": "pgoutput"}, {"name": "mine"}, {}]});
        let (read, _) = Replication::of(&config);
        assert!(read.ignores(&slot("x", logical())));
        assert!(read.ignores(&slot("mine", SlotKind::Physical)));
        assert!(!read.ignores(&slot("x", SlotKind::Physical)));
    }
}
