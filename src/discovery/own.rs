//! This node's own address: evidence is gathered source by source, and one pure function chooses.
//!
//! Invariant: an address that the list does not contain is never taken, except on the operator's word. What is
//! absent: a call to the candidate itself. Many networks do not carry a call from a node to its own public address,
//! so such a test would refuse good nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use reqwest::Url;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use super::http::{Error, Http, parse_url};
use super::{Config, Peers, can_be_a_node, flux, parse_address};
use crate::types::Chain;

/// An address, perhaps with a line end; more is an error page.
const ECHO_LIMIT: usize = 256;
/// `hostinfo` also tells location and benchmark results.
const HOSTINFO_LIMIT: usize = 64 * 1024;
/// Two equal answers are enough; a large cluster need not be asked whole.
const MOST_PEERS_ASKED: usize = 8;
/// How many independent witnesses must name the same address.
const WITNESSES: usize = 2;

/// Who told the address: the order of the variants is the order of trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The operator, with `ADVERTISE_ADDRESS`.
    Advertised,
    /// A network interface of this machine.
    Interface,
    /// The platform, with `FLUX_NODE_HOST_IP`.
    NodeHostIp,
    /// The platform's `hostinfo` service.
    Hostinfo,
    /// Two peers that see the same source address.
    Peers,
    /// Two echo services that see the same source address.
    Echo,
}

impl Rule {
    /// In the order in which they are tried.
    const ALL: [Self; 6] =
        [Self::Advertised, Self::Interface, Self::NodeHostIp, Self::Hostinfo, Self::Peers, Self::Echo];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Advertised => "ADVERTISE_ADDRESS",
            Self::Interface => "network interfaces",
            Self::NodeHostIp => "FLUX_NODE_HOST_IP",
            Self::Hostinfo => "hostinfo",
            Self::Peers => "peers",
            Self::Echo => "echo services",
        })
    }
}

/// What is known about the own address so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    /// The last good list; `None` before the first.
    pub listed: Option<BTreeSet<IpAddr>>,
    /// `ADVERTISE_ADDRESS`.
    pub advertise: Option<IpAddr>,
    /// The addresses of the network interfaces.
    pub interfaces: BTreeSet<IpAddr>,
    /// `FLUX_NODE_HOST_IP`.
    pub node_host_ip: Option<IpAddr>,
    /// What the `hostinfo` service said, or why it said nothing; `None` when it was not asked.
    pub hostinfo: Option<Result<IpAddr, String>>,
    /// Which source address each peer sees.
    pub seen: BTreeMap<IpAddr, IpAddr>,
    /// Which source address each echo service sees, or why it said nothing.
    pub echoed: BTreeMap<String, Result<IpAddr, String>>,
}

/// The own address, or why none can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This is it.
    Found {
        /// The address.
        address: IpAddr,
        /// Who told it.
        rule: Rule,
        /// What speaks against it: only the operator's word is taken in doubt.
        doubt: Option<String>,
    },
    /// No source gives an address that the list confirms.
    Refused {
        /// What each source said.
        reason: String,
    },
}

/// Tries the rules in their order.
pub fn choose(evidence: &Evidence) -> Choice {
    if let Some(address) = evidence.advertise {
        return Choice::Found { address, rule: Rule::Advertised, doubt: doubt(address, evidence) };
    }
    let Some(listed) = &evidence.listed else {
        return Choice::Refused { reason: "there is no list yet that could confirm an address".to_owned() };
    };
    let mut refusals = Vec::new();
    for rule in Rule::ALL {
        match candidate(rule, evidence, listed) {
            Ok(address) => return Choice::Found { address, rule, doubt: None },
            Err(None) => {}
            Err(Some(refusal)) => refusals.push(format!("{rule}: {refusal}")),
        }
    }
    Choice::Refused { reason: refusals.join("; ") }
}

fn doubt(address: IpAddr, evidence: &Evidence) -> Option<String> {
    let is_missing = evidence.listed.as_ref().is_some_and(|listed| !listed.contains(&address));
    is_missing.then(|| format!("{address} is not in the list of nodes"))
}

/// The address that one rule gives, or what speaks against it, or nothing when its source said nothing.
fn candidate(rule: Rule, evidence: &Evidence, listed: &BTreeSet<IpAddr>) -> Result<IpAddr, Option<String>> {
    match rule {
        Rule::Advertised => evidence.advertise.ok_or(None),
        Rule::Interface => interface(&evidence.interfaces, listed),
        Rule::NodeHostIp => confirmed(evidence.node_host_ip.ok_or(None)?, listed),
        Rule::Hostinfo => match evidence.hostinfo.clone().ok_or(None)? {
            Ok(address) => confirmed(address, listed),
            Err(reason) => Err(Some(reason)),
        },
        Rule::Peers => {
            agreed(evidence.seen.iter().filter(|(peer, seen)| peer != seen).map(|(_, seen)| *seen), listed)
        }
        Rule::Echo => echo(&evidence.echoed, listed),
    }
}

