//! Discovery against the mock of the location API: real HTTP on loopback, every failure that is known.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mock_flux_api::{Fault, Hostinfo, Mock, Node, State};
use pgherd::discovery::{self, Config, Peers, Source, Timeouts};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A condition that does not hold by then never will.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than any answer of the mock takes, however busy the machine is.
const PATIENT: Duration = Duration::from_secs(10);
const APP: &str = "mypg";
const NODES: [&str; 3] = ["127.0.12.1", "127.0.12.2", "127.0.12.3"];
/// An address that no interface of a test machine has.
const US: &str = "203.0.113.7";

/// A mock with three nodes, and what runs beside it.
struct Bench {
    mock: Mock,
    addr: SocketAddr,
    servers: JoinSet<()>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Bench {
    async fn start() -> Self {
        let mut state = State { app: Some(APP.to_owned()), ..State::default() };
        state.replace(nodes(&NODES));
        let mut bench = Self {
            mock: Mock::new(state),
            addr: SocketAddr::from(([127, 0, 12, 9], 0)),
            servers: JoinSet::new(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        bench.addr = bench.listen().await;
        bench
    }

    async fn listen(&mut self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.12.9:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mock = self.mock.clone();
        self.servers.spawn(async move { mock.serve(listener).await.unwrap() });
        addr
    }

    fn config(&self) -> Config {
        Config {
            source: Source::Flux { url: format!("http://{}", self.addr), app: APP.to_owned() },
            advertise: None,
            node_host_ip: None,
            cluster_size: None,
            poll_every: Duration::from_millis(50),
            hostinfo_url: None,
            echo_urls: Vec::new(),
            timeouts: Timeouts {
                request: PATIENT,
                specification: Duration::from_millis(50),
                specification_retry: Duration::from_millis(50),
                own_address_retry: Duration::from_millis(100),
                ask_peer: Duration::from_millis(300),
                ..Timeouts::default()
            },
        }
    }

    fn discover(&mut self, config: Config) -> watch::Receiver<Peers> {
        discovery::spawn(config, &mut self.tasks, self.stop.clone())
    }

    /// The second request is sent only when the first one's answer has been dealt with.
    async fn asked_twice_more(&self) {
        let asked = self.mock.state().asked;
        let twice = async {
            while self.mock.state().asked < asked + 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, twice).await.expect("the API is not asked any more");
    }

    fn set(&self, fault: &str) {
        let fault: Fault = fault.parse().unwrap();
        self.mock.change(|state| state.fault = fault);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addrs(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn nodes(texts: &[&str]) -> Vec<Node> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The first state of the list that is as wanted.
async fn until(peers: &mut watch::Receiver<Peers>, what: &str, wanted: impl FnMut(&Peers) -> bool) -> Peers {
    let found = timeout(DEADLINE, peers.wait_for(wanted)).await.map(|found| found.unwrap().clone());
    found.unwrap_or_else(|_| panic!("not within the deadline: {what}: {:?}", peers.borrow()))
}

async fn good(peers: &mut watch::Receiver<Peers>) -> Peers {
    let answers = peers.borrow().answers;
    until(peers, "one more good answer", |peers| peers.answers > answers).await
}

/// Under this fault the last good list stays as it is, grows old, and says why; then it recovers.
async fn ages_the_list(fault: &str, reason: &str) {
    ages_the_list_within(PATIENT, fault, reason).await;
}

async fn ages_the_list_within(request: Duration, fault: &str, reason: &str) {
    let mut bench = Bench::start().await;
    let mut config = bench.config();
    config.timeouts.request = request;
    let mut peers = bench.discover(config);
    assert_eq!(good(&mut peers).await.addrs, addrs(&NODES));
    bench.set(fault);
    let first = until(&mut peers, "it fails", |peers| peers.failing.is_some()).await;
    bench.asked_twice_more().await;
    let later = peers.borrow().clone();
    assert_eq!(later, first, "{fault}: nothing but the age changes");
    assert_eq!(later.addrs, addrs(&NODES), "{fault}");
    assert!(later.failing.as_ref().unwrap().contains(reason), "{fault}: {:?}", later.failing);
    bench.set("none");
    let healed = good(&mut peers).await;
    assert_eq!((healed.failing, healed.addrs), (None, addrs(&NODES)), "{fault}");
    assert!(healed.fetched_at > later.fetched_at, "{fault}: a fresh list has a new age");
}

#[tokio::test]
async fn an_error_with_status_200_ages_the_list() {
    ages_the_list("error", "the API answered with an error: Failed to connect to the database").await;
}

#[tokio::test]
async fn a_page_ages_the_list() {
    ages_the_list("html", "an HTML page, not JSON").await;
}

#[tokio::test]
async fn truncated_json_ages_the_list() {
    ages_the_list("truncated", "cut short, not JSON").await;
}

#[tokio::test]
async fn a_server_error_ages_the_list() {
    ages_the_list("http500", "status 500").await;
}

#[tokio::test]
async fn an_empty_list_ages_the_list() {
    ages_the_list("empty", "the list is empty").await;
}

#[tokio::test]
async fn ten_megabytes_age_the_list() {
    ages_the_list("huge", "larger than 2097152 bytes").await;
}

#[tokio::test]
async fn a_stall_is_cut_and_ages_the_list() {
    ages_the_list_within(Duration::from_secs(1), "stall", "no whole answer within 1 s").await;
}

#[tokio::test]
async fn an_api_that_is_gone_ages_the_list() {
    let mut bench = Bench::start().await;
    let mut peers = bench.discover(bench.config());
    let before = good(&mut peers).await;
    bench.servers.shutdown().await;
    let failed = until(&mut peers, "it fails", |peers| peers.failing.is_some()).await;
    assert!(failed.failing.unwrap().contains("cannot ask 127.0.12.9:"));
    assert_eq!(failed.addrs, before.addrs);
}

#[tokio::test]
async fn an_api_that_never_answered_gives_no_list_rather_than_an_empty_one() {
    let mut bench = Bench::start().await;
    bench.set("empty");
    let mut peers = bench.discover(bench.config());
    let failed = until(&mut peers, "it fails", |peers| peers.failing.is_some()).await;
    assert_eq!((failed.answers, failed.fetched_at), (0, None));
    bench.set("none");
    assert_eq!(good(&mut peers).await.addrs, addrs(&NODES));
}

#[tokio::test]
async fn rows_with_ports_twice_and_with_ipv6_make_one_set() {
    let mut bench = Bench::start().await;
    bench.mock.change(|state| state.replace(nodes(&["127.0.12.1:16137", "127.0.12.2", "127.0.12.3:16127"])));
    bench.set("duplicates");
    let mut peers = bench.discover(bench.config());
    assert_eq!(good(&mut peers).await.addrs, addrs(&NODES));
    bench.set("ipv6");
    let wanted = addrs(&["127.0.12.1", "127.0.12.2", "127.0.12.3", "2001:db8::1", "2001:db8::2"]);
    until(&mut peers, "IPv6 rows", |peers| peers.addrs == wanted).await;
}

#[tokio::test]
async fn a_shorter_good_list_is_believed() {
    let mut bench = Bench::start().await;
    let mut peers = bench.discover(bench.config());
    assert_eq!(good(&mut peers).await.addrs, addrs(&NODES));
    bench.set("without:127.0.12.2");
    let wanted = addrs(&["127.0.12.1", "127.0.12.3"]);
    until(&mut peers, "one row less", |peers| peers.addrs == wanted).await;
    bench.set("partial:1");
    until(&mut peers, "one row", |peers| peers.addrs == addrs(&["127.0.12.1"])).await;
}

#[tokio::test]
async fn the_name_matches_as_in_the_real_api() {
    let mut bench = Bench::start().await;
    let url = format!("http://{}/", bench.addr);
    let mut config = bench.config();
    config.source = Source::Flux { url: url.clone(), app: "MyPG".to_owned() };
    let mut peers = bench.discover(config.clone());
    assert_eq!(good(&mut peers).await.addrs, addrs(&NODES));
    config.source = Source::Flux { url, app: "another".to_owned() };
    let mut others = bench.discover(config);
    let failed = until(&mut others, "it fails", |peers| peers.failing.is_some()).await;
    assert_eq!(failed.failing.as_deref(), Some("the list is empty"));
}

#[tokio::test]
async fn the_desired_size_comes_from_the_specification_and_stays_when_that_fails() {
    let mut bench = Bench::start().await;
    bench.mock.change(|state| state.instances = 5);
    let mut peers = bench.discover(bench.config());
    until(&mut peers, "five wanted", |peers| peers.desired_size == Some(5)).await;
    bench.set("error");
    let failing = until(&mut peers, "it fails", |peers| peers.failing.is_some()).await;
    assert_eq!(failing.desired_size, Some(5));
    bench.set("none");
    bench.mock.change(|state| state.instances = 4);
    until(&mut peers, "four wanted", |peers| peers.desired_size == Some(4)).await;
}

#[tokio::test]
async fn the_operators_size_wins_over_the_specification() {
    let mut bench = Bench::start().await;
    let mut peers = bench.discover(Config { cluster_size: Some(1), ..bench.config() });
    good(&mut peers).await;
    assert_eq!(good(&mut peers).await.desired_size, Some(1));
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_a_failure_with_its_reason() {
    let mut bench = Bench::start().await;
    let source = Source::Flux { url: "ftp://127.0.12.9".to_owned(), app: APP.to_owned() };
    let mut peers = bench.discover(Config { source, ..bench.config() });
    let failed = until(&mut peers, "it fails", |peers| peers.failing.is_some()).await;
    assert_eq!(failed.failing.unwrap(), "the URL cannot be used: \"ftp\" is neither http nor https");
}

#[tokio::test]
async fn https_is_spoken_where_the_url_says_so() {
    let mut bench = Bench::start().await;
    let source = Source::Flux { url: format!("https://{}", bench.addr), app: APP.to_owned() };
    let mut peers = bench.discover(Config { source, ..bench.config() });
    let failed = until(&mut peers, "it fails", |peers| peers.failing.is_some()).await;
    let reason = failed.failing.unwrap();
    assert!(reason.contains("cannot ask 127.0.12.9:") || reason.contains("cannot set up HTTPS"), "{reason}");
    assert_eq!(bench.mock.state().asked, 0, "nothing is sent in the clear");
}

#[tokio::test]
async fn a_fixed_list_is_there_at_once_and_never_old() {
    let mut bench = Bench::start().await;
    let source = Source::Static(addrs(&NODES));
    let mut peers = bench.discover(Config { source, ..bench.config() });
    let first = peers.borrow().clone();
    assert_eq!((first.addrs, first.desired_size), (addrs(&NODES), Some(3)));
    let second = good(&mut peers).await;
    assert!(second.fetched_at > first.fetched_at);
}

#[tokio::test]
async fn polling_ends_with_its_token() {
    let mut bench = Bench::start().await;
    let mut peers = bench.discover(bench.config());
    good(&mut peers).await;
    bench.stop.cancel();
    let ended = timeout(DEADLINE, async { while peers.changed().await.is_ok() {} }).await;
    assert!(ended.is_ok(), "the poller did not stop");
}

/// Asks nobody.
async fn nobody(_peer: IpAddr) -> Option<IpAddr> {
    None
}

/// The own address by the sources of `config`, with our address in the list.
async fn own(bench: &mut Bench, config: Config) -> IpAddr {
    let peers = bench.discover(config.clone());
    timeout(DEADLINE, discovery::own_address(&config, peers, nobody)).await.expect("no address")
}

/// A mock that lists our address and two peers that no test machine has either.
async fn bench_with_us() -> Bench {
    let bench = Bench::start().await;
    bench.mock.change(|state| state.replace(nodes(&[US, "203.0.113.8", "203.0.113.9"])));
    bench
}

#[tokio::test]
async fn the_advertised_address_is_taken_while_the_api_is_down() {
    let mut bench = Bench::start().await;
    bench.set("error");
    let config = Config { advertise: Some(ip(US)), ..bench.config() };
    assert_eq!(own(&mut bench, config).await, ip(US));
}

#[tokio::test]
async fn an_interface_address_in_the_list_is_ours() {
    let mut bench = Bench::start().await;
    bench.mock.change(|state| state.replace(nodes(&["127.0.0.1", US])));
    let config = Config { node_host_ip: Some(ip(US)), ..bench.config() };
    assert_eq!(own(&mut bench, config).await, ip("127.0.0.1"));
}

#[tokio::test]
async fn the_hosts_address_counts_only_when_it_is_listed() {
    let mut bench = bench_with_us().await;
    bench.mock.change(|state| state.hostinfo = Hostinfo::Fixed(ip("203.0.113.8")));
    let hostinfo_url = Some(format!("http://{}/hostinfo", bench.addr));
    let config = Config { node_host_ip: Some(ip(US)), hostinfo_url, ..bench.config() };
    assert_eq!(own(&mut bench, config.clone()).await, ip(US));
    let stale = Config { node_host_ip: Some(ip("198.51.100.1")), ..config };
    assert_eq!(own(&mut bench, stale).await, ip("203.0.113.8"), "hostinfo comes next");
}

#[tokio::test]
async fn two_peers_that_see_the_same_address_are_believed() {
    let mut bench = bench_with_us().await;
    bench.mock.change(|state| state.hostinfo = Hostinfo::Error);
    let hostinfo_url = Some(format!("http://{}/hostinfo", bench.addr));
    let config = Config { hostinfo_url, ..bench.config() };
    let peers = bench.discover(config.clone());
    let asked = AtomicUsize::new(0);
    let ask = |peer: IpAddr| {
        asked.fetch_add(1, Ordering::Relaxed);
        async move {
            match peer == ip(US) {
                true => std::future::pending().await, // our own address does not answer us
                false => Some(ip(US)),
            }
        }
    };
    let found = timeout(DEADLINE, discovery::own_address(&config, peers, ask)).await.expect("no address");
    assert_eq!((found, asked.load(Ordering::Relaxed)), (ip(US), 3));
}

#[tokio::test]
async fn two_echo_services_are_the_last_resort() {
    let mut bench = bench_with_us().await;
    let second = bench.listen().await;
    bench.mock.change(|state| state.hostinfo = Hostinfo::Fixed(ip(US)));
    let echo_urls = [bench.addr, second].map(|addr| format!("http://{addr}/echo")).to_vec();
    let config = Config { echo_urls, ..bench.config() };
    assert_eq!(own(&mut bench, config).await, ip(US));
}

#[tokio::test]
async fn one_echo_service_or_one_in_the_clear_is_not_enough() {
    let mut bench = bench_with_us().await;
    bench.mock.change(|state| state.hostinfo = Hostinfo::Fixed(ip(US)));
    let echo_urls = vec![format!("http://{}/echo", bench.addr), "http://192.0.2.1/echo".to_owned()];
    let config = Config { echo_urls, ..bench.config() };
    let mut peers = bench.discover(config.clone());
    tokio::select! {
        address = discovery::own_address(&config, peers.clone(), nobody) => panic!("{address} has one witness"),
        _ = async { for _ in 0..10 { good(&mut peers).await; } } => {}
    }
}

#[tokio::test]
async fn an_address_is_awaited_until_the_list_confirms_it() {
    let mut bench = Bench::start().await;
    let config = Config { node_host_ip: Some(ip(US)), ..bench.config() };
    let mut peers = bench.discover(config.clone());
    let ours = discovery::own_address(&config, peers.clone(), nobody);
    let mut ours = std::pin::pin!(ours);
    tokio::select! {
        address = &mut ours => panic!("{address} is not listed"),
        _ = async { good(&mut peers).await; good(&mut peers).await } => {}
    }
    bench.mock.change(|state| state.add(Node::from(ip(US))));
    assert_eq!(timeout(DEADLINE, ours).await.expect("no address"), ip(US));
}

#[tokio::test]
async fn admin_calls_change_what_is_served() {
    let mut bench = Bench::start().await;
    let mut peers = bench.discover(bench.config());
    let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
    let admin = |path: &str| format!("http://{}/admin/{path}", bench.addr);
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();

    let add = client.post(admin("nodes")).json(&serde_json::json!({"ip": "127.0.12.4:16137"}));
    assert_eq!(status(add).await, 200);
    until(&mut peers, "one node more", |peers| peers.addrs.contains(&ip("127.0.12.4"))).await;
    assert_eq!(status(client.delete(admin("nodes/127.0.12.4"))).await, 200);
    assert_eq!(status(client.delete(admin("nodes/127.0.12.4"))).await, 404);
    until(&mut peers, "one node less", |peers| peers.addrs == addrs(&NODES)).await;
    assert_eq!(status(client.put(admin("nodes")).json(&["127.0.12.5"])).await, 200);
    until(&mut peers, "another list", |peers| peers.addrs == addrs(&["127.0.12.5"])).await;
    assert_eq!(status(client.put(admin("instances")).json(&7)).await, 200);
    until(&mut peers, "another size", |peers| peers.desired_size == Some(7)).await;
    assert_eq!(status(client.put(admin("hostinfo")).json(US)).await, 200);
    assert_eq!(status(client.put(admin("fault")).json(&serde_json::json!({"kind": "fire"}))).await, 400);
    assert_eq!(status(client.put(admin("fault")).json(&serde_json::json!({"kind": "html"}))).await, 200);
    until(&mut peers, "it fails", |peers| peers.failing.is_some()).await;

    let state = client.get(admin("state")).send().await.unwrap().json::<serde_json::Value>().await.unwrap();
    let told = ["nodes", "instances", "hostinfo", "fault"].map(|key| state[key].to_string());
    assert_eq!(told, ["[\"127.0.12.5\"]", "7", "\"203.0.113.7\"", "\"html\""]);
}

#[expect(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod dns {
    //! A name server of a few lines: the question is sent back with an answer section.

    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::net::UdpSocket;

    const A: u16 = 1;
    const SRV: u16 = 33;

    /// What the server says: per name and type, the data of its records. `None`: SERVFAIL.
    type Zone = Arc<Mutex<Option<Vec<(&'static str, u16, Vec<u8>)>>>>;

    fn label_bytes(name: &str) -> Vec<u8> {
        let labels = name.split('.').filter(|label| !label.is_empty());
        let mut bytes: Vec<u8> = labels
            .flat_map(|label| [u8::try_from(label.len()).unwrap()].into_iter().chain(label.bytes()))
            .collect();
        bytes.push(0);
        bytes
    }

    fn a(last: u8) -> Vec<u8> {
        vec![127, 0, 12, last]
    }

    fn srv(target: &str) -> Vec<u8> {
        [vec![0, 1, 0, 1, 0x15, 0x38], label_bytes(target)].concat()
    }

    fn answer(question: &[u8], zone: &Zone) -> Vec<u8> {
        let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        let (name, kind) =
            (&question[12..end - 4], u16::from_be_bytes([question[end - 4], question[end - 3]]));
        let zone = zone.lock().unwrap();
        let found: Vec<&Vec<u8>> = zone
            .iter()
            .flatten()
            .filter(|(known, of, _)| label_bytes(known) == name.to_ascii_lowercase() && *of == kind)
            .map(|(_, _, data)| data)
            .collect();
        let code = if zone.is_some() { 0x80 } else { 0x82 };
        let mut reply = vec![question[0], question[1], 0x81, code, 0, 1];
        reply.extend(u16::try_from(found.len()).unwrap().to_be_bytes());
        reply.extend([0; 4]);
        reply.extend(&question[12..end]);
        for data in found {
            reply.extend([0xc0, 12]);
            reply.extend(kind.to_be_bytes());
            reply.extend([0, 1, 0, 0, 2, 88]);
            reply.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            reply.extend(data);
        }
        reply
    }

    async fn serve(bench: &mut Bench, zone: Zone) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.12.8:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        bench.servers.spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
                socket.send_to(&answer(&buffer[..n], &zone), from).await.unwrap();
            }
        });
        address
    }

    fn config(bench: &Bench, name: &str, server: Option<SocketAddr>) -> Config {
        Config { source: Source::Dns { name: name.to_owned(), server }, ..bench.config() }
    }

    #[tokio::test]
    async fn a_name_is_its_addresses_and_a_failure_ages_them() {
        let mut bench = Bench::start().await;
        let zone: Zone = Arc::new(Mutex::new(Some(vec![
            ("tasks.node", A, a(1)),
            ("tasks.node", A, a(2)),
            ("other", A, a(9)),
        ])));
        let server = serve(&mut bench, Arc::clone(&zone)).await;
        let config = config(&bench, "tasks.node", Some(server));
        let mut peers = discovery::spawn(config, &mut bench.tasks, bench.stop.clone());
        let expected: BTreeSet<IpAddr> = [[127, 0, 12, 1].into(), [127, 0, 12, 2].into()].into();
        until(&mut peers, "the list", |peers| peers.addrs == expected).await;

        for broken in [None, Some(vec![])] {
            *zone.lock().unwrap() = broken;
            let failing = until(&mut peers, "the list", |peers| peers.failing.is_some()).await;
            assert_eq!(failing.addrs, expected, "the last good list stays");
            *zone.lock().unwrap() = Some(vec![("tasks.node", A, a(1)), ("tasks.node", A, a(2))]);
            until(&mut peers, "the list", |peers| peers.failing.is_none()).await;
        }
    }

    #[tokio::test]
    async fn a_service_is_the_addresses_of_its_targets_or_of_none() {
        let mut bench = Bench::start().await;
        let records =
            || vec![("_pg._tcp.x", SRV, srv("a.x")), ("_pg._tcp.x", SRV, srv("b.x")), ("a.x", A, a(1))];
        let zone: Zone = Arc::new(Mutex::new(Some(records())));
        let server = serve(&mut bench, Arc::clone(&zone)).await;
        let config = config(&bench, "_pg._tcp.x", Some(server));
        let mut peers = discovery::spawn(config, &mut bench.tasks, bench.stop.clone());
        let failing = until(&mut peers, "the list", |peers| peers.failing.is_some()).await;
        assert_eq!(failing.fetched_at, None, "a target without an address would look like a departure");

        *zone.lock().unwrap() = Some([records(), vec![("b.x", A, a(2))]].concat());
        let expected: BTreeSet<IpAddr> = [[127, 0, 12, 1].into(), [127, 0, 12, 2].into()].into();
        until(&mut peers, "the list", |peers| peers.addrs == expected).await;
    }

    #[tokio::test]
    async fn without_a_server_the_system_is_asked() {
        let mut bench = Bench::start().await;
        let config = config(&bench, "localhost", None);
        let mut peers = discovery::spawn(config, &mut bench.tasks, bench.stop.clone());
        until(&mut peers, "the list", |peers| peers.addrs.iter().any(IpAddr::is_loopback)).await;
    }
}
