//! The settings of the server brought to where they count: the files, the command line, a reload.
//!
//! What the server would refuse is found out before it can do harm: `postgres -C` reads the rendered file as a start
//! would, and the names that it complains of are left out; a running server says which lines of pg_hba.conf it cannot
//! read. Settings that pass and with which the server does not come up all the same (a library that is not there, more
//! memory than the machine has) are not tried twice in a row: `settings::attempt` names the next ones.
//!
//! What the store says, and with what the server last came up, is kept on the volume: a node that starts while the store
//! is away starts with the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::Utf8PathBuf;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::conf::{self, Settings};
use super::recovery::remote_methods;
use super::settings::{self, Access, Effective, Local, Part, Stored};
use super::{Config, Door, Error, NodeSettings, Premises, Shared, control, lock, sql};
use crate::process::{self, Command};
use crate::types::Chain;

/// `postgres -C` reads two files.
const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// Unknown names hide wrong values, and both are found one after the other.
const CHECKS: usize = 3;
/// How many settings that did not come up are remembered.
const REMEMBERED: usize = 8;

/// What is known of the settings.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    /// What this node asks for by itself; none before it was changed.
    node: Option<NodeSettings>,
    /// What the store says; none before it was heard or read from the volume.
    stored: Option<Stored>,
    /// What the files are to say.
    wanted: Effective,
    /// What they say, shared values of a standby raised.
    in_files: Effective,
    /// With what the server was started that has not answered yet.
    attempted: Option<Effective>,
    /// With what it has last come up.
    proven: Option<Effective>,
    /// With what it has not.
    failed: Vec<Effective>,
    /// Rules of pg_hba.conf that the server cannot read: a start over one of them fails.
    unreadable: BTreeSet<String>,
    /// What the server refuses of the settings that it was asked about last.
    judged: Option<(Effective, Refusal)>,
    /// What is not used, and why.
    complaints: Vec<String>,
}

/// `<state>/settings.json`.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    stored: Option<Stored>,
    proven: Option<Effective>,
}

/// What the server refuses of a candidate.
#[derive(Debug, Clone, Default)]
struct Refusal {
    names: Vec<String>,
    complaints: Vec<String>,
}

impl Refusal {
    /// Whether it was asked to the end: each complaint is about a parameter then.
    fn is_whole(&self) -> bool {
        self.names.len() == self.complaints.len()
    }
}

impl Configuration {
    pub(super) fn intend(&mut self, stored: Stored) {
        self.stored = Some(stored);
    }

    /// The names in `standby_cluster.create_replica_methods`.
    pub(super) fn remote_methods(&self) -> Vec<String> {
        self.stored.as_ref().map_or_else(Vec::new, remote_methods)
    }

    pub(super) fn ask(&mut self, node: NodeSettings) {
        self.node = Some(node);
    }

    /// What this node asks for by itself.
    fn node(&self, config: &Config) -> NodeSettings {
        self.node.clone().unwrap_or_else(|| config.node_settings())
    }

    pub(super) fn complaints(&self) -> Vec<String> {
        self.complaints.clone()
    }

    /// Whether commits wait until the standbys show them. A session does not tell: ours asks for no waiting.
    pub(super) fn commits_are_applied(&self) -> bool {
        self.in_files.parameters.get("synchronous_commit").is_some_and(|level| level == "remote_apply")
    }

    pub(super) fn in_files(&self) -> Effective {
        self.in_files.clone()
    }

    /// What a restart would change, of what stands on the command line: the server itself does not know.
    pub(super) fn differences(&self, current: &BTreeMap<String, String>) -> Vec<(String, String, String)> {
        let wanted = self.wanted.command_line();
        let differs = |(name, new): (&str, &str)| {
            let old = current.get(name).filter(|old| *old != new)?;
            Some((name.to_owned(), old.clone(), new.to_owned()))
        };
        wanted.filter_map(differs).collect()
    }

    /// The server has answered: that proves what it was started with.
    pub(super) fn prove(&mut self) {
        if let Some(attempted) = self.attempted.take() {
            self.failed.retain(|failed| *failed != attempted);
            self.proven = Some(attempted);
        }
    }