fn interface(interfaces: &BTreeSet<IpAddr>, listed: &BTreeSet<IpAddr>) -> Result<IpAddr, Option<String>> {
    let common: Vec<_> = interfaces.intersection(listed).collect();
    match common.as_slice() {
        [only] => Ok(**only),
        [] => Err(Some(format!("none of {} is listed", words(interfaces)))),
        [_, _, ..] => Err(Some(format!("more than one is listed: {}", words(common)))),
    }
}

fn confirmed(address: IpAddr, listed: &BTreeSet<IpAddr>) -> Result<IpAddr, Option<String>> {
    match listed.contains(&address) {
        true => Ok(address),
        false => Err(Some(format!("{address} is not listed"))),
    }
}

fn echo(
    echoed: &BTreeMap<String, Result<IpAddr, String>>,
    listed: &BTreeSet<IpAddr>,
) -> Result<IpAddr, Option<String>> {
    let answers = echoed.values().filter_map(|answer| answer.clone().ok());
    let failures: Vec<_> = echoed.values().filter_map(|answer| answer.as_ref().err()).collect();
    match agreed(answers, listed) {
        Err(None) if !failures.is_empty() => Err(Some(words(failures))),
        result => result,
    }
}

/// The one listed address that enough witnesses name. A second such address is a contradiction, not a choice.
fn agreed(
    witnesses: impl Iterator<Item = IpAddr>,
    listed: &BTreeSet<IpAddr>,
) -> Result<IpAddr, Option<String>> {
    let mut votes = BTreeMap::<IpAddr, usize>::new();
    for address in witnesses {
        *votes.entry(address).or_default() += 1;
    }
    let enough: Vec<_> =
        votes.iter().filter(|(_, n)| **n >= WITNESSES).map(|(address, _)| *address).collect();
    match enough.as_slice() {
        [only] => confirmed(*only, listed),
        [_, _, ..] => Err(Some(format!("they contradict each other: {}", words(enough)))),
        [] if votes.is_empty() => Err(None),
        [] => Err(Some(format!("no {WITNESSES} of them agree: {}", words(votes.keys())))),
    }
}

fn words<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(", ")
}

/// Asks the sources in order, and all of them again when the list changes or some time has passed.
pub(super) async fn find<F, Fut>(config: &Config, mut peers: watch::Receiver<Peers>, ask: F) -> IpAddr
where
    F: Fn(IpAddr) -> Fut + Send,
    Fut: Future<Output = Option<IpAddr>> + Send,
{
    let mut last_reason = None;
    loop {
        let listed = known_list(&peers);
        let mut evidence = Evidence { listed: listed.clone(), ..Evidence::default() };
        match round(config, &mut evidence, &ask).await {
            Choice::Found { address, rule, doubt } => {
                announce(address, rule, doubt);
                return address;
            }
            Choice::Refused { reason } => {
                if last_reason.as_ref() != Some(&reason) {
                    warn!(reason, "this node does not know its own address: it waits");
                }
                last_reason = Some(reason);
            }
        }
        wait_for_news(config, &mut peers, listed.as_ref()).await;
    }
}

fn known_list(peers: &watch::Receiver<Peers>) -> Option<BTreeSet<IpAddr>> {
    let peers = peers.borrow();
    peers.fetched_at.map(|_| peers.addrs.clone())
}

fn announce(address: IpAddr, rule: Rule, doubt: Option<String>) {
    info!(%address, %rule, "this node's own address");
    if let Some(doubt) = doubt {
        warn!(%address, %rule, doubt, "the address is used as it was given");
    }
}

/// Returns when the list has changed, or after the pause between two rounds.
async fn wait_for_news(config: &Config, peers: &mut watch::Receiver<Peers>, old: Option<&BTreeSet<IpAddr>>) {
    let changed = async {
        let news = peers.wait_for(|peers| peers.fetched_at.is_some() && Some(&peers.addrs) != old).await;
        if news.is_err() {
            // Discovery has ended: nothing will change any more, and returning at once would spin.
            std::future::pending::<()>().await;
        }
    };
    // Running out of time is the other way to go on.
    timeout(config.timeouts.own_address_retry, changed).await.unwrap_or(());
}

/// Gathers evidence rule by rule and stops at the first that decides: the later ones cost requests.
async fn round<F, Fut>(config: &Config, evidence: &mut Evidence, ask: &F) -> Choice
where
    F: Fn(IpAddr) -> Fut,
    Fut: Future<Output = Option<IpAddr>>,
{
    for rule in Rule::ALL {
        gather(rule, config, evidence, ask).await;
        if let found @ Choice::Found { .. } = choose(evidence) {
            return found;
        }
        if evidence.listed.is_none() {
            break; // nothing could be confirmed
        }
    }
    choose(evidence)
}

