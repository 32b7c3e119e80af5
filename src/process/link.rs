//! The link between `node` and `init`: small datagrams of fixed size, in one direction.
//!
//! Invariant: sending never blocks and never fails loudly. A lost `Disarm` costs a restart of PostgreSQL, a lost `Arm`
//! leaves an earlier deadline standing: both err on the side of safety.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, getsockopt, send, socketpair, sockopt};

use super::signal_number;
use crate::clock::{self, Moment};

/// The number under which `node` finds its end.
pub const LINK_FD: i32 = 3;
/// The size of every message.
pub const MESSAGE_BYTES: usize = 16;

/// What `node` tells `init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// `node` is alive (every other message says so too).
    Beat,
    /// Stop this process at the deadline unless told otherwise before.
    Arm { pid: u32, deadline: Moment },
    /// There is no deadline any more.
    Disarm,
    /// If `node` dies, send this signal to this process.
    Watch { pid: u32, signal: i32 },
    /// SIGKILL every child of `init` that is not `node`.
    Sweep,
}

impl Message {
    /// The message as bytes: what it is, a pid, a number.
    pub fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let (tag, pid, number) = match self {
            Self::Beat => (1_u32, 0, 0),
            Self::Arm { pid, deadline } => (2, pid, deadline.0),
            Self::Disarm => (3, 0, 0),
            Self::Watch { pid, signal } => (4, pid, u64::from(signal.unsigned_abs())),
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
            1 => Some(Self::Beat),
            2 => Some(Self::Arm { pid, deadline: Moment(number) }),
            3 => Some(Self::Disarm),
            4 => Some(Self::Watch { pid, signal: i32::try_from(number).ok()? }),
            5 => Some(Self::Sweep),
            _ => None,
        }
    }
}

/// `node`'s end of the link to `init`. Cloneable; every message is one write that never blocks.
#[derive(Debug, Clone)]
pub struct InitLink {
    socket: Option<Arc<OwnedFd>>,
    margin: Arc<Margin>,
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
    /// taken the descriptor's number.
    pub fn inherit() -> Self {
        if let Some(socket) = inherited() {
            return Self { socket: Some(Arc::new(socket)), margin: Margin::unarmed() };
        }
        tracing::warn!("not started by `pgherd init`: no deadman, and orphans are nobody's");
        Self::dead()
    }

    /// A link to nobody.
    pub fn dead() -> Self {
        Self { socket: None, margin: Margin::unarmed() }
    }

    /// Both ends: ours, and `init`'s (for `init`, and for tests which play it).
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn pair() -> std::io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self { socket: Some(Arc::new(ours)), margin: Margin::unarmed() }, theirs))
    }

    /// The number of our end, for handing it down at a fork.
    pub fn raw_fd(&self) -> Option<i32> {
        self.socket.as_ref().map(|socket| socket.as_raw_fd())
    }

    /// Tells that `node` is alive.
    pub fn beat(&self) {
        self.tell(Message::Beat);
    }

    /// Arms (or moves) the deadman: at `deadline`, `init` stops this postmaster unless told otherwise before.
    pub fn arm(&self, postmaster: u32, deadline: Moment) {
        self.tell(Message::Arm { pid: postmaster, deadline });
        self.margin.replace(deadline.0);
    }

    /// The least that was ever left of a deadline when it was moved or lifted: how close the deadman has come. `None` as
    /// long as none was.
    pub fn least_margin(&self) -> Option<Duration> {
        let least = self.margin.least.load(Ordering::Relaxed);
        (least != Margin::NEVER).then(|| Duration::from_nanos(least))
    }

    /// Not primary any more: nothing to stop.
    pub fn disarm(&self) {
        self.tell(Message::Disarm);
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

    fn tell(&self, message: Message) {
        let Some(socket) = &self.socket else { return };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if let Err(error) = send(socket.as_raw_fd(), &message.to_bytes(), flags) {
            tracing::warn!(%error, ?message, "init could not be told");
        }
    }
}

/// The descriptor is ours only if it is such a socket and our parent made it.
#[expect(unsafe_code, reason = "the descriptor's number is the contract between init and node")]
fn inherited() -> Option<OwnedFd> {
    // SAFETY: fcntl on a number that may be closed fails and nothing else. Nobody else owns it: `init` reserved it.
    let copy = unsafe { nix::libc::fcntl(LINK_FD, nix::libc::F_DUPFD_CLOEXEC, LINK_FD) };
    if copy < 0 {
        return None;
    }
    // SAFETY: the call above has just made this descriptor, for us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(copy) };
    let made_by = getsockopt(&socket.as_fd(), sockopt::PeerCredentials).ok()?.pid();
    let kind = getsockopt(&socket.as_fd(), sockopt::SockType).ok()?;
    if kind != SockType::SeqPacket || made_by != nix::unistd::getppid().as_raw() {
        return None;
    }
    // The original stays open, but no child may have it. It was just copied, so this cannot fail.
    // SAFETY: as above.
    let original = unsafe { std::os::fd::BorrowedFd::borrow_raw(LINK_FD) };
    fcntl(original, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(socket)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::recv;

    use super::*;

    #[test]
    fn messages_survive_the_wire_and_garbage_does_not() {
        let messages = [
            Message::Beat,
            Message::Arm { pid: 7, deadline: Moment(u64::MAX - 1) },
            Message::Disarm,
            Message::Watch { pid: 9, signal: 3 },
            Message::Sweep,
        ];
        for message in messages {
            assert_eq!(Message::from_bytes(&message.to_bytes()), Some(message));
        }
        assert_eq!(Message::from_bytes(&[9; MESSAGE_BYTES]), None);
        assert_eq!(Message::from_bytes(&[1]), None);
    }

    #[test]
    fn the_least_margin_is_kept() {
        let link = InitLink::dead();
        assert_eq!(link.least_margin(), None);
        let minute = Duration::from_secs(60);
        link.arm(5, clock::now() + minute);
        assert_eq!(link.least_margin(), None);
        link.arm(5, clock::now() + minute * 2);
        assert!(link.least_margin().is_some_and(|left| left <= minute && left > minute / 2));
        link.disarm();
        link.arm(5, Moment(1));
        link.disarm();
        assert_eq!(link.least_margin(), Some(Duration::ZERO), "it was late");
    }

    #[test]
    fn a_link_never_blocks_when_init_does_not_read() {
        let (link, init) = InitLink::pair().unwrap();
        link.arm(5, Moment(6));
        for _ in 0..100_000 {
            link.beat();
        }
        let mut bytes = [0; 64];
        let n = recv(init.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
        assert_eq!(Message::from_bytes(&bytes[..n]), Some(Message::Arm { pid: 5, deadline: Moment(6) }));
        drop(init);
        link.beat();
        InitLink::dead().sweep();
    }
}
