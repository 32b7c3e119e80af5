//! The simulated promises and the questions of a leader without a store: what `ha::promises`, `ha::lease` and `POST /failsafe` do.

use std::collections::BTreeSet;

use pgherd::clock::Moment;
use pgherd::ha::failsafe::Outcome;
use pgherd::ha::promises::Promise;
use pgherd::ha::view::{Lease, Store, demote_margin, upstream_at};
use pgherd::types::{Lsn, NodeName};

use crate::agent::addresses;
use crate::postgres::State;
use crate::world::{Ev, World, name};

/// What `PROMISE_PATIENCE` is there.
const PATIENCE: u64 = 2_000_000;

/// Where promises and attempts to lead meet.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    promised: Option<Promise>,
    /// The question of whom that was given in answer to, and what bound before.
    answered: Option<(usize, Moment, Option<Promise>)>,
    standing: Option<Moment>,
}

/// A round of questions.
#[derive(Debug)]
pub(crate) struct Asking {
    asked: Moment,
    promised: BTreeSet<NodeName>,
}

fn promise(n: usize, (given, until): (Moment, Moment), position: Option<Lsn>) -> Promise {
    let leader = name(n);
    let upstream = upstream_at(&leader, None, &addresses(n).conn_url);
    Promise { leader, until, given, position, upstream, slots: Default::default() }
}

impl World {
    /// A promise of the life before binds for a whole TTL.
    pub(crate) fn open_promises(&mut self, n: usize) {
        let until = self.clock(n) + self.nodes[n].agent.rules.timing.ttl;
        let bound = self.nodes[n].disk.promised_to;
        let given = self.clock(n);
        let bound = bound.map(|leader| promise(leader, (given, until), None));
        self.agent(n).promises = Promises { promised: bound, ..Promises::default() };
    }

    /// What binds this node at this look.
    pub(crate) fn look_at_promises(&mut self, n: usize, store: &Store) {
        let now = self.clock(n);
        let over = |promise: &Promise| match store {
            Store::Fresh(snapshot) => now >= promise.until || promise.is_over(snapshot),
            Store::Silent { .. } => now >= promise.until,
        };
        if self.agent(n).promises.promised.as_ref().is_some_and(over) {
            self.agent(n).promises.promised = None;
            self.nodes[n].disk.promised_to = None;
        }
        let agent = self.agent(n);
        agent.memory.promised.clone_from(&agent.promises.promised);
    }

    /// Whether the key may be asked for now.
    pub(crate) fn stand(&mut self, n: usize) -> bool {
        let now = self.clock(n);
        let open = 2 * self.nodes[n].agent.rules.timing.ttl;
        let promises = &mut self.agent(n).promises;
        let free = promises.promised.as_ref().is_none_or(|promise| now >= promise.until);
        if free {
            promises.standing = Some(now + open);
        }
        free
    }

    pub(crate) fn sit_down(&mut self, n: usize) {
        self.agent(n).promises.standing = None;
    }

    pub(crate) fn ask_members(&mut self, n: usize) {
        let asked = self.clock(n);
        self.agent(n).memory.roll.ask(asked);
        self.agent(n).asking = Some(Asking { asked, promised: BTreeSet::new() });
        let inc = self.nodes[n].agent.inc;
        let node = &self.nodes[n];
        let serves = node.pg.primary && node.pg.state == State::Ready;
        let position = node.disk.files.as_ref().filter(|_| serves).map(|files| Lsn(files.end));
        let others = self.nodes[n].agent.memory.roll.others(&name(n));
        for to in others.keys().filter_map(|other| other.as_str()[1..].parse::<usize>().ok()) {
            if self.reaches(n, to) {
                let delay = self.latency(n, to);
                self.at(delay, Ev::Ping(n, inc, (asked, position), to));
            }
        }
        self.at(PATIENCE, Ev::RoundEnds(n, inc, asked));
    }

