//! Metrics: the Prometheus text format, with Patroni's names exactly and our own behind them.
//!
//! Written by hand on purpose: Patroni has counters without the `_total` suffix (`patroni_xlog_location`), a value
//! with a leading zero and a comment between HELP and TYPE, and client libraries correct all three. Invariant: every
//! name is there in every state, so that a dashboard has no holes; what is unknown is 0 as in Patroni, or NaN for ours.

use std::fmt::{Display, Write as _};

use super::NodeFacts;
use super::health::{is_primary, is_standby_leader};
use super::status::{PATRONI_VERSION, SyncPart, is_paused, is_restart_pending, is_unlocked, role, sync_part};
use crate::clock::Moment;
use crate::dcs::{MemberState, ReplicationState, Role};
use crate::ha::failsafe::Activity;
use crate::ha::forecast::Forecast;
use crate::ha::rules::Outlast;
use crate::ha::tags::Tags;
use crate::postgres::status::{Answer, Kind};
use crate::{discovery, etcd, ha};

/// The content type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The states by their index, as the comment of `patroni_postgres_state` lists them.
const STATES: &str = "0=initdb, 1=initdb_failed, 2=custom_bootstrap, 3=custom_bootstrap_failed, \
    4=creating_replica, 5=running, 6=starting, 7=bootstrap_starting, 8=start_failed, 9=restarting, \
    10=restart_failed, 11=stopping, 12=stopped, 13=stop_failed, 14=crashed";

/// What metrics are made from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// This node.
    pub node: &'a NodeFacts,
    /// The HA loop's last word.
    pub ha: Option<&'a ha::Status>,
    /// The etcd room's last word.
    pub store: &'a etcd::Status,
    /// The location list.
    pub peers: &'a discovery::Peers,
    /// What is left of the certificate that ends first; `None`: somebody else looks after them.
    pub certificate_life: Option<jiff::SignedDuration>,
    /// Lines of the log that nobody took in time.
    pub log_lines_dropped: u64,
    /// How often each service was started again.
    pub restarts: &'a [(&'static str, u64)],
    /// Processes that were nobody's child any more, and that `init` has reaped.
    pub reaped_orphans: u64,
    /// The present.
    pub now: Moment,
}

/// The whole page.
pub fn render(facts: &Facts<'_>) -> String {
    let mut page = Page::new(facts.node);
    patroni_instance(&mut page, facts);
    patroni_cluster(&mut page, facts);
    pgherd_ha(&mut page, facts);
    pgherd_why(&mut page, facts.ha);
    pgherd_membership(&mut page, facts);
    pgherd_process(&mut page, facts);
    page.text
}

/// PostgreSQL as Patroni reports it.
fn patroni_instance(page: &mut Page, facts: &Facts<'_>) {
    let answer = facts.ha.and_then(|ha| ha.postgres.sql.as_ref());
    let kind = answer.map(|answer| &answer.kind);
    let running = facts.ha.is_some_and(|ha| ha.state == MemberState::Running);
    let is_role = |wanted| facts.ha.is_some_and(|ha| role(ha) == wanted);
    let part = facts.ha.map_or(SyncPart::None, sync_part);
    let started = answer.map_or_else(|| "0".to_owned(), |a| seconds(a.started_at_micros));
    page.gauge("patroni_version", "Patroni semver without periods.", padded_version());
    page.gauge("patroni_postgres_running", "Value is 1 if Postgres is running, 0 otherwise.", flag(running));
    page.gauge("patroni_postmaster_start_time", "Epoch seconds since Postgres started.", started);
    let primary = facts.ha.is_some_and(|ha| is_primary(ha, facts.now));
    page.gauge("patroni_primary", "Value is 1 if this node is the leader, 0 otherwise.", flag(primary));
    page.counter(
        "patroni_xlog_location",
        "Current location of the Postgres transaction log, 0 if this node is not the leader.",
        current(kind),
    );
    let standby_leader = facts.ha.is_some_and(|ha| is_standby_leader(ha, facts.now));
    page.gauge(
        "patroni_standby_leader",
        "Value is 1 if this node is the standby_leader, 0 otherwise.",
        flag(standby_leader),
    );
    page.gauge(
        "patroni_replica",
        "Value is 1 if this node is a replica, 0 otherwise.",
        flag(is_role(Role::Replica)),
    );
    page.gauge(
        "patroni_sync_standby",
        "Value is 1 if this node is a sync standby, 0 otherwise.",
        flag(part == SyncPart::Sync),
    );
    page.gauge(
        "patroni_quorum_standby",
        "Value is 1 if this node is a quorum standby, 0 otherwise.",
        flag(part == SyncPart::Quorum),
    );
    patroni_recovery(page, answer);
}

