//! A running child: its exit by pidfd, the end of all its descendants by the liveness pipe, its output by lines.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::PollTimeout;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

use super::notice::Notice;
use super::{Command, Error, Exit, Fate, Plan};
use crate::log::{Splitter, Wholeness};

/// A line without an end is logged after this long: PostgreSQL writes a long message in several pieces.
const PARTIAL_LINE_PATIENCE: Duration = Duration::from_millis(100);
/// One read of a child's output.
const READ_BYTES: usize = 64 * 1024;
/// A child that was abandoned is reaped by a thread that only waits.
const REAPER_STACK: usize = 64 * 1024;
/// How many milliseconds it is waited for where no thread can be started: it dies in one or two.
const LAST_WAIT: u8 = 100;

/// A child and everything that comes from it. Dropping it kills the child and its process group, unless
/// it is to outlive us.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    alive: pipe::Receiver,
    exit: Option<Exit>,
    gone: bool,
    fate: Fate,
}

/// One of a child's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The main process ended.
    Exited(Exit),
    /// Nobody holds the liveness pipe any more.
    Gone,
}

/// What a child prints, and what it is fed.
#[derive(Debug)]
pub struct Streams {
    /// Its standard output and error; none of a child that writes to ours.
    pub output: Option<[pipe::Receiver; 2]>,
    pub stdin: Option<Feed>,
}

/// Text on its way to a child's standard input.
#[derive(Debug)]
pub struct Feed {
    pipe: pipe::Sender,
    text: SecretString,
}

impl Feed {
    /// Writes the text and closes the pipe. A child that does not want it is no error of ours: its exit tells.
    pub async fn write(mut self) {
        if let Err(error) = self.pipe.write_all(self.text.expose_secret().as_bytes()).await {
            tracing::debug!(%error, "a child did not read its standard input");
        }
    }
}

