//! A volume from before pgherd: made by PostgreSQL alone, as the predecessor and the official image leave it.

use super::client::{self, Target};
use super::engine::{IMAGE, docker, try_docker};
use super::image::Lonely;
use super::outage::NODES;
use super::stack::{FORMED, Stack};
use super::{engine, engine_for_all, eventually};

const VOLUME: &str = "pgherd-test-adopted";
const OPTIONS: [&str; 2] = ["-v", "pgherd-test-adopted:/var/lib/postgresql/data"];

/// Runs a shell on the volume, as root.
fn on_volume(script: &str) -> String {
    shell(&["-v", OPTIONS[1]], script)
}

/// Runs a shell on volumes, as root.
fn shell(volumes: &[&str], script: &str) -> String {
    let start = ["run", "--rm", "--entrypoint", "sh"];
    docker(&[start.as_slice(), volumes, &[IMAGE, "-ec", script]].concat())
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

/// The volumes of a cluster of the predecessor's, as its container leaves them when it is killed: at their roots, under an account
/// that is not in our image, with Patroni's files; roles have MD5 passwords. The first one is a standby that is ahead of the
/// second, and the third is new.
fn three_of_the_predecessors(stack: &Stack) {
    let at = |node: u8, place: &str| format!("{}:/{place}", stack.volume(node));
    let (one, two) = (at(1, "one"), at(2, "two"));
    shell(
        &["-v", &one, "-v", &two],
        "chown 101:103 /one; chmod 700 /one; cd /
         as_old() { setpriv --reuid=101 --regid=103 --clear-groups env HOME=/tmp PGUSER=postgres PGHOST=/tmp PGPASSWORD=old \"$@\"; }
         echo old >/tmp/pw
         as_old initdb -D /one --username=postgres --pwfile=/tmp/pw -E UTF8 --auth-host=md5 --auth-local=peer --data-checksums >/dev/null
         mv /one/postgresql.conf /one/postgresql.base.conf
         printf \"include 'postgresql.base.conf'\\nmax_connections = '200'\\npassword_encryption = 'md5'\\n\" >/one/postgresql.conf
         printf 'local all all trust\\n' >/one/pg_hba.conf
         printf '{\"ttl\": 30, \"postgresql\": {\"parameters\": {\"max_connections\": 200}}}' >/one/patroni.dynamic.json
         start() { as_old pg_ctl -D /one -o '-k /tmp -c listen_addresses=' -w start >/dev/null; }
         start
         as_old psql -qc \"CREATE ROLE admin LOGIN CREATEDB PASSWORD 'adminpw'\" -c 'CREATE ROLE replicator LOGIN REPLICATION' -c 'CREATE DATABASE shop OWNER admin'
         as_old psql -q shop -c 'CREATE TABLE kept AS SELECT 1 AS n' -c 'GRANT SELECT ON kept TO admin'
         as_old pg_ctl -D /one -m fast -w stop >/dev/null
         cp -a /one/. /two/; cp -a /one/postgresql.base.conf /two/
         start
         as_old psql -q shop -c 'INSERT INTO kept VALUES (41)' -c CHECKPOINT -c 'INSERT INTO kept VALUES (42)'
         as_old pg_ctl -D /one -m immediate -w stop >/dev/null
         touch /one/standby.signal; chown 101:103 /one/standby.signal",
    );
}

#[tokio::test]
async fn a_cluster_of_the_predecessors_is_taken_over_with_its_environment() {
    let Some(_turn) = engine_for_all().await else { return };
    let stack = Stack::up_on(10, "tests/containers/predecessor.env", three_of_the_predecessors);
    let leader = stack.whole(&NODES, FORMED).await;
    assert_eq!(leader, 1, "its data goes furthest");
    for node in NODES {
        let shop = |user: &str, password: &str| Target {
            user: user.to_owned(),
            password: password.to_owned(),
            database: "shop".to_owned(),
            ..stack.target(node, 5432)
        };
        let kept = "SELECT string_agg(n::text, ' ' ORDER BY n) FROM kept";
        assert_eq!(client::ask(&shop("admin", "adminpw"), kept).await.unwrap(), "1 41 42", "node{node}");
        let most = client::ask(&shop("postgres", "super"), "SHOW max_connections").await.unwrap();
        assert_eq!(most, "200", "node{node}");
    }
    let old = shell(
        &["-v", &format!("{}:/two", stack.volume(2))],
        "cat /two/pgherd/adopted/PG_VERSION; stat -c %u /two/pgherd/adopted",
    );
    let account = docker(&["exec", &stack.container(2), "id", "-u", "postgres"]);
    assert_eq!(old.lines().last(), Some(account.as_str()), "what was not taken is kept");
}
