//! What the events of a schedule do: faults, their ends, and what people and clients ask for.

use pgherd::clock::Moment;
use pgherd::dcs::{Failover, Precondition};
use pgherd::ha::Phase;
use pgherd::ha::orders::{
    Accepted, Conditions, Insistence, Orders, Reinitialize, Restart, Source, Stage as OrderStage,
};
use pgherd::ha::rules::Pause;
use pgherd::types::{Lsn, NodeName};

use crate::agent::{Ended, tags};
use crate::etcd::Here;
use crate::faults::{Fault, Tag, Voters};
use crate::postgres::{Disk, State};
use crate::slots::permanent;
use crate::store::{Document, Request};
use crate::world::{EPOCH, Ev, World, name};

/// A copy in the place of this one, if two others are whole.
const REINITIALIZE: Reinitialize =
    Reinitialize { insistence: Insistence::Careful, source: Source::Usual, stage: Accepted::No };

fn restart(now: Moment) -> Restart {
    Restart { conditions: Conditions::default(), timeout: None, stage: OrderStage::Asked, since: now }
}

impl World {
    pub(crate) fn fault(&mut self, fault: &Fault) {
        match *fault {
            Fault::CrashNode(n) => self.crash(n),
            Fault::StartNode(n) => self.start(n),
            Fault::CrashPostgres(n) => self.pg_down(n, self.nodes[n].pg.pid, false),
            Fault::CrashEtcd(n) => self.crash_etcd(n),
            Fault::KillAgent(n) => {
                self.end_agent(n);
                self.init_stops(n);
                self.reboot(n, 1_000_000);
            }
            Fault::Freeze(n) => self.nodes[n].frozen = true,
            Fault::Thaw(n) => {
                self.nodes[n].frozen = false;
                self.catch_up(n);
            }
            Fault::Pause(n) => self.nodes[n].paused = true,
            Fault::Resume(n) => self.resume(n),
            Fault::Stop(n) => self.ask_to_stop(n),
            Fault::Wipe(n) => self.wipe(n),
            Fault::Cut(a, b) => self.cut[a][b] = true,
            Fault::Heal(a, b) => self.cut[a][b] = false,
            Fault::Isolate(n) => self.isolate(n, true),
            Fault::Rejoin(n) => self.isolate(n, false),
            Fault::StoreCut(n) => (self.nodes[n].store_out, self.nodes[n].store_in) = (false, false),
            Fault::StoreMute(n) => self.nodes[n].store_in = false,
            Fault::StoreHeal(n) => (self.nodes[n].store_out, self.nodes[n].store_in) = (true, true),
            Fault::StoreDown => self.store_up = false,
            Fault::StoreUp => self.store_up = true,
            Fault::StoreElection => self.store.restart_leases(self.now),
            Fault::StoreAnswers => self.check_store_answers(),
            Fault::Served => self.check_served(),
            Fault::Slow(n, ms) => self.nodes[n].slow = ms,
            Fault::Write(n) => self.write_once(n),
            Fault::Read(n) => self.read_all(n),
            Fault::Set(ref key, ref value) => self.set(key, value),
            Fault::CrashAt(n, ref at) => self.nodes[n].trips.push((Fault::CrashNode(n), at.clone())),
            Fault::CutAt(n, ref at) => self.nodes[n].trips.push((Fault::StoreCut(n), at.clone())),
            Fault::MuteAt(n, ref at) => self.nodes[n].trips.push((Fault::StoreMute(n), at.clone())),
            Fault::Differed => self.check_differed(),
            Fault::WasReset => self.check_reset(),
            Fault::DiskFull(n) => self.nodes[n].full = true,
            Fault::DiskFree(n) => self.nodes[n].full = false,
            Fault::DiskSlow(n) => self.nodes[n].slow_disk = true,
            Fault::DiskFast(n) => self.nodes[n].slow_disk = false,
            Fault::RemotePromote => self.remote_promote(),
            Fault::RemoteFollow => self.remote_follow(),
            Fault::Hang(n) => self.nodes[n].pg.hung = true,
            Fault::Unhang(n) => self.unhang(n),
            Fault::LoseWal(n) => self.lose_wal(n),
            Fault::ApiDown => self.api_up = false,
            Fault::ApiUp => self.api_up = true,
            Fault::ApiHide(n) => drop(self.hidden.insert(n)),
            Fault::ApiShow(n) => drop(self.hidden.remove(&n)),
            Fault::Switchover(to) => self.ask_for_switchover(to, None),
            Fault::Scheduled(to, at) => self.ask_for_switchover(to, Some(at)),
            Fault::Tag(ref tag) => self.tag(tag.clone()),
            Fault::ClockStep(n, seconds) => self.nodes[n].wall_ahead += seconds,
            Fault::Restart(n) => self.order(n, |orders, now| orders.restart = Some(restart(now))),
            Fault::Reinitialize(n) => self.order(n, |orders, _now| orders.reinitialize = Some(REINITIALIZE)),
        }
    }

