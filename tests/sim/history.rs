//! The model PostgreSQL's history: branches (one is what one node wrote after one promotion; two can have the same timeline number,
//! as in the real thing), their checkpoints, and whose log is part of whose.

use pgherd::postgres::Containment;
use pgherd::types::{Lsn, Timeline, TimelineFork, TimelineHistory};

use crate::postgres::{FIRST, RECORD};
use crate::world::World;

#[derive(Debug, Clone)]
pub(crate) struct Branch {
    pub(crate) tli: u32,
    pub(crate) parent: Option<(usize, u64)>,
    /// Who writes it. A node that goes on in place on somebody else's log writes another one under the same number.
    pub(crate) owner: usize,
    /// Where its checkpoints are.
    pub(crate) checkpoints: Vec<u64>,
}

impl Branch {
    pub(crate) fn of(tli: u32, parent: Option<(usize, u64)>, owner: usize) -> Self {
        Self { tli, parent, owner, checkpoints: Vec::new() }
    }

    /// Where its first record is.
    pub(crate) fn begun(&self) -> u64 {
        self.parent.map_or(FIRST + RECORD, |(_, fork)| fork)
    }
}

impl World {
    /// Whether a commit at `at` on branch `of` is part of the history up to `end` of `branch`.
    pub(crate) fn contains(&self, (mut branch, mut end): (usize, u64), (of, at): (usize, u64)) -> bool {
        loop {
            if branch == of {
                return at <= end;
            }
            let Some((parent, fork)) = self.branches[branch].parent else { return false };
            (branch, end) = (parent, end.min(fork));
        }
    }

    /// Whether this node has begun a timeline of this number that is part of this history.
    pub(crate) fn has_begun(&self, n: usize, mut branch: usize, timeline: Timeline) -> bool {
        loop {
            let Branch { tli, parent, owner, .. } = &self.branches[branch];
            let Some((before, _)) = parent else { return false };
            if (*tli, *owner) == (timeline.0, n) {
                return true;
            }
            branch = *before;
        }
    }

    pub(crate) fn history(&self, mut branch: usize) -> TimelineHistory {
        let mut forks = Vec::new();
        while let Some((parent, fork)) = self.branches[branch].parent {
            let tli = self.branches[parent].tli;
            // PostgreSQL does not know of a fork within one timeline.
            if tli != self.branches[branch].tli {
                forks.push(TimelineFork { timeline: Timeline(tli), end: Lsn(fork) });
            }
            branch = parent;
        }
        forks.reverse();
        TimelineHistory(forks)
    }

    pub(crate) fn tli(&self, branch: usize) -> u32 {
        self.branches[branch].tli
    }

    /// A standby's restartpoint: at the last checkpoint that it has replayed.
    pub(crate) fn restartpoint(&mut self, n: usize) {
        self.nodes[n].pg.restartpoint = self.now;
        let Some((mut branch, mut end)) = self.files(n).map(|f| (f.branch, f.replayed)) else { return };
        let tli = self.tli(branch);
        let last = loop {
            let whole = |at: &&u64| **at + RECORD <= end;
            if let Some(at) = self.branches[branch].checkpoints.iter().rev().find(whole) {
                break Some((self.tli(branch), *at));
            }
            let Some((parent, fork)) = self.branches[branch].parent else { break None };
            (branch, end) = (parent, end.min(fork));
        };
        let Some(files) = self.nodes[n].disk.files.as_mut() else { return };
        files.min_end = files.replayed;
        files.control.min_recovery_end = Lsn(files.replayed);
        files.control.min_recovery_timeline = Timeline(tli);
        if let Some((tli, at)) = last.filter(|(_, at)| Lsn(*at) >= files.control.checkpoint) {
            (files.control.timeline, files.control.checkpoint) = (Timeline(tli), Lsn(at));
        }
    }

    /// Whether the log of `from` holds that of this node, as `postgres::pedigree` finds out: by the bytes at its last checkpoint.
    pub(crate) fn containment(&self, n: usize, from: usize) -> Containment {
        let (Some(mine), Some(theirs)) = (self.files(n), self.files(from)) else {
            return Containment::Unshown;
        };
        let (at, timeline) = (mine.control.checkpoint.0, mine.control.timeline);
        let current = Timeline(self.tli(theirs.branch)) == timeline;
        let of_timeline =
            self.history(theirs.branch).end_of(timeline).or_else(|| current.then_some(Lsn(theirs.end)));
        let came_by = of_timeline.is_some_and(|end| at + RECORD <= end.0.min(theirs.end));
        if !came_by || at < theirs.wal_from {
            return Containment::Unshown;
        }
        let writer = |mut branch: usize| loop {
            match self.branches[branch].parent {
                Some((parent, fork)) if at < fork => branch = parent,
                Some(_) | None => return branch,
            }
        };
        if writer(mine.branch) == writer(theirs.branch) {
            Containment::Shown(timeline)
        } else {
            Containment::Differs
        }
    }
}
