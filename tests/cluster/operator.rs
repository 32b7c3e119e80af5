//! What an operator asks for over REST, and what becomes of it under a writer.

use std::time::Duration;

use pgherd::clock;
use serde_json::{Value, json};

use crate::support::{Cluster, FORMED, Setup, eventually};

/// Told from a wait for the lease; how fast it really is, `make bench` measures.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn sends(
    cluster: &Cluster,
    node: u8,
    method: reqwest::Method,
    path: &str,
    body: &Value,
) -> (u16, String) {
    let url = format!("http://{}:8008{path}", cluster.address(node));
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let answer = client.request(method, url).body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn name_of(cluster: &Cluster, node: u8) -> String {
    let page = sends(cluster, node, reqwest::Method::GET, "/patroni", &json!({})).await.1;
    let page: Value = serde_json::from_str(&page).unwrap();
    page["patroni"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_switchover_moves_the_lead_and_loses_nothing_and_the_old_leader_follows() {
    let cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let writer = cluster.writer();
    let target = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let (from, to) = (name_of(&cluster, leader).await, name_of(&cluster, target).await);

    let written = eventually(FORMED, async || {
        let count = cluster.sql(leader, "SELECT count(*) FROM writes").await.ok()?;
        count.parse::<u32>().ok().filter(|count| *count >= 50)
    });
    assert!(written.await.is_some(), "the writer does not get on");

    let asked_at = clock::now();
    let body = json!({ "leader": from, "candidate": to });
    let answer = sends(&cluster, leader, reqwest::Method::POST, "/switchover", &body).await;
    assert_eq!(answer, (200, format!("Successfully switched over to \"{to}\"")));
    assert_eq!(cluster.writable(Some(leader), AT_ONCE).await, target);
    assert_eq!(cluster.all_stream(FORMED).await, target);
    let report = writer.finish(cluster.target(target)).await;
    assert!(report.lost.is_empty(), "acknowledged and gone: {:?}", report.lost);
    assert!(report.outage_at(asked_at) <= AT_ONCE, "outage {:?}", report.outage_at(asked_at));

    let again = sends(&cluster, target, reqwest::Method::DELETE, "/switchover", &json!({})).await;
    assert_eq!(again, (404, "no switchover is scheduled".to_owned()));

    what_another_cluster_left_is_removed(&cluster, leader).await;
    let mut cluster = cluster;
    the_doctor_is_content(&cluster, leader).await;
    a_report_keeps_secrets(&cluster, leader);
    programs_are_told_in_json(&cluster, leader);
    the_doctor_notices_a_death(&mut cluster, leader).await;
}

/// Only with every question answered, and never what lives.
async fn what_another_cluster_left_is_removed(cluster: &Cluster, node: u8) {
    for key in ["config", "initialize", "pgherd/names/x"] {
        cluster.store_put(&format!("/service/other/{key}"), "{}").await;
    }
    cluster.store_put("/service/other/leader", "x").await;
    for unsure in ["", "other\nyes\n", "other\nYes I am aware\ny\n"] {
        let kept = cluster.exec_typing(node, &["remove", "other"], unsure);
        assert!(!kept.status.success() && cluster.store_count("/service/other/").await == 4, "{kept:?}");
    }
    let gone = cluster.exec_typing(node, &["remove", "other", "--json"], "other\nYes I am aware\nx\n");
    let told: Value = serde_json::from_slice(&gone.stdout).unwrap();
    assert_eq!(told, json!({ "removed": "other", "keys": 4 }));
    let again = cluster.exec_typing(node, &["remove", "other"], "other\nYes I am aware\n");
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing of a cluster other"), "{again:?}");
    let own = cluster.exec_typing(node, &["remove"], "test\nYes I am aware\n");
    assert!(String::from_utf8_lossy(&own.stderr).contains("n1, n2, n3: alive"), "{own:?}");
    assert!(cluster.store_count("/service/test/").await > 5);
}

/// A healthy cluster has nothing wrong, and what is odd is the machine's, not the cluster's.
async fn the_doctor_is_content(cluster: &Cluster, node: u8) {
    cluster.can_fail_over(FORMED).await;
    let seen = cluster.exec(node, &["doctor", "--json"]);
    let findings: Value = serde_json::from_slice(&seen.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    for area in
        ["node", "leader", "failover", "store", "discovery", "member", "network", "clock", "slots", "memory"]
    {
        let of_area: Vec<_> = findings.iter().filter(|finding| finding["area"] == area).collect();
        assert!(!of_area.is_empty(), "nothing about {area}: {findings:#?}");
        assert!(of_area.iter().all(|finding| finding["grade"] == "good"), "{findings:#?}");
    }
    assert_eq!(seen.status.code(), Some(0));
}

fn programs_are_told_in_json(cluster: &Cluster, node: u8) {
    let told = |args: &[&str]| -> (Option<i32>, Value) {
        let output = cluster.exec(node, args);
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    };
    let (code, checked) = told(&["config", "check", "--json"]);
    assert_eq!((code, &checked["complete"], &checked["errors"]), (Some(0), &json!(true), &json!([])));
    let (_, pems) = told(&["client-cert", "--cn", "tool", "--json"]);
    for name in ["ca.crt", "client.crt", "client.key"] {
        assert!(pems[name].as_str().unwrap().starts_with("-----BEGIN "), "{name}");
    }
}

fn a_report_keeps_secrets(cluster: &Cluster, node: u8) {
    let seen = cluster.exec(node, &["report"]);
    let report: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert!(!String::from_utf8_lossy(&seen.stdout).contains("\"super\""), "the superuser's password");
    assert_eq!(report["environment"]["APP_NAME"], "test");
    assert_eq!(report["environment"]["POSTGRES_SUPERUSER_PASSWORD"], "(hidden)");
    assert!(report["pages"]["/cluster"]["members"].is_array() && report["doctor"].is_array(), "{report:#}");
    assert!(report["metrics"].as_array().is_some_and(|lines| lines.len() > 20));
}

async fn the_doctor_notices_a_death(cluster: &mut Cluster, node: u8) {
    cluster.node(node).kill_tree();
    cluster.node(node).reap();
    let own = cluster.exec(node, &["doctor"]);
    assert_eq!(own.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&own.stdout).contains("WRONG node: could not read"), "{own:?}");
    let other = cluster.numbers().into_iter().find(|other| *other != node).unwrap();
    let seen = cluster.exec(other, &["doctor"]);
    assert_eq!(seen.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&seen.stdout).contains("WRONG network"), "{seen:?}");
}

#[tokio::test]
async fn a_restart_keeps_the_lead_and_a_reinitialized_replica_comes_back() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let old = cluster.node(leader).postmaster().unwrap();
    let answer = sends(&cluster, leader, reqwest::Method::POST, "/restart", &json!({})).await;
    assert_eq!(answer, (200, "restarted successfully".to_owned()));
    assert_ne!(cluster.node(leader).postmaster().unwrap(), old);
    assert!(cluster.metric(leader, "unit=\"postgres\"").await.is_some_and(|n| n >= 1.0));
    assert_eq!(cluster.metric(leader, "unit=\"etcd\"").await, Some(0.0));
    assert_eq!(cluster.all_stream(FORMED).await, leader, "a planned restart is no failure");

    let pending = json!({ "restart_pending": true });
    let answer = sends(&cluster, leader, reqwest::Method::POST, "/restart", &pending).await;
    assert_eq!(answer, (503, "restart conditions are not satisfied".to_owned()));
    let replica = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let before = cluster.node(replica).data_dir_identity();
    let refused = sends(&cluster, leader, reqwest::Method::POST, "/reinitialize", &json!({})).await;
    assert_eq!(refused, (503, "I am the leader, can not reinitialize".to_owned()));
    let started = sends(&cluster, replica, reqwest::Method::POST, "/reinitialize", &json!({})).await;
    assert_eq!(started, (200, "reinitialize started".to_owned()));
    let copied = eventually(FORMED, async || {
        let path = cluster.node(replica).log().with_file_name("data").join("pgdata");
        let now = std::fs::metadata(path).ok()?;
        (std::os::unix::fs::MetadataExt::ino(&now) != before).then_some(())
    });
    assert!(copied.await.is_some(), "no other copy");
    assert_eq!(cluster.all_stream(FORMED).await, leader);
}

#[tokio::test]
async fn a_paused_cluster_elects_nobody_until_it_is_resumed() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let wrong = json!({"ttl": 5});
    let (code, why) = sends(&cluster, leader, reqwest::Method::PATCH, "/config", &wrong).await;
    assert_eq!(code, 422, "{why}");
    assert_eq!(
        sends(&cluster, leader, reqwest::Method::PATCH, "/config", &json!({"pause": true})).await.0,
        200
    );
    let noticed = eventually(FORMED, async || {
        let page = sends(&cluster, leader, reqwest::Method::GET, "/cluster", &json!({})).await.1;
        let page: Value = serde_json::from_str(&page).ok()?;
        (page["pause"] == true).then_some(())
    });
    assert!(noticed.await.is_some());
    cluster.node(leader).kill_tree();
    cluster.node(leader).reap();
    let elected = eventually(Duration::from_secs(15), async || {
        for node in cluster.numbers() {
            if node != leader && cluster.is_writable(node).await {
                return Some(node);
            }
        }
        None
    });
    assert_eq!(elected.await, None, "nobody is elected in maintenance mode");
    let other = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    assert_eq!(
        sends(&cluster, other, reqwest::Method::PATCH, "/config", &json!({"pause": null})).await.0,
        200
    );
    cluster.writable(Some(leader), FORMED).await;
    cluster.start_node(leader);
    cluster.all_stream(FORMED).await;
}
