//! The children of `init`: which there are, how they end, how they are killed.
//!
//! Invariant: a child's pid cannot be recycled before we reap it, and only we do; so our children, and nobody else, may be
//! signalled by number.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::system::is_first;

/// How a child ended, as an exit code: 128 + n for a signal.
pub(super) fn reap_next() -> Option<(u32, u8)> {
    loop {
        let (pid, code) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code & 0xff),
            Ok(WaitStatus::Signaled(pid, signal, _core)) => (pid, 128 + crate::process::signal_number(signal)),
            Ok(WaitStatus::StillAlive) => return None,
            Err(Errno::EINTR)
            // Never asked for, so never told.
            | Ok(WaitStatus::Stopped(..) | WaitStatus::Continued(_))
            | Ok(WaitStatus::PtraceEvent(..) | WaitStatus::PtraceSyscall(_)) => continue,
            Err(_no_children) => return None,
        };
        return Some((pid.as_raw().unsigned_abs(), u8::try_from(code).unwrap_or(u8::MAX)));
    }
}

/// Every child of ours, zombies included.
pub(super) fn children() -> Vec<u32> {
    let listed = std::fs::read_to_string("/proc/thread-self/children");
    match listed {
        Ok(text) => text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        // A kernel without this file: look at everybody.
        Err(_missing) => children_by_scan().unwrap_or_default(),
    }
}

fn children_by_scan() -> io::Result<Vec<u32>> {
    let us = std::process::id();
    let entries = std::fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| parent_of(*pid) == Some(us)).collect())
}

/// Whether we have any child, alive or not. The kernel's own word: it needs no `/proc`.
pub(super) fn any_left() -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, look).err() != Some(rustix::io::Errno::CHILD)
}

/// The parent of a process: the second word after its name, which stands in brackets and may contain anything.
pub(super) fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// SIGKILLs every child but one; tells how many there were.
pub(super) fn sweep(but: Option<u32>) -> usize {
    signal_children(Signal::SIGKILL, but)
}

/// SIGKILLs every child. Where `/proc` does not show them, PID 1 can still kill everybody; nobody else could, and then the
/// wait goes on.
pub(super) fn kill_all() {
    if sweep(None) == 0 && is_first() {
        kill(Pid::from_raw(-1), Signal::SIGKILL).ok();
    }
}

/// Signals every child but one; tells how many there were.
fn signal_children(signal: Signal, but: Option<u32>) -> usize {
    let others: Vec<u32> = children().into_iter().filter(|pid| Some(*pid) != but).collect();
    for pid in &others {
        signal_child(*pid, signal);
    }
    others.len()
}

/// Signals a child of ours; it may be a zombie already.
pub(super) fn signal_child(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        kill(Pid::from_raw(pid), signal).ok();
    }
}

/// The same by number, for real-time signals, which have no names; it leads its process group.
#[expect(unsafe_code, reason = "the safe wrapper knows named signals only")]
pub(super) fn signal_foreign(pid: u32, number: i32, reach: Reach) {
    let Ok(pid) = i32::try_from(pid) else { return };
    let target = match reach {
        Reach::Child => pid,
        Reach::Group => -pid,
    };
    // SAFETY: a plain system call on integers.
    unsafe { nix::libc::kill(target, number) };
}

/// Whom a signal reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Child,
    /// Every process of the child's group.
    Group,
}

/// SIGTERMs those of our children that are not in `told`, and adds them.
pub(super) fn terminate_newcomers(told: &mut Vec<u32>) {
    if is_first() {
        // Everybody there is was told at once.
        return;
    }
    let strangers: Vec<u32> = children().into_iter().filter(|pid| !told.contains(pid)).collect();
    for pid in strangers {
        signal_child(pid, Signal::SIGTERM);
        told.push(pid);
    }
}

/// Signals whatever is left at the very end: everybody, when the whole PID namespace is ours, else our own children.
pub(super) fn signal_everybody(signal: Signal) {
    if is_first() {
        kill(Pid::from_raw(-1), signal).ok();
    } else {
        signal_children(signal, None);
    }
}
