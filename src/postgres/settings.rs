//! What the server is told: the cluster's dynamic configuration, this node's environment and what pgherd owns, made one.
//!
//! Three kinds of parameters. *Shared* ones must be equal on every member (a standby does not start with fewer
//! connections than its primary): the store's value counts, within limits, and they stand on the command line, where
//! nothing overrules them. *Owned* ones are pgherd's ([`CLUSTER_OWNED`]) and are set by nobody else. All others come from
//! the store, and this node's `POSTGRES_PARAMETERS` wins over it, as Patroni's local file does.
//!
//! Whoever can write to the store must not be able to run programs on the nodes through it: what makes the server run a
//! command or load foreign code ([`ON_THE_NODE_ONLY`]) is taken from the environment only, and so is a rule that lets
//! anybody in (`trust`).
//!
//! Invariant: whatever the store holds, the result can be rendered and has a value for every shared parameter; what is
//! not used is said in a complaint. What is absent: whether the server accepts a value, which only the server knows
//! (`configure` asks it).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::hba;
use super::recovery::{recovery, restore_command};
use super::slots::any_logical;
use crate::templates::CLUSTER_OWNED;

/// The section `postgresql` of the dynamic configuration, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stored(pub(super) Map<String, Value>);

/// The part that a server plays: some settings are made for one of them only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Takes writes.
    Primary,
    /// Follows.
    #[default]
    Replica,
    /// Leads a cluster that follows another one.
    StandbyLeader,
}

/// What a server runs with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Effective {
    /// Equal on every member; on the command line, and in the file for tools and for single-user mode.
    pub shared: BTreeMap<String, String>,
    /// Everything else, for postgresql.conf.
    pub parameters: BTreeMap<String, String>,
    /// Who may connect.
    pub hba: Access,
    /// Lines of pg_ident.conf.
    pub ident: Vec<String>,
    /// Whether standbys stream through slots.
    pub slots: Slots,
}

/// `use_slots`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slots {
    /// One for each member, on the server that it follows.
    #[default]
    Used,
    /// None: a standby may be behind by `wal_keep_size` and no more.
    Unused,
}

/// `use_pg_rewind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Divergence {
    /// A standby that has left the primary's history is rewound.
    #[default]
    Rewound,
    /// It is copied anew.
    Copied,
}

/// Lines of pg_hba.conf, by who wrote them: this node's go before pgherd's own and leave the usual ones in force; the
/// cluster's go behind what pgherd needs for itself and are then all that there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// `POSTGRES_HBA`.
    Node(Vec<String>),
    /// `pg_hba` of the dynamic configuration.
    Cluster(Vec<String>),
}

impl Default for Access {
    fn default() -> Self {
        Self::Node(Vec::new())
    }
}

/// What the data directory does not do with less of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Floors {
    /// By the name of a parameter.
    pub least: BTreeMap<String, u32>,
    /// Logical slots, which need `wal_level=logical`.
    pub n_logical_slots: u32,
}

/// The environment's part.
#[derive(Debug, Clone, Copy)]
pub struct Local<'a> {
    /// `POSTGRES_PARAMETERS`.
    pub parameters: &'a BTreeMap<String, String>,
    /// `POSTGRES_HBA`.
    pub hba: &'a [String],
    /// Whose the server is.
    pub owner: Owner,
}

/// Whose the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// pgherd's: whoever can write to the store must not own the node by it.
    #[default]
    Pgherd,
    /// An administrator's (agent mode): the store may say whatever it may say to Patroni, and what pgherd does not need for
    /// replication is the administrator's.
    Administrator,
}

/// A parameter that must be equal on every member.
pub(super) struct Shared {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    values: Values,
}

/// What a shared parameter may be.
enum Values {
    /// A whole number, at least this (PostgreSQL accepts up to [`MOST`]).
    Count(u32),
    /// A boolean.
    Flag,
    /// `replica` or `logical`: a standby needs no less.
    WalLevel,
    /// A size, at least so many bytes.
    Size(u64),
}

/// PostgreSQL's own limit of every shared count.
const MOST: u32 = 262_143;

