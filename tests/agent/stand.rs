//! A plain etcd and up to three members of one scope, each at an address of its own, run by pgherd or by Patroni.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chown};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::client::{self, Target};
use crate::patroni::{Patroni, account};
use crate::wait::eventually;
use crate::writer::Writer;

/// Whatever must happen by itself on a busy machine with a lease of 20 s.
pub(crate) const SOON: Duration = Duration::from_secs(60);

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
static STANDS: AtomicU8 = AtomicU8::new(0);

/// Who runs a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Pgherd,
    Patroni,
}

#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) dir: PathBuf,
    net: u8,
    etcd: Child,
    members: BTreeMap<u8, Child>,
    patroni: Option<Patroni>,
    /// What stands in a member's file in the place of something else.
    amended: BTreeMap<u8, Vec<(String, String)>>,
    /// `synchronous_mode`, as the file has it.
    sync: &'static str,
    pub(crate) http: reqwest::Client,
    _alone: MutexGuard<'static, ()>,
}

impl Stand {
    pub(crate) async fn new(sync: &'static str, patroni: Option<Patroni>) -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        pgherd::tls::install_provider();
        let dir = tempfile::Builder::new().prefix("pgherd-agent-").tempdir().unwrap().keep();
        std::fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let net = 60 + STANDS.fetch_add(1, Ordering::Relaxed);
        let etcd = start_etcd(&dir, net);
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
        let (members, amended) = Default::default();
        let stand = Self { dir, net, etcd, members, patroni, amended, sync, http, _alone: alone };
        let up = eventually(SOON, async || stand.keys("/").await.map(|_keys| ())).await;
        assert!(up.is_some(), "etcd does not answer: {}", stand.log_of("etcd"));
        stand
    }

    pub(crate) fn ip(&self, member: u8) -> String {
        format!("127.0.{}.{member}", self.net)
    }

    fn home(&self, member: u8) -> PathBuf {
        self.dir.join(format!("n{member}"))
    }

    /// The file of a member, the same for both programs.
    pub(crate) fn file(&self, member: u8) -> PathBuf {
        let path = self.dir.join(format!("n{member}.yml"));
        let text = config(&self.ip(member), member, &self.home(member), (&self.etcd_at(), self.sync));
        let amended = self.amended.get(&member).into_iter().flatten();
        let text = amended.fold(text, |text, (from, to)| text.replacen(from, to, 1));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// From the next start on something else stands in the file of a member.
    pub(crate) fn amend(&mut self, member: u8, (from, to): (&str, &str)) {
        self.amended.entry(member).or_default().push((from.to_owned(), to.to_owned()));
    }

    /// Sends a signal to etcd: SIGSTOP takes the store away, SIGCONT gives it back.
    pub(crate) fn signal_etcd(&self, signal: Signal) {
        kill(Pid::from_raw(self.etcd.id().cast_signed()), signal).unwrap();
    }

    /// The process of a member.
    pub(crate) fn pid(&self, member: u8) -> u32 {
        self.members[&member].id()
    }

    fn etcd_at(&self) -> String {
        format!("127.0.{}.100:2379", self.net)
    }

    pub(crate) fn start(&mut self, member: u8, by: By) {
        let home = self.home(member);
        if !home.exists() {
            std::fs::create_dir(&home).unwrap();
            std::fs::set_permissions(&home, Permissions::from_mode(0o755)).unwrap();
            if let Some(account) = account() {
                chown(&home, Some(account.uid), Some(account.gid)).unwrap();
            }
        }
        let file = self.file(member);
        let mut command = match by {
            By::Pgherd => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
                command.arg("agent").arg(&file);
                command
            }
            By::Patroni => self.patroni.as_ref().unwrap().command(&file),
        };
        let log = File::options().create(true).append(true).open(self.dir.join(format!("n{member}.log")));
        let log = log.unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().unwrap();
        assert!(self.members.insert(member, child).is_none(), "n{member} runs already");
    }

    /// Asks the program of a member to end, and waits until it has.
    pub(crate) async fn stop(&mut self, member: u8) {
        self.terminate(member);
        let mut child = self.members.remove(&member).unwrap();
        let ended = eventually(SOON, async || child.try_wait().unwrap()).await;
        assert!(ended.is_some(), "n{member} does not end: {}", self.log(member));
    }

    /// Asks the program of a member to end.
    pub(crate) fn terminate(&self, member: u8) {
        kill(Pid::from_raw(self.pid(member).cast_signed()), Signal::SIGTERM).unwrap();
    }

    pub(crate) fn hang_up(&self, member: u8) {
        kill(Pid::from_raw(self.pid(member).cast_signed()), Signal::SIGHUP).unwrap();
    }

