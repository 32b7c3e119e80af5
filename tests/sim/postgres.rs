//! The model PostgreSQL: a log as positions on branches (see `history`), streaming, synchronous acknowledgements, crash, recovery, promotion.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nix::sys::signal::Signal;
use pgherd::dcs::ReplicationState;
use pgherd::ha::sync::Names;
use pgherd::ha::view::View;
use pgherd::postgres::status::{Answer, Control, ControlState, DataDir, Kind, Standby, Status};
use pgherd::record::{Bootstrap, Followed, Record};
use pgherd::types::{Lsn, SlotName, SystemId, Timeline};

use crate::history::Branch;
use crate::slots::shown;
use crate::world::{Ev, World, name};

/// One record: a commit, a checkpoint, the end of a recovery.
pub(crate) const RECORD: u64 = 120;
/// Where initdb leaves off.
pub(crate) const FIRST: u64 = 0x300_0000;
/// What survives a crash.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) files: Option<Files>,
    pub(crate) incomplete: Option<&'static str>,
    pub(crate) system_id: Option<SystemId>,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) promoted: Option<Timeline>,
    pub(crate) followed: Option<Followed>,
    pub(crate) unconfirmed: bool,
    pub(crate) generation: u32,
    /// The promise that the record remembers.
    pub(crate) promised_to: Option<usize>,
    /// Logical slots: they are files.
    pub(crate) logical: BTreeSet<SlotName>,
}

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) branch: usize,
    /// Everything before this is on disk.
    pub(crate) end: u64,
    pub(crate) replayed: u64,
    pub(crate) min_end: u64,
    /// What is before has been recycled.
    pub(crate) wal_from: u64,
    /// What it had as a primary: visible to whoever reads it as a standby.
    pub(crate) own: Option<(usize, u64)>,
    pub(crate) control: Control,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Down,
    Starting,
    Ready,
    Stopping,
    /// The postmaster has ended, and something of it lives on.
    Draining,
}

#[derive(Debug)]
pub(crate) struct Pg {
    pub(crate) state: State,
    pub(crate) pid: u32,
    pub(crate) primary: bool,
    pub(crate) upstream: Option<usize>,
    pub(crate) conn: Option<Conn>,
    pub(crate) received: Option<u64>,
    pub(crate) local_replay: bool,
    pub(crate) names: Names,
    pub(crate) names_text: String,
    pub(crate) streams: BTreeMap<usize, Stream>,
    /// Who has streamed from this server as what it is now.
    pub(crate) fed: BTreeSet<usize>,
    pub(crate) waiters: VecDeque<u64>,
    pub(crate) reported: u32,
    pub(crate) slots: Vec<SlotName>,
    /// The checkpoint after a promotion is not made yet.
    pub(crate) checkpoint_owed: bool,
    /// Data directory as read before the start.
    pub(crate) known: Option<Control>,
    /// A signal that waits until it goes on.
    pub(crate) pending: Option<Signal>,
    /// What has outlived it is being killed.
    pub(crate) swept: bool,
    /// Nothing of it moves or answers.
    pub(crate) hung: bool,
    /// Clients are not let in.
    pub(crate) closed: bool,
    /// What a client sees: a commit that waits for standbys is not seen by others, until a restart.
    pub(crate) visible: u64,
    /// The upstream has said that what this standby needs is gone.
    pub(crate) misses_wal: bool,
    /// When a standby last made a restartpoint, or was started.
    pub(crate) restartpoint: u64,
}

/// A standby's side of a replication connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) to: usize,
    pub(crate) pid: u32,
    pub(crate) heard: u64,
    /// When the sender next looks for something to send.
    pub(crate) pump: u64,
}

/// The primary's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) id: u64,
    pub(crate) flushed: u64,
    pub(crate) caught_up: bool,
    pub(crate) heard: u64,
}