/// The shared parameters with Patroni's defaults and limits.
pub(super) const SHARED: &[Shared] = &[
    Shared { name: "max_connections", default: "100", values: Values::Count(25) },
    Shared { name: "max_locks_per_transaction", default: "64", values: Values::Count(32) },
    Shared { name: "max_prepared_transactions", default: "0", values: Values::Count(0) },
    Shared { name: "max_replication_slots", default: "10", values: Values::Count(4) },
    Shared { name: "max_wal_senders", default: "10", values: Values::Count(3) },
    Shared { name: "max_worker_processes", default: "8", values: Values::Count(2) },
    Shared { name: "track_commit_timestamp", default: "off", values: Values::Flag },
    Shared { name: "wal_keep_size", default: "128MB", values: Values::Size(16 << 20) },
    Shared { name: "wal_level", default: "replica", values: Values::WalLevel },
];

/// The shared parameters that take effect without a restart: they stand in the file only.
const RELOADABLE: &str = "wal_keep_size";

/// What a standby must have no less of than its primary, by pg_controldata's name for it.
pub(super) const FLOORS: &[(&str, &str)] = &[
    ("max_connections", "max_connections setting"),
    ("max_locks_per_transaction", "max_locks_per_xact setting"),
    ("max_prepared_transactions", "max_prepared_xacts setting"),
    ("max_wal_senders", "max_wal_senders setting"),
    ("max_worker_processes", "max_worker_processes setting"),
];

/// Parameters that run a program, load code or write files where they are told to: from this node's environment only.
pub const ON_THE_NODE_ONLY: &[&str] = &[
    "archive_command",
    "archive_library",
    "dynamic_library_path",
    "event_source",
    "extension_control_path",
    "external_pid_file",
    "jit_provider",
    "krb_server_keyfile",
    "log_directory",
    "log_file_mode",
    "log_filename",
    "recovery_end_command",
    "ssl_passphrase_command",
    "ssl_passphrase_command_supports_reload",
    "stats_temp_directory",
    "unix_socket_group",
    "unix_socket_permissions",
];

/// Lists of libraries: from the store only names without a path, which lie in the server's own directory.
const LIBRARIES: &[&str] =
    &["local_preload_libraries", "session_preload_libraries", "shared_preload_libraries"];

/// Where the dynamic configuration speaks of the cluster that this one follows.
pub(super) const REMOTE: &str = "standby_cluster";
/// Stands for permanent logical slots, which standbys have copies of.
const LOGICAL: &str = "logical_slots";

impl Stored {
    /// The section of a dynamic configuration.
    pub fn of(config: &Value) -> Self {
        let section = |key: &str| config.get(key).and_then(Value::as_object).filter(|map| !map.is_empty());
        let mut stored = section("postgresql").cloned().unwrap_or_default();
        stored.extend(section(REMOTE).map(|remote| (REMOTE.to_owned(), remote.clone().into())));
        stored.extend(any_logical(config).then(|| (LOGICAL.to_owned(), true.into())));
        Self(stored)
    }

    /// What a new cluster begins with: this node's share of what must be equal on every member.
    pub fn initial(parameters: &BTreeMap<String, String>) -> Self {
        let mut section = Map::new();
        section.insert("use_pg_rewind".to_owned(), true.into());
        section.insert("use_slots".to_owned(), true.into());
        let ours = parameters.iter().filter(|(name, _)| SHARED.iter().any(|s| s.name == **name));
        let ours: Map<_, _> = ours.map(|(name, value)| (name.clone(), value.clone().into())).collect();
        if !ours.is_empty() {
            section.insert("parameters".to_owned(), ours.into());
        }
        Self(section)
    }

    /// Whether standbys stream through slots.
    pub fn slots(&self) -> Slots {
        if self.flag("use_slots") { Slots::Used } else { Slots::Unused }
    }

    /// What becomes of a standby that has left the primary's history.
    pub fn divergence(&self) -> Divergence {
        if self.flag("use_pg_rewind") { Divergence::Rewound } else { Divergence::Copied }
    }

    /// The same with what a node's own file says in its place, as Patroni does; `use_pg_rewind` is off there unless somebody
    /// turns it on.
    #[must_use]
    pub fn under(mut self, local: &Map<String, Value>) -> Self {
        self.0.entry("use_pg_rewind").or_insert(Value::Bool(false));
        self.0.extend(local.iter().map(|(key, value)| (key.clone(), value.clone())));
        self
    }

    fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(|value| boolean(&as_text(value)?)).unwrap_or(true)
    }
}

impl Part {
    fn suffix(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::StandbyLeader => "standby_leader",
        }
    }
}

impl Effective {
    /// The same over data that asks for more: the server would not start with less. What was raised waits for a restart,
    /// and shows as such.
    #[must_use]
    pub fn raised(mut self, floors: &Floors) -> Self {
        if floors.n_logical_slots > 0 {
            self.shared.insert("wal_level".to_owned(), "logical".to_owned());
        }
        for (name, least) in &floors.least {
            if let Some(value) = self.shared.get_mut(name)
                && value.parse::<u32>().is_ok_and(|number| number < *least)
            {
                *value = least.to_string();
            }
        }
        self
    }

    /// The same without the parameters that the server itself refuses; a shared one gets its default.
    #[must_use]
    pub fn without(mut self, refused: &[String]) -> Self {
        for name in refused {
            self.parameters.remove(name);
            if let Some(shared) = SHARED.iter().find(|s| s.name == name) {
                self.shared.insert(name.clone(), shared.default.to_owned());
            }
        }
        self
    }

    /// What belongs on the command line, where neither a file nor ALTER SYSTEM overrules it.
    pub fn command_line(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.shared.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        all.filter(|(name, _)| *name != RELOADABLE)
    }
}

/// The names that stand on the command line.
pub(super) fn command_line_names() -> Vec<&'static str> {
    SHARED.iter().map(|shared| shared.name).filter(|name| *name != RELOADABLE).collect()
}

/// Whether this parameter must be equal on every member.
pub fn is_shared(name: &str) -> bool {
    SHARED.iter().any(|shared| shared.name == name)
}

/// Whether nobody but the cluster sets this parameter: ALTER SYSTEM must not, either.
pub fn is_fixed(name: &str, owner: Owner) -> bool {
    let owned = CLUSTER_OWNED.contains(&name);
    match owner {
        Owner::Pgherd => owned || is_shared(name),
        Owner::Administrator => (owned && !is_the_machines(name)) || is_shared(name),
    }
}

/// Whether neither the store nor the node's own file sets it. What an administrator's server recovers with comes from there, as
/// with Patroni.
pub fn is_owned(name: &str, owner: Owner) -> bool {
    let recovers = matches!(name, "archive_cleanup_command" | "restore_command");
    is_fixed(name, owner) && !(recovers && owner == Owner::Administrator)
}

/// What pgherd owns in a container only.
fn is_the_machines(name: &str) -> bool {
    name.starts_with("ssl")
        || name.starts_with("log")
        || matches!(name, "unix_socket_directories" | "password_encryption")
}

/// Merges. The second part says what is not used, and why.
pub fn effective(local: Local<'_>, stored: &Stored, part: Part) -> (Effective, Vec<String>) {
    let mut complaints = Vec::new();
    let common = section(stored, "parameters", &mut complaints);
    let special = section(stored, &format!("parameters_{}", part.suffix()), &mut complaints);
    let shared = SHARED.iter().map(|shared| {
        if special.contains_key(shared.name) {
            complaints.push(format!("{} must be equal on every member: set it in `parameters`", shared.name));
        }
        let value = shared_value(shared, local.parameters, &common, &mut complaints);
        (shared.name.to_owned(), value)
    });
    let shared = shared.collect();
    let mut parameters = BTreeMap::new();
    for (name, value) in common.iter().chain(&special) {
        if SHARED.iter().any(|shared| shared.name == name) {
            continue;
        }
        match refused(name, value, local.owner) {
            Verdict::Used => {
                parameters.insert(name.clone(), value.clone());
            }
            Verdict::Same => {}
            Verdict::Refused(why) => complaints.push(why),
        }
    }
    for (name, value) in local.parameters {
        if SHARED.iter().any(|shared| shared.name == name) {
            continue;
        }
        if let Some(other) = parameters.insert(name.clone(), value.clone())
            && other != *value
            && local.owner == Owner::Pgherd
        {
            complaints
                .push(format!("{name} is {value} by POSTGRES_PARAMETERS here, not the cluster's {other}"));
        }
    }
    if local.owner == Owner::Administrator {
        parameters.extend(restore_command(stored));
    }
    // Else the primary removes what the copies of its logical slots still need.
    if part == Part::Replica && stored.0.contains_key(LOGICAL) {
        parameters.insert("hot_standby_feedback".to_owned(), "on".to_owned());
    }
    if part == Part::StandbyLeader {
        parameters.extend(recovery(stored, local.owner, &mut complaints));
    }
    let hba = access(local, stored, part, &mut complaints);
    let ident = lines(stored, "pg_ident", part, &mut complaints).unwrap_or_default();
    (Effective { shared, parameters, hba, ident, slots: stored.slots() }, complaints)
}

