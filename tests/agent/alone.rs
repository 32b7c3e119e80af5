//! One agent without anybody else.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::stand::{By, SOON, Stand};
use crate::wait::eventually;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn one_agent_founds_a_cluster_with_patronis_keys() {
    let mut stand = Stand::new("true", None).await;
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    let written = eventually(SOON, async || {
        let keys = stand.keys("/service/demo/").await?;
        let all = ["config", "initialize", "leader", "members/n1", "status", "sync"];
        let complete = all.iter().all(|key| keys.contains_key(&format!("/service/demo/{key}")));
        let member = json(keys.get("/service/demo/members/n1")?);
        let running = member["state"] == "running" && member["xlog_location"].is_u64();
        (complete && running).then_some(keys)
    });
    let keys = written.await.unwrap_or_else(|| panic!("keys are missing: {}", stand.log(1)));
    let value = |key: &str| keys[&format!("/service/demo/{key}")].clone();
    let ip = stand.ip(1);

    assert_eq!(value("leader"), "n1");
    assert_eq!(value("initialize"), stand.sql(1, "SELECT system_identifier FROM pg_control_system()").await);
    let member = json(&value("members/n1"));
    assert_eq!(member["conn_url"], format!("postgres://{ip}:5432/postgres"));
    assert_eq!(member["api_url"], format!("http://{ip}:8008/patroni"));
    assert_eq!((&member["state"], &member["role"]), (&"running".into(), &"primary".into()));
    assert!(member["version"].as_str().unwrap().starts_with("4.") && member["xlog_location"].is_u64());
    let config = json(&value("config"));
    assert_eq!(config["postgresql"]["parameters"]["max_connections"], 50, "bootstrap.dcs as it stands");
    assert_eq!(config.get("synchronous_node_count"), None, "and nothing else");
    let sync = json(&value("sync"));
    assert_eq!((&sync["leader"], &sync["quorum"]), (&"n1".into(), &0.into()));
    assert!(json(&value("status"))["optime"].is_u64());

    assert_eq!(stand.sql(1, "SHOW max_connections").await, "50");
    let kept = std::fs::read_to_string(stand.dir.join("n1/data/patroni.dynamic.json")).unwrap();
    assert_eq!(json(&kept), config, "for whoever takes over when the store has lost it");
    assert_eq!(stand.sql(1, "SHOW cluster_name").await, "demo");
    let roles = "SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_roles WHERE rolcanlogin";
    assert_eq!(stand.sql(1, roles).await, "postgres,replicator,rewinder");
    stand.end().await;
}

#[tokio::test]
async fn a_hangup_reads_the_file_again() {
    let mut stand = Stand::new("false", None).await;
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    let file = stand.file(1);
    let before = std::fs::read_to_string(&file).unwrap();
    let after = before.replace("shared_buffers: 16MB", "shared_buffers: 16MB\n    work_mem: 7MB");
    std::fs::write(&file, after.replace("sync_priority: 2", "sync_priority: 3")).unwrap();
    stand.hang_up(1);
    let changed = eventually(SOON, async || (stand.sql(1, "SHOW work_mem").await == "7MB").then_some(()));
    assert!(changed.await.is_some(), "{}", stand.log(1));
    let told = eventually(SOON, async || {
        let keys = stand.keys("/service/demo/members/n1").await?;
        (json(keys.get("/service/demo/members/n1")?)["tags"]["sync_priority"] == 3).then_some(())
    });
    assert!(told.await.is_some(), "{}", stand.log(1));
    let conflict = "WARNING: Conflicting configuration between nosync: True and sync_priority: 4";
    std::fs::write(&file, before.replace("sync_priority: 2", "sync_priority: 4\n  nosync: true")).unwrap();
    stand.hang_up(1);
    let said = eventually(SOON, async || stand.log(1).contains(conflict).then_some(()));
    assert!(said.await.is_some(), "{}", stand.log(1));

    std::fs::write(&file, before.replace("mode: \"off\"", "mode: required")).unwrap();
    stand.hang_up(1);
    let said = eventually(SOON, async || stand.log(1).contains("next start").then_some(()));
    assert!(said.await.is_some(), "{}", stand.log(1));
    assert!(stand.is_primary(1).await, "a watchdog that counts from the next start on bars nobody");

    std::fs::write(&file, "nonsense").unwrap();
    stand.hang_up(1);
    let said = eventually(SOON, async || stand.log(1).contains("everything stays as it is").then_some(()));
    assert!(said.await.is_some(), "{}", stand.log(1));
    assert_eq!(stand.sql(1, "SHOW work_mem").await, "4MB");
    stand.end().await;
}

