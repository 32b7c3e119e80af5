//! The rules in force: the environment's at first, the store's dynamic configuration from the bootstrap on.
//!
//! Patroni's names and units. A stored value that cannot be read or that breaks the timing rule is
//! passed over with a complaint, never adjusted in silence.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::callbacks::Program;
use super::remote::Remote;
use super::replication::Replication;
use super::watchdog::Guard;
use crate::postgres::{Reserve, Stored};
use crate::types::{SyncMode, Timing};

pub use super::tags::{Failover, Tags};

/// What the decisions depend on besides the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The durations of the lease.
    pub timing: Timing,
    /// How commits wait.
    pub sync_mode: SyncMode,
    /// What happens to commits when nobody can confirm them.
    pub strictness: Strictness,
    /// How many standbys must confirm a commit.
    pub sync_node_count: u32,
    /// The lag that a candidate may have, in bytes.
    pub maximum_lag_on_failover: u64,
    /// What a primary does without the store (`failsafe_mode`).
    pub outlast: Outlast,
    /// Maintenance mode.
    pub pause: Pause,
    /// How long a start of the primary may take (crash recovery included) before another node shall lead, if one can.
    pub primary_start_timeout: Duration,
    /// How long a planned stop of the primary may take in a synchronous mode; zero: as long as any.
    pub primary_stop_timeout: Duration,
    /// This node's tags.
    pub tags: Tags,
    /// The program that must succeed before this node is promoted. From the environment only: see `callbacks`.
    pub pre_promote: Option<Program>,
    /// What the store says of replication.
    pub replication: Replication,
    /// What the store says of PostgreSQL; none before it was read. In the environment's rules: what a new cluster
    /// begins with.
    pub server: Option<Stored>,
    /// Whether a leader is guarded by a watchdog. From the environment or the file only: it is this machine's.
    pub watchdog: Guard,
    /// The room that is held back on the volume. From the environment only.
    pub reserve: Option<Reserve>,
    /// In whose place this process runs.
    pub mode: Mode,
    /// The cluster that this one follows.
    pub remote: Option<Remote>,
}

/// In whose place this process runs: what may be taken for granted of the store and of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mode {
    /// A container of ours: nobody but pgherd writes to the store, and PostgreSQL does not outlive the container.
    #[default]
    Node,
    /// In the place of a Patroni process (agent mode): other members may be Patroni's own, which found clusters and time
    /// leases in their way, and PostgreSQL goes on when the process ends.
    Agent {
        /// What this node's file says of the server; it wins over the store.
        local: Map<String, Value>,
        /// What it does without data while nobody leads.
        unled: Unled,
    },
}

/// What a node without data does while nobody leads a cluster that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unled {
    /// It waits for a leader to copy.
    #[default]
    Waits,
    /// A method of its file needs none (`no_leader`).
    Copies,
}

/// Patroni's limits of the durations, in seconds.
const LEAST_TTL: u64 = 20;
const LEAST_LOOP_WAIT: u64 = 1;
const LEAST_RETRY_TIMEOUT: u64 = 3;

/// Patroni's `primary_start_timeout` when nothing is said.
pub const START_TIMEOUT: Duration = Duration::from_secs(300);

/// Maintenance mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pause {
    /// The cluster looks after itself.
    #[default]
    Off,
    /// Nothing is started, stopped or elected but what an operator asks for.
    On,
}

/// What happens to commits when no standby can confirm them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// They go on unconfirmed, and nobody else may be elected until a standby has caught up.
    Degrade,
    /// They wait.
    Strict,
}

/// What a primary does when the store is silent for longer than its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outlast {
    /// It stops.
    #[default]
    Never,
    /// It goes on as long as every member promises not to take its place.
    AllAgree,
}

impl Rules {
    /// The dynamic configuration that a new cluster begins with.
    pub fn to_config(&self) -> Value {
        let sync = match self.sync_mode {
            SyncMode::Off => json!(false),
            SyncMode::On => json!(true),
            SyncMode::Quorum => json!("quorum"),
        };
        let mut config = json!({
            "ttl": self.timing.ttl.as_secs(),
            "loop_wait": self.timing.loop_wait.as_secs(),
            "retry_timeout": self.timing.retry_timeout.as_secs(),
            "maximum_lag_on_failover": self.maximum_lag_on_failover,
            "synchronous_mode": sync,
            "synchronous_mode_strict": self.strictness == Strictness::Strict,
            "synchronous_node_count": self.sync_node_count,
            "failsafe_mode": self.outlast == Outlast::AllAgree,
            "postgresql": self.server.clone().unwrap_or_default(),
        });
        if let (Some(config), Some(remote)) = (config.as_object_mut(), &self.remote) {
            config.insert("standby_cluster".to_owned(), remote.to_json());
        }
        config
    }

