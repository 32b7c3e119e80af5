//! The simulated agent's long actions, as `ha::jobs` runs them, and what the agent remembers of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use pgherd::ha::Phase;
use pgherd::ha::lineage;
use pgherd::ha::manual::{self, HandOver, HandOverEnd};
use pgherd::ha::reason::Task;
use pgherd::ha::rules::Pause;
use pgherd::ha::turn::Copies;
use pgherd::ha::view::{
    Ancestry, Checkpoint, Doing, Job, Poll, PollAnswer, Survey, SurveyAnswer, UpstreamWal,
};
use pgherd::postgres::{Containment, StopMode, Upstream};
use pgherd::record::Bootstrap;
use pgherd::supervisor::unit;
use pgherd::types::{NodeName, SystemId, Timeline};

use crate::agent::{Stage, address, index};
use crate::postgres::State;
use crate::world::{Ev, World, name};

/// What a job leaves behind.
pub(crate) enum Out {
    Stopped,
    Initialised,
    Bootstrapped,
    Cloned,
    Rewound,
    SlotsCopied,
    Promoted,
    HandedOver(HandOver),
    Polled(BTreeMap<NodeName, PollAnswer>),
    Surveyed(BTreeMap<IpAddr, SurveyAnswer>),
    Compared(Ancestry),
}

impl World {
    pub(crate) fn begin(&mut self, n: usize, task: Task) {
        let now = self.clock(n);
        let job = task.job();
        // One that stands still while it makes its data, and finds another's cluster afterwards, has hurt nobody.
        if task == Task::Initdb && self.cluster_existed {
            self.violate("initdb-after-cluster", format!("initdb on n{n} although a cluster exists"));
        }
        self.check_pause(n, &task);
        self.check_standby(n, &task);
        if matches!(job, Job::Clone | Job::Rewind) {
            let source = self.acting(n).and_then(|acting| lineage::source(&acting.view));
            self.agent(n).memory.source = source;
        }
        let listed: Vec<usize> = self.members().filter(|i| *i != n && !self.hidden.contains(i)).collect();
        if job == Job::CopySlots {
            self.agent(n).memory.copies = Copies::Unknown;
        }
        let unlisted = task.job() == Job::Survey && !self.api_up;
        let known = self.nodes[n].agent.others.iter().copied();
        let others: BTreeSet<usize> = listed.into_iter().chain(known).collect();
        let others = others.into_iter().collect();
        let agent = self.agent(n);
        agent.job += 1;
        (agent.finished, agent.doing) = (None, Some(Doing { job, since: now }));
        (agent.task, agent.source) = (Some(task.clone()), None);
        agent.said.clear();
        agent.asked = if job == Job::Poll { agent.others.clone() } else { others };
        if unlisted {
            return self.ends(n, Err("the location list is not known yet".into()));
        }
        let (inc, id) = (agent.inc, agent.job);
        let work = |takes, step| (takes, Ev::Work(n, inc, id, step));
        let (takes, event) = match task {
            Task::Initdb => work(self.rng.range(300_000, 2_000_000), 0),
            Task::FinishBootstrap => work(self.rng.range(50_000, 600_000), 0),
            Task::Clone(_) | Task::CopyAlone | Task::Rewind(_) => work(self.rng.range(5_000, 60_000), 0),
            Task::Compare(_) => work(self.rng.range(5_000, 40_000), 0),
            Task::Approval(_) | Task::CopySlots { .. } => work(self.rng.range(3_000, 30_000), 0),
            Task::Promote => {
                self.at(10_000_000, Ev::Work(n, inc, id, 1));
                work(self.rng.range(3_000, 30_000), 0)
            }
            Task::StopAfterCheckpoint(_) | Task::HandOver { .. } => {
                work(self.rng.range(20_000, 2_000_000), 0)
            }
            Task::Stop(_) => work(0, 0),
            Task::Poll | Task::Survey => {
                for to in self.nodes[n].agent.asked.clone() {
                    if self.reaches(n, to) {
                        let delay = self.latency(n, to);
                        self.at(delay, Ev::Ask(n, inc, id, to));
                    }
                }
                work(2_000_000, 0)
            }
        };
        self.at(takes, event);
    }

    /// In maintenance nobody is stopped, copied or promoted unless a person has asked for it.
    fn check_pause(&mut self, n: usize, task: &Task) {
        let moves = matches!(
            task,
            Task::Initdb
                | Task::Clone(_)
                | Task::CopyAlone
                | Task::Promote
                | Task::Stop(_)
                | Task::StopAfterCheckpoint(_)
                | Task::CopySlots { .. }
                | Task::HandOver { .. }
        );
        let agent = &self.nodes[n].agent;
        let asked = agent.memory.orders.moves_postgres() || self.store.is_asked();
        if moves && agent.rules.pause == Pause::On && agent.phase == Phase::Serving && !asked {
            self.violate("moved-in-pause", format!("n{n} begins {:?} in maintenance", task.job()));
        }
    }