    /// What was chosen for a start is used for something else: it can neither prove itself nor fail.
    pub(super) fn not_started(&mut self) {
        self.attempted = None;
    }

    /// An attempt that never answered has failed, unless the server has come up with the same settings before.
    fn note_failure(&mut self) {
        let Some(attempted) = self.attempted.take() else { return };
        if self.proven.as_ref() == Some(&attempted) || self.failed.contains(&attempted) {
            return;
        }
        self.failed.push(attempted);
        if self.failed.len() > REMEMBERED {
            self.failed.remove(0);
        }
    }

    fn leave_out_unreadable(&self, effective: &mut Effective) {
        match &mut effective.hba {
            Access::Node(lines) | Access::Cluster(lines) => {
                lines.retain(|line| !self.unreadable.contains(line));
            }
        }
    }

    fn say(&mut self, complaints: Vec<String>) {
        for complaint in complaints.iter().filter(|complaint| !self.complaints.contains(complaint)) {
            warn!(complaint, "a setting is not used");
        }
        self.complaints = complaints;
    }
}

/// What this node and the store ask for, made one.
fn effective(config: &Config, node: &NodeSettings, stored: &Stored, part: Part) -> (Effective, Vec<String>) {
    let local = Local { parameters: &node.parameters, hba: &node.hba, owner: config.owner() };
    let (mut effective, complaints) = settings::effective(local, stored, part);
    if !node.ident.is_empty() {
        effective.ident.clone_from(&node.ident);
    }
    (effective, complaints)
}

/// Chooses the settings of a start, and remembers that it is tried with them.
pub(super) async fn for_start(shared: &Shared, part: Part) -> Result<Effective, Error> {
    recall(shared).await?;
    let (chosen, mut complaints) = choose(shared, part);
    keep(shared).await?;
    let refusal = refused_at_start(shared, &chosen).await;
    complaints.extend(refusal.complaints);
    let floors = control::floors(shared, part).await?;
    let mut in_files = chosen.without(&refusal.names).raised(&floors);
    lock(&shared.configuration).leave_out_unreadable(&mut in_files);
    conf::off_thread({
        let config = shared.config.clone();
        let names = refusal.names;
        move || conf::clean_auto_conf(&config, &names)
    })
    .await?;
    let mut known = lock(&shared.configuration);
    known.say(complaints);
    known.in_files = in_files.clone();
    Ok(in_files)
}

fn choose(shared: &Shared, part: Part) -> (Effective, Vec<String>) {
    let config = &shared.config;
    let mut known = lock(&shared.configuration);
    known.note_failure();
    let stored = known.stored.clone().unwrap_or_default();
    let node = known.node(config);
    let (wanted, mut complaints) = effective(config, &node, &stored, part);
    let (alone, _) = effective(config, &node, &Stored::default(), part);
    let (bare, _) = effective(config, &NodeSettings::default(), &Stored::default(), part);
    let candidates = [Some(&wanted), known.proven.as_ref(), Some(&alone), Some(&bare)];
    let chosen = settings::attempt(candidates, &known.failed).cloned();
    let chosen = chosen.unwrap_or_else(|| {
        // It is not for the settings that it does not come up: from the start again.
        known.failed.clear();
        wanted.clone()
    });
    if chosen != wanted {
        complaints.push(
            "PostgreSQL did not come up with the settings that are asked for: it is started with earlier ones \
             until they change"
                .to_owned(),
        );
    }
    known.attempted = Some(chosen.clone());
    known.wanted = wanted;
    (chosen, complaints)
}

