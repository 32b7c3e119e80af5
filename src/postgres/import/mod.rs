//! `IMPORT_URL`: a new cluster takes over roles, schema and data of another server, once, before its init scripts run.
//!
//! Each database is copied in one transaction, so an import that was interrupted has left nothing and begins anew; what is
//! finished is noted, so it is not done twice. Invariants: nothing is imported into a database that holds something; our own
//! roles keep their passwords; an import whose row counts differ from a source that stood still is a failed one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use camino::Utf8PathBuf;
use nix::sys::stat::Mode;
use postgres_protocol::escape::escape_identifier;
use secrecy::{ExposeSecret as _, SecretString};
use tracing::{info, warn};

mod frame;
mod roles;
mod statements;

use super::bootstrap::{Progress, STATEMENT_LIMIT, SecretFile, with_client_environment};
use super::sql::Session;
use super::{Config, Error, conf, control};
use crate::process::{self, Command};
use crate::types::Chain;
use frame::Frame;
use roles::{Present, Roles};

/// A copy over a slow line takes a day; a dead peer is noticed by TCP.
const COPY_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How often it is said how far a copy is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// The name of the source in libpq's service file.
const SERVICE: &str = "import";
const MIB: i64 = 1 << 20;

/// The databases of a server that can be copied.
const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";
/// What belongs to nobody but the user: no system schema, no extension.
const EMPTY: &str = "SELECT count(*)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)' \
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";
/// One statement for each table, which psql then runs.
const COUNTS: &str = "SELECT format('SELECT %L, count(*) FROM ONLY %I.%I', n.nspname || '.' || c.relname, n.nspname, c.relname) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence <> 't' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
    ORDER BY 1 \\gexec\n";
const OWNER: &str = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()";
const SIZE: &str = "SELECT pg_database_size(current_database())::text";

/// Where an import comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The section of a service file: libpq's words and values, the password among them.
    service: SecretString,
    /// Without one: every database.
    database: Option<String>,
}

impl Source {
    /// Reads `postgres://user:password@host:port/database?sslmode=...`; any word of libpq may stand after the question mark.
    ///
    /// # Errors
    /// What was expected; never a part of the URL, which holds a password.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "postgres://USER:PASSWORD@HOST[:PORT][/DATABASE][?sslmode=...]";
        let (base, options) = url.split_once('?').unwrap_or((url, ""));
        let parsed: tokio_postgres::Config = base.parse().map_err(|_wrong| SHAPE)?;
        let ([tokio_postgres::config::Host::Tcp(host)], Some(user)) = (parsed.get_hosts(), parsed.get_user())
        else {
            return Err(SHAPE);
        };
        let port = parsed.get_ports().first().copied().unwrap_or(5432);
        let database = parsed.get_dbname().filter(|name| !name.is_empty()).map(str::to_owned);
        let password = parsed.get_password().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let options = reqwest::Url::parse(&format!("http://x/?{options}")).map_err(|_wrong| SHAPE)?;
        let said_before = ["host", "hostaddr", "port", "user", "password", "dbname", "service"];
        if options.query_pairs().any(|(word, _)| said_before.contains(&&*word)) {
            return Err(SHAPE);
        }
        let mut lines = vec![format!("host={host}"), format!("port={port}"), format!("user={user}")];
        lines.extend(password.map(|password| format!("password={password}")));
        lines.extend(options.query_pairs().map(|(word, value)| format!("{word}={value}")));
        if lines.iter().any(|line| line.contains(['\n', '\r', '\0'])) {
            return Err("a URL without line breaks");
        }
        let service = format!("[{SERVICE}]\n{}\n", lines.join("\n"));
        Ok(Self { service: SecretString::from(service), database })
    }
}

/// Which server a program speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Here,
}

/// What the programs need, for as long as an import runs.
struct Desk<'a> {
    config: &'a Config,
    service: SecretFile,
    passfile: SecretFile,
}

/// Copies everything that is not noted as copied. Whatever keeps it from that is said to be about the import: which server did
/// not answer, or let nobody in, is not plain otherwise.
pub(super) async fn import(config: &Config, source: &Source, progress: &mut Progress) -> Result<(), Error> {
    let told = |error: Error| {
        if matches!(error, Error::NotImported { .. }) { error } else { refused(Chain(&error).to_string()) }
    };
    copy_all(config, source, progress).await.map_err(told)
}

