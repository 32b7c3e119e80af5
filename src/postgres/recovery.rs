//! What a server recovers with beyond the parameters: Patroni keeps it in sections of its own. Pure.

use std::collections::BTreeMap;

use super::settings::{Owner, REMOTE, Stored, as_text, is_one_line};

/// What it says there of recovery.
const RECOVERY: [&str; 3] = ["archive_cleanup_command", "recovery_min_apply_delay", "restore_command"];

/// `recovery_conf.restore_command`, which Patroni keeps apart from the parameters.
pub(super) fn restore_command(stored: &Stored) -> Option<(String, String)> {
    let command = stored.0.get("recovery_conf")?.get("restore_command").and_then(as_text)?;
    is_one_line(&command).then(|| ("restore_command".to_owned(), command))
}

/// How the data of the followed cluster is copied: names of methods; none: by pg_basebackup.
pub(super) fn remote_methods(stored: &Stored) -> Vec<String> {
    let listed = stored.0.get(REMOTE).and_then(|section| section.get("create_replica_methods"));
    let names = listed.and_then(serde_json::Value::as_array).into_iter().flatten();
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// What the leader of a standby cluster recovers with. Commands are an administrator's to trust the store with.
pub(super) fn recovery(
    stored: &Stored,
    owner: Owner,
    complaints: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let Some(section) = stored.0.get(REMOTE) else { return BTreeMap::new() };
    let mut kept = BTreeMap::new();
    for name in RECOVERY {
        let Some(value) = section.get(name).and_then(as_text).filter(|value| is_one_line(value)) else {
            continue;
        };
        if name.ends_with("_command") && owner == Owner::Pgherd {
            complaints.push(format!(
                "standby_cluster.{name} makes a node run what it is told to: it is not taken from the store"
            ));
        } else {
            kept.insert(name.to_owned(), value);
        }
    }
    kept
}
