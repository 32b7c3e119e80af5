//! One foreign child with the duties of PID 1: for containers that want another command, and for tests.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::family;
use super::system::{Ears, Voice, adopt_orphans};
use super::{NOT_EXECUTABLE, NOT_FOUND};
use crate::clock::{self, Moment};
use crate::process::{Plan, Terminal};

/// What the child leaves behind gets so long between SIGTERM and SIGKILL,
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(1);
/// and nothing that survives SIGKILL for so long is waited for.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// How often the leftovers are looked at: those that we have not adopted yet tell us nothing.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) fn run(command: &[OsString], voice: &Voice) -> io::Result<u8> {
    let ears = Ears::open()?;
    adopt_orphans()?;
    let child = match start(command) {
        Ok(pid) => pid,
        Err(error) => {
            let name = command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
            voice.say(&format!("could not execute {name:?}: {error}"));
            let missing = error.kind() == io::ErrorKind::NotFound;
            return Ok(if missing { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    // We must not pin a file system that somebody wants to unmount.
    std::env::set_current_dir("/")?;
    let code = serve(&ears, child)?;
    end_leftovers(&ears)?;
    Ok(code)
}

#[expect(clippy::disallowed_methods, reason = "init is the other module that spawns")]
fn start(command: &[OsString]) -> io::Result<u32> {
    let (program, args) = command.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let terminal = match nix::unistd::isatty(io::stdin()) {
        Ok(true) => Terminal::Foreground,
        Ok(false) | Err(_) => Terminal::Detached,
    };
    let mut std_command = std::process::Command::new(program);
    std_command.args(args);
    Plan::own(Signal::SIGTERM, terminal).install(&mut std_command);
    Ok(std_command.spawn()?.id())
}

/// Passes signals on and reaps, until the child ends.
fn serve(ears: &Ears, child: u32) -> io::Result<u8> {
    loop {
        let mut code = None;
        while let Some((pid, its_code)) = family::reap_next() {
            if pid == child {
                code = Some(its_code);
            }
        }
        if let Some(code) = code {
            return Ok(code);
        }
        ears.wait(&[], None)?;
        while let Some(signal) = ears.next_signal() {
            if is_passed_on(signal) {
                family::signal_child(child, signal);
            }
        }
    }
}

/// Not those that are about us: our children's ends, our terminal, our pipes.
fn is_passed_on(signal: Signal) -> bool {
    !matches!(signal, Signal::SIGCHLD | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGPIPE)
}

/// SIGTERM, patience, SIGKILL for everything that is left.
pub(super) fn end_leftovers(ears: &Ears) -> io::Result<()> {
    for (signal, patience) in [(Signal::SIGTERM, LEFTOVER_PATIENCE), (Signal::SIGKILL, KILL_PATIENCE)] {
        let until = clock::now() + patience;
        family::signal_everybody(signal);
        while !all_reaped() && clock::now() < until {
            ears.wait(&[], Some(soon(until)))?;
            while ears.next_signal().is_some() {}
            if signal == Signal::SIGKILL {
                family::signal_everybody(signal);
            }
        }
    }
    Ok(())
}

fn soon(until: Moment) -> Moment {
    until.min(clock::now() + LOOK_EVERY)
}

fn all_reaped() -> bool {
    while family::reap_next().is_some() {}
    !family::any_left()
}
