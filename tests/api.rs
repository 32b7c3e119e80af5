//! The API over real sockets: plain and TLS on one port, every health path, node-to-node routes, and the commands
//! that ask it. What it is asked about comes through the real watch channels.
#![expect(clippy::unwrap_used, reason = "test helpers")]
#![expect(clippy::expect_used, reason = "test helpers")]

use std::net::SocketAddr;
use std::sync::Once;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use pgherd::api::{self, NodeFacts, Plain};
use pgherd::clock::{self, Moment};
use pgherd::dcs::{MemberState, Role, Versioned};
use pgherd::peer::{DataFacts, NodeStatus};
use pgherd::types::{NodeId, NodeName, Revision, SyncMode};
// `crate::` paths of the fixture.
use pgherd::{dcs, discovery, etcd, ha, postgres, process, supervisor, types};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[path = "../src/api/fixture.rs"]
mod fixture;
#[path = "api/slow.rs"]
mod slow;
mod certificates {
    //! A CA and leaves, made with the same crates as the real ones but independent of them.
    use std::sync::Arc;

    use p256::ecdsa::signature::Signer as _;
    use p256::pkcs8::EncodePrivateKey as _;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
        KeyUsagePurpose, PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey,
    };
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConfig, RootCertStore, ServerConfig};

    struct Key {
        secret: p256::SecretKey,
        public: Vec<u8>,
    }

    impl Key {
        fn new(seed: u8) -> Self {
            let secret = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
            let public = secret.public_key().to_sec1_bytes().into();
            Self { secret, public }
        }

        fn der(&self) -> PrivateKeyDer<'static> {
            PrivatePkcs8KeyDer::from(self.secret.to_pkcs8_der().unwrap().as_bytes().to_vec()).into()
        }
    }

    impl PublicKeyData for Key {
        fn der_bytes(&self) -> &[u8] {
            &self.public
        }
        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &rcgen::PKCS_ECDSA_P256_SHA256
        }
    }

    impl SigningKey for Key {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            let signature: p256::ecdsa::Signature = p256::ecdsa::SigningKey::from(&self.secret).sign(message);
            Ok(signature.to_der().as_bytes().to_vec())
        }
    }

    /// A certificate authority.
    pub(crate) struct Ca {
        key: Key,
        params: CertificateParams,
        der: CertificateDer<'static>,
    }

    fn params(name: &str, seed: u8) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(u64::from(seed) + 1));
        params.key_identifier_method = KeyIdMethod::PreSpecified(vec![seed; 20]);
        params
    }

    pub(crate) fn ca(seed: u8) -> Ca {
        let key = Key::new(seed);
        let mut params = params(&format!("ca {seed}"), seed);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key).unwrap().der().clone();
        Ca { key, params, der }
    }

    impl Ca {
        fn leaf(
            &self,
            seed: u8,
            usage: ExtendedKeyUsagePurpose,
        ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let key = Key::new(seed);
            let mut params = params(&format!("leaf {seed}"), seed);
            params.is_ca = IsCa::ExplicitNoCa;
            params.extended_key_usages = vec![usage];
            let issuer = Issuer::from_params(&self.params, &self.key);
            (params.signed_by(&key, &issuer).unwrap().der().clone(), key.der())
        }

        fn roots(&self) -> RootCertStore {
            let mut roots = RootCertStore::empty();
            roots.add(self.der.clone()).unwrap();
            roots
        }

        /// A server that asks for a client certificate of this CA and does without one.
        pub(crate) fn server(&self) -> Arc<ServerConfig> {
            let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()))
                .allow_unauthenticated()
                .build()
                .unwrap();
            let (certificate, key) = self.leaf(40, ExtendedKeyUsagePurpose::ServerAuth);
            let config = ServerConfig::builder()
                .with_client_cert_verifier(verifier)
                .with_single_cert(vec![certificate], key)
                .unwrap();
            Arc::new(config)
        }

        /// A client that trusts `server` and shows a certificate of this CA.
        pub(crate) fn client(&self, server: &Self) -> ClientConfig {
            let (certificate, key) = self.leaf(50, ExtendedKeyUsagePurpose::ClientAuth);
            ClientConfig::builder()
                .with_root_certificates(server.roots())
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        }
    }
}

