//! What a process was born into, in one line at the start of the log: the first question about any odd container.
//!
//! Absent: any decision. Nothing here is more than words; what cannot be read is left out.

use std::fmt::{self, Display};
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid, getpid, getppid};

/// Where the control group of a container stands, seen from inside.
const CGROUP: &str = "/sys/fs/cgroup";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    facts: Vec<(&'static str, String)>,
    warnings: Vec<&'static str>,
}

impl Surroundings {
    /// Looks around.
    pub fn look() -> Self {
        let file = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let group = |name: &str| file(&format!("{CGROUP}/{name}"));
        let status = file("/proc/self/status").unwrap_or_default();
        let facts = [
            ("pid", Some(getpid().to_string())),
            ("parent", Some(getppid().to_string())),
            ("uid", Some(Uid::effective().to_string())),
            ("gid", Some(Gid::effective().to_string())),
            ("capabilities", capabilities(&status).map(str::to_owned)),
            ("open_files", getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_soft, hard)| hard.to_string())),
            ("oom_score_adj", file("/proc/self/oom_score_adj")),
            ("memory_max", group("memory.max")),
            ("pids_max", group("pids.max")),
            ("root", root().map(str::to_owned)),
            ("kernel", file("/proc/sys/kernel/osrelease")),
        ];
        let facts = facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Self { facts, warnings: warnings(group("memory.oom.group").as_deref()) }
    }

    /// Tells the log.
    pub fn tell(&self) {
        tracing::info!("pgherd {} starts: {self}", env!("CARGO_PKG_VERSION"));
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }
}

/// `name=value`, separated by blanks.
impl Display for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, value)) in self.facts.iter().enumerate() {
            let gap = if place == 0 { "" } else { " " };
            write!(f, "{gap}{name}={value}")?;
        }
        Ok(())
    }
}

/// The effective ones, as the kernel writes them: hexadecimal.
fn capabilities(status: &str) -> Option<&str> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim();
    let short = digits.trim_start_matches('0');
    Some(if short.is_empty() { "none" } else { short })
}

fn root() -> Option<&'static str> {
    let read_only = statvfs("/").ok()?.flags().contains(FsFlags::ST_RDONLY);
    Some(if read_only { "read-only" } else { "writable" })
}

/// Kubernetes sets this since 1.28, unless `singleProcessOOMKill` is on.
fn warnings(oom_group: Option<&str>) -> Vec<&'static str> {
    if oom_group == Some("1") {
        vec![
            "memory.oom.group is 1: when memory runs out the kernel ends this whole container instead of one backend; \
             on Kubernetes the kubelet's singleProcessOOMKill changes that",
        ]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_short_and_none_has_a_word() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t00000000a80425fb\n"), Some("a80425fb"));
        assert_eq!(capabilities("CapEff:\t0000000000000000\n"), Some("none"));
        assert_eq!(capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn a_container_that_dies_as_one_is_warned_of() {
        assert_eq!(warnings(Some("0")), Vec::<&str>::new());
        assert_eq!(warnings(None), Vec::<&str>::new());
        assert!(warnings(Some("1"))[0].contains("memory.oom.group"));
    }

    #[test]
    fn it_knows_who_it_is() {
        let text = Surroundings::look().to_string();
        assert!(text.starts_with(&format!("pid={} parent=", std::process::id())), "{text}");
        assert!(text.contains(" open_files=") && text.contains(" kernel="), "{text}");
    }
}
