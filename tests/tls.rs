//! Certificates as others see them: the openssl program verifies chains, names and dates; rustls shakes hands.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "test helpers")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use jiff::{SignedDuration, Timestamp};
use pgherd::tls::{self, Bundle, Error, Keys, Root, Secrecy, Secret, Subject};
use pgherd::types::NodeId;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

static ROOT: LazyLock<Root> = LazyLock::new(|| derive("myapp-postgres"));

fn derive(app: &str) -> Root {
    Root::derive(&Secret::Passphrase(b"correct horse battery staple"), app).unwrap()
}

fn subject(id: &str) -> Subject {
    Subject {
        app: "myapp-postgres".to_owned(),
        node_id: NodeId(id.to_owned()),
        addresses: vec!["203.0.113.7".parse::<IpAddr>().unwrap(), "2001:db8::7".parse().unwrap()],
        names: vec!["fluxdb_myapp-postgres".to_owned(), "localhost".to_owned()],
        validity_days: 3650,
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn bundle(id: &str) -> Bundle {
    tls::issue(&ROOT, &subject(id), now()).unwrap()
}

fn now() -> Timestamp {
    pgherd::clock::wall()
}

fn pem<'a>(bundle: &'a Bundle, name: &str) -> &'a str {
    bundle.files.iter().find(|file| file.name == name).unwrap().pem.as_str()
}

/// Writes a bundle's files and lets openssl work in that directory; tells whether it succeeded, and what it said.
fn openssl(bundle: &Bundle, args: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    for file in &bundle.files {
        let mut to = std::fs::File::create(dir.path().join(file.name)).unwrap();
        std::io::Write::write_all(&mut to, file.pem.as_bytes()).unwrap();
    }
    run_openssl(dir.path(), args)
}

