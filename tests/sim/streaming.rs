//! The model PostgreSQL's replication: a walreceiver that connects by timeline numbers, what is sent, flushed, replayed and
//! confirmed, and the commits that wait for it.

use pgherd::ha::sync::Names;
use pgherd::types::Timeline;

use crate::postgres::{Conn, Files, RECORD, State, Stream};
use crate::world::{Ev, World, name};

/// `wal_receiver_timeout` and `wal_sender_timeout`.
const SILENT: u64 = 20_000_000;
/// `checkpoint_timeout`: short, for a run is.
const RESTARTPOINTS: u64 = 20_000_000;
/// A sender that has nothing to send says so this often.
const KEEPALIVE: u64 = 3_000_000;

impl World {
    /// A standby's walreceiver tries to connect, every 100 ms.
    pub(crate) fn pg_connect(&mut self, n: usize, pid: u32) {
        let node = &self.nodes[n];
        if node.pg.pid != pid || node.pg.state != State::Ready || node.pg.primary {
            return;
        }
        self.at(100_000, Ev::Connect(n, pid));
        if self.now > self.nodes[n].pg.restartpoint + RESTARTPOINTS {
            self.restartpoint(n);
        }
        if self.is_remote(n) {
            self.remote_aims(n);
        }
        let node = &self.nodes[n];
        let Some(to) = node.pg.upstream.filter(|_| node.pg.conn.is_none() && node.pg.local_replay) else {
            return;
        };
        let there = self.nodes[to].pg.state == State::Ready && !self.nodes[to].pg.hung;
        if !self.both_ways(n, to) || !there || self.nodes[to].paused || self.nodes[n].pg.hung {
            return;
        }
        let mine = self.nodes[n].disk.files.clone().expect("running");
        let theirs = self.nodes[to].disk.files.clone().expect("running");
        if mine.control.system_id != theirs.control.system_id || !self.may_stream(n, to, &mine, &theirs) {
            return;
        }
        self.nodes[n].pg.misses_wal = mine.end < theirs.wal_from;
        if self.nodes[n].pg.misses_wal {
            return;
        }
        self.last_conn += 1;
        let id = self.last_conn;
        let heard = self.now;
        let (pid, pump) = (self.nodes[to].pg.pid, heard + 1_000);
        self.nodes[n].pg.conn = Some(Conn { id, to, pid, heard, pump });
        self.nodes[n].pg.received = Some(mine.end);
        self.nodes[to].pg.fed.insert(n);
        if self.nodes[to].pg.primary {
            let stream = Stream { id, flushed: 0, caught_up: false, heard };
            self.nodes[to].pg.streams.insert(n, stream);
        }
        self.log(n, || format!("streams from n{to}"));
        self.at(1_000, Ev::Pump(n, id));
    }

    /// PostgreSQL's own rule, which goes by timeline numbers; and whether it would be deceived by them.
    pub(crate) fn may_stream(&mut self, n: usize, to: usize, mine: &Files, theirs: &Files) -> bool {
        let (t, u) = (self.tli(mine.branch), self.tli(theirs.branch));
        let end = if self.nodes[to].pg.primary { theirs.end } else { theirs.replayed };
        let allowed = match t.cmp(&u) {
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => mine.end <= end,
            std::cmp::Ordering::Less => {
                self.history(theirs.branch).end_of(Timeline(t)).is_some_and(|fork| mine.end <= fork.0)
            }
        };
        let whole = self.contains((theirs.branch, theirs.end), (mine.branch, mine.end));
        if allowed && !whole {
            self.violate(
                "mixed-histories",
                format!("n{n} streams from n{to}, whose timeline {t} is another one"),
            );
        }
        allowed
    }

    pub(crate) fn conn(&self, n: usize, id: u64) -> Option<Conn> {
        let node = &self.nodes[n];
        node.pg.conn.filter(|c| c.id == id && node.pg.state == State::Ready)
    }

    /// There is something to send (or the sender has gone): its streams look soon, not at the next keepalive.
    pub(crate) fn poke(&mut self, from: usize) {
        for n in 0..self.nodes.len() {
            let Some(conn) = self.nodes[n].pg.conn.filter(|c| c.to == from) else { continue };
            let soon = self.now + self.rng.range(1_000, 40_000);
            if soon < conn.pump {
                self.nodes[n].pg.conn = Some(Conn { pump: soon, ..conn });
                self.at(soon - self.now, Ev::Pump(n, conn.id));
            }
        }
    }

    pub(crate) fn pump(&mut self, n: usize, id: u64) {
        let Some(conn) = self.conn(n, id).filter(|c| c.pump <= self.now) else { return };
        let up = &self.nodes[conn.to];
        let gone = up.pg.pid != conn.pid || !matches!(up.pg.state, State::Ready | State::Stopping);
        if (gone && self.both_ways(n, conn.to)) || self.now > conn.heard + SILENT {
            return self.disconnect(n);
        }
        if !gone && self.reaches(conn.to, n) && !up.paused && !up.pg.hung {
            let files = up.disk.files.as_ref().expect("running");
            let end = if up.pg.primary { files.end } else { files.replayed };
            let (branch, lat) = (files.branch, self.latency(conn.to, n));
            self.at(lat, Ev::Deliver(n, id, branch, end));
        }
        let pump = self.now + KEEPALIVE;
        if let Some(conn) = self.nodes[n].pg.conn.as_mut() {
            conn.pump = pump;
        }
        self.at(KEEPALIVE, Ev::Pump(n, id));
    }

