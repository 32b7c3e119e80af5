//! Schedules: what goes wrong and when, as text that a person can read and write.

use std::fmt::{self, Write as _};

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
    Restart(usize),
    Reinitialize(usize),
    /// The other cluster: another of its servers is promoted, or the one that follows is.
    RemotePromote,
    /// The other cluster follows this one.
    RemoteFollow,
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
    /// When everything is mended, in milliseconds.
    pub(crate) calm: u64,
    /// Whether the store's voters run on the nodes and share their fate.
    pub(crate) voters: Voters,
    /// Whether clients write all the time, or only when the schedule says so.
    pub(crate) clients: bool,
    /// Whether there is another cluster, and this one is made as a standby of it.
    pub(crate) standby: bool,
}

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
/// Longer it cannot last: an hour, in milliseconds.
const LONGEST: u64 = 3_600_000;
/// The calm comes so long after the last event, unless a schedule says when, and never before a minute.
const AFTER_THE_LAST: u64 = 10_000;
impl Mode {
    fn word(self) -> &'static str {
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
            Self::Restart(n) => write!(f, "restart n{n}"),
            Self::Reinitialize(n) => write!(f, "reinitialize n{n}"),
            Self::RemotePromote => write!(f, "remote-promote"),
            Self::RemoteFollow => write!(f, "remote-follow"),
        }
    }
}

impl Fault {
    /// What every word belongs to.
    fn whole(words: &[&str]) -> Result<Self, String> {
        let fault = Self::parse(words)?;
        if matches!(&fault, Self::Cut(a, b) | Self::Heal(a, b) if a == b) {
            return Err("two different nodes are expected".into());
        }
        let all = fault.to_string().split_whitespace().count() == words.len();
        if all { Ok(fault) } else { Err(format!("nothing is expected after \"{fault}\"")) }
    }

