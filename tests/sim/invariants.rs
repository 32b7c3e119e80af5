//! What must hold, and what is not as it should be in a calm cluster.

use std::collections::BTreeMap;

use pgherd::ha::rules::Pause;
use pgherd::ha::view::Job;
use pgherd::ha::watchdog::Need;
use pgherd::types::{Lsn, SyncMode};

use crate::faults::Voters;
use crate::postgres::{Conn, State};
use crate::world::{Violation, World, name};

impl World {
    pub(crate) fn clients_write(&self) -> bool {
        self.clients
    }

    pub(crate) fn violate(&mut self, invariant: &'static str, what: String) {
        self.tell(|| format!("VIOLATION {invariant}: {what}"));
        self.violation.get_or_insert(Violation { invariant, what, at: self.now });
    }

    /// Asked wherever a node begins to accept writes, or is let go on.
    pub(crate) fn one_primary(&mut self) {
        let mut serving = self.members().filter(|n| self.accepts(*n));
        let guarded = self.schedule.deadman || self.schedule.watchdog == Need::Required;
        if let (true, Some(a), Some(b)) = (guarded, serving.next(), serving.next()) {
            self.violate("two-primaries", format!("n{a} and n{b} both accept writes"));
        }
    }

    pub(crate) fn durable(&self) -> bool {
        self.promising
    }

    /// Whether what is acknowledged here is promised. Where the mode is turned on later, from the moment on when the leader has
    /// heard of it and the `sync` key is its own.
    fn promises(&mut self, n: usize) {
        let is_on = |value: Option<&serde_json::Value>| value.is_some_and(|v| *v != "off" && *v != false);
        if self.promising || !is_on(self.store.setting("synchronous_mode")) {
            return;
        }
        let me = Some(&name(n));
        let knows = self.nodes[n].agent.rules.sync_mode != SyncMode::Off;
        self.promising = knows && self.store.leader() == me && self.store.sync_leader() == me;
        if self.promising {
            self.acked.clear();
            self.read.clear();
        }
    }

    /// What of the acknowledged commits this node's history lacks.
    pub(crate) fn lacks(&self, n: usize) -> Option<(usize, u64)> {
        self.lacks_of(n, &self.acked)
    }

    pub(crate) fn lacks_of(&self, n: usize, promised: &BTreeMap<usize, u64>) -> Option<(usize, u64)> {
        let files = self.files(n)?;
        let here = (files.branch, files.end);
        promised.iter().map(|(b, l)| (*b, *l)).find(|commit| !self.contains(here, *commit))
    }

    pub(crate) fn holds_everything(&self, n: usize) -> bool {
        self.files(n).is_some() && self.lacks(n).is_none()
    }

    /// A primary begins to accept writes.
    pub(crate) fn serves(&mut self, n: usize) {
        if self.is_remote(n) {
            return;
        }
        self.one_primary();
        self.cluster_existed = true;
        self.n_promotions += 1;
        self.nodes[n].pg.visible = self.files(n).map_or(0, |f| f.end);
        if let Some((branch, lsn)) = self.lacks_of(n, &self.read).filter(|_| self.durable()) {
            let what =
                format!("n{n} serves without {} on timeline {}, which was read", Lsn(lsn), self.tli(branch));
            self.violate("lost-read", what);
        }
        if let Some((branch, lsn)) = self.lacks(n).filter(|_| self.durable()) {
            let tli = self.tli(branch);
            let what = format!("n{n} serves without {} on timeline {tli}, which was acknowledged", Lsn(lsn));
            self.violate("lost-commit", what);
        }
    }

    /// Data was replaced: is every acknowledged commit still somewhere?
    pub(crate) fn check_copies(&mut self, n: usize) {
        let whole = self.members().any(|n| self.holds_everything(n));
        if self.durable() && !whole && !self.acked.is_empty() {
            self.violate("last-copy", format!("n{n} has replaced the last copy of acknowledged commits"));
        }
    }

    pub(crate) fn acknowledged(&mut self, n: usize, lsn: u64) {
        let Some(files) = self.files(n) else { return };
        let branch = files.branch;
        if self.is_remote(n) {
            return;
        }
        self.n_acks += 1;
        self.last_ack = self.now;
        self.promises(n);
        self.acked.insert(branch, lsn);
        self.nodes[n].pg.visible = self.nodes[n].pg.visible.max(lsn);
        if self.asked_for.remove(&(branch, lsn)) {
            self.tell(|| format!("client: n{n} acknowledged {}", Lsn(lsn)));
        }
        // A primary that was replaced meanwhile may still hear that a standby has what it wrote before: that is in the new history.
        let apart = |c: &(usize, u64)| !self.contains((branch, lsn), *c) && !self.contains(*c, (branch, lsn));
        let lost = self.acked.iter().map(|(b, l)| (*b, *l)).find(apart);
        if let Some((branch, lost)) = lost.filter(|_| self.durable()) {
            let what = format!("n{n} acknowledges without {} of timeline {}", Lsn(lost), self.tli(branch));
            self.violate("lost-commit", what);
        }
    }

