//! The alert rules and the dashboard of `docs/observability`: Prometheus' own tool runs the rules' tests, and every metric
//! they name is one that the API serves.
#![expect(clippy::disallowed_methods, reason = "a test starts promtool itself")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use pgherd::api::NodeFacts;
use pgherd::api::metrics::{Facts, render};
use pgherd::clock::Moment;
use pgherd::types::{NodeId, NodeName};
use pgherd::{discovery, etcd};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/observability").join(name)
}

/// Every word that looks like a metric of ours.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("pgherd_") || word.starts_with("patroni_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn what_is_watched_is_served() {
    let node = NodeFacts { node_id: NodeId("0".repeat(16)), name: NodeName::from("n0"), app: "demo".into() };
    let (store, peers) = (etcd::Status::default(), discovery::Peers::default());
    let facts = Facts {
        node: &node,
        ha: None,
        store: &store,
        peers: &peers,
        certificate_life: None,
        log_lines_dropped: 0,
        restarts: &[],
        reaped_orphans: 0,
        now: Moment(1),
    };
    let served = metrics(&render(&facts));
    for name in ["alerts.yml", "dashboard.json"] {
        let watched = metrics(&std::fs::read_to_string(file(name)).unwrap());
        assert!(watched.len() > 10, "{name} watches {watched:?}");
        let unknown: Vec<_> = watched.difference(&served).collect();
        assert!(unknown.is_empty(), "{name} watches what nobody serves: {unknown:?}");
    }
}

#[test]
fn every_alert_fires_and_stays_silent_as_its_tests_say() {
    let run = Command::new("promtool").args(["test", "rules"]).arg(file("alerts.test.yml")).output();
    let Ok(output) = run else {
        return eprintln!(
            "SKIPPED: the alert rules are not tested: promtool (Debian's prometheus) is not installed"
        );
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

/// A rule without a test is one that may never fire.
#[test]
fn every_alert_has_a_test() {
    let rules = std::fs::read_to_string(file("alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(file("alerts.test.yml")).unwrap();
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        assert!(tests.contains(alert), "{alert} is in no test");
    }
}
