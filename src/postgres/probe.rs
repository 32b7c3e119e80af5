//! Signs of life of a running server, asked from outside of it: does the postmaster still take connections, does a
//! commit still reach the disk?
//!
//! The connection that the status is read over says neither: its backend answers while the postmaster stands still, and
//! reads from memory while the disk does. So a [`Check::Knock`] makes a new connection and goes no further than the first byte
//! that a fresh backend sends (a millisecond, and no slot), and a [`Check::Write`] makes a whole session and commits one
//! small record. The record is a logical message: no table, no lock, nothing to clean up, ignored by every output plugin
//! that has not asked for messages; the session commits locally, so a missing synchronous standby is no dead disk.
//!
//! What is absent: what follows from an answer or from none. That is `ha`'s.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use super::{Local, Shared, room, sql};
use crate::supervisor::UnitState;
use crate::types::Room;

/// The question "do you speak TLS?": a backend answers it before it has looked at anything else.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// One tiny commit. It takes a transaction id, which is what makes the server flush it before it answers.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'pgherd', '')";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Whether the postmaster still makes backends.
    Knock,
    /// Whether a new session can still commit.
    Write,
    /// How much room is left on the volume.
    Measure,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pulse {
    /// A backend was made.
    Answered,
    /// A commit is on disk.
    Wrote,
    /// The server said why not, and it is nothing that another node would do better: it is starting or ending, every slot is
    /// taken, or the transaction ids have run out.
    Declined(String),
    /// The server said that its disk fails.
    Refused(String),
    /// A connection that was not answered, or a commit that did not end, in time.
    Silent(Posture),
    /// The room on the volume.
    Measured(Room),
    /// There is nothing to ask any more.
    Gone,
}

/// What the postmaster's process is doing, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posture {
    /// It runs, sleeps or waits.
    Alive,
    /// It was stopped by a signal: it will answer nobody until somebody continues it.
    Stopped,
}

/// See [`super::Postgres::check`].
pub(super) async fn check(shared: &Shared, what: Check, patience: Duration) -> Pulse {
    match what {
        Check::Measure => room::measure(shared, patience).await,
        Check::Knock => ask(shared, patience, knock(shared)).await,
        Check::Write => ask(shared, patience, write(shared, patience)).await,
    }
}

/// A question to the server, while there is one.
async fn ask(shared: &Shared, patience: Duration, question: impl Future<Output = Option<Pulse>>) -> Pulse {
    let pid = match *shared.unit.state().borrow() {
        UnitState::Running { pid, .. } => pid,
        UnitState::Down { .. }
        | UnitState::Stopping { .. }
        | UnitState::Draining { .. }
        | UnitState::Backoff { .. } => return Pulse::Gone,
    };
    match timeout(patience, question).await {
        Ok(Some(pulse)) => pulse,
        Ok(None) | Err(_) => Pulse::Silent(posture(pid).await),
    }
}

/// `None` when nobody took the connection.
async fn knock(shared: &Shared) -> Option<Pulse> {
    let config = &shared.config;
    match config.local() {
        Local::Socket(dir) => {
            let path = dir.join(format!(".s.PGSQL.{}", config.port));
            ask_for_tls(UnixStream::connect(&path).await).await
        }
        Local::Tcp(host) => ask_for_tls(TcpStream::connect((host.as_str(), config.port)).await).await,
    }
}

async fn ask_for_tls<S: AsyncRead + AsyncWrite + Unpin>(connected: std::io::Result<S>) -> Option<Pulse> {
    let mut socket = match connected {
        Ok(socket) => socket,
        // The queue of connections that nobody has accepted is full.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
        Err(_) => return Some(Pulse::Gone),
    };
    let mut byte = [0];
    match socket.write_all(&SSL_REQUEST).await {
        // An end without a byte is an answer too: somebody had to take the connection to close it.
        Ok(()) => socket.read(&mut byte).await.map(|_n| Pulse::Answered).ok(),
        Err(_) => Some(Pulse::Gone),
    }
}

async fn write(shared: &Shared, limit: Duration) -> Option<Pulse> {
    let connected = sql::parameters(&shared.config, limit).connect(NoTls).await;
    let (client, connection) = match connected {
        Ok(connected) => connected,
        Err(error) => return pulse_of(&error),
    };
    let written = async { client.simple_query(WRITE).await.map(|_rows| ()) };
    let result = tokio::select! {
        result = written => result,
        ended = connection => ended,
    };
    match result {
        Ok(()) => Some(Pulse::Wrote),
        Err(error) => pulse_of(&error),
    }
}

fn pulse_of(error: &tokio_postgres::Error) -> Option<Pulse> {
    let said = error.as_db_error()?;
    let words = said.message().to_owned();
    let of_the_disk = [SqlState::DISK_FULL, SqlState::IO_ERROR].contains(said.code());
    // A commit that took too long and was cancelled by the server itself is no answer.
    if *said.code() == SqlState::QUERY_CANCELED {
        return None;
    }
    Some(if of_the_disk { Pulse::Refused(words) } else { Pulse::Declined(words) })
}

/// From `/proc/<pid>/stat`: "pid (name) state ...". The name may hold anything, parentheses included.
async fn posture(pid: u32) -> Posture {
    let stat = tokio::fs::read_to_string(format!("/proc/{pid}/stat")).await.unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    match state {
        Some('T') => Posture::Stopped,
        Some(_) | None => Posture::Alive,
    }
}
