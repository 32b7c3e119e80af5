//! The one lease of this node: what is known of it, and a renewal whose worth can be proven.
//!
//! The lease is attached to `members/<me>` and, when leading, to `leader`. etcd does not extend it when a key is
//! written: if only the writes got through, the key would vanish under a leader that believes in its renewals. So a
//! leader's right ends TTL after the *older* of two moments: the last write, and the last *proven* keepalive.
//!
//! **When is a keepalive proven?** Its answer does not come through consensus: a deposed leader that has not noticed
//! yet answers too. What helps is that a newly elected etcd leader gives every lease its full
//! TTL again. Let keepalive and transaction be sent to the same member, both after `sent`; let the keepalive's header
//! (which etcd fills in *before* it forwards the keepalive) and the transaction's header (filled in after the
//! transaction was applied) carry the same raft term T. Then the leader that answered the keepalive was of term T
//! or later. If it was still the rightful one, the lease runs from after `sent`. If a leader of a later term had
//! been elected by then, the transaction, applied by a member that is still in term T, had been committed before that
//! election; so the election was after `sent`, and it restarted the lease. Either way the lease ends no earlier than
//! `sent` + TTL. With different terms nothing follows, and the moment of the last proof stands.

use std::time::Duration;

use etcd_client::{Client, Txn, TxnResponse};
use tokio::time::timeout;
use tracing::debug;

use super::link::Stamp;
use crate::clock::{self, Moment};

/// The longest a keepalive may hold up a transaction that is already done: less than what is left of an attempt.
const KEEPALIVE: Duration = Duration::from_millis(1000);

/// What is known of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    /// Its id.
    pub id: i64,
    /// What it was granted for.
    pub ttl: Duration,
    /// It ends no earlier than this plus its TTL. Starts with the moment before it was asked for: a grant goes
    /// through consensus.
    pub proven: Moment,
    /// The last keepalive that was answered, proven or not.
    pub kept: Moment,
}

/// What a keepalive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Answered by way of a member in this term.
    Alive(Stamp),
    /// The lease is gone.
    Lost,
    /// No answer.
    Unknown,
}

/// A transaction with a keepalive beside it.
#[derive(Debug)]
pub(super) struct Guarded {
    /// Before either was sent.
    pub sent: Moment,
    /// The transaction's reply.
    pub reply: TxnResponse,
    /// The keepalive's.
    pub kept: Kept,
}

impl Lease {
    /// What is known after a keepalive beside a transaction, both sent at `sent`, whose reply came from `applied`;
    /// `None` when the lease is gone.
    pub(super) fn after(self, sent: Moment, kept: Kept, applied: Stamp) -> Option<Self> {
        match kept {
            Kept::Alive(stamp) if stamp == applied => {
                Some(Self { proven: self.proven.max(sent), kept: self.kept.max(sent), ..self })
            }
            Kept::Alive(_unproven) => Some(Self { kept: self.kept.max(sent), ..self }),
            Kept::Unknown => Some(self),
            Kept::Lost => None,
        }
    }
}

/// Sends transaction and keepalive together.
pub(super) async fn guarded(
    mut client: Client,
    txn: Txn,
    id: i64,
) -> Result<(Guarded, Stamp), etcd_client::Error> {
    let keeper = client.clone();
    let sent = clock::now();
    let keep = async { Ok(keep_alive(keeper, id).await) };
    let (reply, kept) = tokio::try_join!(client.txn(txn), keep)?;
    let stamp = Stamp::of(reply.header());
    Ok((Guarded { sent, reply, kept }, stamp))
}

/// One keepalive. It takes two messages: the library keeps the header of the first answer to itself.
pub(super) async fn keep_alive(client: Client, id: i64) -> Kept {
    let exchange = async {
        let (mut keeper, mut stream) = client.lease_client().keep_alive(id).await?;
        keeper.keep_alive().await?;
        stream.message().await
    };
    match timeout(KEEPALIVE, exchange).await {
        Ok(Ok(Some(reply))) if reply.ttl() > 0 => Kept::Alive(Stamp::of(reply.header())),
        Ok(Ok(Some(_expired))) => Kept::Lost,
        Ok(Err(etcd_client::Error::LeaseKeepAliveError(why))) if why == "lease not found" => Kept::Lost,
        Ok(Ok(None)) => Kept::Unknown,
        Ok(Err(error)) => {
            debug!(%error, "the lease could not be kept alive");
            Kept::Unknown
        }
        Err(_elapsed) => Kept::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_keepalive_of_the_same_term_is_proof() {
        let lease = Lease { id: 1, ttl: Duration::from_secs(10), proven: Moment(5), kept: Moment(5) };
        let term = |term| Stamp { cluster: 1, term };
        let after = |kept| lease.after(Moment(9), kept, term(3));
        assert_eq!(after(Kept::Alive(term(3))), Some(Lease { proven: Moment(9), kept: Moment(9), ..lease }));
        assert_eq!(after(Kept::Alive(term(2))), Some(Lease { kept: Moment(9), ..lease }));
        assert_eq!(after(Kept::Unknown), Some(lease));
        assert_eq!(after(Kept::Lost), None);
    }
}