/// A standby's positions, and what is known only when SQL answers.
fn patroni_recovery(page: &mut Page, answer: Option<&Answer>) {
    let recovery = Recovery::of(answer.map(|answer| &answer.kind));
    page.counter(
        "patroni_xlog_received_location",
        "Current location of the received Postgres transaction log, 0 if this node is not a replica.",
        recovery.received,
    );
    page.counter(
        "patroni_xlog_replayed_location",
        "Current location of the replayed Postgres transaction log, 0 if this node is not a replica.",
        recovery.replayed,
    );
    page.gauge(
        "patroni_xlog_replayed_timestamp",
        "Current timestamp of the replayed Postgres transaction log, 0 if null.",
        recovery.replayed_at,
    );
    page.gauge(
        "patroni_xlog_paused",
        "Value is 1 if the Postgres xlog is paused, 0 otherwise.",
        flag(recovery.paused),
    );
    page.gauge(
        "patroni_postgres_streaming",
        "Value is 1 if Postgres is streaming, 0 otherwise.",
        flag(recovery.state == Some(ReplicationState::Streaming)),
    );
    page.gauge(
        "patroni_postgres_in_archive_recovery",
        "Value is 1 if Postgres is replicating from archive, 0 otherwise.",
        flag(recovery.state == Some(ReplicationState::InArchiveRecovery)),
    );
    page.gauge(
        "patroni_postgres_server_version",
        "Version of Postgres (if running), 0 otherwise.",
        answer.map_or(0, |answer| answer.server_version),
    );
}

/// The cluster as Patroni reports it.
fn patroni_cluster(page: &mut Page, facts: &Facts<'_>) {
    let ha = facts.ha;
    let failsafe = ha.and_then(|ha| ha.snapshot.as_ref()?.failsafe.as_ref());
    page.gauge(
        "patroni_cluster_unlocked",
        "Value is 1 if the cluster is unlocked, 0 if locked.",
        flag(ha.is_none_or(|ha| is_unlocked(ha, facts.now))),
    );
    page.gauge(
        "patroni_failsafe_mode_is_active",
        "Value is 1 if failsafe mode is active, 0 if inactive.",
        flag(ha.is_some_and(|ha| ha.failsafe.activity == Activity::Active)),
    );
    page.gauge(
        "patroni_failsafe_mode_enabled",
        "Value is 1 if failsafe mode is enabled, 0 otherwise.",
        flag(ha.is_some_and(|ha| ha.failsafe.mode == Outlast::AllAgree)),
    );
    page.gauge(
        "patroni_failsafe_member",
        "Value is 1 if this node is a member of the failsafe topology, 0 otherwise.",
        flag(failsafe.is_some_and(|members| members.value.contains_key(&facts.node.name))),
    );
    page.gauge(
        "patroni_postgres_timeline",
        "Postgres timeline of this node (if running), 0 otherwise.",
        ha.and_then(|ha| ha.postgres.sql.as_ref()).map_or(0, |answer| answer.timeline.0),
    );
    page.gauge(
        "patroni_dcs_last_seen",
        "Epoch timestamp when DCS was last contacted successfully by Patroni.",
        ha.and_then(|ha| ha.store_seen).unwrap_or(0),
    );
    page.gauge(
        "patroni_pending_restart",
        "Value is 1 if the node needs a restart, 0 otherwise.",
        flag(ha.is_some_and(is_restart_pending)),
    );
    page.gauge("patroni_is_paused", "Value is 1 if auto failover is disabled, 0 otherwise.", {
        flag(ha.is_some_and(is_paused))
    });
    page.state(ha.map_or(MemberState::Stopped, |ha| ha.state));
    page.gauge(
        "patroni_failover_priority",
        "Failover priority of this node.",
        ha.map_or(1, failover_priority),
    );
}

