//! `STANDBY_*`: the cluster that a new one follows.

use super::parse;
use super::reader::Reader;
use crate::ha::remote::{Remote, is_host, is_slot};
use crate::types::{Host, SlotName};

/// Whom a new cluster follows.
pub(super) fn remote(r: &mut Reader) -> Option<Remote> {
    let host = r.parsed("STANDBY_HOST", host);
    let port = r.parsed("STANDBY_PORT", parse::port);
    let slot = r.parsed("STANDBY_PRIMARY_SLOT_NAME", slot);
    if host.is_none() && (port.is_some() || slot.is_some()) {
        r.wrong("STANDBY_HOST", "not set; expected a server, because another variable speaks of one");
    }
    let host = host?;
    Some(Remote { host: Some(host), port: port.unwrap_or(5432), slot })
}

fn host(text: &str) -> Result<Host, String> {
    if is_host(text) {
        return Ok(Host::from(text));
    }
    Err("a name or an address, or several with commas between them".to_owned())
}

fn slot(text: &str) -> Result<SlotName, String> {
    if is_slot(text) {
        return Ok(SlotName(text.to_owned()));
    }
    Err("the name of a slot: lower-case letters, digits and underscores".to_owned())
}
