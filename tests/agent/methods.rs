//! Replicas that are copied by a command of the administrator's, and by pg_basebackup with the administrator's options.

use std::os::unix::fs::PermissionsExt as _;

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