#[expect(clippy::disallowed_methods, reason = "a judge from outside, not a child of ours")]
fn run_openssl(dir: &Path, args: &str) -> (bool, String) {
    let output = std::process::Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("the openssl program is needed by this test (apt-get install openssl)");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

const LEAVES: &[(&str, &str, &[&str])] = &[
    ("etcd-server.crt", "internal-ca.crt", &["sslserver", "sslclient"]),
    ("etcd-peer.crt", "internal-ca.crt", &["sslserver", "sslclient"]),
    ("etcd-client.crt", "internal-ca.crt", &["sslclient"]),
    ("postgres.crt", "service-ca.crt", &["sslserver"]),
    ("replicator.crt", "service-ca.crt", &["sslclient"]),
];

fn verifies(bundle: &Bundle, leaf: &str, ca: &str, more: &str) -> bool {
    openssl(bundle, &format!("verify -x509_strict -CAfile {ca} {more} {leaf}")).0
}

#[test]
fn the_ids_are_those_of_an_independent_implementation() {
    let (internal, service) = bundle("00000000000000a1").ca_ids;
    assert_eq!((internal.as_str(), service.as_str()), ("d6e0d137", "bf3224f8"));
}

#[test]
fn every_node_derives_the_same_authorities_and_its_own_leaves() {
    let when = at("2026-11-21T10:00:00Z");
    let one = tls::issue(&ROOT, &subject("00000000000000a1"), when).unwrap();
    let other = tls::issue(&derive("myapp-postgres"), &subject("00000000000000b2"), when).unwrap();
    for ca in ["internal-ca.crt", "service-ca.crt"] {
        assert_eq!(pem(&one, ca), pem(&other, ca));
    }
    for (leaf, ..) in LEAVES {
        assert_ne!(pem(&one, leaf), pem(&other, leaf));
        assert_ne!(pem(&one, &leaf.replace(".crt", ".key")), pem(&other, &leaf.replace(".crt", ".key")));
    }
    let stranger = tls::issue(&derive("shop"), &subject("00000000000000a1"), when).unwrap();
    assert_ne!(pem(&one, "internal-ca.crt"), pem(&stranger, "internal-ca.crt"));
    assert_ne!(one.ca_ids, stranger.ca_ids);
}

/// A change of these is a change of every cluster's CA bytes: harmless between nodes (only name, key and key id count),
/// and worth knowing of.
#[test]
fn the_authorities_bytes_are_known() {
    let bundle = tls::issue(&ROOT, &subject("00000000000000a1"), at("2026-11-21T10:00:00Z")).unwrap();
    let print = |ca: &str| {
        let (ok, text) = openssl(&bundle, &format!("x509 -in {ca} -noout -fingerprint -sha256"));
        assert!(ok, "{text}");
        text.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase()
    };
    assert_eq!(print("internal-ca.crt"), "317d8c5829e0e9231426994fddd5f74573e038ae9b14ef9150cc702fe9b6f853");
    assert_eq!(print("service-ca.crt"), "4822aa37d8f83b881eb97a356f9c02c77d06ef7f0f8d8db75c21cb8de3645f5b");
}

#[test]
fn openssl_verifies_every_leaf_for_its_purposes_and_no_other() {
    let bundle = bundle("00000000000000a1");
    for (leaf, ca, purposes) in LEAVES {
        for purpose in ["sslserver", "sslclient"] {
            let fits = verifies(&bundle, leaf, ca, &format!("-purpose {purpose}"));
            assert_eq!(fits, purposes.contains(&purpose), "{leaf} as {purpose}");
        }
        let other = if *ca == "internal-ca.crt" { "service-ca.crt" } else { "internal-ca.crt" };
        assert!(!verifies(&bundle, leaf, other, ""), "{leaf} verifies against {other}");
    }
}

#[test]
fn servers_carry_their_own_names_and_addresses() {
    let bundle = bundle("00000000000000a1");
    for (leaf, ca) in [("postgres.crt", "service-ca.crt"), ("etcd-server.crt", "internal-ca.crt")] {
        for name in ["00000000000000a1.pgherd.internal", "localhost", "fluxdb_myapp-postgres"] {
            assert!(verifies(&bundle, leaf, ca, &format!("-verify_hostname {name}")), "{leaf} {name}");
        }
        for ip in ["203.0.113.7", "2001:db8::7", "127.0.0.1", "::1"] {
            assert!(verifies(&bundle, leaf, ca, &format!("-verify_ip {ip}")), "{leaf} {ip}");
        }
        assert!(!verifies(&bundle, leaf, ca, "-verify_hostname 00000000000000b2.pgherd.internal"));
        assert!(!verifies(&bundle, leaf, ca, "-verify_ip 203.0.113.8"));
    }
    let (_, text) = openssl(&bundle, "x509 -in replicator.crt -noout -subject -ext subjectAltName");
    assert!(text.contains("CN = replicator"), "{text}");
    assert!(!text.contains("DNS:"), "{text}");
}

#[test]
fn keys_belong_to_their_certificates_and_come_first() {
    let bundle = bundle("00000000000000a1");
    let position = |name: &str| bundle.files.iter().position(|file| file.name == name).unwrap();
    for (leaf, ..) in LEAVES {
        let key = leaf.replace(".crt", ".key");
        assert!(position(&key) < position(leaf));
        let (_, of_certificate) = openssl(&bundle, &format!("x509 -in {leaf} -noout -pubkey"));
        let (_, of_key) = openssl(&bundle, &format!("pkey -in {key} -pubout"));
        assert!(of_key.contains("BEGIN PUBLIC KEY"), "{of_key}");
        assert_eq!(of_certificate, of_key);
    }
    for file in &bundle.files {
        assert_eq!(file.secret == Secrecy::Key, file.pem.contains("PRIVATE KEY"), "{}", file.name);
    }
}

#[test]
fn certificates_outlive_wrong_clocks_but_not_by_much() {
    let issued = at("2026-11-21T10:00:00Z");
    let bundle = tls::issue(&ROOT, &subject("00000000000000a1"), issued).unwrap();
    let days = |n: i64| issued + SignedDuration::from_hours(24 * n);
    for (when, valid) in [(days(-8), false), (days(-6), true), (days(89), true), (days(91), false)] {
        let time = format!("-attime {}", when.as_second());
        assert_eq!(verifies(&bundle, "postgres.crt", "service-ca.crt", &time), valid, "{when}");
    }
    assert_eq!(bundle.renew_after, days(60));
}

#[test]
fn no_date_ends_the_cluster() {
    for year in
        ["2028-02-29T12:00:00Z", "2037-11-21T10:00:00Z", "2049-12-31T23:59:59Z", "2051-06-01T00:00:00Z"]
    {
        let bundle = tls::issue(&ROOT, &subject("00000000000000a1"), at(year)).unwrap();
        for (leaf, ca, _) in LEAVES {
            assert!(
                verifies(&bundle, leaf, ca, &format!("-attime {}", at(year).as_second())),
                "{leaf} in {year}"
            );
        }
    }
    // A node before and a node after New Year, with different ideas of the CA's life, still know each other's leaves.
    let mut before = tls::issue(&ROOT, &subject("00000000000000a1"), at("2026-12-31T23:00:00Z")).unwrap();
    let shorter = Subject { validity_days: 365, ..subject("00000000000000b2") };
    let after = tls::issue(&ROOT, &shorter, at("2027-01-01T01:00:00Z")).unwrap();
    assert_ne!(pem(&before, "service-ca.crt"), pem(&after, "service-ca.crt"));
    before.files.retain(|file| file.name == "service-ca.crt");
    before.files.extend(after.files.into_iter().filter(|file| file.name == "postgres.crt"));
    let time = format!("-attime {}", at("2027-01-01T01:00:00Z").as_second());
    assert!(verifies(&before, "postgres.crt", "service-ca.crt", &time));
}

#[test]
fn a_clock_before_this_program_existed_is_not_believed() {
    let bundle = tls::issue(&ROOT, &subject("00000000000000a1"), Timestamp::UNIX_EPOCH).unwrap();
    assert!(verifies(&bundle, "postgres.crt", "service-ca.crt", "-attime 1768000000"));
}

#[test]
fn a_leaf_lives_no_longer_than_asked_for() {
    let issued = at("2026-11-21T10:00:00Z");
    let short = Subject { validity_days: 3, ..subject("00000000000000a1") };
    let bundle = tls::issue(&ROOT, &short, issued).unwrap();
    assert_eq!(bundle.renew_after, issued + SignedDuration::from_hours(48));
    let time = |hours| format!("-attime {}", (issued + SignedDuration::from_hours(hours)).as_second());
    assert!(verifies(&bundle, "postgres.crt", "service-ca.crt", &time(71)));
    assert!(!verifies(&bundle, "postgres.crt", "service-ca.crt", &time(73)));
}

#[test]
fn a_name_that_no_certificate_can_hold_is_an_error() {
    let odd = Subject { names: vec!["ünïcode".to_owned()], ..subject("00000000000000a1") };
    let error = tls::issue(&ROOT, &odd, now()).unwrap_err();
    assert!(matches!(&error, Error::Name { name, .. } if name == "ünïcode"), "{error:?}");
}

#[test]
fn no_key_is_printed() {
    let bundle = bundle("00000000000000a1");
    let printed = format!("{bundle:?} {:?} {:?}", *ROOT, Secret::Passphrase(b"PLANTED"));
    assert!(
        !printed.contains("PRIVATE") && !printed.contains("PLANTED") && !printed.contains("80, 76, 65"),
        "{printed}"
    );
    for file in bundle.files.iter().filter(|file| file.secret == Secrecy::Key) {
        let line = file.pem.lines().nth(1).unwrap();
        assert!(!printed.contains(line));
    }
}

/// Shakes hands in memory; `Err` is what either side objected to. Returns the server's view of the client's
/// certificate, and the client's of the server's.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(Option<Vec<u8>>, Vec<u8>), rustls::Error> {
    let name = ServerName::try_from("198.51.100.99").unwrap();
    // A resumed session would repeat the certificates of the one before.
    let mut full = (**client).clone();
    full.resumption = rustls::client::Resumption::disabled();
    let mut client = ClientConnection::new(Arc::new(full), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    let first = |certificates: Option<&[CertificateDer<'_>]>| certificates.map(|all| all[0].to_vec());
    Ok((first(server.peer_certificates()), first(client.peer_certificates()).unwrap()))
}

/// A client that trusts everything this bundle's peer client trusts, and shows a certificate of the given files.
fn showing(bundle: &Bundle, leaf: &str, ca: &str) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem(bundle, "service-ca.crt").as_bytes()).unwrap()).unwrap();
    let chain = [leaf, ca].map(|name| CertificateDer::from_pem_slice(pem(bundle, name).as_bytes()).unwrap());
    let key = PrivateKeyDer::from_pem_slice(pem(bundle, &leaf.replace(".crt", ".key")).as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_client_auth_cert(chain.to_vec(), key).unwrap())
}

