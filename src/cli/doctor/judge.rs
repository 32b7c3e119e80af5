//! From facts to findings. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::config::Warning;

/// A clock that differs by more makes certificates and logs of different nodes hard to bring together.
const CLOCK_ODD: f64 = 2.0;
/// Certificates are dated back by more than this; beyond it a node's certificate may not be valid yet for another.
const CLOCK_WRONG: f64 = 60.0;
/// The location list is asked for every few seconds.
const LIST_OLD: f64 = 120.0;
/// A share of the volume.
const ROOM_ODD: f64 = 0.20;
/// Below this a primary hands over.
const ROOM_WRONG: f64 = 0.05;
/// A replica that is further behind than this would make a failover wait, or could not take over.
const LAG_ODD: u64 = 64 << 20;
/// What an abandoned slot may keep without being spoken of.
const SLOT_KEEPS: u64 = 1 << 30;
/// A share of the memory, for `shared_buffers`.
const BUFFERS_ODD: f64 = 0.5;
const MIB: u64 = 1 << 20;

/// What was seen.
#[derive(Debug)]
pub(super) struct Facts {
    /// `/patroni` of this node.
    pub(super) own: Value,
    /// `/cluster`.
    pub(super) cluster: Value,
    /// `/why`.
    pub(super) why: Value,
    /// The first sample of each metric without labels of its own.
    pub(super) metrics: BTreeMap<String, f64>,
    /// Ports of members.
    pub(super) doors: Vec<Door>,
    /// How members answered over the control plane's TLS.
    pub(super) greetings: Vec<Greeting>,
    /// The primary's slots, or why they are not known.
    pub(super) slots: Result<Vec<Slot>, String>,
    /// What PostgreSQL here may take, or why it is not known.
    pub(super) memory: Result<Memory, String>,
    /// Roles whose passwords are stored as MD5.
    pub(super) md5: Vec<String>,
    /// WAL that was put aside before a rewind or a copy.
    pub(super) kept_wal: Vec<String>,
}

/// A port of a member, tried from here.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) member: String,
    /// `PostgreSQL`, `etcd for peers`, ...
    pub(super) what: &'static str,
    pub(super) address: String,
    /// How long a connection took, or why there is none.
    pub(super) reached: Result<Duration, String>,
}

/// A member asked as one of its own.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) member: String,
    /// How far its clock is ahead of ours, in seconds, when it said; or why it did not answer.
    pub(super) ahead: Result<Option<f64>, String>,
}

/// A replication slot.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) active: bool,
    /// PostgreSQL's `wal_status`.
    pub(super) wal: String,
    /// Bytes.
    pub(super) keeps: u64,
}

/// Bytes, but for the number of connections.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) limit: u64,
    pub(super) buffers: u64,
    pub(super) connections: u64,
    pub(super) work: u64,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    /// Service or safety suffers now.
    Wrong,
    /// It will, or may.
    Odd,
    /// As it should be.
    Good,
}

impl Grade {
    /// In one word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Wrong => "WRONG",
            Self::Odd => "odd",
            Self::Good => "good",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) grade: Grade,
    pub(super) area: &'static str,
    pub(super) seen: String,
    /// What a person would do.
    pub(super) remedy: Option<String>,
}

fn good(area: &'static str, seen: impl Into<String>) -> Finding {
    Finding { grade: Grade::Good, area, seen: seen.into(), remedy: None }
}

fn bad(grade: Grade, area: &'static str, seen: impl Into<String>, remedy: &str) -> Finding {
    Finding { grade, area, seen: seen.into(), remedy: Some(remedy.to_owned()) }
}

/// Everything that can be said, the worst first. Without facts there is the reason why this node's API does not answer.
pub(super) fn judge(warnings: &[Warning], facts: &Result<Facts, String>) -> Vec<Finding> {
    let mut findings = configuration(warnings);
    match facts {
        Ok(facts) => findings.extend(of_cluster(facts)),
        Err(silence) => {
            let remedy =
                "Does the node run? Its log says why not; `pgherd config check` checks the environment.";
            findings.push(bad(Grade::Wrong, "node", silence, remedy));
        }
    }
    findings.sort_by_key(|finding| finding.grade);
    findings
}

