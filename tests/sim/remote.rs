//! The other cluster of `standby on`: one server that stands for all of it, the last of the nodes, without an agent of ours. It
//! takes writes, fails over to another timeline, and can be made to follow this cluster; a person changes the sides, in the
//! order in which nothing is lost.

use pgherd::ha::remote::Remote;
use pgherd::ha::view::Job;
use pgherd::types::{Host, Lsn, Timeline};
use serde_json::{Value, json};

use crate::agent::address;
use crate::faults::Schedule;
use crate::history::Branch;
use crate::postgres::{RECORD, State};
use crate::world::{Ev, World};

/// Its port, in a cluster's configuration.
const PORT: u16 = 5432;

/// Whom a cluster that is made as a standby follows.
pub(crate) fn followed(schedule: &Schedule) -> Option<Remote> {
    let host = schedule.standby.then(|| Host::from(address(schedule.nodes)))?;
    Some(Remote { host: Some(host), port: PORT, slot: None })
}

impl World {
    pub(crate) fn remote(&self) -> Option<usize> {
        self.schedule.standby.then_some(self.schedule.nodes)
    }

    pub(crate) fn is_remote(&self, n: usize) -> bool {
        self.remote() == Some(n)
    }

    /// Whether this cluster's configuration says that it follows the other one.
    pub(crate) fn is_standby(&self) -> bool {
        self.schedule.standby
            && self.store.setting("standby_cluster").is_none_or(|section| !section.is_null())
    }

    /// It has been there for long.
    pub(crate) fn other_cluster(&mut self) {
        let Some(n) = self.remote() else { return };
        self.pg_initdb(n);
        self.remote_starts(n, None);
        self.at(100_000, Ev::Write(n));
    }

    fn remote_starts(&mut self, n: usize, upstream: Option<Option<usize>>) {
        self.nodes[n].pg.state = State::Down;
        let pid = self.pg_start(n, upstream, "").expect("it is down and has data");
        self.pg_ready(n, pid);
    }

    /// A person ends the standby cluster, or makes one of a cluster whose writes the other one has, or is about to have.
    pub(crate) fn set_standby(&mut self, on: bool) {
        let Some(n) = self.remote() else { return };
        // Who holds the lock of a cluster that follows nobody is a primary, or about to be promoted.
        let promoted = !self.is_standby() && self.store.leader().is_some();
        let led = promoted || self.members().any(|n| self.is_primary(n));
        let follows = !self.nodes[n].pg.primary;
        if on && !follows && (led || self.lacks(n).is_some() || self.has_gone_on(n)) {
            return self.leave_out("the other cluster does not have what was written here".into());
        }
        let section = json!({ "host": address(n).to_string(), "port": PORT });
        self.store.configure("standby_cluster", &if on { section } else { Value::Null });
        self.hint();
    }

    /// Whether somebody here was promoted to a timeline that the other cluster does not have. Which of the two is to stay is a
    /// person's to say, who removes the other one first.
    fn has_gone_on(&self, remote: usize) -> bool {
        let Some(theirs) = self.files(remote).map(|f| (f.branch, f.end)) else { return false };
        let mut ours = self.members().filter_map(|n| self.files(n).map(|f| f.branch));
        ours.any(|branch| !self.contains(theirs, (branch, self.branches[branch].begun())))
    }

    /// Another server of the other cluster takes over, a little behind the first; or the one that follows this cluster does, once
    /// it has everything and nobody writes here.
    pub(crate) fn remote_promote(&mut self) {
        let Some(n) = self.remote() else { return };
        let first = self.nodes[n].pg.primary;
        let may = first || (self.is_standby() && self.remote_has_all(n));
        if !may {
            return self.leave_out("the other cluster does not have everything yet".into());
        }
        self.disconnect(n);
        let lost = if first { self.rng.range(0, 3) * RECORD } else { 0 };
        let files = self.nodes[n].disk.files.as_mut().expect("it has data");
        let (parent, begun) = (files.branch, self.branches[files.branch].begun());
        let fork = (files.end - lost).max(begun);
        let tli = self.branches[parent].tli + 1;
        self.branches.push(Branch::of(tli, Some((parent, fork)), n));
        files.branch = self.branches.len() - 1;
        (files.end, files.replayed) = (fork + RECORD, fork + RECORD);
        files.control.min_recovery_end = Lsn(files.end);
        files.control.min_recovery_timeline = Timeline(tli);
        let pg = &mut self.nodes[n].pg;
        pg.pid += 1;
        (pg.primary, pg.upstream, pg.checkpoint_owed) = (true, None, true);
        pg.streams.clear();
        pg.waiters.clear();
        let pid = pg.pid;
        self.log(n, || format!("the other cluster goes on on timeline {tli}"));
        let checkpoint = self.rng.range(100_000, 4_000_000);
        self.at(checkpoint, Ev::Checkpoint(n, pid));
    }

    /// Whether nobody writes here any more and whatever anybody has is there.
    fn remote_has_all(&self, remote: usize) -> bool {
        let Some(theirs) = self.files(remote).map(|f| (f.branch, f.end)) else { return false };
        // Who has not heard of it yet, or is being promoted, may still take writes.
        let unaware = |n: usize| {
            let agent = &self.nodes[n].agent;
            let promotes = agent.doing.is_some_and(|doing| doing.job == Job::Promote);
            agent.alive && (agent.rules.remote.is_none() || promotes)
        };
        !self.members().any(unaware)
            && self.members().all(|n| {
                let writes = self.nodes[n].pg.primary && self.nodes[n].pg.state != State::Down;
                let has = |mine: &crate::postgres::Files| self.contains(theirs, (mine.branch, mine.end));
                !writes && self.files(n).is_none_or(has)
            })
            && self.lacks(remote).is_none()
    }

    /// Its server is made anew from this cluster's primary, and follows whoever that is.
    pub(crate) fn remote_follow(&mut self) {
        let Some(n) = self.remote() else { return };
        let Some(primary) = self.members().find(|m| self.accepts(*m)) else {
            return self.leave_out("nobody accepts writes".into());
        };
        self.disconnect(n);
        self.pg_clone(n, primary).expect("a primary has data");
        self.remote_starts(n, Some(Some(primary)));
        self.log(n, || "the other cluster follows this one".into());
    }

    /// Before it connects: whom it follows, and whether that still fits.
    pub(crate) fn remote_aims(&mut self, n: usize) {
        let Some(primary) = self.members().find(|m| self.accepts(*m)) else { return };
        self.nodes[n].pg.upstream = Some(primary);
        let (Some(mine), Some(theirs)) = (self.files(n), self.files(primary)) else { return };
        if !self.contains((theirs.branch, theirs.end), (mine.branch, mine.end)) {
            self.remote_follow();
        }
    }

    /// What is not as it should be in a calm cluster that follows another one.
    pub(crate) fn standby_unwell(&self, remote: usize) -> Option<String> {
        if let Some(n) = self.members().find(|n| self.is_primary(*n)) {
            return Some(format!("n{n} takes writes in a standby cluster"));
        }
        let streams = |n: usize, from: usize| {
            let pg = &self.nodes[n].pg;
            let fits = |c: crate::postgres::Conn| c.to == from && c.pid == self.nodes[from].pg.pid;
            pg.state == State::Ready && pg.conn.is_some_and(fits)
        };
        let Some(leader) = self.members().find(|n| streams(*n, remote)) else {
            return Some("nobody streams from the other cluster".into());
        };
        let unfed = self.members().find(|n| *n != leader && !self.is_fed(*n, leader));
        unfed.map(|n| format!("n{n} does not stream from n{leader}"))
    }
}
