//! Processes that belong together because they work in one directory: how the server of a data directory and its backends
//! are recognised when they are not our children, or nobody reaps them for us.
//!
//! Invariant: nothing is signalled that has another name or works elsewhere. A pid can be recycled between the look and the
//! signal, so each is held by a descriptor first and looked at again.

use std::path::Path;

use camino::Utf8PathBuf;
use nix::sys::signal::Signal;

use super::child::PidHandle;

/// The processes of these names that work in a directory.
#[derive(Debug, Clone)]
pub struct Kin {
    /// What the kernel calls them.
    pub names: &'static [&'static str],
    /// Where they work.
    pub dir: Utf8PathBuf,
}

/// Whether a process is one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinship {
    /// It is.
    Kin,
    /// It has ended, has another name, or works elsewhere.
    Stranger,
    /// It has the name, and where it works is hidden from us.
    Hidden,
}

impl Kin {
    /// What this pid is to them.
    pub fn is(&self, pid: u32) -> Kinship {
        let proc = Path::new("/proc").join(pid.to_string());
        let Ok(stat) = std::fs::read_to_string(proc.join("stat")) else { return Kinship::Stranger };
        // "pid (comm) state ...": comm may hold anything, parentheses included.
        let Some((head, tail)) = stat.rsplit_once(')') else { return Kinship::Stranger };
        let comm = head.split_once('(').map_or("", |(_, comm)| comm);
        let is_zombie = matches!(tail.trim_start().chars().next(), Some('Z' | 'X'));
        if is_zombie || !self.names.contains(&comm) {
            return Kinship::Stranger;
        }
        let Ok(dir) = self.dir.canonicalize() else { return Kinship::Hidden };
        match std::fs::read_link(proc.join("cwd")) {
            Ok(cwd) if cwd == dir => Kinship::Kin,
            Ok(_elsewhere) => Kinship::Stranger,
            Err(_hidden) => Kinship::Hidden,
        }
    }

    /// Kills them all; how many there were.
    pub fn kill(&self) -> usize {
        let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| self.is(*pid) == Kinship::Kin && self.kill_one(*pid)).count()
    }

    fn kill_one(&self, pid: u32) -> bool {
        let Ok(handle) = PidHandle::open(pid) else { return false };
        self.is(pid) == Kinship::Kin && handle.signal(Signal::SIGKILL).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_elsewhere_or_of_another_name_is_a_stranger() {
        let own = std::process::id();
        let name: &'static str = std::fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned().leak();
        let names: &'static [&'static str] = vec![name].leak();
        let here = Utf8PathBuf::from_path_buf(std::env::current_dir().unwrap()).unwrap();
        assert_eq!(Kin { names, dir: here.clone() }.is(own), Kinship::Kin);
        assert_eq!(Kin { names, dir: "/".into() }.is(own), Kinship::Stranger);
        assert_eq!(Kin { names: &["postgres"], dir: here }.is(own), Kinship::Stranger);
    }
}
