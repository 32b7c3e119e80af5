//! Patroni itself and tools around it, from the package index, in a virtual environment that is made once and kept.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::unistd::Uid;

/// The version that the contract was compared with.
const REQUIREMENT: &str = "patroni[etcd3]>=4.1,<4.2";
/// Patroni starts servers from a process of its own making: that must work for PostgreSQL's account.
const PROBE: &str = "import multiprocessing as m, patroni, psycopg2\n\
    if __name__ == '__main__':\n    p = m.get_context('spawn').Process(target=print)\n    p.start()\n    p.join()\n    exit(p.exitcode)";

/// An installation.
#[derive(Debug, Clone)]
pub(crate) struct Patroni {
    venv: PathBuf,
}

impl Patroni {
    /// The installation, made now if need be; `None`, and one loud line, where that cannot be.
    pub(crate) fn installed() -> Option<Self> {
        static INSTALLED: OnceLock<Result<Patroni, String>> = OnceLock::new();
        match INSTALLED.get_or_init(install) {
            Ok(patroni) => Some(patroni.clone()),
            Err(why) => {
                skipped(&format!("no stock Patroni on this machine: {why}"));
                None
            }
        }
    }

    /// A program of it, or of another package that `more` names and that is added now if need be; `None`, and one loud line,
    /// where that cannot be.
    pub(crate) fn program(&self, name: &str, more: Option<&str>) -> Option<PathBuf> {
        let path = self.venv.join("bin").join(name);
        let added = match more {
            Some(package) if !path.exists() => pip(&self.venv, &[package]),
            Some(_) | None => Ok(()),
        };
        match added {
            Ok(()) => Some(path),
            Err(why) => {
                skipped(&format!("no {name} on this machine: {why}"));
                None
            }
        }
    }

    /// The command line of the daemon, as PostgreSQL's account.
    pub(crate) fn command(&self, file: &Path) -> Command {
        let mut command = as_postgres(&self.venv.join("bin/patroni"));
        command.arg(file);
        command
    }
}

/// Whether every case is to be run: `make test` has a bounded time.
pub(crate) fn all_cases() -> bool {
    let all = std::env::var("AGENT").is_ok_and(|which| which == "all");
    if !all {
        skipped("not run here (make test-agent runs it)");
    }
    all
}

/// Past the harness, which keeps what a passing test prints to itself.
pub(crate) fn skipped(why: &str) {
    writeln!(std::io::stderr(), "\n*** SKIPPED: {why} ***\n").ok();
}

/// PostgreSQL's account, when we are root.
pub(crate) fn account() -> Option<nix::unistd::User> {
    let root = Uid::effective().is_root();
    root.then(|| nix::unistd::User::from_name("postgres").unwrap().unwrap())
}

fn install() -> Result<Patroni, String> {
    let venv = std::env::temp_dir().join("pgherd-test-patroni");
    let usable = |venv: &Path| {
        let script = venv.join("probe.py");
        std::fs::write(&script, PROBE).is_ok()
            && succeeds(as_postgres(&venv.join("bin/python3")).arg(script)).is_ok()
    };
    if venv.join("bin/patroni").exists() && usable(&venv) {
        return Ok(Patroni { venv });
    }
    let mut why = "there is no python3".to_owned();
    for python in ["/usr/bin/python3", "python3"] {
        std::fs::remove_dir_all(&venv).ok();
        match make(python, &venv) {
            Ok(()) if usable(&venv) => return Ok(Patroni { venv }),
            Ok(()) => why = format!("{python} cannot be used by PostgreSQL's account"),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn make(python: &str, venv: &Path) -> Result<(), String> {
    succeeds(Command::new(python).args(["-m", "venv"]).arg(venv))?;
    pip(venv, &[REQUIREMENT, "psycopg2-binary"])
}

fn pip(venv: &Path, packages: &[&str]) -> Result<(), String> {
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--retries", "1", "--timeout", "15"]).args(packages);
    succeeds(&mut pip)
}

fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).current_dir("/").output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().last().unwrap_or("it failed").to_owned())
}

fn as_postgres(program: &Path) -> Command {
    let mut command = match account() {
        None => Command::new(program),
        Some(_) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
            command
        }
    };
    command.current_dir("/").env("HOME", "/");
    command
}