    /// A leader's question arrives.
    pub(crate) fn pinged(&mut self, n: usize, inc: u64, asked: (Moment, Option<Lsn>), to: usize) {
        let (asked, position) = asked;
        let now = self.clock(to);
        let node = &mut self.nodes[to];
        let leads = node.agent.lease != Lease::None || (node.pg.primary && node.pg.state == State::Ready);
        let stands = node.agent.promises.standing.is_some_and(|until| now < until);
        if !node.agent.alive || leads || stands {
            return;
        }
        let until = now + node.agent.rules.timing.ttl;
        let until = node.agent.promises.promised.as_ref().map_or(until, |before| until.max(before.until));
        let promises = &mut node.agent.promises;
        let before = promises.promised.replace(promise(n, (now, until), position));
        promises.answered = Some((n, asked, before));
        node.disk.promised_to = Some(n);
        if self.reaches(to, n) {
            let delay = self.latency(to, n);
            self.at(delay, Ev::Promise(n, inc, asked, to));
        }
    }

    pub(crate) fn promise_came(&mut self, n: usize, inc: u64, asked: Moment, from: usize) {
        if self.nodes[n].agent.inc != inc {
            return;
        }
        let others = self.nodes[n].agent.memory.roll.others(&name(n)).len();
        let Some(asking) = self.agent(n).asking.as_mut().filter(|a| a.asked == asked) else { return };
        asking.promised.insert(name(from));
        if asking.promised.len() >= others {
            self.round_ends(n, inc, asked);
        }
    }

    pub(crate) fn round_ends(&mut self, n: usize, inc: u64, asked: Moment) {
        if self.nodes[n].agent.inc != inc || !self.nodes[n].agent.alive {
            return;
        }
        let Some(asking) = self.agent(n).asking.take_if(|a| a.asked == asked) else { return };
        match self.agent(n).memory.roll.hear(asked, &name(n), &asking.promised) {
            Outcome::Agreed => self.extend(n, asked),
            Outcome::Refused(_) => self.withdraw(n, asked),
        }
        self.woken(n);
    }

    /// A question has come to nothing, and everybody who hears of that is bound as before it.
    fn withdraw(&mut self, n: usize, asked: Moment) {
        for to in self.members().filter(|to| *to != n) {
            if self.reaches(n, to) {
                let delay = self.latency(n, to);
                self.at(delay, Ev::Withdrawn(n, asked, to));
            }
        }
    }

    pub(crate) fn withdrawn(&mut self, n: usize, asked: Moment, to: usize) {
        let node = &mut self.nodes[to];
        let promises = &mut node.agent.promises;
        let is_it =
            |(leader, question, _): &(usize, Moment, Option<Promise>)| (*leader, *question) == (n, asked);
        let Some((_, _, before)) = promises.answered.take_if(|answered| is_it(answered)) else { return };
        if promises.promised.as_ref().is_some_and(|promise| promise.leader == name(n)) {
            promises.promised = before;
            let leader = promises.promised.as_ref().and_then(|p| p.leader.as_str()[1..].parse().ok());
            node.disk.promised_to = leader;
        }
    }

    /// `Lease::Held` moves, and the deadman with it.
    fn extend(&mut self, n: usize, asked: Moment) {
        let Lease::Held { sent, ttl } = self.nodes[n].agent.lease else { return };
        if asked > sent {
            self.log(n, || "goes on: all have promised".into());
            self.retime_watchdog(n, asked + ttl);
            let ttl = self.guarded(n, ttl);
            self.agent(n).lease = Lease::Held { sent: asked, ttl };
            self.agent(n).extended = Some(asked);
            self.arm(n);
        }
    }

    /// Whether the promises of the others still last.
    pub(crate) fn promises_hold(&self, n: usize) -> bool {
        match (self.nodes[n].agent.extended, self.nodes[n].agent.lease) {
            (Some(asked), Lease::Held { ttl, .. }) => self.clock(n) < asked + ttl - demote_margin(ttl),
            (Some(_), Lease::None | Lease::Lost) | (None, _) => false,
        }
    }
}
