//! What a service prints, read by a thread of its own: the runtime has databases to decide about, not lines to look at.
//!
//! Invariant: a service that prints a line at a time does not wake us a line at a time. While it is busy the thread pauses
//! for a moment between reads, and its pipes are big enough for what comes meanwhile; what comes after a quiet time is read
//! at once. The thread ends when nobody holds the other ends any more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use super::child::{News, Waiting};
use crate::clock;
use crate::log::Stream;

/// A line without an end is logged after this long: PostgreSQL writes a long message in several pieces.
const PARTIAL_LINE_PATIENCE: u8 = 100;
/// One read: all that a pipe can hold.
const READ_BYTES: usize = 256 * 1024;
/// The size that the pipes are given, if the kernel lets us.
const PIPE_BYTES: i32 = 1024 * 1024;
/// Reads that follow one another this closely are those of a busy service,
const BUSY: Duration = Duration::from_millis(2);
/// which is given this long to print more. A full pipe takes several times as long to fill at the rate of memory.
const PAUSE: Duration = Duration::from_micros(500);
/// The reader formats lines, some of which are JSON, which may be nested as deep as the parser allows: 128 times some kilobytes
/// without optimisation. What is not used is no memory.
const STACK: usize = 2 * 1024 * 1024;

/// What looks at the bytes of one stream.
pub type Look = Box<dyn FnMut(News<'_>) -> Waiting + Send>;

/// One stream that is being read.
struct Source {
    pipe: OwnedFd,
    look: Look,
    waiting: Waiting,
}

/// Reads both streams of a child to their ends on a thread. The receiver hears when that is done.
///
/// # Errors
/// The thread could not be started.
pub fn read_aside(
    name: &str,
    (stdout, stderr): (OwnedFd, OwnedFd),
    mut look: impl FnMut(Stream) -> Look,
) -> io::Result<oneshot::Receiver<()>> {
    let mut sources = Vec::new();
    for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // Best effort: there is a quota for every account.
        fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).ok();
        sources.push(Source { pipe, look: look(stream), waiting: Waiting::ForBytes });
    }
    let (done, heard) = oneshot::channel();
    // The kernel keeps fifteen bytes of a thread's name.
    let thread = std::thread::Builder::new().name(format!("log-{name}")).stack_size(STACK);
    thread.spawn(move || {
        read_all(sources);
        // Nobody waits when the unit has been dropped.
        done.send(()).ok();
    })?;
    Ok(heard)
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, not a worker of the runtime")]
fn read_all(mut sources: Vec<Source>) {
    let mut buffer = vec![0; READ_BYTES];
    let mut last = clock::Moment::default();
    while !sources.is_empty() {
        let ready = wait(&sources);
        let mut emptied = true;
        // From the back, so that one that has ended can be taken out.
        for (place, is_ready) in ready.into_iter().enumerate().rev() {
            let Some(source) = sources.get_mut(place) else { continue };
            match if is_ready { source.take(&mut buffer) } else { source.rest() } {
                Progress::Ended => drop(sources.swap_remove(place)),
                Progress::More => emptied = false,
                Progress::Emptied => {}
            }
        }
        let now = clock::now();
        if emptied && now.since(last) < BUSY {
            std::thread::sleep(PAUSE);
        }
        last = now;
    }
}

/// Waits until one of them has something; or, if a line without an end is waiting, for a while.
fn wait(sources: &[Source]) -> Vec<bool> {
    let mut fds: Vec<_> =
        sources.iter().map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN)).collect();
    let open_line = sources.iter().any(|source| source.waiting == Waiting::ForAnEnd);
    let patience = if open_line { PollTimeout::from(PARTIAL_LINE_PATIENCE) } else { PollTimeout::NONE };
    // An interrupted wait is one that has found nothing; a thread has no other reason to fail.
    poll(&mut fds, patience).unwrap_or_default();
    fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect()
}

/// What came of a look at a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Emptied,
    /// The buffer was too small for what there was.
    More,
    Ended,
}

impl Source {
    /// Nothing has come.
    fn rest(&mut self) -> Progress {
        if self.waiting == Waiting::ForAnEnd {
            self.waiting = (self.look)(News::Quiet);
        }
        Progress::Emptied
    }

    /// Something has come.
    fn take(&mut self, buffer: &mut [u8]) -> Progress {
        match nix::unistd::read(&self.pipe, buffer) {
            Ok(0) => {
                (self.look)(News::Quiet);
                Progress::Ended
            }
            Ok(n) => {
                self.waiting = (self.look)(News::Bytes(buffer.get(..n).unwrap_or_default()));
                if n == buffer.len() { Progress::More } else { Progress::Emptied }
            }
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => Progress::Emptied,
            Err(_broken) => Progress::Ended,
        }
    }
}