    fn parse(words: &[&str]) -> Result<Self, String> {
        let node = |i: usize| -> Result<usize, String> {
            let word = words.get(i).ok_or("a node is expected after it (n0, n1, ...)")?;
            let digits = word.strip_prefix(['n', 'N']).unwrap_or(word);
            digits.parse().map_err(|_| format!("{word} is no node: n0, n1, ... is expected"))
        };
        let word = words.first().map(|w| w.replace('_', "-"));
        Ok(match word.as_deref().unwrap_or("nothing") {
            "crash-node" | "kill-node" => Self::CrashNode(node(1)?),
            "start-node" => Self::StartNode(node(1)?),
            "crash-postgres" | "kill-postgres" => Self::CrashPostgres(node(1)?),
            "crash-etcd" | "kill-etcd" => Self::CrashEtcd(node(1)?),
            "kill-agent" => Self::KillAgent(node(1)?),
            "freeze" => Self::Freeze(node(1)?),
            "thaw" => Self::Thaw(node(1)?),
            "pause" => Self::Pause(node(1)?),
            "resume" => Self::Resume(node(1)?),
            "stop" | "sigterm" => Self::Stop(node(1)?),
            "wipe" => Self::Wipe(node(1)?),
            "cut" => Self::Cut(node(1)?, node(2)?),
            "heal" => Self::Heal(node(1)?, node(2)?),
            "isolate" => Self::Isolate(node(1)?),
            "rejoin" => Self::Rejoin(node(1)?),
            "store-cut" => Self::StoreCut(node(1)?),
            "store-mute" => Self::StoreMute(node(1)?),
            "store-heal" => Self::StoreHeal(node(1)?),
            "store-down" => Self::StoreDown,
            "store-up" => Self::StoreUp,
            "store-election" => Self::StoreElection,
            "store-answers" => Self::StoreAnswers,
            "served" => Self::Served,
            "slow" => Self::Slow(node(1)?, number(words.get(2))?),
            "write" => Self::Write(node(1)?),
            "read" => Self::Read(node(1)?),
            "set" => setting(words.get(1), words.get(2))?,
            "crash-at" => Self::CrashAt(node(1)?, action(words.get(2))?),
            "cut-at" => Self::CutAt(node(1)?, action(words.get(2))?),
            "mute-at" => Self::MuteAt(node(1)?, action(words.get(2))?),
            "differed" => Self::Differed,
            "disk-full" => Self::DiskFull(node(1)?),
            "disk-free" => Self::DiskFree(node(1)?),
            "disk-slow" => Self::DiskSlow(node(1)?),
            "disk-fast" => Self::DiskFast(node(1)?),
            "hang" => Self::Hang(node(1)?),
            "unhang" => Self::Unhang(node(1)?),
            "lose-wal" => Self::LoseWal(node(1)?),
            "api-down" => Self::ApiDown,
            "api-up" => Self::ApiUp,
            "api-hide" => Self::ApiHide(node(1)?),
            "api-show" => Self::ApiShow(node(1)?),
            "switchover" if words.len() == 1 => Self::Switchover(None),
            "switchover" => Self::Switchover(Some(node(1)?)),
            "restart" => Self::Restart(node(1)?),
            "reinitialize" | "reinit" => Self::Reinitialize(node(1)?),
            "remote-promote" => Self::RemotePromote,
            "remote-follow" => Self::RemoteFollow,
            other => return Err(format!("{other} is no event; README.md beside this file lists them")),
        })
    }

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
            Self::Switchover(n) => [n.unwrap_or(0), 0],
            Self::StoreDown | Self::StoreUp | Self::StoreElection | Self::StoreAnswers => [0, 0],
            Self::DiskSlow(n) | Self::DiskFast(n) | Self::CrashEtcd(n) => [n, n],
            Self::Set(..) | Self::ApiDown | Self::ApiUp => [0, 0],
            Self::RemotePromote | Self::RemoteFollow | Self::Served | Self::Differed => [0, 0],
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
            calm: 60_000,
            voters: Voters::Outside,
            clients: true,
            standby: false,
        }
    }

    /// Reads the text that [`Schedule::to_text`] writes, and what people write; the error names every line that is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut schedule = Self::plain(0);
        let mut faults = Vec::new();
        let mut errors = Vec::new();
        let mut calm = None;
        for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").to_lowercase();
            let words: Vec<_> = line.split_whitespace().collect();
            let Some((first, rest)) = words.split_first() else { continue };
            let read = match (time(first), rest) {
                (Some(at), _) => Fault::whole(rest).map(|fault| faults.push((i + 1, at, fault))),
                (None, [value]) => {
                    let read = schedule.setting(first, value);
                    if *first == "calm" {
                        calm = Some(schedule.calm);
                    }
                    read
                }
                (None, _) => {
                    schedule.setting(first, "").and_then(|()| Err("one value is expected".to_owned()))
                }
            };
            errors.extend(read.err().map(|why| (i + 1, format!("{}: {why}", words.join(" ")))));
        }
        for (line, at, fault) in faults {
            errors.extend(schedule.misplaced(&fault).map(|why| (line, format!("{fault}: {why}"))));
            if let Some(calm) = calm.filter(|calm| at > *calm) {
                errors.push((line, format!("{fault}: it comes after the calm at {calm} ms")));
            }
            schedule.faults.push((at, fault));
        }
        let last = schedule.faults.iter().map(|(at, _)| *at).max().unwrap_or(0);
        schedule.calm = calm.unwrap_or_else(|| schedule.calm.max(last + AFTER_THE_LAST));
        schedule.faults.sort_by_key(|(at, _)| *at);
        errors.sort();
        let errors: Vec<_> = errors.into_iter().map(|(line, what)| format!("line {line}: {what}")).collect();
        if errors.is_empty() { Ok(schedule) } else { Err(errors.join("\n")) }
    }

    /// Why this cannot happen in this schedule.
    fn misplaced(&self, fault: &Fault) -> Option<String> {
        if fault.needs_remote() && !self.standby {
            return Some("it needs the setting standby on".into());
        }
        let last = fault.nodes().into_iter().max().unwrap_or(0);
        if last == self.nodes && self.standby {
            return (!fault.is_of_a_server()).then(|| format!("n{last} is the other cluster's server"));
        }
        (last >= self.nodes).then(|| format!("n0 to n{} are expected", self.nodes - 1))
    }

    fn setting(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "seed" => self.seed = number(Some(&value))?,
            "nodes" => self.nodes = within(value, 1, MOST_NODES as u64)? as usize,
            "ttl" => self.ttl = within(value, 4, 120)?,
            "calm" => self.calm = time(value).ok_or("a time is expected: 60000, 60000ms or 60s")?,
            "deadman" => self.deadman = switch(value)?,
            "clients" => self.clients = switch(value)?,
            "standby" => self.standby = switch(value)?,
            "mode" => self.mode = mode(value)?,
            "voters" => {
                self.voters = match value {
                    "nodes" => Voters::Nodes,
                    "ours" => Voters::Ours,
                    "outside" => Voters::Outside,
                    _ => return Err("nodes, ours or outside is expected".into()),
                }
            }
            _ => {
                return Err(
                    "a time (12000, 12000ms, 12s; at most an hour) or a setting (seed, nodes, mode, ttl, deadman, clients, \
                            voters, standby, calm) is expected first"
                        .into(),
                );
            }
        }
        Ok(())
    }

    pub(crate) fn to_text(&self) -> String {
        let Self { seed, nodes, mode, ttl, calm, .. } = self;
        let deadman = if self.deadman { "on" } else { "off" };
        let mut text = format!(
            "seed {seed}\nnodes {nodes}\nmode {}\nttl {ttl}\ndeadman {deadman}\ncalm {calm}\n",
            mode.word()
        );
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
        for (at, fault) in &self.faults {
            writeln!(text, "{at} {fault}").expect("a String takes everything");
        }
        text
    }
}