async fn copy_all(config: &Config, source: &Source, progress: &mut Progress) -> Result<(), Error> {
    let line = conf::pgpass_line(&config.superuser, config.superuser_password.expose_secret());
    let desk = Desk {
        config,
        service: SecretFile::write(config, "import.service", source.service.expose_secret())?,
        passfile: SecretFile::write(config, "import.pgpass", &line)?,
    };
    let databases = match &source.database {
        Some(name) => vec![name.clone()],
        None => desk.ask((Side::Source, "postgres"), DATABASES).await?,
    };
    let todo: Vec<_> = databases.into_iter().filter(|name| !progress.contains(&note(name))).collect();
    let empty: Vec<_> = todo.iter().filter(|name| !progress.contains(&loaded(name))).collect();
    for name in &empty {
        desk.refuse_what_holds_something(name).await?;
    }
    if !empty.is_empty() {
        desk.copy_roles().await?;
    }
    for name in &todo {
        desk.copy(name, progress).await?;
        progress.add(&note(name))?;
    }
    Ok(())
}

/// The line of the progress file for a database that was copied and compared.
fn note(database: &str) -> String {
    format!("imported {database}")
}

/// The line for one that was copied: another attempt only compares it.
fn loaded(database: &str) -> String {
    format!("loaded {database}")
}

fn refused(why: String) -> Error {
    Error::NotImported { why }
}