/// Generous: everything happens on loopback, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A served API and the ends of the channels that feed it.
struct Api {
    address: SocketAddr,
    ha: watch::Sender<Option<ha::Status>>,
    peers: watch::Sender<discovery::Peers>,
    _store: watch::Sender<etcd::Status>,
    _data: watch::Sender<DataFacts>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    client: Client,
}

fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap());
}

/// What every answer carries.
const EXTRA: (HeaderName, HeaderValue) = (header::SERVER, HeaderValue::from_static("Patroni"));

async fn start(listen: &str, plain: Plain) -> Api {
    install_provider();
    let (ha, ha_seen) = watch::channel(None);
    let (peers, peers_seen) = watch::channel(discovery::Peers::default());
    let (store, store_seen) = watch::channel(etcd::Status::default());
    let (data, data_seen) = watch::channel(DataFacts::default());
    let node = NodeFacts {
        node_id: NodeId("00112233aabbccdd".into()),
        name: NodeName::from("n0"),
        app: "demo".into(),
    };
    let state = api::State {
        node,
        ha: ha_seen,
        store: store_seen,
        peers: peers_seen,
        data: data_seen,
        promises: None,
        etcd: None,
        desk: None,
        access: api::access::Access::default(),
        whereabouts: api::Whereabouts::default(),
        certificates: watch::channel(None).1,
        processes: api::Processes::default(),
    };
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let config =
        api::Config { listen: listen.to_owned(), port: 0, plain, headers: HeaderMap::from_iter([EXTRA]) };
    let tls = certificates::ca(1).server();
    let address = api::serve(config, state, Some(tls), &mut tasks, stop.clone()).await.unwrap();
    let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    Api { address, ha, peers, _store: store, _data: data, tasks, stop, client }
}

impl Api {
    fn says(&self, status: ha::Status) {
        self.ha.send_replace(Some(status));
    }

    async fn ask(&self, method: Method, path: &str) -> (StatusCode, String) {
        let url = format!("http://{}{path}", self.address);
        let answer = self.client.request(method, url).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn code(&self, path: &str) -> u16 {
        self.ask(Method::GET, path).await.0.as_u16()
    }

    async fn page(&self, path: &str) -> Value {
        serde_json::from_str(&self.ask(Method::GET, path).await.1).unwrap()
    }

    /// The paths of `all` that answer 200.
    async fn healthy(&self, all: &[&str]) -> Vec<String> {
        let mut healthy = Vec::new();
        for path in all {
            if self.code(path).await == 200 {
                healthy.push((*path).to_owned());
            }
        }
        healthy
    }

    async fn end(mut self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, async { while self.tasks.join_next().await.is_some() {} })
            .await
            .expect("the API ends when it is asked to");
    }
}

/// A TLS client that verifies nothing and shows nothing.
fn anonymous() -> Client {
    Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).timeout(PATIENCE).build().unwrap()
}

const HEALTH: [&str; 22] = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/leader/sub",
    "/standby-leader",
    "/standby_leader",
    "/replica",
    "/replica/x",
    "/read-only",
    "/sync",
    "/synchronous",
    "/quorum",
    "/async",
    "/asynchronous",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
    "/health",
    "/readiness",
    "/nothing",
];

const AS_PRIMARY: [&str; 12] = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/leader/sub",
    "/read-only",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
    "/health",
    "/readiness",
];

/// What each kind of member is healthy for.
fn every_role(now: Moment) -> Vec<(&'static str, ha::Status, Vec<&'static str>)> {
    let in_quorum = fixture::replica("n1", 0, now);
    let in_sync = ha::Status { sync_mode: SyncMode::On, ..in_quorum.clone() };
    let async_replica = fixture::replica("n2", 0, now);
    let standby_cluster = json!({"standby_cluster": {"host": "elsewhere"}});
    let mut standby_leader = fixture::configured(fixture::replica("n0", 0, now), standby_cluster);
    standby_leader.lease_until = Some(now + PATIENCE);
    standby_leader.role = Role::StandbyLeader;
    vec![
        ("primary", fixture::primary(now), AS_PRIMARY.to_vec()),
        (
            "in the quorum",
            in_quorum,
            vec![
                "/replica",
                "/replica/x",
                "/read-only",
                "/quorum",
                "/read-only-quorum",
                "/health",
                "/readiness",
            ],
        ),
        (
            "synchronous",
            in_sync,
            vec![
                "/replica",
                "/replica/x",
                "/read-only",
                "/sync",
                "/synchronous",
                "/read-only-sync",
                "/read-only-synchronous",
                "/health",
                "/readiness",
            ],
        ),
        (
            "asynchronous",
            async_replica,
            vec!["/replica", "/replica/x", "/read-only", "/async", "/asynchronous", "/health", "/readiness"],
        ),
        (
            "standby leader",
            standby_leader,
            vec![
                "/leader",
                "/leader/sub",
                "/standby-leader",
                "/standby_leader",
                "/read-only",
                "/read-only-sync",
                "/read-only-synchronous",
                "/read-only-quorum",
                "/health",
                "/readiness",
            ],
        ),
    ]
}

