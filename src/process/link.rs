//! The link between `node` and `init`: small datagrams of fixed size in one direction, and two alarms that `node` moves.
//!
//! Invariant: telling never blocks and never fails loudly, and what is told again and again (that `node` lives, that the
//! lease was renewed) wakes nobody: it only moves an alarm that `init` sleeps on. A lift of the deadline that is lost costs a
//! restart of PostgreSQL, a move that is lost leaves an earlier deadline standing: both err on the side of safety.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, getsockopt, send, socketpair, sockopt};

use super::alarm::{Alarm, Setting};
use super::signal_number;
use super::tally::Tally;
use crate::clock::{self, Moment};

/// The numbers under which `node` finds its end: the socket, the lease's alarm, the alarm of silence, the count of orphans.
pub const LINK_FDS: [RawFd; 4] = [3, 4, 5, 6];
/// The size of every message.
pub const MESSAGE_BYTES: usize = 16;

/// What `node` tells `init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// If `node` dies, send this signal to this process. SIGQUIT means PostgreSQL: it must not outlive the lease either.
    Watch { pid: u32, signal: i32 },
    /// SIGKILL every child of `init` that is not `node`.
    Sweep,
}

impl Message {
    /// The message as bytes: what it is, a pid, a number.
    pub fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let (tag, pid, number) = match self {
            Self::Watch { pid, signal } => (4_u32, pid, u64::from(signal.unsigned_abs())),
            Self::Sweep => (5, 0, 0),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        let parts = tag.to_le_bytes().into_iter().chain(pid.to_le_bytes()).chain(number.to_le_bytes());
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        bytes
    }

    /// The message in these bytes; `None` when it is none (another version of us, or somebody else's socket).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first_chunk::<4>()?;
        let (pid, rest) = rest.split_first_chunk::<4>()?;
        let number = u64::from_le_bytes(rest.try_into().ok()?);
        let pid = u32::from_le_bytes(*pid);
        match u32::from_le_bytes(*tag) {
            4 => Some(Self::Watch { pid, signal: i32::try_from(number).ok()? }),
            5 => Some(Self::Sweep),
            _ => None,
        }
    }
}

/// `node`'s end of the link to `init`. Cloneable; nothing that is said through it ever blocks.
#[derive(Debug, Clone)]
pub struct InitLink {
    line: Option<Arc<Line>>,
    margin: Arc<Margin>,
}

/// `init`'s end.
#[derive(Debug)]
pub struct InitEnd {
    /// Where messages arrive.
    pub socket: OwnedFd,
    /// Comes when the lease's deadline does; unset while there is none.
    pub lease: Alarm,
    /// Comes when `node` has been silent for too long.
    pub silence: Alarm,
    /// How many orphans were reaped.
    pub reaped: Tally,
}

/// What leads to `init`.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    lease: Alarm,
    silence: Alarm,
    reaped: Tally,
    n_reaped: AtomicU64,
    /// How long `node` may be silent.
    patience: Duration,
    /// The process that `init` knows to be the postmaster.
    armed_for: AtomicU32,
}

/// How close the deadman has come, in nanoseconds of `CLOCK_BOOTTIME`; `u64::MAX` stands for "never".
#[derive(Debug)]
struct Margin {
    deadline: AtomicU64,
    least: AtomicU64,
}

impl Margin {
    const NEVER: u64 = u64::MAX;

    fn unarmed() -> Arc<Self> {
        Arc::new(Self { deadline: AtomicU64::new(Self::NEVER), least: AtomicU64::new(Self::NEVER) })
    }

    /// Replaces the deadline, and notes what was left of the one before.
    fn replace(&self, deadline: u64) {
        let before = self.deadline.swap(deadline, Ordering::Relaxed);
        if before != Self::NEVER {
            self.least.fetch_min(before.saturating_sub(clock::now().0), Ordering::Relaxed);
        }
    }
}

impl InitLink {
    /// The link that `init` left for us; without one (a unit test, `pgherd node` by hand) a link to nobody: a sweep then
    /// does nothing and a warning says that the deadman is absent. Call it once, early: before anything else may have
    /// taken the descriptors' numbers.
    pub fn inherit() -> Self {
        if let Some(line) = inherited() {
            return Self { line: Some(Arc::new(line)), margin: Margin::unarmed() };
        }
        tracing::warn!("not started by `pgherd init`: no deadman, and orphans are nobody's");
        Self::dead()
    }

    /// A link to nobody.
    pub fn dead() -> Self {
        Self { line: None, margin: Margin::unarmed() }
    }