/// The HA loop in our own words.
fn pgherd_ha(page: &mut Page, facts: &Facts<'_>) {
    let ha = facts.ha;
    let reason = ha.map_or("the loop has not run yet", |ha| ha.reason.as_str());
    let seconds_of = |duration: Option<std::time::Duration>| duration.map_or(f64::NAN, |d| d.as_secs_f64());
    page.info("pgherd_build_info", "Version of pgherd.", ("version", env!("CARGO_PKG_VERSION")));
    page.info("pgherd_decision_info", "Why the last decision was taken.", ("reason", reason));
    let weakened = facts.ha.and_then(|status| status.postgres.sql.as_ref()).map_or(0, |a| a.weakened.len());
    page.gauge(
        "pgherd_weakened_commits",
        "Roles and databases for which synchronous_commit is lower than the cluster's promise.",
        weakened,
    );
    page.gauge(
        "pgherd_loop_age_seconds",
        "Time since the HA loop last ran.",
        seconds_of(ha.map(|ha| facts.now.since(ha.ticked))),
    );
    page.gauge(
        "pgherd_lease_margin_seconds",
        "What was left of the leader lease at its last renewal; NaN when this node does not lead.",
        seconds_of(ha.and_then(|ha| ha.lease_margin)),
    );
    page.gauge(
        "pgherd_deadman_margin_seconds",
        "The least that was left of a deadline of the deadman when it was moved, since the node's start; NaN before.",
        seconds_of(ha.and_then(|ha| ha.deadman_margin)),
    );
    page.gauge(
        "pgherd_lease_remaining_seconds",
        "How long this node may still call itself the leader; NaN when it does not lead.",
        seconds_of(ha.and_then(|ha| ha.lease_until).map(|until| facts.now.until(until))),
    );
    let vitals = ha.map(|ha| &ha.vitals);
    let room = vitals.and_then(|vitals| vitals.room);
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "NaN".to_owned(), |bytes| bytes.to_string());
    let (free, total) = (bytes(room.map(|room| room.free)), bytes(room.map(|room| room.total)));
    page.gauge("pgherd_volume_free_bytes", "Room left on the volume, NaN if unknown.", free);
    page.gauge("pgherd_volume_total_bytes", "Size of the volume, NaN if unknown.", total);
    page.gauge(
        "pgherd_primary_unfit",
        "Value is 1 if this node leads and cannot do a primary's work.",
        flag(vitals.is_some_and(|vitals| vitals.failed.is_some())),
    );
    page.counter(
        "pgherd_postgres_starts_total",
        "Starts of PostgreSQL by the HA loop.",
        ha.map_or(0, |ha| ha.n_starts),
    );
    page.counter(
        "pgherd_promotions_total",
        "Promotions of this node by the HA loop.",
        ha.map_or(0, |ha| ha.n_promotions),
    );
    page.gauge(
        "pgherd_settings_not_used",
        "Settings of the stored configuration that are not used here, each with its reason on the status page.",
        ha.map_or(0, |ha| ha.complaints.len()),
    );
}

/// What was decided, and what would happen if the primary died now.
fn pgherd_why(page: &mut Page, ha: Option<&ha::Status>) {
    let counts: Vec<_> = ha.into_iter().flat_map(|ha| ha.trail.counts()).collect();
    page.family("pgherd_decisions_total", "Decisions by the kind of their reason.", "reason", &counts);
    let (safe, seconds, bytes) = match ha.map(|ha| &ha.forecast) {
        None | Some(Forecast::Unknown) => (f64::NAN, f64::NAN, f64::NAN),
        Some(Forecast::Stuck(_)) => (0.0, f64::NAN, f64::NAN),
        #[expect(clippy::cast_precision_loss, reason = "a gauge: 53 bits of bytes are enough")]
        Some(Forecast::Succeeded { within, at_risk, .. }) => (1.0, within.as_secs_f64(), *at_risk as f64),
    };
    page.gauge(
        "pgherd_failover_possible",
        "Value is 1 if another member could take over now, 0 if none could; NaN when nobody leads.",
        safe,
    );
    page.gauge(
        "pgherd_failover_seconds",
        "How long writes would stand still if the primary's machine were lost now; NaN when nobody could take over.",
        seconds,
    );
    page.gauge(
        "pgherd_failover_loss_bytes",
        "Acknowledged WAL that would be lost with the primary's machine now; NaN when nobody could take over.",
        bytes,
    );
}

