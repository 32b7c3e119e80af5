//! A cluster comes to be.

use std::time::Duration;

use crate::support::{Cluster, FORMED, Setup, eventually};
use pgherd::clock;

#[tokio::test]
async fn three_nodes_form_one_cluster() {
    let cluster = Cluster::start(Setup::three()).await;
    let leader = cluster.all_stream(FORMED).await;
    eprintln!("formed after {:?}", clock::now().since(cluster.started));

    let mut system_ids = Vec::new();
    for node in cluster.numbers() {
        assert_eq!(cluster.is_writable(node).await, node == leader);
        system_ids
            .push(cluster.sql(node, "SELECT system_identifier FROM pg_control_system()").await.unwrap());
    }
    system_ids.dedup();
    assert_eq!(system_ids.len(), 1, "one cluster has one system identifier");

    cluster.sql(leader, "CREATE TABLE t AS SELECT 42 AS x; SELECT x FROM t").await.unwrap();
    for node in cluster.numbers() {
        let seen = eventually(Duration::from_secs(5), async || {
            cluster.sql(node, "SELECT x FROM t").await.ok().filter(|x| x == "42")
        });
        assert!(seen.await.is_some(), "node {node} does not show the primary's row");
    }
}

#[tokio::test]
async fn every_commit_waits_for_a_second_node() {
    let cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.all_stream(FORMED).await;
    let sync = eventually(Duration::from_secs(15), async || {
        let names = cluster.sql(leader, "SHOW synchronous_standby_names").await.ok()?;
        names.starts_with("ANY 1").then_some(names)
    });
    assert!(sync.await.is_some(), "no quorum of standbys is asked for");
    let shown = eventually(Duration::from_secs(15), async || {
        let members = cluster.members().await;
        (members.iter().filter(|member| member.role == "quorum_standby").count() == 2).then_some(())
    });
    assert!(shown.await.is_some(), "{:#?}", cluster.members().await);
}

#[tokio::test]
async fn passwords_may_hold_anything() {
    let awkward = r#"a$b'c"d\e%f@g:h i#j{{k}}é🐘"#;
    let setup = Setup::three()
        .env("POSTGRES_SUPERUSER_PASSWORD", awkward)
        .env("POSTGRES_REPLICATION_PASSWORD", &format!("{awkward}2"))
        .env("POSTGRES_USER", "Boss")
        .env("POSTGRES_DB", "my db");
    let cluster = Cluster::formed(setup).await;
    let leader = cluster.all_stream(FORMED).await;
    let who = cluster.sql(leader, "SELECT current_user || '@' || current_database()").await.unwrap();
    assert_eq!(who, "Boss@my db");
}

#[tokio::test]
async fn ssl_enabled_makes_tls_mandatory() {
    let passphrase = r#"corr$ect 'hor"se\ %@:é battery 7319"#;
    let setup = Setup::three().env("SSL_ENABLED", "true").env("SSL_PASSPHRASE", passphrase);
    let setup = setup.env("RESTAPI_USERNAME", "ops").env("RESTAPI_PASSWORD", "ops' own");
    let mut cluster = Cluster::formed(setup).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let cipher = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(cluster.sql(leader, cipher).await.unwrap(), "TLSv1.3");

    let mut plain = cluster.target(leader);
    plain.ca = None;
    assert!(crate::support::client::connect(&plain).await.is_err(), "a client without TLS is let in");

    // A verb shows that it is a member's, where strangers need a password.
    let drill = cluster.exec(leader, &["drill", "failover"]);
    assert!(drill.status.success(), "{drill:?}");
    let drilled = cluster.can_fail_over(FORMED).await;
    assert_ne!(drilled, leader);
    let leader = drilled;

    // The same failure as without TLS: what a new leader needs (certificates, CA) is there before it is needed.
    cluster.node(leader).kill_tree();
    cluster.node(leader).reap();
    cluster.writable(Some(leader), Duration::from_secs(15)).await;
}

/// A cascade: the member in the middle has the slot of whoever streams from it.
#[tokio::test]
async fn a_replica_streams_through_the_member_that_its_tag_names() {
    const MIDDLE: u8 = 3;
    let mut cluster = Cluster::formed(Setup::three().env("TAG_REPLICATEFROM", "n3")).await;
    let mut leader = cluster.all_stream(FORMED).await;
    if leader == MIDDLE {
        cluster.node(MIDDLE).terminate();
        assert_eq!(cluster.node(MIDDLE).exit_code(FORMED).await, Some(0));
        cluster.start_node(MIDDLE);
        leader = cluster.all_stream(FORMED).await;
    }
    let last = 6 - MIDDLE - leader;
    let fed = "SELECT string_agg(s.slot_name, ' ') FROM pg_stat_replication r
                 JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE r.state = 'streaming'";
    let expected = |node: u8, name: u8| {
        let cluster = &cluster;
        async move { cluster.sql(node, fed).await.ok().filter(|names| *names == format!("n{name}")) }
    };
    let chain = eventually(FORMED, async || {
        expected(leader, MIDDLE).await?;
        expected(MIDDLE, last).await
    });
    assert!(chain.await.is_some(), "n{leader} -> n{MIDDLE} -> n{last} is not how it streams");
    cluster.sql(leader, "CREATE TABLE passed AS SELECT 1 AS n; SELECT n FROM passed").await.unwrap();
    let passed = eventually(FORMED, async || cluster.sql(last, "SELECT count(*) FROM passed").await.ok());
    assert_eq!(passed.await.as_deref(), Some("1"));
}
