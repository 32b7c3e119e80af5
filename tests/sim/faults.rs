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
    Slow(usize, u64),
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Quorum,
    Priority,
    Strict,
    Off,
}

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
            Self::Slow(n, ms) => write!(f, "slow n{n} {ms}"),
        }
    }
}

impl Fault {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let node = |i: usize| -> Result<usize, String> {
            let word = words.get(i).ok_or_else(|| format!("{}: a node is missing", words.join(" ")))?;
            word.trim_start_matches('n').parse().map_err(|_| format!("{word} is no node (n0, n1, ...)"))
        };
        Ok(match words.first().copied().unwrap_or("nothing") {
            "crash-node" => Self::CrashNode(node(1)?),
            "start-node" => Self::StartNode(node(1)?),
            "crash-postgres" => Self::CrashPostgres(node(1)?),
            "kill-agent" => Self::KillAgent(node(1)?),
            "freeze" => Self::Freeze(node(1)?),
            "thaw" => Self::Thaw(node(1)?),
            "pause" => Self::Pause(node(1)?),
            "resume" => Self::Resume(node(1)?),
            "stop" => Self::Stop(node(1)?),
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
            "slow" => Self::Slow(node(1)?, node(2)? as u64),
            other => return Err(format!("{other} is no fault")),
        })
    }

    fn nodes(&self) -> [usize; 2] {
        match *self {
            Self::CrashNode(n) | Self::StartNode(n) | Self::CrashPostgres(n) | Self::KillAgent(n) => [n, n],
            Self::Freeze(n) | Self::Thaw(n) | Self::Pause(n) | Self::Resume(n) | Self::Stop(n) => [n, n],
            Self::Wipe(n) | Self::Isolate(n) | Self::Rejoin(n) | Self::Slow(n, _) => [n, n],
            Self::StoreCut(n) | Self::StoreMute(n) | Self::StoreHeal(n) => [n, n],
            Self::Cut(a, b) | Self::Heal(a, b) => [a, b],
            Self::StoreDown | Self::StoreUp | Self::StoreElection => [0, 0],
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
        let mut schedule =
            Self { seed, nodes, mode, ttl, faults: Vec::new(), deadman: !rng.chance(250), calm };
        let first = if rng.chance(250) { 500 } else { 12_000 };
        let storm = rng.chance(300);
        let count = if storm { rng.range(8, 26) } else { rng.range(1, 9) };
        for _ in 0..count {
            let at = rng.range(first, calm - 1000);
            let lasts = if rng.chance(500) { rng.range(50, 3000) } else { rng.range(1000, 25_000) };
            schedule.one(&mut rng, at, (at + lasts).min(calm));
        }
        schedule.faults.sort_by_key(|(at, _)| *at);
        schedule
    }

    fn one(&mut self, rng: &mut Rng, at: u64, end: u64) {
        let n = rng.range(0, self.nodes as u64) as usize;
        let other = (n + 1 + rng.range(0, self.nodes as u64 - 1) as usize) % self.nodes;
        let pairs: Vec<(u64, Fault)> = match rng.range(0, 21) {
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
            _ => vec![(at, Fault::Slow(n, rng.range(100, 4000))), (end, Fault::Slow(n, 0))],
        };
        self.faults.extend(pairs);
    }

    /// Reads the text that [`Schedule::to_text`] writes.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut schedule = Self {
            seed: 0,
            nodes: 3,
            mode: Mode::Quorum,
            ttl: 10,
            faults: Vec::new(),
            deadman: true,
            calm: 60_000,
        };
        for line in text.lines().map(|l| l.split('#').next().unwrap_or("").trim()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let Some((first, rest)) = words.split_first() else { continue };
            let number = || rest.first().and_then(|w| w.parse::<u64>().ok());
            let needed = || number().ok_or_else(|| format!("{line}: a number is needed"));
            match *first {
                "seed" => schedule.seed = needed()?,
                "nodes" => schedule.nodes = needed()?.clamp(1, 7) as usize,
                "ttl" => schedule.ttl = needed()?,
                "calm" => schedule.calm = needed()?,
                "deadman" => schedule.deadman = rest.first() != Some(&"off"),
                "mode" => schedule.mode = mode(rest.first().copied().unwrap_or(""))?,
                at => {
                    let at = at.parse().map_err(|_| format!("{line}: neither a setting nor a time"))?;
                    schedule.faults.push((at, Fault::parse(rest)?));
                }
            }
        }
        schedule.faults.sort_by_key(|(at, _)| *at);
        let known = |f: &Fault| f.nodes().iter().all(|n| *n < schedule.nodes);
        match schedule.faults.iter().find(|(_, f)| !known(f)) {
            Some((_, fault)) => Err(format!("{fault}: there are only {} nodes", schedule.nodes)),
            None => Ok(schedule),
        }
    }

    pub(crate) fn to_text(&self) -> String {
        let Self { seed, nodes, mode, ttl, calm, .. } = self;
        let deadman = if self.deadman { "on" } else { "off" };
        let mut text = format!(
            "seed {seed}\nnodes {nodes}\nmode {}\nttl {ttl}\ndeadman {deadman}\ncalm {calm}\n",
            mode.word()
        );
        for (at, fault) in &self.faults {
            writeln!(text, "{at} {fault}").expect("a String takes everything");
        }
        text
    }
}

fn mode(word: &str) -> Result<Mode, String> {
    let all = [Mode::Quorum, Mode::Priority, Mode::Strict, Mode::Off];
    all.into_iter().find(|m| m.word() == word).ok_or_else(|| format!("{word} is no mode"))
}
