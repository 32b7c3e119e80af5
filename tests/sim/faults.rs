//! Schedules: what goes wrong and when, as text that a person can read and write.

use std::fmt::{self, Write as _};

use pgherd::ha::watchdog::Need;

/// One fault, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    CrashNode(usize),
    StartNode(usize),
    CrashPostgres(usize),
    CrashEtcd(usize),
    KillAgent(usize),
    Freeze(usize),
    Thaw(usize),
    Pause(usize),
    Resume(usize),
    Stop(usize),
    Wipe(usize),
    Cut(usize, usize),
    Heal(usize, usize),
    Isolate(usize),
    Rejoin(usize),
    StoreCut(usize),
    StoreMute(usize),
    StoreHeal(usize),
    StoreDown,
    StoreUp,
    StoreElection,
    StoreAnswers,
    /// The schedule says that somebody takes writes now.
    Served,
    Slow(usize, u64),
    Write(usize),
    Read(usize),
    Set(String, serde_json::Value),
    CrashAt(usize, String),
    /// The store is cut off, or mute, from the moment on when the agent is about to do this.
    CutAt(usize, String),
    MuteAt(usize, String),
    /// The schedule says that another timeline of one number was found by its bytes.
    Differed,
    /// The schedule says that a watchdog has reset a machine.
    WasReset,
    DiskFull(usize),
    DiskFree(usize),
    /// The disk takes longer than anybody waits for it, and comes to its end.
    DiskSlow(usize),
    DiskFast(usize),
    Hang(usize),
    Unhang(usize),
    LoseWal(usize),
    ApiDown,
    ApiUp,
    ApiHide(usize),
    ApiShow(usize),
    /// Whoever leads shall be followed by somebody, or by this one.
    Switchover(Option<usize>),
    /// The same, at a time of the schedule, in milliseconds.
    Scheduled(Option<usize>, u64),
    Restart(usize),
    Reinitialize(usize),
    /// The other cluster: another of its servers is promoted, or the one that follows is.
    RemotePromote,
    /// The other cluster follows this one.
    RemoteFollow,
    /// A node has another tag from now on.
    Tag(Tag),
    /// The wall clock is set forward, or back, by so many seconds.
    ClockStep(usize, i64),
}

/// A whole run: its set-up and its faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) mode: Mode,
    pub(crate) ttl: u64,
    /// Milliseconds.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// Whether `init` stops a primary whose lease ends. Without it two primaries are possible, lost commits are not.
    pub(crate) deadman: bool,
    /// What the machines have beside the deadman, or in its place.
    pub(crate) watchdog: Need,
    /// When everything is mended, in milliseconds.
    pub(crate) calm: u64,
    /// Whether the store's voters run on the nodes and share their fate.
    pub(crate) voters: Voters,
    /// Whether clients write all the time, or only when the schedule says so.
    pub(crate) clients: bool,
    /// Whether there is another cluster, and this one is made as a standby of it.
    pub(crate) standby: bool,
    /// Whether the cluster is made with failsafe mode.
    pub(crate) failsafe: bool,
    pub(crate) synchronous_node_count: u32,
    /// Of a node, each with its value.
    pub(crate) tags: Vec<Tag>,
}

/// A node, a tag and its value.
pub(crate) type Tag = (usize, String, serde_json::Value);

/// Where the store runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voters {
    /// Beside the nodes: it fails only by its own faults.
    Outside,
    /// On the first three (of five and more: five) nodes: it answers while a majority of them runs and is connected.
    Nodes,
    /// As `etcd::decide` has it: it is founded by a ballot, joined, and left by who is gone.
    Ours,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Quorum,
    Priority,
    Strict,
    Off,
}

