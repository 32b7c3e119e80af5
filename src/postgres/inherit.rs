//! What a new cluster takes over from the server whose data it begins with. Pure.
//!
//! Parameters stand in files that are not read here, but what must be equal on every member also stands in the control file: an
//! application that had 200 connections must find them.

use std::collections::BTreeMap;

use super::settings::{FLOORS, SHARED, Stored};

/// What is no number, by pg_controldata's name for it.
const KINDS: &[(&str, &str)] =
    &[("track_commit_timestamp", "track_commit_timestamp setting"), ("wal_level", "wal_level setting")];

/// What a new cluster begins with: the environment's parameters, and no less than what this says that the data was run with. `field` reads
/// a line of pg_controldata.
pub(super) fn beginning<'a>(
    parameters: &BTreeMap<String, String>,
    field: impl Fn(&'static str) -> Option<&'a str>,
) -> Stored {
    let found = FLOORS.iter().chain(KINDS).filter_map(|(name, label)| Some((*name, field(label)?)));
    let more = found.filter(|(name, value)| is_more(name, value));
    let more = more.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Stored::initial(&more.chain(parameters.clone()).collect())
}

/// Whether this is more than a cluster begins with by itself.
fn is_more(name: &str, found: &str) -> bool {
    let usual = SHARED.iter().find(|shared| shared.name == name);
    usual.is_some_and(|usual| match (usual.default.parse::<u32>(), found.parse::<u32>()) {
        (Ok(usual), Ok(found)) => found > usual,
        // `minimal` is less than what a standby needs.
        (Ok(_) | Err(_), _) => matches!(found, "on" | "logical"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(control: &'static str, parameters: &[(&str, &str)]) -> String {
        let field =
            |label: &str| control.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(": "));
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let stored = serde_json::to_value(beginning(&parameters.collect(), field)).unwrap();
        stored["parameters"].to_string()
    }

    #[test]
    fn a_cluster_has_no_less_than_the_server_before_unless_it_is_said() {
        let control = "wal_level setting: logical\nmax_connections setting: 200\nmax_worker_processes setting: 4\n\
                       max_wal_senders setting: 10\ntrack_commit_timestamp setting: off";
        assert_eq!(begun(control, &[]), r#"{"max_connections":"200","wal_level":"logical"}"#);
        let said = [("max_connections", "50"), ("work_mem", "9MB")];
        assert_eq!(begun(control, &said), r#"{"max_connections":"50","wal_level":"logical"}"#);
        assert_eq!(begun("wal_level setting: minimal\nmax_connections setting: 20", &[]), "null");
    }
}