    /// These rules with what the store says in their place, and what in it could not be used.
    #[must_use]
    pub fn with_config(&self, config: &Value) -> (Self, Vec<String>) {
        let mut complaints = Vec::new();
        let server = match &self.mode {
            Mode::Node => Stored::of(config),
            Mode::Agent { local, .. } => Stored::of(config).under(local),
        };
        let mut rules = Self { server: Some(server), ..self.clone() };
        let mut number = |key: &str| -> Option<u64> {
            let value = config.get(key)?;
            let read = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
            if read.is_none() {
                complaints
                    .push(format!("{key} is {value}, not a whole number: the value before stays in force"));
            }
            read
        };
        let seconds = |value: Option<u64>, before: Duration| value.map_or(before, Duration::from_secs);
        let timing = Timing {
            ttl: seconds(number("ttl"), self.timing.ttl),
            loop_wait: seconds(number("loop_wait"), self.timing.loop_wait),
            retry_timeout: seconds(number("retry_timeout"), self.timing.retry_timeout),
        };
        rules.maximum_lag_on_failover =
            number("maximum_lag_on_failover").unwrap_or(self.maximum_lag_on_failover);
        let mut either = |now: &str, before: &str| number(now).or_else(|| number(before));
        rules.primary_start_timeout =
            seconds(either("primary_start_timeout", "master_start_timeout"), self.primary_start_timeout);
        rules.primary_stop_timeout =
            seconds(either("primary_stop_timeout", "master_stop_timeout"), self.primary_stop_timeout);
        rules.pause = match config.get("pause").and_then(flag) {
            Some(true) => Pause::On,
            Some(false) | None => Pause::Off,
        };
        let count = number("synchronous_node_count").and_then(|n| u32::try_from(n).ok());
        rules.sync_node_count = count.unwrap_or(self.sync_node_count).max(1);
        let (timing, refused) = self.durations(timing);
        rules.timing = timing;
        complaints.extend(refused);
        rules.sync_mode = sync_mode(config.get("synchronous_mode")).unwrap_or(self.sync_mode);
        rules.strictness = match config.get("synchronous_mode_strict").and_then(flag) {
            Some(true) => Strictness::Strict,
            Some(false) => Strictness::Degrade,
            None => self.strictness,
        };
        let (remote, unused) = self.remote(config);
        rules.remote = remote;
        complaints.extend(unused);
        let (replication, unused) = Replication::of(config);
        rules.replication = replication;
        complaints.extend(unused);
        rules.outlast = match config.get("failsafe_mode").and_then(flag) {
            Some(true) => Outlast::AllAgree,
            Some(false) => Outlast::Never,
            None => self.outlast,
        };
        complaints.extend(unreadable_failsafe(config));
        (rules, complaints)
    }

    /// Whom the store says that this cluster follows, and what of that cannot be used. In a container there is only
    /// pg_basebackup and no archive.
    fn remote(&self, config: &Value) -> (Option<Remote>, Vec<String>) {
        let (remote, mut unused) = Remote::of(config);
        let nowhere = remote.as_ref().is_some_and(|remote| remote.host.is_none());
        if nowhere && self.mode == Mode::Node && unused.is_empty() {
            unused.push("standby_cluster has no host: nobody is followed".to_owned());
        }
        if self.mode == Mode::Node {
            unused.extend(Remote::unusable_methods(config));
        }
        (remote, unused)
    }

    /// The durations that are used when these are asked for, and what is to be said of that.
    fn durations(&self, wanted: Timing) -> (Timing, Option<String>) {
        let used = match self.mode {
            Mode::Node if timing_holds(&wanted) => wanted,
            Mode::Node => self.timing,
            Mode::Agent { .. } => as_patroni_adjusts(wanted),
        };
        let said =
            format!("{wanted:?} breaks loop_wait + 2 * retry_timeout <= ttl, or a limit: {used:?} is used");
        (used, (used != wanted).then_some(said))
    }
}

/// What every member of a mixed cluster makes of durations that break the rule: each must know how long a lease of the
/// others lasts.
fn as_patroni_adjusts(wanted: Timing) -> Timing {
    let (ttl, mut loop_wait, mut retry_timeout) = (
        wanted.ttl.max(Duration::from_secs(LEAST_TTL)),
        wanted.loop_wait.max(Duration::from_secs(LEAST_LOOP_WAIT)),
        wanted.retry_timeout.max(Duration::from_secs(LEAST_RETRY_TIMEOUT)),
    );
    let least = Duration::from_secs(LEAST_LOOP_WAIT);
    if loop_wait + 2 * retry_timeout > ttl {
        loop_wait = ttl.saturating_sub(2 * retry_timeout).max(least);
    }
    if loop_wait + 2 * retry_timeout > ttl {
        retry_timeout = Duration::from_secs(ttl.saturating_sub(least).as_secs() / 2);
    }
    Timing { ttl, loop_wait, retry_timeout }
}