    /// A person resumes the cluster once every primary is known to be there and paused.
    pub(crate) fn set(&mut self, key: &str, value: &serde_json::Value) {
        let resumes = key == "pause" && *value == false && self.paused_by_person();
        if let Some(n) = self.members().find(|n| resumes && !self.may_resume(*n)) {
            return self.leave_out(format!("n{n} may be a primary that does not hear of it"));
        }
        let hints = self.store.hints;
        if key == "standby" {
            return self.set_standby(*value == true);
        }
        if !self.store.is_configured() {
            return self.leave_out("there is no configuration yet".into());
        }
        if key == "slots" {
            let value = if *value == true { permanent() } else { serde_json::json!({}) };
            return self.store.configure(key, &value);
        }
        if key == "mode" && *value == "off" {
            self.promising = false;
        }
        self.store.configure(key, value);
        if self.store.hints != hints && key == "pause" {
            self.hint();
        }
    }

    /// The node reads its environment again, as at a reload.
    fn tag(&mut self, tag: Tag) {
        let n = tag.0;
        self.schedule.tags.retain(|(of, name, _)| (*of, name) != (n, &tag.1));
        self.schedule.tags.push(tag);
        let tags = tags(n, &self.schedule);
        let agent = self.agent(n);
        (agent.environment.tags, agent.rules.tags) = (tags.clone(), tags);
        self.woken(n);
    }

    pub(crate) fn paused_by_person(&self) -> bool {
        self.store.setting("pause") == Some(&true.into())
    }

    /// Whether this node is no primary, or one that sees the store and knows of the pause.
    pub(crate) fn may_resume(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let agent = &node.agent;
        let hears = agent.alive && !node.frozen && !node.paused && node.store_out && node.store_in;
        let knows = agent.rules.pause == Pause::On && agent.silent_since.is_none();
        !(node.pg.primary && node.pg.state != State::Down) || (hears && knows && self.store_up)
    }

    /// The end of maintenance, once everything is mended: as soon as it is safe.
    pub(crate) fn resume_cluster(&mut self) {
        if self.paused_by_person() {
            self.tell(|| "--- set pause off".into());
            self.set("pause", &false.into());
            (self.calm_from, _) = (self.now, self.at(1_000_000, Ev::Resume));
        }
    }

    /// A person asks for another leader, by way of a node that reaches the store.
    pub(crate) fn ask_for_switchover(&mut self, to: Option<usize>, at: Option<u64>) {
        let leader = self.store.leader().cloned().filter(|_| self.store_up);
        if leader.is_none() {
            return self.leave_out("nobody leads".into());
        }
        let instant = |ms: u64| jiff::Timestamp::from_millisecond(EPOCH + ms as i64);
        let scheduled_at = at.map(|ms| instant(ms).expect("within an hour").to_string());
        let request = Failover { leader, member: to.map(name), scheduled_at };
        let hints = self.store.hints;
        let write = Request::Put(Box::new(Document::Failover(request)), Precondition::None);
        self.store.apply(&NodeName::from("person"), write, self.now);
        if self.store.hints != hints {
            self.hint();
        }
    }