/// The value of a shared parameter: the store's, else the environment's, else the default.
fn shared_value(
    shared: &Shared,
    local: &BTreeMap<String, String>,
    stored: &BTreeMap<String, String>,
    complaints: &mut Vec<String>,
) -> String {
    let name = shared.name;
    let (source, value) = match (stored.get(name), local.get(name)) {
        (Some(value), here) => {
            if let Some(here) = here.filter(|here| *here != value) {
                complaints.push(format!(
                    "{name} is the cluster's {value}, not {here} of POSTGRES_PARAMETERS: change it with `pgherd edit-config`"
                ));
            }
            ("the configuration of the cluster", value)
        }
        (None, Some(value)) => ("POSTGRES_PARAMETERS", value),
        (None, None) => return shared.default.to_owned(),
    };
    match in_limits(shared, value) {
        Ok(value) => value,
        Err(expected) => {
            let default = shared.default;
            complaints.push(format!("{name} is {value:?} in {source}, not {expected}: {default} is used"));
            default.to_owned()
        }
    }
}

/// The value as it is rendered, or what would have been right.
fn in_limits(shared: &Shared, value: &str) -> Result<String, String> {
    match shared.values {
        Values::Count(least) => match value.trim().parse::<u32>() {
            Ok(number) if (least..=MOST).contains(&number) => Ok(number.to_string()),
            Ok(_) | Err(_) => Err(format!("a whole number from {least} to {MOST}")),
        },
        Values::Flag => match boolean(value) {
            Some(true) => Ok("on".to_owned()),
            Some(false) => Ok("off".to_owned()),
            None => Err("a boolean".to_owned()),
        },
        Values::WalLevel => match value.trim().to_ascii_lowercase().as_str() {
            // The name that PostgreSQL 9 had for it.
            "replica" | "hot_standby" => Ok("replica".to_owned()),
            "logical" => Ok("logical".to_owned()),
            _ => Err("replica or logical".to_owned()),
        },
        Values::Size(least) => match megabytes(value) {
            Some(bytes) if bytes >= least => Ok(value.trim().to_owned()),
            Some(_) | None => Err(format!("a size of {}MB or more", least >> 20)),
        },
    }
}