/// Starts a child; returns when `exec` has succeeded or failed. Call it on the main thread (see the module's docs).
///
/// # Errors
/// It could not be executed, or not be watched (then it was killed).
pub fn spawn(command: &Command) -> Result<(Child, Streams), Error> {
    let failed = |source| Error::Start { program: command.program.clone(), source };
    let (alive, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let mut std_command = command.to_std();
    let mut plan =
        Plan::service(&command.run_as, command.fate, held.as_raw_fd()).oom_score(command.oom_score);
    if let Some(lock) = &command.lock {
        plan = plan.keep(lock.raw_fd(), lock.raw_fd());
    }
    if let Some((fd, number)) = command.notice.as_ref().map(Notice::handed_down) {
        plan = plan.keep(fd, number);
    }
    plan.install(&mut std_command);
    let mut started = std_command.spawn().map_err(failed)?;
    drop(held);
    if let Some(score) = command.oom_score {
        check_oom_score(command, started.id(), score);
    }
    watch(&mut started, alive, command).map_err(|source| {
        // What cannot be watched must not run, nor what it may have started in its first moments.
        kill_group(started.id());
        drop(started.kill());
        drop(started.wait());
        failed(source)
    })
}

/// What protects more than we are protected takes a right that a container seldom has. Between fork and exec the file may
/// be root's, as our memory is hidden; afterwards it is the account's own.
fn check_oom_score(command: &Command, pid: u32, wanted: i32) {
    let path = format!("/proc/{pid}/oom_score_adj");
    let file = std::fs::File::options().write(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(wanted.to_string().as_bytes()));
    tracing::debug!(?written, "oom_score_adj");
    let score = std::fs::read_to_string(path);
    // One that cannot be read has ended already.
    if let Ok(score) = score
        && score.trim().parse() != Ok(wanted)
    {
        let (unit, score) = (&command.name, score.trim());
        tracing::warn!(
            unit,
            score,
            wanted,
            "its oom_score_adj could not be set: CAP_SYS_RESOURCE is missing"
        );
    }
}

fn watch(
    started: &mut std::process::Child,
    alive: OwnedFd,
    command: &Command,
) -> io::Result<(Child, Streams)> {
    let pid = started.id();
    let pidfd = watchable(open_pidfd(pid, PidfdFlags::NONBLOCK)?)?;
    let alive = pipe::Receiver::from_owned_fd(alive)?;
    let output = match (started.stdout.take(), started.stderr.take()) {
        (Some(stdout), Some(stderr)) => Some([
            pipe::Receiver::from_owned_fd(stdout.into())?,
            pipe::Receiver::from_owned_fd(stderr.into())?,
        ]),
        (Some(_) | None, None) | (None, Some(_)) => None,
    };
    let stdin = match (started.stdin.take(), &command.stdin) {
        (Some(pipe), Some(text)) => {
            Some(Feed { pipe: pipe::Sender::from_owned_fd(pipe.into())?, text: text.clone() })
        }
        (Some(_) | None, None) | (None, Some(_)) => None,
    };
    let child = Child { pid, pidfd, alive, exit: None, gone: false, fate: command.fate };
    Ok((child, Streams { output, stdin }))
}

impl Child {
    /// Its pid, for people and for `init`; signals go through [`Child::signal`].
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// It has ended, or may not be signalled.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        send(self.pidfd.get_ref(), signal).map_err(|source| Error::Signal { pid: self.pid, source })
    }

    /// The next of its two ends, each once: in this order as a rule, but a service may close what it does not know. May
    /// be cancelled and called again; after both it waits for ever.
    pub async fn next_end(&mut self) -> End {
        let mut bytes = [0; 64];
        loop {
            tokio::select! {
                biased;
                ready = self.pidfd.readable(), if self.exit.is_none() => match ready {
                    Ok(mut ready) => match reap(self.pid, self.pidfd.get_ref()) {
                        Some(exit) => {
                            self.exit = Some(exit);
                            return End::Exited(exit);
                        }
                        None => ready.clear_ready(),
                    },
                    Err(_runtime_ends) => std::future::pending().await,
                },
                read = self.alive.read(&mut bytes), if !self.gone => match read {
                    Ok(0) => {
                        self.gone = true;
                        return End::Gone;
                    }
                    // A descendant wrote into what it does not know.
                    Ok(_) => {}
                    // Cannot happen to a pipe. To be silent for ever is safe, to say "gone" is not.
                    Err(error) => {
                        tracing::error!(pid = self.pid, %error, "the liveness pipe cannot be read");
                        std::future::pending::<()>().await;
                    }
                },
                else => std::future::pending().await,
            }
        }
    }

    /// Waits for the end of the main process (not of its output: a grandchild may hold that open). May be cancelled and
    /// called again.
    pub async fn exited(&mut self) -> Exit {
        loop {
            match self.exit {
                Some(exit) => return exit,
                None => drop(self.next_end().await),
            }
        }
    }

    /// Waits until the process and every descendant are gone: nobody holds the write end of the liveness pipe any more.
    /// May be cancelled and called again.
    pub async fn gone(&mut self) {
        while self.exit.is_none() || !self.gone {
            self.next_end().await;
        }
    }
}

/// Takes the exit status, if there is one. Before the pid is given back, what is left of the process group is killed:
/// while the zombie holds the number it can mean nobody else.
fn reap(pid: u32, pidfd: &OwnedFd) -> Option<Exit> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), look | WaitIdOptions::NOWAIT) {
        Ok(None) => None,
        Ok(Some(_ended)) => {
            kill_group(pid);
            rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), look).ok().flatten().map(|status| {
                let signal = status.terminating_signal().map(Exit::Signal);
                signal.unwrap_or_else(|| Exit::Code(status.exit_status().unwrap_or(255)))
            })
        }
        // Only if somebody reaps strangers in this process, which nobody may.
        Err(error) => {
            tracing::error!(pid, %error, "the exit status was lost");
            Some(Exit::Code(255))
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_some() || self.fate == Fate::OutlivesUs {
            return;
        }
        kill_group(self.pid);
        // Both fail only for a process that has ended.
        drop(send(self.pidfd.get_ref(), Signal::SIGKILL));
        if reap(self.pid, self.pidfd.get_ref()).is_some() {
            return;
        }
        let wait = |pidfd: OwnedFd| move || drop(wait_blocking(&pidfd, PollTimeout::NONE));
        let thread = std::thread::Builder::new().name("reaper".to_owned()).stack_size(REAPER_STACK);
        let started = self.pidfd.get_ref().try_clone().and_then(|pidfd| thread.spawn(wait(pidfd)));
        if started.is_err() {
            // No descriptor or no process is to be had, and a zombie would be one for as long as we live.
            drop(wait_blocking(self.pidfd.get_ref(), PollTimeout::from(LAST_WAIT)));
        }
    }
}