impl Default for Pg {
    fn default() -> Self {
        Self {
            state: State::Down,
            pid: 100,
            primary: false,
            upstream: None,
            conn: None,
            received: None,
            local_replay: true,
            names: Names::default(),
            names_text: String::new(),
            streams: BTreeMap::new(),
            fed: BTreeSet::new(),
            waiters: VecDeque::new(),
            reported: 0,
            slots: Vec::new(),
            checkpoint_owed: false,
            known: None,
            pending: None,
            swept: false,
            hung: false,
            visible: 0,
            closed: false,
            misses_wal: false,
            restartpoint: 0,
        }
    }
}

impl Disk {
    /// Changes what the record says of timelines.
    pub(crate) fn record(&mut self, view: &View, change: impl FnOnce(&mut Record)) {
        let mut record = Record::new(view.node_id.clone());
        (record.promoted, record.followed) = (self.promoted, self.followed.take());
        record.unconfirmed = self.unconfirmed;
        change(&mut record);
        (self.promoted, self.followed) = (record.promoted, record.followed);
        self.unconfirmed = record.unconfirmed;
    }

    /// What of it is waited for by whoever acts.
    pub(crate) fn memory(&self) -> (Option<Timeline>, Option<Followed>, bool, Bootstrap) {
        (self.promoted, self.followed.clone(), self.unconfirmed, self.bootstrap)
    }

    pub(crate) fn data(&self, known: Option<&Control>) -> DataDir {
        match (&self.files, self.incomplete) {
            (_, Some(why)) => DataDir::Incomplete { why },
            (None, None) => DataDir::Empty,
            (Some(files), None) => DataDir::Cluster(known.unwrap_or(&files.control).clone()),
        }
    }
}

impl World {
    /// Takes writes from clients right now.
    pub(crate) fn accepts(&self, n: usize) -> bool {
        self.is_primary(n) && !self.nodes[n].pg.closed
    }

    /// Takes writes, be it from the agent alone.
    pub(crate) fn is_primary(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.pg.state == State::Ready && node.pg.primary && !node.paused && !node.pg.hung
    }

    pub(crate) fn files(&self, n: usize) -> Option<&Files> {
        self.nodes[n].disk.files.as_ref().filter(|_| self.nodes[n].disk.incomplete.is_none())
    }

    /// What `Postgres::status` says.
    pub(crate) fn pg_status(&mut self, n: usize) -> Status {
        let at = self.clock(n);
        let pg = &self.nodes[n].pg;
        let process = self.unit_state(n);
        let known = if self.unit_is_down(n) { None } else { pg.known.as_ref() };
        let data = self.nodes[n].disk.data(known);
        let sql = (pg.state == State::Ready && !pg.hung).then(|| self.pg_answer(n));
        Status { at, process, data, sql, silence: None }
    }

    fn pg_answer(&mut self, n: usize) -> Answer {
        let files = self.nodes[n].disk.files.clone().expect("a running server has files");
        let pg = &self.nodes[n].pg;
        let control = files.control.timeline.max(files.control.min_recovery_timeline);
        let (timeline, kind) = if pg.primary {
            let standbys = pg.streams.iter().map(|(from, s)| standby_row(*from, s)).collect();
            (Timeline(self.tli(files.branch)), Kind::Primary { lsn: Lsn(files.end), standbys })
        } else {
            let streaming = pg.conn.map(|_| Timeline(self.tli(files.branch)));
            let highest = streaming.unwrap_or(control).max(control).max(Timeline(pg.reported));
            self.nodes[n].pg.reported = highest.0;
            let pg = &self.nodes[n].pg;
            let kind = Kind::Standby {
                received: Lsn(pg.received.unwrap_or(0)),
                replayed: Lsn(files.replayed),
                replayed_at_micros: None,
                replay_paused: false,
                replication: pg.conn.map(|_| ReplicationState::Streaming),
                upstream_host: None,
            };
            (highest, kind)
        };
        let pg = &self.nodes[n].pg;
        let logical = self.nodes[n].disk.logical.iter().map(|name| shown(name, true));
        Answer {
            server_version: 150_000,
            started_at_micros: 0,
            loaded_at_micros: 1,
            timeline,
            kind,
            sync_names: pg.names_text.clone(),
            slots: pg.slots.iter().map(|name| shown(name, false)).chain(logical).collect(),
            pending_restart: Vec::new(),
            weakened: Vec::new(),
        }
    }

