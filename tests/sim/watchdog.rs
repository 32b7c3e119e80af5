//! A machine's watchdog, with what `ha::arming` tells it. It counts on when everything else on the machine has ended or stands still.

use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::ha::view::Lease;
use pgherd::ha::watchdog::{Device, Waits, Watch, within};
use pgherd::process::Farewell;

use crate::postgres::State;
use crate::world::{Ev, World};

/// From the reset to the start of the node.
const BOOT: u64 = 3_000_000;

/// The device: it outlives the process that holds it.
#[derive(Debug, Default)]
pub(crate) struct Dog {
    fires: Option<Moment>,
    generation: u64,
    pub(crate) resets: u64,
}

impl World {
    pub(crate) fn arm_watchdog(&mut self, n: usize) {
        let (now, agent) = (self.clock(n), &self.nodes[n].agent);
        let wanted = agent.rules.watchdog.timeout(&agent.rules.timing).ok();
        let waits = match (agent.lease, wanted) {
            (Lease::Held { sent, ttl }, Some(wanted)) => within(sent + ttl, wanted, now),
            (Lease::Held { .. }, None) | (Lease::None | Lease::Lost, _) => None,
        };
        let Some(waits) = waits else {
            self.agent(n).memory.watchdog.refused("there is no time".into(), now);
            return self.act(n);
        };
        self.log(n, || format!("its watchdog counts, for {waits:?}"));
        let device = Device { waits: Waits::AsTold, farewell: Farewell::Heeded };
        let agent = self.agent(n);
        (agent.guarded_for, agent.memory.watchdog) = (wanted, Watch::Armed(device));
        self.tell_watchdog(n, Some(now + waits));
        self.shorten(n);
        self.act(n);
    }

    pub(crate) fn disarm_watchdog(&mut self, n: usize) {
        self.log(n, || "its watchdog is stopped".into());
        let agent = self.agent(n);
        (agent.guarded_for, agent.memory.watchdog) = (None, Watch::Idle);
        self.tell_watchdog(n, None);
        self.act(n);
    }

    /// A process that ends after its server stops it.
    pub(crate) fn leave_watchdog(&mut self, n: usize) {
        if self.nodes[n].pg.state == State::Down && self.nodes[n].agent.guarded_for.is_some() {
            self.tell_watchdog(n, None);
        }
    }

    /// The lease ends then: it was renewed, or the durations have changed.
    pub(crate) fn retime_watchdog(&mut self, n: usize, end: Moment) {
        let (now, agent) = (self.clock(n), self.agent(n));
        let Some(before) = agent.guarded_for else { return };
        let limit = agent.rules.watchdog.timeout(&agent.rules.timing).unwrap_or(before);
        agent.guarded_for = Some(limit);
        if let Some(waits) = within(end, limit, now) {
            self.tell_watchdog(n, Some(now + waits));
        }
    }

    /// For how long a lease counts.
    pub(crate) fn guarded(&self, n: usize, ttl: Duration) -> Duration {
        self.nodes[n].agent.guarded_for.map_or(ttl, |limit| ttl.min(limit))
    }

    pub(crate) fn tell_watchdog(&mut self, n: usize, fires: Option<Moment>) {
        let dog = &mut self.nodes[n].dog;
        (dog.fires, dog.generation) = (fires, dog.generation + 1);
        let generation = dog.generation;
        if let Some(at) = fires {
            let delay = self.until(n, at);
            self.at(delay, Ev::Watchdog(n, generation));
        }
    }

    pub(crate) fn watchdog(&mut self, n: usize, generation: u64) {
        let dog = &self.nodes[n].dog;
        if dog.generation != generation || dog.fires.is_none_or(|at| self.clock(n) < at) {
            return;
        }
        self.nodes[n].dog.resets += 1;
        self.log(n, || "the watchdog resets the machine".into());
        self.crash(n);
        self.nodes[n].off = false;
        self.reboot(n, BOOT);
    }
}