    /// A schedule says that somebody takes writes now.
    pub(crate) fn check_served(&mut self) {
        if !self.members().any(|n| self.accepts(n)) {
            self.violate(
                "not-served",
                "nobody accepts writes where the schedule says that somebody does".into(),
            );
        }
    }

    /// A schedule says that two timelines of one number were told apart by their bytes.
    pub(crate) fn check_differed(&mut self) {
        if self.n_differs == 0 {
            self.violate("not-differed", "nobody has found another timeline of one number".into());
        }
    }

    /// A schedule says that a watchdog has reset a machine.
    pub(crate) fn check_reset(&mut self) {
        if self.members().all(|n| self.nodes[n].dog.resets == 0) {
            self.violate("not-reset", "no watchdog has reset its machine".into());
        }
    }

    /// A copy is begun: not in the place of data that could go on from here, for a promotion that was written down and never was.
    pub(crate) fn check_need(&mut self, n: usize, from: usize) {
        let (Some(mine), Some(theirs)) = (self.files(n), self.files(from)) else { return };
        let part = self.contains((theirs.branch, theirs.end), (mine.branch, mine.end));
        let written = self.nodes[n].disk.promoted.is_some_and(|begun| !self.has_begun(n, mine.branch, begun));
        let memory = &self.nodes[n].agent.memory;
        let starts = memory.failures.get(&Job::Start).is_none_or(|f| f.n < 5);
        let asked = memory.orders.reinitialize.is_some();
        if written && part && starts && !asked && mine.end >= theirs.wal_from {
            self.violate("needless-copy", format!("n{n} copies n{from}, from which it could have streamed"));
        }
    }

    pub(crate) fn check_release(&mut self, n: usize) {
        let node = &self.nodes[n];
        // In maintenance a standby, which nobody promotes, drops a key that it does not use; a standby leader hands over running.
        let rules = &node.agent.rules;
        let standby = !node.pg.primary && (rules.pause == Pause::On || rules.remote.is_some());
        if node.pg.state != State::Down && !standby {
            let what = format!("the leader key of n{n} is released while its PostgreSQL runs");
            self.violate("release-before-stop", what);
        }
    }

    /// Whether a node streams from the primary, or from one that does.
    pub(crate) fn is_fed(&self, n: usize, primary: usize) -> bool {
        let upstream = |n: usize| {
            let pg = &self.nodes[n].pg;
            let there = |c: &Conn| pg.state == State::Ready && c.pid == self.nodes[c.to].pg.pid;
            pg.conn.filter(there).map(|c| c.to)
        };
        let above = std::iter::successors(Some(n), |n| upstream(*n)).skip(1);
        above.take(self.nodes.len()).any(|to| to == primary)
    }

    /// What is not as it should be in a calm cluster.
    pub(crate) fn unwell(&self) -> Option<String> {
        if let Some(why) = (self.schedule.voters == Voters::Ours).then(|| self.store_unwell()).flatten() {
            return Some(why);
        }
        if let Some(remote) = self.remote().filter(|_| self.is_standby()) {
            return self.standby_unwell(remote);
        }
        let all = self.members();
        let Some(primary) = all.clone().find(|n| self.accepts(*n)) else {
            return Some("nobody accepts writes".into());
        };
        if let Some(n) = all.filter(|n| *n != primary).find(|n| !self.is_fed(*n, primary)) {
            return Some(format!("n{n} does not stream from n{primary}"));
        }
        if let Some(n) = self.lacks_slots() {
            return Some(format!("n{n} lacks a permanent slot"));
        }
        let strict = self.store.setting("synchronous_mode_strict") == Some(&true.into());
        // Where commits must wait for a standby and none may confirm them, they wait.
        let confirms = |n: usize| {
            let node = &self.nodes[n];
            node.agent.rules.tags.sync_priority > 0 && node.pg.conn.is_some_and(|c| c.to == primary)
        };
        let may_wait = strict && !self.members().any(|n| n != primary && confirms(n));
        (self.last_ack + 1_000_000 < self.now && !may_wait)
            .then(|| "no commit was acknowledged within a second".into())
    }
}
