//! What a child does between fork and exec: the only code of ours that runs there.
//!
//! Invariant: everything here is a bare system call on data that was made before the fork. No allocation, no lock, no
//! lookup: another thread may have held any of them at the fork.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;

use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::account::RunAs;
use super::command::Fate;

/// Open files a child may have: enough for every service, far below what makes some of them allocate by the gigabyte.
const OPEN_FILES: libc::rlim_t = 65_536;
/// Where the descriptors end that are marked one by one when the kernel cannot do it at once.
const FDS_BY_HAND: RawFd = 1024;
/// What the kernel takes for "no signal at the parent's death".
const NO_SIGNAL: libc::c_int = 0;
/// One more than the last signal.
const SIGNALS: libc::c_int = 65;
/// What `init` passes on to `node`. Before `node` listens each of them would end it.
const REQUESTS: [Signal; 5] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1];

/// Whether a child gets the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// A session of its own, without a terminal: a Ctrl-C reaches us, not the services.
    Detached,
    /// The foreground of our terminal (`pgherd init -- bash`).
    Foreground,
    /// The terminal of our session, but not its foreground, which is somebody else's (`pgherd init -- sleep 9 &`).
    Background,
}

/// What to do in the child.
#[derive(Debug)]
pub struct Plan {
    account: Option<(libc::uid_t, libc::gid_t, Vec<libc::gid_t>)>,
    death_signal: libc::c_int,
    parent: libc::pid_t,
    terminal: Terminal,
    /// Descriptors that the child keeps, and the numbers that they get there.
    keep: Vec<(RawFd, RawFd)>,
    others: Others,
    /// Where it starts, when that is not where we are.
    dir: Option<OwnedFd>,
    limits: Limits,
    /// What it finds blocked.
    held: SigSet,
    /// What it writes into its `oom_score_adj`, when that is to differ from ours.
    oom_score: Option<String>,
}

/// What becomes of descriptors that we were born with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Closed,
    /// A foreign command's: a pipe of its shell's, a socket that it was promised.
    Inherited,
}

/// Whose limits a child has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limits {
    Service,
    Inherited,
}

impl Plan {
    /// The plan for a service or a one-shot, which keeps `liveness` open under its own number.
    pub(super) fn service(run_as: &RunAs, fate: Fate, liveness: RawFd) -> Self {
        let account = match run_as {
            RunAs::Same => None,
            RunAs::Account(account) => Some((account.uid, account.gid, account.groups.clone())),
        };
        let death_signal = match fate {
            Fate::EndsWithUs(signal) => signal_number(signal),
            Fate::OutlivesUs => NO_SIGNAL,
        };
        let base = Self::own(Signal::SIGKILL, Terminal::Detached);
        Self { account, death_signal, limits: Limits::Service, ..base }.keep(liveness, liveness)
    }

    /// The plan for a child of `init`: same account, no changed limits.
    pub fn own(death_signal: Signal, terminal: Terminal) -> Self {
        Self {
            account: None,
            death_signal: signal_number(death_signal),
            parent: nix::unistd::getpid().as_raw(),
            terminal,
            keep: Vec::new(),
            others: Others::Closed,
            dir: None,
            limits: Limits::Inherited,
            held: SigSet::empty(),
            oom_score: None,
        }
    }

    /// Holds requests back until the child calls [`hear_requests`].
    #[must_use]
    pub fn hold_requests(self) -> Self {
        Self { held: requests(), ..self }
    }

    /// Sets how readily the kernel ends the child when memory runs out.
    #[must_use]
    pub(super) fn oom_score(self, score: Option<i32>) -> Self {
        Self { oom_score: score.map(|score| score.to_string()), ..self }
    }

    /// Lets the child have every descriptor that is not marked for closing.
    #[must_use]
    pub fn keep_others(self) -> Self {
        Self { others: Others::Inherited, ..self }
    }

    /// Has the child start in this directory, which need not have a name any more.
    #[must_use]
    pub fn start_in(self, dir: OwnedFd) -> Self {
        Self { dir: Some(dir), ..self }
    }

    /// Lets the child keep a descriptor, under this number.
    #[must_use]
    pub fn keep(mut self, fd: RawFd, number: RawFd) -> Self {
        self.keep.push((fd, number));
        self
    }