fn of_cluster(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        node(facts),
        leader(facts),
        failover(facts),
        store(facts),
        discovery(facts),
        room(facts),
        memory(facts),
    ];
    findings.extend(members(facts));
    findings.extend(waiting(facts));
    findings.extend(doors(facts));
    findings.extend(greetings(facts));
    findings.extend(slots(facts));
    findings.extend((!facts.md5.is_empty()).then(|| md5(&facts.md5)));
    findings.extend(facts.kept_wal.iter().map(|path| kept_wal(path)));
    findings
}

fn text<'a>(page: &'a Value, pointer: &str) -> &'a str {
    page.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn configuration(warnings: &[Warning]) -> Vec<Finding> {
    let remedy = "README.md lists every variable.";
    warnings.iter().map(|Warning(warning)| bad(Grade::Odd, "configuration", warning, remedy)).collect()
}

fn node(facts: &Facts) -> Finding {
    let (state, role, reason) =
        (text(&facts.own, "/state"), text(&facts.own, "/role"), text(&facts.own, "/pgherd/reason"));
    let seen = format!("{role}, {state}: {reason}");
    if state == "running" {
        good("node", seen)
    } else {
        bad(Grade::Wrong, "node", seen, "`pgherd why` tells what it waits for.")
    }
}

fn rows(facts: &Facts) -> impl Iterator<Item = &Value> {
    facts.cluster.get("members").and_then(Value::as_array).into_iter().flatten()
}

fn leads(row: &Value) -> bool {
    matches!(text(row, "/role"), "leader" | "standby_leader")
}

fn leader(facts: &Facts) -> Finding {
    match rows(facts).find(|row| leads(row)) {
        Some(row) => good("leader", format!("{} leads", text(row, "/name"))),
        None => bad(
            Grade::Wrong,
            "leader",
            "nobody leads: nothing can be written",
            "`pgherd why` on each node tells what it waits for; `pgherd failover` overrides.",
        ),
    }
}

fn members(facts: &Facts) -> Vec<Finding> {
    let replica = |row: &Value| {
        let (name, state) = (text(row, "/name"), text(row, "/state"));
        let lag = row.get("lag").and_then(Value::as_u64);
        let seen = match lag {
            Some(lag) => format!("{name} is {state}, {} MiB behind", lag / MIB),
            None => format!("{name} is {state}"),
        };
        let remedy = "`pgherd why` there tells what it waits for; `pgherd reinit` copies the data anew.";
        match state {
            "streaming" if lag.is_none_or(|lag| lag <= LAG_ODD) => good("member", seen),
            "streaming" => {
                bad(Grade::Odd, "member", seen, "Is its disk or the line to it slower than what is written?")
            }
            _ => bad(Grade::Odd, "member", seen, remedy),
        }
    };
    rows(facts).filter(|row| !leads(row)).map(replica).collect()
}

fn failover(facts: &Facts) -> Finding {
    let Some(forecast) = facts.why.get("if_the_primary_dies") else {
        return bad(Grade::Odd, "failover", "nothing is known of it", "Ask again in a moment.");
    };
    if forecast.get("known").and_then(Value::as_bool) != Some(true) {
        return bad(
            Grade::Odd,
            "failover",
            "it is not known yet who would take over",
            "Ask again in a moment.",
        );
    }
    let risk = forecast.get("bytes_at_risk").and_then(Value::as_u64).unwrap_or(0);
    match (text(forecast, "/leader"), risk) {
        ("", _) => {
            let whys = forecast.get("nobody_because").filter(|whys| **whys != serde_json::json!({}));
            let whys = whys.map_or_else(|| "there is no other member".to_owned(), Value::to_string);
            let remedy = "A single copy of the data: add a node, or mend the ones named.";
            bad(Grade::Odd, "failover", format!("nobody could take over: {whys}"), remedy)
        }
        (name, 0) => good("failover", format!("{name} would take over, nothing acknowledged would be lost")),
        (name, bytes) => bad(
            Grade::Odd,
            "failover",
            format!("{name} would take over, and {bytes} bytes could be lost"),
            "SYNCHRONOUS_MODE=quorum loses nothing that was acknowledged.",
        ),
    }
}

