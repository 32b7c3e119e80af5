//! The birth of a cluster: initdb, the replication role, the database, an import, the init scripts.
//!
//! What has been done is written to `bootstrap-<system id>` in the state directory, one script a line: a script that
//! has succeeded never runs again in the same cluster, and a new cluster starts with an empty list.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::password::scram_sha_256;
use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};

use super::clone::{beside_data_dir, entries, make_dir, put_in_place, remove_leftovers, require_down};
use super::sql::Session;
use super::status::DataDir;
use super::{Config, Error, Local, Machine, Premises, Shared, adopt, conf, control, import, origin};
use crate::process::{self, Command, Mode, RunAs};
use crate::types::SystemId;

/// initdb takes 0.6 s on an idle machine; a slow disk may need a minute for its fsync.
const INITDB_LIMIT: Duration = Duration::from_secs(300);
/// A statement of the bootstrap; CREATE DATABASE copies 8 MB and may wait for a checkpoint.
pub(super) const STATEMENT_LIMIT: Duration = Duration::from_secs(60);
/// One init script; they may load data.
const SCRIPT_LIMIT: Duration = Duration::from_secs(3600);
/// Where init scripts find programs, after those of the server's version.
const SCRIPT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The line of the progress file that says that the data is older than pgherd: init scripts are for new clusters.
const ADOPTED: &str = "adopted";
/// The line of the progress file that says that everything is done.
const DONE: &str = "done";

/// A file with a secret, removed when dropped.
#[derive(Debug)]
pub(super) struct SecretFile(pub(super) Utf8PathBuf);

impl SecretFile {
    /// Writes it into `RUN_DIR`, for PostgreSQL's account.
    pub(super) fn write(config: &Config, name: &str, text: &str) -> Result<Self, Error> {
        let path = config.run_dir.join(name);
        conf::write(config, &path, text)?;
        Ok(Self(path))
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            warn!(path = %self.0, %error, "could not remove a password file");
        }
    }
}

/// See [`super::Postgres::initdb`].
pub(super) async fn initdb(shared: &Shared) -> Result<SystemId, Error> {
    require_down(shared)?;
    match control::classify(shared).await {
        DataDir::Empty => {}
        DataDir::Incomplete { why } => return Err(Error::Incomplete { why }),
        DataDir::Unreadable { .. } | DataDir::Cluster(_) => {
            return Err(Error::NotEmpty { path: shared.config.data_dir.clone() });
        }
    }
    remove_leftovers(shared).await?;
    if let Some(adopted) = adopt::found(shared).await? {
        return Ok(adopted);
    }
    if let Premises::Machine(machine) = &shared.config.premises
        && let Some(origin) = &machine.origin
    {
        return origin::make(shared, machine, origin).await;
    }
    let fresh = beside_data_dir(shared, "new");
    make_dir(shared, &fresh)?;
    run_initdb(shared, &fresh).await?;
    append_hba(&shared.config, &fresh)?;
    let made = control::read(shared, &fresh).await?;
    // Fails, and changes nothing, when something has appeared there meanwhile.
    put_in_place(shared, &fresh)?;
    info!(system_id = %made.system_id, "made a new database cluster");
    Ok(made.system_id)
}

async fn run_initdb(shared: &Shared, fresh: &Utf8Path) -> Result<(), Error> {
    let config = &shared.config;
    make_dir(shared, &config.run_dir)?;
    let password = config.superuser_password.expose_secret();
    // Kept until initdb has read it. Without a password the administrator trusts whoever reaches the server.
    let pwfile = match password {
        "" => None,
        _ => Some(SecretFile::write(config, "initdb.password", &format!("{password}\n"))?),
    };
    let auth = pwfile.iter().flat_map(|file| {
        let file = format!("--pwfile={}", file.0);
        [file, "--auth-local=scram-sha-256".to_owned(), "--auth-host=scram-sha-256".to_owned()]
    });
    let usual: &[&str] = match config.premises {
        // C.UTF-8 sorts by code point: no library update ever changes an index.
        Premises::Container => &["--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"],
        Premises::Machine(_) => &[],
    };
    let command = Command::new("initdb", config.bin_dir.join("initdb"))
        .args(["-D", fresh.as_str()])
        .arg(format!("--username={}", config.superuser))
        .args(auth)
        .args(usual.iter().copied())
        .args(config.initdb_args.iter().cloned())
        .run_as(&config.run_as)
        // It would tell the reader of the log to start the server by hand.
        .quiet();
    let command = with_a_name(config, command)?;
    control::run(&command, "initdb", INITDB_LIMIT).await.map(|_output| ())
}

