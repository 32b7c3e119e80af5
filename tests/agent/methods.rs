//! Replicas that are copied by a command of the administrator's, and by pg_basebackup with the administrator's options.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::stand::{By, SOON, Stand};
use crate::wait::eventually;

/// Notes what it is told, and does what it is there for.
const SCRIPT: &str = r#"#!/bin/sh
for word in "$@"; do
    echo "$word" >> "$0.told"
    case "$word" in
        --datadir=*) to="${word#--datadir=}" ;;
        --connstring=*) from="${word#--connstring=}" ;;
    esac
done
ls -A "$to" > "$0.found"
exec pg_basebackup -D "$to" -d "$from" --checkpoint=fast --no-password
"#;

#[tokio::test]
async fn a_replica_is_copied_by_the_first_command_that_works() {
    let mut stand = Stand::new("false", None).await;
    let script = stand.dir.join("copy.sh");
    std::fs::write(&script, SCRIPT).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    // PostgreSQL's account writes beside it.
    std::fs::set_permissions(&stand.dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    let methods = format!(
        "\npostgresql:\n  create_replica_methods: [broken, own, basebackup]\n  broken:\n    command: /bin/false\n  \
         own:\n    command: {} first\n    depth: 7\n  basebackup:\n    - max-rate: 100M\n",
        script.display()
    );
    stand.amend(2, ("\npostgresql:\n", &methods));
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.start(2, By::Pgherd);
    stand.streams(1, 2).await;

    let told = std::fs::read_to_string(script.with_extension("sh.told")).unwrap();
    let told: Vec<&str> = told.lines().collect();
    assert_eq!(told[..3], ["first", "--scope=demo", "--role=replica"], "{told:?}");
    assert!(told[3].starts_with("--datadir=/") && told[4].contains(&stand.ip(1)), "{told:?}");
    assert_eq!(told[5..], ["--depth=7"], "{told:?}");
    assert_eq!(std::fs::read_to_string(script.with_extension("sh.found")).unwrap(), "", "an empty directory");
    assert!(stand.whole_log(2).contains("trying the next"), "{}", stand.log(2));

    // Another cluster that follows this one is copied by what its own section names.
    std::fs::remove_file(script.with_extension("sh.told")).unwrap();
    let section =
        format!("\n  dcs:\n    standby_cluster: {{host: {}, create_replica_methods: [own]}}\n", stand.ip(1));
    for change in [
        ("scope: demo", "scope: other"),
        ("\npostgresql:\n", methods.as_str()),
        ("[broken, own, basebackup]", "[broken]"),
        ("\n  dcs:\n", section.as_str()),
    ] {
        stand.amend(3, change);
    }
    stand.start(3, By::Pgherd);
    let follows = eventually(SOON, async || {
        let (code, page) = stand.page(3, "standby-leader").await?;
        (code == 200 && page["replication_state"] == "streaming").then_some(())
    });
    assert!(follows.await.is_some(), "{}", stand.log(3));
    let told = std::fs::read_to_string(script.with_extension("sh.told")).unwrap();
    assert!(told.contains("--scope=other") && told.contains(&stand.ip(1)), "{told}");
    stand.end().await;
}

#[tokio::test]
async fn a_command_that_needs_no_leader_makes_a_replica_while_nobody_leads() {
    let mut stand = Stand::new("false", None).await;
    let (script, backup) = (stand.dir.join("restore.sh"), stand.dir.join("n1/data"));
    let text =
        format!("#!/bin/sh\necho \"$@\" > $0.told\nexec cp -rT {} \"${{3#--datadir=}}\"\n", backup.display());
    std::fs::write(&script, text).unwrap();
    for path in [&script, &stand.dir] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.sql(1, "CREATE TABLE t AS SELECT 7 AS x; SELECT 1").await;
    stand.stop(1).await;
    let method = format!(
        "\npostgresql:\n  create_replica_methods: [basebackup, own]\n  own: {{command: {}, no_leader: 1}}\n",
        script.display()
    );
    stand.amend(2, ("\npostgresql:\n", &method));
    stand.start(2, By::Pgherd);
    stand.leads(2).await;
    assert_eq!(stand.sql(2, "SELECT x FROM t").await, "7");
    let told = std::fs::read_to_string(script.with_extension("sh.told")).unwrap();
    let expected =
        format!("--scope=demo --role=replica --datadir={}/n2/data --connstring=\n", stand.dir.display());
    assert_eq!(told, expected);
    stand.end().await;
}

/// A base backup, and a row that only the archive has.
const RESTORE: &str = r#"#!/bin/sh
set -e
for word in "$@"; do
    echo "$word" >> "$0.told"
    case "$word" in
        --datadir=*) to="${word#--datadir=}" ;;
        --from=*) from="${word#--from=}" ;;
    esac