/// A wait for a killed child: the pidfd itself does not block.
fn wait_blocking(pidfd: &OwnedFd, limit: PollTimeout) -> io::Result<()> {
    let mut fds = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, limit)?;
    let id = WaitId::PidFd(pidfd.as_fd());
    rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
    Ok(())
}

/// Every child leads a session and a group of its own. An empty group is no error.
fn kill_group(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
}

fn open_pidfd(pid: u32, flags: PidfdFlags) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::pidfd_open(pid, flags)?)
}

#[expect(unsafe_code, reason = "the safe constructors of AsyncFd are deprecated")]
pub(super) fn watchable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor for as long as it lives, and the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn send(pidfd: &OwnedFd, signal: Signal) -> io::Result<()> {
    let number = super::signal_number(signal);
    let signal = rustix::process::Signal::from_named_raw(number);
    let signal = signal.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
}

/// A process that need not be our child, held by a descriptor: its pid may be recycled, the handle stays with it.
/// Check the identity *after* opening.
#[derive(Debug)]
pub struct PidHandle {
    pid: u32,
    fd: OwnedFd,
}

impl PidHandle {
    /// Takes hold of a process.
    ///
    /// # Errors
    /// There is none of this pid, or it may not be watched.
    pub fn open(pid: u32) -> Result<Self, Error> {
        let fd = open_pidfd(pid, PidfdFlags::empty()).map_err(|source| Error::OpenProcess { pid, source })?;
        Ok(Self { pid, fd })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended, or may not be signalled.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        send(&self.fd, signal).map_err(|source| Error::Signal { pid: self.pid, source })
    }

    /// Whether it has ended (it may still be a zombie).
    pub fn has_ended(&self) -> bool {
        let mut fds = [nix::poll::PollFd::new(self.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        let Ok(watched) = self.fd.try_clone().and_then(watchable) else { std::future::pending().await };
        if watched.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl AsFd for PidHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads a stream to its end and hands out its lines.
pub async fn pump(stream: pipe::Receiver, mut each: impl FnMut(&[u8], Wholeness)) {
    let mut splitter = Splitter::default();
    read_out(stream, |news| {
        match news {
            News::Bytes(bytes) => splitter.push(bytes, &mut each),
            News::Quiet => splitter.flush(&mut each),
        }
        if splitter.is_waiting() { Waiting::ForAnEnd } else { Waiting::ForBytes }
    })
    .await;
}

/// What a stream gave.
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    Bytes(&'a [u8]),
    /// Nothing for a while, though a line has no end yet; or nothing any more.
    Quiet,
}

/// What the reader of a stream wants to know next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The next bytes, whenever they come.
    ForBytes,
    /// The same, or that they do not come soon.
    ForAnEnd,
}

/// Reads a stream to its end and hands out what it reads.
pub async fn read_out(mut stream: pipe::Receiver, mut each: impl FnMut(News<'_>) -> Waiting) {
    let mut waiting = Waiting::ForBytes;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = match waiting {
            Waiting::ForBytes => stream.read(&mut buffer).await,
            Waiting::ForAnEnd => {
                match tokio::time::timeout(PARTIAL_LINE_PATIENCE, stream.read(&mut buffer)).await {
                    Ok(read) => read,
                    Err(_quiet) => {
                        waiting = each(News::Quiet);
                        continue;
                    }
                }
            }
        };
        match read {
            Ok(0) | Err(_) => break,
            Ok(n) => waiting = each(News::Bytes(buffer.get(..n).unwrap_or_default())),
        }
    }
    each(News::Quiet);
}
