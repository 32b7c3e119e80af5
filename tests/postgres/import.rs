//! `IMPORT_URL` between two servers.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use camino::Utf8PathBuf;
use pgherd::postgres::Source;

use super::{Node, SUPERUSER_PASSWORD, write};

#[tokio::test]
async fn a_new_cluster_takes_over_the_data_of_another_server_once() {
    let source = Node::new("i-1", 21);
    source.bootstrap().await;
    source.ask("CREATE ROLE app LOGIN PASSWORD 'app-secret'").await;
    source.ask("CREATE DATABASE shop OWNER app").await;
    source.ask("ALTER ROLE boss PASSWORD 'other'").await;
    let to_shop = async |node: &Node, sql: &str| node.ask_as(("app", "app-secret"), "shop", sql).await;
    to_shop(&source, "CREATE TABLE t AS SELECT n, repeat('x', 100) AS pad FROM generate_series(1, 20000) n")
        .await;
    to_shop(
        &source,
        "CREATE INDEX ON t (n); CREATE VIEW v AS SELECT count(*) FROM t; CREATE SEQUENCE s START 7",
    )
    .await;

    let url = format!("postgres://boss:other@{}:5432/shop?sslmode=require", source.address);
    let target = Node::with("i-2", 22, |config| config.import = Some(Source::parse(&url).unwrap()));
    target.pg.initdb().await.unwrap();
    target.start_primary().await;
    for _ in 0..2 {
        target.pg.finish_bootstrap().await.unwrap();
        assert_eq!(to_shop(&target, "SELECT sum(n)::text FROM t").await, "200010000");
    }
    assert_eq!(to_shop(&target, "SELECT nextval('s')::text").await, "7");
    to_shop(&target, "CREATE TABLE another (n int)").await;
    // The superuser has kept the cluster's own password, or this would not come in.
    assert_eq!(target.ask("SELECT 'in'").await, "in");
    let left = target.config.run_dir.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned());
    assert_eq!(left.filter(|name| name.starts_with("import")).collect::<Vec<_>>(), Vec::<String>::new());
}

/// psql commits at the end of its input; a dump that breaks off must not look like an end.
#[tokio::test]
async fn an_import_that_breaks_off_leaves_nothing_and_begins_anew() {
    let source = Node::new("i-5", 25);
    source.bootstrap().await;
    source.ask("CREATE TABLE t AS SELECT n FROM generate_series(1, 50000) n").await;
    source.ask("ALTER ROLE boss PASSWORD 'other'").await;
    // A pg_dump that says half of it and dies.
    let bin = tempfile::tempdir().unwrap();
    std::fs::set_permissions(bin.path(), Permissions::from_mode(0o755)).unwrap();
    let bin = Utf8PathBuf::from_path_buf(bin.path().to_owned()).unwrap();
    let real = pgherd::config::newest_postgres().unwrap();
    for entry in real.read_dir_utf8().unwrap().map(Result::unwrap) {
        std::os::unix::fs::symlink(entry.path(), bin.join(entry.file_name())).unwrap();
    }
    std::fs::remove_file(bin.join("pg_dump")).unwrap();
    let half = format!(
        "#!/bin/sh\nfor last; do :; done\nfor word; do [ \"$word\" = --file ] && next=1 && continue; \
         [ -n \"$next\" ] && file=$word && next=; done\n\
         {real}/pg_dump --no-password | head -c 100000 > \"$file\"\nkill -9 $$\n"
    );
    write(&bin.join("pg_dump"), half.as_bytes(), 0o755);
    let url = format!("postgres://boss:other@{}/App%20db", source.address);
    let target = Node::with("i-6", 26, |config| {
        config.import = Some(Source::parse(&url).unwrap());
        config.bin_dir = bin.clone();
    });
    target.pg.initdb().await.unwrap();
    target.start_primary().await;
    let error = target.pg.finish_bootstrap().await.unwrap_err().to_string();
    assert!(error.contains("pg_dump failed"), "{error}");
    std::fs::remove_file(bin.join("pg_dump")).unwrap();
    std::os::unix::fs::symlink(real.join("pg_dump"), bin.join("pg_dump")).unwrap();
    target.pg.finish_bootstrap().await.unwrap();
    assert_eq!(target.ask("SELECT count(*)::text FROM t").await, "50000");
}