fn mode(word: &str) -> Result<Mode, String> {
    let word = match word {
        "priority" => "on",
        "async" => "off",
        other => other,
    };
    let all = [Mode::Quorum, Mode::Priority, Mode::Strict, Mode::Off];
    let known = all.into_iter().find(|m| m.word() == word);
    known.ok_or_else(|| "quorum, on, strict or off is expected".to_owned())
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

fn action(word: Option<&&str>) -> Result<String, String> {
    let known = word.map(|w| w.replace(['-', '_'], "")).filter(|w| ACTIONS.contains(&w.as_str()));
    known.ok_or_else(|| format!("one of {} is expected", ACTIONS.join(", ")))
}

fn number(word: Option<&&str>) -> Result<u64, String> {
    word.and_then(|w| w.parse().ok()).ok_or_else(|| "a whole number is expected".to_owned())
}

fn within(word: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = word.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("a whole number from {least} to {most} is expected"))
}

/// `12000`, `12000ms`, `12s`, `12.5s`, in milliseconds.
fn time(word: &str) -> Option<u64> {
    let ms = match (word.strip_suffix("ms"), word.strip_suffix('s')) {
        (Some(ms), _) => ms.parse().ok()?,
        (None, Some(seconds)) => (seconds.parse::<f64>().ok().filter(|s| *s >= 0.0)? * 1000.0).round() as u64,
        (None, None) => word.parse().ok()?,
    };
    (ms <= LONGEST).then_some(ms)
}

/// A change of the dynamic configuration. Off is no mode to change to or from: what was acknowledged without it is not
/// promised to anybody, and no invariant could tell the two apart.
fn setting(key: Option<&&str>, value: Option<&&str>) -> Result<Fault, String> {
    let value = *value.ok_or("a setting and its value are expected")?;
    let change = match *key.ok_or("a setting and its value are expected")? {
        "mode" => match mode(value)? {
            to @ (Mode::Quorum | Mode::Strict | Mode::Priority) => {
                Fault::Set("mode".into(), to.word().into())
            }
            Mode::Off => return Err("quorum, on or strict is expected".into()),
        },
        key @ ("pause" | "failsafe_mode" | "standby") => Fault::Set(key.into(), switch(value)?.into()),
        key @ "ttl" => Fault::Set(key.into(), within(value, 10, 120)?.into()),
        key @ "synchronous_node_count" => Fault::Set(key.into(), within(value, 1, MOST_NODES as u64)?.into()),
        key @ "maximum_lag_on_failover" => Fault::Set(key.into(), within(value, 0, u64::MAX)?.into()),
        key @ "loop_wait" => Fault::Set(key.into(), within(value, 1, 60)?.into()),
        key @ "retry_timeout" => Fault::Set(key.into(), within(value, 3, 60)?.into()),
        _ => {
            return Err(
                "mode, ttl, pause, failsafe_mode, standby, synchronous_node_count, maximum_lag_on_failover, loop_wait or \
                        retry_timeout is expected"
                    .into(),
            );
        }
    };
    Ok(change)
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("on or off is expected".to_owned()),
    }
}

fn plain(value: &serde_json::Value) -> String {
    if let Some(on) = value.as_bool() {
        return if on { "on" } else { "off" }.to_owned();
    }
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
