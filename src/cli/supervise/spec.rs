//! The file that `pgherd supervise` reads: a list of services, as JSON. `docs/SUPERVISION.md` describes every field.
//!
//! Invariant: what is unknown, missing or contradictory is refused before anything is started.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::clock::Backoff;
use crate::process::{Command, NOTICE_FDS, RunAs};
use crate::supervisor::{AfterSuccess, Burst, Restart, Rung};

/// The longest time that anybody waits here, in seconds: 30 years.
const LONGEST: f64 = 1e9;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {path}")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not understand {path}")]
    Parse {
        path: Utf8PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("unit {unit}: {what}")]
    Unit { unit: String, what: String },
    #[error("there is no unit")]
    Empty,
    #[error("unit {unit}: its account cannot be used")]
    Account {
        unit: String,
        #[source]
        source: crate::process::Error,
    },
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    units: Vec<Entry>,
}

/// One service as it is written down.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    exec: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default = "root")]
    cwd: Utf8PathBuf,
    user: Option<String>,
    #[serde(default)]
    after: Vec<String>,
    ready: Option<Probe>,
    #[serde(default = "ready_within")]
    ready_within: f64,
    #[serde(default = "stop")]
    stop: Vec<Step>,
    #[serde(default)]
    restart: Policy,
    #[serde(default = "backoff")]
    backoff: Delays,
    #[serde(default = "healthy_after")]
    healthy_after: f64,
    give_up: Option<Limit>,
    reload: Option<String>,
    oom_score_adj: Option<i32>,
}

fn root() -> Utf8PathBuf {
    "/".into()
}

fn ready_within() -> f64 {
    60.0
}

fn stop() -> Vec<Step> {
    vec![Step { signal: "TERM".to_owned(), wait: 10.0 }]
}

fn backoff() -> Delays {
    Delays { base: 0.1, cap: 30.0 }
}

fn healthy_after() -> f64 {
    60.0
}

/// How it is known that a service is ready.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Probe {
    /// This command succeeds.
    Exec(Vec<String>),
    /// This address accepts a connection.
    Tcp(String),
    /// This file exists.
    File(Utf8PathBuf),
    /// It writes a line to this descriptor, which it is given.
    Fd(RawFd),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    signal: String,
    wait: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Delays {
    base: f64,
    cap: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    restarts: u32,
    within: f64,
}

/// What follows when a service ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Policy {
    #[default]
    Always,
    OnFailure,
    Never,
    ExitContainer,
}

/// What it means for everybody that a service has ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEnd {
    /// The others go on.
    Stay,
    /// Everything stops, and its exit code becomes ours.
    ExitContainer,
}

/// One service, ready to be run.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: &'static str,
    pub command: Command,
    /// The services that must be ready before, by their place in the list.
    pub after: Vec<usize>,
    pub ready: Option<Probe>,
    pub ready_within: Duration,
    pub stop: Vec<Rung>,
    pub restart: Restart,
    /// Between two attempts to execute what could not be executed.
    pub backoff: Backoff,
    pub on_end: OnEnd,
    pub reload: Option<Signal>,
    /// How many services it needs, one after another: the deepest stop first.
    pub depth: usize,
    written: Entry,
}