    pub(crate) fn pg_initdb(&mut self, n: usize) {
        if self.nodes[n].disk.files.is_some() || self.nodes[n].disk.incomplete.is_some() {
            self.violate("initdb-over-data", format!("initdb on n{n}, which has data"));
        }
        let system_id = SystemId(7_700_000_000_000_000_000 + self.branches.len() as u64);
        self.branches.push(Branch { checkpoints: vec![FIRST], ..Branch::of(1, None, n) });
        let control = Control {
            system_id,
            state: ControlState::ShutDown,
            timeline: Timeline(1),
            checkpoint: Lsn(FIRST),
            min_recovery_end: Lsn(0),
            min_recovery_timeline: Timeline(0),
        };
        let end = FIRST + RECORD;
        let branch = self.branches.len() - 1;
        self.nodes[n].disk.files =
            Some(Files { branch, end, replayed: end, min_end: 0, wal_from: 0, own: None, control });
    }

    pub(crate) fn pg_start(
        &mut self,
        n: usize,
        upstream: Option<Option<usize>>,
        names: &str,
    ) -> Result<u32, String> {
        let slow = self.rng.chance(50);
        let takes = if slow { self.rng.range(1_000_000, 6_000_000) } else { self.rng.range(50_000, 600_000) };
        let node = &mut self.nodes[n];
        if node.pg.state != State::Down || node.disk.incomplete.is_some() {
            return Err("not down, or not whole".into());
        }
        if node.full {
            return Err("No space left on device".into());
        }
        let Some(files) = node.disk.files.as_mut() else { return Err("no data".into()) };
        let known = files.control.clone();
        // A crashed primary replays all of its log before it answers; a standby what makes it consistent.
        let was_standby =
            matches!(known.state, ControlState::InArchiveRecovery | ControlState::ShutDownInRecovery);
        let primary = upstream.is_none();
        files.own = if was_standby { files.own } else { Some((files.branch, files.end)) };
        files.replayed = if was_standby && !primary { files.min_end.min(files.end) } else { files.end };
        files.control.state =
            if primary { ControlState::InProduction } else { ControlState::InArchiveRecovery };
        if primary && self.branches[files.branch].owner != n {
            let tli = self.branches[files.branch].tli;
            self.branches.push(Branch::of(tli, Some((files.branch, files.end)), n));
            files.branch = self.branches.len() - 1;
        }
        let pid = node.pg.pid + 1;
        node.pg = Pg {
            state: State::Starting,
            pid,
            primary,
            upstream: upstream.flatten(),
            local_replay: files.replayed >= files.end,
            names: Names::parse(names),
            names_text: names.to_owned(),
            known: Some(known),
            // What its pg_hba.conf was written with.
            closed: node.agent.memory.closed.is_some(),
            restartpoint: self.now,
            ..Pg::default()
        };
        self.at(takes, Ev::PgReady(n, pid));
        Ok(pid)
    }

    pub(crate) fn pg_ready(&mut self, n: usize, pid: u32) {
        if self.nodes[n].pg.pid != pid || self.nodes[n].pg.state != State::Starting {
            return;
        }
        self.nodes[n].pg.state = State::Ready;
        if self.nodes[n].pg.primary {
            self.log(n, || "PostgreSQL takes writes".into());
            self.own_checkpoint(n);
            self.serves(n);
            return;
        }
        self.log(n, || "PostgreSQL answers as a standby".into());
        self.saw_own(n);
        let behind = !self.nodes[n].pg.local_replay;
        let replay = if behind && self.rng.chance(300) { self.rng.range(100_000, 3_000_000) } else { 5_000 };
        self.at(replay, Ev::LocalReplayed(n, pid));
        self.at(replay + 20_000, Ev::Connect(n, pid));
    }