    /// Makes `command` follow this plan in the child.
    #[expect(
        unsafe_code,
        reason = "the closure runs between fork and exec; it makes system calls and nothing else"
    )]
    pub fn install(self, command: &mut std::process::Command) {
        // SAFETY: `follow` is async-signal-safe: see the module's invariant.
        unsafe { command.pre_exec(move || self.follow()) };
    }

    /// Privileges go before the parent-death signal, because a change of credentials clears it.
    fn follow(&self) -> io::Result<()> {
        reset_signals(self.held.as_ref());
        self.take_session()?;
        match self.limits {
            Limits::Service => set_limits(),
            Limits::Inherited => {}
        }
        match self.others {
            Others::Closed => close_on_exec_from(3),
            Others::Inherited => {}
        }
        if let Some(score) = &self.oom_score {
            set_oom_score(score.as_bytes());
        }
        for (fd, number) in &self.keep {
            keep_open(*fd, *number)?;
        }
        if let Some(dir) = &self.dir {
            rustix::process::fchdir(dir)?;
        }
        if let Some((uid, gid, groups)) = &self.account {
            become_account(*uid, *gid, groups)?;
        }
        self.die_with_parent()
    }

    #[expect(unsafe_code, reason = "system calls between fork and exec")]
    fn take_session(&self) -> io::Result<()> {
        // SAFETY: plain system calls on integers. Without a terminal tcsetpgrp fails, and that is fine.
        unsafe {
            match self.terminal {
                Terminal::Detached => check(libc::setsid()),
                Terminal::Foreground => {
                    check(libc::setpgid(0, 0))?;
                    libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                    libc::tcsetpgrp(0, libc::getpid());
                    libc::signal(libc::SIGTTOU, libc::SIG_DFL);
                    Ok(())
                }
                Terminal::Background => check(libc::setpgid(0, 0)),
            }
        }
    }

    #[expect(unsafe_code, reason = "system calls between fork and exec")]
    fn die_with_parent(&self) -> io::Result<()> {
        // SAFETY: plain system calls on integers.
        unsafe {
            if self.limits == Limits::Service {
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
                // Capabilities that an ordinary user was given for us are no service's. A change of account drops them by itself.
                libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
            }
            check(libc::prctl(libc::PR_SET_PDEATHSIG, self.death_signal))?;
            // The parent may have died before the call above: then nobody would ever send the signal.
            if libc::getppid() != self.parent {
                libc::_exit(1);
            }
        }
        Ok(())
    }
}

/// The kernel's number of a signal.
pub fn signal_number(signal: Signal) -> i32 {
    signal as i32
}

/// Keeps this process out of core dumps and out of reach of other processes' `/proc` and ptrace. Its environment holds
/// secrets. Not inherited over exec: every process of ours calls it.
pub fn hide_memory() {
    // It cannot fail with this.
    prctl::set_dumpable(false).ok();
}

fn requests() -> SigSet {
    REQUESTS.into_iter().collect()
}

/// Lets in the requests that `init` has held back; call it when somebody listens to them.
pub fn hear_requests() {
    // It fails only for an impossible argument.
    requests().thread_unblock().ok();
}

/// Raises the soft limit of open files to what a service gets, as far as we may: each service costs us four of them, each
/// client of the API one, and a shell's soft limit is 1024.
pub fn raise_open_files() {
    // Best effort: a process that needs more of them says so when it does.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(OPEN_FILES.min(hard)), hard).ok();
    }
}

/// Gives this process the program's name in `ps`, `top` and `pgrep`. One that was started by way of `/proc/self/exe` is `exe`.
pub fn take_name() {
    // It cannot fail with this.
    prctl::set_name(c"pgherd").ok();
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ignored signals and the mask survive exec: started under nohup, PostgreSQL would never reload. By the bare system
/// call, because libc refuses to touch its own signals, which `posix_spawn` leaves ignored.
#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn reset_signals(held: &libc::sigset_t) {
    /// The kernel's `struct sigaction`, all zero: the default action.
    const DEFAULT: [u64; 4] = [0; 4];
    /// The size of the kernel's signal set.
    const SET_BYTES: usize = 8;
    // SAFETY: dispositions become the defaults, then the mask what it is to be; the kernel reads no more than these
    // constants and that set. SIGKILL and SIGSTOP refuse, and that is fine.
    unsafe {
        for signal in 1..SIGNALS {
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), none, SET_BYTES);
        }
        libc::sigprocmask(libc::SIG_SETMASK, held, std::ptr::null_mut());
    }
}

/// Best effort: without the right to raise the hard limit the soft one is raised as far as it goes. A core of a big
/// shared memory segment on PGDATA would be an outage. What services write is theirs alone.
#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn set_limits() {
    // SAFETY: the structures live on this stack.
    unsafe {
        let wanted = libc::rlimit { rlim_cur: OPEN_FILES, rlim_max: OPEN_FILES };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) != 0 {
            let mut have: libc::rlimit = std::mem::zeroed();
            if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut have) == 0 {
                have.rlim_cur = have.rlim_max;
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const have);
            }
        }
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::umask(0o077);
    }
}

/// Best effort: where `/proc` is read-only, the kernel chooses by size alone.
#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn set_oom_score(score: &[u8]) {
    // SAFETY: the path ends with a zero, and the bytes were made before the fork.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, score.as_ptr().cast(), score.len());
            libc::close(file);
        }
    }
}

/// Marked, not closed: the standard library reports a failing exec through one of them.
#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn close_on_exec_from(first: libc::c_uint) {
    // SAFETY: plain system calls on integers.
    unsafe {
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) != 0 {
            for fd in 3..FDS_BY_HAND {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}

#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn keep_open(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on integers; `fd` was open at the fork.
    unsafe {
        if fd == number { check(libc::fcntl(fd, libc::F_SETFD, 0)) } else { check(libc::dup2(fd, number)) }
    }
}

#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn become_account(uid: libc::uid_t, gid: libc::gid_t, groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: the slice was made before the fork and outlives the calls.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}