impl Service {
    /// Nothing of it differs between two readings of the list.
    pub fn is_written_as(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

/// Reads a file.
///
/// # Errors
/// It cannot be read, or says something that cannot be done.
pub fn read(path: &Utf8Path) -> Result<Vec<Service>, Error> {
    let text = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let file: File =
        serde_json::from_slice(&text).map_err(|source| Error::Parse { path: path.to_owned(), source })?;
    services(file)
}

fn services(file: File) -> Result<Vec<Service>, Error> {
    if file.units.is_empty() {
        return Err(Error::Empty);
    }
    let names: Vec<String> = file.units.iter().map(|entry| entry.name.clone()).collect();
    let mut services = Vec::new();
    for (place, entry) in file.units.into_iter().enumerate() {
        let earlier = names.get(..place).unwrap_or_default();
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if entry.name.is_empty() || !entry.name.chars().all(is_good) || earlier.contains(&entry.name) {
            return Err(wrong(&entry, "its name must be unique, of letters, digits, - _ . @"));
        }
        services.push(service(entry, &names)?);
    }
    set_depths(&mut services)?;
    Ok(services)
}

fn wrong(entry: &Entry, what: impl Into<String>) -> Error {
    Error::Unit { unit: entry.name.clone(), what: what.into() }
}

fn service(entry: Entry, names: &[String]) -> Result<Service, Error> {
    let restart = restart(&entry)?;
    let place = |name: &String| names.iter().position(|other| other == name);
    let missing = |name: &String| wrong(&entry, format!("there is no unit {name} to be started after"));
    let after = entry.after.iter().map(|name| place(name).ok_or_else(|| missing(name)));
    let after = after.collect::<Result<_, _>>()?;
    let step = |step: &Step| {
        let wait = seconds(&entry, step.wait)?;
        Ok(Rung { signal: parse_signal(&entry, &step.signal)?, wait })
    };
    Ok(Service {
        command: command(&entry)?,
        after,
        ready_within: seconds(&entry, entry.ready_within)?,
        stop: entry.stop.iter().map(step).collect::<Result<_, Error>>()?,
        restart,
        backoff: delays(&entry)?,
        on_end: match entry.restart {
            Policy::ExitContainer => OnEnd::ExitContainer,
            Policy::Always | Policy::OnFailure | Policy::Never => OnEnd::Stay,
        },
        reload: entry.reload.as_ref().map(|name| parse_signal(&entry, name)).transpose()?,
        depth: 0,
        ready: ready(&entry)?,
        name: kept_name(&entry.name),
        written: entry,
    })
}

/// The name, for as long as the process lives. However often a list is read, the same name is kept once.
fn kept_name(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = names.get(name) {
        return kept;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    kept
}

fn command(entry: &Entry) -> Result<Command, Error> {
    let (program, args) = program(entry, "exec", &entry.exec)?;
    absolute(entry, "cwd must be", entry.cwd.as_str())?;
    let texts = entry.exec.iter().chain(entry.env.keys()).chain(entry.env.values()).map(String::as_str);
    if texts.chain([entry.cwd.as_str()]).any(|text| text.contains('\0')) {
        return Err(wrong(entry, "a NUL can be no part of an argument, a variable or a path"));
    }
    if entry.env.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err(wrong(entry, "the name of a variable is not empty and holds no ="));
    }
    let run_as = match &entry.user {
        Some(name) => {
            RunAs::account(name).map_err(|source| Error::Account { unit: entry.name.clone(), source })?
        }
        None => RunAs::Same,
    };
    let mut command = Command::new(&entry.name, program).args(args).cwd(entry.cwd.clone()).run_as(&run_as);
    command.env.clone_from(&entry.env);
    command.oom_score = match entry.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => {
            return Err(wrong(entry, format!("oom_score_adj goes from -1000 to 1000, {score} is outside")));
        }
        score => score,
    };
    Ok(command)
}

/// The program and the arguments of a command line.
fn program<'a>(entry: &Entry, what: &str, words: &'a [String]) -> Result<(&'a str, &'a [String]), Error> {
    let (program, args) = words.split_first().ok_or_else(|| wrong(entry, format!("{what} is empty")))?;
    absolute(entry, &format!("{what} must begin with"), program)?;
    Ok((program, args))
}

/// We work in `/`, and whoever has written a relative path meant something else.
fn absolute(entry: &Entry, what: &str, path: &str) -> Result<(), Error> {
    if path.starts_with('/') {
        Ok(())
    } else {
        Err(wrong(entry, format!("{what} an absolute path, not {path}")))
    }
}