#[test]
fn nodes_of_one_cluster_shake_hands_whatever_their_addresses() {
    let (one, other) = (bundle("00000000000000a1"), bundle("00000000000000b2"));
    let (client_certificate, _) = handshake(&one.peer_client, &other.api_server).unwrap();
    assert!(client_certificate.is_some(), "the server did not see who called");
}

#[test]
fn a_stranger_is_refused_on_both_sides() {
    let ours = bundle("00000000000000a1");
    let theirs = tls::issue(&derive("shop"), &subject("00000000000000b2"), now()).unwrap();
    assert!(
        handshake(&ours.peer_client, &theirs.api_server).is_err(),
        "our client accepted a stranger's server"
    );
    assert!(handshake(&theirs.peer_client, &ours.api_server).is_err());
}

#[test]
fn the_api_admits_the_nameless_and_checks_who_shows_a_certificate() {
    let ours = bundle("00000000000000a1");
    let mut nameless = (*ours.peer_client).clone();
    nameless.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (certificate, _) = handshake(&Arc::new(nameless), &ours.api_server).unwrap();
    assert_eq!(certificate, None);
    // What an application may hold (a PostgreSQL client certificate) does not open the control API.
    let name = |leaf, ca| {
        let mut config = (*ours.peer_client).clone();
        config.client_auth_cert_resolver = showing(&ours, leaf, ca).client_auth_cert_resolver.clone();
        handshake(&Arc::new(config), &ours.api_server)
    };
    assert!(name("etcd-client.crt", "internal-ca.crt").unwrap().0.is_some());
    assert!(name("replicator.crt", "service-ca.crt").is_err());
}