async fn gather<F, Fut>(rule: Rule, config: &Config, evidence: &mut Evidence, ask: &F)
where
    F: Fn(IpAddr) -> Fut,
    Fut: Future<Output = Option<IpAddr>>,
{
    match rule {
        Rule::Advertised => evidence.advertise = config.advertise,
        Rule::Interface => evidence.interfaces = interfaces(),
        Rule::NodeHostIp => evidence.node_host_ip = config.node_host_ip,
        Rule::Hostinfo => evidence.hostinfo = hostinfo(config).await,
        Rule::Peers => evidence.seen = seen_by_peers(config, evidence, ask).await,
        Rule::Echo => evidence.echoed = echoed(config).await,
    }
}

/// None can be read: then the other sources must do.
fn interfaces() -> BTreeSet<IpAddr> {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    let ips = addresses.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    ips.filter(can_be_a_node).collect()
}

async fn hostinfo(config: &Config) -> Option<Result<IpAddr, String>> {
    let url = config.hostinfo_url.as_deref()?;
    Some(ask_hostinfo(config, url).await.map_err(|error| Chain(&error).to_string()))
}

async fn ask_hostinfo(config: &Config, url: &str) -> Result<IpAddr, Error> {
    let url = parse_url(url)?;
    let body = Http::new(&config.timeouts, std::slice::from_ref(&url))?.get(&url, HOSTINFO_LIMIT).await?;
    flux::parse_hostinfo(&body)
}

/// Asks one after the other until two agree. Addresses that this node is known to have are not called; should an
/// unknown own address be called all the same, what it sees is itself, and that counts for nothing.
async fn seen_by_peers<F, Fut>(config: &Config, evidence: &Evidence, ask: &F) -> BTreeMap<IpAddr, IpAddr>
where
    F: Fn(IpAddr) -> Fut,
    Fut: Future<Output = Option<IpAddr>>,
{
    let listed = evidence.listed.iter().flatten().copied();
    let others = listed.filter(|ip| !evidence.interfaces.contains(ip));
    let mut seen = BTreeMap::new();
    for peer in others.take(MOST_PEERS_ASKED) {
        // No answer in time is no answer.
        let answer = timeout(config.timeouts.ask_peer, ask(peer)).await.unwrap_or(None);
        let Some(address) = answer.map(|address| address.to_canonical()) else { continue };
        seen.insert(peer, address);
        let n_same = seen.iter().filter(|(peer, seen)| peer != seen && **seen == address).count();
        if n_same >= WITNESSES {
            break;
        }
    }
    seen
}

async fn echoed(config: &Config) -> BTreeMap<String, Result<IpAddr, String>> {
    let mut answers = BTreeMap::new();
    for url in &config.echo_urls {
        let answer = ask_echo(config, url).await;
        answers.insert(url.clone(), answer.map_err(|error| Chain(&error).to_string()));
    }
    answers
}