fn metric(facts: &Facts, name: &str) -> f64 {
    facts.metrics.get(name).copied().unwrap_or(f64::NAN)
}

fn store(facts: &Facts) -> Finding {
    let voters = metric(facts, "pgherd_store_voters");
    if voters.is_nan() {
        return bad(Grade::Odd, "store", "nothing is known of etcd", "Ask again in a moment.");
    }
    if metric(facts, "pgherd_store_quorum") < 1.0 {
        let remedy = "A majority of etcd's voters must run and reach each other: see the ports below.";
        return bad(Grade::Wrong, "store", "etcd has no quorum: nobody can become the leader", remedy);
    }
    if voters >= 3.0 {
        good("store", format!("etcd has a quorum of {voters} voters"))
    } else {
        let remedy = "With three nodes it can lose one.";
        bad(Grade::Odd, "store", format!("etcd has {voters} voters: it cannot lose one"), remedy)
    }
}

fn discovery(facts: &Facts) -> Finding {
    let (peers, age) =
        (metric(facts, "pgherd_discovery_peers"), metric(facts, "pgherd_discovery_age_seconds"));
    let members = rows(facts).count();
    if age.is_nan() || age > LIST_OLD {
        let remedy = "Nothing is pruned meanwhile. Can this node reach the location API (FLUX_API_URL), or the DNS server?";
        return bad(Grade::Odd, "discovery", "the list of nodes has not been confirmed for minutes", remedy);
    }
    let seen = format!("{peers} nodes are listed, the cluster has {members} members");
    if peers.to_string() == members.to_string() {
        good("discovery", seen)
    } else {
        bad(Grade::Odd, "discovery", seen, "A listed node that is no member has not joined: look at its log.")
    }
}

fn room(facts: &Facts) -> Finding {
    let (free, total) =
        (metric(facts, "pgherd_volume_free_bytes"), metric(facts, "pgherd_volume_total_bytes"));
    let share = free / total;
    let seen = format!("{:.0} % of the volume is free", share * 100.0);
    match share {
        share if share < ROOM_WRONG => {
            bad(Grade::Wrong, "disk", seen, "Make room: a primary on a full volume hands over.")
        }
        share if share < ROOM_ODD => bad(Grade::Odd, "disk", seen, "Make room, or a larger volume."),
        share if share.is_nan() => {
            bad(Grade::Odd, "disk", "the room on the volume is not known", "Does the disk answer?")
        }
        _ => good("disk", seen),
    }
}

/// What somebody left half done.
fn waiting(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.cluster.get("pause").and_then(Value::as_bool) == Some(true) {
        let remedy = "`pgherd resume` when the work is done.";
        findings.push(bad(Grade::Odd, "maintenance", "paused: nobody is made the leader by itself", remedy));
    }
    for row in rows(facts).filter(|row| row.get("pending_restart").and_then(Value::as_bool) == Some(true)) {
        let seen = format!("a setting waits for a restart of {}", text(row, "/name"));
        findings.push(bad(Grade::Odd, "settings", seen, "`pgherd restart --pending`, replicas first."));
    }
    let complaints = facts.own.pointer("/pgherd/complaints").and_then(Value::as_array);
    for complaint in complaints.into_iter().flatten().filter_map(Value::as_str) {
        findings.push(bad(Grade::Odd, "settings", complaint, "`pgherd edit-config` changes it."));
    }
    if metric(facts, "pgherd_weakened_commits") > 0.0 {
        let remedy = "`pgherd why` names where synchronous_commit was lowered.";
        findings.push(bad(Grade::Odd, "commits", "some commits do not wait for a standby", remedy));
    }
    if metric(facts, "pgherd_held_removals") > 0.0 {
        let remedy = "It goes when every source agrees that it has left; `pgherd why` and the log name what is missing.";
        findings.push(bad(Grade::Odd, "membership", "the removal of a member is held", remedy));
    }
    findings
}