impl Desk<'_> {
    fn program(&self, name: &str, (side, database): (Side, &str)) -> Command {
        let command = Command::new(name, self.config.bin_dir.join(name));
        let command = match side {
            Side::Here => with_client_environment(self.config, command, &self.passfile.0)
                // No standby is there yet whose confirmation could be waited for; what a database sets for its sessions
                // (also that they only read) is not for us.
                .env("PGOPTIONS", "-c synchronous_commit=local -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 \
                     -c idle_in_transaction_session_timeout=0"),
            Side::Source => command
                .env("PGSERVICEFILE", self.service.0.as_str())
                .env("PGSERVICE", SERVICE)
                .env("PGCONNECT_TIMEOUT", "30")
                .run_as(&self.config.run_as),
        };
        command.env("PGDATABASE", database).env("LC_ALL", "C").arg("--no-password").quiet()
    }

    fn file(&self, name: &str) -> Utf8PathBuf {
        self.config.run_dir.join(name)
    }

    /// What a query prints, line by line.
    async fn ask(&self, place: (Side, &str), sql: &str) -> Result<Vec<String>, Error> {
        // What the role or the database sets for its sessions is not for a count of everything.
        let script = format!("SET statement_timeout = 0; {sql}");
        let script = SecretFile::write(self.config, "import.sql", &script)?;
        let answer = SecretFile::write(self.config, "import.answer", "")?;
        let command = self
            .program("psql", place)
            .env("PGCLIENTENCODING", "UTF8")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-f", script.0.as_str(), "-o", answer.0.as_str()]);
        control::run(&command, "psql", COPY_LIMIT).await?;
        let text = std::fs::read_to_string(&answer.0).map_err(Error::file("read", &answer.0))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    async fn number(&self, place: (Side, &str), sql: &str) -> Result<i64, Error> {
        let lines = self.ask(place, sql).await?;
        let number = lines.first().and_then(|line| line.trim().parse().ok());
        number.ok_or_else(|| refused(format!("{} does not answer with a number", place.1)))
    }

    async fn is_here(&self, name: &str) -> Result<bool, Error> {
        let session = Session::open(self.config, STATEMENT_LIMIT).await?;
        let known = "SELECT 1 FROM pg_database WHERE datname = $1";
        Ok(!session.query("look for the database", known, &[&name]).await?.is_empty())
    }

    async fn refuse_what_holds_something(&self, name: &str) -> Result<(), Error> {
        if !self.is_here(name).await? {
            return Ok(());
        }
        match self.number((Side::Here, name), EMPTY).await? {
            0 => Ok(()),
            n => Err(refused(format!(
                "database {name} holds {n} tables, indexes or views already: IMPORT_URL is for a new cluster; unset it, or \
                 begin with an empty volume"
            ))),
        }
    }

    /// Makes the database, with the source's encoding and locale where this machine has them.
    async fn make(&self, frame: &Frame, name: &str) -> Result<(), Error> {
        if self.is_here(name).await? {
            return Ok(());
        }
        let session = Session::open(self.config, STATEMENT_LIMIT).await?;
        let made = session.execute("make the database", &frame.made).await;
        let Err(error) = made else { return Ok(()) };
        let error = Chain(&error).to_string();
        warn!(
            database = name,
            error, "not to be made as at the source: it gets this cluster's encoding and locale"
        );
        let sql = format!("CREATE DATABASE {} TEMPLATE template0", escape_identifier(name));
        session.execute("make the database", &sql).await
    }

    /// Roles with their passwords where the source lets them be read, else without.
    async fn copy_roles(&self) -> Result<(), Error> {
        let dump = SecretFile::write(self.config, "import.roles", "")?;
        let command = || {
            let dumpall = self.program("pg_dumpall", (Side::Source, "postgres"));
            dumpall.args(["--roles-only", "--encoding=UTF8", "--file", dump.0.as_str()])
        };
        if let Err(error) = control::run(&command(), "pg_dumpall", COPY_LIMIT).await {
            warn!(%error, "the passwords of the roles cannot be read: the roles come without");
            control::run(&command().arg("--no-role-passwords"), "pg_dumpall", COPY_LIMIT).await?;
        }
        let text = std::fs::read_to_string(&dump.0).map_err(Error::file("read", &dump.0))?;
        let session = Session::open(self.config, STATEMENT_LIMIT).await?;
        let rows = session.query("read the roles", "SELECT rolname::text FROM pg_roles", &[]).await?;
        let own = [&self.config.superuser, &self.config.replication_user].into_iter().cloned().collect();
        let present = Present { all: rows.iter().map(|row| row.get(0)).collect(), own };
        let roles = Roles::of(&text, &present);
        if !roles.made.is_empty() {
            session.execute("make the roles", &roles.made).await?;
        }
        self.run_each(&roles.settings).await
    }

    /// Settings and the like: what this server does not know is said and left out.
    async fn run_each(&self, statements: &[String]) -> Result<(), Error> {
        let session = Session::open(self.config, STATEMENT_LIMIT).await?;
        for statement in statements {
            if let Err(error) = session.execute("take a property over", statement).await {
                // Not the statement: what is set may be a secret.
                warn!(error = %Chain(&error), "a setting, a grant or a comment was not taken over");
            }
        }
        Ok(())
    }

    /// One database, in one transaction.
    async fn copy(&self, name: &str, progress: &mut Progress) -> Result<(), Error> {
        let (source, here) = ((Side::Source, name), (Side::Here, name));
        let before = self.counts(source).await?;
        let frame = Frame::read(self, name).await?;
        if !progress.contains(&loaded(name)) {
            let size = self.number(source, SIZE).await?;
            info!(database = name, mib = size / MIB, "importing");
            self.make(&frame, name).await?;
            tokio::select! {
                done = self.stream(name) => done?,
                never = self.tell_progress(name, size) => match never {},
            }
            progress.add(&loaded(name))?;
        }
        // Last: a database that is read-only by its settings is so from here on.
        self.give(name).await?;
        self.run_each(&frame.rest).await?;
        let after = self.counts(source).await?;
        let rows = verified(&before, &after, &self.counts(here).await?)
            .map_err(|why| refused(format!("database {name}: {why}")))?;
        // A plan needs statistics, which a dump does not carry.
        self.ask(here, "ANALYZE").await?;
        info!(database = name, tables = after.len(), rows, "imported");
        Ok(())
    }

    /// The database belongs to whom it belonged to, who may make what he likes in it.
    async fn give(&self, name: &str) -> Result<(), Error> {
        let owner = self.ask((Side::Source, name), OWNER).await?;
        let Some(owner) = owner.first() else { return Ok(()) };
        let session = Session::open(self.config, STATEMENT_LIMIT).await?;
        let known = "SELECT 1 FROM pg_roles WHERE rolname = $1";
        if session.query("look for the owner", known, &[owner]).await?.is_empty() {
            warn!(database = name, owner, "its owner is no role here: the superuser owns it");
            return Ok(());
        }
        let sql = format!("ALTER DATABASE {} OWNER TO {}", escape_identifier(name), escape_identifier(owner));
        session.execute("give the database to its owner", &sql).await
    }

    /// From pg_dump through a named pipe into psql: nothing is stored in between.
    ///
    /// psql commits at the end of its input, whatever the reason of that end: so the pipe is held open here until pg_dump
    /// has succeeded, and when it fails psql is killed before it sees an end.
    async fn stream(&self, name: &str) -> Result<(), Error> {
        let pipe = self.file("import.pipe");
        let _removed = make_pipe(self.config, pipe.clone())?;
        let held_open = std::fs::File::options().read(true).write(true).open(&pipe);
        let mut held_open = Some(held_open.map_err(Error::file("open", &pipe))?);
        let dump = self.program("pg_dump", (Side::Source, name)).args([
            "--no-tablespaces",
            "--no-publications",
            "--no-subscriptions",
            "--file",
            pipe.as_str(),
        ]);
        let load = self.program("psql", (Side::Here, name)).args([
            "-X",
            "-q",
            "-o",
            "/dev/null",
            "-v",
            "ON_ERROR_STOP=1",
            "--single-transaction",
            "-f",
            pipe.as_str(),
        ]);
        let dumped = async {
            control::run(&dump, "pg_dump", COPY_LIMIT).await?;
            drop(held_open.take());
            Ok(())
        };
        // Whichever fails takes the other along.
        let loaded = control::run(&load, "psql", COPY_LIMIT);
        tokio::try_join!(dumped, loaded).map(|_ended| ())
    }

    /// Says how far it is, for as long as it is asked to.
    async fn tell_progress(&self, name: &str, size: i64) -> Infallible {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            match self.number((Side::Here, name), SIZE).await {
                Ok(here) => {
                    let percent = (here * 100 / size.max(1)).min(99);
                    info!(database = name, mib = here / MIB, of_mib = size / MIB, percent, "importing");
                }
                Err(error) => warn!(%error, "how far the import is cannot be told"),
            }
        }
    }

    /// The rows of every table.
    async fn counts(&self, place: (Side, &str)) -> Result<BTreeMap<String, i64>, Error> {
        let lines = self.ask(place, COUNTS).await?;
        Ok(lines.iter().filter_map(|line| line.rsplit_once('|')).filter_map(count).collect())
    }
}