fn ready(entry: &Entry) -> Result<Option<Probe>, Error> {
    match &entry.ready {
        Some(Probe::Fd(number)) if !NOTICE_FDS.contains(number) => {
            let (first, last) = (NOTICE_FDS.start(), NOTICE_FDS.end());
            return Err(wrong(entry, format!("ready.fd goes from {first} to {last}, {number} is outside")));
        }
        Some(Probe::Tcp(address)) if !has_port(address) => {
            return Err(wrong(entry, format!("ready.tcp is host:port, not {address}")));
        }
        Some(Probe::File(path)) => absolute(entry, "ready.file must be", path.as_str())?,
        Some(Probe::Exec(words)) => program(entry, "ready.exec", words).map(|_command| ())?,
        Some(Probe::Fd(_) | Probe::Tcp(_)) | None => {}
    }
    Ok(entry.ready.clone())
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn restart(entry: &Entry) -> Result<Restart, Error> {
    let backoff = delays(entry)?;
    let healthy_after = seconds(entry, entry.healthy_after)?;
    let burst = match &entry.give_up {
        Some(limit) => Burst { restarts: limit.restarts, within: seconds(entry, limit.within)? },
        // Nothing is too much in no time at all.
        None => Burst { restarts: u32::MAX, within: Duration::ZERO },
    };
    Ok(match entry.restart {
        Policy::Never | Policy::ExitContainer => Restart::Never,
        Policy::Always => Restart::Limited { backoff, healthy_after, success: AfterSuccess::Restart, burst },
        Policy::OnFailure => {
            Restart::Limited { backoff, healthy_after, success: AfterSuccess::StayDown, burst }
        }
    })
}

fn delays(entry: &Entry) -> Result<Backoff, Error> {
    Ok(Backoff { base: seconds(entry, entry.backoff.base)?, cap: seconds(entry, entry.backoff.cap)? })
}

fn seconds(entry: &Entry, number: f64) -> Result<Duration, Error> {
    let seconds = Duration::try_from_secs_f64(number).ok().filter(|_positive| number <= LONGEST);
    seconds.ok_or_else(|| wrong(entry, format!("{number} is not a number of seconds")))
}

/// `TERM` or `SIGTERM`.
fn parse_signal(entry: &Entry, name: &str) -> Result<Signal, Error> {
    let full = format!("SIG{}", name.strip_prefix("SIG").unwrap_or(name));
    full.parse().map_err(|_unknown| wrong(entry, format!("{name} is not a signal")))
}

/// A service lies one deeper than the deepest that it needs. A circle has no depth.
fn set_depths(services: &mut [Service]) -> Result<(), Error> {
    for _round in 0..=services.len() {
        let depths: Vec<usize> = services.iter().map(|service| service.depth).collect();
        let depth_at = |place: &usize| depths.get(*place).map_or(0, |depth| depth + 1);
        for service in services.iter_mut() {
            service.depth = service.after.iter().map(depth_at).max().unwrap_or(0);
        }
        if services.iter().map(|service| service.depth).eq(depths) {
            return Ok(());
        }
    }
    let deepest = services.iter().max_by_key(|service| service.depth);
    let unit = deepest.map_or("", |service| service.name).to_owned();
    Err(Error::Unit { unit, what: "it waits for itself".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Service>, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        services(file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_entry_has_good_defaults() {
        let services = parse(r#"{"units": [{"name": "a", "exec": ["/bin/a", "-x"]}]}"#).unwrap();
        let a = &services[0];
        assert_eq!((a.name, a.command.program.as_str(), a.depth), ("a", "/bin/a", 0));
        assert_eq!(a.stop, [Rung { signal: Signal::SIGTERM, wait: Duration::from_secs(10) }]);
        assert_eq!(a.on_end, OnEnd::Stay);
        assert!(matches!(a.restart, Restart::Limited { success: AfterSuccess::Restart, .. }));
    }

    #[test]
    fn depth_follows_the_longest_chain() {
        let text = r#"{"units": [
            {"name": "c", "exec": ["/c"], "after": ["b", "a"]},
            {"name": "b", "exec": ["/b"], "after": ["a"], "stop": [{"signal": "SIGINT", "wait": 0.5}]},
            {"name": "a", "exec": ["/a"], "restart": "exit-container", "ready": {"tcp": "127.0.0.1:1"}}]}"#;
        let services = parse(text).unwrap();
        assert_eq!(services.iter().map(|service| service.depth).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(services[0].after, [1, 2]);
        assert_eq!(services[1].stop, [Rung { signal: Signal::SIGINT, wait: Duration::from_millis(500) }]);
        assert_eq!((services[2].on_end, services[2].restart), (OnEnd::ExitContainer, Restart::Never));
    }

    #[test]
    fn mistakes_are_named() {
        for (units, said) in [
            (r#""#, "there is no unit"),
            (r#"{"name": "a", "exec": []}"#, "unit a: exec is empty"),
            (r#"{"name": "a", "exec": ["x"]}"#, "absolute path, not x"),
            (r#"{"name": "a", "exec": ["/x"], "colour": 1}"#, "unknown field `colour`"),
            (r#"{"name": "a", "exec": ["/x"], "after": ["b"]}"#, "there is no unit b"),
            (r#"{"name": "a", "exec": ["/x"], "after": ["a"]}"#, "unit a: it waits for itself"),
            (r#"{"name": "a b", "exec": ["/x"]}"#, "its name must be"),
            (r#"{"name": "a", "exec": ["/x"], "stop": [{"signal": "NO", "wait": 1}]}"#, "NO is not a signal"),
            (r#"{"name": "a", "exec": ["/x"], "oom_score_adj": 1001}"#, "1001 is outside"),
            (
                r#"{"name": "a", "exec": ["/x"], "ready": {"fd": 2}}"#,
                "ready.fd goes from 3 to 9, 2 is outside",
            ),
            (r#"{"name": "a", "exec": ["/x"], "healthy_after": -1}"#, "-1 is not a number of seconds"),
            (
                r#"{"name": "a", "exec": ["/x"], "ready_within": 2e9}"#,
                "2000000000 is not a number of seconds",
            ),
            (r#"{"name": "a", "exec": ["/x"], "cwd": "data"}"#, "cwd must be an absolute path, not data"),
            (r#"{"name": "a", "exec": ["/x"], "ready": {"file": "up"}}"#, "absolute path, not up"),
            (r#"{"name": "a", "exec": ["/x"], "ready": {"exec": []}}"#, "ready.exec is empty"),
            (r#"{"name": "a", "exec": ["/x"], "ready": {"exec": ["x"]}}"#, "absolute path, not x"),
            (r#"{"name": "a", "exec": ["/x"], "ready": {"tcp": "here"}}"#, "host:port, not here"),
            (r#"{"name": "a", "exec": ["/x", "a\u0000"]}"#, "a NUL can be no part"),
            (r#"{"name": "a", "exec": ["/x"], "env": {"A=B": ""}}"#, "the name of a variable"),
        ] {
            let error = parse(&format!(r#"{{"units": [{units}]}}"#)).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