/// More a schedule cannot have.
pub(crate) const MOST_NODES: usize = 7;
impl Mode {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Priority => "on",
            Self::Strict => "strict",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CrashNode(n) => write!(f, "crash-node n{n}"),
            Self::StartNode(n) => write!(f, "start-node n{n}"),
            Self::CrashPostgres(n) => write!(f, "crash-postgres n{n}"),
            Self::CrashEtcd(n) => write!(f, "crash-etcd n{n}"),
            Self::KillAgent(n) => write!(f, "kill-agent n{n}"),
            Self::Freeze(n) => write!(f, "freeze n{n}"),
            Self::Thaw(n) => write!(f, "thaw n{n}"),
            Self::Pause(n) => write!(f, "pause n{n}"),
            Self::Resume(n) => write!(f, "resume n{n}"),
            Self::Stop(n) => write!(f, "stop n{n}"),
            Self::Wipe(n) => write!(f, "wipe n{n}"),
            Self::Cut(a, b) => write!(f, "cut n{a} n{b}"),
            Self::Heal(a, b) => write!(f, "heal n{a} n{b}"),
            Self::Isolate(n) => write!(f, "isolate n{n}"),
            Self::Rejoin(n) => write!(f, "rejoin n{n}"),
            Self::StoreCut(n) => write!(f, "store-cut n{n}"),
            Self::StoreMute(n) => write!(f, "store-mute n{n}"),
            Self::StoreHeal(n) => write!(f, "store-heal n{n}"),
            Self::StoreDown => write!(f, "store-down"),
            Self::StoreUp => write!(f, "store-up"),
            Self::StoreElection => write!(f, "store-election"),
            Self::StoreAnswers => write!(f, "store-answers"),
            Self::Served => write!(f, "served"),
            Self::Slow(n, ms) => write!(f, "slow n{n} {ms}"),
            Self::Write(n) => write!(f, "write n{n}"),
            Self::Read(n) => write!(f, "read n{n}"),
            Self::Set(key, value) => write!(f, "set {key} {}", plain(value)),
            Self::CrashAt(n, action) => write!(f, "crash-at n{n} {action}"),
            Self::CutAt(n, action) => write!(f, "cut-at n{n} {action}"),
            Self::MuteAt(n, action) => write!(f, "mute-at n{n} {action}"),
            Self::Differed => write!(f, "differed"),
            Self::WasReset => write!(f, "was-reset"),
            Self::DiskFull(n) => write!(f, "disk-full n{n}"),
            Self::DiskFree(n) => write!(f, "disk-free n{n}"),
            Self::DiskSlow(n) => write!(f, "disk-slow n{n}"),
            Self::DiskFast(n) => write!(f, "disk-fast n{n}"),
            Self::Hang(n) => write!(f, "hang n{n}"),
            Self::Unhang(n) => write!(f, "unhang n{n}"),
            Self::LoseWal(n) => write!(f, "lose-wal n{n}"),
            Self::ApiDown => write!(f, "api-down"),
            Self::ApiUp => write!(f, "api-up"),
            Self::ApiHide(n) => write!(f, "api-hide n{n}"),
            Self::ApiShow(n) => write!(f, "api-show n{n}"),
            Self::Switchover(None) => write!(f, "switchover"),
            Self::Switchover(Some(n)) => write!(f, "switchover n{n}"),
            Self::Scheduled(None, at) => write!(f, "switchover at {at}"),
            Self::Scheduled(Some(n), at) => write!(f, "switchover n{n} at {at}"),
            Self::Restart(n) => write!(f, "restart n{n}"),
            Self::Reinitialize(n) => write!(f, "reinitialize n{n}"),
            Self::RemotePromote => write!(f, "remote-promote"),
            Self::RemoteFollow => write!(f, "remote-follow"),
            Self::Tag((n, tag, value)) => write!(f, "tag n{n} {tag} {}", plain(value)),
            Self::ClockStep(n, seconds) => write!(f, "clock-step n{n} {seconds}"),
        }
    }
}

impl Fault {
    fn nodes(&self) -> [usize; 2] {
        match *self {
            Self::CrashNode(n) | Self::StartNode(n) | Self::CrashPostgres(n) | Self::KillAgent(n) => [n, n],
            Self::Freeze(n) | Self::Thaw(n) | Self::Pause(n) | Self::Resume(n) | Self::Stop(n) => [n, n],
            Self::Wipe(n) | Self::Isolate(n) | Self::Rejoin(n) | Self::Slow(n, _) => [n, n],
            Self::StoreCut(n) | Self::StoreMute(n) | Self::StoreHeal(n) => [n, n],
            Self::Cut(a, b) | Self::Heal(a, b) => [a, b],
            Self::Write(n) | Self::Read(n) | Self::LoseWal(n) => [n, n],
            Self::CrashAt(n, _) | Self::CutAt(n, _) | Self::MuteAt(n, _) => [n, n],
            Self::DiskFull(n) | Self::DiskFree(n) | Self::Hang(n) | Self::Unhang(n) => [n, n],
            Self::ApiHide(n) | Self::ApiShow(n) | Self::Restart(n) | Self::Reinitialize(n) => [n, n],
            Self::Switchover(n) | Self::Scheduled(n, _) => [n.unwrap_or(0), 0],
            Self::StoreDown | Self::StoreUp | Self::StoreElection | Self::StoreAnswers => [0, 0],
            Self::DiskSlow(n) | Self::DiskFast(n) | Self::CrashEtcd(n) => [n, n],
            Self::Tag((n, ..)) | Self::ClockStep(n, _) => [n, n],
            Self::Set(..) | Self::ApiDown | Self::ApiUp => [0, 0],
            Self::RemotePromote | Self::RemoteFollow | Self::Served | Self::Differed => [0, 0],
            Self::WasReset => [0, 0],
        }
    }