/// A certificate that signs itself, as `openssl req -x509` makes it.
fn self_signed(dir: &Path, name: &str, address: &str) -> tls::Identity {
    let args = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.crt \
         -addext subjectAltName=IP:{address}"
    );
    let (made, said) = run_openssl(dir, &args);
    assert!(made, "{said}");
    let read = |kind: &str| std::fs::read_to_string(dir.join(format!("{name}.{kind}"))).unwrap();
    tls::Identity { certificate: read("crt"), key: read("key").into() }
}

#[test]
fn a_certificate_that_is_named_as_an_authority_is_trusted_itself() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| self_signed(dir.path(), name, "198.51.100.99"));
    let shakes = |trusted: &tls::Identity, shown: &tls::Identity, server: &tls::Identity| {
        let required = tls::machine::ClientCertificates::Required(trusted.certificate.clone());
        let client = tls::machine::client(Some(&trusted.certificate), Some(shown)).unwrap();
        handshake(&Arc::new(client), &Arc::new(tls::machine::server(server, required).unwrap()))
    };
    assert!(shakes(&one, &one, &one).unwrap().0.is_some());
    assert!(shakes(&one, &other, &one).is_err(), "a client that is not named");
    assert!(shakes(&one, &one, &other).is_err(), "a server that is not named");
    let elsewhere = self_signed(dir.path(), "elsewhere", "198.51.100.1");
    assert!(shakes(&elsewhere, &elsewhere, &elsewhere).is_err(), "a server of another name");
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_reissue_keeps_the_keys_and_reaches_running_listeners() {
    let first = bundle("00000000000000a1");
    let moved = Subject { addresses: vec!["203.0.113.99".parse().unwrap()], ..subject("00000000000000a1") };
    let (_, before) = handshake(&first.peer_client, &first.api_server).unwrap();
    let second = tls::reissue(&ROOT, &moved, Arc::clone(&first.keys), now()).unwrap();
    let (_, after) = handshake(&first.peer_client, &first.api_server).unwrap();
    assert!(before != after, "the old listener still serves the old certificate");

    let by_name = |bundle: &Bundle| -> BTreeMap<&str, String> {
        bundle.files.iter().map(|file| (file.name, file.pem.to_string())).collect()
    };
    for (name, pem) in by_name(&second) {
        let same = by_name(&first)[name] == pem;
        assert_eq!(same, !LEAVES.iter().any(|(leaf, ..)| *leaf == name), "{name}");
    }
    assert!(verifies(&second, "postgres.crt", "service-ca.crt", "-verify_ip 203.0.113.99"));
    assert!(!verifies(&second, "postgres.crt", "service-ca.crt", "-verify_ip 203.0.113.7"));
}

