//! What the kernel does for PID 1 of a container, done by a process: when the one child dies, everything that it
//! ever started dies too.
//!
//! The shim is a child subreaper, so that no descendant can leave it, and it ends only when its last descendant has
//! been reaped. It has a session of its own: Ctrl-C in the terminal reaches the demo, not the nodes. If the demo is
//! killed, the kernel tells the shim (SIGTERM), which stops its child in order.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::{fs, io};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid, setsid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// `pgherd demo shim --parent PID -- PROGRAM ARGS..`
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The process whose end is ours.
    #[arg(long)]
    parent: i32,
    /// What to run; it inherits our environment.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command and ends with its exit code (128 + n after signal n), when its last descendant is gone.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // EPERM: we lead a group already, so the terminal does not reach us anyway.
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => bail!("cannot open a session: {errno}"),
    }
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT, SIGHUP]).context("cannot handle signals")?;
    prctl::set_child_subreaper(true).context("cannot become a child subreaper")?;
    prctl::set_pdeathsig(Signal::SIGTERM).context("cannot ask for a parent-death signal")?;
    if getppid() != Pid::from_raw(args.parent) {
        bail!("the demo has ended");
    }
    let child = spawn(&args.command)?;
    let status = wait_for(child, &mut signals)?;
    kill_descendants()?;
    Ok(exit_code(status))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the shim stands in for a container runtime, outside of every node: the environment passes through, the \
              child must not be tied to a node's log, user or death signal"
)]
fn spawn(command: &[String]) -> anyhow::Result<Pid> {
    let (program, args) = command.split_first().context("nothing to run")?;
    let child = std::process::Command::new(program).args(args).spawn();
    let child = child.with_context(|| format!("cannot start {program}"))?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Reaps whatever ends, passes a stop on, and returns when `child` itself has ended.
fn wait_for(child: Pid, signals: &mut Signals) -> anyhow::Result<ExitStatus> {
    for signal in signals.forever() {
        if signal == SIGCHLD {
            if let Some(status) = reap(child)? {
                return Ok(status);
            }
        } else {
            // ESRCH cannot be: the child is ours and not yet reaped.
            kill(child, Signal::SIGTERM).context("cannot pass the stop on")?;
        }
    }
    bail!("no more signals");
}

/// Reaps everything that has ended; tells how `child` did.
fn reap(child: Pid) -> anyhow::Result<Option<ExitStatus>> {
    let mut ended = None;
    loop {
        let (pid, raw) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code << 8),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal as i32),
            Ok(_) | Err(Errno::ECHILD) => return Ok(ended),
            Err(Errno::EINTR) => continue,
            Err(errno) => bail!("cannot wait for a child: {errno}"),
        };
        if pid == child {
            ended = Some(ExitStatus::from_raw(raw));
        }
    }
}

/// Kills and reaps until nothing is left. Each round looks again: what was forked meanwhile is found then.
fn kill_descendants() -> anyhow::Result<()> {
    loop {
        for pid in descendants(getpid())? {
            // Gone already, or another account's when we are not root: the wait below tells.
            kill(pid, Signal::SIGKILL).ok();
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => bail!("cannot wait for a child: {errno}"),
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Every living process below `ancestor`, found through `/proc`; zombies too, which only their parent can remove.
pub(super) fn descendants(ancestor: Pid) -> io::Result<Vec<Pid>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the listing and the reading.
        if let Some(parent) =
            fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(parent_of)
        {
            parents.push((Pid::from_raw(pid), parent));
        }
    }
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// The parent in a `/proc/<pid>/stat` line; the command's name before it may hold blanks and parentheses.
fn parent_of(stat: &str) -> Option<Pid> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parent_of("17 (a) b (c) S 4 17 17 0"), Some(Pid::from_raw(4)));
        assert_eq!(parent_of("17"), None);
    }

    #[test]
    fn the_test_runner_descends_from_its_parent() {
        assert!(descendants(getppid()).unwrap().contains(&getpid()));
        assert!(!descendants(getpid()).unwrap().contains(&getpid()));
    }
}
