//! High availability: observe ([`view`]), decide ([`decide`]), act (`agent`).
//!
//! Invariants: whatever has a rule is pure; the lease is renewed by a task of its own; what is
//! decided carries its reason. Where to look:
//!
//! - **what is known**: [`view`], [`memory`] from tick to tick, [`rules`] with [`replication`] and [`tags`] (the dynamic configuration,
//!   read), [`job`]
//! - **what is decided**: [`decide`] asks the others in the order of their weight: [`lead`], [`race`], [`lineage`] (whose history),
//!   [`sync`] and [`candidates`] (who confirms), [`slots`], [`upstreams`], [`door`], [`fitness`], [`reserve`], [`silence`] and
//!   [`failsafe`] (no store), [`remote`] (a standby cluster), [`adoption`] (older data), [`watchdog`], [`leaving`], [`configure`], and last
//!   [`pause`]; [`pace`] says when to look again, [`reason`] is the answer
//! - **what an operator asks**: [`desk`] takes it in, [`manual`] (leadership), [`orders`] (this node) and [`settings`] decide about it,
//!   [`reread`] is agent mode's file
//! - **what is done**: `agent` is the loop, [`act`] its hands, [`jobs`] and [`upshot`] what takes long and what came of it, [`handover`]
//!   the stop for a request, [`lease`] and [`arming`] the renewal and the watchdog, [`promises`], [`callbacks`]
//! - **what is told**: [`publish`] (to other nodes), [`trail`] and [`journal`] (why), [`forecast`] (what if)
//!
//! What is absent: how PostgreSQL is started, copied or asked (`postgres`), and which store it is (`dcs`).

mod act;
mod adoption;
pub mod agent;
mod arming;
pub mod callbacks;
pub mod candidates;
pub mod configure;
pub mod decide;
pub mod desk;
pub mod door;
pub mod failsafe;
pub mod fitness;
pub mod forecast;
mod handover;
pub mod job;
mod jobs;
mod journal;
pub mod lead;
mod lease;
pub mod leaving;
pub mod lineage;
pub mod manual;
mod memory;
pub mod orders;
mod pace;
pub mod pause;
pub mod promises;
pub mod publish;
pub mod race;
pub mod reason;
pub mod remote;
pub mod replication;
pub mod reread;
pub mod reserve;
pub mod rules;
pub mod settings;
mod silence;
pub mod slots;
pub mod sync;
pub mod tags;
pub mod trail;
pub mod turn;
mod upshot;
pub mod upstreams;
pub mod view;
pub mod watchdog;

use crate::clock::Moment;
use crate::dcs::{self, MemberState, Role, Snapshot};
use crate::postgres;
use crate::process;
use crate::record;
use crate::types::{NodeName, SyncMode, Timing};

use forecast::Forecast;
use trail::Trail;

/// What this room publishes after every tick: REST, metrics and the CLI read nothing else.
#[derive(Debug, Clone)]
pub struct Status {
    /// The scope (`APP_NAME`).
    pub scope: String,
    /// This member.
    pub name: NodeName,
    /// Its role, in Patroni's words.
    pub role: Role,
    /// The local instance.
    pub postgres: postgres::Status,
    /// The last snapshot that could be read.
    pub snapshot: Option<Snapshot>,
    /// The wall clock when that was, seconds since the Unix epoch.
    pub store_seen: Option<i64>,
    /// Until when this node may say "primary"; `None` when it does not lead.
    pub lease_until: Option<Moment>,
    /// How much was left of it at that tick, before this node would have had to stop its primary.
    pub lease_margin: Option<std::time::Duration>,
    /// How close the deadman has come at the least; `None` before the first renewal after its arming.
    pub deadman_margin: Option<std::time::Duration>,
    /// When the loop last ran.
    pub ticked: Moment,
    /// The last decision's reason, in words.
    pub reason: String,
    /// What PostgreSQL is doing, in Patroni's words (`creating replica`, ...).
    pub state: MemberState,
    /// Whether the local position can still move: what other nodes judge a vote by.
    pub position: Position,
    /// The durations in force.
    pub timing: Timing,
    /// How commits wait.
    pub sync_mode: SyncMode,
    /// The lag that a candidate may have, in bytes.
    pub maximum_lag_on_failover: u64,
    /// Effective tags that differ from their defaults.
    pub tags: serde_json::Map<String, serde_json::Value>,
    /// Whether the node is stopping (readiness then answers 503).
    pub phase: Phase,
    /// Whether clients may connect.
    pub door: postgres::Door,
    /// What it does without the store.
    pub failsafe: failsafe::Facts,
    /// Whether it is guarded as it must be to lead.
    pub watchdog: watchdog::Health,
    /// Whether the node can do a primary's work, as far as is known.
    pub vitals: fitness::Vitals,
    /// How many times the HA core has started PostgreSQL, and promoted it.
    pub n_starts: u64,
    /// Promotions.
    pub n_promotions: u64,
    /// The long action under way, and since when.
    pub doing: Option<view::Doing>,
    /// When the loop looks again at the latest.
    pub looks_again: Moment,
    /// What was decided before.
    pub trail: Trail,
    /// What would happen if the primary died now.
    pub forecast: Forecast,
    /// How long a start of the primary may take.
    pub primary_start_timeout: std::time::Duration,
    /// The restart that is scheduled, as in the member key.
    pub scheduled_restart: Option<serde_json::Value>,
    /// What in the stored configuration is not used, and why.
    pub complaints: Vec<String>,
}

/// Whether a standby's position can still move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// It may be receiving.
    Moving,
    /// Its walreceiver is held for a vote.
    Frozen,
    /// It is on a timeline that only shares its number with the cluster's.
    Foreign,
}

/// An action or a job that failed, and in which room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The coordination store.
    #[error(transparent)]
    Store(#[from] dcs::Error),
    /// The local instance.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// The cluster record.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// A document that could not be written as JSON.
    #[error("a document could not be encoded")]
    Encode(#[from] serde_json::Error),
    /// Whom to ask is not known.
    #[error("the location list is not known yet")]
    NoList,
    /// The leader key is promised to somebody else.
    #[error(transparent)]
    Bound(#[from] promises::Bound),
    /// `pre_promote` could not be run.
    #[error("pre_promote was not run")]
    Approval(#[source] process::Error),
    /// It has said no.
    #[error("pre_promote has ended with {0:?}")]
    NotApproved(process::Exit),
    /// The watchdog does not do as it is told.
    #[error("the watchdog cannot be used")]
    Watchdog(#[source] process::Error),
    /// It would do no good.
    #[error(transparent)]
    Useless(#[from] watchdog::Useless),
    /// An action that did not end while the lease still left time for it.
    #[error("not done before the lease runs short")]
    OutOfTime,
    /// A job that ended before it was done.
    #[error("the job was ended before it was done")]
    JobEnded(#[source] tokio::task::JoinError),
}

/// The life of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Working.
    Serving,
    /// SIGTERM has been received.
    Stopping,
}