    /// A cluster that follows another one is not made by initdb, and nobody in it is promoted.
    fn check_standby(&mut self, n: usize, task: &Task) {
        let follows = self.nodes[n].agent.rules.remote.is_some();
        if follows && matches!(task, Task::Initdb | Task::Promote) {
            self.violate("standby-writes", format!("n{n} begins {:?} in a standby cluster", task.job()));
        }
    }

    /// A primary is not stopped for members of which none has ever streamed from it, nor from one that has.
    fn check_heirs(&mut self, n: usize, to: &BTreeSet<NodeName>) {
        let fed = &self.nodes[n].pg.fed;
        let feeder = |i: usize| self.nodes[i].pg.upstream;
        let reached = |i: usize| {
            std::iter::successors(Some(i), |i| feeder(*i)).take(self.nodes.len()).any(|i| fed.contains(&i))
        };
        if self.is_primary(n) && !self.members().filter(|i| to.contains(&name(*i))).any(reached) {
            self.violate(
                "stopped-for-nobody",
                format!("n{n} hands over to {to:?}, and nobody streams from it"),
            );
        }
    }

    pub(crate) fn work(&mut self, n: usize, inc: u64, job: u64, step: u8) {
        let valid =
            self.current(n, inc) && self.nodes[n].agent.job == job && self.nodes[n].agent.doing.is_some();
        let Some(task) =
            self.nodes[n].agent.task.clone().filter(|_| valid && self.nodes[n].agent.finished.is_none())
        else {
            return;
        };
        match task {
            Task::Initdb => {
                self.pg_initdb(n);
                self.ends(n, Ok(Out::Initialised));
            }
            Task::FinishBootstrap if self.is_primary(n) => self.ends(n, Ok(Out::Bootstrapped)),
            Task::FinishBootstrap => self.ends(n, Err("no answer".into())),
            Task::Clone(up) => self.copy(n, index(&up), step),
            // Only an administrator's file names such a command.
            Task::CopyAlone => self.ends(n, Err("no program is named here".into())),
            Task::Rewind(up) => self.rewind(n, index(&up), step),
            Task::Compare(up) => self.compare(n, &up, step),
            Task::Approval(_) => self.ends(n, Err("no program is named here".into())),
            Task::CopySlots { from, names } => self.copy_slots(n, index(&from), names, step),
            Task::Promote if step == 0 => {
                let pid = self.nodes[n].pg.pid;
                self.at(0, Ev::Promote(n, pid));
            }
            Task::Promote => self.ends(n, Err("it is no primary yet".into())),
            Task::Stop(mode) | Task::StopAfterCheckpoint(mode) => {
                self.stop_postgres(n, mode);
                self.log(n, || "stops PostgreSQL".into());
                self.at(0, Ev::Process(n));
            }
            Task::HandOver { to, .. } if step == 0 => {
                self.check_heirs(n, &to);
                self.stop_postgres(n, StopMode::Fast { patience: Duration::from_secs(10) });
                self.log(n, || "stops PostgreSQL to hand over".into());
                self.at(0, Ev::Process(n));
            }
            Task::HandOver { to, request } => {
                let end = self.reached(n, &to);
                self.ends(n, Ok(Out::HandedOver(HandOver { request, end })));
            }
            Task::Poll | Task::Survey => self.all_said(n),
        }
    }

    pub(crate) fn stop_postgres(&mut self, n: usize, mode: StopMode) {
        self.unit_step(n, unit::Event::StopAsked { ladder: mode.ladder() }, |_, _| {
            unreachable!("nothing starts")
        })
        .ok();
    }

    /// Who of these has everything that this node wrote, its shutdown checkpoint included.
    fn reached(&self, n: usize, to: &BTreeSet<NodeName>) -> HandOverEnd {
        let Some(mine) = self.files(n).filter(|f| manual::end_of_shutdown(&f.control).is_some()) else {
            return HandOverEnd::Missed("it was no clean shutdown".into());
        };
        let has = |i: &usize| {
            let whole =
                |f: &crate::postgres::Files| self.contains((f.branch, f.end), (mine.branch, mine.end));
            self.both_ways(n, *i) && self.nodes[*i].agent.alive && self.files(*i).is_some_and(whole)
        };
        let reached = self.members().filter(|i| to.contains(&name(*i))).find(has);
        reached.map_or_else(|| HandOverEnd::Missed("nobody has it".into()), |i| HandOverEnd::Reached(name(i)))
    }

