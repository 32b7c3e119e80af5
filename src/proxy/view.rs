//! What the proxy's decision is made from: the cluster as the HA core published it, and what HAProxy was told so far.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use super::Own;
use crate::dcs::{Member, MemberState, Role, Snapshot};
use crate::ha::{self, remote::is_declared, tags::is_set, view::upstream};
use crate::postgres;
use crate::supervisor::UnitState;
use crate::types::{Lsn, NodeName};

/// What is known at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Whose sessions may write: the holder of the leader key; of itself this node says so only while its primary runs.
    pub primary: Option<Target>,
    /// Who serves reads.
    pub replicas: Vec<Replica>,
    /// How many bytes a replica may be behind to be given readers.
    pub max_lag: u64,
    /// What HAProxy was told.
    pub told: BTreeMap<Server, Told>,
}

/// A member that connections can be led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: NodeName,
    /// Its PostgreSQL.
    pub address: SocketAddr,
    /// Its API's port, for health checks.
    pub api: u16,
    /// Whether this node knows by itself that it serves.
    pub knowledge: Knowledge,
}

/// Whether it is known that a target serves in its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knowledge {
    /// It is this node: nothing needs to be asked.
    Known,
    /// The store says so: a health check must confirm it before the first connection, since a new leader holds the key
    /// before it is promoted.
    Assumed,
}

/// A standby that serves reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Where.
    pub target: Target,
    /// How far it is behind, in bytes; `None` when nobody can say.
    pub lag: Option<u64>,
    /// Whether it goes on.
    pub stay: Stay,
}

/// Whether a replica goes on serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// It does.
    Stays,
    /// It has said that it is about to stop.
    Leaves,
}

/// One of HAProxy's backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// The one primary.
    Primary,
    /// Everybody who serves reads.
    Replicas,
}

impl Pool {
    /// Its name in HAProxy's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replicas => "replicas",
        }
    }
}

/// One of HAProxy's servers: a member in a pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Where it stands.
    pub pool: Pool,
    /// The member.
    pub name: NodeName,
}

impl fmt::Display for Server {
    /// `pool/member`, as HAProxy's commands want it. Names of ours fit; of a stock node's every other character is replaced.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.:".contains(c) { c } else { '_' };
        let name: String = self.name.as_str().chars().map(plain).collect();
        write!(f, "{}/{name}", self.pool.name())
    }
}

/// What HAProxy was told about a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Where it is.
    pub address: SocketAddr,
    /// Where its API is.
    pub api: u16,
    /// Its share.
    pub weight: Weight,
    /// Whether it gets connections.
    pub door: Door,
}

/// Whether a server gets connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// It does.
    Open,
    /// No new ones; the ones it has stay.
    Drained,
    /// None, and the ones it had were cut.
    Closed,
}

/// A server's share of new connections, 1 to 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(pub u8);

impl View {
    /// The view of a published status.
    pub fn of(status: &ha::Status, own: Own, max_lag: u64, told: BTreeMap<Server, Told>) -> Self {
        let Some(snapshot) = &status.snapshot else {
            return Self { primary: None, replicas: Vec::new(), max_lag, told };
        };
        let local = Local { status, own };
        let end = end_of_wal(snapshot);
        // In a cluster that follows another one nobody takes writes, and its leader serves reads.
        // Until it does: one that has been told to, and goes on as a primary, is one.
        let declared = snapshot.config.as_ref().is_some_and(|config| is_declared(&config.value));
        let leader = snapshot.leader_name().and_then(|name| snapshot.member(name));
        let follows = declared && !leader.is_some_and(|leader| leader.role == Role::Primary);
        let primary = local.primary(snapshot).filter(|_| !follows);
        let others = snapshot.members.iter().filter(|m| follows || Some(&m.name) != snapshot.leader_name());
        let replicas = others.filter_map(|member| local.replica(member, end)).collect();
        Self { primary, replicas, max_lag, told }
    }
}

/// The cluster as this node sees it: it knows more about itself than the store does.
#[derive(Clone, Copy)]
struct Local<'a> {
    status: &'a ha::Status,
    own: Own,
}

impl Local<'_> {
    fn primary(self, snapshot: &Snapshot) -> Option<Target> {
        let leader = snapshot.leader_name()?;
        let target = self.target(snapshot.member(leader)?)?;
        match target.knowledge {
            Knowledge::Known => (self.runs() && self.status.role == Role::Primary).then_some(target),
            Knowledge::Assumed => Some(target),
        }
    }

    fn replica(self, member: &Member, end: Option<Lsn>) -> Option<Replica> {
        let target = self.target(member)?;
        let (serves, leaves) = match target.knowledge {
            Knowledge::Known => {
                let serves = self.runs() && reads(self.status.role);
                (serves, self.status.phase == ha::Phase::Stopping)
            }
            Knowledge::Assumed => {
                let leaves = member.state == MemberState::Stopping;
                ((leaves || member.state == MemberState::Running) && reads(member.role), leaves)
            }
        };
        let wanted = !is_set(&member.tags, "noloadbalance");
        let lag = end.zip(member.replay_lsn).map(|(end, replayed)| end.0.saturating_sub(replayed.0));
        let stay = if leaves { Stay::Leaves } else { Stay::Stays };
        (serves && wanted).then_some(Replica { target, lag, stay })
    }

    /// Whether it runs and lets clients in.
    fn runs(self) -> bool {
        let answers = self.status.postgres.sql.is_some() && self.status.door == postgres::Door::Open;
        answers && matches!(self.status.postgres.process, UnitState::Running { .. })
    }

    fn target(self, member: &Member) -> Option<Target> {
        let name = member.name.clone();
        if name == self.status.name {
            let Own { postgres, api } = self.own;
            return Some(Target { name, address: postgres, api, knowledge: Knowledge::Known });
        }
        let at = upstream(member)?;
        let address = SocketAddr::new(at.address.address()?, at.port);
        Some(Target { name, address, api: api_port(member)?, knowledge: Knowledge::Assumed })
    }
}

/// Whether a member in this role serves reads and nothing else.
fn reads(role: Role) -> bool {
    match role {
        Role::Replica | Role::StandbyLeader => true,
        Role::Primary | Role::Promoted | Role::Demoted | Role::Uninitialized => false,
    }
}

/// The port in `http[s]://HOST:PORT/patroni`.
fn api_port(member: &Member) -> Option<u16> {
    let (_, rest) = member.api_url.split_once("://")?;
    rest.split('/').next()?.rsplit_once(':')?.1.parse().ok()
}

/// How far the leader has written, as far as the store knows.
fn end_of_wal(snapshot: &Snapshot) -> Option<Lsn> {
    let leader = snapshot.leader_name().and_then(|name| snapshot.member(name)?.xlog_location);
    leader.max(snapshot.status.as_ref().and_then(|status| status.value.optime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_name_fits_haproxys_commands() {
        let server = |name: &str| Server { pool: Pool::Primary, name: NodeName::from(name) }.to_string();
        assert_eq!(server("node-10-0-0-1"), "primary/node-10-0-0-1");
        assert_eq!(server("a b;shutdown"), "primary/a_b_shutdown");
    }
}
