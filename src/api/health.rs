//! Health: may a client be sent here? Pure: from a path, its filters, a published status and a moment to yes or no.
//!
//! Invariant: nobody is called a leader by a node whose right to lead has run out, whose loop stands still, or which
//! is stopping. Paths are matched by substring in Patroni's order, so `/leader/any` and `/replica/x` work.

use std::time::Duration;

use serde_json::Value;

use super::status::{SyncPart, is_paused, is_standby_cluster, known_view, leader_position, role, sync_part};
use crate::clock::Moment;
use crate::dcs::{MemberState, ReplicationState, Role};
use crate::ha;
use crate::ha::tags::is_set;
use crate::postgres::Door;
use crate::postgres::status::Kind;
use crate::types::Lsn;

/// A question about this member's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Does it lead a standby cluster?
    StandbyLeader,
    /// Does it lead?
    Leader,
    /// Does it lead, and take writes?
    Primary,
    /// Is it a replica that takes reads?
    Replica,
    /// Does it take reads, whatever it is?
    ReadOnly,
    /// Is PostgreSQL up?
    Health,
    /// A synchronous replica?
    Sync,
    /// A replica of the quorum?
    Quorum,
    /// A replica that commits do not wait for?
    Async,
    /// The leader, or a replica of the quorum?
    ReadOnlyQuorum,
    /// The leader, or a synchronous replica?
    ReadOnlySync,
    /// A path that means nothing: always unhealthy, as Patroni has it.
    Unknown,
}

impl Check {
    /// The question that a path asks.
    pub fn of(path: &str) -> Self {
        let has = |part: &str| path.contains(part);
        match path {
            "/" => Self::Primary,
            _ if has("standby_leader") || has("standby-leader") => Self::StandbyLeader,
            _ if has("leader") => Self::Leader,
            _ if has("master") || has("primary") || has("read-write") => Self::Primary,
            _ if has("replica") => Self::Replica,
            _ if has("read-only") && !has("sync") && !has("quorum") => Self::ReadOnly,
            _ if has("health") => Self::Health,
            "/sync" | "/synchronous" => Self::Sync,
            "/quorum" => Self::Quorum,
            "/async" | "/asynchronous" => Self::Async,
            "/read-only-quorum" => Self::ReadOnlyQuorum,
            "/read-only-sync" | "/read-only-synchronous" => Self::ReadOnlySync,
            _ => Self::Unknown,
        }
    }
}

/// What a client asks for beyond the path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters {
    /// `lag=`: how far behind a replica may be, in bytes; nobody is less than not at all.
    pub lag: Option<i64>,
    /// `replication_state=`, word for word.
    pub replication_state: Option<String>,
    /// `tag_<name>=<value>`.
    pub tags: Vec<(String, String)>,
    /// `mode=`, for readiness.
    pub mode: Mode,
}

/// Which position readiness judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// What has been replayed: a query sees it.
    #[default]
    Apply,
    /// What has been received: it would survive.
    Write,
}

impl Filters {
    /// Reads a query string's pairs. The first of several values counts; what cannot be read is ignored, and so is what is
    /// empty.
    pub fn from_query(pairs: &[(String, String)]) -> Self {
        let said = || pairs.iter().filter(|(_, value)| !value.is_empty());
        let first = |key: &str| said().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let mut tags: Vec<(String, String)> = Vec::new();
        for (key, value) in said() {
            if let Some(tag) = key.strip_prefix("tag_")
                && !tags.iter().any(|(seen, _)| seen == tag)
            {
                tags.push((tag.to_owned(), value.clone()));
            }
        }
        Self {
            lag: first("lag").and_then(parse_bytes),
            replication_state: first("replication_state").map(str::to_owned),
            tags,
            mode: if first("mode") == Some("write") { Mode::Write } else { Mode::Apply },
        }
    }
}

