//! Logical slots, as far as their copies need a standby to start again: they exist or they do not, and their readers stand still.

use std::collections::BTreeSet;

use pgherd::dcs::MemberState;
use pgherd::ha::rules::Failover;
use pgherd::ha::turn::Copies;
use pgherd::ha::view::Job;
use pgherd::postgres::{Horizon, Slot, SlotKind, SlotPlan, SlotWal, StopMode};
use pgherd::types::{Lsn, SlotName};

use crate::agent::LocalOp;
use crate::jobs::Out;
use crate::postgres::FIRST;
use crate::world::{Ev, World, name};

/// What `set slots on` asks for.
pub(crate) fn permanent() -> serde_json::Value {
    serde_json::json!({"feed": {"type": "logical", "database": "app", "plugin": "pgoutput"}})
}

/// As the server shows it.
pub(crate) fn shown(name: &SlotName, logical: bool) -> Slot {
    let kind = SlotKind::Logical { database: "app".into(), plugin: "pgoutput".into() };
    Slot {
        name: name.clone(),
        kind: if logical { kind } else { SlotKind::Physical },
        active: !logical,
        restart_lsn: None,
        confirmed: logical.then_some(Lsn(FIRST)),
        wal: SlotWal::Kept,
        horizon: Horizon::Free,
        synchronised: false,
    }
}

impl World {
    pub(crate) fn change_slots(&mut self, n: usize, plan: SlotPlan) {
        let node = &mut self.nodes[n];
        node.pg.slots.retain(|slot| !plan.drop.contains(slot));
        node.disk.logical.retain(|slot| !plan.drop.contains(slot));
        for (slot, kind) in plan.create {
            match kind {
                SlotKind::Physical => node.pg.slots.push(slot),
                SlotKind::Logical { .. } => drop(node.disk.logical.insert(slot)),
            }
        }
        self.local(n, LocalOp::Slots, 1_000, 10_000);
    }

    /// The question to the leader, and the restart point.
    pub(crate) fn prepare_copies(&mut self, n: usize, from: usize, names: BTreeSet<SlotName>) {
        self.agent(n).memory.copies = Copies::UnderWay;
        let inc = self.nodes[n].agent.inc;
        let takes = self.rng.range(5_000, 1_500_000);
        self.at(takes, Ev::Copies(n, inc, from, names));
        self.act(n);
    }

    pub(crate) fn copies_ready(&mut self, n: usize, inc: u64, from: usize, names: &BTreeSet<SlotName>) {
        if !self.current(n, inc) {
            return;
        }
        let at = self.clock(n);
        let there: BTreeSet<_> = names.intersection(&self.nodes[from].disk.logical).cloned().collect();
        let answers = self.both_ways(n, from) && self.is_primary(from) && !there.is_empty();
        self.agent(n).memory.copies =
            if answers { Copies::Ready { names: there, at } } else { Copies::Failed(at) };
        self.woken(n);
    }

    pub(crate) fn copy_slots(&mut self, n: usize, from: usize, names: BTreeSet<SlotName>, step: u8) {
        if step == 0 {
            if let Err(why) = self.source(n, from) {
                return self.ends(n, Err(why));
            }
            self.check_turn(n);
            self.log(n, || "stops PostgreSQL for copies of logical slots".into());
            self.stop_postgres(n, StopMode::Fast { patience: std::time::Duration::from_secs(4) });
            self.at(0, Ev::Process(n));
        }
        if !self.unit_is_down(n) {
            return self.later(n, 5_000, 20_000);
        }
        self.nodes[n].disk.logical.extend(names);
        self.ends(n, Ok(Out::SlotsCopied));
    }

    /// One standby after the other: nobody whose word is in the store has its server stopped for copies at the same time.
    fn check_turn(&mut self, n: usize) {
        let copies = |o: &usize| self.nodes[*o].agent.doing.is_some_and(|doing| doing.job == Job::CopySlots);
        let says_so = |o: &usize| self.store.member_state(&name(*o)) == Some(MemberState::Restarting);
        let other = self.members().filter(|o| *o != n).find(|o| copies(o) && says_so(o));
        if let Some(other) = other {
            self.violate("two-restarts", format!("n{n} and n{other} stop for copies at the same time"));
        }
    }

    /// A node that may lead and lacks a permanent slot, once there are some.
    pub(crate) fn lacks_slots(&self) -> Option<usize> {
        let wanted = self.store.setting("slots")?.as_object()?;
        let has = |n: &usize| {
            wanted.keys().all(|slot| self.nodes[*n].disk.logical.contains(&SlotName(slot.clone())))
        };
        let may_lead = |n: &usize| self.nodes[*n].agent.rules.tags.failover == Failover::Allowed;
        self.members().filter(may_lead).find(|n| !has(n))
    }
}
