//! Where a demo lives: directories, addresses, ports, passwords.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::{fs, io};

use anyhow::{Context, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use rand::distr::Alphanumeric;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::process::{self, Mode, RunAs};

/// The same on every node, as on the Flux network.
pub(super) const PORTS: [u16; 4] = [POSTGRES_PORT, API_PORT, 2379, 2380];
/// PostgreSQL.
pub(super) const POSTGRES_PORT: u16 = 5432;
/// REST.
pub(super) const API_PORT: u16 = 8008;
/// The location API, on an address of its own.
pub(super) const LOCATION_PORT: u16 = 16127;

/// The longest path of our directory with which `<it>/node-20/run/.s.PGSQL.5432` is still a valid socket address (107
/// bytes), with room to spare for what else may lie in a run directory.
const LONGEST_HOME: usize = 60;

/// The directories of one demo.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// What the user named: passwords, logs.
    pub(super) home: Utf8PathBuf,
    /// Volumes and run directories: `home`, unless that path is too long or closed to the `postgres` account.
    pub(super) nodes: Utf8PathBuf,
    /// Why `nodes` is not `home`.
    pub(super) moved: Option<&'static str>,
}

impl Place {
    /// The same directory always gives the same place, so that `pgherd demo stop 1` finds the demo it means.
    pub(super) fn find(dir: &Utf8Path) -> anyhow::Result<Self> {
        let home = dir.canonicalize_utf8().with_context(|| format!("no demo has run in {dir}"))?;
        let moved = if home.as_str().len() > LONGEST_HOME {
            Some("the path is too long for Unix sockets")
        } else if !reachable(&home)? {
            Some("the postgres account cannot enter that path")
        } else {
            None
        };
        let nodes = match moved {
            None => home.clone(),
            Some(_) => Utf8PathBuf::from(format!("/var/tmp/pgherd-demo-{:08x}", fingerprint(home.as_str()))),
        };
        Ok(Self { home, nodes, moved })
    }

    /// Removes what earlier runs left. Only what a demo makes is touched.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        ensure!(!self.is_running(), "a demo runs in {}; stop it first (Ctrl-C)", self.home);
        for root in [&self.home, &self.nodes] {
            for entry in root.read_dir_utf8().into_iter().flatten() {
                let path = entry?.into_path();
                let name = path.file_name().unwrap_or_default();
                let removed = match name {
                    "demo.json" | "locations.json" | "control.sock" => fs::remove_file(&path),
                    _ if name.starts_with("node-") || name == "api" => fs::remove_dir_all(&path),
                    _ => Ok(()),
                };
                removed.with_context(|| format!("cannot remove {path}"))?;
            }
        }
        Ok(())
    }

    /// Makes the directories of one node; every one of them can be entered by PostgreSQL's account.
    pub(super) fn prepare(&self, node: u8) -> anyhow::Result<()> {
        ours(&self.nodes)?;
        for dir in [self.home.join(format!("node-{node}")), self.nodes.join(format!("node-{node}"))] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {dir}"))?;
        }
        Ok(())
    }

    /// `DATA_VOLUME` of a node.
    pub(super) fn volume(&self, node: u8) -> Utf8PathBuf {
        self.nodes.join(format!("node-{node}/data"))
    }

    /// `RUN_DIR` of a node.
    pub(super) fn run_dir(&self, node: u8) -> Utf8PathBuf {
        self.nodes.join(format!("node-{node}/run"))
    }

    /// The log of a node.
    pub(super) fn log(&self, node: u8) -> Utf8PathBuf {
        self.home.join(format!("node-{node}/log"))
    }

    /// Where `pgherd demo COMMAND` reaches the demo.
    pub(super) fn socket(&self) -> Utf8PathBuf {
        self.nodes.join("control.sock")
    }

    /// The list that `mock-flux-api` serves.
    pub(super) fn locations(&self) -> Utf8PathBuf {
        self.home.join("locations.json")
    }

    /// Whether a demo answers here.
    pub(super) fn is_running(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    /// What earlier runs decided, or new passwords.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let path = self.home.join("demo.json");
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("{path} is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let memory = Memory::new()?;
                self.remember(&memory)?;
                Ok(memory)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
        }
    }

    /// Keeps it for the next run.
    pub(super) fn remember(&self, memory: &Memory) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(memory)?;
        process::write_atomic(&self.home.join("demo.json"), &text, &RunAs::Same, Mode::Private)?;
        Ok(())
    }
}