/// Membership and discovery in our own words.
fn pgherd_membership(page: &mut Page, facts: &Facts<'_>) {
    let store = &facts.store.facts;
    page.gauge("pgherd_store_epoch", "Generation of the coordination store, 0 when in none.", store.epoch);
    page.gauge("pgherd_store_quorum", "Value is 1 if this node has just seen a quorum.", flag(store.quorum));
    page.gauge("pgherd_store_voters", "Voters of the store, as last seen.", store.voters.len());
    page.gauge(
        "pgherd_held_removals",
        "Members whose removal is held back for a reason.",
        facts.store.held.len(),
    );
    page.gauge("pgherd_discovery_peers", "Addresses in the last good list.", facts.peers.addrs.len());
    page.gauge(
        "pgherd_discovery_age_seconds",
        "Age of the last good list of peers; NaN before the first.",
        facts.peers.fetched_at.map_or(f64::NAN, |at| facts.now.since(at).as_secs_f64()),
    );
}

/// The process itself.
fn pgherd_process(page: &mut Page, facts: &Facts<'_>) {
    page.gauge(
        "pgherd_certificate_seconds_left",
        "How long the certificate that ends first is still good; NaN when somebody else looks after them.",
        facts.certificate_life.map_or(f64::NAN, |life| life.as_secs_f64()),
    );
    page.counter(
        "pgherd_log_lines_dropped_total",
        "Lines of the log that were dropped because nobody took them in time.",
        facts.log_lines_dropped,
    );
    page.family(
        "pgherd_restarts_total",
        "How often a service of this node was started again, for whatever reason.",
        "unit",
        facts.restarts,
    );
    page.counter(
        "pgherd_reaped_orphans_total",
        "Processes without a parent that init has reaped since this node's process was started.",
        facts.reaped_orphans,
    );
}

/// A standby's side of replication; all zero on a primary.
#[derive(Debug, Default)]
struct Recovery {
    received: u64,
    replayed: u64,
    replayed_at: String,
    paused: bool,
    state: Option<ReplicationState>,
}

impl Recovery {
    fn of(kind: Option<&Kind>) -> Self {
        match kind {
            None | Some(Kind::Primary { .. }) => Self { replayed_at: "0".to_owned(), ..Self::default() },
            Some(Kind::Standby {
                received,
                replayed,
                replayed_at_micros,
                replay_paused,
                replication,
                ..
            }) => Self {
                received: received.0,
                replayed: replayed.0,
                replayed_at: replayed_at_micros.map_or_else(|| "0".to_owned(), seconds),
                paused: *replay_paused,
                state: *replication,
            },
        }
    }
}

fn current(kind: Option<&Kind>) -> u64 {
    match kind {
        Some(Kind::Primary { lsn, .. }) => lsn.0,
        None | Some(Kind::Standby { .. }) => 0,
    }
}

/// Microseconds since the epoch as seconds with a fraction, without a detour over floating point.
fn seconds(micros: i64) -> String {
    format!("{}.{:06}", micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000))
}

/// `4.1.4` as `040104`.
fn padded_version() -> String {
    PATRONI_VERSION.split('.').map(|part| format!("{part:0>2}")).collect()
}

fn flag(set: impl Into<bool>) -> u8 {
    u8::from(set.into())
}

/// The priority that counts in an election: `nofailover` overrides the tag.
fn failover_priority(status: &ha::Status) -> u32 {
    Tags::from_json(&status.tags).failover_priority
}

/// Patroni's index of a state; -1 for one that it has no number for.
fn state_index(state: MemberState) -> i8 {
    match state {
        MemberState::Initializing => 0,
        MemberState::InitdbFailed => 1,
        MemberState::CreatingReplica => 4,
        MemberState::Running => 5,
        MemberState::Starting => 6,
        MemberState::StartFailed => 8,
        MemberState::Restarting => 9,
        MemberState::Stopping => 11,
        MemberState::Stopped => 12,
        MemberState::Crashed => 14,
        MemberState::Unknown => -1,
    }
}