    /// A person asks something of one node, which must be there to hear it.
    pub(crate) fn order(&mut self, n: usize, give: impl FnOnce(&mut Orders, Moment)) {
        let node = &self.nodes[n];
        if !node.agent.alive || node.frozen || node.paused || node.agent.phase == Phase::Stopping {
            return self.leave_out("it does not answer".into());
        }
        let now = self.clock(n);
        give(&mut self.agent(n).memory.orders, now);
        self.woken(n);
    }

    pub(crate) fn hint(&mut self) {
        for to in self.members() {
            let delay = self.rng.range(500, 15_000);
            if self.nodes[to].store_in {
                self.at(delay, Ev::Hint(to));
            }
        }
    }

    pub(crate) fn unhang(&mut self, n: usize) {
        self.nodes[n].pg.hung = false;
        if let Some(signal) = self.nodes[n].pg.pending.take() {
            self.pg_signal(n, signal);
        }
        self.poke(n);
        self.one_primary();
    }

    pub(crate) fn lose_wal(&mut self, n: usize) {
        if let Some(files) = self.nodes[n].disk.files.as_mut() {
            files.wal_from = files.end;
        }
    }

    /// A client commits once.
    pub(crate) fn write_once(&mut self, n: usize) {
        if !self.accepts(n) {
            return self.tell(|| format!("client: n{n} takes no writes"));
        }
        self.commit(n);
        self.poke(n);
        let Some((branch, end)) = self.files(n).map(|f| (f.branch, f.end)) else { return };
        if self.acked.get(&branch).is_some_and(|acked| *acked >= end) {
            return self.tell(|| format!("client: n{n} acknowledged {}", Lsn(end)));
        }
        self.asked_for.insert((branch, end));
        self.tell(|| format!("client: {} is committed on n{n} and waits", Lsn(end)));
    }

    /// A client reads everything that is visible on a primary, or was while it was one.
    pub(crate) fn read_all(&mut self, n: usize) {
        if !self.accepts(n) {
            self.saw_own(n);
            return self
                .tell(|| format!("client: n{n} is no primary, the read promises only what it had as one"));
        }
        let seen = self.nodes[n].pg.visible;
        self.tell(|| format!("client: reads up to {} on n{n}", Lsn(seen)));
        self.saw_all(n);
    }

    /// A standby that lets readers in and was a primary: what it had then is seen, and must not vanish any more.
    pub(crate) fn saw_own(&mut self, n: usize) {
        let pg = &self.nodes[n].pg;
        let reads = pg.state == State::Ready && !pg.primary && !pg.closed && !pg.hung;
        let Some((branch, end)) = self.files(n).and_then(|f| f.own).filter(|_| reads) else { return };
        self.tell(|| format!("client: reads on n{n} what it had as a primary, up to {}", Lsn(end)));
        let known = self.read.entry(branch).or_default();
        *known = (*known).max(end);
    }

    /// What is visible on a primary was seen: it must not vanish any more.
    pub(crate) fn saw_all(&mut self, n: usize) {
        let Some(branch) = self.files(n).map(|f| f.branch) else { return };
        let seen = self.nodes[n].pg.visible;
        let known = self.read.entry(branch).or_default();
        *known = (*known).max(seen);
    }

    /// Something happens in the middle of what the agent does. Says whether that is the machine's end.
    pub(crate) fn trips(&mut self, n: usize, action: &str) -> bool {
        let (due, left) =
            std::mem::take(&mut self.nodes[n].trips).into_iter().partition(|(_, at)| at == action);
        self.nodes[n].trips = left;
        let due: Vec<(Fault, String)> = due;
        for (fault, _) in &due {
            self.tell(|| format!("--- {fault}, at {action}"));
            self.last_fault = self.now;
            self.fault(fault);
        }
        due.iter().any(|(fault, _)| matches!(fault, Fault::CrashNode(_)))
    }

