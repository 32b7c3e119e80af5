//! What to run: a plain description, and its translation into the standard library's.

use std::collections::BTreeMap;
use std::process::Stdio;

use camino::Utf8PathBuf;
use nix::sys::signal::Signal;
use secrecy::SecretString;

use super::account::{RunAs, own_name_and_home};
use super::lock::VolumeLock;
use super::notice::Notice;

/// Where programs that a child starts by name are looked for.
const CHILD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much more expendable a service is whose loss costs a moment, on the kernel's scale to 1000.
const EXPENDABLE: i32 = 100;
/// The end of the kernel's scale.
const OOM_SCORE_MAX: i32 = 1000;

/// Our own `oom_score_adj` and so much more. Whoever is protected shares that protection with nobody who is expendable:
/// below zero it counts as zero.
pub fn oom_score_above(more: i32) -> i32 {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    let own: i32 = own.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if own < 0 { 0 } else { (own + more).min(OOM_SCORE_MAX) }
}

/// Whether a one-shot's lines go to the log as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLines {
    Yes,
    /// Only captured: for questions that are asked at every tick, such as `pg_controldata`.
    No,
}

/// What becomes of a child when this process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The kernel (and `init`) sends it this signal.
    EndsWithUs(Signal),
    /// It goes on (agent mode). So that it can, it writes to our own standard output and error instead of to a pipe.
    OutlivesUs,
}

/// What to run. The environment starts empty: a child sees only what is set here (plus PATH, HOME, USER, LANG=C.UTF-8).
#[derive(Debug, Clone)]
pub struct Command {
    /// The label of its log lines.
    pub name: String,
    pub program: Utf8PathBuf,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: Utf8PathBuf,
    pub run_as: RunAs,
    /// What becomes of it when `node` dies.
    pub fate: Fate,
    /// Fed to standard input, which is `/dev/null` otherwise (secrets: never argv, never env).
    pub stdin: Option<SecretString>,
    /// Whether its lines are logged.
    pub log: LogLines,
    /// Its `oom_score_adj`, when that is to differ from ours.
    pub oom_score: Option<i32>,
    /// The volume's lock, which it and its descendants keep for as long as one of them lives.
    pub lock: Option<VolumeLock>,
    /// Where it tells that it is ready, when it does.
    pub notice: Option<Notice>,
}

impl Command {
    /// A program without arguments, in `/`, as our own account, killed when `node` dies.
    pub fn new(name: &str, program: impl Into<Utf8PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: "/".into(),
            run_as: RunAs::Same,
            fate: Fate::EndsWithUs(Signal::SIGKILL),
            stdin: None,
            log: LogLines::Yes,
            oom_score: None,
            lock: None,
            notice: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the directory it starts in.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<Utf8PathBuf>) -> Self {
        self.cwd = dir.into();
        self
    }

    /// Sets the account.
    #[must_use]
    pub fn run_as(mut self, who: &RunAs) -> Self {
        self.run_as = who.clone();
        self
    }

    /// An administrator's own command, as this account: its relative paths mean the directory that we were started in. Another
    /// account than ours may not be let into that, and starts in `/`.
    #[must_use]
    pub fn of_administrator(mut self, who: &RunAs) -> Self {
        self.cwd = match who {
            RunAs::Same => ".".into(),
            RunAs::Account(_) => "/".into(),
        };
        self.run_as(who)
    }

    /// Sets what the kernel (and `init`) sends when `node` dies.
    #[must_use]
    pub fn death_signal(mut self, signal: Signal) -> Self {
        self.fate = Fate::EndsWithUs(signal);
        self
    }

    /// Lets it go on when we end.
    #[must_use]
    pub fn outliving_us(mut self) -> Self {
        self.fate = Fate::OutlivesUs;
        self
    }

    /// Feeds a secret to standard input.
    #[must_use]
    pub fn stdin(mut self, text: SecretString) -> Self {
        self.stdin = Some(text);
        self
    }

    /// Has it hold the volume's lock.
    #[must_use]
    pub fn hold(mut self, lock: &VolumeLock) -> Self {
        self.lock = Some(lock.clone());
        self
    }

    /// Has the kernel take it rather than the others when memory runs out.
    #[must_use]
    pub fn expendable(mut self) -> Self {
        self.oom_score = Some(oom_score_above(EXPENDABLE));
        self
    }

    /// Keeps its lines out of the log.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.log = LogLines::No;
        self
    }

    /// The standard library's description; what happens between fork and exec is added by the caller.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that builds children's commands")]
    pub(super) fn to_std(&self) -> std::process::Command {
        let (user, home) = match &self.run_as {
            RunAs::Same => own_name_and_home(),
            RunAs::Account(account) => (account.name.clone(), account.home.clone()),
        };
        let stdin = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        let output = || match self.fate {
            Fate::EndsWithUs(_) => Stdio::piped(),
            Fate::OutlivesUs => Stdio::inherit(),
        };
        let mut command = std::process::Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", CHILD_PATH)
            .env("HOME", home)
            .env("LANG", "C.UTF-8")
            .env("USER", user)
            .envs(&self.env)
            .current_dir(&self.cwd)
            .stdin(stdin)
            .stdout(output())
            .stderr(output());
        command
    }
}