/// `bootstrap.pg_hba`, behind what initdb wrote.
fn append_hba(config: &Config, fresh: &Utf8Path) -> Result<(), Error> {
    let Premises::Machine(machine) = &config.premises else { return Ok(()) };
    if machine.bootstrap_hba.is_empty() {
        return Ok(());
    }
    let path = fresh.join("pg_hba.conf");
    let before = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let lines: String = machine.bootstrap_hba.iter().map(|line| format!("{line}\n")).collect();
    conf::write(config, &path, &format!("{before}\n{lines}")).map(|_changed| ())
}

/// initdb refuses an account that has no name, as that of `docker run --user 1234` has none: a library that the image brings
/// gives it one. Without the library initdb says what is wrong.
fn with_a_name(config: &Config, command: Command) -> Result<Command, Error> {
    if config.run_as != RunAs::Same || process::account_has_a_name() {
        return Ok(command);
    }
    let Some(library) = process::name_library() else { return Ok(command) };
    let (passwd, group) = (config.run_dir.join("passwd"), config.run_dir.join("group"));
    let [passwd_line, group_line] = process::account_lines();
    conf::write(config, &passwd, &passwd_line)?;
    conf::write(config, &group, &group_line)?;
    Ok(command
        .env("LD_PRELOAD", library.as_str())
        .env("NSS_WRAPPER_PASSWD", passwd.as_str())
        .env("NSS_WRAPPER_GROUP", group.as_str()))
}

/// See [`super::Postgres::finish_bootstrap`].
pub(super) async fn finish(shared: &Shared) -> Result<(), Error> {
    let config = &shared.config;
    let session = Session::open(config, STATEMENT_LIMIT).await?;
    let mut progress = Progress::load(config, &session).await?;
    if progress.contains(DONE) {
        return Ok(());
    }
    make_replication_role(config, &session).await?;
    if let Premises::Machine(machine) = &config.premises {
        make_database(config, &session).await?;
        make_rewind_role(config, machine, &session).await?;
        run_bootstrap_script(config, machine).await?;
        return progress.add(DONE);
    }
    if let Some(source) = &config.import {
        import::import(config, source, &mut progress).await?;
    }
    // Not before an import, which may bring it with an encoding of its own.
    make_database(config, &session).await?;
    let new = if progress.contains(ADOPTED) { Vec::new() } else { scripts(&config.init_scripts)? };
    for script in new {
        let name = script.file_name().unwrap_or_default().to_owned();
        if !progress.contains(&name) {
            run_script(config, &script).await?;
            progress.add(&name)?;
        }
    }
    progress.add(DONE)
}

/// Which scripts have succeeded in this cluster.
#[derive(Debug)]
pub(super) struct Progress {
    path: Utf8PathBuf,
    done: BTreeSet<String>,
}

impl Progress {
    async fn load(config: &Config, session: &Session) -> Result<Self, Error> {
        let sql = "SELECT system_identifier::text FROM pg_control_system()";
        let system_id: String = session.value("read the system identifier", sql).await?;
        Self::of(config, &system_id)
    }

