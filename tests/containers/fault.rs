//! What can befall a container, and its end.

use std::process::Command;

use super::engine::{docker, try_docker};
use super::stack::Stack;

/// One thing that befalls one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `docker stop`: SIGTERM, and SIGKILL after the grace period.
    Stop,
    /// `docker kill`.
    Kill,
    /// `docker pause`: every process stands still.
    Pause,
    /// The network cable is pulled.
    Unplug,
    /// It hears nobody; what it says arrives.
    Deaf,
    /// Nobody hears it; it hears everybody.
    Mute,
}

impl Fault {
    /// Strikes a node.
    pub(crate) fn strike(self, stack: &Stack, node: u8) {
        let container = stack.container(node);
        match self {
            Self::Stop => drop(docker(&["stop", "-t", "15", &container])),
            Self::Kill => drop(docker(&["kill", &container])),
            Self::Pause => drop(docker(&["pause", &container])),
            Self::Unplug => drop(docker(&["network", "disconnect", &stack.network(), &container])),
            Self::Deaf => filter(&container, "-A", "INPUT", stack),
            Self::Mute => filter(&container, "-A", "OUTPUT", stack),
        }
    }

    /// Ends it.
    pub(crate) fn heal(self, stack: &Stack, node: u8) {
        let container = stack.container(node);
        match self {
            // After a kill `restart: unless-stopped` may have been faster.
            Self::Stop | Self::Kill => drop(docker(&["start", &container])),
            Self::Pause => drop(docker(&["unpause", &container])),
            Self::Unplug => {
                let address = stack.address(node);
                docker(&["network", "connect", "--ip", &address, &stack.network(), &container]);
            }
            Self::Deaf => filter(&container, "-D", "INPUT", stack),
            Self::Mute => filter(&container, "-D", "OUTPUT", stack),
        }
    }

    /// Whether this machine can do it: the one-way cuts need root and iptables outside of the container.
    pub(crate) fn is_possible(self) -> bool {
        match self {
            Self::Stop | Self::Kill | Self::Pause | Self::Unplug => true,
            Self::Deaf | Self::Mute => can_filter(),
        }
    }
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// Adds or deletes a rule against the other nodes of the network, in the container's own namespace; the host, which is not
/// part of the cluster, is let through.
fn filter(container: &str, verb: &str, chain: &str, stack: &Stack) {
    // The interface is asked for on the way in or on the way out.
    let (side, interface) = if chain == "INPUT" { ("-s", "-i") } else { ("-d", "-o") };
    for other in (1..=3).map(|node| stack.address(node)) {
        in_network(container, &["iptables", verb, chain, side, &other, "!", interface, "lo", "-j", "DROP"]);
    }
}

/// Runs a program of this machine in the network of a container.
pub(crate) fn in_network(container: &str, args: &[&str]) {
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", container]);
    let status = Command::new("nsenter").args(["-t", &pid, "-n"]).args(args).status().unwrap();
    assert!(status.success(), "{args:?} in {container}");
}

/// Whether this machine lets us work on the network of a container: that needs root and iptables outside of it.
pub(crate) fn can_filter() -> bool {
    nix::unistd::Uid::effective().is_root() && has("iptables") && has("nsenter")
}

/// The engine's word on a container's health.
pub(crate) fn health(container: &str) -> Option<String> {
    try_docker(&["inspect", "-f", "{{.State.Health.Status}}", container]).ok()
}
