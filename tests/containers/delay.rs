//! A slow network: every packet that a container receives waits a while. By a queue that iptables fills (NFQUEUE) and a thread
//! here empties, because netem is missing in many kernels. Received and not sent packets, since one that waits on its way
//! out still counts against its socket and throttles it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

use super::engine::docker;
use super::fault::in_network;

/// The number of the queue; the container has no other.
const QUEUE: u16 = 7;
const RULE: [&str; 8] = ["!", "-i", "lo", "-j", "NFQUEUE", "--queue-num", "7", "--queue-bypass"];
/// So often it is looked whether it is over.
const LOOK: Duration = Duration::from_millis(50);
/// Some 400 Mbit/s that wait for 100 ms.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A container whose packets are late, until this is dropped.
pub(crate) struct Slow {
    container: String,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Slow {
    /// Begins; `Err` when the kernel has no such queues.
    pub(crate) fn begin(container: &str, delay: Duration) -> io::Result<Self> {
        let pid = docker(&["inspect", "-f", "{{.State.Pid}}", container]);
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        let over = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let until = Arc::clone(&over);
        // A namespace is a thread's own, so this one is never given back.
        let thread = std::thread::spawn(move || {
            let queue =
                setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| open());
            match queue {
                Ok(queue) => {
                    ready.send(Ok(())).ok();
                    hold(&queue, delay, &until)
                }
                Err(error) => ready.send(Err(error)).map_err(io::Error::other),
            }
        });
        is_ready.recv().map_err(io::Error::other)??;
        in_network(container, &[&["iptables", "-A", "INPUT"], RULE.as_slice()].concat());
        Ok(Self { container: container.to_owned(), over, thread: Some(thread) })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        in_network(&self.container, &[&["iptables", "-D", "INPUT"], RULE.as_slice()].concat());
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap().unwrap();
        }
    }
}

/// The numbers of `linux/netfilter/nfnetlink_queue.h`.
mod nfqueue {
    pub(super) const SUBSYSTEM: u16 = 3 << 8;
    pub(super) const PACKET: u16 = SUBSYSTEM;
    pub(super) const VERDICT: u16 = SUBSYSTEM | 1;
    pub(super) const CONFIG: u16 = SUBSYSTEM | 2;
    pub(super) const CONFIG_COMMAND: u16 = 1;
    pub(super) const CONFIG_COPY: u16 = 2;
    pub(super) const CONFIG_LENGTH: u16 = 3;
    pub(super) const PACKET_HEADER: u16 = 1;
    pub(super) const VERDICT_HEADER: u16 = 2;
    pub(super) const REQUEST: u16 = 1;
    pub(super) const ACKNOWLEDGE: u16 = 4;
}

/// Takes the queue of this thread's namespace.
fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let queue = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(queue.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&queue, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    // Bind; of each packet its number only; room for many.
    configure(&queue, nfqueue::CONFIG_COMMAND, &[1, 0, 0, 0])?;
    configure(&queue, nfqueue::CONFIG_COPY, &[0, 0, 0, 0, 1])?;
    configure(&queue, nfqueue::CONFIG_LENGTH, &20_000_u32.to_be_bytes())?;
    Ok(queue)
}

fn configure(queue: &OwnedFd, kind: u16, value: &[u8]) -> io::Result<()> {
    let flags = nfqueue::REQUEST | nfqueue::ACKNOWLEDGE;
    send(queue.as_raw_fd(), &message(nfqueue::CONFIG, flags, kind, value), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let n = recv(queue.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let errno = answer.get(16..20).filter(|_| n >= 20).and_then(|bytes| bytes.try_into().ok());
    match errno.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::other("a short answer of the kernel")),
    }
}

/// A message with one attribute.
fn message(kind: u16, flags: u16, attribute: u16, value: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0];
    body.extend(QUEUE.to_be_bytes());
    body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
    body.extend(attribute.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
    let mut message = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Lets every packet through when its time has come, in order.
fn hold(queue: &OwnedFd, delay: Duration, over: &AtomicBool) -> io::Result<()> {
    let mut held: VecDeque<(Instant, [u8; 4])> = VecDeque::new();
    let mut buffer = vec![0; 1 << 16];
    while !over.load(Ordering::Relaxed) || !held.is_empty() {
        let now = Instant::now();
        while held.front().is_some_and(|(due, _)| *due <= now) {
            let (_, packet) = held.pop_front().unwrap();
            // Accepted.
            let verdict = [[0, 0, 0, 1], packet].concat();
            let verdict = message(nfqueue::VERDICT, nfqueue::REQUEST, nfqueue::VERDICT_HEADER, &verdict);
            send(queue.as_raw_fd(), &verdict, MsgFlags::empty())?;
        }
        let pause = held.front().map_or(LOOK, |(due, _)| due.saturating_duration_since(now));
        // Rounded up: poll has milliseconds, and a packet is rather late than the loop is busy.
        let pause = u16::try_from(pause.min(LOOK).as_millis() + 1).unwrap();
        let mut wait = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
        poll(&mut wait, PollTimeout::from(pause))?;
        let due = Instant::now() + delay;
        match recv(queue.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => held.extend(packets(&buffer[..n]).into_iter().map(|packet| (due, packet))),
            // Some were lost on the way here: the network lost them.
            Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The numbers of the packets that these messages tell of.
fn packets(mut messages: &[u8]) -> Vec<[u8; 4]> {
    let mut found = Vec::new();
    while let Some(header) = messages.first_chunk::<16>() {
        let length = u32::from_ne_bytes(header[..4].try_into().unwrap()) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().unwrap());
        let Some(message) = messages.get(..length) else { break };
        // Past both headers, the first attribute is the packet's.
        if kind == nfqueue::PACKET
            && let Some([a, b, c, d, e, f, g, h]) = message.get(20..28)
            && u16::from_ne_bytes([*c, *d]) & 0x7fff == nfqueue::PACKET_HEADER
            && u16::from_ne_bytes([*a, *b]) >= 8
        {
            found.push([*e, *f, *g, *h]);
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}
