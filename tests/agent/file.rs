//! `pgherd agent --validate-config`.

use std::process::{Command, Output};

use crate::patroni::Patroni;

fn validate(text: &str, vars: &[(&str, &str)]) -> Output {
    let file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
    command.args(["agent", "--validate-config"]).arg(file.path()).envs(vars.iter().copied());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Nearly everything that Patroni's documentation shows, for etcd3.
const FULL: &str = r#"
scope: batman
namespace: /service/
name: postgresql0
log:
  {type: plain, level: INFO, dir: /var/log/patroni, file_num: 3, file_size: 1000000, mode: 0644, dateformat: "%d.%m. %H:%M",
   format: "%(asctime)s %(levelname)-8s [%(pathname)s:%(lineno)d]: %(message)s", loggers: {patroni.ha: DEBUG}}
restapi:
  listen: 127.0.0.1:8008
  connect_address: 127.0.0.1:8008
  authentication: {username: admin, password: s3cret-of-rest}
  allowlist: [127.0.0.1, 10.0.0.0/8, "::1"]
  allowlist_include_members: true
ctl: {insecure: false, cacert: /etc/ssl/ca.crt, certfile: /etc/ssl/c.crt, keyfile: /etc/ssl/c.key}
etcd3:
  hosts: 10.0.0.1:2379,10.0.0.2:2379,etcd.example:2379
  protocol: https
  cacert: /etc/ssl/ca.crt
  cert: /etc/ssl/c.crt
  key: /etc/ssl/c.key
  username: patroni
  password: s3cret-of-etcd
bootstrap:
  dcs:
    ttl: 30
    loop_wait: 10
    retry_timeout: 10
    maximum_lag_on_failover: 1048576
    synchronous_mode: quorum
    slots: {permanent: {type: physical}}
    postgresql:
      use_pg_rewind: true
      pg_hba: [host all all 0.0.0.0/0 md5]
      parameters: {wal_level: logical, archive_command: "cp %p /archive/%f"}
    something_new: {kept: true}
  initdb: [{encoding: UTF8}, data-checksums, {locale: C.UTF-8}]
  method: pgbackrest
  pgbackrest: {command: "/usr/bin/restore --pitr", keep_existing_recovery_conf: true, no_params: true, stanza: main}
  post_init: /usr/local/bin/post-init.sh --with argument
postgresql:
  listen: "*:5432"
  connect_address: db-0.example:5432
  data_dir: /var/lib/postgresql/15/main
  config_dir: /etc/postgresql/15/main
  bin_dir: /usr/lib/postgresql/15/bin
  pgpass: /tmp/pgpass0
  authentication:
    replication: {username: replicator, password: s3cret-of-replication, sslmode: verify-ca, sslrootcert: /etc/ssl/ca.crt}
    superuser: {username: postgres, password: s3cret-of-superuser}
    rewind: {username: rewind_user, password: s3cret-of-rewind}
  parameters: {unix_socket_directories: "/var/run/postgresql,.", log_min_duration_statement: 500, ssl: on}
  pg_hba: [local all all peer]
  pg_ident: [m u postgres]
  callbacks: {on_role_change: /usr/local/bin/vip.sh eth0}
  create_replica_methods: [basebackup]
  use_unix_socket: true
  pre_promote: /bin/fence --now
  before_stop: /bin/drain --all
  proxy_address: db-0.example:6432
  recovery_conf: {restore_command: "cp /archive/%f %p"}
  remove_data_directory_on_rewind_failure: true
watchdog: {mode: "off", device: /dev/watchdog1, driver: default}
tags: {failover_priority: 1, noloadbalance: false, clonefrom: false, nostream: false, dc: north}
"#;

#[test]
fn a_full_file_is_accepted_without_a_word() {
    let output = validate(FULL, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "");
}

#[test]
fn every_mistake_is_named_at_once_and_no_secret_is() {
    let bad = FULL
        .replace("listen: 127.0.0.1:8008", "listen: 127.0.0.1")
        .replace("connect_address: db-0.example:5432", "connect_address: 0.0.0.0:5432")
        .replace("data_dir: /var", "data_dir: var")
        .replace(
            "replicator, password: s3cret-of-replication",
            "replicator, password: [s3cret-of-replication]",
        )
        .replace("mode: \"off\"", "mode: perhaps, safety_margin: -2")
        .replace("encoding: UTF8", "pgdata: /x")
        .replace("%(levelname)-8s", "%(level)s")
        .replace("patroni.ha: DEBUG", "patroni.ha: LOUD");
    let output = validate(&bad, &[]);
    assert_eq!(output.status.code(), Some(64));
    let said = said(&output);
    for path in [
        "restapi.listen: \"127.0.0.1\"; expected an address and a port",
        "postgresql.connect_address: \"0.0.0.0:5432\"; expected one address that others reach",
        "postgresql.data_dir: ",
        "postgresql.authentication.replication.password: expected text",
        "watchdog.mode: \"perhaps\"; expected off, automatic or required",
        "watchdog.safety_margin: ",
        "bootstrap.initdb: pgdata is not for this list",
        "log.format: ",
        "not level, but fields such as %(asctime)s",
        "log.loggers.patroni.ha: expected DEBUG",
    ] {
        assert!(said.contains(path), "{path} in {said}");
    }
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn what_is_missing_is_named() {
    let output = validate("scope: x\n", &[]);
    assert_eq!(output.status.code(), Some(64));
    let said = said(&output);
    for path in [
        "name: is required",
        "restapi.listen: is required",
        "etcd3: expected",
        "postgresql.data_dir: is required",
        "postgresql.authentication.superuser.username: is required",
    ] {
        assert!(said.contains(path), "{path} in {said}");
    }
}

#[test]
fn keys_that_are_not_used_are_named_and_those_that_must_not_be_ignored_are_errors() {
    let more = FULL.replace("watchdog:", "retry_timeout: 5\nthread_pool_size: 7\nwatchdog:").replace(
        "  use_unix_socket: true",
        "  use_unix_socket_repl: true\n  wal_e: {command: x}\n  use_pg_rewnd: true",
    );
    let output = validate(&more, &[("PATRONI_RESTAPI_LISTEN", "127.0.0.1:8009"), ("PATRONI_RESTAPY_X", "1")]);
    assert!(output.status.success(), "{}", said(&output));
    let warned = said(&output);
    for path in [
        "retry_timeout: neither Patroni nor pgherd knows this key",
        "thread_pool_size: not used yet",
        "postgresql.use_unix_socket_repl: not used yet",
        "postgresql.wal_e: not used yet; create_replica_methods does not name it, and only",
        "postgresql.use_pg_rewnd: neither Patroni nor pgherd knows this key; did you mean postgresql.use_pg_rewind?",
        "PATRONI_RESTAPY_X: not a variable",
    ] {
        assert!(warned.contains(path), "{path} in {warned}");
    }
    assert_eq!(warned.lines().count(), 6, "one line each: {warned}");
    for (key, why) in [
        ("citus: {group: 0, database: x}", "citus: Citus is not supported"),
        ("consul: {host: x}", "consul: agent mode speaks to etcd"),
    ] {
        let output = validate(&format!("{FULL}\n{key}\n"), &[]);
        assert_eq!(output.status.code(), Some(64));
        assert!(said(&output).contains(why), "{}", said(&output));
    }
    let json =
        FULL.replace("type: plain", "type: json").replace("patroni.ha: DEBUG", "patroni.postmaster: WARNING");
    let warned = said(&validate(&json, &[]));
    for path in
        ["log.format: not used", "log.dateformat: not used", "log.loggers.patroni.postmaster: not used"]
    {
        assert!(warned.contains(path), "{path} in {warned}");
    }
    let missing =
        FULL.replace("create_replica_methods: [basebackup]", "create_replica_methods: [wal_e, basebackup]");
    assert!(said(&validate(&missing, &[])).contains("postgresql.wal_e.command: is required"));
    let method = FULL.replace("method: pgbackrest", "method: wal_g");
    assert!(said(&validate(&method, &[])).contains("bootstrap.wal_g.command: is required"));
    // A section that no list names may hold anything.
    let broken = |list: &str| {
        FULL.replace(
            "  create_replica_methods: [basebackup]",
            &format!("  create_replica_methods: [{list}]\n  wal_e: {{command: \"x 'y\"}}"),
        )
    };
    let output = validate(&broken("basebackup"), &[]);
    assert!(
        output.status.success() && said(&output).contains("postgresql.wal_e.command: "),
        "{}",
        said(&output)
    );
    assert_eq!(validate(&broken("wal_e"), &[]).status.code(), Some(64));
    let standby = FULL.replace("    ttl: 30", "    ttl: 30\n    standby_cluster: {host: x}");
    assert!(validate(&standby, &[]).status.success());
    let odd = standby.replace("{host: x}", "{host: x, port: many}");
    assert!(said(&validate(&odd, &[])).contains("standby_cluster.port is \"many\""));
}

#[test]
fn variables_win_over_the_file_and_a_whole_configuration_over_both() {
    let output = validate("", &[("PATRONI_CONFIGURATION", FULL), ("PATRONI_NAME", "")]);
    assert!(output.status.success(), "{}", said(&output));
    let output = validate(FULL, &[("PATRONI_RESTAPI_LISTEN", "nonsense"), ("PATRONI_NAME", "other")]);
    assert!(said(&output).contains("restapi.listen: \"nonsense\""), "{}", said(&output));
    let broken = validate("a: [1, s3cret\nb: }", &[]);
    assert!(said(&broken).contains("not YAML that can be read, line") && !said(&broken).contains("s3cret"));
}

/// The stock program agrees about the file that the other cases use.
#[tokio::test]
async fn both_programs_take_the_same_file() {
    let Some(patroni) = Patroni::installed() else { return };
    let stand = crate::stand::Stand::new("true", Some(patroni.clone())).await;
    let file = stand.file(1);
    std::fs::create_dir(stand.dir.join("n1")).unwrap();
    let output = patroni.command(&file).arg("--validate-config").output().unwrap();
    let theirs = format!("{}{}", said(&output), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{theirs}");
    let ours = validate(&std::fs::read_to_string(file).unwrap(), &[]);
    assert!(ours.status.success(), "{}", said(&ours));
    stand.end().await;
}
