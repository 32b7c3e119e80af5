//! The schedule of a seed.

use pgherd::ha::watchdog::Need;

use crate::faults::{ACTIONS, Fault, Mode, Schedule, Tag, Voters};
use crate::rng::Rng;

/// By then a cluster exists.
const FOUNDED: u64 = 12_000;

impl Schedule {
    /// The schedule of a seed.
    /// One seed in four has failsafe mode: it costs events, and hides what only a primary that stops shows.
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
            failsafe: seed % 4 == 3,
            synchronous_node_count: if nodes == 5 && seed.is_multiple_of(2) { 2 } else { 1 },
            tags: tags(seed, nodes),
            watchdog: watchdog(seed),
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
        for _ in 0..if schedule.voters == Voters::Ours { rng.range(0, 3) } else { 0 } {
            let at = rng.range(first, calm - 1000);
            let n = rng.range(0, nodes as u64) as usize;
            schedule.faults.push((at, Fault::CrashEtcd(n)));
            spans.push((at, at));
        }
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
        // One in eight gets a permanent logical slot on the way.
        if seed % 8 == 2 {
            schedule.faults.push((FOUNDED + 1000, Fault::Set("slots".into(), true.into())));
            spans.push((FOUNDED, FOUNDED + 1000));
        }
        schedule.of_two_sites(&mut rng, &mut spans);
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
        let pairs: Vec<(u64, Fault)> = match rng.range(0, 30) {
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
                match rng.range(0, 4) {
                    0 => vec![(at, Fault::CutAt(n, when)), (end, Fault::StoreHeal(n))],
                    1 => vec![(at, Fault::MuteAt(n, when)), (end, Fault::StoreHeal(n))],
                    _ => vec![(at, Fault::CrashAt(n, when)), (end, Fault::StartNode(n))],
                }
            }
            25 => {
                let on = self.failsafe;
                vec![(at, failsafe(!on)), (end, failsafe(on))]
            }
            26 => vec![(at, Fault::ApiHide(n)), (end, Fault::ApiShow(n))],
            27 => vec![(at, Fault::ApiDown), (end, Fault::ApiUp)],
            28 => vec![(at, Fault::DiskSlow(n)), (end, Fault::DiskFast(n))],
            _ => {
                let back = timing(self.ttl);
                let ttl = *rng.pick(&[10_u64, 15, 20]);
                vec![(at, timing(ttl)), (end, back)]
            }
        };
        self.faults.extend(pairs);
    }

    /// In one seed of eight the cluster follows another one; in some of these it is promoted on the way, and in some it follows again
    /// what has followed it meanwhile.
    fn of_two_sites(&mut self, rng: &mut Rng, spans: &mut Vec<(u64, u64)>) {
        self.standby = self.seed % 8 == 5;
        if !self.standby {
            return;
        }
        let other = self.nodes;
        let (ends, returns) = (rng.chance(600), rng.chance(500));
        let third = (self.calm - FOUNDED) / 3;
        for _ in 0..rng.range(0, 3) {
            let at = rng.range(FOUNDED, self.calm - 3000);
            let end = (at + rng.range(500, 20_000)).min(self.calm);
            spans.push((at, end));
            match rng.range(0, 4) {
                0 => self.faults.extend([(at, Fault::Isolate(other)), (end, Fault::Rejoin(other))]),
                1 => self.faults.extend([(at, Fault::Hang(other)), (end, Fault::Unhang(other))]),
                // What follows without its old log cannot be shown to hold it.
                2 if !returns => self.faults.push((at, Fault::LoseWal(other))),
                _ => self.faults.push((at, Fault::RemotePromote)),
            }
        }
        if !ends {
            return;
        }
        let promoted = rng.range(FOUNDED, FOUNDED + third);
        self.faults.push((promoted, standby(false)));
        spans.push((promoted, promoted + 5000));
        if !returns {
            return;
        }
        let followed = rng.range(promoted + 3000, promoted + third);
        let back = rng.range(followed + 1000, followed + third);
        let taken_over = (back + rng.range(1000, 15_000)).min(self.calm - 500);
        let all = [Fault::RemoteFollow, standby(true), Fault::RemotePromote];
        self.faults.extend([followed, back, taken_over].into_iter().zip(all));
        spans.push((followed, taken_over));
    }
}

/// One in eight has watchdogs; of these half lead with one only, and may have no deadman beside it.
fn watchdog(seed: u64) -> Need {
    match seed % 16 {
        5 => Need::Automatic,
        13 => Need::Required,
        _ => Need::Off,
    }
}

/// In one seed of four the nodes are not equals.
fn tags(seed: u64, nodes: usize) -> Vec<Tag> {
    if seed % 4 != 2 {
        return Vec::new();
    }
    let all = |n: usize| {
        let priority = (n, "failover_priority".to_owned(), (n + 1).into());
        let source = (n == 1).then(|| (n, "clonefrom".to_owned(), true.into()));
        let cascade = (n + 1 == nodes).then(|| (n, "replicatefrom".to_owned(), "n1".into()));
        let sync = (n > 2).then(|| (n, "sync_priority".to_owned(), 2.into()));
        [Some(priority), source, cascade, sync].into_iter().flatten()
    };
    (0..nodes).flat_map(all).collect()
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

fn standby(on: bool) -> Fault {
    Fault::Set("standby".into(), on.into())
}