    pub(crate) fn isolate(&mut self, n: usize, cut: bool) {
        for other in 0..self.nodes.len() {
            (self.cut[n][other], self.cut[other][n]) = (cut, cut);
        }
        (self.nodes[n].store_out, self.nodes[n].store_in) = (!cut, !cut);
    }

    pub(crate) fn crash(&mut self, n: usize) {
        (self.nodes[n].paused, self.nodes[n].frozen, self.nodes[n].off) = (false, false, true);
        self.nodes[n].deferred.clear();
        self.tell_watchdog(n, None);
        self.end_agent(n);
        self.pg_down(n, self.nodes[n].pg.pid, false);
        self.nodes[n].pg.state = State::Down;
    }

    pub(crate) fn start(&mut self, n: usize) {
        if std::mem::take(&mut self.nodes[n].off) {
            self.reboot(n, 500_000);
        } else {
            self.wants_restart(n);
        }
    }

    pub(crate) fn resume(&mut self, n: usize) {
        if !self.nodes[n].paused {
            return;
        }
        self.nodes[n].paused = false;
        // The deadman is the first to look at the clock.
        self.deadman(n, self.nodes[n].deadman_gen);
        self.one_primary();
        self.catch_up(n);
    }

    pub(crate) fn catch_up(&mut self, n: usize) {
        let (late, answers): (Vec<_>, Vec<_>) = std::mem::take(&mut self.nodes[n].deferred)
            .into_iter()
            .partition(|e| matches!(e, Ev::Done(.., Ended::Unknown)));
        for (i, event) in answers.into_iter().chain(late).enumerate() {
            self.at(i as u64, event);
        }
    }

    /// What makes no sense now changes nothing.
    pub(crate) fn leave_out(&mut self, why: String) {
        self.tell(|| format!("(left out: {why})"));
        self.left_out.get_or_insert(why);
    }

    /// The volume is lost: of a node that does not hold the only copy of anything.
    pub(crate) fn wipe(&mut self, n: usize) {
        let others: Vec<_> = self.members().filter(|o| *o != n).collect();
        let safe = others.iter().any(|o| self.holds_everything(*o));
        let leads = self.store.leader() == Some(&name(n)) || self.store.sync_leader() == Some(&name(n));
        let kept = self.schedule.voters != Voters::Ours || self.store_can_miss(n);
        if !safe || leads || !kept || !self.promising {
            return self.leave_out("it would be the last copy".into());
        }
        self.crash(n);
        let generation = self.nodes[n].disk.generation + 1;
        self.nodes[n].disk = Disk { generation, ..Disk::default() };
        self.nodes[n].etcd = Here::new(n, generation, self.schedule.nodes);
    }

    pub(crate) fn mend(&mut self) {
        self.tell(|| "--- calm: every fault is mended".into());
        (self.calm, self.clients) = (true, true);
        // Whom nobody is to follow any more is no reason to wait.
        if self.remote().is_some_and(|n| self.is_standby() && !self.nodes[n].pg.primary) {
            self.set_standby(false);
        }
        self.at(5_000_000, Ev::Resume);
        (self.store_up, self.api_up) = (true, true);
        self.hidden.clear();
        for n in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                self.cut[n][other] = false;
            }
            let node = &mut self.nodes[n];
            (node.store_out, node.store_in, node.slow) = (true, true, 0);
            (node.full, node.slow_disk) = (false, false);
            node.trips.clear();
            self.unhang(n);
            self.resume(n);
            self.nodes[n].frozen = false;
            self.catch_up(n);
            self.start(n);
        }
    }
}