    /// The violent death of the program; PostgreSQL goes on.
    pub(crate) fn kill(&mut self, member: u8) {
        let mut child = self.members.remove(&member).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The pid of a member's postmaster.
    pub(crate) fn postmaster(&self, member: u8) -> i32 {
        let file = self.home(member).join("data/postmaster.pid");
        std::fs::read_to_string(file).unwrap().lines().next().unwrap().trim().parse().unwrap()
    }

    /// The violent death of both.
    pub(crate) fn kill_all_of(&mut self, member: u8) {
        let postmaster = self.postmaster(member);
        self.kill(member);
        kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    }

    pub(crate) fn target(&self, member: u8) -> Target {
        Target {
            host: self.ip(member),
            at: None,
            port: 5432,
            user: "postgres".to_owned(),
            password: "super secret".to_owned(),
            database: "postgres".to_owned(),
            ca: None,
        }
    }

    pub(crate) fn writer(&self, members: &[u8]) -> Writer {
        Writer::start(members.iter().map(|member| self.target(*member)).collect())
    }

    pub(crate) async fn sql(&self, member: u8, query: &str) -> String {
        client::ask(&self.target(member), query).await.unwrap()
    }

    /// A page of a member's API, whatever its code.
    pub(crate) async fn page(&self, member: u8, page: &str) -> Option<(u16, Value)> {
        let url = format!("http://{}:8008/{page}", self.ip(member));
        let answer = self.http.get(url).send().await.ok()?;
        let code = answer.status().as_u16();
        Some((code, answer.json().await.ok()?))
    }

    /// Waits until this member answers for the primary.
    pub(crate) async fn leads(&self, member: u8) {
        let leads = eventually(SOON, async || self.is_primary(member).await.then_some(())).await;
        assert!(leads.is_some(), "n{member} does not lead: {}", self.log(member));
    }

    pub(crate) async fn is_primary(&self, member: u8) -> bool {
        self.page(member, "primary")
            .await
            .is_some_and(|(code, page)| code == 200 && page["state"] == "running")
    }

    /// Waits until one leads; who.
    pub(crate) async fn leader_of(&self, members: &[u8]) -> u8 {
        let look = async || {
            for member in members {
                if self.is_primary(*member).await {
                    return Some(*member);
                }
            }
            None
        };
        eventually(SOON, look).await.unwrap_or_else(|| panic!("nobody leads in {}", self.dir.display()))
    }

    /// Waits until every other member streams and one of them is synchronous; who.
    pub(crate) async fn settled(&self, leader: u8, n_members: usize) -> u8 {
        let look = async || {
            let (_, page) = self.page(leader, "cluster").await?;
            let members = page["members"].as_array()?.clone();
            let streams = |m: &&Value| m["state"] == "streaming";
            if members.len() != n_members || members.iter().filter(streams).count() != n_members - 1 {
                return None;
            }
            let synchronous = |m: &&Value| m["role"] == "sync_standby" || m["role"] == "quorum_standby";
            members.iter().find(synchronous)?["name"].as_str()?.trim_start_matches('n').parse().ok()
        };
        let found = eventually(SOON, look).await;
        let page = self.page(leader, "cluster").await;
        found.unwrap_or_else(|| panic!("the cluster does not settle: {page:?} in {}", self.dir.display()))
    }

    /// Waits until every other member streams.
    pub(crate) async fn streams(&self, leader: u8, n_members: usize) {
        let look = async || {
            let (_, page) = self.page(leader, "cluster").await?;
            let streaming = page["members"].as_array()?.iter().filter(|m| m["state"] == "streaming").count();
            (streaming == n_members - 1).then_some(())
        };
        assert!(eventually(SOON, look).await.is_some(), "not all stream, in {}", self.dir.display());
    }

    /// Waits until this member is a synchronous standby.
    pub(crate) async fn synchronous(&self, leader: u8, member: u8) {
        let look = async || {
            let (_, page) = self.page(leader, "cluster").await?;
            let name = format!("n{member}");
            let synchronous = |m: &Value| {
                m["name"] == name && (m["role"] == "sync_standby" || m["role"] == "quorum_standby")
            };
            page["members"].as_array()?.iter().any(synchronous).then_some(())
        };
        let page = self.page(leader, "cluster").await;
        assert!(eventually(SOON, look).await.is_some(), "n{member} is not synchronous: {page:?}");
    }

    /// Asks the leader, as patronictl does.
    pub(crate) async fn switchover(&self, from: u8, to: u8) {
        let body = json!({"leader": format!("n{from}"), "candidate": format!("n{to}")});
        let expected = format!("Successfully switched over to \"n{to}\"");
        assert_eq!(self.post(from, "switchover", body).await, (200, expected), "in {}", self.dir.display());
    }

    /// Asks a member for something, and waits as long as it takes; its answer.
    pub(crate) async fn post(&self, member: u8, action: &str, body: Value) -> (u16, String) {
        let url = format!("http://{}:8008/{action}", self.ip(member));
        let patient = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = patient.post(url).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// What lies in etcd below a prefix, by its JSON gateway as Patroni asks for it.
    pub(crate) async fn keys(&self, prefix: &str) -> Option<BTreeMap<String, String>> {
        let encode = |text: &str| base64(text.as_bytes());
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let body = json!({"key": encode(prefix), "range_end": base64(&end)});
        let url = format!("http://{}/v3/kv/range", self.etcd_at());
        let answer: Value = self.http.post(url).json(&body).send().await.ok()?.json().await.ok()?;
        let rows = answer["kvs"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| String::from_utf8(unbase64(value.as_str().unwrap_or(""))).unwrap();
        Some(rows.iter().map(|row| (text(&row["key"]), text(&row["value"]))).collect())
    }

    pub(crate) fn log(&self, member: u8) -> String {
        self.log_of(&format!("n{member}"))
    }

    pub(crate) fn whole_log(&self, member: u8) -> String {
        std::fs::read_to_string(self.dir.join(format!("n{member}.log"))).unwrap()
    }

    fn log_of(&self, what: &str) -> String {
        let text = std::fs::read_to_string(self.dir.join(format!("{what}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("in {}\n{}", self.dir.display(), lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// The directory is kept when a case fails.
    pub(crate) async fn end(mut self) {
        for member in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop(member).await;
        }
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        for (member, mut child) in std::mem::take(&mut self.members) {
            child.kill().ok();
            child.wait().ok();
            let file = self.home(member).join("data/postmaster.pid");
            let pid = std::fs::read_to_string(file).ok().and_then(|text| text.lines().next()?.parse().ok());
            if let Some(pid) = pid {
                kill(Pid::from_raw(pid), Signal::SIGQUIT).ok();
            }
        }
        self.etcd.kill().ok();
        self.etcd.wait().ok();
    }
}

fn start_etcd(dir: &Path, net: u8) -> Child {
    let at = |port: u16| format!("http://127.0.{net}.100:{port}");
    let log = File::create(dir.join("etcd.log")).unwrap();
    Command::new("etcd")
        .args(["--name", "plain", "--data-dir", dir.join("etcd").to_str().unwrap()])
        .args(["--listen-client-urls", &at(2379), "--advertise-client-urls", &at(2379)])
        .args(["--listen-peer-urls", &at(2380), "--initial-advertise-peer-urls", &at(2380)])
        .args(["--initial-cluster", &format!("plain={}", at(2380))])
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn bin_dir() -> String {
    let installed = std::fs::read_dir("/usr/lib/postgresql").unwrap();
    let version = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok());
    let newest = installed.map(|entry| entry.unwrap().path()).max_by_key(version).unwrap();
    newest.join("bin").to_str().unwrap().to_owned()
}

fn config(ip: &str, member: u8, home: &Path, (etcd, sync): (&str, &str)) -> String {
    let (home, bin) = (home.display(), bin_dir());
    // The first one is preferred as a synchronous standby, so that a case knows who may take over.
    let priority = if member == 1 { 2 } else { 1 };
    format!(
        r#"scope: demo
name: n{member}
restapi:
  listen: {ip}:8008
  connect_address: {ip}:8008
etcd3:
  hosts: ["{etcd}"]
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: {sync}
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        max_connections: 50
  initdb:
    - encoding: UTF8
    - data-checksums
postgresql:
  listen: {ip}:5432
  connect_address: {ip}:5432
  data_dir: {home}/data
  bin_dir: {bin}
  pgpass: {home}/pgpass
  authentication:
    superuser:
      username: postgres
      password: super secret
    replication:
      username: replicator
      password: "re:p's"
    rewind:
      username: rewinder
      password: rew
  parameters:
    unix_socket_directories: {home}
    shared_buffers: 16MB
  pg_hba:
    - host replication replicator 127.0.0.0/8 scram-sha-256
    - host all all 127.0.0.0/8 scram-sha-256
watchdog:
  mode: "off"
tags:
  sync_priority: {priority}
"#
    )
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = char::from(DIGITS[((bits >> (18 - 6 * i)) & 63) as usize]);
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut n) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        bits = bits << 6 | u32::try_from(DIGITS.iter().position(|d| *d == digit).unwrap()).unwrap();
        n += 6;
        if n >= 8 {
            n -= 8;
            bytes.push(u8::try_from(bits >> n & 255).unwrap());
        }
    }
    bytes
}