#[tokio::test]
async fn every_health_path_for_every_role() {
    let api = start("127.0.17.1", Plain::Accepted).await;
    let now = clock::now();
    assert_eq!(api.healthy(&HEALTH).await, [""; 0], "before the first tick");
    for (what, status, healthy) in every_role(now) {
        api.says(status);
        assert_eq!(api.healthy(&HEALTH).await, healthy, "{what}");
    }
    api.end().await;
}

#[tokio::test]
async fn nobody_leads_without_a_right_to() {
    let api = start("127.0.17.2", Plain::Accepted).await;
    let now = clock::now();
    let ago =
        |seconds| Moment(now.0.saturating_sub(Duration::from_secs(seconds).as_nanos().try_into().unwrap()));
    let primary = || fixture::primary(now);
    api.says(ha::Status { lease_until: Some(ago(0)), ..primary() });
    assert_eq!(api.healthy(&HEALTH).await, ["/health"], "the lease has passed");
    api.says(ha::Status { ticked: ago(21), ..primary() });
    assert_eq!(api.healthy(&HEALTH).await, [""; 0], "the loop stands still");
    assert_eq!(api.code("/liveness").await, 503);
    api.says(ha::Status { phase: ha::Phase::Stopping, ..primary() });
    assert_eq!(api.healthy(&HEALTH).await, [""; 0], "stopping");
    assert_eq!(api.code("/liveness").await, 200);
    api.says(fixture::down(primary()));
    assert_eq!(
        api.healthy(&["/primary", "/leader", "/health", "/replica"]).await,
        ["/primary", "/leader"],
        "the lock is held through a crash restart, as in Patroni"
    );
    for unborn in [
        ha::Status { state: MemberState::Initializing, ..primary() },
        ha::Status { role: Role::Uninitialized, state: MemberState::Stopped, ..fixture::down(primary()) },
    ] {
        api.says(unborn);
        assert_eq!(api.healthy(&HEALTH).await, [""; 0], "the lock is held and there is no cluster yet");
    }
    let mut paused = fixture::configured(primary(), json!({"pause": true}));
    paused.lease_until = None;
    paused.snapshot.as_mut().unwrap().taken = ago(60);
    api.says(paused);
    assert_eq!(
        api.healthy(&["/primary", "/leader", "/standby-leader", "/sync"]).await,
        ["/primary", "/leader"],
        "paused and without a store the role alone tells"
    );
    api.end().await;
}