/// The text under way: every series carries `scope` and `name`.
#[derive(Debug)]
struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn new(node: &NodeFacts) -> Self {
        let labels = format!("scope=\"{}\",name=\"{}\"", escape(&node.app), escape(node.name.as_str()));
        Self { text: String::with_capacity(8 * 1024), labels }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.series(name, (help, "gauge"), "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.series(name, (help, "counter"), "", value);
    }

    /// A gauge that is always 1 and says its word in a label.
    fn info(&mut self, name: &str, help: &str, (label, word): (&str, &str)) {
        self.series(name, (help, "gauge"), &format!(",{label}=\"{}\"", escape(word)), 1);
    }

    /// A counter that is told apart by one label.
    fn family(&mut self, name: &str, help: &str, label: &str, counts: &[(&str, u64)]) {
        let labels = self.labels.clone();
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} counter"));
        for (word, n) in counts {
            self.line(format_args!("{name}{{{labels},{label}=\"{}\"}} {n}", escape(word)));
        }
    }

    fn state(&mut self, state: MemberState) {
        let name = "patroni_postgres_state";
        self.line(format_args!("# HELP {name} Numeric representation of Postgres state."));
        self.line(format_args!("# Values: {STATES}"));
        self.line(format_args!("# TYPE {name} gauge"));
        let labels = self.labels.clone();
        self.line(format_args!("{name}{{{labels}}} {}", state_index(state)));
    }

    fn series(&mut self, name: &str, (help, kind): (&str, &str), extra: &str, value: impl Display) {
        let labels = self.labels.clone();
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        self.line(format_args!("{name}{{{labels}{extra}}} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        if self.text.write_fmt(line).is_ok() {
            self.text.push('\n');
        }
    }
}