done
export PGHOST="$from"
PGPASSWORD="re:p's" pg_basebackup -U replicator -D "$to" --checkpoint=fast
last=$(PGPASSWORD="super secret" psql -U postgres -Atd postgres -c "INSERT INTO t VALUES (2)" \
    -c BEGIN -c "INSERT INTO t VALUES (3)" -c "PREPARE TRANSACTION 'third'" -c "SELECT pg_walfile_name(pg_switch_wal())" | tail -1)
for i in $(seq 100); do [ -f "$(dirname "$0")/archive/$last" ] && exit; sleep 0.1; done
exit 1
"#;

/// The marker of an attempt that was cut short, and in its directory what a person has brought since.
fn cut_short(home: &std::path::Path) {
    let (data, state) = (home.join("data"), home.join("data.pgherd"));
    std::fs::create_dir_all(&data).unwrap();
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(data.join("by-hand"), "").unwrap();
    let meta = data.metadata().unwrap();
    let born = meta.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let said = format!("{} {} {}", meta.dev(), meta.ino(), born.unwrap_or_default().as_nanos());
    std::fs::write(state.join("bootstrap-in-progress"), said).unwrap();
}

/// What the third member has, and has not lost.
async fn recovered(stand: &Stand) {
    let aside: Vec<_> = std::fs::read_dir(stand.dir.join("n3/data.pgherd/quarantine")).unwrap().collect();
    assert!(aside.len() == 1 && aside[0].as_ref().unwrap().path().join("by-hand").exists(), "{aside:?}");
    assert_eq!(stand.sql(3, "SELECT string_agg(x::text, ',' ORDER BY x) FROM t").await, "1,2");
    assert_eq!(stand.sql(3, "SELECT timeline_id::text FROM pg_control_checkpoint()").await, "2");
    assert_eq!(stand.sql(3, "SELECT gid FROM pg_prepared_xacts").await, "third");
    let history = "SELECT count(*) FROM pg_ls_dir('pg_wal/archive_status') f WHERE f ~ '^00000002.history'";
    assert_eq!(stand.sql(3, history).await, "1", "it is on the list of what is to be archived");
}

#[tokio::test]
async fn a_new_cluster_is_made_by_a_command_and_recovered_from_an_archive() {
    let mut stand = Stand::new("false", None).await;
    let (script, archive) = (stand.dir.join("restore.sh"), stand.dir.join("archive"));
    std::fs::write(&script, RESTORE).unwrap();
    std::fs::create_dir(&archive).unwrap();
    for (path, mode) in [(&script, 0o755), (&archive, 0o777), (&stand.dir, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let archiving = format!(
        "shared_buffers: 16MB\n    archive_mode: \"on\"\n    archive_command: cp %p {}/%f",
        archive.display()
    );
    stand.amend(1, ("shared_buffers: 16MB", &archiving));
    stand.amend(1, ("max_connections: 50", "max_connections: 50\n        max_prepared_transactions: 5"));
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.sql(1, "CREATE TABLE t AS SELECT 1 AS x; SELECT 1").await;

    let stopping = stand.dir.join("stopping");
    let method = format!(
        "\nlog: {{dir: {}}}\nbootstrap:\n  method: own\n  own:\n    command: {} first\n    from: {}\n    \
         recovery_conf:\n      restore_command: cp {}/%f %p\n",
        stand.dir.display(),
        script.display(),
        stand.ip(1),
        archive.display()
    );
    let before_stop = format!(
        "\npostgresql:\n  before_stop: sh -c 'ls {}/n3/data > {}'\n  proxy_address: 192.0.2.1:6432\n",
        stand.dir.display(),
        stopping.display()
    );
    for change in [
        ("scope: demo", "scope: other"),
        ("\nbootstrap:\n", method.as_str()),
        ("\npostgresql:\n", before_stop.as_str()),
    ] {
        stand.amend(3, change);
    }
    cut_short(&stand.dir.join("n3"));
    stand.start(3, By::Pgherd);
    stand.leads(3).await;
    recovered(&stand).await;
    let told = std::fs::read_to_string(script.with_extension("sh.told")).unwrap();
    let told: Vec<&str> = told.lines().collect();
    assert_eq!(told[..2], ["first", "--scope=other"], "{told:?}");
    assert!(told[2].starts_with("--datadir=/") && told[3].starts_with("--from=127.") && told.len() == 4);
    let published = eventually(SOON, async || {
        let keys = stand.keys("/service/other/members/").await?;
        let member = keys.get("/service/other/members/n3")?;
        member.contains(r#""proxy_url":"postgres://192.0.2.1:6432/postgres""#).then_some(())
    });
    assert!(published.await.is_some());

    stand.stop(3).await;
    let found = std::fs::read_to_string(&stopping).unwrap();
    assert!(found.lines().any(|name| name == "postmaster.pid"), "it still ran: {found}");
    let log = std::fs::read_to_string(stand.dir.join("patroni.log")).unwrap();
    let line = log.lines().find(|line| line.contains("the command has made the new cluster")).unwrap();
    assert!(line.get(23..30) == Some(" INFO: "), "{line}");
    assert!(!stand.whole_log(3).contains("INFO: "), "not on standard output too: {}", stand.log(3));
    stand.end().await;
}
