//! The vocabulary: every quantity that has a meaning has a type.
//!
//! Text is parsed into these types where it enters the program and printed where it leaves; in between there are
//! no bare strings and no bare integers. Nothing here does IO.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A text that is not what its type asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseError {
    /// The offending text.
    pub text: String,
    /// What was expected, as a noun phrase.
    pub expected: &'static str,
}

impl ParseError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.to_owned(), expected }
    }
}

/// An error and its causes on one line: `what failed: why: why`. The one place where a chain is printed.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// A position in the write-ahead log, in bytes. Ordered as a number, never as text ("0/9" < "0/10").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// How many bytes `self` is ahead of `other`; 0 when it is behind.
    pub fn bytes_ahead_of(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, "a WAL position such as 0/3000148");
        let (high, low) = text.trim().split_once('/').ok_or_else(wrong)?;
        let half = |s: &str| u32::from_str_radix(s, 16).map_err(|_not_hex| wrong());
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

/// A timeline of the write-ahead log: one more at each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where one timeline ended and the next began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineFork {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Its last valid position; the next timeline's WAL starts here.
    pub end: Lsn,
}

/// The ancestry of a timeline: its forks, oldest first (a `NNNNNNNN.history` file).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineHistory(pub Vec<TimelineFork>);

impl TimelineHistory {
    /// Reads the text of a timeline history file. Lines that are blank or comments are passed over.
    ///
    /// # Errors
    /// A line that does not start with a timeline and a position.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let fork = |line: &str| -> Result<TimelineFork, ParseError> {
            let wrong = || ParseError::new(line, "a line of a timeline history file");
            let mut words = line.split_whitespace();
            let timeline = words.next().and_then(|w| w.parse().ok()).ok_or_else(wrong)?;
            let end = words.next().ok_or_else(wrong)?.parse()?;
            Ok(TimelineFork { timeline: Timeline(timeline), end })
        };
        lines.map(fork).collect::<Result<_, _>>().map(Self)
    }

    /// Where `timeline` ended on the way to this history's timeline; `None` when it is no ancestor.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        self.0.iter().find(|fork| fork.timeline == timeline).map(|fork| fork.end)
    }
}

/// The identity of a database cluster, made by initdb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong =
            || ParseError::new(text, "a database system identifier (a decimal number of 10 digits or more)");
        let id = text.trim().parse().map_err(|_not_a_number| wrong())?;
        if text.trim().len() < 10 { Err(wrong()) } else { Ok(Self(id)) }
    }
}

/// As text: a JSON number of this size is rounded by many readers.
impl Serialize for SystemId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a member is, as it has published it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address: what our own nodes publish.
    Address(IpAddr),
    /// A name, which an administrator may have given a node of Patroni's.
    Name(String),
}

impl Host {
    /// The address, where it is one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name(_) => None,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

impl From<&str> for Host {
    /// Without or with the brackets of an IPv6 address in a URL.
    fn from(text: &str) -> Self {
        let text = text.trim_matches(['[', ']']);
        text.parse().map_or_else(|_no_address| Self::Name(text.to_owned()), Self::Address)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a member as Patroni's keys, REST and `pgherd list` show it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this member's replication slot, by Patroni's mapping.
    pub fn slot_name(&self) -> SlotName {
        let mut slot = String::new();
        for c in self.0.to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '_' => slot.push(c),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", u32::from(other))),
            }
        }
        slot.truncate(63);
        SlotName(slot)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// The name of a replication slot: lower case letters, digits and underscores, at most 63.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotName(pub String);

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The random identity of one volume: 16 hex digits, made at the first start. It is etcd's member name, and it
/// changes when the volume is lost, which is the point (a wiped node is a new member).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lease in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// The store's version of one key: what a compare-and-swap compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub i64);

/// The generation of the coordination store: grows at each ballot, never shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How commits wait for standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// Commits wait for nobody.
    Off,
    /// Commits wait for the chosen standbys, by priority.
    On,
    /// Commits wait for any of the voters (`ANY n`).
    Quorum,
}

/// The three durations that the leader lease lives by. Invariant, enforced where they are read:
/// `loop_wait + 2 * retry_timeout <= ttl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease lasts after its last renewal.
    pub ttl: Duration,
    /// How often the HA loop runs when nothing wakes it.
    pub loop_wait: Duration,
    /// How long one operation on the store is retried.
    pub retry_timeout: Duration,
}

/// The ports of a node, the same on every node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// PostgreSQL.
    pub postgres: u16,
    /// REST, metrics and node-to-node calls.
    pub api: u16,
    /// etcd, for clients.
    pub etcd_client: u16,
    /// etcd, for its peers.
    pub etcd_peer: u16,
}

/// The room on a volume: of the two file systems that hold the data and the WAL (most often they are one) the tighter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes that PostgreSQL's account may still write.
    pub free: u64,
    /// All bytes of the file system.
    pub total: u64,
    /// Whether it can be written at all.
    #[serde(default)]
    pub access: Access,
}

/// How a file system is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// It can be written.
    #[default]
    Writable,
    /// It cannot: the kernel turns a failing disk read-only.
    ReadOnly,
}

impl Room {
    /// Of two file systems the one that ends first.
    #[must_use]
    pub fn tighter(self, other: Self) -> Self {
        let rank = |room: &Self| (room.access == Access::Writable, room.free);
        if rank(&other) < rank(&self) { other } else { self }
    }

    /// For others to read: no more than there is, and by at most a thirty-second part less. To the byte it would be another
    /// value, and news for every member, at each look.
    #[must_use]
    pub fn in_round_numbers(self) -> Self {
        let fraction = self.free.checked_ilog2().map_or(0, |top| top.saturating_sub(5));
        Self { free: self.free >> fraction << fraction, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_in_round_numbers_is_no_more_and_hardly_less() {
        let told = |free| Room { free, total: u64::MAX, access: Access::Writable }.in_round_numbers().free;
        for free in [0, 1, 63, 64, 65, 4_095, 80_123_456_789, u64::MAX] {
            assert!(told(free) <= free && free - told(free) <= free / 32, "{free}");
        }
        assert_eq!(told(80 << 30), told((80 << 30) + (1 << 20)), "a log file less is no news");
    }
}
