//! The simulated lease task, as `ha::lease` has it: renewals, their loss, and when the deadman is due.

use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::ha::reason::Action;
use pgherd::ha::rules::Pause;
use pgherd::ha::view::{DEADMAN_MARGIN, Lease, demote_margin};

use crate::agent::{CALL, Ended, Slot};
use crate::postgres::State;
use crate::store::{Answer, Request};
use crate::world::{Ev, World, name};

impl World {
    pub(crate) fn hold(&mut self, n: usize, sent: Moment, ttl: u64) {
        let ttl = Duration::from_micros(ttl);
        self.retime_watchdog(n, sent + ttl);
        let ttl = self.guarded(n, ttl);
        let agent = self.agent(n);
        agent.woken |= !matches!(agent.lease, Lease::Held { .. });
        agent.lease = Lease::Held { sent, ttl };
        agent.renewal += 1;
        let (inc, renewal, wait) = (agent.inc, agent.renewal, agent.rules.timing.loop_wait);
        self.arm(n);
        // One that was under way when the configuration changed.
        self.shorten(n);
        let delay = self.until(n, sent + wait);
        self.at(delay, Ev::Renewal(n, inc, renewal));
    }

    pub(crate) fn renew(&mut self, n: usize, inc: u64, renewal: u64) {
        if !self.current(n, inc) || self.nodes[n].agent.renewal != renewal {
            return;
        }
        let op = self.next_op(n);
        let sent = self.clock(n);
        self.agent(n).renewing = Some((op, sent));
        self.ask_store(n, (Slot::Lease, op), Request::Renew, CALL);
    }

    pub(crate) fn renewed(&mut self, n: usize, sent: Moment, result: &Ended) {
        self.agent(n).renewing = None;
        let (inc, renewal) = (self.nodes[n].agent.inc, self.nodes[n].agent.renewal);
        match result {
            Ended::Answer(answer) => match **answer {
                Answer::Held(ttl) => self.hold(n, sent, ttl),
                Answer::Done | Answer::Conflict | Answer::Snapshot(_) => self.lost(n),
            },
            Ended::Failed(_) | Ended::Done => self.lost(n),
            Ended::Unknown => self.at(200_000, Ev::Renewal(n, inc, renewal)),
        }
    }

    /// A shorter TTL counts at once, as the lease task has it.
    pub(crate) fn shorten(&mut self, n: usize) {
        let Lease::Held { sent, ttl } = self.nodes[n].agent.lease else { return };
        let shorter = self.nodes[n].agent.rules.timing.ttl;
        if shorter < ttl {
            self.retime_watchdog(n, sent + shorter);
        }
        let limit = self.guarded(n, shorter);
        if limit < ttl {
            self.agent(n).lease = Lease::Held { sent, ttl: limit };
            self.arm(n);
        }
    }

    pub(crate) fn lost(&mut self, n: usize) {
        if self.promises_hold(n) {
            self.log(n, || "the key has run out under the failsafe".into());
            return self.woken(n);
        }
        self.log(n, || "the lease is lost".into());
        self.agent(n).lease = Lease::Lost;
        self.woken(n);
    }

    pub(crate) fn send_release(&mut self, n: usize) {
        let lease = self.nodes[n].agent.released.or_else(|| self.store.lease_of(&name(n)));
        self.agent(n).released = lease;
        self.send_act(n, Request::Release(lease));
    }

    /// What a renewal under way would say is about a lease that is given up.
    pub(crate) fn forget(&mut self, n: usize) {
        let agent = self.agent(n);
        (agent.lease, agent.renewing) = (Lease::None, None);
        agent.extended = None;
        agent.renewal += 1;
        match self.acting(n).and_then(|acting| acting.current.clone()) {
            Some(Action::Release) => self.send_release(n),
            Some(_) | None => self.act(n),
        }
    }

    pub(crate) fn deadman(&mut self, n: usize, generation: u64) {
        let Some(deadline) = self.nodes[n].deadman else { return };
        if self.nodes[n].deadman_gen != generation || self.clock(n) < deadline {
            return;
        }
        self.nodes[n].deadman = None;
        // Whatever is PostgreSQL at that moment: `init` is told of every postmaster.
        if self.nodes[n].pg.state != State::Down {
            self.log(n, || "the deadman stops PostgreSQL".into());
            self.end_agent(n);
            self.init_stops(n);
            self.reboot(n, 1_000_000);
        }
    }

    pub(crate) fn arm(&mut self, n: usize) {
        let Lease::Held { sent, ttl } = self.nodes[n].agent.lease else { return };
        self.arm_at(n, sent + ttl - DEADMAN_MARGIN);
    }

    /// After maintenance, in which a lease may have run out unheeded: there is time for an orderly stop.
    pub(crate) fn arm_again(&mut self, n: usize) {
        let Lease::Held { sent, ttl } = self.nodes[n].agent.lease else { return };
        let orderly = self.clock(n) + (demote_margin(ttl) - DEADMAN_MARGIN);
        self.arm_at(n, (sent + ttl - DEADMAN_MARGIN).max(orderly));
    }

    pub(crate) fn arm_at(&mut self, n: usize, deadline: Moment) {
        let paused = self.nodes[n].agent.rules.pause == Pause::On;
        if self.nodes[n].pg.state == State::Down || !self.schedule.deadman || paused {
            return;
        }
        self.nodes[n].deadman = Some(deadline);
        self.nodes[n].deadman_gen += 1;
        let (delay, generation) = (self.until(n, deadline), self.nodes[n].deadman_gen);
        self.at(delay, Ev::Deadman(n, generation));
    }
}
