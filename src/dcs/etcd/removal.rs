//! The end of a scope: every key beneath its prefix goes in one transaction, unless somebody has come back meanwhile.

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, Txn, TxnOp, TxnOpResponse};

use super::{Answer, EtcdStore, as_get, refused};
use crate::dcs::rows::MEMBERS;
use crate::dcs::{Error, Snapshot};

impl EtcdStore {
    /// How many keys lie beneath the scope, whatever they say.
    ///
    /// # Errors
    /// As every call of a store.
    pub async fn n_keys(&self) -> Result<i64, Error> {
        let count = GetOptions::new().with_prefix().with_count_only();
        let reads = Txn::new().and_then([TxnOp::get(self.prefix.as_str(), Some(count))]);
        let reply = self.txn(reads).await.map_err(refused)?.reply;
        Ok(reply.op_responses().into_iter().find_map(as_get).map_or(0, |get| get.count()))
    }

    /// Deletes the scope as it was `seen`, and gives the number of keys, if it is known: not where the answer to the
    /// deletion was lost. [`Error::Conflict`] when another leader leads by now, or a member has come where there was none.
    ///
    /// # Errors
    /// As every call of a store.
    pub async fn remove_scope(&self, seen: &Snapshot) -> Result<Option<i64>, Error> {
        let all = DeleteOptions::new().with_prefix();
        let removal = TxnOp::delete(self.prefix.as_str(), Some(all));
        let Answer { reply, repeated } =
            self.txn(Txn::new().when(self.unchanged(seen)).and_then([removal])).await.map_err(refused)?;
        match (reply.succeeded(), repeated) {
            (true, false) => {}
            (false, false) => return Err(Error::Conflict { what: "the cluster" }),
            // What an earlier attempt has done is for the keys to say.
            (true | false, true) if self.n_keys().await? == 0 => return Ok(None),
            (true | false, true) => {
                let why = "the cluster has changed, or was removed and has come back".to_owned();
                return Err(Error::Unreachable(why));
            }
        }
        let deleted = |op| match op {
            TxnOpResponse::Delete(deleted) => Some(deleted.deleted()),
            TxnOpResponse::Put(_) | TxnOpResponse::Get(_) | TxnOpResponse::Txn(_) => None,
        };
        Ok(reply.op_responses().into_iter().find_map(deleted))
    }

    fn unchanged(&self, seen: &Snapshot) -> Vec<Compare> {
        let leader = self.leader_key();
        let mut same = vec![match &seen.leader {
            Some(holder) => Compare::value(leader, CompareOp::Equal, holder.name.as_str()),
            None => Compare::create_revision(leader, CompareOp::Equal, 0),
        }];
        if seen.members.is_empty() {
            // Of a range every key must fulfil it: it is empty.
            same.push(Compare::create_revision(self.key(MEMBERS), CompareOp::Equal, 0).with_prefix());
        }
        same
    }
}