    pub(crate) fn local_replayed(&mut self, n: usize, pid: u32) {
        let node = &mut self.nodes[n];
        if node.pg.pid == pid && node.pg.state == State::Ready && !node.pg.local_replay {
            node.pg.local_replay = true;
            if let Some(files) = node.disk.files.as_mut() {
                files.replayed = files.end;
            }
        }
    }

    pub(crate) fn pg_down(&mut self, n: usize, pid: u32, clean: bool) {
        if self.nodes[n].pg.pid != pid || matches!(self.nodes[n].pg.state, State::Down | State::Draining) {
            return;
        }
        if clean && self.nodes[n].pg.primary {
            self.shutdown_checkpoint(n);
        }
        self.disconnect(n);
        let node = &mut self.nodes[n];
        node.pg.state = State::Draining;
        node.pg.pending = None;
        node.pg.checkpoint_owed = false;
        node.pg.waiters.clear();
        node.pg.streams.clear();
        node.pg.fed.clear();
        let standby = !node.pg.primary;
        if clean && standby {
            self.restartpoint(n);
        }
        if let Some(files) = self.nodes[n].disk.files.as_mut().filter(|_| standby) {
            files.control.min_recovery_end = Lsn(if clean { files.replayed } else { files.min_end });
            if clean {
                files.control.state = ControlState::ShutDownInRecovery;
            }
        }
        self.poke(n);
        self.log(n, || format!("PostgreSQL is down ({})", if clean { "clean" } else { "not clean" }));
        self.pg_exited(n, clean);
    }

    fn shutdown_checkpoint(&mut self, n: usize) {
        let files = self.nodes[n].disk.files.as_mut().expect("running");
        let branch = &mut self.branches[files.branch];
        branch.checkpoints.push(files.end);
        files.control.checkpoint = Lsn(files.end);
        files.control.timeline = Timeline(branch.tli);
        files.control.state = ControlState::ShutDown;
        files.end += RECORD;
        files.replayed = files.end;
        let (branch, end) = (files.branch, files.end);
        let standbys: Vec<_> = self.nodes[n].pg.streams.keys().copied().collect();
        for to in standbys {
            let conn = self.nodes[to].pg.conn.filter(|c| c.to == n && c.pid == self.nodes[n].pg.pid);
            if let Some(conn) = conn.filter(|_| self.both_ways(n, to)) {
                self.deliver(to, conn.id, branch, end);
            }
        }
    }

    pub(crate) fn pg_promoted(&mut self, n: usize, pid: u32) {
        let node = &self.nodes[n];
        if node.pg.pid != pid || node.pg.state != State::Ready || node.pg.primary || node.pg.hung {
            return;
        }
        self.disconnect(n);
        let files = self.nodes[n].disk.files.as_mut().expect("running");
        let tli = self.branches[files.branch].tli + 1;
        self.branches.push(Branch::of(tli, Some((files.branch, files.end)), n));
        files.branch = self.branches.len() - 1;
        files.end += RECORD;
        files.replayed = files.end;
        files.min_end = 0;
        files.control.state = ControlState::InProduction;
        files.control.min_recovery_end = Lsn(files.end);
        files.control.min_recovery_timeline = Timeline(tli);
        let pg = &mut self.nodes[n].pg;
        (pg.primary, pg.upstream, pg.checkpoint_owed) = (true, None, true);
        pg.streams.clear();
        pg.fed.clear();
        // Whoever streamed from the standby connects again, on the new timeline.
        for node in &mut self.nodes {
            node.pg.conn = node.pg.conn.filter(|c| c.to != n);
        }
        self.log(n, || format!("promoted to timeline {tli}"));
        let checkpoint = self.rng.range(100_000, 4_000_000);
        self.at(checkpoint, Ev::Checkpoint(n, pid));
        self.serves(n);
    }

