//! The system calls of `init`: signals as a descriptor, a clock that counts suspension, a voice that never blocks.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags};

use crate::clock::Moment;
use crate::log;
use crate::process::LINK_FDS;

/// Every signal but those that report our own faults: those must kill.
fn held_back() -> SigSet {
    let mut signals = SigSet::all();
    for fault in
        [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGABRT, Signal::SIGSYS]
    {
        signals.remove(fault);
    }
    signals
}

/// PID 1 loses every signal that comes before it is ready, so the first thing that happens in a process is that it makes
/// itself ready: before `main`, before the standard library. Any other process must die of an early signal, and does.
#[used]
#[unsafe(link_section = ".init_array")]
#[expect(unsafe_code, reason = "only this section is read before main")]
static EARLY: extern "C" fn() = {
    extern "C" fn early() {
        if is_first() {
            block_signals();
        }
    }
    early
};

/// Blocked signals stay pending, even at PID 1, even those without a handler.
pub(super) fn block_signals() {
    // It fails only for an impossible argument.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held_back()), None).ok();
}

/// A signal that has arrived. A real-time signal has a number only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) number: i32,
    pub(super) sender: u32,
}

impl Heard {
    pub(super) fn signal(self) -> Option<Signal> {
        Signal::try_from(self.number).ok()
    }
}

/// Where signals, and alarms, arrive.
#[derive(Debug)]
pub(super) struct Ears {
    signals: SignalFd,
    timer: TimerFd,
}

impl Ears {
    pub(super) fn open() -> io::Result<Self> {
        block_signals();
        hear_of_children()?;
        let signals = SignalFd::with_flags(&held_back(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self { signals, timer: TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)? })
    }

    /// Waits for a signal, for something to read from one of `others`, or for `alarm` to come.
    pub(super) fn wait(&self, others: &[BorrowedFd<'_>], alarm: Option<Moment>) -> io::Result<()> {
        match alarm {
            Some(moment) => {
                // Zero would disarm the timer.
                let at = std::time::Duration::from_nanos(moment.0.max(1));
                self.timer
                    .set(Expiration::OneShot(TimeSpec::from(at)), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            None => self.timer.unset()?,
        }
        let own = [self.signals.as_fd(), self.timer.as_fd()];
        let all = own.iter().chain(others);
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The next signal that has arrived, if any.
    pub(super) fn next_signal(&self) -> Option<Heard> {
        let info = self.signals.read_signal().ok().flatten()?;
        Some(Heard { number: i32::try_from(info.ssi_signo).unwrap_or(0), sender: info.ssi_pid })
    }

    /// The same ears for every signal there is. Our own faults kill nevertheless: the kernel sees to that.
    pub(super) fn open_wide() -> io::Result<Self> {
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), None)?;
        let ears = Self::open()?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { signals, ..ears })
    }
}

/// A parent that ignores SIGCHLD hands that down, and the kernel then reaps children before anybody learns of their end.
#[expect(unsafe_code, reason = "a disposition can only be set by an unsafe call")]
fn hear_of_children() -> io::Result<()> {
    // SAFETY: the default disposition runs no code.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl) }?;
    Ok(())
}

/// Makes us the adoptive parent of every orphan below us. PID 1 is that already.
pub(super) fn adopt_orphans() -> io::Result<()> {
    if is_first() {
        return Ok(());
    }
    Ok(prctl::set_child_subreaper(true)?)
}

/// Whether standard input is a terminal that nobody holds the other end of any more.
pub(super) fn has_hung_up() -> bool {
    nix::unistd::isatty(io::stdin()) == Err(nix::errno::Errno::EIO)
}

/// Whether the whole PID namespace is ours.
pub(super) fn is_first() -> bool {
    std::process::id() == 1
}

/// Holds the descriptors under whose numbers `node` will find its link: nobody else may get them, above all not the
/// standard library, which reports a failing exec through a descriptor of its own.
pub(super) fn reserve_link_numbers() -> io::Result<Vec<File>> {
    LINK_FDS.iter().map(|_number| File::open("/dev/null")).collect()
}

/// `init`'s own lines, on standard error. A full pipe costs a line, never a wait.
#[derive(Debug)]
pub(super) struct Voice {
    format: log::Format,
    out: Out,
}

/// How standard error is written without a wait.
#[derive(Debug)]
enum Out {
    /// A description of our own, which does not block: the inherited one is shared, and must stay as it is.
    Own(File),
    /// A file, which never blocks for long. Through the inherited description: it holds the place where all of us write.
    Plain,
    /// What cannot be opened again: a socket, or a pipe that another account made.
    Foreign,
}

impl Voice {
    pub(super) fn new(format: log::Format) -> Self {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let own = OpenOptions::new().append(true).custom_flags(flags).open("/proc/self/fd/2");
        let out = match own {
            Ok(file) if file.metadata().is_ok_and(|about| about.is_file()) => Out::Plain,
            Ok(file) => Out::Own(file),
            Err(_refused) => Out::Foreign,
        };
        Self { format, out }
    }

    /// Writes one line, if it can be written at once.
    pub(super) fn say(&self, text: &str) {
        let line = log::loose_line("init", self.format, text);
        // Best effort in every arm: there is nobody to tell about a failure to tell.
        match &self.out {
            Out::Own(out) => drop((&mut &*out).write(&line)),
            Out::Plain => drop(io::stderr().write(&line)),
            Out::Foreign => write_now(&line),
        }
    }
}

/// Writes what can be written at once.
#[expect(unsafe_code, reason = "pwritev2 has no safe wrapper; a plain write could block")]
fn write_now(line: &[u8]) {
    if nix::sys::socket::send(2, line, nix::sys::socket::MsgFlags::MSG_DONTWAIT).is_ok() {
        return;
    }
    let part = libc::iovec { iov_base: line.as_ptr().cast_mut().cast(), iov_len: line.len() };
    // SAFETY: one vector, which describes `line`; the kernel only reads it.
    unsafe { libc::pwritev2(2, &raw const part, 1, -1, libc::RWF_NOWAIT) };
}