/// A label's value, as the text format wants it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::{down, primary, replica, tagged};
    use crate::types::{NodeId, NodeName};
    use std::collections::BTreeMap;

    const NOW: Moment = Moment(1_000_000_000_000);

    /// What a scraper makes of a page: name -> (type, labels, value). Fails on anything that is not the text format.
    fn parse(page: &str) -> BTreeMap<String, (String, String, String)> {
        let (mut help, mut kinds, mut series) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        assert!(page.ends_with('\n'));
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, text) = rest.split_once(' ').unwrap();
                assert!(help.insert(name.to_owned(), text.to_owned()).is_none(), "{name} twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["gauge", "counter"].contains(&kind), "{line}");
                kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with("# ") {
                let (name, rest) = line.split_once('{').unwrap();
                let (labels, value) = rest.rsplit_once("} ").unwrap();
                assert!(value == "NaN" || value.parse::<f64>().is_ok(), "{line}");
                assert!(help.contains_key(name), "{name} has no help");
                let row = (kinds[name].clone(), labels.to_owned(), value.to_owned());
                assert!(series.insert(name.to_owned(), row).is_none(), "{name} twice");
            }
        }
        series
    }

    fn page(ha: Option<&ha::Status>) -> String {
        let node = NodeFacts {
            node_id: NodeId("00112233aabbccdd".into()),
            name: NodeName::from("n0"),
            app: "demo".into(),
        };
        let (store, peers) = (etcd::Status::default(), discovery::Peers::default());
        render(&Facts {
            node: &node,
            ha,
            store: &store,
            peers: &peers,
            certificate_life: None,
            log_lines_dropped: 0,
            restarts: &[("postgres", 2)],
            reaped_orphans: 5,
            now: NOW,
        })
    }

    const NAMES: [(&str, &str); 26] = [
        ("patroni_version", "gauge"),
        ("patroni_postgres_running", "gauge"),
        ("patroni_postmaster_start_time", "gauge"),
        ("patroni_primary", "gauge"),
        ("patroni_xlog_location", "counter"),
        ("patroni_standby_leader", "gauge"),
        ("patroni_replica", "gauge"),
        ("patroni_sync_standby", "gauge"),
        ("patroni_quorum_standby", "gauge"),
        ("patroni_xlog_received_location", "counter"),
        ("patroni_xlog_replayed_location", "counter"),
        ("patroni_xlog_replayed_timestamp", "gauge"),
        ("patroni_xlog_paused", "gauge"),
        ("patroni_postgres_streaming", "gauge"),
        ("patroni_postgres_in_archive_recovery", "gauge"),
        ("patroni_postgres_server_version", "gauge"),
        ("patroni_cluster_unlocked", "gauge"),
        ("patroni_failsafe_mode_is_active", "gauge"),
        ("patroni_failsafe_mode_enabled", "gauge"),
        ("patroni_failsafe_member", "gauge"),
        ("patroni_postgres_timeline", "gauge"),
        ("patroni_dcs_last_seen", "gauge"),
        ("patroni_pending_restart", "gauge"),
        ("patroni_is_paused", "gauge"),
        ("patroni_postgres_state", "gauge"),
        ("patroni_failover_priority", "gauge"),
    ];

    #[test]
    fn every_name_is_there_in_every_state() {
        let statuses = [None, Some(primary(NOW)), Some(replica("n1", 9, NOW)), Some(down(primary(NOW)))];
        let all = parse(&page(None));
        for status in &statuses {
            let series = parse(&page(status.as_ref()));
            for (name, kind) in NAMES {
                assert_eq!(series[name].0, kind, "{name}");
                assert_eq!(series[name].1, "scope=\"demo\",name=\"n0\"", "{name}");
            }
            assert!(series.keys().eq(all.keys()));
        }
        assert_eq!(all.keys().filter(|name| name.starts_with("patroni_")).count(), NAMES.len());
    }

    fn value(series: &BTreeMap<String, (String, String, String)>, name: &str) -> String {
        series[name].2.clone()
    }

    #[test]
    fn a_primary_and_a_replica_tell_their_positions() {
        let series = parse(&page(Some(&primary(NOW))));
        assert_eq!(value(&series, "patroni_version"), "040104");
        assert_eq!(value(&series, "patroni_primary"), "1");
        assert_eq!(value(&series, "patroni_xlog_location"), "50331976");
        assert_eq!(value(&series, "patroni_postmaster_start_time"), "1795190057.002193");
        assert_eq!(value(&series, "patroni_postgres_state"), "5");
        assert_eq!(value(&series, "pgherd_lease_margin_seconds"), "16.5");
        assert_eq!(value(&series, "pgherd_deadman_margin_seconds"), "18.25");
        assert_eq!(value(&series, "pgherd_lease_remaining_seconds"), "17");
        assert_eq!(value(&series, "pgherd_promotions_total"), "2");
        let series = parse(&page(Some(&replica("n1", 8, NOW))));
        assert_eq!(value(&series, "patroni_primary"), "0");
        assert_eq!(value(&series, "patroni_xlog_location"), "0");
        assert_eq!(value(&series, "patroni_xlog_replayed_location"), "50331968");
        assert_eq!(value(&series, "patroni_quorum_standby"), "1");
        assert_eq!(value(&series, "pgherd_lease_margin_seconds"), "NaN");
        assert_eq!(value(&series, "pgherd_deadman_margin_seconds"), "NaN");
    }

    #[test]
    fn the_values_comment_sits_between_help_and_type() {
        let page = page(None);
        let at = |part: &str| page.find(part).unwrap();
        assert!(at("# HELP patroni_postgres_state") < at("# Values: 0=initdb, 1=initdb_failed, "));
        assert!(at("# Values: ") < at("# TYPE patroni_postgres_state"));
    }

    #[test]
    fn a_reason_cannot_break_the_page() {
        let status = ha::Status { reason: "held: \"x\\y\"\nagain } 1".into(), ..primary(NOW) };
        let series = parse(&page(Some(&status)));
        assert!(series["pgherd_decision_info"].1.ends_with("reason=\"held: \\\"x\\\\y\\\"\\nagain } 1\""));
    }

    #[test]
    fn nofailover_overrides_the_priority() {
        let priority = |tags| failover_priority(&tagged(primary(NOW), &tags));
        assert_eq!(priority(serde_json::json!({})), 1);
        assert_eq!(priority(serde_json::json!({"failover_priority": "3"})), 3);
        assert_eq!(priority(serde_json::json!({"failover_priority": 3, "nofailover": true})), 0);
    }
}