    /// Both ends. `init` will think that `node` is dead when it is silent for longer than `patience`, from now on.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn pair(patience: Duration) -> io::Result<(Self, InitEnd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (node, init) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let (lease, silence, reaped) = (Alarm::new()?, Alarm::new()?, Tally::new()?);
        let end = InitEnd { socket: init, lease, silence, reaped };
        let line = Line {
            socket: node,
            lease: Alarm::of(end.lease.as_fd().try_clone_to_owned()?)?,
            silence: Alarm::of(end.silence.as_fd().try_clone_to_owned()?)?,
            reaped: Tally::of(end.reaped.as_fd().try_clone_to_owned()?),
            n_reaped: AtomicU64::new(0),
            patience,
            armed_for: AtomicU32::new(0),
        };
        line.silence.set(line.heard_now())?;
        Ok((Self { line: Some(Arc::new(line)), margin: Margin::unarmed() }, end))
    }

    /// Our descriptors and the numbers that `node` must find them under.
    pub fn handed_down(&self) -> Vec<(RawFd, RawFd)> {
        let fds = self.line.iter().flat_map(|line| {
            let shared = [line.lease.as_fd(), line.silence.as_fd(), line.reaped.as_fd()];
            std::iter::once(line.socket.as_raw_fd()).chain(shared.map(|fd| fd.as_raw_fd()))
        });
        fds.zip(LINK_FDS).collect()
    }

    /// Tells that `node` is alive. It wakes nobody.
    pub fn beat(&self) {
        let Some(line) = &self.line else { return };
        complain_of(line.silence.set(line.heard_now()), "the alarm of silence was not moved");
    }

    /// Arms (or moves) the deadman: at `deadline`, `init` stops this postmaster unless the deadline has been moved or lifted.
    pub fn arm(&self, postmaster: u32, deadline: Moment) {
        if let Some(line) = &self.line {
            if line.armed_for.load(Ordering::Relaxed) != postmaster {
                let watch = Message::Watch { pid: postmaster, signal: signal_number(Signal::SIGQUIT) };
                let told = if line.tell(watch) { postmaster } else { 0 };
                line.armed_for.store(told, Ordering::Relaxed);
            }
            let setting = Setting { made: clock::now(), at: deadline };
            complain_of(line.lease.set(setting), "the deadman was not armed");
        }
        self.margin.replace(deadline.0);
    }

    /// The least that was ever left of a deadline when it was moved or lifted: how close the deadman has come. `None` as
    /// long as none was.
    pub fn least_margin(&self) -> Option<Duration> {
        let least = self.margin.least.load(Ordering::Relaxed);
        (least != Margin::NEVER).then(|| Duration::from_nanos(least))
    }

    /// How many processes that were nobody's child any more `init` has reaped since this `node` was started.
    pub fn n_reaped(&self) -> u64 {
        self.line.as_ref().map_or(0, |line| {
            let news = line.reaped.take();
            line.n_reaped.fetch_add(news, Ordering::Relaxed) + news
        })
    }

    /// Not primary any more: nothing to stop.
    pub fn disarm(&self) {
        if let Some(line) = &self.line {
            complain_of(line.lease.unset(), "the deadman was not disarmed");
        }
        self.margin.replace(Margin::NEVER);
    }

    /// If `node` dies, `init` sends this signal to this child. A unit says so for every process it starts.
    pub fn watch(&self, pid: u32, signal: Signal) {
        self.tell(Message::Watch { pid, signal: signal_number(signal) });
    }

    /// Asks `init` to SIGKILL every child of its own that is not `node`.
    pub fn sweep(&self) {
        self.tell(Message::Sweep);
    }

    /// Whatever is said says also that `node` is alive.
    fn tell(&self, message: Message) {
        if let Some(line) = &self.line {
            line.tell(message);
            self.beat();
        }
    }
}

impl Line {
    fn tell(&self, message: Message) -> bool {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = send(self.socket.as_raw_fd(), &message.to_bytes(), flags);
        if let Err(error) = sent {
            tracing::warn!(%error, ?message, "init could not be told");
        }
        sent.is_ok()
    }

    fn heard_now(&self) -> Setting {
        let now = clock::now();
        Setting { made: now, at: now + self.patience }
    }
}

/// Not known to happen; the deadline or the alarm that stands is then the earlier one.
fn complain_of(moved: io::Result<()>, what: &str) {
    if let Err(error) = moved {
        tracing::error!(%error, what, "a shared alarm failed");
    }
}