    fn of(config: &Config, system_id: &str) -> Result<Self, Error> {
        let path = config.state_dir.join(format!("bootstrap-{system_id}"));
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self { path, done: text.lines().map(str::to_owned).collect() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { path, done: BTreeSet::new() })
            }
            Err(error) => Err(Error::file("read", &path)(error)),
        }
    }

    /// Whether this has been done.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.done.contains(name)
    }

    /// Notes that it has.
    pub(super) fn add(&mut self, name: &str) -> Result<(), Error> {
        self.done.insert(name.to_owned());
        let text: String = self.done.iter().map(|name| format!("{name}\n")).collect();
        process::write_atomic(&self.path, text.as_bytes(), &RunAs::Same, Mode::Private)
            .map(|_written| ())
            .map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

/// Notes that a cluster begins with data from before pgherd.
pub(super) fn note_adopted(config: &Config, system_id: SystemId) -> Result<(), Error> {
    Progress::of(config, &system_id.to_string())?.add(ADOPTED)
}

/// The role that standbys stream and pg_rewind reads as. The server sees a verifier, never the password.
async fn make_replication_role(config: &Config, session: &Session) -> Result<(), Error> {
    if config.replication_user == config.superuser {
        return Ok(());
    }
    let login = (config.replication_user.as_str(), &config.replication_password);
    make_role(session, login, "LOGIN REPLICATION").await?;
    match config.premises {
        Premises::Container => let_rewind(session, &config.replication_user).await,
        Premises::Machine(_) => Ok(()),
    }
}

/// The role that pg_rewind reads as, where it is a third one.
async fn make_rewind_role(config: &Config, machine: &Machine, session: &Session) -> Result<(), Error> {
    let rewind = &machine.rewind;
    if rewind.user == config.superuser {
        return Ok(());
    }
    if rewind.user != config.replication_user {
        make_role(session, (&rewind.user, &rewind.password), "LOGIN").await?;
    }
    let_rewind(session, &rewind.user).await
}

async fn make_role(
    session: &Session,
    (user, password): (&str, &SecretString),
    attributes: &str,
) -> Result<(), Error> {
    let sql = "SELECT 1 FROM pg_roles WHERE rolname = $1";
    let known = session.query("look for a role", sql, &[&user]).await?;
    let verb = if known.is_empty() { "CREATE" } else { "ALTER" };
    let password = match password.expose_secret() {
        "" => String::new(),
        secret => format!(" PASSWORD {}", escape_literal(&scram_sha_256(secret.as_bytes()))),
    };
    let sql = format!("{verb} ROLE {} {attributes}{password}", escape_identifier(user));
    session.execute("make a role", &sql).await
}

/// What pg_rewind calls on its source.
async fn let_rewind(session: &Session, user: &str) -> Result<(), Error> {
    let sql = format!(
        "GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
           pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO {}",
        escape_identifier(user)
    );
    session.execute("let pg_rewind read", &sql).await
}

/// `post_bootstrap`: the connection URL is its last argument, the password is in PGPASSFILE.
async fn run_bootstrap_script(config: &Config, machine: &Machine) -> Result<(), Error> {
    let Some((program, args)) = machine.bootstrap_script.split_first() else { return Ok(()) };
    let line = conf::pgpass_line(&config.superuser, config.superuser_password.expose_secret());
    let passfile = SecretFile::write(config, "bootstrap.pgpass", &line)?;
    let host = match &machine.local {
        Local::Tcp(host) => format!("host={host}"),
        Local::Socket(dir) => format!("host={dir}"),
    };
    let url =
        format!("postgres:///{}?user={}&{host}&port={}", config.database, config.superuser, config.port);
    info!(script = %program, "running the script after the bootstrap");
    let command = Command::new("post_bootstrap", program.as_str())
        .args(args.iter().cloned())
        .arg(url)
        .env("PATH", format!("{}:{SCRIPT_PATH}", config.bin_dir))
        .env("PGPASSFILE", passfile.0.as_str())
        .of_administrator(&config.run_as);
    control::run(&command, "post_bootstrap", SCRIPT_LIMIT).await.map(|_output| ())
}

async fn make_database(config: &Config, session: &Session) -> Result<(), Error> {
    let sql = "SELECT 1 FROM pg_database WHERE datname = $1";
    if !session.query("look for the database", sql, &[&config.database]).await?.is_empty() {
        return Ok(());
    }
    session
        .execute("make the database", &format!("CREATE DATABASE {}", escape_identifier(&config.database)))
        .await
}

/// The init scripts in the order of their names.
fn scripts(dir: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Error> {
    let mut paths = entries(dir)?;
    paths.retain(|path| path.is_file());
    Ok(paths)
}

/// Runs one script as the official image does: psql over the socket, or the shell.
async fn run_script(config: &Config, script: &Utf8Path) -> Result<(), Error> {
    let passfile = {
        let line = conf::pgpass_line(&config.superuser, config.superuser_password.expose_secret());
        SecretFile::write(config, "init.pgpass", &line)?
    };
    let name = script.file_name().unwrap_or_default();
    let unpacked;
    let command = if name.ends_with(".sql") {
        psql(config, script)
    } else if name.ends_with(".sql.gz") {
        unpacked = unpack(config, script).await?;
        psql(config, &unpacked.0)
    } else if name.ends_with(".sh") {
        shell(script)?
    } else {
        warn!(%script, "passing over a file that is no init script");
        return Ok(());
    };
    info!(%script, "running an init script");
    let command = with_client_environment(config, command, &passfile.0);
    let output = process::run(&command, SCRIPT_LIMIT)
        .await
        .map_err(|source| Error::Run { tool: "an init script", source })?;
    if output.exit.is_success() {
        return Ok(());
    }
    Err(control::failed(script.as_str(), &output))
}

fn psql(config: &Config, file: &Utf8Path) -> Command {
    Command::new("psql", config.bin_dir.join("psql")).args([
        "-X",
        "-v",
        "ON_ERROR_STOP=1",
        "--no-password",
        "-f",
        file.as_str(),
    ])
}

/// An executable script is executed, another one is read by the shell.
fn shell(script: &Utf8Path) -> Result<Command, Error> {
    let mode = script.metadata().map_err(Error::file("read", script))?.permissions().mode();
    if mode & 0o111 != 0 {
        return Ok(Command::new("init-script", script));
    }
    let shell = ["/bin/bash", "/bin/sh"].into_iter().find(|s| Utf8Path::new(s).exists()).unwrap_or("/bin/sh");
    Ok(Command::new("init-script", shell).arg(script.as_str()))
}

/// Unpacks beside the socket; no shell and no pipe is needed.
async fn unpack(config: &Config, script: &Utf8Path) -> Result<SecretFile, Error> {
    let packed = std::fs::read(script).map_err(Error::file("read", script))?;
    let copy = config.run_dir.join("init-script.sql.gz");
    process::write_atomic(&copy, &packed, &config.run_as, Mode::Private)
        .map_err(|source| Error::Write { path: copy.clone(), source })?;
    let gzip = ["/usr/bin/gzip", "/bin/gzip"].into_iter().find(|p| Utf8Path::new(p).exists());
    let command = Command::new("gzip", gzip.unwrap_or("/bin/gzip"))
        .args(["--decompress", "--force", copy.as_str()])
        .run_as(&config.run_as);
    control::run(&command, "gzip", SCRIPT_LIMIT).await?;
    Ok(SecretFile(config.run_dir.join("init-script.sql")))
}

/// What a client program needs to come in as the superuser, over the socket.
pub(super) fn with_client_environment(config: &Config, command: Command, passfile: &Utf8Path) -> Command {
    command
        .env("PATH", format!("{}:{SCRIPT_PATH}", config.bin_dir))
        .env("PGHOST", config.run_dir.as_str())
        .env("PGPORT", config.port.to_string())
        .env("PGUSER", &config.superuser)
        .env("PGDATABASE", &config.database)
        .env("PGPASSFILE", passfile.as_str())
        .env("PGDATA", config.data_dir.as_str())
        .env("POSTGRES_USER", &config.superuser)
        .env("POSTGRES_DB", &config.database)
        .run_as(&config.run_as)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_come_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap();
        for name in ["20-b.sh", "10-a.sql", "30-c.sql.gz"] {
            std::fs::File::create(path.join(name)).unwrap();
        }
        std::fs::create_dir(path.join("00-directory")).unwrap();
        let names: Vec<_> =
            scripts(path).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["10-a.sql", "20-b.sh", "30-c.sql.gz"]);
        assert!(scripts(&path.join("absent")).unwrap().is_empty());
    }
}
