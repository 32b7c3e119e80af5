//! One foreign child with the duties of PID 1: for containers that want another command, and for tests.
//!
//! Invariant: the child cannot tell the difference. It has our environment, our descriptors, our terminal if there is one; it
//! gets every signal that somebody sends us; its exit code is ours.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpgrp, getppid, tcgetpgrp, tcsetpgrp};

use super::family::{self, Reach};
use super::system::{Ears, Heard, Voice, adopt_orphans};
use super::{ForeignOptions, NOT_EXECUTABLE, NOT_FOUND};
use crate::clock::{self, Moment};
use crate::process::{Plan, Terminal};

/// What the child leaves behind gets so long between SIGTERM and SIGKILL,
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(1);
/// and nothing that survives SIGKILL for so long is waited for.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// How often the leftovers are looked at: those that we have not adopted yet tell us nothing.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) fn run(options: &ForeignOptions, voice: &Voice) -> io::Result<u8> {
    let parent = getppid();
    let ears = Ears::open_wide()?;
    adopt_orphans()?;
    if let Some(signal) = options.parent_death {
        // It arrives like any other signal, and is passed on like any other.
        prctl::set_pdeathsig(signal)?;
        // Whoever has died before that call is not told of by it.
        if getppid() != parent {
            kill(Pid::this(), signal)?;
        }
    }
    // A shell above us wants its terminal back.
    let foreground = tcgetpgrp(io::stdin()).ok();
    let terminal = match (nix::unistd::isatty(io::stdin()), foreground) {
        (Ok(true), Some(group)) if group != getpgrp() => Terminal::Background,
        (Ok(true), _) => Terminal::Foreground,
        (Ok(false) | Err(_), _) => Terminal::Detached,
    };
    let plan = Plan::own(Signal::SIGTERM, terminal).keep_others();
    let plan = match open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        // We must not pin a file system that somebody wants to unmount. Before the command runs: it may look.
        Ok(here) => {
            std::env::set_current_dir("/")?;
            plan.start_in(here)
        }
        // Where we may not enter, the command can be only by inheritance.
        Err(_forbidden) => plan,
    };
    let started = start(options, plan);
    std::env::set_current_dir("/")?;
    let child = match started {
        Ok(pid) => pid,
        Err(error) => {
            let name = options.command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
            voice.say(&format!("could not execute {name:?}: {error}"));
            give_back(terminal, foreground);
            let missing = error.kind() == io::ErrorKind::NotFound;
            return Ok(if missing { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    let code = serve(options, &ears, (child, terminal))?;
    give_back(terminal, foreground);
    end_leftovers(&ears)?;
    Ok(if options.forgiven.contains(&code) { 0 } else { code })
}

/// SIGTTOU is held back, so this cannot stop us.
fn give_back(terminal: Terminal, foreground: Option<Pid>) {
    match (terminal, foreground) {
        // It may have hung up meanwhile.
        (Terminal::Foreground, Some(group)) => tcsetpgrp(io::stdin(), group).unwrap_or_default(),
        (Terminal::Foreground, None) | (Terminal::Background | Terminal::Detached, _) => {}
    }
}

#[expect(clippy::disallowed_methods, reason = "init is the other module that spawns")]
fn start(options: &ForeignOptions, plan: Plan) -> io::Result<u32> {
    let (program, args) =
        options.command.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let mut std_command = std::process::Command::new::<&OsString>(program);
    std_command.args(args);
    plan.install(&mut std_command);
    Ok(std_command.spawn()?.id())
}

/// Passes signals on and reaps, until the child ends.
fn serve(options: &ForeignOptions, ears: &Ears, (child, terminal): (u32, Terminal)) -> io::Result<u8> {
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
        while let Some(heard) = ears.next_signal() {
            let rewritten = options.rewrite.iter().find(|(from, _)| *from == heard.number);
            let number = rewritten.map_or_else(|| passed_on(heard, terminal), |(_, to)| *to);
            if let Some(number) = number {
                family::signal_foreign(child, number, options.reach());
            }
        }
    }
}

/// What is passed on where nothing else is asked for: not those that are about us, our children's ends, our terminal, a pipe that
/// we wrote to.
fn passed_on(heard: Heard, terminal: Terminal) -> Option<i32> {
    let number = heard.number;
    let Some(signal) = heard.signal() else { return Some(number) };
    if matches!(signal, Signal::SIGCHLD | Signal::SIGTTIN | Signal::SIGTTOU) {
        return None;
    }
    match (signal, terminal) {
        (Signal::SIGPIPE, _) if heard.sender == std::process::id() => None,
        // Somebody wants the command to pause; SIGCONT, passed on like any other, lets it go on. A session without a
        // terminal ignores the polite form. We ourselves never stop.
        (Signal::SIGTSTP, Terminal::Detached) => Some(crate::process::signal_number(Signal::SIGSTOP)),
        _ => Some(number),
    }
}

impl ForeignOptions {
    fn reach(&self) -> Reach {
        match self.audience {
            super::Audience::Child => Reach::Child,
            super::Audience::Group => Reach::Group,
        }
    }
}

/// SIGTERM for each that is left or comes to be ours, patience, SIGKILL.
pub(super) fn end_leftovers(ears: &Ears) -> io::Result<()> {
    let mut told = family::children();
    for (signal, patience) in [(Signal::SIGTERM, LEFTOVER_PATIENCE), (Signal::SIGKILL, KILL_PATIENCE)] {
        let until = clock::now() + patience;
        family::signal_everybody(signal);
        while !all_reaped() && clock::now() < until {
            ears.wait(&[], Some(soon(until)))?;
            while ears.next_signal().is_some() {}
            if signal == Signal::SIGKILL {
                family::signal_everybody(signal);
            } else {
                family::terminate_newcomers(&mut told);
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
