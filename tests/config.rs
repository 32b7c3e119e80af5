//! The environment contract, seen from outside: what is accepted, what is refused, and what is never printed.
#![expect(clippy::unwrap_used, reason = "test helpers")]

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use pgherd::config::{Config, Errors, Identity, Kind, Network, RestartNode, VARIABLES, Warning};
use pgherd::discovery::Source;
use pgherd::ha::rules::Tags;
use pgherd::postgres::ClientTls;
use pgherd::process::RunAs;
use pgherd::types::{NodeName, Ports, SyncMode};
use secrecy::ExposeSecret as _;

const REQUIRED: &[(&str, &str)] =
    &[("POSTGRES_SUPERUSER_PASSWORD", "super-secret"), ("POSTGRES_REPLICATION_PASSWORD", "repl-secret")];

fn read(extra: &[(&str, &str)]) -> Result<(Config, Vec<Warning>), Errors> {
    let base = REQUIRED.iter().filter(|(name, _)| extra.iter().all(|(other, _)| other != name));
    Config::read(base.chain(extra).map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

fn accepted(extra: &[(&str, &str)]) -> Config {
    read(extra).unwrap().0
}

fn errors(extra: &[(&str, &str)]) -> Vec<String> {
    read(extra).unwrap_err().0
}

fn warnings(extra: &[(&str, &str)]) -> Vec<String> {
    read(extra).unwrap().1.into_iter().map(|Warning(text)| text).collect()
}

#[test]
fn two_passwords_are_enough() {
    let config = accepted(&[]);
    assert_eq!(config.app, "myapp-postgres");
    assert_eq!(config.bound, Ports { postgres: 5432, api: 8008, etcd_client: 2379, etcd_peer: 2380 });
    assert_eq!(config.advertised, config.bound);
    assert_eq!(config.data_volume, "/var/lib/postgresql/data");
    assert_eq!(config.database.data_dir, "/var/lib/postgresql/data/pgdata");
    assert_eq!(config.run_dir, "/run/pgherd");
    assert_eq!(config.tls.clients, ClientTls::Offered);
    assert_eq!(config.tls.validity_days, 3650);
    assert_eq!(config.ha.sync_mode, SyncMode::Quorum);
    assert_eq!(config.ha.tags, Tags::default());
    assert_eq!(config.restart_node, RestartNode::Restart);
    assert_eq!(config.timing.network, Network::Auto);
    assert_eq!(config.local_address(), "127.0.0.1".parse::<IpAddr>().unwrap());
    let Source::Flux { url, app } = &config.discovery.source else { panic!("{:?}", config.discovery.source) };
    assert_eq!((url.as_str(), app.as_str()), ("https://api.runonflux.io", "myapp-postgres"));
    assert!(config.discovery.hostinfo_url.is_some());
    assert_eq!(config.discovery.echo_urls.len(), 3);
}

#[test]
fn a_demo_node_stays_on_loopback() {
    let config = accepted(&[
        ("FLUX_API_URL", "http://127.0.1.100:16127/"),
        ("ADVERTISE_ADDRESS", "127.0.1.1"),
        ("LISTEN_ADDRESS", "127.0.1.1"),
        ("CLUSTER_SIZE", "3"),
    ]);
    let discovery = &config.discovery;
    assert_eq!(discovery.poll_every, Duration::from_secs(5));
    assert_eq!((&discovery.hostinfo_url, discovery.echo_urls.len()), (&None, 0));
    assert_eq!(discovery.cluster_size, Some(3));
    assert!(matches!(&discovery.source, Source::Flux { url, .. } if url == "http://127.0.1.100:16127"));
    assert_eq!(config.local_address(), "127.0.1.1".parse::<IpAddr>().unwrap());
}

#[test]
fn every_mistake_is_reported_at_once() {
    let all = Config::read(
        [
            ("APP_NAME", "my app"),
            ("POSTGRES_PORT", "70000"),
            ("PATRONI_API_PORT", "2379"),
            ("SSL_ENABLED", "maybe"),
            ("DISCOVERY", "consul"),
            ("TTL", "5"),
            ("PGDATA", "/elsewhere"),
            ("POSTGRES_PARAMETERS", "port=1"),
            ("LOG_LEVEL", "loud"),
            ("FLUX_API_URL", "ftp://user:hunter2@x"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into_iter(),
    )
    .unwrap_err();
    for name in [
        "APP_NAME: \"my app\"; expected 1 to 63 letters",
        "POSTGRES_PORT: \"70000\"; expected a port from 1 to 65535",
        "ETCD_CLIENT_PORT: 2379, like PATRONI_API_PORT",
        "SSL_ENABLED: \"maybe\"; expected one of true, false",
        "DISCOVERY: \"consul\"; expected one of flux, ",
        "TTL, LOOP_WAIT, RETRY_TIMEOUT: LOOP_WAIT + 2 * RETRY_TIMEOUT is 2s + 2 * 4s = 10s on NETWORK=local; \
         expected at most TTL, which is 5s",
        "PGDATA: /elsewhere; expected a directory beneath DATA_VOLUME",
        "POSTGRES_PARAMETERS: \"port=1\"; expected other parameters (`port` belongs to the cluster)",
        "LOG_LEVEL: \"loud\"; expected one of error, warn, info, debug, trace",
        "FLUX_API_URL: a URL with credentials; expected a URL",
        "POSTGRES_SUPERUSER_PASSWORD: not set; expected a password",
        "POSTGRES_REPLICATION_PASSWORD: not set; expected a password",
    ] {
        assert!(all.0.iter().any(|error| error.starts_with(name)), "{name}\nnot in\n{all}");
    }
    assert_eq!(all.0.len(), 12, "{all}");
    assert_eq!(all.to_string().lines().count(), 12);
}

#[test]
fn passwords_survive_whatever_they_contain() {
    for odd in [
        "$HOME",
        "'quoted'",
        "\"double\"",
        r"back\slash",
        "50%",
        "user@host:5432/db",
        "пароль-密码-🔑",
        " blank ",
        "#x",
    ] {
        let config =
            accepted(&[("POSTGRES_SUPERUSER_PASSWORD", odd), ("POSTGRES_REPLICATION_PASSWORD", odd)]);
        assert_eq!(config.database.superuser_password.expose_secret(), odd);
        assert_eq!(config.database.replication_password.expose_secret(), odd);
    }
}

#[test]
fn passwords_that_nothing_can_carry_are_refused_without_being_shown() {
    for bad in ["QXZ\nQXZ", "QXZ\rQXZ"] {
        let errors = errors(&[("POSTGRES_SUPERUSER_PASSWORD", bad)]);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("line break or NUL"), "{errors:?}");
        assert!(!errors[0].contains("QXZ"), "{errors:?}");
    }
    let latin1 = OsString::from_vec(b"caf\xe9-secret".to_vec());
    let vars = [
        ("POSTGRES_SUPERUSER_PASSWORD".into(), latin1),
        ("POSTGRES_REPLICATION_PASSWORD".into(), "x".into()),
    ];
    let errors = Config::read(vars.into_iter()).unwrap_err().0;
    assert_eq!(errors, ["POSTGRES_SUPERUSER_PASSWORD: 11 bytes that are not UTF-8; expected text"]);
}

#[test]
fn a_secret_may_come_from_a_file() {
    let temp = tempfile::tempdir().unwrap();
    let file = |name: &str, contents: &[u8]| {
        let path = temp.path().join(name);
        std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), contents).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secret = |path: &str| {
        let vars = [("POSTGRES_SUPERUSER_PASSWORD_FILE", path), ("POSTGRES_REPLICATION_PASSWORD", "r")];
        let read = Config::read(vars.into_iter().map(|(name, value)| (name.into(), value.into())));
        read.map(|(config, _)| config.database.superuser_password.expose_secret().to_owned())
    };
    assert_eq!(secret(&file("a", b"from-file\n")).unwrap(), "from-file");
    assert_eq!(secret(&file("b", b" from file ")).unwrap(), " from file ");
    // One line break is dropped, not two: the second is part of the value, and a password cannot have one.
    assert!(secret(&file("c", b"x\n\n")).is_err());
    assert!(secret(&file("d", b"")).unwrap_err().to_string().contains("the file is empty"));
    assert!(
        secret("/nonexistent")
            .unwrap_err()
            .to_string()
            .contains("POSTGRES_SUPERUSER_PASSWORD_FILE: /nonexistent")
    );
    assert!(secret(temp.path().to_str().unwrap()).unwrap_err().to_string().contains("not a regular file"));

    let both = errors(&[("SSL_PASSPHRASE", "one-passphrase-here"), ("SSL_PASSPHRASE_FILE", "/x")]);
    assert_eq!(both, ["SSL_PASSPHRASE: SSL_PASSPHRASE_FILE is set too; expected one of them"]);
}

#[test]
fn no_secret_is_ever_printed() {
    let planted = "PLANTED-0123456789";
    for secret in VARIABLES.iter().filter(|v| v.kind == Kind::Secret) {
        // The one that comes in a pair.
        let beside =
            if secret.name == "RESTAPI_PASSWORD" { ("RESTAPI_USERNAME", "ops") } else { ("TZ", "UTC") };
        // The one that is a URL.
        let url = format!("postgres://me:{planted}@host");
        let planted = if secret.name == "IMPORT_URL" { url.as_str() } else { planted };
        let (config, warnings) =
            read(&[(secret.name, planted), ("SSL_ALLOW_WEAK_PASSPHRASE", "true"), beside])
                .unwrap_or_else(|errors| panic!("{}: {errors}", secret.name));
        let printed = format!("{config:?} {config:#?} {warnings:?}");
        assert!(!printed.contains("PLANTED"), "{} is printed", secret.name);
        // Whatever else is wrong, and however wrong the secret is.
        let broken = format!("{planted}\n{planted}");
        for value in [planted, broken.as_str()] {
            let with_mistakes =
                [(secret.name, value), ("TTL", "x"), ("SSL_ENABLED", "true"), ("POSTGRES_USER", "pg_x")];
            let printed = format!("{:?}", read(&with_mistakes).unwrap_err());
            assert!(!printed.contains("PLANTED"), "{} is printed: {printed}", secret.name);
        }
    }
}

#[test]
fn a_password_inside_of_a_plain_value_is_not_printed() {
    let conninfo = "primary_conninfo = 'host=x password=PLANTED'";
    let errors = errors(&[("POSTGRES_PARAMETERS", conninfo), ("FLUX_API_URL", "ftp://u:PLANTED@x")]);
    assert_eq!(errors.len(), 2);
    assert!(!errors.join(" ").contains("PLANTED"), "{errors:?}");
}

#[test]
fn tls_for_clients_needs_a_good_passphrase() {
    let with = |passphrase: &str| {
        errors(&[("SSL_ENABLED", "true"), ("SSL_PASSPHRASE", passphrase), ("APP_NAME", "shop")])
    };
    assert!(with("")[0].contains("not set"));
    assert!(with("too-short")[0].contains("shorter than 12 bytes"));
    assert!(with("our-shop-is-the-best")[0].contains("APP_NAME"));
    assert!(with("prefix-super-secret-suffix")[0].contains("one of the passwords"));
    assert!(with("your-ssl-passphrase")[0].contains("documentation"));
    let good = accepted(&[
        ("SSL_ENABLED", "true"),
        ("SSL_PASSPHRASE", "n7q2m5x9c4v8b1k6j3h0"),
        ("APP_NAME", "shop"),
    ]);
    assert_eq!(good.tls.clients, ClientTls::Required);
    assert_eq!(good.tls.passphrase.unwrap().expose_secret(), b"n7q2m5x9c4v8b1k6j3h0");
    let forced = [("SSL_PASSPHRASE", "too-short"), ("SSL_ALLOW_WEAK_PASSPHRASE", "true")];
    assert!(warnings(&forced).iter().any(|w| w.contains("weak: shorter than 12 bytes")));
}

#[test]
fn a_passphrase_is_bytes_and_not_text() {
    let raw = b"\xff\xfe not text at all \x01\x02".to_vec();
    let mut vars: Vec<(OsString, OsString)> = REQUIRED.iter().map(|(n, v)| (n.into(), v.into())).collect();
    vars.push(("SSL_PASSPHRASE".into(), OsString::from_vec(raw.clone())));
    let (config, _) = Config::read(vars.into_iter()).unwrap();
    assert_eq!(config.tls.passphrase.unwrap().expose_secret(), raw);
}

#[test]
fn a_mistyped_name_gets_a_warning_with_the_likely_one() {
    let warnings = warnings(&[
        ("POSTGRES_PASWORD", "x"),
        ("SSL_ENABELD", "true"),
        ("TZ", "UTC"),
        ("POSTGRES_PASSWORD", "x"),
        ("PATRONI_MAX_LAG", "33554432"),
    ]);
    let has = |text: &str| warnings.iter().any(|w| w == text);
    assert!(has("SSL_ENABELD: not a variable of pgherd; did you mean SSL_ENABLED?"), "{warnings:?}");
    let before =
        "PATRONI_MAX_LAG: of flux-pg-cluster, and not used; in its place there is MAXIMUM_LAG_ON_FAILOVER";
    assert!(has(before), "{warnings:?}");
    let official = "did you mean POSTGRES_SUPERUSER_PASSWORD?";
    assert!(has(&format!("POSTGRES_PASSWORD: not a variable of pgherd; {official}")), "{warnings:?}");
    assert!(has(&format!("POSTGRES_PASWORD: not a variable of pgherd; {official}")), "{warnings:?}");
    assert!(warnings.iter().all(|w| !w.starts_with("TZ")), "{warnings:?}");
}

#[test]
fn an_empty_value_is_no_value() {
    let config =
        accepted(&[("APP_NAME", ""), ("POSTGRES_PORT", ""), ("DISCOVERY_PEERS", " "), ("NODE_NAME", "")]);
    assert_eq!(
        (config.app.as_str(), config.bound.postgres, config.node_name),
        ("myapp-postgres", 5432, None)
    );
}

/// The environment that flux-pg-cluster asks for, and what the platform adds to it.
#[test]
fn the_predecessors_environment_is_enough_on_its_platform() {
    let block = [
        ("HOST_POSTGRES_PORT", "15432"),
        ("HOST_PATRONI_API_PORT", "18008"),
        ("HOST_ETCD_CLIENT_PORT", "12379"),
        ("HOST_ETCD_PEER_PORT", "12380"),
        ("POSTGRES_DB", "shop-database"),
        ("SSL_ENABLED", "true"),
        ("SSL_PASSPHRASE", "n7q2m5x9c4v8b1k6j3h0"),
    ];
    let platform = [("FLUX_APP_NAME", "shop"), ("FLUX_NODE_HOST_IP", "198.51.100.9")];
    let all = [block.as_slice(), &platform].concat();
    let config = accepted(&all);
    assert_eq!(config.app, "shop");
    let Source::Flux { app, .. } = &config.discovery.source else { panic!("not flux") };
    assert_eq!(app, "shop");
    assert_eq!((config.bound.postgres, config.advertised.postgres), (5432, 15432));
    let named = |name| warnings(&[all.as_slice(), &[("APP_NAME", name)]].concat());
    let told = |warnings: &[String]| warnings.iter().any(|w| w.starts_with("APP_NAME"));
    assert!(!told(&warnings(&all)) && !told(&named("shop")) && told(&named("shops")));
    assert_eq!(accepted(&[all.as_slice(), &[("APP_NAME", "shops")]].concat()).app, "shops");
    let odd = [("FLUX_APP_NAME", "no name of ours"), ("APP_NAME", "shop")];
    assert_eq!(accepted(&[block.as_slice(), &platform[1..], &odd].concat()).app, "shop");
}

#[test]
fn a_static_list_needs_its_peers() {
    assert!(errors(&[("DISCOVERY", "static")])[0].contains("DISCOVERY_PEERS: not set"));
    let config =
        accepted(&[("DISCOVERY", "static"), ("DISCOVERY_PEERS", "10.0.0.1, 10.0.0.2:5432,[fd00::1]")]);
    let Source::Static(peers) = config.discovery.source else { panic!("not static") };
    assert_eq!(peers.len(), 3);
    assert!(config.discovery.echo_urls.is_empty());
    let stray = warnings(&[("DISCOVERY_PEERS", "10.0.0.1")]);
    assert!(stray.iter().any(|w| w.starts_with("DISCOVERY_PEERS: has no effect")), "{stray:?}");
}

#[test]
fn the_predecessors_pgdata_is_the_volume_and_moves_beneath_it() {
    let pgdata = [("PGDATA", "/var/lib/postgresql/data")];
    assert_eq!(accepted(&pgdata).database.data_dir, "/var/lib/postgresql/data/pgdata");
    assert!(warnings(&pgdata).iter().any(|w| w.starts_with("PGDATA: is the volume itself")));
    let ours = [("PGDATA", "/var/lib/postgresql/data/pgherd/x")];
    assert!(errors(&ours)[0].contains("not pgherd's own"));
    let elsewhere = [("DATA_VOLUME", "/srv/v"), ("PGDATA", "/srv/v/main")];
    assert_eq!(accepted(&elsewhere).database.data_dir, "/srv/v/main");
}

#[test]
fn an_instance_is_configured_from_it() {
    let config = accepted(&[
        ("HOST_POSTGRES_PORT", "35432"),
        ("LISTEN_ADDRESS", "::"),
        ("POSTGRES_USER", "admin"),
        ("POSTGRES_PARAMETERS", "work_mem=8MB\n"),
        ("DATA_VOLUME", "/v"),
    ]);
    let identity = Identity { name: NodeName::from("n1"), run_as: RunAs::Same, bin_dir: "/b".into() };
    let postgres = config.postgres(identity);
    assert_eq!((postgres.port, postgres.advertised_port, postgres.listen.as_str()), (5432, 35432, "::"));
    assert_eq!((postgres.superuser.as_str(), postgres.replication_user.as_str()), ("admin", "replicator"));
    assert_eq!((postgres.data_dir.as_str(), postgres.state_dir.as_str()), ("/v/pgdata", "/v/pgherd"));
    assert_eq!(postgres.parameters["work_mem"], "8MB");
    assert_eq!(config.local_address(), "::1".parse::<IpAddr>().unwrap());
}

#[test]
fn programs_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().canonicalize().unwrap();
    std::fs::File::create(dir.join("etcd")).unwrap();
    let path = format!("relative:{}", dir.display());
    let config = accepted(&[("PATH", &path), ("PG_BINDIR", "/opt/pg/bin")]);
    assert_eq!(config.program("etcd").unwrap().as_std_path(), dir.join("etcd"));
    assert_eq!(config.program("no-such-program"), None);
    assert_eq!(config.bin_dir().unwrap(), "/opt/pg/bin");
}

#[test]
fn a_public_address_without_tls_is_told() {
    let open = accepted(&[("HOST_POSTGRES_PORT", "35432")]);
    let Some(Warning(text)) = open.exposure("203.0.113.7".parse().unwrap()) else { panic!("nothing told") };
    assert!(text.contains("203.0.113.7") && text.contains("35432"), "{text}");
    assert_eq!(open.exposure("10.0.0.7".parse().unwrap()), None);
    let closed = accepted(&[("SSL_ENABLED", "true"), ("SSL_PASSPHRASE", "n7q2m5x9c4v8b1k6j3h0")]);
    assert_eq!(closed.exposure("203.0.113.7".parse().unwrap()), None);
}

#[test]
fn tags_have_variables_and_others_are_shown_as_they_are() {
    let config = accepted(&[
        ("TAG_FAILOVER_PRIORITY", "2"),
        ("TAG_NOSYNC", "true"),
        ("TAG_CLONEFROM", "off"),
        ("TAG_REPLICATEFROM", "n2"),
        ("TAGS", "zone=a, rack=7\nspot=false"),
    ]);
    let tags = config.ha.tags;
    assert_eq!((tags.failover_priority, tags.sync_priority), (2, 0));
    assert_eq!(
        serde_json::Value::Object(tags.to_json()).to_string(),
        r#"{"failover_priority":2,"nosync":true,"replicatefrom":"n2","zone":"a","rack":7,"spot":false}"#
    );
}