    pub(crate) fn pg_checkpoint(&mut self, n: usize, pid: u32) {
        if self.nodes[n].pg.pid == pid && self.nodes[n].pg.hung {
            // It goes on when the server does.
            return self.at(100_000, Ev::Checkpoint(n, pid));
        }
        if self.nodes[n].pg.pid == pid && self.is_primary(n) {
            self.own_checkpoint(n);
        }
        self.nodes[n].pg.checkpoint_owed &= self.nodes[n].pg.pid != pid;
        self.process_changed(n);
    }

    /// A primary's checkpoint: also the one at the end of a crash recovery.
    fn own_checkpoint(&mut self, n: usize) {
        let files = self.nodes[n].disk.files.as_mut().expect("running");
        let branch = &mut self.branches[files.branch];
        branch.checkpoints.push(files.end);
        files.control.timeline = Timeline(branch.tli);
        files.control.checkpoint = Lsn(files.end);
        files.control.min_recovery_timeline = Timeline(0);
        files.control.min_recovery_end = Lsn(0);
        files.end += RECORD;
        files.replayed = files.end;
        self.poke(n);
    }

    /// pg_rewind, as of PostgreSQL 15: it compares the timelines of the control files, after a crash recovery.
    pub(crate) fn pg_rewind(&mut self, n: usize, source: usize) -> Result<(), String> {
        let theirs = self.nodes[source].disk.files.clone().ok_or("no source")?;
        let mine = self.nodes[n].disk.files.as_mut().ok_or("no data")?;
        if mine.control.state == ControlState::InProduction {
            mine.control.timeline = Timeline(self.branches[mine.branch].tli);
            mine.control.checkpoint = Lsn(mine.end);
            mine.end += RECORD;
            mine.control.state = ControlState::ShutDown;
            mine.replayed = mine.end;
        }
        self.nodes[n].disk.incomplete = None;
        let mine = self.nodes[n].disk.files.as_mut().ok_or("no data")?;
        if mine.control.timeline == theirs.control.timeline {
            return Ok(());
        }
        *mine = Files { min_end: theirs.end, replayed: theirs.end, own: None, ..theirs };
        mine.control.state = ControlState::InArchiveRecovery;
        mine.control.min_recovery_end = Lsn(mine.end);
        mine.control.min_recovery_timeline = Timeline(self.branches[mine.branch].tli);
        Ok(())
    }

    pub(crate) fn pg_clone(&mut self, n: usize, source: usize) -> Result<(), String> {
        if self.is_primary(source) {
            // A base backup begins with one.
            self.own_checkpoint(source);
        }
        let mut theirs = self.nodes[source].disk.files.clone().ok_or("no source")?;
        theirs.own = None;
        theirs.control.state = ControlState::InArchiveRecovery;
        theirs.control.timeline = Timeline(self.branches[theirs.branch].tli);
        theirs.control.min_recovery_end = Lsn(theirs.end);
        theirs.control.min_recovery_timeline = theirs.control.timeline;
        (theirs.min_end, theirs.replayed) = (theirs.end, theirs.end);
        let disk = &mut self.nodes[n].disk;
        (disk.files, disk.incomplete) = (Some(theirs), None);
        disk.logical.clear();
        Ok(())
    }
}

fn standby_row(from: usize, stream: &Stream) -> Standby {
    Standby {
        name: name(from),
        user: "replicator".into(),
        client: None,
        state: if stream.caught_up { "streaming" } else { "catchup" }.into(),
        sync_state: String::new(),
        sync_priority: 1,
        sent: None,
        flushed: Some(Lsn(stream.flushed)),
        replayed: None,
        confirmed: Some(Lsn(stream.flushed)),
    }
}