/// What must be the same in the next run with the same data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) superuser_password: String,
    pub(super) replication_password: String,
    pub(super) ssl_passphrase: String,
    /// The nodes that the location API lists.
    pub(super) listed: BTreeSet<u8>,
}

impl Memory {
    fn new() -> anyhow::Result<Self> {
        let [superuser_password, replication_password, ssl_passphrase] =
            [password()?, password()?, password()?];
        Ok(Self { superuser_password, replication_password, ssl_passphrase, listed: BTreeSet::new() })
    }
}

/// Letters and digits: it is pasted into shells and URLs.
fn password() -> anyhow::Result<String> {
    let mut random = StdRng::try_from_os_rng().context("no randomness for passwords")?;
    Ok((&mut random).sample_iter(Alphanumeric).take(20).map(char::from).collect())
}

/// The first three bytes of every address of a demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subnet([u8; 3]);

impl Subnet {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let address: Ipv4Addr =
            format!("{text}.0").parse().with_context(|| format!("{text:?} is not of the form 127.0.1"))?;
        ensure!(address.is_loopback(), "{text:?} does not lie in 127.0.0.0/8");
        let [a, b, c, _] = address.octets();
        Ok(Self([a, b, c]))
    }

    /// The address of a node.
    pub(super) fn node(self, node: u8) -> IpAddr {
        let [a, b, c] = self.0;
        IpAddr::V4(Ipv4Addr::new(a, b, c, node))
    }

    /// The address of the location API.
    pub(super) fn location_api(self) -> SocketAddr {
        SocketAddr::new(self.node(254), LOCATION_PORT)
    }
}

/// Says which of the addresses that are needed are taken.
pub(super) fn check_ports(wanted: &[SocketAddr]) -> anyhow::Result<()> {
    let busy: Vec<_> =
        wanted.iter().filter(|at| TcpListener::bind(at).is_err()).map(|at| format!("  {at}")).collect();
    if !busy.is_empty() {
        bail!(
            "these addresses are in use (a server that listens on every address, or another demo?):\n{}\n\
             Stop what listens there, or choose another subnet: pgherd demo --subnet 127.0.2",
            busy.join("\n")
        );
    }
    Ok(())
}

/// Whether PostgreSQL's account can pass through every directory of the path. Only root runs it under another one.
fn reachable(path: &Utf8Path) -> anyhow::Result<bool> {
    let RunAs::Account(account) = RunAs::account("postgres")? else { return Ok(true) };
    for dir in path.ancestors() {
        let meta = fs::metadata(dir).with_context(|| format!("cannot look at {dir}"))?;
        let bit = if meta.uid() == account.uid {
            0o100
        } else if meta.gid() == account.gid || account.groups.contains(&meta.gid()) {
            0o010
        } else {
            0o001
        };
        if meta.mode() & bit == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the directory; refuses one that somebody else prepared for us.
fn ours(dir: &Utf8Path) -> anyhow::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot create {dir}"));
        }
        Ok(()) | Err(_) => {}
    }
    let owner = fs::symlink_metadata(dir).with_context(|| format!("cannot look at {dir}"))?.uid();
    ensure!(
        owner == nix::unistd::geteuid().as_raw(),
        "{dir} belongs to another user; remove it or pass --dir"
    );
    Ok(())
}

/// FNV-1a: short, stable between builds, and nobody attacks it.
fn fingerprint(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_moves_the_nodes_to_a_short_one() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(tmp.path()).unwrap().join("x".repeat(80));
        fs::create_dir(&dir).unwrap();
        let place = Place::find(&dir).unwrap();
        assert!(place.moved.is_some());
        assert!(place.run_dir(20).join(".s.PGSQL.5432").as_str().len() < 107);
        assert_eq!(Place::find(&dir).unwrap().nodes, place.nodes);
    }

    #[test]
    fn a_subnet_is_three_bytes_of_loopback() {
        assert_eq!(Subnet::parse("127.0.9").unwrap().node(2).to_string(), "127.0.9.2");
        assert!(Subnet::parse("10.0.0").is_err());
        assert!(Subnet::parse("127.0").is_err());
    }

    #[test]
    fn a_busy_address_is_named() {
        let taken = TcpListener::bind("127.0.18.250:0").unwrap();
        let at = taken.local_addr().unwrap();
        assert!(check_ports(&[at]).unwrap_err().to_string().contains(&at.to_string()));
        drop(taken);
        check_ports(&[at]).unwrap();
    }
}
