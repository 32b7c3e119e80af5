//! The cluster record: what this volume remembers of the cluster, beside PGDATA so that a clone does not copy it.
//!
//! It is what makes a restart without a store safe (no initdb over a cluster that once existed). One file,
//! `<volume>/pgherd/record.json`, written to a temporary file, synced and renamed. One [`Keeper`] owns it.
//!
//! Invariants: what [`Keeper::update`] returned is on disk before anybody acts on it (a promise is binding), nobody who reads
//! waits for a disk, and the one thread that everything else needs never does; the identity never changes, and a file that cannot be read is never replaced: losing it silently would make an old
//! volume look new, and a new volume may be told to run initdb.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rand::TryRngCore;
use serde::{Deserialize, Serialize};

use crate::peer::{Adopted, Promise, Voter};
use crate::process::{self, Lines, Mode, RunAs};
use crate::types::{Epoch, NodeId, NodeName, SystemId, Timeline};

/// A leader that this node has followed while the store did not know yet what it writes. Every timeline above `known` in the
/// local data is this leader's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Who led.
    pub leader: NodeName,
    /// The cluster's timeline as the store had it.
    pub known: Timeline,
}

/// What the volume remembers. Every field that is absent is *unknown*, never "no".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The volume's identity, made once.
    pub node_id: NodeId,
    /// The display name, fixed at the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<NodeName>,
    /// The database cluster this volume belongs (or belonged) to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<SystemId>,
    /// Whether a new cluster that was begun on this volume still lacks its roles, database and scripts.
    #[serde(default)]
    pub bootstrap: Bootstrap,
    /// Data from before pgherd that lies aside on this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// The timeline that this node was last promoted to, until its data is replaced or rewound. Two nodes can give their
    /// timelines the same number; this tells a private one from the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Timeline>,
    /// The name that this node had then: the history of the cluster goes by names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_as: Option<NodeName>,
    /// The same for timelines that others began: whose WAL the local data has taken in, until the store knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<Followed>,
    /// The data was a primary's whose commits waited, and was started as a standby that no leader's history is known to hold yet.
    #[serde(default)]
    pub unconfirmed: bool,
    /// The last timeline seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// The store's generation.
    #[serde(default)]
    pub epoch: Epoch,
    /// The store's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uuid: Option<String>,
    /// etcd's cluster id, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_cluster_id: Option<String>,
    /// Our member id in etcd, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// The voters last seen by a linearizable read.
    #[serde(default)]
    pub voters: Vec<Voter>,
    /// The promise that binds this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<Promise>,
    /// The leader that was promised not to be replaced (failsafe). After a restart it binds for its whole length once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failsafe: Option<Loyalty>,
    /// The last address this node advertised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_address: Option<std::net::IpAddr>,
    /// The members (name and role) last seen in the store.
    #[serde(default)]
    pub members: Vec<(NodeName, String)>,
}

/// A promise to a leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loyalty {
    /// Who leads.
    pub leader: NodeName,
    /// For how long it binds, counted from each time that it is given, in milliseconds.
    pub millis: u64,
    /// How its server is reached (`conn_url`).
    #[serde(default)]
    pub conn_url: String,
    /// Its volume, when it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
}

/// How far the first start of a new cluster has come on this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bootstrap {
    /// Nothing is open.
    #[default]
    Settled,
    /// initdb was begun here; roles, database and scripts are not done.
    Pending,
}

/// The file's name in its directory.
const FILE: &str = "record.json";
/// A disk that takes longer is taken for one that has not kept it: whoever asked goes on without, and tries again.
const PATIENCE: Duration = Duration::from_secs(5);

/// A record that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory could not be made.
    #[error("cannot make {path}")]
    MakeDirectory {
        /// The directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: process::Error,
    },
    /// The file is there and cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is there and is not a record. A person must decide.
    #[error(
        "{path} is damaged and is left as it is: restore it from a backup, or move it away so that this volume joins \
         as a new node (only when the rest of the cluster is healthy)"
    )]
    Damaged {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The system gave no random numbers for a new identity.
    #[error("cannot make a node id for {path}")]
    MakeNodeId {
        /// The file that would hold it.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: rand::rand_core::OsError,
    },
    /// The record has no text form.
    #[error("cannot encode the record for {path}")]
    Encode {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file could not be written: what should have been remembered is not.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: process::Error,
    },
}

