//! Schedules: what goes wrong and when, as text that a person can read and write, and by a seed.

use std::fmt::{self, Write as _};

use crate::rng::Rng;

/// One fault, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    CrashNode(usize),
    StartNode(usize),
    CrashPostgres(usize),
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
    Slow(usize, u64),
    Write(usize),
    Read(usize),
    Set(String, serde_json::Value),
    CrashAt(usize, String),
    DiskFull(usize),
    DiskFree(usize),
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
/// By then a cluster exists.
const FOUNDED: u64 = 12_000;

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
            Self::Slow(n, ms) => write!(f, "slow n{n} {ms}"),
            Self::Write(n) => write!(f, "write n{n}"),
            Self::Read(n) => write!(f, "read n{n}"),
            Self::Set(key, value) => write!(f, "set {key} {}", plain(value)),
            Self::CrashAt(n, action) => write!(f, "crash-at n{n} {action}"),
            Self::DiskFull(n) => write!(f, "disk-full n{n}"),
            Self::DiskFree(n) => write!(f, "disk-free n{n}"),
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
            "slow" => Self::Slow(node(1)?, number(words.get(2))?),
            "write" => Self::Write(node(1)?),
            "read" => Self::Read(node(1)?),
            "set" => setting(words.get(1), words.get(2))?,
            "crash-at" => Self::CrashAt(node(1)?, action(words.get(2))?),
            "disk-full" => Self::DiskFull(node(1)?),
            "disk-free" => Self::DiskFree(node(1)?),
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
            Self::Write(n) | Self::Read(n) | Self::CrashAt(n, _) | Self::LoseWal(n) => [n, n],
            Self::DiskFull(n) | Self::DiskFree(n) | Self::Hang(n) | Self::Unhang(n) => [n, n],
            Self::ApiHide(n) | Self::ApiShow(n) | Self::Restart(n) | Self::Reinitialize(n) => [n, n],
            Self::Switchover(n) => [n.unwrap_or(0), 0],
            Self::StoreDown | Self::StoreUp | Self::StoreElection | Self::StoreAnswers => [0, 0],
            Self::Set(..) | Self::ApiDown | Self::ApiUp => [0, 0],
        }
    }
}