/// The rule that keeps a lease a lease: one failed read and one failed write still end before it does.
pub fn timing_holds(timing: &Timing) -> bool {
    !timing.loop_wait.is_zero() && timing.loop_wait + 2 * timing.retry_timeout <= timing.ttl
}

fn sync_mode(value: Option<&Value>) -> Option<SyncMode> {
    let value = value?;
    if value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("quorum")) {
        return Some(SyncMode::Quorum);
    }
    flag(value).map(|on| if on { SyncMode::On } else { SyncMode::Off })
}

/// There is no rule between all and nothing: what is neither leaves the value before in force.
fn unreadable_failsafe(config: &Value) -> Option<String> {
    let value = config.get("failsafe_mode").filter(|value| !value.is_null() && flag(value).is_none())?;
    Some(format!(
        "failsafe_mode is {value}, not true (all members must agree) or false: the value before stays in force"
    ))
}

/// A boolean in any of the spellings that Patroni reads.
pub(super) fn flag(value: &Value) -> Option<bool> {
    match value.as_str().map(str::to_ascii_lowercase).as_deref() {
        Some("on" | "true" | "yes" | "1") => Some(true),
        Some("off" | "false" | "no" | "0") => Some(false),
        Some(_) => None,
        None => value.as_bool(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rules() -> Rules {
        Rules {
            timing: Timing {
                ttl: Duration::from_secs(10),
                loop_wait: Duration::from_secs(2),
                retry_timeout: Duration::from_secs(4),
            },
            sync_mode: SyncMode::Quorum,
            strictness: Strictness::Degrade,
            sync_node_count: 1,
            maximum_lag_on_failover: 1_048_576,
            outlast: Outlast::AllAgree,
            pause: Pause::Off,
            primary_start_timeout: START_TIMEOUT,
            primary_stop_timeout: Duration::ZERO,
            tags: Tags::default(),
            pre_promote: None,
            replication: Replication::default(),
            server: Some(Stored::initial(&BTreeMap::new())),
            watchdog: Guard::OFF,
            reserve: None,
            mode: Mode::Node,
            remote: None,
        }
    }

    #[test]
    fn in_agent_mode_durations_are_adjusted_as_patroni_does() {
        let agent = Rules { mode: Mode::Agent { local: Map::new(), unled: Unled::Waits }, ..rules() };
        let seconds = |ttl, loop_wait, retry_timeout| {
            let stored = json!({"ttl": ttl, "loop_wait": loop_wait, "retry_timeout": retry_timeout});
            let Timing { ttl, loop_wait, retry_timeout } = agent.with_config(&stored).0.timing;
            (ttl.as_secs(), loop_wait.as_secs(), retry_timeout.as_secs())
        };
        assert_eq!(seconds(30, 10, 10), (30, 10, 10));
        assert_eq!(seconds(30, 10, 30), (30, 1, 14), "what the predecessor runs with");
        assert_eq!(seconds(30, 15, 10), (30, 10, 10));
        assert_eq!(seconds(5, 1, 1), (20, 1, 3));
    }

    #[test]
    fn what_is_written_at_the_bootstrap_reads_back_the_same() {
        let (read, complaints) = rules().with_config(&rules().to_config());
        assert_eq!((read, complaints), (rules(), vec![]));
    }

    #[test]
    fn the_store_wins_in_every_spelling_of_patroni() {
        let stored = json!({"ttl": "30", "loop_wait": 10, "retry_timeout": 10, "synchronous_mode": "on"});
        let (read, complaints) = rules().with_config(&stored);
        assert_eq!(read.timing.ttl, Duration::from_secs(30));
        assert_eq!(read.sync_mode, SyncMode::On);
        assert!(complaints.is_empty());
    }

    #[test]
    fn timings_that_break_the_rule_change_nothing_and_are_said() {
        let (read, complaints) =
            rules().with_config(&json!({"ttl": 10, "loop_wait": 10, "retry_timeout": 10}));
        assert_eq!(read.timing, rules().timing);
        assert_eq!(complaints.len(), 1);
        let (read, complaints) = rules().with_config(&json!({"ttl": "soon"}));
        assert_eq!(Rules { server: rules().server, ..read }, rules());
        assert!(complaints.iter().any(|c| c.contains("ttl")), "{complaints:?}");
    }
}
