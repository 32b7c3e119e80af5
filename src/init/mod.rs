//! PID 1: starts `node`, forwards signals to it, reaps every orphan, and is the deadman.
//!
//! Invariants: this process does nothing that can block but wait in `poll`; the armed deadline is kept whatever `node`
//! does (stopped, starved, deadlocked); a new `node` starts only when nothing of the old one is left.
//! Absent on purpose: an async runtime, threads, configuration, knowledge of PostgreSQL beyond its signals. As long as
//! this is small, its death (which kills the container) is unlikely.

mod family;
mod foreign;
mod keeper;
mod system;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::Signal;
use system::Voice;

pub use crate::config::RestartNode;
use crate::log;

/// `node`'s argument, and the program that it is: ourselves.
const NODE: (&str, &str) = ("/proc/self/exe", "node");
/// `node` beats every few seconds: after a minute of silence it is deadlocked, and nothing else would ever tell.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// EX_USAGE, the exit code of a configuration error: to start again would only repeat it.
pub const CONFIGURATION_ERROR: u8 = 64;
/// What `init` itself ends with when it cannot do its work.
const INIT_FAILED: u8 = 70;
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// What `init` needs to know; `config` reads it from the environment.
#[derive(Debug, Clone)]
pub struct InitOptions {
    pub restart: RestartNode,
    pub log_format: log::Format,
    /// The program that is `node`: ourselves, except in tests.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// How long `node` may be silent.
    pub silence_limit: Duration,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            restart: RestartNode::Restart,
            log_format: log::Format::Text,
            program: NODE.0.into(),
            args: vec![NODE.1.into()],
            silence_limit: SILENCE_LIMIT,
        }
    }
}

/// A foreign command, and what is special about it.
#[derive(Debug, Clone, Default)]
pub struct ForeignOptions {
    pub command: Vec<OsString>,
    pub audience: Audience,
    /// Signals that become others on their way, or nothing, by number.
    pub rewrite: Vec<(i32, Option<i32>)>,
    /// What we get when whoever has started us dies.
    pub parent_death: Option<Signal>,
    /// Exit codes that count as 0: what a Java machine ends with after SIGTERM is 143.
    pub forgiven: Vec<u8>,
}

/// Who hears the signals that are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Audience {
    #[default]
    Child,
    /// The child's whole process group.
    Group,
}

/// Holds back every signal until it can be dealt with. The first thing that `pgherd init` should do: a signal that
/// arrives at PID 1 before that is lost. [`run_node`] and [`run_foreign`] do it too.
pub fn block_signals() {
    system::block_signals();
}

/// Keeps a `node` running until it is asked to stop. Call it from a process that has one thread.
pub fn run_node(options: InitOptions) -> ExitCode {
    let voice = Voice::new(options.log_format);
    match keeper::run(options, &voice) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            voice.say(&format!("init cannot work: {error}"));
            ExitCode::from(INIT_FAILED)
        }
    }
}

/// Runs a foreign command with the duties of PID 1; its exit code becomes ours (128 + n for a signal, 127 and 126 when
/// it is missing or cannot be executed).
pub fn run_foreign(options: &ForeignOptions) -> ExitCode {
    let voice = Voice::new(log::Format::Text);
    match foreign::run(options, &voice) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            voice.say(&format!("init cannot work: {error}"));
            ExitCode::from(INIT_FAILED)
        }
    }
}
