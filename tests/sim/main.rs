//! Deterministic simulation: several nodes of the real `ha::decide` against a model store, a model PostgreSQL and a model
//! network in virtual time. One seed is one run; `README.md` beside this file says how to run and to replay.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::struct_excessive_bools,
    clippy::fn_params_excessive_bools,
    clippy::too_many_arguments,
    clippy::large_enum_variant,
    clippy::map_err_ignore,
    reason = "a model in a test: small numbers, many independent facts, errors for people"
)]

mod act;
mod agent;
mod breaking;
mod etcd;
mod etcd_process;
mod failsafe;
mod faults;
mod history;
mod invariants;
mod jobs;
mod lease;
mod postgres;
mod queue;
mod random;
mod remote;
mod rng;
mod slots;
mod store;
mod streaming;
mod unit;
mod voters;
mod watchdog;
mod words;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use faults::{Schedule, Voters};
use world::{Outcome, run};

/// Without `SEEDS` so many are run.
const SEEDS: u64 = 300;
const THREADS: u64 = 2;
/// So many seeds for each kept schedule: its own, and others for other latencies.
const LATENCIES: u64 = 5;

/// How long many seeds are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Done,
    /// `--until-failure`: the first one is named and nothing is made shorter.
    Failure,
}

/// What the command line and the environment ask for.
enum Order {
    One(Box<Schedule>),
    /// One schedule with so many seeds.
    Latencies {
        schedule: Box<Schedule>,
        first: u64,
        count: u64,
    },
    Many {
        first: u64,
        count: u64,
        until: Until,
    },
}

#[expect(clippy::disallowed_methods, reason = "the simulator's own switches")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What the test harness of others takes, and is given to every test.
const NOT_OURS: &[&str] = &[
    "--nocapture",
    "--quiet",
    "--exact",
    "--ignored",
    "--include-ignored",
    "--show-output",
    "--test-threads",
];
const OURS: &str = "--schedule FILE, --seed N, --seeds N, --first N or --until-failure is expected";

/// The value of each option. What is none is refused: a run of something else than was meant says nothing.
fn options() -> Result<BTreeMap<String, String>, String> {
    let mut options = BTreeMap::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let (word, joined) = match word.split_once('=') {
            Some((word, value)) if word.starts_with("--") => (word.to_owned(), Some(value.to_owned())),
            Some(_) | None => (word, None),
        };
        match word.as_str() {
            "--schedule" | "--seed" | "--seeds" | "--first" => {
                let value = joined
                    .or_else(|| words.next())
                    .ok_or_else(|| format!("{word}: a value is expected after it"))?;
                if options.insert(word.clone(), value).is_some() {
                    return Err(format!("{word}: it is expected once"));
                }
            }
            "--until-failure" => drop(options.insert(word, String::new())),
            other if other.starts_with("--") && !NOT_OURS.contains(&other) => {
                return Err(format!("{other}: {OURS}"));
            }
            file if file.contains(['/', '.']) => return Err(format!("{file}: {OURS}")),
            _ => {}
        }
    }
    Ok(options)
}

fn order() -> Result<Order, String> {
    let options = options()?;
    let option = |name: &str| options.get(name).cloned();
    let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
    if let Some(path) = option("--schedule") {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let mut schedule = Box::new(Schedule::parse(&text)?);
        if let Some(seed) = option("--seed") {
            schedule.seed = number(seed)?;
        }
        let first = option("--first").map_or(Ok(schedule.seed), number)?;
        return match option("--seeds") {
            Some(count) => Ok(Order::Latencies { schedule, first, count: number(count)? }),
            None => Ok(Order::One(schedule)),
        };
    }
    if let Some(seed) = option("--seed").or_else(|| variable("SEED")) {
        return Ok(Order::One(Box::new(Schedule::of_seed(number(seed)?))));
    }
    let first = option("--first").or_else(|| variable("FIRST")).map_or(Ok(0), number)?;
    let count = option("--seeds").or_else(|| variable("SEEDS")).map_or(Ok(SEEDS), number)?;
    let until = if options.contains_key("--until-failure") { Until::Failure } else { Until::Done };
    Ok(Order::Many { first, count, until })
}

fn main() -> ExitCode {
    match order() {
        Err(why) => {
            println!("sim: {why}");
            ExitCode::from(64)
        }
        Ok(Order::One(schedule)) => one(&schedule),
        Ok(Order::Latencies { schedule, first, count }) => latencies(&schedule, first, count),
        Ok(Order::Many { first, count, until }) => match kept() {
            Ok(()) => many(first, count, until),
            Err(why) => {
                println!("{why}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Every schedule that is kept beside this file, each with a few other latencies too.
fn kept() -> Result<(), String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/schedules");
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    let next = AtomicUsize::new(0);
    in_threads(|| {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            holds(path).map_err(|why| format!("{}{why}", path.display()))?;
        }
        Ok(())
    })
    .into_iter()
    .collect::<Result<(), String>>()?;
    println!("{} kept schedules hold, each with {LATENCIES} seeds", paths.len());
    Ok(())
}

/// A kept schedule, with its seed and others.
fn holds(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!(": {e}"))?;
    let written = Schedule::parse(&text).map_err(|e| format!(": {e}"))?;
    if Schedule::parse(&written.to_text()).as_ref() != Ok(&written) {
        return Err(": what is printed of it is another schedule".into());
    }
    for more in 0..LATENCIES {
        let seed = written.seed + more * 1_000_000;
        let outcome = run(&Schedule { seed, ..written.clone() }, false);
        if let Some(v) = outcome.violation {
            return Err(format!(" with seed {seed}: VIOLATED {}: {}", v.invariant, v.what));
        }
        // A schedule of etcd would hold for want of what it is about; others are about data that must not be lost.
        if let Some(why) = outcome.left_out.filter(|_| more == 0 && written.voters == Voters::Ours) {
            return Err(format!(" with seed {seed}: an event is left out: {why}"));
        }
    }
    Ok(())
}

/// The same work in as many threads as there are cores to count on.
fn in_threads<T: Send>(work: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(&work)).collect();
        workers.into_iter().map(|w| w.join().unwrap()).collect()
    })
}