#[tokio::test]
async fn replicas_are_filtered_by_lag_state_and_tags() {
    let api = start("127.0.17.3", Plain::Accepted).await;
    let now = clock::now();
    let replica = || fixture::replica("n1", 4096, now);
    api.says(replica());
    for (path, code) in [
        ("/replica?lag=4096", 200),
        ("/replica?lag=4kB", 200),
        ("/replica?lag=4095", 503),
        ("/replica?lag=nonsense", 200),
        ("/read-only?lag=1", 503),
        ("/quorum?lag=1", 503),
        ("/health?lag=1", 200),
        ("/replica?replication_state=streaming", 200),
        ("/replica?replication_state=in%20archive%20recovery", 503),
        ("/replica?tag_zone=a", 503),
        ("/readiness?lag=4095", 503),
        ("/readiness?lag=4096&mode=write", 200),
        ("/readiness", 200),
    ] {
        assert_eq!(api.code(path).await, code, "{path}");
    }
    let tags = json!({"zone": "a", "nofailover": true, "failover_priority": 2});
    api.says(fixture::tagged(replica(), &tags));
    for (path, code) in [
        ("/replica?tag_zone=a", 200),
        ("/replica?tag_zone=b", 503),
        ("/replica?tag_nofailover=true&tag_failover_priority=2", 200),
        ("/replica?tag_nofailover=false", 503),
        ("/replica?tag_noloadbalance=false", 503),
        ("/health?tag_zone=b", 503),
        ("/quorum?tag_zone=a", 200),
    ] {
        assert_eq!(api.code(path).await, code, "{path}");
    }
    api.says(fixture::tagged(replica(), &json!({"noloadbalance": true})));
    assert_eq!(api.healthy(&HEALTH).await, ["/health", "/readiness"], "noloadbalance");
    api.says(fixture::tagged(fixture::primary(now), &json!({"noloadbalance": true})));
    for path in ["/primary?tag_zone=b", "/leader?lag=1", "/read-only"] {
        assert_eq!(api.code(path).await, 200, "{path} of a primary");
    }
    api.says(ha::Status { maximum_lag_on_failover: 4095, ..replica() });
    assert_eq!(api.code("/readiness").await, 503, "the configured limit holds without lag=");
    let stale = now - Duration::from_secs(60);
    api.says(ha::Status { ticked: stale, ..replica() });
    assert_eq!(api.healthy(&HEALTH).await, [""; 0], "a replica whose loop stands still");
    let cloning = ha::Status { state: MemberState::CreatingReplica, ..fixture::down(replica()) };
    api.says(cloning);
    assert_eq!(api.healthy(&HEALTH).await, [""; 0], "cloning");
    api.end().await;
}

#[tokio::test]
async fn head_and_options_answer_like_get_without_a_body() {
    let api = start("127.0.17.4", Plain::Accepted).await;
    let ours = ["/v1/status", "/v1/promise"];
    let pages = ["/patroni", "/liveness", "/metrics", "/cluster", "/config", "/history"];
    for status in [fixture::primary(clock::now()), fixture::replica("n2", 0, clock::now())] {
        api.says(status);
        for path in HEALTH.iter().chain(&pages).chain(&ours) {
            let (expected, _) = api.ask(Method::GET, path).await;
            for method in [Method::HEAD, Method::OPTIONS] {
                assert_eq!(api.ask(method.clone(), path).await, (expected, String::new()), "{method} {path}");
            }
        }
    }
    api.end().await;
}

#[tokio::test]
async fn every_answer_carries_what_the_file_adds() {
    let api = start("127.0.17.34", Plain::Accepted).await;
    api.says(fixture::primary(clock::now()));
    for (method, path) in [(Method::GET, "/primary"), (Method::GET, "/metrics"), (Method::POST, "/nothing")] {
        let answer =
            api.client.request(method, format!("http://{}{path}", api.address)).send().await.unwrap();
        assert_eq!(answer.headers()[EXTRA.0], EXTRA.1, "{path}");
    }
    api.end().await;
}

/// The description and the routes agree: every path that is described answers, with a code and a kind of content that are
/// described.
#[tokio::test]
async fn the_description_describes_what_is_answered() {
    let api = start("127.0.0.1", Plain::Accepted).await;
    let document = api.page("/openapi.json").await;
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    // patronictl sends all of them, those that are not given as null.
    for (schema, key) in [
        ("Switchover", "candidate"),
        ("Switchover", "member"),
        ("Failover", "candidate"),
        ("Failover", "leader"),
    ] {
        let known = &document["components"]["schemas"][schema]["properties"][key];
        assert!(known["nullable"] == true, "{schema} {key}: {known}");
    }
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
            let url = format!("http://{}{path}", api.address);
            let answer = api.client.request(method.clone(), url).send().await.unwrap();
            let described = &operation["responses"][answer.status().as_str()];
            assert!(described.is_object(), "{method} {path}: {} is not described", answer.status());
            let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            if let Some(content) = described["content"].as_object() {
                let kind = kind.unwrap_or_default();
                assert!(content.keys().any(|known| kind.starts_with(known)), "{method} {path}: {kind}");
            }
        }
    }
    api.end().await;
}