/// The descriptors are ours only if the first is such a socket and our parent made it.
fn inherited() -> Option<Line> {
    let [socket, lease, silence, reaped] = LINK_FDS;
    let socket = taken_over(socket)?;
    let made_by = getsockopt(&socket.as_fd(), sockopt::PeerCredentials).ok()?.pid();
    let kind = getsockopt(&socket.as_fd(), sockopt::SockType).ok()?;
    if kind != SockType::SeqPacket || made_by != nix::unistd::getppid().as_raw() {
        return None;
    }
    let (lease, silence) = (Alarm::of(taken_over(lease)?).ok()?, Alarm::of(taken_over(silence)?).ok()?);
    let reaped = Tally::of(taken_over(reaped)?);
    // `init` has set it before our first instruction.
    let setting = silence.setting()?;
    let patience = setting.made.until(setting.at);
    let (armed_for, n_reaped) = (AtomicU32::new(0), AtomicU64::new(0));
    Some(Line { socket, lease, silence, reaped, n_reaped, patience, armed_for })
}

/// A copy of a descriptor that we were born with. The original stays open, but no child may have it.
#[expect(unsafe_code, reason = "the descriptors' numbers are the contract between init and node")]
fn taken_over(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl on a number that may be closed fails and nothing else. Nobody else owns it: `init` reserved it.
    let copy = unsafe { nix::libc::fcntl(number, nix::libc::F_DUPFD_CLOEXEC, number) };
    if copy < 0 {
        return None;
    }
    // SAFETY: the call above has just made this descriptor, for us alone.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    // SAFETY: it was just copied, so it is open.
    let original = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl(original, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(copy)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::recv;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn messages_survive_the_wire_and_garbage_does_not() {
        for message in [Message::Watch { pid: 9, signal: 3 }, Message::Sweep] {
            assert_eq!(Message::from_bytes(&message.to_bytes()), Some(message));
        }
        assert_eq!(Message::from_bytes(&[9; MESSAGE_BYTES]), None);
        assert_eq!(Message::from_bytes(&[1]), None);
    }

    #[test]
    fn the_least_margin_is_kept() {
        let link = InitLink::dead();
        assert_eq!(link.least_margin(), None);
        link.arm(5, clock::now() + MINUTE);
        assert_eq!(link.least_margin(), None);
        link.arm(5, clock::now() + MINUTE * 2);
        assert!(link.least_margin().is_some_and(|left| left <= MINUTE && left > MINUTE / 2));
        link.disarm();
        link.arm(5, Moment(1));
        link.disarm();
        assert_eq!(link.least_margin(), Some(Duration::ZERO), "it was late");
    }

    #[test]
    fn a_link_never_blocks_when_init_does_not_read() {
        let (link, init) = InitLink::pair(MINUTE).unwrap();
        for _ in 0..100_000 {
            link.sweep();
        }
        let mut bytes = [0; 64];
        let n = recv(init.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
        assert_eq!(Message::from_bytes(&bytes[..n]), Some(Message::Sweep));
        drop(init);
        link.beat();
        InitLink::dead().sweep();
    }

    #[test]
    fn orphans_are_counted_across_the_link() {
        let (link, init) = InitLink::pair(MINUTE).unwrap();
        assert_eq!(link.n_reaped(), 0);
        for _ in 0..3 {
            init.reaped.add_one();
        }
        assert_eq!((link.n_reaped(), link.n_reaped()), (3, 3));
        init.reaped.add_one();
        assert_eq!((link.n_reaped(), InitLink::dead().n_reaped()), (4, 0));
    }

    #[test]
    fn a_renewal_moves_the_alarm_and_says_nothing() {
        let (link, init) = InitLink::pair(MINUTE).unwrap();
        let read = || {
            let mut bytes = [0; 64];
            let n = recv(init.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
            Message::from_bytes(&bytes[..n])
        };
        assert_eq!(init.lease.setting(), None);
        link.arm(7, clock::now() + MINUTE);
        assert_eq!(read(), Some(Message::Watch { pid: 7, signal: 3 }), "the postmaster is named");
        for _ in 0..10 {
            link.arm(7, clock::now() + 2 * MINUTE);
            link.beat();
        }
        assert_eq!(read(), None);
        let left = |setting: Option<Setting>| clock::now().until(setting.unwrap().at);
        assert!(left(init.lease.setting()) > MINUTE);
        assert!(left(init.silence.setting()) > MINUTE / 2);
        link.disarm();
        assert_eq!(init.lease.setting(), None);
    }
}
