//! A volume from before pgherd: made by PostgreSQL alone, as the predecessor and the official image leave it.

use super::client;
use super::engine::{IMAGE, docker, try_docker};
use super::image::Lonely;
use super::{engine, eventually};

const VOLUME: &str = "pgherd-test-adopted";
const OPTIONS: [&str; 2] = ["-v", "pgherd-test-adopted:/var/lib/postgresql/data"];

/// Runs a shell on the volume, as root.
fn on_volume(script: &str) -> String {
    docker(&["run", "--rm", "-v", OPTIONS[1], "--entrypoint", "sh", IMAGE, "-ec", script])
}

/// A database at the root of a volume, with a role and a table of its own, and another superuser's password.
fn predecessor() {
    try_docker(&["volume", "rm", "-f", VOLUME]).ok();
    on_volume(
        "data=/var/lib/postgresql/data; chown postgres $data; chmod 700 $data; cd /
         setpriv --reuid=postgres --regid=postgres --clear-groups sh -ec '
           echo old > /tmp/pw
           initdb -D /var/lib/postgresql/data --username=postgres --pwfile=/tmp/pw -A scram-sha-256 --locale=en_US.UTF-8 >/dev/null
           pg_ctl -D /var/lib/postgresql/data -o \"-k /tmp -c listen_addresses=\" -w start >/dev/null
           export PGPASSWORD=old PGHOST=/tmp PGUSER=postgres
           psql -qc \"CREATE ROLE app LOGIN\" -c \"CREATE TABLE kept AS SELECT 42 AS n\"
           pg_ctl -D /var/lib/postgresql/data -m immediate -w stop >/dev/null'",
    );
}

async fn adopts() {
    let node = Lonely::run("pgherd-test-adoption", &OPTIONS);
    node.serves().await;
    let query = "SELECT n::text FROM kept WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = 'app')";
    let target = node.target();
    let kept = eventually(super::image::STARTED, async || client::ask(&target, query).await.ok());
    assert_eq!(kept.await.as_deref(), Some("42"), "{}", node.logs());
    let replicator = "SELECT rolreplication::text FROM pg_roles WHERE rolname = 'replicator'";
    let made = eventually(super::image::STARTED, async || client::ask(&target, replicator).await.ok());
    assert_eq!(made.await.as_deref(), Some("true"));
}

#[tokio::test]
async fn a_volume_of_the_predecessor_is_adopted_and_given_back() {
    let Some(_turn) = engine().await else { return };
    predecessor();
    // A move that was interrupted: half of the entries are aside already.
    on_volume(
        "cd /var/lib/postgresql/data; mkdir -p pgherd/adopted; chown -R postgres pgherd; mv base global pgherd/adopted/",
    );
    adopts().await;
    assert_eq!(
        on_volume("cd /var/lib/postgresql/data; ls pgdata/PG_VERSION; ls PG_VERSION || true"),
        "pgdata/PG_VERSION"
    );

    let environment =
        ["-e", "POSTGRES_SUPERUSER_PASSWORD=super", "-e", "POSTGRES_REPLICATION_PASSWORD=replica"];
    let back = [["run", "--rm"].as_slice(), &environment, &OPTIONS, &[IMAGE, "restore-volume"]].concat();
    docker(&back);
    on_volume(
        "cd /var/lib/postgresql/data; test -f PG_VERSION -a -d base -a -d global -a ! -e pgdata/PG_VERSION",
    );
    docker(&["volume", "rm", "-f", VOLUME]);
}

#[tokio::test]
async fn data_of_another_version_is_refused_by_name() {
    let Some(_turn) = engine().await else { return };
    try_docker(&["volume", "rm", "-f", VOLUME]).ok();
    on_volume("cd /var/lib/postgresql/data; echo 9.6 > PG_VERSION; mkdir base; chown -R postgres .");
    let node = Lonely::run("pgherd-test-version", &OPTIONS);
    let said = eventually(super::image::STARTED, async || {
        let logs = node.logs();
        logs.contains("use the image with the tag :9.6").then_some(logs)
    });
    assert!(said.await.is_some(), "{}", node.logs());
    assert_eq!(on_volume("cat /var/lib/postgresql/data/PG_VERSION"), "9.6", "nothing was moved");
    drop(node);
    docker(&["volume", "rm", "-f", VOLUME]);
}