    /// Whether it can happen to a server that has no agent of ours.
    fn is_of_a_server(&self) -> bool {
        matches!(
            self,
            Self::Pause(_)
                | Self::Resume(_)
                | Self::Cut(..)
                | Self::Heal(..)
                | Self::Isolate(_)
                | Self::Rejoin(_)
                | Self::Hang(_)
                | Self::Unhang(_)
                | Self::Write(_)
                | Self::LoseWal(_)
        )
    }

    /// Whether it makes sense only beside another cluster.
    fn needs_remote(&self) -> bool {
        matches!(self, Self::RemotePromote | Self::RemoteFollow)
            || matches!(self, Self::Set(key, _) if key == "standby")
    }
}

impl Schedule {
    pub(crate) fn plain(seed: u64) -> Self {
        Self {
            seed,
            nodes: 3,
            mode: Mode::Quorum,
            ttl: 10,
            faults: Vec::new(),
            deadman: true,
            watchdog: Need::Off,
            calm: 60_000,
            voters: Voters::Outside,
            clients: true,
            standby: false,
            failsafe: false,
            synchronous_node_count: 1,
            tags: Vec::new(),
        }
    }

    /// Why this cannot happen in this schedule.
    pub(crate) fn misplaced(&self, fault: &Fault) -> Option<String> {
        if fault.needs_remote() && !self.standby {
            return Some("it needs the setting standby on".into());
        }
        let last = fault.nodes().into_iter().max().unwrap_or(0);
        if last == self.nodes && self.standby {
            return (!fault.is_of_a_server()).then(|| format!("n{last} is the other cluster's server"));
        }
        if let Fault::Tag((_, _, serde_json::Value::String(of))) = fault
            && !(0..self.nodes).any(|n| format!("n{n}") == *of)
        {
            return Some(format!("n0 to n{} are expected", self.nodes - 1));
        }
        (last >= self.nodes).then(|| format!("n0 to n{} are expected", self.nodes - 1))
    }

    pub(crate) fn to_text(&self) -> String {
        let Self { seed, nodes, mode, ttl, calm, .. } = self;
        let deadman = if self.deadman { "on" } else { "off" };
        let mut text = format!(
            "seed {seed}\nnodes {nodes}\nmode {}\nttl {ttl}\ndeadman {deadman}\ncalm {calm}\n",
            mode.word()
        );
        text.push_str(match self.watchdog {
            Need::Off => "",
            Need::Automatic => "watchdog automatic\n",
            Need::Required => "watchdog required\n",
        });
        text.push_str(match self.voters {
            Voters::Outside => "",
            Voters::Nodes => "voters nodes\n",
            Voters::Ours => "voters ours\n",
        });
        if !self.clients {
            text.push_str("clients off\n");
        }
        if self.standby {
            text.push_str("standby on\n");
        }
        if self.failsafe {
            text.push_str("failsafe on\n");
        }
        if self.synchronous_node_count > 1 {
            writeln!(text, "synchronous_node_count {}", self.synchronous_node_count).expect("a String");
        }
        for (n, tag, value) in &self.tags {
            writeln!(text, "tag n{n} {tag} {}", plain(value)).expect("a String");
        }
        for (at, fault) in &self.faults {
            writeln!(text, "{at} {fault}").expect("a String takes everything");
        }
        text
    }
}

/// The actions at which a machine can be made to crash, in the words of `ha::reason`.
pub(crate) const ACTIONS: &[&str] = &[
    "acquire",
    "release",
    "putsync",
    "puthistory",
    "start",
    "follow",
    "freeze",
    "setsyncnames",
    "setslots",
    "preparecopies",
    "copyslots",
    "promote",
    "stop",
    "rewind",
    "clone",
    "compare",
    "poll",
    "handover",
    "initdb",
    "putshutdown",
    "putstatus",
    "opendoor",
];

fn plain(value: &serde_json::Value) -> String {
    if value.is_null() {
        return "none".to_owned();
    }
    if let Some(on) = value.as_bool() {
        return if on { "on" } else { "off" }.to_owned();
    }
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