/// A number of bytes with an optional unit (`B`, `kB`, `MB`, `GB`, `TB`; steps of 1024), fractions and all.
fn parse_bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1_f64,
        "kb" => 1024_f64,
        "mb" => 1024_f64.powi(2),
        "gb" => 1024_f64.powi(3),
        "tb" => 1024_f64.powi(4),
        _ => return None,
    };
    #[expect(clippy::cast_possible_truncation, reason = "more than there can be is as good as the most")]
    let bytes = (number.parse::<f64>().ok()? * factor).round() as i64;
    Some(bytes)
}

/// Whether the answer to a health check is 200.
pub fn is_healthy(check: Check, filters: &Filters, status: &ha::Status, now: Moment) -> bool {
    let leads = |as_what| leads(as_what, status, now);
    // Whoever is sent to a server that lets nobody in is turned away.
    let lets_in = status.door == Door::Open;
    let takes_writes = || leads(Lead::Primary) && lets_in;
    let replica = |parts: &[SyncPart]| {
        lets_in && parts.contains(&sync_part(status)) && takes_reads(filters, status, now)
    };
    let any = &[SyncPart::None, SyncPart::Sync, SyncPart::Quorum];
    // Who is synchronous is only known while the store is.
    let known = known_view(status, now).is_some();
    let tagged = || tags_match(&filters.tags, &status.tags);
    let read_only = |parts: &[SyncPart]| takes_writes() || leads(Lead::Standby) || replica(parts);
    match check {
        Check::StandbyLeader => leads(Lead::Standby),
        Check::Leader => leads(Lead::Either),
        Check::Primary => takes_writes(),
        Check::Replica => replica(any) && tagged(),
        Check::ReadOnly => read_only(any) && tagged(),
        Check::Health => is_up(status, now) && tagged(),
        Check::Sync => known && replica(&[SyncPart::Sync]) && tagged(),
        Check::Quorum => known && replica(&[SyncPart::Quorum]) && tagged(),
        Check::Async => known && replica(&[SyncPart::None]) && tagged(),
        Check::ReadOnlyQuorum => known && read_only(&[SyncPart::Quorum]) && tagged(),
        Check::ReadOnlySync => known && read_only(&[SyncPart::Sync]) && tagged(),
        Check::Unknown => false,
    }
}

/// Kinds of leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    Either,
    Primary,
    Standby,
}

fn leads(as_what: Lead, status: &ha::Status, now: Moment) -> bool {
    if status.phase == ha::Phase::Stopping || loop_age(status, now) > status.timing.ttl {
        return false;
    }
    let role = role(status);
    if is_paused(status) && has_lost_store(status, now) {
        // Patroni's rule: in maintenance mode a lost store changes nothing, so the role alone tells.
        return match as_what {
            Lead::Either => matches!(role, Role::Primary | Role::StandbyLeader),
            Lead::Primary => role == Role::Primary,
            Lead::Standby => role == Role::StandbyLeader,
        };
    }
    let follows = is_standby_cluster(status);
    holds_lease(status, now)
        && is_born(status)
        && match as_what {
            Lead::Either => true,
            Lead::Primary => !follows || role == Role::Primary,
            Lead::Standby => follows && matches!(role, Role::Replica | Role::StandbyLeader),
        }
}

/// Whether the store has not been read where it should have been. Sooner than a view is too old to count: the lease ends before
/// that, and must not take clients away from a paused primary for those seconds.
fn has_lost_store(status: &ha::Status, now: Moment) -> bool {
    let due = status.timing.loop_wait + status.timing.retry_timeout;
    known_view(status, now).is_none_or(|snapshot| now.since(snapshot.taken) > due)
}

/// Whether there is a cluster to speak of: the lock is taken before there is one, and Patroni takes it after that.
fn is_born(status: &ha::Status) -> bool {
    role(status) != Role::Uninitialized && status.state != MemberState::Initializing
}

/// Whether this node's right to lead lasts at this moment.
pub fn holds_lease(status: &ha::Status, now: Moment) -> bool {
    status.lease_until.is_some_and(|until| now < until)
}

/// Whether this node may call itself the primary.
pub fn is_primary(status: &ha::Status, now: Moment) -> bool {
    leads(Lead::Primary, status, now)
}