    /// Whether the source can be worked with, and is still the process that it was.
    pub(crate) fn source(&mut self, n: usize, from: usize) -> Result<(), String> {
        let up = &self.nodes[from];
        let there = up.pg.state == State::Ready && !up.paused && !up.pg.hung && up.disk.files.is_some();
        if !there || !self.both_ways(n, from) {
            return Err("the source does not answer".into());
        }
        let pid = self.nodes[from].pg.pid;
        let known = self.agent(n).source.get_or_insert((from, pid)).1;
        if known == pid { Ok(()) } else { Err("the source has restarted".into()) }
    }

    pub(crate) fn copy(&mut self, n: usize, from: usize, step: u8) {
        if self.nodes[n].pg.state != State::Down {
            return self.ends(n, Err("PostgreSQL still runs".into()));
        }
        if self.nodes[n].full {
            return self.ends(n, Err("No space left on device".into()));
        }
        if let Err(why) = self.source(n, from) {
            return self.ends(n, Err(why));
        }
        if step == 0 {
            self.check_need(n, from);
            if self.nodes[n].disk.files.is_none() {
                self.nodes[n].disk.incomplete = Some("a clone did not finish");
            }
            return self.later(n, 300_000, 5_000_000);
        }
        let result = self.pg_clone(n, from).map(|()| Out::Cloned);
        self.check_copies(n);
        self.ends(n, result);
    }

    pub(crate) fn rewind(&mut self, n: usize, from: usize, step: u8) {
        if self.nodes[n].pg.state != State::Down {
            return self.ends(n, Err("PostgreSQL still runs".into()));
        }
        if self.nodes[n].full {
            return self.ends(n, Err("No space left on device".into()));
        }
        if let Err(why) = self.source(n, from) {
            return self.ends(n, Err(why));
        }
        if step == 0 {
            self.nodes[n].disk.incomplete = Some("a rewind did not finish");
            return self.later(n, 100_000, 2_000_000);
        }
        let result = self.pg_rewind(n, from).map(|()| Out::Rewound);
        self.check_copies(n);
        self.ends(n, result);
    }

    pub(crate) fn later(&mut self, n: usize, from: u64, to: u64) {
        let (inc, job) = (self.nodes[n].agent.inc, self.nodes[n].agent.job);
        let takes = self.rng.range(from, to);
        self.at(takes, Ev::Work(n, inc, job, 1));
    }

    pub(crate) fn compare(&mut self, n: usize, up: &Upstream, step: u8) {
        let from = index(up);
        if self.source(n, from).is_err() {
            let refused = self.both_ways(n, from) && !self.nodes[from].paused;
            if step == 0 && !refused {
                return self.later(n, 5_000_000, 5_000_001);
            }
            return self.ends(n, Err("no answer".into()));
        }
        let Some(branch) = self.files(from).map(|f| f.branch) else {
            return self.ends(n, Err("no answer".into()));
        };
        let (timeline, history) = (Timeline(self.tli(branch)), self.history(branch));
        let (at, contains_ours) = (self.clock(n), self.containment(n, from));
        if contains_ours == Containment::Differs {
            self.log(n, || format!("finds something else on n{from} where its last checkpoint is"));
            self.n_differs += 1;
        }
        let (leader, system_id) = (up.name.clone(), self.files(from).map(|f| f.control.system_id));
        let ancestry = Ancestry { leader, at, system_id, timeline, history, contains_ours };
        self.ends(n, Ok(Out::Compared(ancestry)));
    }

    pub(crate) fn asked(&mut self, n: usize, inc: u64, job: u64, to: usize) {
        let agent = &self.nodes[to].agent;
        if !agent.alive || !self.reaches(to, n) {
            return;
        }
        let page = agent.page.clone().unwrap_or(PollAnswer::Unreachable);
        let id = agent.data_page;
        let delay = self.latency(to, n);
        self.at(delay, Ev::Said(n, inc, job, to, page, id));
    }

    pub(crate) fn said(
        &mut self,
        (n, inc, job): (usize, u64, u64),
        from: usize,
        answer: PollAnswer,
        id: Option<SystemId>,
    ) {
        if !self.current(n, inc) || self.nodes[n].agent.job != job || self.nodes[n].agent.finished.is_some() {
            return;
        }
        let agent = self.agent(n);
        agent.said.insert(from, (answer, id));
        if agent.said.len() == agent.asked.len() {
            self.all_said(n);
        }
    }