    pub(crate) fn deliver(&mut self, n: usize, id: u64, branch: usize, end: u64) {
        let Some(conn) = self.conn(n, id) else { return };
        let now = self.now;
        let lag = if self.rng.chance(30) { self.rng.range(50_000, 900_000) } else { 2_000 };
        let node = &mut self.nodes[n];
        if node.pg.hung {
            return;
        }
        if node.full && node.disk.files.as_ref().is_some_and(|f| end > f.end) {
            return self.pg_down(n, self.nodes[n].pg.pid, false);
        }
        let files = node.disk.files.as_mut().expect("running");
        if end < files.end {
            return;
        }
        (files.branch, files.end) = (branch, end);
        node.pg.received = Some(end);
        node.pg.conn = Some(Conn { heard: now, ..conn });
        let pid = node.pg.pid;
        self.at(lag, Ev::Replayed(n, pid, end));
        if self.reaches(n, conn.to) {
            let lat = self.latency(n, conn.to);
            self.at(lat, Ev::Reply(conn.to, conn.pid, n, id, end));
        }
    }

    pub(crate) fn replayed(&mut self, n: usize, pid: u32, end: u64) {
        let restartpoint = self.rng.chance(100);
        let node = &mut self.nodes[n];
        let Some(files) = node.disk.files.as_mut().filter(|f| end <= f.end) else { return };
        if node.pg.pid == pid && !node.pg.primary && node.pg.state == State::Ready {
            files.replayed = files.replayed.max(end);
            if restartpoint {
                self.restartpoint(n);
            }
            self.poke(n);
        }
    }

    /// A standby has told the primary what it has flushed.
    pub(crate) fn reply(&mut self, n: usize, pid: u32, from: usize, id: u64, flushed: u64) {
        let now = self.now;
        let node = &mut self.nodes[n];
        if node.pg.pid != pid || node.pg.state != State::Ready || node.pg.hung {
            return;
        }
        let end = node.disk.files.as_ref().map_or(0, |f| f.end);
        let Some(stream) = node.pg.streams.get_mut(&from).filter(|s| s.id == id) else { return };
        stream.flushed = stream.flushed.max(flushed);
        stream.caught_up |= flushed + 10 * RECORD >= end;
        stream.heard = now;
        self.release_waiters(n);
    }

    pub(crate) fn release_waiters(&mut self, n: usize) {
        while let Some(&lsn) = self.nodes[n].pg.waiters.front() {
            let pg = &self.nodes[n].pg;
            let confirmed = pg.streams.iter().filter(|(from, s)| {
                s.caught_up && s.flushed >= lsn && pg.names.names.contains(&name(**from))
            });
            if (confirmed.count() as u32) < pg.names.need {
                return;
            }
            self.nodes[n].pg.waiters.pop_front();
            self.acknowledged(n, lsn);
        }
    }

    pub(crate) fn set_names(&mut self, n: usize, text: &str) {
        let pg = &mut self.nodes[n].pg;
        (pg.names, pg.names_text) = (Names::parse(text), text.to_owned());
        self.log(n, || format!("synchronous_standby_names = '{text}'"));
        self.release_waiters(n);
    }

    /// Every client that reaches this node tries to commit.
    pub(crate) fn client_write(&mut self, n: usize) {
        let pause = self.rng.range(60_000, 240_000);
        self.at(pause, Ev::Write(n));
        if self.accepts(n) && self.clients_write() {
            if !self.is_remote(n) {
                self.saw_all(n);
            }
            self.commit(n);
            self.poke(n);
        }
    }

    pub(crate) fn commit(&mut self, n: usize) {
        if self.nodes[n].full {
            return self.pg_down(n, self.nodes[n].pg.pid, false);
        }
        let files = self.nodes[n].disk.files.as_mut().expect("running");
        files.end += RECORD;
        files.replayed = files.end;
        let end = files.end;
        if self.nodes[n].pg.waiters.len() < 50 {
            self.nodes[n].pg.waiters.push_back(end);
        }
        let now = self.now;
        self.nodes[n].pg.streams.retain(|_, s| now < s.heard + SILENT);
        self.release_waiters(n);
    }

    /// The walreceiver ends; the primary learns of it if the network lets it.
    pub(crate) fn disconnect(&mut self, n: usize) {
        let Some(conn) = self.nodes[n].pg.conn.take() else { return };
        if self.reaches(n, conn.to) {
            self.nodes[conn.to].pg.streams.remove(&n);
        }
    }
}