/// The one owner of the record. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    path: Utf8PathBuf,
    owner: RunAs,
    /// As it is on disk.
    record: Arc<Mutex<Record>>,
    /// Held across a write: two updates must not overtake each other.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Keeper {
    /// Reads the record in this directory; at the first start makes directory, identity and file.
    ///
    /// # Errors
    /// The file is damaged or out of reach. It is never replaced.
    pub fn open(dir: &Utf8Path, owner: &RunAs) -> Result<Self, Error> {
        process::make_private_dir(dir, owner)
            .map_err(|source| Error::MakeDirectory { path: dir.to_owned(), source })?;
        let path = dir.join(FILE);
        let record = match std::fs::read(&path) {
            Ok(text) => decode(&path, &text)?,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                let new = Record::new(new_node_id(&path)?);
                write(&path, owner, &new)?;
                new
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        Ok(Self { path, owner: owner.clone(), record: Arc::new(Mutex::new(record)), turn: Arc::default() })
    }

    /// A file of lines beside the record, and the last `kept` of its lines.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn lines(&self, name: &str, kept: usize) -> Result<(Lines, Vec<String>), process::Error> {
        Lines::open(&self.path.with_file_name(name), &self.owner, kept)
    }

    /// What is remembered.
    pub fn read(&self) -> Record {
        self.lock().clone()
    }

    /// Changes the record; it is on disk when this returns, and unchanged (here and on disk, as far as is known)
    /// when this fails, but for a write that takes longer than five seconds: it may still come to its end, and then counts.
    /// A change that changes nothing writes nothing; the identity cannot be changed.
    ///
    /// # Errors
    /// The file could not be written: do not act on the change.
    pub async fn update(&self, change: impl FnOnce(&mut Record)) -> Result<Record, Error> {
        let updated = tokio::time::timeout(PATIENCE, self.update_in_turn(change)).await;
        updated.unwrap_or_else(|_elapsed| Err(self.not_written(io::ErrorKind::TimedOut.into())))
    }

    async fn update_in_turn(&self, change: impl FnOnce(&mut Record)) -> Result<Record, Error> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let known = self.read();
        let mut next = known.clone();
        change(&mut next);
        next.node_id = known.node_id.clone();
        if next == known {
            return Ok(next);
        }
        let keeper = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            // Whoever asked may have given up by now: the turn ends with the write, not with the waiting for it.
            let _turn = turn;
            write(&keeper.path, &keeper.owner, &next)?;
            keeper.lock().clone_from(&next);
            Ok(next)
        });
        written.await.unwrap_or_else(|lost| Err(self.not_written(io::Error::other(lost))))
    }

    fn not_written(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::Write { path: path.clone(), source: process::Error::WriteFile { path, source } }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// The record of a volume that has seen nothing yet.
    pub fn new(node_id: NodeId) -> Self {
        Self {
            node_id,
            node_name: None,
            system_id: None,
            bootstrap: Bootstrap::Settled,
            adopted: None,
            promoted: None,
            promoted_as: None,
            followed: None,
            unconfirmed: false,
            timeline: None,
            epoch: Epoch::default(),
            cluster_uuid: None,
            etcd_cluster_id: None,
            member_id: None,
            voters: Vec::new(),
            promised: None,
            failsafe: None,
            last_address: None,
            members: Vec::new(),
        }
    }
}

fn decode(path: &Utf8Path, text: &[u8]) -> Result<Record, Error> {
    let damaged = |source| Error::Damaged { path: path.to_owned(), source };
    let record: Record = serde_json::from_slice(text).map_err(damaged)?;
    let id = &record.node_id.0;
    if id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(record);
    }
    Err(damaged(serde::de::Error::custom("node_id is not 16 hex digits")))
}

fn new_node_id(path: &Utf8Path) -> Result<NodeId, Error> {
    let number = rand::rngs::OsRng.try_next_u64();
    let number = number.map_err(|source| Error::MakeNodeId { path: path.to_owned(), source })?;
    Ok(NodeId(format!("{number:016x}")))
}

fn write(path: &Utf8Path, owner: &RunAs, record: &Record) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(record);
    let text = text.map_err(|source| Error::Encode { path: path.to_owned(), source })?;
    process::write_atomic(path, &text, owner, Mode::Private)
        .map_err(|source| Error::Write { path: path.to_owned(), source })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("pgherd")).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn the_identity_is_made_once_and_updates_survive() {
        let (_guard, dir) = dir();
        let first = Keeper::open(&dir, &RunAs::Same).unwrap();
        let id = first.read().node_id;
        assert_eq!(id.0.len(), 16);
        let updated = first.update(|r| r.epoch = Epoch(7)).await.unwrap();
        assert_eq!(updated.epoch, Epoch(7));
        first.update(|r| r.node_id = NodeId("0".repeat(16))).await.unwrap();
        let again = Keeper::open(&dir, &RunAs::Same).unwrap().read();
        assert_eq!((again.node_id, again.epoch), (id, Epoch(7)));
    }

    #[tokio::test]
    async fn an_update_that_changes_nothing_writes_nothing() {
        let (_guard, dir) = dir();
        let keeper = Keeper::open(&dir, &RunAs::Same).unwrap();
        std::fs::remove_file(dir.join(FILE)).unwrap();
        keeper.update(|r| r.epoch = Epoch(0)).await.unwrap();
        assert!(!dir.join(FILE).exists());
        keeper.update(|r| r.epoch = Epoch(1)).await.unwrap();
        assert!(dir.join(FILE).exists());
    }

    #[test]
    fn a_damaged_file_is_named_and_kept() {
        let (_guard, dir) = dir();
        drop(Keeper::open(&dir, &RunAs::Same).unwrap());
        for text in ["", "{", r#"{"node_id":"short"}"#] {
            #[expect(clippy::disallowed_methods, reason = "the test plants damage")]
            std::fs::write(dir.join(FILE), text).unwrap();
            let error = Keeper::open(&dir, &RunAs::Same).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("record.json"));
            assert_eq!(std::fs::read_to_string(dir.join(FILE)).unwrap(), text);
        }
    }
}