#[test]
fn a_failed_reissue_changes_nothing() {
    let first = bundle("00000000000000a1");
    let (_, before) = handshake(&first.peer_client, &first.api_server).unwrap();
    let odd = Subject { names: vec!["ünïcode".to_owned()], ..subject("00000000000000a1") };
    tls::reissue(&ROOT, &odd, Arc::clone(&first.keys), now()).unwrap_err();
    assert_eq!(handshake(&first.peer_client, &first.api_server).unwrap().1, before);
}

#[test]
fn keys_are_new_each_time() {
    let files = |keys| tls::reissue(&ROOT, &subject("00000000000000a1"), Arc::new(keys), now()).unwrap();
    let (one, other) = (files(Keys::generate().unwrap()), files(Keys::generate().unwrap()));
    assert_ne!(pem(&one, "postgres.key"), pem(&other, "postgres.key"));
}

#[test]
fn a_tool_gets_a_certificate_that_opens_one_of_the_two_doors() {
    use pgherd::tls::Purpose;
    let (internal, service) = tls::authorities(&ROOT, &subject("x"), now()).unwrap();
    let bundle = bundle("00000000000000a1");
    assert_eq!(internal, pem(&bundle, "internal-ca.crt"));
    assert_eq!(service, pem(&bundle, "service-ca.crt"));
    for (purpose, own, other) in
        [(Purpose::Control, &internal, &service), (Purpose::Database, &service, &internal)]
    {
        let files = tls::client(&ROOT, &subject("patronictl"), (purpose, 30), now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let mut to = std::fs::File::create(dir.path().join(name)).unwrap();
            std::io::Write::write_all(&mut to, text.as_bytes()).unwrap();
        };
        files.iter().for_each(|file| write(file.name, &file.pem));
        write("other.crt", other);
        let ca = files.iter().find(|file| file.name == "ca.crt").unwrap();
        assert_eq!(ca.pem.as_str(), own);
        let verify = |ca: &str| {
            run_openssl(
                dir.path(),
                &format!("verify -x509_strict -CAfile {ca} -purpose sslclient client.crt"),
            )
        };
        assert!(verify("ca.crt").0, "{purpose:?}");
        assert!(!verify("other.crt").0, "{purpose:?}");
        let (_, name) = run_openssl(dir.path(), "x509 -in client.crt -noout -subject");
        assert!(name.contains("CN = patronictl") || name.contains("CN=patronictl"), "{name}");
        assert!(run_openssl(dir.path(), "x509 -in client.crt -noout -checkend 2500000").0);
        assert!(!run_openssl(dir.path(), "x509 -in client.crt -noout -checkend 2700000").0);
    }
}
