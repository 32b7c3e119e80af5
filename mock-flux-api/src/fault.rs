//! The ways in which the real API has been seen to fail.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Longer than any sensible timeout of a client: such a request is cut by the client or not at all.
const STALL: Duration = Duration::from_secs(20);

/// One way to break the answers. The first six break the list and the specification alike, the others only the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `none`: all is well.
    None,
    /// `error`: `status: error` with HTTP 200, as for a failed database.
    Error,
    /// `html`: a page of a gateway, with HTTP 200.
    Html,
    /// `truncated`: JSON that ends in the middle.
    Truncated,
    /// `http500`: a page with HTTP 500.
    Http500,
    /// `stall` (20 s) or `stall:SECONDS`: the right answer, too late.
    Stall(Duration),
    /// `huge`: valid JSON of more than 10 MB.
    Huge,
    /// `empty`: a list without rows, as from a node that is still syncing.
    Empty,
    /// `duplicates`: every row twice, with and without a port.
    Duplicates,
    /// `ipv6`: two more rows with IPv6 addresses, one of them with a port.
    Ipv6,
    /// `without:ADDRESS`: the list lacks one address.
    Without(IpAddr),
    /// `partial` (1) or `partial:N`: only the first N rows.
    Partial(usize),
}

/// A text that names no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no fault: expected none, error, html, truncated, http500, stall[:SECONDS], empty, huge, \
     duplicates, ipv6, without:ADDRESS or partial[:N]"
)]
pub struct NotAFault(String);

impl FromStr for Fault {
    type Err = NotAFault;

    fn from_str(text: &str) -> Result<Self, NotAFault> {
        let (kind, detail) = text.split_once(':').map_or((text, None), |(kind, detail)| (kind, Some(detail)));
        let parsed = match (kind, detail) {
            ("none", None) => Some(Self::None),
            ("error", None) => Some(Self::Error),
            ("html", None) => Some(Self::Html),
            ("truncated", None) => Some(Self::Truncated),
            ("http500", None) => Some(Self::Http500),
            ("stall", None) => Some(Self::Stall(STALL)),
            ("stall", Some(seconds)) => seconds.parse().ok().map(Duration::from_secs).map(Self::Stall),
            ("huge", None) => Some(Self::Huge),
            ("empty", None) => Some(Self::Empty),
            ("duplicates", None) => Some(Self::Duplicates),
            ("ipv6", None) => Some(Self::Ipv6),
            ("without", Some(ip)) => ip.parse().ok().map(Self::Without),
            ("partial", None) => Some(Self::Partial(1)),
            ("partial", Some(n)) => n.parse().ok().map(Self::Partial),
            _ => None,
        };
        parsed.ok_or_else(|| NotAFault(text.to_owned()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Error => f.write_str("error"),
            Self::Html => f.write_str("html"),
            Self::Truncated => f.write_str("truncated"),
            Self::Http500 => f.write_str("http500"),
            Self::Stall(time) => write!(f, "stall:{}", time.as_secs()),
            Self::Huge => f.write_str("huge"),
            Self::Empty => f.write_str("empty"),
            Self::Duplicates => f.write_str("duplicates"),
            Self::Ipv6 => f.write_str("ipv6"),
            Self::Without(ip) => write!(f, "without:{ip}"),
            Self::Partial(n) => write!(f, "partial:{n}"),
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_read_as_it_is_printed() {
        let all = "none error html truncated http500 stall:20 huge empty duplicates ipv6 without:127.0.12.1 partial:2";
        for text in all.split(' ') {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        assert_eq!("stall".parse(), Ok(Fault::Stall(STALL)));
        assert_eq!("partial".parse(), Ok(Fault::Partial(1)));
    }

    #[test]
    fn what_is_no_fault_is_refused_with_the_list_of_faults() {
        for text in ["", "fire", "without", "without:home", "none:1", "partial:x"] {
            let refused = text.parse::<Fault>().unwrap_err().to_string();
            assert!(refused.contains("without:ADDRESS"), "{refused}");
        }
    }
}