/// Brings a running server to what is wanted.
pub(super) async fn apply(shared: &Shared, part: Part) -> Result<(), Error> {
    keep(shared).await?;
    let (wanted, mut complaints, kept_back) = {
        let known = lock(&shared.configuration);
        let stored = known.stored.clone().unwrap_or_default();
        let node = known.node(&shared.config);
        let (wanted, complaints) = effective(&shared.config, &node, &stored, part);
        let kept_back = known.failed.contains(&wanted);
        (wanted, complaints, kept_back)
    };
    if kept_back {
        complaints.push("PostgreSQL did not come up with the settings that are asked for".to_owned());
    }
    let current = lock(&shared.settings).clone();
    let refusal = refused(shared, &current, &wanted).await;
    complaints.extend(refusal.complaints);
    let mut in_files = wanted.clone().without(&refusal.names);
    // What could not be read before is judged anew: the server may be another version.
    lock(&shared.configuration).unreadable.clear();
    let mut changed = write_files(shared, &in_files).await?;
    let unreadable = sql::unreadable_rules(shared).await?;
    if !unreadable.is_empty() {
        complaints.extend(note_unreadable(shared, &in_files, &unreadable));
        lock(&shared.configuration).leave_out_unreadable(&mut in_files);
        changed |= write_files(shared, &in_files).await?;
    }
    {
        let mut known = lock(&shared.configuration);
        known.say(complaints);
        known.wanted = wanted;
        known.in_files = in_files;
    }
    if changed {
        info!(?part, "the settings of PostgreSQL have changed");
        shared.unit.signal(Signal::SIGHUP);
    }
    Ok(())
}

async fn write_files(shared: &Shared, effective: &Effective) -> Result<bool, Error> {
    let config = shared.config.clone();
    let current = lock(&shared.settings).clone();
    let effective = effective.clone();
    conf::off_thread(move || {
        let cleaned = conf::clean_auto_conf(&config, &[])?;
        Ok(conf::write_settings(&config, &current, &effective)? || cleaned)
    })
    .await
}

/// Remembers the rules behind the line numbers that the server cannot read.
fn note_unreadable(shared: &Shared, effective: &Effective, unreadable: &[(i32, String)]) -> Vec<String> {
    let text = conf::pg_hba(&shared.config, effective, Door::Open).ok().flatten().unwrap_or_default();
    let line = |number: i32| text.lines().nth(usize::try_from(number).ok()?.checked_sub(1)?);
    let found: Vec<(&str, &String)> =
        unreadable.iter().filter_map(|(number, why)| Some((line(*number)?, why))).collect();
    let rules = found.iter().map(|(line, _)| (*line).to_owned());
    lock(&shared.configuration).unreadable.extend(rules);
    found.iter().map(|(line, why)| format!("pg_hba {line:?}: {why}")).collect()
}

/// What the server itself would refuse at a start. What it has said of these settings once it need not be asked again: a
/// crashed primary is waited for. (On a machine its own file is part of them, and may have changed.)
async fn refused_at_start(shared: &Shared, chosen: &Effective) -> Refusal {
    let known = lock(&shared.configuration).judged.clone();
    let ours = matches!(shared.config.premises, Premises::Container);
    if let Some((_, refusal)) = known.filter(|(of, _)| ours && of == chosen) {
        return refusal;
    }
    let refusal = refused(shared, &Settings::default(), chosen).await;
    lock(&shared.configuration).judged = refusal.is_whole().then(|| (chosen.clone(), refusal.clone()));
    refusal
}

/// What the server itself would refuse.
async fn refused(shared: &Shared, current: &Settings, candidate: &Effective) -> Refusal {
    let mut refusal = Refusal::default();
    for _pass in 0..CHECKS {
        match check(shared, current, &candidate.clone().without(&refusal.names)).await {
            Ok(said) if said.is_empty() => return refusal,
            Ok(said) => {
                for (name, why) in said {
                    if !refusal.names.contains(&name) {
                        refusal.complaints.push(why);
                        refusal.names.push(name);
                    }
                }
            }
            Err(error) => {
                refusal.complaints.push(format!("the settings could not be checked: {}", Chain(&error)));
                return refusal;
            }
        }
    }
    refusal
}

/// Has the server read the file as it would at a start; its complaints, by parameter.
async fn check(
    shared: &Shared,
    current: &Settings,
    candidate: &Effective,
) -> Result<Vec<(String, String)>, Error> {
    let config = &shared.config;
    let file = config.run_dir.join("postgresql.conf.check");
    let text = conf::postgresql_conf(config, current, candidate)?;
    conf::off_thread({
        let (config, file) = (config.clone(), file.clone());
        move || {
            process::make_private_dir(&config.run_dir, &config.run_as)
                .map_err(|source| Error::Write { path: config.run_dir.clone(), source })?;
            conf::write(&config, &file, &text)
        }
    })
    .await?;
    let command = Command::new("postgres", config.bin_dir.join("postgres"))
        .args(["-C", "data_directory", "-D", config.data_dir.as_str()])
        .arg("-c")
        .arg(format!("config_file={file}"))
        // In words that can be read here, whatever the file says.
        .args(["-c", "log_min_messages=warning", "-c", "lc_messages=C"])
        .env("LC_ALL", "C")
        .run_as(&config.run_as)
        .quiet();
    let run = |source| Error::Run { tool: "postgres -C", source };
    let output = process::run(&command, CHECK_LIMIT).await.map_err(run)?;
    if output.exit.is_success() {
        return Ok(Vec::new());
    }
    let said = parameters_in(&output.stderr);
    if said.is_empty() { Err(control::failed("postgres -C", &output)) } else { Ok(said) }
}