fn doors(facts: &Facts) -> Vec<Finding> {
    let remedy =
        "Open the port between the nodes, both ways; the HOST_*_PORT variables say how others reach a node.";
    let closed = facts.doors.iter().filter_map(|door| {
        let why = door.reached.as_ref().err()?;
        let seen = format!("{} of {} at {}: {why}", door.what, door.member, door.address);
        Some(bad(Grade::Wrong, "network", seen, remedy))
    });
    let mut findings: Vec<Finding> = closed.collect();
    let slowest = facts.doors.iter().filter_map(|door| door.reached.as_ref().ok()).max();
    if let Some(slowest) = slowest.filter(|_| findings.is_empty()) {
        let n = facts.doors.len();
        findings.push(good(
            "network",
            format!("{n} ports of members are open from here, the slowest in {slowest:.0?}"),
        ));
    }
    findings
}

fn greetings(facts: &Facts) -> Vec<Finding> {
    let one = |greeting: &Greeting| {
        let name = &greeting.member;
        match &greeting.ahead {
            Err(why) => bad(
                Grade::Wrong,
                "certificates",
                format!("{name} does not take us for one of its own: {why}"),
                "APP_NAME, the passwords and SSL_PASSPHRASE must be the same on every node, and the clocks nearly so.",
            ),
            Ok(None) => good("certificates", format!("{name} takes us for one of its own")),
            Ok(Some(ahead)) => {
                let seen = format!("{name} takes us for one of its own; its clock differs by {ahead:+.0} s");
                let remedy = "Run a time service (chrony, systemd-timesyncd) on every machine.";
                match ahead.abs() {
                    off if off > CLOCK_WRONG => bad(Grade::Wrong, "clock", seen, remedy),
                    off if off > CLOCK_ODD => bad(Grade::Odd, "clock", seen, remedy),
                    _ => good("clock", seen),
                }
            }
        }
    };
    facts.greetings.iter().map(one).collect()
}

fn slots(facts: &Facts) -> Vec<Finding> {
    let slots = match &facts.slots {
        Ok(slots) => slots,
        Err(why) => return vec![bad(Grade::Odd, "slots", why, "Is the primary reachable from here?")],
    };
    let odd = slots.iter().filter_map(|slot| {
        let seen = format!("{} keeps {} MiB of WAL, {}", slot.name, slot.keeps / MIB, slot.wal);
        let lost = slot.wal == "lost";
        let remedy = if lost {
            "Whoever used it must be copied anew; then drop it."
        } else {
            "Nobody reads from it: bring its reader back, or drop it before the disk is full."
        };
        (lost || !slot.active && slot.keeps > SLOT_KEEPS).then(|| bad(Grade::Odd, "slots", seen, remedy))
    });
    let mut findings: Vec<Finding> = odd.collect();
    if findings.is_empty() {
        findings.push(good("slots", format!("{} slots on the primary, none forgotten", slots.len())));
    }
    findings
}

fn md5(roles: &[String]) -> Finding {
    let remedy = "Set each of them again (\\password in psql): what is stored then cannot be used by whoever reads it.";
    bad(Grade::Odd, "passwords", format!("stored as MD5: {}", roles.join(", ")), remedy)
}

/// No fault of anybody's: what this node wrote as a primary, and nobody has followed.
fn kept_wal(path: &str) -> Finding {
    let remedy = "Archive it if the archive has a hole there; the newest two are kept.";
    let seen = format!("{path} holds WAL that only this node had before it was rewound or copied anew");
    Finding { remedy: Some(remedy.to_owned()), ..good("wal", seen) }
}

