//! What a process was born into, in one line at the start of the log: the first question about any odd container.
//!
//! Absent: any decision. Nothing here is more than words; what cannot be read is left out.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid, getpid, getppid};

/// Where the control group of a container stands, seen from inside.
const CGROUP: &str = "/sys/fs/cgroup";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The effective ones, hexadecimal, or `none`.
    capabilities: Option<String>,
    /// The hard limit.
    open_files: Option<u64>,
    oom_score_adj: Option<String>,
    memory_max: Option<String>,
    pids_max: Option<String>,
    /// `1` when the kernel ends the whole group for want of memory.
    memory_oom_group: Option<String>,
    root: Option<&'static str>,
    kernel: Option<String>,
}

impl Surroundings {
    /// Looks around.
    pub fn look() -> Self {
        let file = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let group = |name: &str| file(&format!("{CGROUP}/{name}"));
        Self {
            capabilities: file("/proc/self/status").as_deref().and_then(capabilities),
            open_files: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_soft, hard)| hard),
            oom_score_adj: file("/proc/self/oom_score_adj"),
            memory_max: group("memory.max"),
            pids_max: group("pids.max"),
            memory_oom_group: group("memory.oom.group"),
            root: root(),
            kernel: file("/proc/sys/kernel/osrelease"),
        }
    }

    /// Tells the log, and warns of what will hurt some day.
    pub fn tell(&self) {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            pid = getpid().as_raw(),
            parent = getppid().as_raw(),
            uid = Uid::effective().as_raw(),
            gid = Gid::effective().as_raw(),
            capabilities = self.capabilities.as_deref(),
            open_files = self.open_files,
            oom_score_adj = self.oom_score_adj.as_deref(),
            memory_max = self.memory_max.as_deref(),
            pids_max = self.pids_max.as_deref(),
            root = self.root,
            kernel = self.kernel.as_deref(),
            "starts"
        );
        if self.dies_as_one() {
            tracing::warn!(
                "memory.oom.group is 1: when memory runs out the kernel ends this whole container instead of one backend; \
                 on Kubernetes the kubelet's singleProcessOOMKill changes that"
            );
        }
    }

    /// Kubernetes arranges that since 1.28, unless it is told otherwise.
    fn dies_as_one(&self) -> bool {
        self.memory_oom_group.as_deref() == Some("1")
    }
}

fn capabilities(status: &str) -> Option<String> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim();
    let short = digits.trim_start_matches('0');
    Some(if short.is_empty() { "none" } else { short }.to_owned())
}

fn root() -> Option<&'static str> {
    let read_only = statvfs("/").ok()?.flags().contains(FsFlags::ST_RDONLY);
    Some(if read_only { "read-only" } else { "writable" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_short_and_none_has_a_word() {
        let read = |status| capabilities(status).unwrap_or_default();
        assert_eq!(read("Name:\tx\nCapEff:\t00000000a80425fb\n"), "a80425fb");
        assert_eq!(read("CapEff:\t0000000000000000\n"), "none");
        assert_eq!(read("Name:\tx\n"), "");
    }

    #[test]
    fn a_container_that_dies_as_one_is_warned_of() {
        let looked = Surroundings::look();
        assert!(looked.open_files.is_some() && looked.kernel.is_some(), "{looked:?}");
        let group =
            |text: Option<&str>| Surroundings { memory_oom_group: text.map(str::to_owned), ..looked.clone() };
        assert!(group(Some("1")).dies_as_one());
        assert!(!group(Some("0")).dies_as_one() && !group(None).dies_as_one());
    }
}
