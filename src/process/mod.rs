//! Children: the one way to spawn, the one way to run to completion, the one way to write a file, the pipe to `init`.
//!
//! Invariants: a child sees nothing of ours but what its [`Command`] says (environment, file descriptors, signal
//! dispositions, limits); nothing of one generation survives unnoticed, because every descendant holds the write end of
//! its liveness pipe; nobody is signalled by a bare pid, so a recycled pid is never hit.
//! Absent on purpose: `waitpid(-1)` (only `init` reaps strangers), shells, inherited environments.
//!
//! Spawn only from the main thread of `node` (its runtime has only that one): the kernel sends the parent-death signal
//! when the *thread* that forked ends.

mod account;
mod alarm;
mod child;
mod command;
mod environment;
mod file;
mod kin;
mod lines;
mod link;
mod lock;
mod notice;
mod plan;
mod reader;
mod run;
mod runtime;
mod surroundings;
mod tally;
mod timer;
mod watchdog;

use std::io;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

pub use account::{Account, RunAs, account_has_a_name, account_lines, name_library};
pub use alarm::{Alarm, Setting};
pub use child::{Child, End, Feed, News, PidHandle, Streams, Waiting, pump, read_out, spawn};
pub use command::{Command, Fate, LogLines, oom_score_above};
pub use environment::take_environment;
pub use file::{Mode, give_tree, make_private_dir, make_shared_dir, write_atomic, write_whole};
pub use kin::{Kin, Kinship};
pub use lines::Lines;
pub use link::{InitEnd, InitLink, LINK_FDS, MESSAGE_BYTES, Message};
pub use lock::VolumeLock;
pub use notice::{NOTICE_FDS, Notice, Notices, reserve_notice_fds};
pub use plan::{Plan, Terminal, hear_requests, hide_memory, raise_open_files, signal_number, take_name};
pub use reader::{Look, read_aside};
pub use run::{Output, run, with_terminal};
pub use runtime::runtime;
pub use surroundings::Surroundings;
pub use tally::Tally;
pub use timer::Timer;
pub use watchdog::{Farewell, Use, Watchdog, WatchdogDevice, WatchdogDriver};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// Whether it ended as it should: code 0.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

/// The first of these directories that has an executable file of this name.
///
/// # Errors
/// None has.
pub fn find_program(dirs: &[&Utf8Path], name: &str) -> Result<Utf8PathBuf, Error> {
    let is_program = |path: &Utf8PathBuf| {
        path.is_file() && nix::unistd::access(path.as_std_path(), nix::unistd::AccessFlags::X_OK).is_ok()
    };
    dirs.iter().map(|dir| dir.join(name)).find(is_program).ok_or_else(|| Error::FindProgram {
        name: name.to_owned(),
        dirs: dirs.iter().map(|dir| dir.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// A child or a file that would not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no program {name} in {dirs}")]
    FindProgram { name: String, dirs: String },
    #[error("there is no account {name}")]
    FindAccount { name: String },
    #[error("could not look up the account {name}")]
    ReadAccount {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("could not start {program}")]
    Start {
        program: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{name} did not end within {limit:?}")]
    TimedOut { name: String, limit: Duration },
    #[error("could not open process {pid}")]
    OpenProcess {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("could not signal process {pid}")]
    Signal {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("could not read {path}")]
    ReadFile {
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not write {path}")]
    WriteFile {
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is locked: another node uses this volume ({holder})")]
    Locked { path: Utf8PathBuf, holder: String },
    #[error("could not lock {path}")]
    Lock {
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not {operation} the watchdog {device}")]
    Watchdog {
        operation: &'static str,
        device: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not make the directory {path}")]
    MakeDir {
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
}
