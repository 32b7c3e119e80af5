//! Timers by network: presets, explicit values, and the one rule that binds them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::types::Timing;

/// How far apart the nodes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Local if every address is private or loopback, else global.
    Auto,
    /// One machine, one rack, one data centre.
    Local,
    /// Up to about 120 ms of round trip.
    Regional,
    /// The internet.
    Global,
}

/// What the environment says of timers. Every one that `config` hands out resolves to timers that keep the rule of
/// [`Timing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimingChoice {
    /// `NETWORK`.
    pub network: Network,
    /// `TTL`.
    pub ttl: Option<Duration>,
    /// `LOOP_WAIT`.
    pub loop_wait: Option<Duration>,
    /// `RETRY_TIMEOUT`.
    pub retry_timeout: Option<Duration>,
    /// `PRUNE_AFTER`.
    pub prune_after: Option<Duration>,
}

/// etcd's own timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EtcdTiming {
    /// `--heartbeat-interval`.
    pub heartbeat: Duration,
    /// `--election-timeout`.
    pub election: Duration,
}

impl TimingChoice {
    /// The network (never [`Network::Auto`]) and the timers, now that the addresses are known. The same on every node,
    /// because every node sees the same list; no address at all is no proof of being local.
    pub fn resolve(&self, addresses: &BTreeSet<IpAddr>) -> (Network, Timing) {
        let network = match self.network {
            Network::Auto if !addresses.is_empty() && addresses.iter().all(is_private) => Network::Local,
            Network::Auto => Network::Global,
            network @ (Network::Local | Network::Regional | Network::Global) => network,
        };
        (network, self.timing(network))
    }

    /// How long an address must be absent before its member is removed.
    pub fn prune_after(&self, network: Network) -> Duration {
        let preset = match network {
            Network::Local => Duration::from_secs(60),
            Network::Auto | Network::Regional | Network::Global => Duration::from_secs(300),
        };
        self.prune_after.unwrap_or(preset)
    }

    /// Whether the rule holds for every network that this choice may turn out to be.
    ///
    /// # Errors
    /// The rule with the numbers that break it.
    pub(super) fn check(&self) -> Result<(), String> {
        let candidates: &[Network] = match self.network {
            Network::Auto => &[Network::Local, Network::Global],
            Network::Local => &[Network::Local],
            Network::Regional => &[Network::Regional],
            Network::Global => &[Network::Global],
        };
        candidates.iter().try_for_each(|network| self.check_on(*network))
    }

    fn check_on(&self, network: Network) -> Result<(), String> {
        let Timing { ttl, loop_wait, retry_timeout } = self.timing(network);
        let needed = loop_wait + retry_timeout * 2;
        if needed <= ttl {
            return Ok(());
        }
        let hint = match self.network {
            Network::Auto => " (NETWORK=auto may turn out to be this; set NETWORK, or all three)",
            Network::Local | Network::Regional | Network::Global => "",
        };
        Err(format!(
            "LOOP_WAIT + 2 * RETRY_TIMEOUT is {loop_wait:?} + 2 * {retry_timeout:?} = {needed:?} on NETWORK={}; expected \
             at most TTL, which is {ttl:?}{hint}",
            network.as_str()
        ))
    }

    fn timing(&self, network: Network) -> Timing {
        let preset = network.preset();
        Timing {
            ttl: self.ttl.unwrap_or(preset.ttl),
            loop_wait: self.loop_wait.unwrap_or(preset.loop_wait),
            retry_timeout: self.retry_timeout.unwrap_or(preset.retry_timeout),
        }
    }
}

impl Network {
    /// etcd's timers: a heartbeat about as long as a round trip, an election ten times that.
    pub fn etcd(self) -> EtcdTiming {
        let (heartbeat, election) = match self {
            Self::Local => (100, 1000),
            Self::Regional => (150, 1500),
            Self::Auto | Self::Global => (250, 2500),
        };
        EtcdTiming { heartbeat: Duration::from_millis(heartbeat), election: Duration::from_millis(election) }
    }

    /// As `NETWORK` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Local => "local",
            Self::Regional => "regional",
            Self::Global => "global",
        }
    }

    fn preset(self) -> Timing {
        let (ttl, loop_wait, retry_timeout) = match self {
            Self::Local => (10, 2, 4),
            Self::Regional => (15, 3, 6),
            Self::Auto | Self::Global => (20, 3, 6),
        };
        let seconds = Duration::from_secs;
        Timing { ttl: seconds(ttl), loop_wait: seconds(loop_wait), retry_timeout: seconds(retry_timeout) }
    }
}

/// An address that the internet does not route.
pub(super) fn is_private(address: &IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNSET: TimingChoice = TimingChoice {
        network: Network::Auto,
        ttl: None,
        loop_wait: None,
        retry_timeout: None,
        prune_after: None,
    };

    fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn every_preset_keeps_the_rule() {
        for network in [Network::Auto, Network::Local, Network::Regional, Network::Global] {
            assert_eq!(TimingChoice { network, ..UNSET }.check(), Ok(()));
        }
    }

    #[test]
    fn auto_is_local_only_when_every_address_is_private() {
        let network = |list: &[&str]| UNSET.resolve(&addresses(list)).0;
        assert_eq!(
            network(&["127.0.13.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "fd00::1", "::1"]),
            Network::Local
        );
        assert_eq!(network(&["::ffff:10.0.0.1"]), Network::Local);
        assert_eq!(network(&["10.0.0.1", "203.0.113.7"]), Network::Global);
        assert_eq!(network(&["172.32.0.1"]), Network::Global);
        assert_eq!(network(&["2001:db8::1"]), Network::Global);
        assert_eq!(network(&[]), Network::Global);
    }

    #[test]
    fn explicit_values_win_and_the_rest_comes_from_the_preset() {
        let choice = TimingChoice { ttl: Some(Duration::from_secs(30)), ..UNSET };
        let (network, timing) = choice.resolve(&addresses(&["127.0.0.1"]));
        assert_eq!(network, Network::Local);
        let seconds = Duration::from_secs;
        assert_eq!(timing, Timing { ttl: seconds(30), loop_wait: seconds(2), retry_timeout: seconds(4) });
        assert_eq!(choice.prune_after(network), seconds(60));
    }

    #[test]
    fn a_broken_rule_is_told_with_its_numbers() {
        let choice =
            TimingChoice { network: Network::Regional, loop_wait: Some(Duration::from_secs(5)), ..UNSET };
        let message = choice.check().unwrap_err();
        assert!(message.contains("5s + 2 * 6s = 17s on NETWORK=regional"), "{message}");
        assert!(message.contains("TTL, which is 15s"), "{message}");
    }

    #[test]
    fn auto_must_hold_whichever_way_it_goes() {
        // Fits the local preset (2 + 2 * 4 = 10) and breaks the global one (3 + 2 * 6 = 15).
        let choice = TimingChoice { ttl: Some(Duration::from_secs(12)), ..UNSET };
        assert!(choice.check().unwrap_err().contains("NETWORK=global"));
        assert_eq!(TimingChoice { network: Network::Local, ..choice }.check(), Ok(()));
    }
}