/// Whether this node may call itself the leader of a standby cluster.
pub fn is_standby_leader(status: &ha::Status, now: Moment) -> bool {
    leads(Lead::Standby, status, now)
}

fn loop_age(status: &ha::Status, now: Moment) -> Duration {
    now.since(status.ticked)
}

/// Whether PostgreSQL is up, by a word that is not too old to count.
fn is_up(status: &ha::Status, now: Moment) -> bool {
    let running = status.state == MemberState::Running && status.phase == ha::Phase::Serving;
    running && loop_age(status, now) <= patience(status)
}

/// How long the loop may stand still: a primary's right to serve depends on it, a replica's does not.
fn patience(status: &ha::Status) -> Duration {
    match role(status) {
        Role::Primary => status.timing.ttl,
        Role::Replica | Role::StandbyLeader | Role::Demoted | Role::Promoted | Role::Uninitialized => {
            status.timing.ttl * 2
        }
    }
}

fn takes_reads(filters: &Filters, status: &ha::Status, now: Moment) -> bool {
    let balanced = !is_set(&status.tags, "noloadbalance");
    let replicates = match &filters.replication_state {
        None => true,
        Some(wanted) => replication_word(status) == Some(wanted.as_str()),
    };
    // In a standby cluster the leader is a replica too, but is asked for as the leader.
    let leads_standby_cluster = is_standby_cluster(status) && holds_lease(status, now);
    role(status) == Role::Replica
        && !leads_standby_cluster
        && is_up(status, now)
        && balanced
        && replicates
        && filters.lag.is_none_or(|limit| lag(Mode::Apply, status).is_none_or(|lag| lag <= limit))
}

fn replication(status: &ha::Status) -> Option<ReplicationState> {
    match &status.postgres.sql.as_ref()?.kind {
        Kind::Standby { replication, .. } => *replication,
        Kind::Primary { .. } => None,
    }
}

fn replication_word(status: &ha::Status) -> Option<&'static str> {
    match replication(status)? {
        ReplicationState::Streaming => Some("streaming"),
        ReplicationState::InArchiveRecovery => Some("in archive recovery"),
        ReplicationState::Unknown => None,
    }
}

/// How far this replica is behind the leader's last known position; `None` when that is not known.
fn lag(mode: Mode, status: &ha::Status) -> Option<i64> {
    let end = leader_position(status.snapshot.as_ref()?)?;
    let at = match &status.postgres.sql.as_ref()?.kind {
        Kind::Primary { .. } => end,
        Kind::Standby { received, replayed, .. } => match mode {
            Mode::Apply => *replayed,
            // Nothing streamed since the start (zero): what was replayed has been received.
            Mode::Write => Lsn::max(*received, *replayed),
        },
    };
    Some(i64::try_from(end.bytes_ahead_of(at)).unwrap_or(i64::MAX))
}

/// A tag that was asked for must exist and be equal; what is no text compares as lower-case text.
fn tags_match(wanted: &[(String, String)], tags: &serde_json::Map<String, Value>) -> bool {
    wanted.iter().all(|(name, value)| match tags.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(tag)) => tag == value,
        Some(other) => other.to_string().to_lowercase() == *value,
    })
}

/// Whether the process is worth keeping: its loop runs. Before the first tick there is nothing to judge: a node may
/// wait for its peers for as long as it takes.
pub fn is_live(status: Option<&ha::Status>, now: Moment) -> bool {
    status.is_none_or(|status| is_paused(status) || loop_age(status, now) <= patience(status))
}

