//! What can go wrong with an instance.

use std::time::Duration;

use camino::Utf8PathBuf;

use crate::process::Exit;
use crate::types::SlotName;

/// An operation that failed, and on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Data from before pgherd that cannot be used.
    #[error("{why}")]
    NotAdopted {
        /// Why.
        why: String,
    },
    /// Another server's data that was not taken over.
    #[error("nothing comes from IMPORT_URL: {why}")]
    NotImported {
        /// Why.
        why: String,
    },
    /// initdb over something.
    #[error("{path} is not empty: initdb refuses")]
    NotEmpty {
        /// PGDATA.
        path: Utf8PathBuf,
    },
    /// A directory that only another clone can mend.
    #[error("the data directory is incomplete: {why}")]
    Incomplete {
        /// What was interrupted.
        why: &'static str,
    },
    /// Nobody to copy from, and no command that needs nobody.
    #[error("no method of create_replica_methods works without a leader")]
    NoMethod,
    /// No cluster where one is needed.
    #[error("{path} holds no readable cluster: {why}")]
    NoCluster {
        /// PGDATA.
        path: Utf8PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A logical slot that was not copied.
    #[error("the logical slot {} is not copied: {why}", slot.0)]
    SlotNotCopied {
        /// Which.
        slot: SlotName,
        /// Why.
        why: &'static str,
    },
    /// The operation needs PostgreSQL to be down.
    #[error("PostgreSQL still runs")]
    StillRunning,
    /// A postmaster that is not ours.
    #[error("another postmaster (pid {pid}) uses the data directory")]
    ForeignPostmaster {
        /// Its process id.
        pid: i32,
    },
    /// A child could not be run.
    #[error("could not run {tool}")]
    Run {
        /// The program.
        tool: &'static str,
        /// Why.
        #[source]
        source: crate::process::Error,
    },
    /// A child ran and failed.
    #[error("{tool} failed ({exit:?}): {line}")]
    Failed {
        /// The program, or the path of an init script.
        tool: String,
        /// How it ended.
        exit: Exit,
        /// What it said about it.
        line: String,
    },
    /// The postmaster could not be started.
    #[error("could not start the postmaster")]
    Start {
        /// Why.
        #[source]
        source: crate::supervisor::Error,
    },
    /// A file or a directory.
    #[error("could not {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file that could not be written atomically, or a directory that could not be made.
    #[error("could not write {path}")]
    Write {
        /// Which.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: crate::process::Error,
    },
    /// A configuration file could not be rendered.
    #[error("could not render {file}")]
    Render {
        /// Which.
        file: &'static str,
        /// Why.
        #[source]
        source: crate::templates::Error,
    },
    /// No connection.
    #[error("could not connect to the local server")]
    Connect {
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A statement failed.
    #[error("could not {what}")]
    Sql {
        /// What it was for.
        what: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Time ran out.
    #[error("could not {what} within {after:?}")]
    TimedOut {
        /// What was being done.
        what: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// A text that is not what was expected.
    #[error("could not understand {what}: {text:?}")]
    Unparsable {
        /// Whose text.
        what: &'static str,
        /// The text.
        text: String,
    },
}

impl Error {
    /// For `map_err` on an operation on a path.
    pub(super) fn file(verb: &'static str, path: &camino::Utf8Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { verb, path, source }
    }
}