#[tokio::test]
async fn what_is_unknown_is_not_supported() {
    let api = start("127.0.17.5", Plain::Accepted).await;
    for (method, path) in [
        (Method::POST, "/config"),
        (Method::PUT, "/switchover"),
        (Method::DELETE, "/reinitialize"),
        (Method::POST, "/"),
        (Method::DELETE, "/v1/status"),
    ] {
        let (code, body) = api.ask(method.clone(), path).await;
        assert_eq!(code, 501, "{method} {path}");
        assert!(body.contains("501 - Server does not support this operation"), "{body}");
    }
    api.end().await;
}

#[tokio::test]
async fn pages_tell_what_was_published() {
    let api = start("127.0.17.6", Plain::Accepted).await;
    let newborn = api.page("/patroni").await;
    assert_eq!((&newborn["role"], &newborn["patroni"]["name"]), (&json!("uninitialized"), &json!("n0")));
    assert_eq!(api.page("/cluster").await, json!({"members": [], "scope": "demo", "dcs_last_seen": 0}));
    assert_eq!((api.code("/config").await, api.code("/liveness").await), (502, 200));
    assert_eq!(api.page("/history").await, json!([]));

    let mut status = fixture::primary(clock::now());
    let row = vec![json!(1), json!(67_109_616), json!("no recovery target specified")];
    let history = Versioned { value: dcs::History(vec![row]), revision: Revision(3) };
    status.snapshot.as_mut().unwrap().history = Some(history);
    api.says(status);
    let (_, text) = api.ask(Method::GET, "/patroni").await;
    let order =
        ["\"state\"", "\"postmaster_start_time\"", "\"role\"", "\"xlog\"", "\"timeline\"", "\"patroni\""];
    let places: Vec<_> = order.iter().map(|key| text.find(key).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!(api.page("/nothing").await["role"], "primary", "an unknown path shows the status too");
    assert_eq!(api.page("/config").await, json!({"ttl": 20, "custom": {"kept": true}}));
    assert_eq!(api.page("/history").await, json!([[1, 67_109_616, "no recovery target specified"]]));
    assert_eq!(api.page("/cluster").await["members"][1]["role"], "quorum_standby");
    assert_eq!(api.code("/failsafe").await, 502);
    let mut safe = fixture::configured(fixture::primary(clock::now()), json!({"failsafe_mode": true}));
    let map = dcs::Failsafe::from([(NodeName::from("n0"), "http://127.0.1.1:8008/patroni".to_owned())]);
    safe.snapshot.as_mut().unwrap().failsafe = Some(Versioned { value: map, revision: Revision(4) });
    safe.failsafe.mode = ha::rules::Outlast::AllAgree;
    api.says(safe);
    let stranger = api.ask(Method::POST, "/failsafe").await;
    assert_eq!(
        stranger.0, 403,
        "this machine may change something, but a promise is for members: {stranger:?}"
    );
    assert_eq!(api.ask(Method::DELETE, "/failsafe").await.0, 403, "nor is it a stranger's to end");
    assert_eq!(api.page("/failsafe").await, json!({"n0": "http://127.0.1.1:8008/patroni"}));
    let (code, metrics) = api.ask(Method::GET, "/metrics").await;
    assert_eq!(code, 200);
    assert!(metrics.contains("\npatroni_primary{scope=\"demo\",name=\"n0\"} 1\n"), "{metrics}");
    assert!(metrics.contains("\npatroni_failsafe_member{scope=\"demo\",name=\"n0\"} 1\n"), "{metrics}");
    api.end().await;
}

#[tokio::test]
async fn one_port_speaks_tls_and_plain_http() {
    let api = start("127.0.17.7", Plain::Accepted).await;
    api.says(fixture::primary(clock::now()));
    assert_eq!(api.code("/primary").await, 200);
    let answer = anonymous().get(format!("https://{}/primary", api.address)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    // A client that says nothing and one that talks nonsense do not keep others waiting.
    let _silent = TcpStream::connect(api.address).await.unwrap();
    let mut nonsense = TcpStream::connect(api.address).await.unwrap();
    nonsense.write_all(b"\x16\x03\x01 this is no handshake").await.unwrap();
    assert_eq!(api.code("/primary").await, 200);
    let address = api.address;
    api.end().await;
    tokio::net::TcpListener::bind(address).await.expect("the port is free after the end");
}

#[tokio::test]
async fn plain_http_is_refused_with_a_reason_when_tls_is_required() {
    let api = start("127.0.17.8", Plain::Refused).await;
    api.says(fixture::primary(clock::now()));
    let (code, body) = api.ask(Method::GET, "/primary").await;
    assert_eq!(code, 400);
    assert!(body.contains("HTTPS only"), "{body}");
    let answer = anonymous().get(format!("https://{}/primary", api.address)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    api.end().await;
}

#[tokio::test]
async fn node_to_node_calls_need_a_certificate_of_ours() {
    let api = start("127.0.17.9", Plain::Accepted).await;
    let fetched_at = Some(clock::now() - Duration::from_secs(30));
    let addrs = ["127.0.17.9".parse().unwrap()].into();
    api.peers.send_replace(discovery::Peers { addrs, fetched_at, ..Default::default() });
    let https = |path: &str| format!("https://localhost:{}{path}", api.address.port());
    let with = |seed: u8| {
        let config = certificates::ca(seed).client(&certificates::ca(1));
        let client = Client::builder().no_proxy().tls_backend_preconfigured(config).timeout(PATIENCE);
        client.resolve("localhost", api.address).build().unwrap()
    };
    for path in ["/v1/status", "/v1/promise"] {
        let method = if path == "/v1/status" { Method::GET } else { Method::POST };
        assert_eq!(api.ask(method.clone(), path).await.0, 403, "{path} in plain");
        let url = format!("https://{}{path}", api.address);
        let answer = anonymous().request(method, url).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{path} over TLS without a certificate");
    }
    let member = with(1);
    let status: NodeStatus = member.get(https("/v1/status")).send().await.unwrap().json().await.unwrap();
    assert_eq!(status.node_id, NodeId("00112233aabbccdd".into()));
    assert_eq!(status.listed, ["127.0.17.9".parse().unwrap()].into());
    assert!(status.list_age_seconds.is_some_and(|age| (30..90).contains(&age)), "{status:?}");
    assert!(status.your_address.is_some_and(|a| a.is_loopback()), "{status:?}");
    let nonsense = member.post(https("/v1/promise")).body("{}").send().await.unwrap();
    assert_eq!(nonsense.status(), 400);
    let promise = r#"{"promise":{"epoch":1,"seed":"00112233aabbccdd","electorate":["127.0.17.9"]}}"#;
    let early = member.post(https("/v1/promise")).body(promise).send().await.unwrap();
    assert_eq!(early.status(), 503, "no etcd room yet");
    let huge = member.post(https("/v1/promise")).body(vec![b' '; 1 << 20]).send().await;
    assert!(huge.is_err() || huge.is_ok_and(|answer| answer.status() == 400));
    assert!(with(9).get(https("/v1/status")).send().await.is_err(), "a certificate of another CA");
    api.end().await;
}

#[tokio::test]
async fn a_busy_port_is_an_error_at_the_start() {
    let api = start("127.0.17.10", Plain::Accepted).await;
    let (ha, store) = (watch::channel(None).1, watch::channel(etcd::Status::default()).1);
    let (peers, data) =
        (watch::channel(discovery::Peers::default()).1, watch::channel(DataFacts::default()).1);
    let node = NodeFacts { node_id: NodeId("0".into()), name: NodeName::from("n1"), app: "demo".into() };
    let state = api::State {
        node,
        ha,
        store,
        peers,
        data,
        promises: None,
        etcd: None,
        desk: None,
        access: api::access::Access::default(),
        whereabouts: api::Whereabouts::default(),
        certificates: watch::channel(None).1,
        processes: api::Processes::default(),
    };
    let config = api::Config::new("127.0.17.10".into(), api.address.port(), Plain::Accepted);
    let (mut tasks, tls) = (JoinSet::new(), certificates::ca(1).server());
    let error = api::serve(config, state, Some(tls), &mut tasks, CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("could not listen on {} for the API", api.address));
    api.end().await;
}

#[tokio::test]
async fn a_request_under_way_is_answered_after_stop() {
    let api = start("127.0.17.11", Plain::Accepted).await;
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    stream.write_all(b"GET /liveness HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 200");
    // An idle keep-alive connection is closed rather than waited for.
    api.end().await;
    stream.read_to_end(&mut answer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_ask_the_api() {
    let api = start("127.0.17.12", Plain::Refused).await;
    api.says(fixture::primary(clock::now()));
    let url = format!("https://{}", api.address);
    let run = async |args: &[&str]| {
        let args: Vec<String> =
            args.iter().map(|&a| a.to_owned()).chain(["--api".into(), url.clone()]).collect();
        #[expect(clippy::disallowed_methods, reason = "a test runs the binary as a person would")]
        let command = move || std::process::Command::new(env!("CARGO_BIN_EXE_pgherd")).args(args).output();
        tokio::task::spawn_blocking(command).await.unwrap().unwrap()
    };
    let listed = run(&["list"]).await;
    let table = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.status.success() && table.starts_with("+ Cluster: demo (7710000000000000001) "),
        "{table}"
    );
    assert!(table.contains("| n1     | 127.0.1.2 | Quorum Standby | streaming |"), "{table}");
    let listed = run(&["list", "--json"]).await;
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout).unwrap()["scope"], "demo");
    let versions = run(&["version", "--json"]).await;
    let version = serde_json::from_slice::<Value>(&versions.stdout).unwrap()["pgherd"].clone();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["health"]).await.status.code(), Some(0));
    api.says(fixture::down(fixture::primary(clock::now())));
    assert_eq!(run(&["health"]).await.status.code(), Some(1));
    api.end().await;
    let listed = run(&["list"]).await;
    assert_eq!(listed.status.code(), Some(1));
    let error = String::from_utf8(listed.stderr).unwrap();
    assert!(error.starts_with("pgherd: could not read https://127.0.17.12:"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

/// A status without anybody behind the desk: what can be said from memory is said, the rest is 503.
mod actions {
    use super::*;

    const NO_TIME: &str =
        "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601";

    async fn sends(api: &Api, method: Method, path: &str, body: &str) -> (u16, String) {
        let url = format!("http://{}{path}", api.address);
        let answer = api.client.request(method, url).body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn requests_for_another_leader_are_checked_in_patronis_order_and_words() {
        let api = start("127.0.17.31", Plain::Accepted).await;
        api.says(fixture::primary(clock::now()));
        for (path, body, code, words) in [
            (
                "/failover",
                "{\"leader\":\"\"}",
                400,
                "Failover could be performed only to a specific candidate",
            ),
            (
                "/switchover",
                "{\"candidate\":\"n1\"}",
                400,
                "Switchover could be performed only from a specific leader",
            ),
            (
                "/failover",
                "{\"candidate\":\"n1\",\"scheduled_at\":\"2030-01-01T00:00:00Z\"}",
                400,
                "Failover can't be scheduled",
            ),
            (
                "/switchover",
                "{\"leader\":\"n0\",\"scheduled_at\":\"2030-01-01T00:00:00\"}",
                400,
                "Timezone information is mandatory for the scheduled switchover",
            ),
            (
                "/switchover",
                "{\"leader\":\"n0\",\"scheduled_at\":\"2020-01-01T00:00:00Z\"}",
                422,
                "Cannot schedule switchover in the past",
            ),
            (
                "/switchover",
                "{\"leader\":\"n0\",\"candidate\":\"n0\"}",
                400,
                "Switchover target and source are the same",
            ),
            ("/switchover", "{\"leader\":\"n0\",\"scheduled_at\":5}", 422, NO_TIME),
            ("/switchover", "{\"leader\":\"n1\"}", 412, "leader name does not match"),
            (
                "/switchover",
                "{\"leader\":\"n0\",\"candidate\":\"n2\"}",
                412,
                "candidate name does not match with sync_standby",
            ),
            ("/failover", "{\"candidate\":\"n9\"}", 412, "candidate does not exists"),
            ("/switchover", "{\"leader\":\"n0\"}", 503, "failed to write failover key into DCS"),
        ] {
            let answer = sends(&api, Method::POST, path, body).await;
            assert_eq!(answer, (code, words.to_owned()), "{path} {body}");
        }
        api.end().await;
    }

    #[tokio::test]
    async fn a_failover_that_names_a_leader_is_still_called_one() {
        let api = start("127.0.17.35", Plain::Accepted).await;
        api.says(fixture::primary(clock::now()));
        let timed = "{\"leader\":\"n0\",\"candidate\":\"n1\",\"scheduled_at\":\"2030-01-01T00:00:00Z\"}";
        for (body, words) in [
            ("{\"leader\":\"n0\"}", "Failover could be performed only to a specific candidate"),
            (timed, "Failover can't be scheduled"),
        ] {
            let answer = sends(&api, Method::POST, "/failover", body).await;
            assert_eq!(answer, (400, words.to_owned()), "{body}");
        }
        api.end().await;
    }

    #[tokio::test]
    async fn restarts_are_checked_before_they_are_asked_for() {
        let api = start("127.0.17.32", Plain::Accepted).await;
        api.says(fixture::configured(fixture::primary(clock::now()), json!({"pause": true})));
        for (body, code, words) in [
            (
                "{\"role\":\"king\"}",
                400,
                "PostgreSQL role should be either primary, standby_leader, or replica",
            ),
            ("{\"schedule\":null}", 500, "Can't schedule restart in the paused state"),
            ("{\"timeout\":-1}", 400, "Timeout should be a positive number of seconds"),
            ("{\"color\":1}", 400, "Unknown filter for the scheduled restart: color"),
            ("{\"postgres_version\":\"x\"}", 400, "Invalid PostgreSQL version: x"),
            (
                "{\"postgres_version\":\"16\"}",
                400,
                "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 16",
            ),
            ("{\"schedule\":\"2030-01-01T00:00:00Z\"}", 500, "Can't schedule restart in the paused state"),
        ] {
            assert_eq!(sends(&api, Method::POST, "/restart", body).await, (code, words.to_owned()), "{body}");
        }
        api.says(fixture::primary(clock::now()));
        let no_time = sends(&api, Method::POST, "/restart", "{\"schedule\":null}").await;
        assert_eq!(no_time, (422, NO_TIME.to_owned()));
        api.end().await;
    }

    #[tokio::test]
    async fn bodies_that_are_none_are_refused() {
        let api = start("127.0.17.33", Plain::Accepted).await;
        api.says(fixture::primary(clock::now()));
        for (method, path) in
            [(Method::PATCH, "/config"), (Method::PUT, "/config"), (Method::POST, "/switchover")]
        {
            assert_eq!(sends(&api, method.clone(), path, "{").await.0, 400, "{path}");
            assert_eq!(sends(&api, method.clone(), path, "[]").await.0, 400, "{path}");
            assert_eq!(sends(&api, method.clone(), path, "null").await.0, 400, "{path}");
            let url = format!("http://{}{path}", api.address);
            let huge = api.client.request(method, url).body(vec![b' '; 1 << 20]).send().await;
            assert!(huge.is_err() || huge.is_ok_and(|answer| answer.status() == 413));
        }
        // A name that is none is not left out: the call would mean another one.
        for body in ["{\"leader\":\"n0\",\"candidate\":5}", "{\"leader\":[\"n0\"]}"] {
            assert_eq!(sends(&api, Method::POST, "/switchover", body).await.0, 400, "{body}");
        }
        for path in ["/restart", "/reinitialize"] {
            for body in ["null", "[]", "5", "{"] {
                let (code, page) = sends(&api, Method::POST, path, body).await;
                assert!(code == 400 && page.contains("Error code: 400"), "{path} {body}: {code} {page}");
            }
        }
        for body in ["{\"force\":\"maybe\"}", "{\"force\":2}", "{\"force\":[]}"] {
            assert_eq!(sends(&api, Method::POST, "/reinitialize", body).await.0, 400, "{body}");
        }
        assert_eq!(sends(&api, Method::DELETE, "/reinitialize", "").await.0, 501);
        let mut stream = TcpStream::connect(api.address).await.unwrap();
        stream.write_all(b"PATCH /config HTTP/1.1\r\nHost: n0\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 411 "), "{answer}");
        let mut stream = TcpStream::connect(api.address).await.unwrap();
        let garbage = b"POST /restart HTTP/1.1\r\nHost: n0\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        stream.write_all(garbage).await.unwrap();
        let mut head = [0; 13];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 400 ");
        api.end().await;
    }
}