#[tokio::test]
async fn an_import_into_a_database_that_holds_something_is_refused() {
    let source = Node::new("i-3", 23);
    source.bootstrap().await;
    source.ask("CREATE TABLE t (n int)").await;
    source.ask("ALTER ROLE boss PASSWORD 'other'").await;
    let url = format!("postgres://boss:other@{}/App%20db", source.address);
    let target = Node::with("i-4", 24, |config| config.import = Some(Source::parse(&url).unwrap()));
    target.pg.initdb().await.unwrap();
    target.start_primary().await;
    let superuser = ("boss", SUPERUSER_PASSWORD);
    target.ask_as(superuser, "postgres", "CREATE DATABASE \"App db\"").await;
    target.ask("CREATE TABLE mine (n int)").await;
    let error = target.pg.finish_bootstrap().await.unwrap_err().to_string();
    assert!(error.contains("database App db holds 1 tables") && !error.contains("other"), "{error}");
    assert_eq!(target.ask("SELECT count(*)::text FROM mine").await, "0");
    target.ask("DROP TABLE mine").await;
    target.pg.finish_bootstrap().await.unwrap();
    assert_eq!(target.ask("SELECT count(*)::text FROM t").await, "0");
}

/// Everything that belongs to a database as a whole.
const FRAME: &str =
    "SELECT concat_ws('|', datname, pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit,
    pg_get_userbyid(datdba), datacl::text, shobj_description(d.oid, 'pg_database'),
    (SELECT string_agg(setrole::regrole::text || setconfig::text, ' ' ORDER BY setrole::regrole::text)
       FROM pg_db_role_setting WHERE setdatabase = d.oid)) FROM pg_database d WHERE datname = ";
const ROLE: &str = "SELECT concat_ws('|', shobj_description(oid, 'pg_authid'), rolconnlimit, rolpassword,
    (SELECT setconfig::text FROM pg_db_role_setting WHERE setrole = r.oid AND setdatabase = 0),
    pg_has_role('app', 'guest', 'MEMBER')) FROM pg_authid r WHERE rolname = 'app'";

/// What users of `pg_dumpall` and `pg_dump --create` expect.
#[tokio::test]
async fn an_import_of_everything_brings_what_belongs_to_the_databases_as_a_whole() {
    let source = Node::new("i-7", 27);
    source.bootstrap().await;
    for sql in [
        "CREATE ROLE guest",
        "CREATE ROLE app LOGIN PASSWORD 'app-secret' CONNECTION LIMIT 9 IN ROLE guest",
        "COMMENT ON ROLE app IS 'first;\nsecond \"line'",
        "ALTER ROLE app SET lock_timeout = '3s'",
        "CREATE DATABASE \"the shop\" OWNER app TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
        "COMMENT ON DATABASE \"the shop\" IS 'it''s one'",
        "REVOKE ALL ON DATABASE \"the shop\" FROM PUBLIC",
        "GRANT CONNECT, TEMPORARY ON DATABASE \"the shop\" TO guest",
        "ALTER DATABASE \"the shop\" CONNECTION LIMIT 17",
        "ALTER DATABASE \"the shop\" SET search_path TO \"$user\", public, extra",
        "ALTER ROLE app IN DATABASE \"the shop\" SET statement_timeout = '5min'",
        "ALTER DATABASE postgres SET work_mem = '7MB'",
        "ALTER ROLE boss PASSWORD 'other'",
    ] {
        source.ask(sql).await;
    }
    let superuser = ("boss", "other");
    source.ask_as(superuser, "the shop", "CREATE TABLE t AS SELECT 'd\u{e9}' AS word").await;
    // Nothing could be loaded into it once this is set.
    source
        .ask_as(superuser, "postgres", "ALTER DATABASE \"the shop\" SET default_transaction_read_only = on")
        .await;

    let url = format!("postgres://boss:other@{}", source.address);
    let target = Node::with("i-8", 28, |config| config.import = Some(Source::parse(&url).unwrap()));
    target.pg.initdb().await.unwrap();
    target.start_primary().await;
    target.pg.finish_bootstrap().await.unwrap();
    for database in ["'the shop'", "'postgres'", "'App db'"] {
        let query = format!("{FRAME}{database}");
        let there = source.ask_as(superuser, "postgres", &query).await;
        assert_eq!(target.ask(&query).await, there);
    }
    assert_eq!(target.ask(ROLE).await, source.ask_as(superuser, "postgres", ROLE).await);
    let word = target.ask_as(("boss", SUPERUSER_PASSWORD), "the shop", "SELECT word FROM t").await;
    assert_eq!(word, "d\u{e9}");
}