/// `LOG:  invalid value for parameter "work_mem": "lots"`: the names, and what is said of each.
fn parameters_in(stderr: &str) -> Vec<(String, String)> {
    let of_line = |line: &str| {
        let (_, rest) = line.split_once("parameter \"")?;
        let (name, _) = rest.split_once('"')?;
        let message = line.split_once("LOG:").map_or(line, |(_, message)| message);
        // Which file it was said of is our own business.
        let message = message.split(" in file \"").next().unwrap_or(message).trim();
        Some((name.to_ascii_lowercase(), format!("PostgreSQL: {message}")))
    };
    stderr.lines().filter_map(of_line).collect()
}

fn kept_file(config: &Config) -> Utf8PathBuf {
    config.state_dir.join("settings.json")
}

/// Before the store was heard: what it said in an earlier life of this node.
async fn recall(shared: &Shared) -> Result<(), Error> {
    let path = kept_file(&shared.config);
    let read = conf::off_thread(move || match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", &path)(error)),
    })
    .await?;
    let Some(text) = read else { return Ok(()) };
    match serde_json::from_str::<Kept>(&text) {
        Ok(kept) => {
            let mut known = lock(&shared.configuration);
            known.stored = known.stored.take().or(kept.stored);
            known.proven = known.proven.take().or(kept.proven);
        }
        Err(error) => warn!(%error, "what was remembered of the settings cannot be read: going on without"),
    }
    Ok(())
}

async fn keep(shared: &Shared) -> Result<(), Error> {
    let kept = {
        let known = lock(&shared.configuration);
        Kept { stored: known.stored.clone(), proven: known.proven.clone() }
    };
    let Ok(text) = serde_json::to_string(&kept) else { return Ok(()) };
    let path = kept_file(&shared.config);
    conf::off_thread(move || {
        process::write_atomic(&path, text.as_bytes(), &process::RunAs::Same, process::Mode::Private)
            .map_err(|source| Error::Write { path, source })
    })
    .await
    .map(|_changed| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_complaints_are_read_by_parameter() {
        let stderr = "\
2026-11-27 10:00:00.000 UTC [1] LOG:  unrecognized configuration parameter \"foo\" in file \"/x.check\" line 12
2026-11-27 10:00:00.000 UTC [1] LOG:  70000 is outside the valid range for parameter \"max_x\" (0 .. 9)
2026-11-27 10:00:00.000 UTC [1] LOG:  invalid value for parameter \"Work_Mem\": \"lots\"
2026-11-27 10:00:00.000 UTC [1] HINT:  Valid units for this parameter are \"B\".
2026-11-27 10:00:00.000 UTC [1] FATAL:  configuration file \"/x.check\" contains errors
";
        let said = parameters_in(stderr);
        let names: Vec<&str> = said.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["foo", "max_x", "work_mem"]);
        assert_eq!(said[0].1, "PostgreSQL: unrecognized configuration parameter \"foo\"");
    }

    #[test]
    fn only_settings_that_never_came_up_count_as_failed() {
        let with = |value: &str| Effective {
            parameters: BTreeMap::from([("work_mem".to_owned(), value.to_owned())]),
            ..Effective::default()
        };
        let mut known = Configuration { proven: Some(with("1MB")), ..Configuration::default() };
        known.attempted = Some(with("1MB"));
        known.note_failure();
        assert_eq!(known.failed, []);
        known.attempted = Some(with("2MB"));
        known.note_failure();
        known.note_failure();
        assert_eq!(known.failed, [with("2MB")]);
    }
}