fn one(schedule: &Schedule) -> ExitCode {
    let outcome = run(schedule, true);
    println!("{}", schedule.to_text());
    println!("{}", outcome.timeline.join("\n"));
    verdict(&outcome)
}

/// A schedule with other latencies: the first seed with which it does not hold is shown in full.
fn latencies(schedule: &Schedule, first: u64, count: u64) -> ExitCode {
    let with = |seed| Schedule { seed, ..schedule.clone() };
    let next = AtomicU64::new(first);
    let failed = in_threads(|| {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return failed;
            }
            failed.extend(run(&with(seed), false).violation.map(|v| (seed, v)));
        }
    });
    let mut failed: Vec<_> = failed.into_iter().flatten().collect();
    failed.sort_by_key(|(seed, _)| *seed);
    let Some((seed, _)) = failed.first() else {
        println!("holds with each of {count} seeds");
        return ExitCode::SUCCESS;
    };
    println!("{} of {count} seeds fail:", failed.len());
    for (seed, v) in &failed {
        println!("  seed {seed}: {} at {:.3} s: {}", v.invariant, v.at as f64 / 1e6, v.what);
    }
    one(&with(*seed))
}

fn verdict(outcome: &Outcome) -> ExitCode {
    match &outcome.violation {
        None => {
            println!("holds ({} events, {} acknowledged)", outcome.n_events, outcome.n_acks);
            ExitCode::SUCCESS
        }
        Some(v) => {
            println!("VIOLATED {} at {:.3} s: {}", v.invariant, v.at as f64 / 1e6, v.what);
            ExitCode::FAILURE
        }
    }
}

/// Runs many seeds on two threads; the failing ones are listed, the first is shown in full and made shorter.
fn many(first: u64, count: u64, until: Until) -> ExitCode {
    let next = AtomicU64::new(first);
    let worker = || {
        let mut failed = Vec::new();
        let mut sums = [0_u64; 4];
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return (failed, sums);
            }
            let outcome = run(&Schedule::of_seed(seed), false);
            let Outcome { n_events, n_acks, n_promotions, n_differs, .. } = outcome;
            for (sum, n) in sums.iter_mut().zip([n_events, n_acks, n_promotions, n_differs]) {
                *sum += n;
            }
            failed.extend(outcome.violation.map(|v| (seed, v)));
            if until == Until::Failure && !failed.is_empty() {
                next.store(first + count, Ordering::Relaxed);
            }
        }
    };
    let results = in_threads(worker);
    let sum = |i: usize| results.iter().map(|(_, sums)| sums[i]).sum::<u64>();
    println!(
        "{count} seeds: {} events, {} commits acknowledged, {} starts of a primary, {} other timelines of one number found",
        sum(0),
        sum(1),
        sum(2),
        sum(3)
    );
    let mut failed: Vec<_> = results.into_iter().flat_map(|(failed, _)| failed).collect();
    failed.sort_by_key(|(seed, _)| *seed);
    let Some((seed, violation)) = failed.first() else { return ExitCode::SUCCESS };
    println!("{} of {count} seeds fail:", failed.len());
    for (seed, v) in &failed {
        println!("  SEED={seed} {} at {:.3} s: {}", v.invariant, v.at as f64 / 1e6, v.what);
    }
    if until == Until::Failure {
        return ExitCode::FAILURE;
    }
    let shorter = shrink(&Schedule::of_seed(*seed), violation.invariant);
    println!(
        "\nthe first, made shorter (save it and replay it with `cargo test --test sim -- --schedule FILE`):"
    );
    let outcome = run(&shorter, true);
    println!("{}\n{}", shorter.to_text(), outcome.timeline.join("\n"));
    println!("\nreplay the whole: SEED={seed} cargo test --test sim");
    verdict(&outcome)
}

/// Leaves out one fault after the other as long as the same invariant is violated.
fn shrink(schedule: &Schedule, invariant: &str) -> Schedule {
    let mut best = schedule.clone();
    let mut i = 0;
    while i < best.faults.len() {
        let mut shorter = best.clone();
        shorter.faults.remove(i);
        if run(&shorter, false).violation.is_some_and(|v| v.invariant == invariant) {
            (best, i) = (shorter, 0);
        } else {
            i += 1;
        }
    }
    best
}