async fn ask_echo(config: &Config, url: &str) -> Result<IpAddr, Error> {
    let url = parse_url(url)?;
    if url.scheme() != "https" && !is_loopback(&url) {
        return Err(Error::Url { reason: "an echo service must be https".to_owned() });
    }
    let body = Http::new(&config.timeouts, std::slice::from_ref(&url))?.get(&url, ECHO_LIMIT).await?;
    let text = String::from_utf8_lossy(&body);
    parse_address(&text).ok_or(Error::Shape { what: "address" })
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().and_then(parse_address).is_some_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: &str = "203.0.113.1";
    const OTHER: &str = "203.0.113.2";
    const THIRD: &str = "203.0.113.3";
    const STRANGER: &str = "198.51.100.9";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Three nodes are listed, and no source has said anything.
    fn silent() -> Evidence {
        let interfaces = [ip("10.0.0.5"), ip("127.0.0.1")].into();
        Evidence { listed: Some([US, OTHER, THIRD].map(ip).into()), interfaces, ..Evidence::default() }
    }

    fn seen(pairs: &[(&str, &str)]) -> BTreeMap<IpAddr, IpAddr> {
        pairs.iter().map(|(peer, seen)| (ip(peer), ip(seen))).collect()
    }

    fn echoed(answers: &[&str]) -> BTreeMap<String, Result<IpAddr, String>> {
        let answer = |text: &&str| text.parse().map_err(|_no_address| (*text).to_owned());
        answers.iter().enumerate().map(|(n, text)| (n.to_string(), answer(text))).collect()
    }

    fn found(rule: Rule) -> Choice {
        Choice::Found { address: ip(US), rule, doubt: None }
    }

    fn refusal(evidence: &Evidence) -> String {
        match choose(evidence) {
            Choice::Refused { reason } => reason,
            Choice::Found { address, rule, .. } => panic!("{rule} gave {address}"),
        }
    }

    #[test]
    fn the_operators_word_needs_no_list_but_a_doubt_is_told() {
        let mut evidence = Evidence { advertise: Some(ip(US)), ..Evidence::default() };
        assert_eq!(choose(&evidence), found(Rule::Advertised));
        evidence.listed = Some([ip(OTHER)].into());
        let doubt = Some("203.0.113.1 is not in the list of nodes".to_owned());
        assert_eq!(choose(&evidence), Choice::Found { address: ip(US), rule: Rule::Advertised, doubt });
    }

    #[test]
    fn nothing_else_is_taken_without_a_list() {
        let evidence = Evidence { listed: None, node_host_ip: Some(ip(US)), ..silent() };
        assert_eq!(refusal(&evidence), "there is no list yet that could confirm an address");
    }

    #[test]
    fn each_rule_gives_an_address_and_the_earlier_one_wins() {
        let mut evidence = silent();
        evidence.echoed = echoed(&[US, US]);
        assert_eq!(choose(&evidence), found(Rule::Echo));
        evidence.echoed = echoed(&[OTHER, OTHER]);
        evidence.seen = seen(&[(OTHER, US), (THIRD, US)]);
        assert_eq!(choose(&evidence), found(Rule::Peers));
        evidence.seen = seen(&[(US, OTHER), (THIRD, OTHER)]);
        evidence.hostinfo = Some(Ok(ip(US)));
        assert_eq!(choose(&evidence), found(Rule::Hostinfo));
        evidence.hostinfo = Some(Ok(ip(OTHER)));
        evidence.node_host_ip = Some(ip(US));
        assert_eq!(choose(&evidence), found(Rule::NodeHostIp));
        evidence.node_host_ip = Some(ip(OTHER));
        evidence.interfaces.insert(ip(US));
        assert_eq!(choose(&evidence), found(Rule::Interface));
        evidence.interfaces.insert(ip(OTHER));
        evidence.advertise = Some(ip(US));
        assert_eq!(choose(&evidence), found(Rule::Advertised));
    }

    #[test]
    fn two_listed_interfaces_are_no_choice() {
        let mut evidence = silent();
        evidence.interfaces = [US, OTHER].map(ip).into();
        assert_eq!(
            refusal(&evidence),
            "network interfaces: more than one is listed: 203.0.113.1, 203.0.113.2"
        );
    }

    #[test]
    fn an_address_that_the_list_lacks_is_refused_from_every_source() {
        let mut evidence = silent();
        evidence.node_host_ip = Some(ip(STRANGER));
        evidence.hostinfo = Some(Ok(ip(STRANGER)));
        evidence.seen = seen(&[(OTHER, STRANGER), (THIRD, STRANGER)]);
        evidence.echoed = echoed(&[STRANGER, STRANGER]);
        assert_eq!(
            refusal(&evidence),
            "network interfaces: none of 10.0.0.5, 127.0.0.1 is listed; \
             FLUX_NODE_HOST_IP: 198.51.100.9 is not listed; hostinfo: 198.51.100.9 is not listed; \
             peers: 198.51.100.9 is not listed; echo services: 198.51.100.9 is not listed"
        );
    }

    #[test]
    fn one_witness_is_none() {
        let by_peer = Evidence { seen: seen(&[(OTHER, US)]), ..silent() };
        assert!(refusal(&by_peer).ends_with("peers: no 2 of them agree: 203.0.113.1"));
        let by_echo = Evidence { echoed: echoed(&[US, OTHER]), ..silent() };
        assert!(refusal(&by_echo).ends_with("echo services: no 2 of them agree: 203.0.113.1, 203.0.113.2"));
    }

    #[test]
    fn a_peer_that_sees_itself_is_no_witness() {
        let evidence = Evidence { seen: seen(&[(US, US), (OTHER, US)]), ..silent() };
        assert!(refusal(&evidence).ends_with("peers: no 2 of them agree: 203.0.113.1"));
    }

    #[test]
    fn witnesses_in_two_camps_are_a_contradiction() {
        let evidence = Evidence { echoed: echoed(&[US, US, OTHER, OTHER]), ..silent() };
        assert!(refusal(&evidence).contains("they contradict each other: 203.0.113.1, 203.0.113.2"));
    }

    #[test]
    fn a_source_that_fails_says_why() {
        let evidence = Evidence {
            hostinfo: Some(Err("the API answered with an error: no geo data".to_owned())),
            echoed: echoed(&["an error page"]),
            ..silent()
        };
        let refusal = refusal(&evidence);
        assert!(refusal.contains("hostinfo: the API answered with an error: no geo data"), "{refusal}");
        assert!(refusal.ends_with("echo services: an error page"), "{refusal}");
    }
}