    pub(crate) fn all_said(&mut self, n: usize) {
        let agent = self.agent(n);
        if agent.finished.is_some() {
            return;
        }
        let said = std::mem::take(&mut agent.said);
        let asked = agent.asked.clone();
        let out = if agent.doing.is_some_and(|d| d.job == Job::Poll) {
            let answer = |i: &usize| said.get(i).map_or(PollAnswer::Unreachable, |(a, _)| a.clone());
            Out::Polled(asked.iter().map(|i| (name(*i), answer(i))).collect())
        } else {
            let answer = |i: &usize| match said.get(i) {
                None => SurveyAnswer::Silent,
                Some((_, id)) => id.map_or(SurveyAnswer::NoData, SurveyAnswer::Data),
            };
            Out::Surveyed(asked.iter().map(|i| (address(*i), answer(i))).collect())
        };
        self.ends(n, Ok(out));
    }

    pub(crate) fn ends(&mut self, n: usize, result: Result<Out, String>) {
        let agent = self.agent(n);
        let Some(doing) = agent.doing else { return };
        agent.finished = Some((doing.job, result));
        if matches!(self.agent(n).stage, Stage::Waiting { .. }) {
            self.tick(n);
        }
    }

    pub(crate) fn take_in(&mut self, n: usize, job: Job, result: Result<Out, String>) {
        let now = self.clock(n);
        let agent = self.agent(n);
        agent.doing = None;
        let out = match result {
            Ok(out) => out,
            Err(why) => {
                agent.memory.failed(job, now, why.clone());
                return self.log(n, || format!("{job:?} failed: {why}"));
            }
        };
        agent.memory.ended_well(job);
        match out {
            Out::Stopped => agent.memory.orders.stopped(now),
            Out::Initialised | Out::SlotsCopied => {}
            Out::Bootstrapped => self.nodes[n].disk.bootstrap = Bootstrap::Settled,
            Out::Cloned => {
                agent.memory.orders.copied(now);
                (agent.memory.ancestry, agent.memory.upstream_wal) = (None, UpstreamWal::Kept);
                agent.memory.copied_at(now);
                let source = agent.memory.source.take();
                self.nodes[n].disk.bootstrap = Bootstrap::Settled;
                (self.nodes[n].disk.promoted, self.nodes[n].disk.followed) = (None, source);
                self.nodes[n].disk.unconfirmed = false;
            }
            Out::Rewound => {
                agent.memory.rewound_at(now);
                let source = agent.memory.source.take();
                (self.nodes[n].disk.promoted, self.nodes[n].disk.followed) = (None, source);
                self.nodes[n].disk.unconfirmed = false;
            }
            Out::Promoted => agent.memory.checkpoint = Checkpoint::Owed,
            Out::HandedOver(handover) => agent.memory.handover = Some(handover),
            Out::Polled(answers) => agent.memory.poll = Some(Poll { at: now, answers }),
            Out::Surveyed(answers) => agent.memory.survey = Some(Survey { at: now, answers }),
            Out::Compared(ancestry) => agent.memory.ancestry = Some(ancestry),
        }
        self.process(n);
    }

    /// The local process has changed, or what was asked of it is done.
    pub(crate) fn process(&mut self, n: usize) {
        if !self.nodes[n].agent.alive {
            return;
        }
        self.arm(n);
        let pg = &self.nodes[n].pg;
        let (serves, made) = (pg.primary && pg.state == State::Ready, !pg.checkpoint_owed);
        let down = self.unit_is_down(n);
        let agent = self.agent(n);
        if agent.memory.checkpoint == Checkpoint::Owed && made {
            agent.memory.checkpoint = Checkpoint::Made;
        }
        if down && agent.doing.is_some_and(|d| d.job == Job::HandOver) {
            let (inc, job) = (agent.inc, agent.job);
            return self.at(20_000, Ev::Work(n, inc, job, 1));
        }
        let result = match agent.doing.map(|d| d.job).filter(|_| agent.finished.is_none()) {
            Some(Job::Stop) if down => Some(Ok(Out::Stopped)),
            Some(Job::Promote) if down => Some(Err("it has ended".to_owned())),
            Some(Job::Promote) if serves => Some(Ok(Out::Promoted)),
            Some(_) | None => None,
        };
        if let Some(result) = result {
            agent.finished = agent.doing.map(|d| (d.job, result));
        }
    }

    pub(crate) fn process_changed(&mut self, n: usize) {
        self.at(1_000, Ev::Process(n));
    }
}