#[tokio::test]
async fn postgresql_outlives_its_agent_and_is_taken_over() {
    let mut stand = Stand::new("false", None).await;
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    let postmaster = stand.postmaster(1);
    stand.sql(1, "CREATE TABLE t AS SELECT 1; SELECT 1").await;

    stand.kill(1);
    assert_eq!(stand.sql(1, "SELECT count(*) FROM t").await, "1", "it serves without an agent");
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    assert_eq!(stand.postmaster(1), postmaster, "it was not restarted");

    // Who would be a second one of this name does not start.
    let log = std::fs::File::create(stand.dir.join("second.log")).unwrap();
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_pgherd"))
        .arg("agent")
        .arg(stand.file(1))
        .stdout(log)
        .status();
    assert!(!second.unwrap().success());

    // In maintenance mode the process ends and nothing else does.
    let url = format!("http://{}:8008/config", stand.ip(1));
    let paused = stand.http.patch(url).body(r#"{"pause": true}"#).send().await.unwrap();
    assert_eq!(paused.status().as_u16(), 200);
    let noticed = eventually(SOON, async || {
        let (_, page) = stand.page(1, "patroni").await?;
        (page["pause"] == true).then_some(())
    });
    assert!(noticed.await.is_some(), "{}", stand.log(1));
    stand.stop(1).await;
    assert_eq!((stand.postmaster(1), stand.sql(1, "SELECT count(*) FROM t").await), (postmaster, "1".into()));
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    let url = format!("http://{}:8008/config", stand.ip(1));
    stand.http.patch(url).body(r#"{"pause": null}"#).send().await.unwrap();
    let noticed = eventually(SOON, async || {
        let (_, page) = stand.page(1, "patroni").await?;
        page.get("pause").is_none().then_some(())
    });
    assert!(noticed.await.is_some(), "{}", stand.log(1));
    stand.stop(1).await;
    let keys = stand.keys("/service/demo/leader").await.unwrap();
    assert_eq!(keys.len(), 0, "a clean stop gives the key back: {keys:?}");
    stand.end().await;
}

/// The server outlives the agent: one that ended before it would leave a primary whose lease nobody renews.
#[tokio::test]
async fn a_second_request_to_stop_leaves_no_server_behind() {
    let mut stand = Stand::new("false", None).await;
    let begun = stand.dir.join("begun");
    let drain = format!("\npostgresql:\n  before_stop: sh -c 'echo > {}; sleep 4'\n", begun.display());
    stand.amend(1, ("\npostgresql:\n", &drain));
    std::fs::set_permissions(&stand.dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    let postmaster = nix::unistd::Pid::from_raw(stand.postmaster(1));

    stand.terminate(1);
    assert!(eventually(SOON, async || begun.exists().then_some(())).await.is_some(), "{}", stand.log(1));
    // What comes within half a second is the same request: there is nothing to be seen that tells when that is over.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    stand.stop(1).await;
    let server = nix::sys::signal::kill(postmaster, None);
    assert_eq!(server, Err(nix::errno::Errno::ESRCH), "{}", stand.log(1));
    assert!(stand.whole_log(1).contains("asked to stop again"), "{}", stand.log(1));
    stand.end().await;
}
