//! One node as a container runtime sees it: a process tree that starts, dies and leaves a volume behind.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// How often a tree that is being killed is looked at, and
const KILL_LOOKS: u32 = 200;
/// how long it is left alone in between: most often everything is gone by then.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// A node, running or gone.
#[derive(Debug)]
pub(crate) struct Node {
    dir: PathBuf,
    shim: Child,
    exit: Option<ExitStatus>,
}

impl Node {
    pub(super) fn start(dir: PathBuf, env: &BTreeMap<String, String>) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let log = OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let shim = shim(env, log).spawn().unwrap();
        Self { dir, shim, exit: None }
    }

    /// Its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Whether its tree has ended and been reaped here.
    pub(crate) fn is_gone(&self) -> bool {
        self.exit.is_some()
    }

    /// SIGKILL to every process of the node, and its end.
    pub(crate) fn kill_tree(&mut self) {
        if self.exit.is_none() {
            // What is forked while the tree is being killed is found by the next look.
            for _look in 0..KILL_LOOKS {
                let left = descendants(self.pid());
                // A shim that was started a moment ago has no child yet, and is waited for until that one ends.
                self.exit = if left.is_empty() { self.shim.try_wait().unwrap() } else { None };
                if self.exit.is_some() {
                    return;
                }
                for pid in left {
                    kill(pid, Signal::SIGKILL).ok();
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
        }
    }

    /// Waits for the end of the tree: for after a kill.
    pub(crate) fn reap(&mut self) {
        if self.exit.is_none() {
            self.exit = Some(self.shim.wait().unwrap());
        }
    }

    /// SIGTERM to `init`, as a container runtime stops a container. Does not wait.
    pub(crate) fn terminate(&mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
    }

    /// Waits for the end of the tree; its exit code.
    pub(crate) async fn exit_code(&mut self, limit: Duration) -> Option<i32> {
        self.exit = eventually(limit, async || self.shim.try_wait().unwrap()).await;
        self.exit.unwrap_or_else(|| panic!("the node runs on after {limit:?}")).code()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.shim.id().cast_signed())
    }

    /// The postmaster, when one runs.
    pub(crate) fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.dir.join("data/pgdata/postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?);
        descendants(self.pid()).contains(&pid).then_some(pid)
    }

    /// A look at this node's PostgreSQL that can be had while the cluster is borrowed.
    pub(crate) fn watch_postgres(&self) -> PostgresWatch {
        PostgresWatch { shim: self.pid() }
    }

    /// Which directory PGDATA is: a clone or a quarantine makes another one.
    pub(crate) fn data_dir_identity(&self) -> u64 {
        fs::metadata(self.dir.join("data/pgdata")).unwrap().ino()
    }

    /// Whether the volume remembers a promise to a leader without a store.
    pub(crate) fn has_promised(&self) -> bool {
        fs::read_to_string(self.dir.join("data/pgherd/record.json")).unwrap().contains("\"failsafe\"")
    }

    /// The `pgherd node` process.
    pub(crate) fn node_process(&self) -> Pid {
        self.process("node")
    }

    /// This node's etcd.
    pub(crate) fn etcd(&self) -> Pid {
        let found = descendants(self.pid()).into_iter();
        let mut found = found.filter(|pid| stat(*pid).is_some_and(|stat| stat.command == "etcd"));
        found.next().unwrap()
    }

    /// The innermost process whose first argument is this word.
    pub(crate) fn process(&self, word: &str) -> Pid {
        let is = |pid: &Pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| has_first_argument(&line, word))
        };
        descendants(self.pid()).into_iter().rev().find(is).unwrap_or_else(|| panic!("no {word} process"))
    }
}

/// The PostgreSQL of one node, by its processes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PostgresWatch {
    shim: Pid,
}

impl PostgresWatch {
    /// Whether no process of it is left.
    pub(crate) fn is_gone(self) -> bool {
        !descendants(self.shim)
            .into_iter()
            .any(|pid| stat(pid).is_some_and(|stat| stat.command == "postgres"))
    }
}

fn has_first_argument(cmdline: &[u8], word: &str) -> bool {
    cmdline.split(|byte| *byte == 0).nth(1).is_some_and(|argument| argument == word.as_bytes())
}

fn shim(env: &BTreeMap<String, String>, log: File) -> Command {
    let pgherd = env!("CARGO_BIN_EXE_pgherd");
    let parent = std::process::id().to_string();
    let mut command = Command::new(pgherd);
    command.args(["demo", "shim", "--parent", &parent, "--", pgherd, "init"]);
    command.env_clear().envs(env).current_dir(Path::new("/")).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
}

struct Stat {
    command: String,
    parent: Pid,
}

fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = text.rsplit_once(')')?;
    let words: Vec<&str> = after.split_whitespace().collect();
    let command = before.split_once('(')?.1.to_owned();
    Some(Stat { command, parent: Pid::from_raw(words.get(1)?.parse().ok()?) })
}

/// Every process below another one, parents before children.
fn descendants(ancestor: Pid) -> Vec<Pid> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parents: Vec<(Pid, Pid)> =
        pids.map(Pid::from_raw).filter_map(|pid| Some((pid, stat(pid)?.parent))).collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    found
}