impl Schedule {
    /// The schedule of a seed.
    pub(crate) fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5c4e_d01e);
        let nodes = 3 + (seed % 3) as usize;
        let mode =
            *rng.pick(&[Mode::Quorum, Mode::Quorum, Mode::Quorum, Mode::Priority, Mode::Strict, Mode::Off]);
        let ttl = *rng.pick(&[10, 10, 10, 15, 20]);
        let calm = 60_000;
        let mut schedule = Self {
            faults: Vec::new(),
            deadman: !rng.chance(250),
            nodes,
            mode,
            ttl,
            calm,
            ..Self::plain(seed)
        };
        let first = if rng.chance(250) { 500 } else { FOUNDED };
        let storm = rng.chance(300);
        let count = if storm { rng.range(8, 26) } else { rng.range(1, 9) };
        let mut spans = Vec::new();
        for _ in 0..count {
            let at = rng.range(first, calm - 1000);
            let lasts = if rng.chance(500) { rng.range(50, 3000) } else { rng.range(1000, 25_000) };
            let end = (at + lasts).min(calm);
            let before = schedule.faults.len();
            schedule.one(&mut rng, at, end);
            let last = schedule.faults[before..].iter().map(|(at, _)| *at).max();
            spans.push((at, last.unwrap_or(at)));
        }
        schedule.voters = *rng.pick(&[Voters::Outside, Voters::Nodes, Voters::Nodes, Voters::Ours]);
        for _ in 0..if rng.chance(300) { rng.range(1, 4) } else { 0 } {
            let at = rng.range(FOUNDED, calm - 1000);
            schedule.faults.push((at, schedule.request(&mut rng)));
            spans.push((at, at));
        }
        // One seed in six has a time of maintenance.
        if seed % 6 == 4 {
            let at = rng.range(FOUNDED, calm - 10_000);
            let end = rng.range(at + 2000, calm);
            spans.push((at, end));
            schedule.faults.extend([(at, pause(true)), (end, pause(false))]);
        }
        schedule.faults.sort_by_key(|(at, _)| *at);
        schedule.shorten_quiet(spans);
        schedule
    }

    /// Times in which nothing is broken and nothing happens are cut short: they cost as much as any other time.
    fn shorten_quiet(&mut self, mut spans: Vec<(u64, u64)>) {
        spans.sort_unstable();
        let quiet = 6000;
        let (mut until, mut cut) = (FOUNDED, 0);
        let mut cuts = Vec::new();
        for (begins, ends) in spans.into_iter().chain([(self.calm, self.calm)]) {
            cut += begins.saturating_sub(until + quiet);
            cuts.push((begins, cut));
            until = until.max(ends);
        }
        let cut_before = |at| cuts.iter().rev().find(|(from, _)| *from <= at).map_or(0, |(_, cut)| *cut);
        self.faults.iter_mut().for_each(|(at, _)| *at -= cut_before(*at));
        self.calm -= cut;
    }

    /// What a person asks for.
    fn request(&self, rng: &mut Rng) -> Fault {
        let n = rng.range(0, self.nodes as u64) as usize;
        match rng.range(0, 5) {
            0 => Fault::Switchover(None),
            1 | 2 => Fault::Switchover(Some(n)),
            3 => Fault::Restart(n),
            _ => Fault::Reinitialize(n),
        }
    }

    fn one(&mut self, rng: &mut Rng, at: u64, end: u64) {
        let n = rng.range(0, self.nodes as u64) as usize;
        let other = (n + 1 + rng.range(0, self.nodes as u64 - 1) as usize) % self.nodes;
        let pairs: Vec<(u64, Fault)> = match rng.range(0, 29) {
            0 | 1 => vec![(at, Fault::CrashNode(n)), (end, Fault::StartNode(n))],
            2..=4 => vec![(at, Fault::CrashPostgres(n))],
            5 => vec![(at, Fault::KillAgent(n))],
            6 | 7 => vec![(at, Fault::Freeze(n)), (end, Fault::Thaw(n))],
            8 => vec![(at, Fault::Pause(n)), (end, Fault::Resume(n))],
            9 | 10 => vec![(at, Fault::Stop(n)), (end, Fault::StartNode(n))],
            11 => vec![(at, Fault::Wipe(n)), (end, Fault::StartNode(n))],
            12 => vec![(at, Fault::Cut(n, other)), (end, Fault::Heal(n, other))],
            13 | 14 => vec![(at, Fault::Isolate(n)), (end, Fault::Rejoin(n))],
            15 => vec![(at, Fault::StoreCut(n)), (end, Fault::StoreHeal(n))],
            16 => vec![(at, Fault::StoreMute(n)), (end, Fault::StoreHeal(n))],
            17 => vec![(at, Fault::StoreDown), (end, Fault::StoreUp), (end, Fault::StoreElection)],
            18 => {
                let back = |n| {
                    [(at, Fault::CrashNode(n)), (end.min(at + rng.range(200, 8000)), Fault::StartNode(n))]
                };
                (0..self.nodes).flat_map(back).collect()
            }
            19 => {
                (0..self.nodes).filter(|_| rng.chance(700)).map(|n| (at, Fault::CrashPostgres(n))).collect()
            }
            20 => vec![(at, Fault::Slow(n, rng.range(100, 4000))), (end, Fault::Slow(n, 0))],
            21 => vec![(at, Fault::DiskFull(n)), (end, Fault::DiskFree(n))],
            22 => vec![(at, Fault::Hang(n)), (end, Fault::Unhang(n))],
            23 => vec![(at, Fault::LoseWal(n))],
            24 => {
                let when = (*rng.pick(ACTIONS)).to_owned();
                vec![(at, Fault::CrashAt(n, when)), (end, Fault::StartNode(n))]
            }
            25 => {
                let on = outlasts(self.seed);
                vec![(at, failsafe(!on)), (end, failsafe(on))]
            }
            26 => vec![(at, Fault::ApiHide(n)), (end, Fault::ApiShow(n))],
            27 => vec![(at, Fault::ApiDown), (end, Fault::ApiUp)],
            _ => {
                let back = timing(self.ttl);
                let ttl = *rng.pick(&[10_u64, 15, 20]);
                vec![(at, timing(ttl)), (end, back)]
            }
        };
        self.faults.extend(pairs);
    }

    fn plain(seed: u64) -> Self {
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
            errors.extend(read.err().map(|why| format!("line {}: {}: {why}", i + 1, words.join(" "))));
        }
        for (line, at, fault) in faults {
            if fault.nodes().iter().any(|n| *n >= schedule.nodes) {
                errors.push(format!("line {line}: {fault}: n0 to n{} are expected", schedule.nodes - 1));
            }
            if let Some(calm) = calm.filter(|calm| at > *calm) {
                errors.push(format!("line {line}: {fault}: it comes after the calm at {calm} ms"));
            }
            schedule.faults.push((at, fault));
        }
        let last = schedule.faults.iter().map(|(at, _)| *at).max().unwrap_or(0);
        schedule.calm = calm.unwrap_or_else(|| schedule.calm.max(last + AFTER_THE_LAST));
        schedule.faults.sort_by_key(|(at, _)| *at);
        if errors.is_empty() { Ok(schedule) } else { Err(errors.join("\n")) }
    }

    fn setting(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "seed" => self.seed = number(Some(&value))?,
            "nodes" => self.nodes = within(value, 1, MOST_NODES as u64)? as usize,
            "ttl" => self.ttl = within(value, 4, 120)?,
            "calm" => self.calm = time(value).ok_or("a time is expected: 60000, 60000ms or 60s")?,
            "deadman" => self.deadman = switch(value)?,
            "clients" => self.clients = switch(value)?,
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
                    "a time (12000, 12000ms, 12s) or a setting (seed, nodes, mode, ttl, deadman, clients, \
                            voters, calm) is expected first"
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
const ACTIONS: &[&str] = &[
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
        key @ ("pause" | "failsafe_mode") => Fault::Set(key.into(), switch(value)?.into()),
        key @ "ttl" => Fault::Set(key.into(), within(value, 10, 120)?.into()),
        key @ "synchronous_node_count" => Fault::Set(key.into(), within(value, 1, MOST_NODES as u64)?.into()),
        key @ "maximum_lag_on_failover" => Fault::Set(key.into(), within(value, 0, u64::MAX)?.into()),
        key @ "loop_wait" => Fault::Set(key.into(), within(value, 1, 60)?.into()),
        key @ "retry_timeout" => Fault::Set(key.into(), within(value, 3, 60)?.into()),
        _ => {
            return Err(
                "mode, ttl, pause, failsafe_mode, synchronous_node_count, maximum_lag_on_failover, loop_wait or \
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

/// Whether a seed's nodes have failsafe mode. One in four: it costs events, and hides what only a primary that stops shows.
pub(crate) fn outlasts(seed: u64) -> bool {
    seed % 4 == 3
}

fn failsafe(on: bool) -> Fault {
    Fault::Set("failsafe_mode".into(), on.into())
}

fn pause(on: bool) -> Fault {
    Fault::Set("pause".into(), on.into())
}

fn timing(ttl: u64) -> Fault {
    Fault::Set("ttl".into(), ttl.into())
}

fn plain(value: &serde_json::Value) -> String {
    if let Some(on) = value.as_bool() {
        return if on { "on" } else { "off" }.to_owned();
    }
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