fn memory(facts: &Facts) -> Finding {
    let memory = match &facts.memory {
        Ok(memory) => memory,
        Err(why) => return bad(Grade::Odd, "memory", why, "Does PostgreSQL run here?"),
    };
    let busy = memory.buffers.saturating_add(memory.connections.saturating_mul(memory.work));
    let seen = format!(
        "shared_buffers {} MiB, and {} connections with {} MiB of work_mem each, of {} MiB",
        memory.buffers / MIB,
        memory.connections,
        memory.work / MIB,
        memory.limit / MIB
    );
    if memory.buffers as f64 > memory.limit as f64 * BUFFERS_ODD {
        bad(Grade::Wrong, "memory", seen, "Lower shared_buffers to a quarter of the memory.")
    } else if busy > memory.limit {
        bad(
            Grade::Odd,
            "memory",
            seen,
            "If all are busy at once the kernel ends one: lower max_connections or work_mem.",
        )
    } else {
        good("memory", seen)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn healthy() -> Facts {
        let metrics = [
            ("pgherd_store_quorum", 1.0),
            ("pgherd_store_voters", 3.0),
            ("pgherd_discovery_peers", 2.0),
            ("pgherd_discovery_age_seconds", 3.0),
            ("pgherd_volume_free_bytes", 50.0),
            ("pgherd_volume_total_bytes", 100.0),
        ];
        Facts {
            own: json!({"state": "running", "role": "primary", "pgherd": {"reason": "the leader with the lock"}}),
            cluster: json!({"members": [
                {"name": "n1", "role": "leader", "state": "running"},
                {"name": "n2", "role": "quorum_standby", "state": "streaming", "lag": 0},
            ]}),
            why: json!({"if_the_primary_dies": {"known": true, "leader": "n2", "bytes_at_risk": 0}}),
            metrics: metrics.map(|(name, value)| (name.to_owned(), value)).into(),
            slots: Ok(Vec::new()),
            memory: Ok(Memory { limit: 1 << 30, buffers: 128 << 20, connections: 100, work: 4 << 20 }),
            doors: Vec::new(),
            greetings: Vec::new(),
            md5: Vec::new(),
            kept_wal: Vec::new(),
        }
    }

    /// What is said beyond good.
    fn said(facts: Facts) -> Vec<(Grade, &'static str)> {
        of(&[], &Ok(facts))
    }

    fn of(warnings: &[Warning], facts: &Result<Facts, String>) -> Vec<(Grade, &'static str)> {
        let all = judge(warnings, facts).into_iter().filter(|finding| finding.grade != Grade::Good);
        all.map(|finding| (finding.grade, finding.area)).collect()
    }

    #[test]
    fn a_healthy_cluster_is_only_good() {
        assert_eq!(said(healthy()), []);
    }

    #[test]
    fn what_is_left_from_before_is_named() {
        assert_eq!(said(Facts { md5: vec!["admin".into()], ..healthy() }), [(Grade::Odd, "passwords")]);
        let facts = Facts { kept_wal: vec!["/volume/kept-wal/1".into()], ..healthy() };
        let findings = judge(&[], &Ok(facts));
        assert!(findings.iter().any(|f| f.seen.contains("/volume/kept-wal/1") && f.grade == Grade::Good));
    }

    #[test]
    fn a_silent_node_is_the_first_and_only_thing() {
        assert_eq!(of(&[], &Err("could not read".to_owned())), [(Grade::Wrong, "node")]);
        assert_eq!(of(&[Warning("x".to_owned())], &Ok(healthy())), [(Grade::Odd, "configuration")]);
    }

    #[test]
    fn faults_of_the_cluster_have_their_findings() {
        let with_metric = |name: &str, value: f64| {
            let mut facts = healthy();
            facts.metrics.insert(name.to_owned(), value);
            facts
        };
        let cluster = |page: Value| Facts { cluster: page, ..healthy() };
        for (facts, expected) in [
            (Facts { own: json!({"state": "stopped"}), ..healthy() }, (Grade::Wrong, "node")),
            (Facts { why: json!({}), ..healthy() }, (Grade::Odd, "failover")),
            (
                Facts {
                    why: json!({"if_the_primary_dies": {"known": true, "leader": null, "nobody_because": {"n2": "no"}}}),
                    ..healthy()
                },
                (Grade::Odd, "failover"),
            ),
            (with_metric("pgherd_store_quorum", 0.0), (Grade::Wrong, "store")),
            (with_metric("pgherd_store_voters", 1.0), (Grade::Odd, "store")),
            (with_metric("pgherd_store_voters", f64::NAN), (Grade::Odd, "store")),
            (with_metric("pgherd_volume_total_bytes", f64::NAN), (Grade::Odd, "disk")),
            (
                cluster(json!({"members": [
                    {"name": "n1", "role": "leader", "state": "running"},
                    {"name": "n2", "role": "replica", "state": "streaming", "lag": 1_000_000_000}]})),
                (Grade::Odd, "member"),
            ),
            (with_metric("pgherd_discovery_age_seconds", f64::NAN), (Grade::Odd, "discovery")),
            (with_metric("pgherd_discovery_peers", 3.0), (Grade::Odd, "discovery")),
            (with_metric("pgherd_volume_free_bytes", 4.0), (Grade::Wrong, "disk")),
            (with_metric("pgherd_volume_free_bytes", 10.0), (Grade::Odd, "disk")),
            (with_metric("pgherd_weakened_commits", 1.0), (Grade::Odd, "commits")),
            (with_metric("pgherd_held_removals", 1.0), (Grade::Odd, "membership")),
            (
                cluster(json!({"pause": true, "members": healthy().cluster["members"]})),
                (Grade::Odd, "maintenance"),
            ),
            (
                cluster(json!({"members": [
                    {"name": "n1", "role": "leader", "state": "running", "pending_restart": true},
                    {"name": "n2", "role": "replica", "state": "streaming"}]})),
                (Grade::Odd, "settings"),
            ),
        ] {
            assert_eq!(said(facts), [expected]);
        }
        let nobody = cluster(json!({"members": [
            {"name": "n1", "role": "replica", "state": "streaming"},
            {"name": "n2", "role": "replica", "state": "start failed"}]}));
        assert_eq!(said(nobody), [(Grade::Wrong, "leader"), (Grade::Odd, "member")]);
    }

    #[test]
    fn faults_of_a_machine_have_their_findings() {
        let door = |reached| Door { member: "n2".into(), what: "etcd", address: "a:1".into(), reached };
        let greeting = |ahead| Greeting { member: "n2".into(), ahead };
        let slot = |active, wal: &str, keeps| Slot { name: "s".into(), active, wal: wal.into(), keeps };
        for (facts, expected) in [
            (Facts { doors: vec![door(Err("refused".into()))], ..healthy() }, (Grade::Wrong, "network")),
            (
                Facts { greetings: vec![greeting(Err("no".into()))], ..healthy() },
                (Grade::Wrong, "certificates"),
            ),
            (Facts { greetings: vec![greeting(Ok(Some(-5.0)))], ..healthy() }, (Grade::Odd, "clock")),
            (Facts { greetings: vec![greeting(Ok(Some(90.0)))], ..healthy() }, (Grade::Wrong, "clock")),
            (Facts { slots: Ok(vec![slot(true, "lost", 0)]), ..healthy() }, (Grade::Odd, "slots")),
            (Facts { slots: Ok(vec![slot(false, "extended", 2 << 30)]), ..healthy() }, (Grade::Odd, "slots")),
            (Facts { slots: Err("no".into()), ..healthy() }, (Grade::Odd, "slots")),
            (
                Facts {
                    memory: Ok(Memory { limit: 200 << 20, buffers: 128 << 20, connections: 1, work: 0 }),
                    ..healthy()
                },
                (Grade::Wrong, "memory"),
            ),
            (
                Facts {
                    memory: Ok(Memory {
                        limit: 1 << 30,
                        buffers: 128 << 20,
                        connections: 500,
                        work: 4 << 20,
                    }),
                    ..healthy()
                },
                (Grade::Odd, "memory"),
            ),
        ] {
            assert_eq!(said(facts), [expected]);
        }
    }
}