/// A size as PostgreSQL reads it for a parameter counted in megabytes.
fn megabytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(at)?;
    let factor: u64 = match unit.trim() {
        "B" => 1,
        "kB" => 1 << 10,
        "" | "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A boolean in any of PostgreSQL's and Patroni's spellings.
fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// What becomes of a parameter of the store.
enum Verdict {
    Used,
    /// pgherd's own, and what pgherd sets anyway.
    Same,
    Refused(String),
}

fn refused(name: &str, value: &str, owner: Owner) -> Verdict {
    if matches!(name, "hot_standby" | "wal_log_hints" | "ssl")
        && boolean(value) == Some(true)
        && is_fixed(name, owner)
    {
        return Verdict::Same;
    }
    if is_owned(name, owner) {
        return Verdict::Refused(format!("{name} is set by pgherd alone: the cluster's value is not used"));
    }
    if owner == Owner::Administrator {
        return Verdict::Used;
    }
    if ON_THE_NODE_ONLY.contains(&name) {
        return Verdict::Refused(format!(
            "{name} makes a node run or load what it is told to: only POSTGRES_PARAMETERS of that node may set it"
        ));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-., \"".contains(c);
    if LIBRARIES.contains(&name) && !value.chars().all(plain) {
        return Verdict::Refused(format!(
            "{name} names a path: in the store only libraries of the server itself are taken"
        ));
    }
    Verdict::Used
}

/// One map of parameters: names in lower case, values as text.
fn section(stored: &Stored, key: &str, complaints: &mut Vec<String>) -> BTreeMap<String, String> {
    let entries = match stored.0.get(key) {
        None | Some(Value::Null) => return BTreeMap::new(),
        Some(Value::Object(entries)) => entries,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            complaints.push(format!("postgresql.{key} is no map of names and values"));
            return BTreeMap::new();
        }
    };
    let mut all = BTreeMap::new();
    for (name, value) in entries {
        let lower = name.trim().to_ascii_lowercase();
        match (value, as_text(value)) {
            (Value::Null, _) => {}
            (_, Some(value)) if is_name(&lower) && is_one_line(&value) => {
                all.insert(lower, value);
            }
            _unusable => complaints.push(format!("postgresql.{key}.{name:?} is no parameter with one value")),
        }
    }
    all
}

fn is_name(name: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(inside)
}

pub(super) fn is_one_line(text: &str) -> bool {
    !text.contains(['\n', '\r', '\0'])
}

/// A scalar as postgresql.conf, and whoever writes one, has it.
pub fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(true) => Some("on".to_owned()),
        Value::Bool(false) => Some("off".to_owned()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn access(
    Local { hba: local, owner, .. }: Local<'_>,
    stored: &Stored,
    part: Part,
    complaints: &mut Vec<String>,
) -> Access {
    let cluster = lines(stored, "pg_hba", part, complaints);
    match cluster {
        None => Access::Node(local.to_vec()),
        Some(_) if !local.is_empty() && owner == Owner::Administrator => Access::Node(local.to_vec()),
        Some(_) if !local.is_empty() => {
            complaints.push("pg_hba of the cluster is not used here: POSTGRES_HBA is set".to_owned());
            Access::Node(local.to_vec())
        }
        Some(lines) => {
            let mut kept = Vec::new();
            for line in lines {
                match hba::fault(&line).filter(|_| owner == Owner::Pgherd) {
                    None => kept.push(line),
                    Some(why) => complaints.push(format!("pg_hba {line:?}: {why}")),
                }
            }
            // Nobody means to lock everybody out by a list without one rule that can be used.
            if kept.is_empty() { Access::default() } else { Access::Cluster(kept) }
        }
    }
}

/// The lines under a key, the part's own before everybody's. Comments and empty lines are left out.
fn lines(stored: &Stored, key: &str, part: Part, complaints: &mut Vec<String>) -> Option<Vec<String>> {
    let special = format!("{key}_{}", part.suffix());
    let (key, value) = [special.as_str(), key].into_iter().find_map(|key| {
        stored.0.get(key).filter(|value| !value.is_null()).map(|value| (key.to_owned(), value))
    })?;
    let Some(rows) = value.as_array() else {
        complaints.push(format!("postgresql.{key} is no list of lines"));
        return None;
    };
    let mut kept = Vec::new();
    for row in rows {
        match row.as_str().map(str::trim) {
            Some(line) if line.is_empty() || line.starts_with('#') => {}
            Some(line) if is_one_line(line) => kept.push(line.to_owned()),
            Some(_) | None => complaints.push(format!("postgresql.{key}: {row} is no line of text")),
        }
    }
    Some(kept)
}

/// The settings of the next start: the wanted ones, unless the server did not come up with them; then those that it last
/// came up with, then the environment's alone, then none. When it comes up with none of them, settings are not the reason.
pub fn attempt<'a>(candidates: [Option<&'a Effective>; 4], failed: &[Effective]) -> Option<&'a Effective> {
    candidates.into_iter().flatten().find(|settings| !failed.contains(settings))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(local: &[(&str, &str)], stored: Value, part: Part) -> (Effective, Vec<String>) {
        let local: BTreeMap<_, _> = local.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        effective(
            Local { parameters: &local, hba: &[], owner: Owner::Pgherd },
            &Stored::of(&json!({ "postgresql": stored })),
            part,
        )
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let (settings, complaints) = merged(&[], json!({}), Part::Primary);
        assert_eq!(complaints, [""; 0]);
        assert_eq!(settings.shared["max_connections"], "100");
        assert_eq!(settings.shared["wal_level"], "replica");
        assert_eq!(settings.parameters, BTreeMap::new());
        let on_the_command_line: Vec<_> = settings.command_line().map(|(name, _)| name).collect();
        assert_eq!(on_the_command_line, command_line_names());
        assert!(!on_the_command_line.contains(&"wal_keep_size"));
    }

    #[test]
    fn the_store_owns_what_must_be_equal_and_the_node_wins_elsewhere() {
        let stored = json!({"parameters": {"max_connections": 200, "Work_Mem": "8MB", "jit": false}});
        let local = [("max_connections", "300"), ("work_mem", "16MB"), ("max_wal_senders", "5")];
        let (settings, complaints) = merged(&local, stored, Part::Primary);
        assert_eq!(settings.shared["max_connections"], "200");
        assert_eq!(settings.shared["max_wal_senders"], "5");
        assert_eq!(settings.parameters["work_mem"], "16MB");
        assert_eq!(settings.parameters["jit"], "off");
        assert_eq!(complaints.len(), 2, "{complaints:#?}");
    }

    #[test]
    fn values_out_of_limits_fall_back_and_are_said() {
        for (name, value) in [
            ("max_connections", json!(24)),
            ("max_connections", json!("many")),
            ("max_connections", json!(300_000)),
            ("max_wal_senders", json!(2)),
            ("wal_level", json!("minimal")),
            ("track_commit_timestamp", json!("perhaps")),
            ("wal_keep_size", json!("15MB")),
            ("wal_keep_size", json!("16 parsecs")),
        ] {
            let (settings, complaints) = merged(&[], json!({"parameters": {name: value}}), Part::Replica);
            let (defaults, _) = merged(&[], json!({}), Part::Replica);
            assert_eq!(settings, defaults, "{name}");
            assert!(complaints.len() == 1 && complaints[0].contains(name), "{complaints:?}");
        }
        let stored = json!({"parameters": {"wal_keep_size": "1GB", "wal_level": "hot_standby"}});
        let (settings, complaints) = merged(&[], stored, Part::Replica);
        assert_eq!((settings.shared["wal_keep_size"].as_str(), complaints.len()), ("1GB", 0));
        assert_eq!(settings.shared["wal_level"], "replica");
    }

    #[test]
    fn a_part_has_its_own_values_but_not_of_what_must_be_equal() {
        let stored = json!({"parameters": {"work_mem": "4MB"},
            "parameters_replica": {"work_mem": "64MB", "max_connections": 500},
            "parameters_primary": {"work_mem": "1MB"}});
        let of = |part| merged(&[], stored.clone(), part);
        assert_eq!(of(Part::Replica).0.parameters["work_mem"], "64MB");
        assert_eq!(of(Part::Primary).0.parameters["work_mem"], "1MB");
        assert_eq!(of(Part::StandbyLeader).0.parameters["work_mem"], "4MB");
        assert_eq!(of(Part::Replica).0.shared["max_connections"], "100");
        assert_eq!(of(Part::Replica).1.len(), 1);
    }

    #[test]
    fn nothing_in_the_store_can_make_a_node_run_a_program_or_take_what_is_ours() {
        for name in ["archive_command", "primary_conninfo", "synchronous_standby_names", "restore_command"] {
            let (settings, complaints) = merged(&[], json!({"parameters": {name: "x"}}), Part::Primary);
            assert!(settings.parameters.is_empty(), "{name}");
            assert!(complaints.len() == 1 && complaints[0].starts_with(name), "{complaints:?}");
        }
        let libraries = |value: &str| {
            merged(&[], json!({"parameters": {"shared_preload_libraries": value}}), Part::Primary).1.len()
        };
        assert_eq!(libraries("pg_stat_statements, auto_explain"), 0);
        assert_eq!(libraries("/tmp/evil"), 1);
        // What a stock Patroni cluster has in its configuration is what we do anyway.
        let usual = json!({"parameters": {"hot_standby": "on", "wal_log_hints": true}});
        assert_eq!(merged(&[], usual, Part::Primary).1, [""; 0]);
    }

    #[test]
    fn an_administrators_server_recovers_with_what_the_parameters_say() {
        for name in ["restore_command", "archive_cleanup_command"] {
            assert!(is_owned(name, Owner::Pgherd) && !is_owned(name, Owner::Administrator), "{name}");
            assert!(is_fixed(name, Owner::Administrator), "{name} of ALTER SYSTEM does not count");
        }
        assert!(is_owned("primary_conninfo", Owner::Administrator));
    }

    #[test]
    fn a_line_break_or_a_strange_name_never_reaches_the_file() {
        let stored = json!({"parameters": {"work_mem": "1MB'\nfsync = off", "a b": 1, "x": [1], "": "y", "gone": null}});
        let (settings, complaints) = merged(&[], stored, Part::Primary);
        assert!(settings.parameters.is_empty());
        assert_eq!(complaints.len(), 4, "{complaints:#?}");
        assert_eq!(merged(&[], json!({"parameters": "x"}), Part::Primary).1.len(), 1);
    }

    #[test]
    fn rules_of_the_cluster_are_checked_and_give_way_to_the_nodes() {
        let stored = json!({"pg_hba": ["# all", "", "host all all 10.0.0.0/8 scram-sha-256",
            "host all all 0.0.0.0/0 trust", 7]});
        let (settings, complaints) = merged(&[], stored.clone(), Part::Primary);
        assert_eq!(settings.hba, Access::Cluster(vec!["host all all 10.0.0.0/8 scram-sha-256".into()]));
        assert_eq!(complaints.len(), 2, "{complaints:#?}");
        let own = ["host a b all reject".to_owned()];
        let local = Local { parameters: &BTreeMap::new(), hba: &own, owner: Owner::Pgherd };
        let (settings, complaints) =
            effective(local, &Stored::of(&json!({ "postgresql": stored })), Part::Primary);
        assert_eq!(settings.hba, Access::Node(own.to_vec()));
        assert!(complaints.iter().any(|c| c.contains("POSTGRES_HBA")), "{complaints:?}");
    }

    #[test]
    fn a_standby_starts_with_what_its_control_file_asks_for() {
        let (settings, _) = merged(&[], json!({}), Part::Replica);
        let least = BTreeMap::from([("max_connections".to_owned(), 250), ("max_wal_senders".to_owned(), 3)]);
        let raised = settings.clone().raised(&Floors { least, n_logical_slots: 0 });
        assert_eq!(raised.shared["wal_level"], "replica");
        let logical = settings.raised(&Floors { n_logical_slots: 1, ..Floors::default() });
        assert_eq!(logical.shared["wal_level"], "logical");
        assert_eq!(raised.shared["max_connections"], "250");
        assert_eq!(raised.shared["max_wal_senders"], "10");
    }

    #[test]
    fn settings_that_the_server_did_not_come_up_with_are_not_tried_twice() {
        let of = |memory: &str| merged(&[("work_mem", memory)], json!({}), Part::Primary).0;
        let (wanted, proven, local, bare) = (of("1MB"), of("2MB"), of("3MB"), of("4MB"));
        let all = [Some(&wanted), Some(&proven), Some(&local), Some(&bare)];
        assert_eq!(attempt(all, &[]), Some(&wanted));
        assert_eq!(attempt(all, std::slice::from_ref(&wanted)), Some(&proven));
        let without_proof = [Some(&wanted), None, Some(&wanted), Some(&bare)];
        assert_eq!(attempt(without_proof, std::slice::from_ref(&wanted)), Some(&bare));
        assert_eq!(attempt(without_proof, &[wanted.clone(), bare.clone()]), None);
    }

    #[test]
    fn switches_are_on_unless_the_store_says_otherwise() {
        let of = |section: Value| Stored::of(&json!({ "postgresql": section }));
        assert_eq!((of(json!({})).slots(), of(json!({})).divergence()), (Slots::Used, Divergence::Rewound));
        assert_eq!(of(json!({"use_slots": false})).slots(), Slots::Unused);
        assert_eq!(of(json!({"use_pg_rewind": "off"})).divergence(), Divergence::Copied);
        let parameters = BTreeMap::from([("max_connections", "200"), ("work_mem", "1MB")])
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let initial = serde_json::to_string(&Stored::initial(&parameters)).unwrap();
        assert_eq!(
            initial,
            r#"{"use_pg_rewind":true,"use_slots":true,"parameters":{"max_connections":"200"}}"#
        );
    }
}