/// Whether the member is ready for its part: it leads, or it streams and is close enough behind.
pub fn is_ready(filters: &Filters, status: &ha::Status, now: Moment) -> bool {
    let usual = i64::try_from(status.maximum_lag_on_failover).unwrap_or(i64::MAX);
    let limit = filters.lag.unwrap_or(usual);
    let close = || lag(filters.mode, status).is_some_and(|lag| lag <= limit);
    let streams = || replication(status) == Some(ReplicationState::Streaming);
    leads(Lead::Either, status, now) || (is_up(status, now) && streams() && close())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_by_substring_in_patronis_order() {
        for (path, check) in [
            ("/", Check::Primary),
            ("/master", Check::Primary),
            ("/read-write", Check::Primary),
            ("/standby-leader", Check::StandbyLeader),
            ("/standby_leader/x", Check::StandbyLeader),
            ("/leader/sub", Check::Leader),
            ("/replica/primary", Check::Primary),
            ("/replica/x", Check::Replica),
            ("/read-only", Check::ReadOnly),
            ("/read-only-sync", Check::ReadOnlySync),
            ("/read-only-synchronous", Check::ReadOnlySync),
            ("/read-only-quorum", Check::ReadOnlyQuorum),
            ("/read-only-quorum/x", Check::Unknown),
            ("/healthz", Check::Health),
            ("/sync", Check::Sync),
            ("/synchronous", Check::Sync),
            ("/sync/x", Check::Unknown),
            ("/quorum", Check::Quorum),
            ("/async", Check::Async),
            ("/asynchronous", Check::Async),
            ("/nothing", Check::Unknown),
            ("", Check::Unknown),
        ] {
            assert_eq!(Check::of(path), check, "{path}");
        }
    }

    #[test]
    fn a_primary_that_lets_nobody_in_leads_and_takes_no_clients() {
        let now = crate::clock::now();
        let mut status = crate::api::fixture::primary(now);
        let healthy = |check, status: &_| is_healthy(check, &Filters::default(), status, now);
        assert!(healthy(Check::Primary, &status) && healthy(Check::ReadOnly, &status));
        status.door = Door::Closed;
        assert!(!healthy(Check::Primary, &status) && !healthy(Check::ReadOnly, &status));
        assert!(healthy(Check::Leader, &status));
        let mut standby = crate::api::fixture::replica("n1", 0, now);
        assert!(healthy(Check::Replica, &standby) && healthy(Check::ReadOnly, &standby));
        standby.door = Door::Closed;
        assert!(!healthy(Check::Replica, &standby) && !healthy(Check::ReadOnly, &standby));
    }

    #[test]
    fn a_paused_primary_takes_clients_from_the_moment_on_that_its_lease_ends_without_a_store() {
        let now = crate::clock::now();
        let mut status = crate::api::fixture::configured(
            crate::api::fixture::primary(now),
            serde_json::json!({"pause": true}),
        );
        let (due, ttl) = (status.timing.loop_wait + status.timing.retry_timeout, status.timing.ttl);
        let healthy = |status: &_, at| is_healthy(Check::Primary, &Filters::default(), status, at);
        status.lease_until = Some(now);
        assert!(!healthy(&status, now + Duration::from_secs(1)), "the store says that nobody leads");
        for silent in [due + Duration::from_secs(1), ttl, ttl * 2] {
            status.ticked = now + silent;
            assert!(healthy(&status, now + silent), "{silent:?}");
        }
    }

    #[test]
    fn lags_are_read_with_units_and_ignored_when_they_make_no_sense() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1048576", Some(1_048_576)),
            ("16kB", Some(16_384)),
            ("1 MB", Some(1_048_576)),
            ("2GB", Some(2_147_483_648)),
            ("1TB", Some(1_099_511_627_776)),
            ("99999999999999999TB", Some(i64::MAX)),
            ("1.5MB", Some(1_572_864)),
            ("+5MB", Some(5_242_880)),
            ("-1", Some(-1)),
            ("", None),
            ("x", None),
            ("1.2.3", None),
            ("MB", None),
            ("10 parsecs", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn the_first_of_several_values_counts() {
        let asked = [
            ("lag", ""),
            ("lag", "1"),
            ("lag", "2"),
            ("tag_a", "x"),
            ("tag_a", "y"),
            ("tag_b", ""),
            ("mode", "write"),
        ];
        let pairs: Vec<_> = asked.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        let filters = Filters::from_query(&pairs);
        assert_eq!((filters.lag, filters.mode), (Some(1), Mode::Write));
        assert_eq!(filters.tags, [("a".to_owned(), "x".to_owned())]);
    }
}
