//! PostgreSQL alone: what a crash of the postmaster costs when nothing is around it. The floor for every figure beside it.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgherd::clock;

use crate::support::client::{self, Target};
use crate::support::eventually;

const ADDRESS: &str = "127.0.18.254";
/// What any step may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);

/// From SIGKILL of the postmaster to the first insert, again and again on one data directory.
pub(crate) async fn crash_recoveries(runs: u32) -> Vec<Duration> {
    let dir = tempfile::Builder::new().prefix("pgherd-bare-").tempdir().unwrap();
    let data = initdb(dir.path());
    let mut times = Vec::new();
    let mut postmaster = start(&data);
    insert("CREATE TABLE writes (id serial PRIMARY KEY)").await;
    for _run in 0..runs {
        for _row in 0..100 {
            insert("INSERT INTO writes DEFAULT VALUES").await;
        }
        let at = clock::now();
        postmaster.kill().unwrap();
        postmaster.wait().unwrap();
        postmaster = start(&data);
        let written = eventually(LIMIT, async || {
            // Backends of the old one may still be there: the new one refuses to start, and is started again.
            if postmaster.try_wait().unwrap().is_some() {
                postmaster = start(&data);
            }
            client::ask(&target(), "INSERT INTO writes DEFAULT VALUES RETURNING id").await.ok()
        });
        assert!(written.await.is_some(), "PostgreSQL does not come back");
        times.push(clock::now().since(at));
        eprintln!("bare: {:.3} s", times.last().unwrap().as_secs_f64());
    }
    postmaster.kill().unwrap();
    postmaster.wait().unwrap();
    times
}

async fn insert(statement: &str) {
    let done = eventually(LIMIT, async || {
        let client = client::connect(&target()).await.ok()?;
        client.batch_execute(statement).await.ok()
    });
    assert!(done.await.is_some(), "{statement} does not work");
}

fn target() -> Target {
    Target {
        host: ADDRESS.to_owned(),
        at: None,
        port: 5432,
        user: "postgres".to_owned(),
        password: "unused".to_owned(),
        database: "postgres".to_owned(),
        ca: None,
    }
}

fn bin(name: &str) -> PathBuf {
    pgherd::config::newest_postgres().unwrap().join(name).into()
}

/// A command as PostgreSQL's own account, since it does not run as root.
fn command(name: &str) -> Command {
    let mut command = Command::new(bin(name));
    if nix::unistd::geteuid().is_root() {
        let account = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// With checksums and hint bits in the log, as pgherd has it.
fn initdb(dir: &Path) -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        let account = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        std::os::unix::fs::chown(dir, Some(account.uid.as_raw()), None).unwrap();
    }
    let data = dir.join("data");
    let made = command("initdb")
        .args(["--data-checksums", "-A", "trust", "-U", "postgres", "-D"])
        .arg(&data)
        .status();
    assert!(made.unwrap().success(), "initdb failed");
    data
}

fn start(data: &Path) -> Child {
    let mut command = command("postgres");
    command.arg("-D").arg(data).args(["-h", ADDRESS, "-c", "wal_log_hints=on", "-c"]);
    command.arg(format!("unix_socket_directories={}", data.display()));
    command.spawn().unwrap()
}