fn count((table, rows): (&str, &str)) -> Option<(String, i64)> {
    Some((table.to_owned(), rows.parse().ok()?))
}

fn make_pipe(config: &Config, path: Utf8PathBuf) -> Result<SecretFile, Error> {
    if path.exists() {
        std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
    }
    let made = nix::unistd::mkfifo(path.as_std_path(), Mode::S_IRUSR | Mode::S_IWUSR);
    made.map_err(|errno| Error::file("make", &path)(errno.into()))?;
    let pipe = SecretFile(path.clone());
    process::give_tree(&path, &config.run_as).map_err(|source| Error::Write { path, source })?;
    Ok(pipe)
}

/// The rows that were copied; or which table differs. A table that changed at the source meanwhile proves nothing.
fn verified(
    before: &BTreeMap<String, i64>,
    after: &BTreeMap<String, i64>,
    here: &BTreeMap<String, i64>,
) -> Result<i64, String> {
    for (table, rows) in before {
        let now = after.get(table);
        if now != Some(rows) {
            warn!(table, "written to at the source during the import: its rows could not be compared");
            continue;
        }
        let copied = here.get(table).copied();
        if copied != Some(*rows) {
            let copied = copied.map_or_else(|| "none".to_owned(), |n| n.to_string());
            return Err(format!("table {table} has {rows} rows at the source, and {copied} arrived"));
        }
    }
    Ok(here.values().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_becomes_a_service_and_a_wrong_one_is_not_repeated() {
        let source = Source::parse(
            "postgres://me:s%40cret@db.example:6432/shop?sslmode=verify-full&sslrootcert=/ca.crt",
        )
        .unwrap();
        assert_eq!(source.database.as_deref(), Some("shop"));
        let lines: Vec<&str> = source.service.expose_secret().lines().collect();
        assert_eq!(
            lines,
            [
                "[import]",
                "host=db.example",
                "port=6432",
                "user=me",
                "password=s@cret",
                "sslmode=verify-full",
                "sslrootcert=/ca.crt"
            ]
        );
        assert_eq!(Source::parse("postgres://me@db").unwrap().database, None);
        assert!(!format!("{source:?}").contains("s@cret"));
        for wrong in [
            "",
            "http://x",
            "postgres://",
            "postgres:///db",
            "me:secret@host",
            "postgres://me:a%0Ab@h/d",
            "postgres://me@a,b/d",
            "postgres://me@a/d?dbname=e",
        ] {
            let said = Source::parse(wrong).unwrap_err();
            assert!(!said.contains("secret"), "{wrong}");
        }
    }

    #[test]
    fn rows_are_compared_where_the_source_stood_still() {
        let counts = |all: &[(&str, i64)]| all.iter().map(|(t, n)| ((*t).to_owned(), *n)).collect();
        let (before, after) = (counts(&[("a", 1), ("b", 2)]), counts(&[("a", 1), ("b", 3)]));
        assert_eq!(verified(&before, &after, &counts(&[("a", 1), ("b", 2)])), Ok(3));
        let error = verified(&before, &after, &counts(&[("b", 2)])).unwrap_err();
        assert_eq!(error, "table a has 1 rows at the source, and none arrived");
    }
}
