//! The files that PostgreSQL and libpq read: postgresql.conf, pg_hba.conf, pgpass, connection strings.
//!
//! They lie in PGDATA under their usual names, where people and tools look for them; they are written anew at every
//! start, so that a copy from elsewhere (pg_basebackup, pg_rewind) never counts. What is absent: ALTER SYSTEM. Lines of
//! `postgresql.auto.conf` that would overrule a setting the cluster owns are taken out before each start.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::Signal;
use secrecy::ExposeSecret;

use super::machine::DYNAMIC;
use super::settings::{self, Access, Effective, Slots};
use super::{ClientTls, Config, Door, Error, ForeignLogin, Machine, Premises, Shared, Upstream, lock, room};
use crate::process::{self, Mode};
use crate::templates::{self, AgentConf, Clients, PgHba, PostgresqlConf, Template};

/// What may change while PostgreSQL runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Settings {
    /// Whom to stream from.
    pub(super) upstream: Option<Upstream>,
    /// `synchronous_standby_names`.
    pub(super) sync_names: String,
    /// Whom a server that we took over streams from, until it is told to follow somebody.
    pub(super) found: Option<Found>,
    /// Who may connect.
    pub(super) door: Door,
}

/// How a server that somebody else started streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// `primary_conninfo`.
    pub(super) conninfo: String,
    /// `primary_slot_name`.
    pub(super) slot: String,
}

impl Settings {
    /// Streams from somebody else, or from nobody.
    pub(super) fn stream_from(&mut self, upstream: Option<Upstream>) {
        (self.upstream, self.found) = (upstream, None);
    }
}

/// Changes the settings, writes the file, and reloads when the file has changed.
pub(super) async fn change(shared: &Shared, edit: impl FnOnce(&mut Settings)) -> Result<(), Error> {
    if rewrite(shared, edit).await? {
        shared.unit.signal(Signal::SIGHUP);
    }
    Ok(())
}

/// Streams from this upstream, and connects now: a reload ends the wait for the next attempt (`wal_retrieve_retry_interval`).
pub(super) async fn follow(shared: &Shared, upstream: Option<Upstream>) -> Result<(), Error> {
    rewrite(shared, |settings| settings.stream_from(upstream)).await?;
    shared.unit.signal(Signal::SIGHUP);
    Ok(())
}

/// Changes the settings and writes the file; whether it has changed.
async fn rewrite(shared: &Shared, edit: impl FnOnce(&mut Settings)) -> Result<bool, Error> {
    let settings = {
        let mut settings = lock(&shared.settings);
        edit(&mut settings);
        settings.clone()
    };
    let config = shared.config.clone();
    let effective = lock(&shared.configuration).in_files();
    off_thread(move || {
        let cleaned = clean_auto_conf(&config, &[])?;
        Ok(write_postgresql_conf(&config, &settings, &effective)? || cleaned)
    })
    .await
}

/// Lets clients in: they are judged by the new rules once the server has read them. It is told each time: the file may be right
/// already since an attempt that was given up before the server heard of it.
pub(super) async fn open_door(shared: &Shared) -> Result<(), Error> {
    lock(&shared.settings).door = Door::Open;
    let config = shared.config.clone();
    let effective = lock(&shared.configuration).in_files();
    off_thread(move || match pg_hba(&config, &effective, Door::Open)? {
        Some(text) => write_rules(&config, &text),
        None => Ok(false),
    })
    .await?;
    shared.unit.signal(Signal::SIGHUP);
    Ok(())
}

/// Writes Patroni's copy of the dynamic configuration.
pub(super) async fn write_dynamic(shared: &Shared, config: &serde_json::Value) -> Result<(), Error> {
    let (path, text) = (shared.config.data_dir.join(DYNAMIC), config.to_string());
    let run_as = shared.config.run_as.clone();
    off_thread(move || {
        process::write_atomic(&path, text.as_bytes(), &run_as, Mode::Private)
            .map(|_written| ())
            .map_err(|source| Error::Write { path, source })
    })
    .await
}

/// Writes everything that a start needs.
pub(super) async fn write_all(
    shared: &Shared,
    settings: Settings,
    effective: &Effective,
) -> Result<(), Error> {
    lock(&shared.settings).clone_from(&settings);
    let config = shared.config.clone();
    let effective = effective.clone();
    off_thread(move || {
        process::make_private_dir(&config.run_dir, &config.run_as)
            .map_err(|source| Error::Write { path: config.run_dir.clone(), source })?;
        write_passfile(&config)?;
        keep_base(&config)?;
        write_settings(&config, &settings, &effective)
    })
    .await
    .map(|_changed| ())
}

/// fsync may take long on a bad disk: not on the thread that every other task needs.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let lost = |error| Error::file("write", "the configuration".into())(std::io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

/// Writes the three files; whether any of them has changed.
pub(super) fn write_settings(
    config: &Config,
    settings: &Settings,
    effective: &Effective,
) -> Result<bool, Error> {
    let hba = match pg_hba(config, effective, settings.door)? {
        Some(text) => write_rules(config, &text)?,
        None => false,
    };
    let ident = write_ident(config, effective)?;
    let server = write_postgresql_conf(config, settings, effective)?;
    Ok(hba || ident || server)
}

fn write_postgresql_conf(config: &Config, settings: &Settings, effective: &Effective) -> Result<bool, Error> {
    let text = postgresql_conf(config, settings, effective)?;
    write(config, &config.config_dir().join("postgresql.conf"), &text)
}

/// What Patroni calls the configuration that was there before it.
const BASE: &str = "postgresql.base.conf";

/// Keeps the administrator's postgresql.conf under another name, once, as Patroni does: ours includes it.
fn keep_base(config: &Config) -> Result<(), Error> {
    let Premises::Machine(machine) = &config.premises else { return Ok(()) };
    let (theirs, base) = (machine.config_dir.join("postgresql.conf"), machine.config_dir.join(BASE));
    if base.exists() || !theirs.exists() {
        return Ok(());
    }
    std::fs::rename(&theirs, &base).map_err(Error::file("rename", &theirs))
}

/// The text of postgresql.conf.
pub(super) fn postgresql_conf(
    config: &Config,
    settings: &Settings,
    effective: &Effective,
) -> Result<String, Error> {
    let (primary_conninfo, slot) = match (&settings.upstream, &settings.found) {
        (Some(upstream), _) => {
            let slot = match (&upstream.foreign, effective.slots) {
                (Some(foreign), _) => foreign.slot.clone().map_or_else(String::new, |slot| slot.0),
                (None, Slots::Used) => config.name.slot_name().0,
                (None, Slots::Unused) => String::new(),
            };
            (conninfo(config, upstream, &shown_name(config, upstream)), slot)
        }
        (None, Some(found)) => (found.conninfo.clone(), found.slot.clone()),
        (None, None) => (String::new(), String::new()),
    };
    if let Premises::Machine(machine) = &config.premises {
        return agent_conf(config, machine, effective, (&primary_conninfo, &slot, &settings.sync_names));
    }
    let context = PostgresqlConf {
        data_directory: &config.data_dir,
        hba_file: &config.data_dir.join("pg_hba.conf"),
        ident_file: &config.data_dir.join("pg_ident.conf"),
        listen_addresses: &config.listen,
        port: config.port,
        socket_directory: &config.run_dir,
        tls_dir: &config.tls_dir,
        cluster_name: config.name.as_str(),
        max_slot_wal_keep_size: &room::slot_limit(&config.data_dir),
        parameters: &effective.parameters,
        shared: &effective.shared,
        primary_conninfo: &primary_conninfo,
        primary_slot_name: &slot,
        synchronous_standby_names: &settings.sync_names,
    };
    templates::render(Template::PostgresqlConf, &context)
        .map_err(|source| Error::Render { file: "postgresql.conf", source })
}

fn agent_conf(
    config: &Config,
    machine: &Machine,
    effective: &Effective,
    (primary_conninfo, primary_slot_name, synchronous_standby_names): (&str, &str, &str),
) -> Result<String, Error> {
    let base = machine.custom_conf.clone().unwrap_or_else(|| machine.config_dir.join(BASE));
    let hba = machine.config_dir.join("pg_hba.conf");
    let ident = machine.config_dir.join("pg_ident.conf");
    // A package keeps them elsewhere, perhaps: they are named only when they are ours.
    let context = AgentConf {
        base: &base,
        hba_file: pg_hba(config, effective, Door::Open)?.map(|_ours| hba.as_path()),
        ident_file: (!effective.ident.is_empty()).then_some(ident.as_path()),
        listen_addresses: &config.listen,
        port: config.port,
        cluster_name: &machine.cluster_name,
        parameters: &effective.parameters,
        shared: &effective.shared,
        primary_conninfo,
        primary_slot_name,
        synchronous_standby_names,
    };
    templates::render(Template::AgentConf, &context)
        .map_err(|source| Error::Render { file: "postgresql.conf", source })
}

/// The text of pg_hba.conf; none when nobody asks for any rules, and the server's own file stays as it is.
pub(super) fn pg_hba(config: &Config, effective: &Effective, door: Door) -> Result<Option<String>, Error> {
    if let Premises::Machine(_) = config.premises {
        let (Access::Node(lines) | Access::Cluster(lines)) = &effective.hba;
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        return Ok((!lines.is_empty()).then(|| format!("{HBA_HEADER}{text}")));
    }
    let (extra, cluster) = match &effective.hba {
        Access::Node(lines) => (lines.as_slice(), None),
        Access::Cluster(lines) => (&[][..], Some(lines.as_slice())),
    };
    let context = PgHba {
        extra,
        cluster,
        superuser: &config.superuser,
        replication_user: &config.replication_user,
        clients: match (door, config.tls_required) {
            (Door::Closed, _) => Clients::None,
            (Door::Open, ClientTls::Offered) => Clients::TlsOffered,
            (Door::Open, ClientTls::Required) => Clients::TlsRequired,
        },
    };
    templates::render(Template::PgHba, &context)
        .map(Some)
        .map_err(|source| Error::Render { file: "pg_hba.conf", source })
}

/// Begins a pg_hba.conf in agent mode.
const HBA_HEADER: &str = "# Written by pgherd's agent at each start and change: the lines of its file, or of the dynamic configuration.\n";

/// Begins a pg_ident.conf that we wrote.
const IDENT_HEADER: &str = "# system user name map, written by pgherd\n";

/// What the cluster asks for, else what is there. A copy of a server that keeps its configuration elsewhere brings no
/// pg_ident.conf, and a missing one is an error.
fn write_ident(config: &Config, effective: &Effective) -> Result<bool, Error> {
    let lines = &effective.ident;
    let path = config.config_dir().join("pg_ident.conf");
    let ours = |text: String| text.starts_with(IDENT_HEADER);
    let foreign = path.exists() && !std::fs::read_to_string(&path).is_ok_and(ours);
    if lines.is_empty() && foreign {
        return Ok(false);
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    write(config, &path, &format!("{IDENT_HEADER}{text}"))
}

/// What ALTER SYSTEM has set of the cluster's own settings must not win over postgresql.conf, and what the server refuses
/// must not keep it from starting.
pub(super) fn clean_auto_conf(config: &Config, refused: &[String]) -> Result<bool, Error> {
    let path = config.data_dir.join("postgresql.auto.conf");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let kept = without_owned_settings(&text, refused, config.owner());
            if kept == text { Ok(false) } else { write(config, &path, &kept) }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::file("read", &path)(error)),
    }
}

fn without_owned_settings(text: &str, refused: &[String], owner: settings::Owner) -> String {
    let owned = |line: &&str| {
        let name = line.split(['=', ' ', '\t']).find(|w| !w.is_empty()).unwrap_or("").to_lowercase();
        let name = name.trim();
        settings::is_fixed(name, owner) || refused.iter().any(|refused| refused == name)
    };
    text.split_inclusive('\n').filter(|line| !owned(line)).collect()
}

/// Where libpq finds the passwords.
pub(super) fn passfile(config: &Config) -> Utf8PathBuf {
    match &config.premises {
        Premises::Container => config.run_dir.join("pgpass"),
        Premises::Machine(machine) => machine.passfile.clone(),
    }
}

/// Writes them, towards every host: the replication role's, and where pg_rewind connects as another, that one's.
pub(super) fn write_passfile(config: &Config) -> Result<(), Error> {
    let mut lines = pgpass_line(&config.replication_user, config.replication_password.expose_secret());
    if let Premises::Machine(machine) = &config.premises {
        lines.push_str(&pgpass_line(&machine.rewind.user, machine.rewind.password.expose_secret()));
    }
    write(config, &passfile(config), &lines).map(|_changed| ())
}

/// Clients wait for this file when the door is opened, and the start of a primary that has crashed does when it is closed. In a
/// container nobody starts the server but us, and every start compares it first.
fn write_rules(config: &Config, text: &str) -> Result<bool, Error> {
    let path = config.config_dir().join("pg_hba.conf");
    match config.premises {
        Premises::Container => process::write_whole(&path, text.as_bytes(), &config.run_as, Mode::Private)
            .map_err(|source| Error::Write { path, source }),
        Premises::Machine(_) => write(config, &path, text),
    }
}

/// Writes a file that only PostgreSQL's account may read.
pub(super) fn write(config: &Config, path: &Utf8Path, text: &str) -> Result<bool, Error> {
    process::write_atomic(path, text.as_bytes(), &config.run_as, Mode::Private)
        .map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// One line of a password file: any host, port and database.
pub(super) fn pgpass_line(user: &str, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    format!("*:*:*:{}:{}\n", escape(user), escape(password))
}

/// What a walreceiver calls itself. In another cluster a member's name would make it one of those that commits wait for there.
fn shown_name(config: &Config, upstream: &Upstream) -> String {
    match upstream.foreign {
        Some(_) => format!("pgherd_standby_{}", config.name),
        None => config.name.as_str().to_owned(),
    }
}

/// The connection string to another node, without any secret. A node of ours is verified by its certificate under the
/// name that does not change with its address; a stock node by whatever it offers.
pub(super) fn conninfo(config: &Config, upstream: &Upstream, application_name: &str) -> String {
    let replication = (config.replication_user.as_str(), &config.premises);
    match replication {
        (user, Premises::Machine(machine)) => {
            machine_conninfo(config, upstream, (user, &machine.replication_options), application_name)
        }
        (user, Premises::Container) => {
            let parts = container_parts(config, upstream);
            joined(parts, config, upstream, (user, application_name))
        }
    }
}

/// The connection string of pg_rewind, which reads files.
pub(super) fn rewind_conninfo(config: &Config, upstream: &Upstream) -> String {
    let to = match &config.premises {
        Premises::Container => conninfo(config, upstream, "pgherd_rewind"),
        Premises::Machine(machine) => {
            let rewind = &machine.rewind;
            machine_conninfo(config, upstream, (&rewind.user, &rewind.options), "pgherd_rewind")
        }
    };
    format!("{to} dbname=postgres")
}

/// Of a role on a machine: what its administrator says of TLS, and no certificates of ours.
fn machine_conninfo(
    config: &Config,
    upstream: &Upstream,
    (user, options): (&str, &BTreeMap<String, String>),
    application_name: &str,
) -> String {
    let mut parts = vec![("host", upstream.address.to_string())];
    if !options.contains_key("sslmode") {
        parts.push(("sslmode", "prefer".to_owned()));
    }
    parts.extend(options.iter().map(|(name, value)| (name.as_str(), value.clone())));
    joined(parts, config, upstream, (user, application_name))
}

fn container_parts(config: &Config, upstream: &Upstream) -> Vec<(&'static str, String)> {
    let address = upstream.address.to_string();
    let file = |name: &str| config.tls_dir.join(name).into_string();
    if upstream.foreign.is_some() && config.foreign_login == ForeignLogin::Certificate {
        return vec![
            ("host", address),
            ("sslmode", "verify-ca".to_owned()),
            ("sslrootcert", file("remote-ca.crt")),
            ("sslcert", file("remote-replicator.crt")),
            ("sslkey", file("remote-replicator.key")),
        ];
    }
    match &upstream.node_id {
        Some(id) => vec![
            ("host", format!("{id}.pgherd.internal")),
            ("hostaddr", address),
            ("sslmode", "verify-full".to_owned()),
            ("sslrootcert", file("service-ca.crt")),
            ("sslcert", file("replicator.crt")),
            ("sslkey", file("replicator.key")),
            ("channel_binding", "require".to_owned()),
        ],
        None => vec![("host", address), ("sslmode", "prefer".to_owned())],
    }
}

/// What is said of every connection to another node, after what is said of this one.
fn joined(
    mut parts: Vec<(&str, String)>,
    config: &Config,
    upstream: &Upstream,
    (user, application_name): (&str, &str),
) -> String {
    if !parts.iter().any(|(name, _)| *name == "gssencmode") {
        parts.push(("gssencmode", "disable".to_owned()));
    }
    parts.extend([
        ("port", upstream.port.to_string()),
        ("user", user.to_owned()),
        ("application_name", application_name.to_owned()),
        ("passfile", passfile(config).into_string()),
        // A dead peer must be noticed long before TCP gives up by itself.
        ("connect_timeout", "3".to_owned()),
        ("keepalives_idle", "5".to_owned()),
        ("keepalives_interval", "2".to_owned()),
        ("keepalives_count", "3".to_owned()),
        ("tcp_user_timeout", "10000".to_owned()),
    ]);
    quoted(&parts)
}

/// A connection string of these parts.
pub(super) fn quoted(parts: &[(&str, String)]) -> String {
    let quoted: Vec<_> =
        parts.iter().map(|(key, value)| format!("{key}={}", conninfo_value(value))).collect();
    quoted.join(" ")
}

/// A value of a connection string, quoted only when it must be.
fn conninfo_value(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

/// One value of a connection string; `None` when the key is absent.
pub(super) fn value_of(conninfo: &str, wanted: &str) -> Option<String> {
    let mut rest = conninfo.trim_start();
    while let Some((key, tail)) = rest.split_once('=') {
        let (value, after) = take_value(tail.trim_start());
        if key.trim() == wanted {
            return Some(value);
        }
        rest = after.trim_start();
    }
    None
}

/// The value at the start of `text` (quoted or not), and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let (quoted, body) = text.strip_prefix('\'').map_or((false, text), |body| (true, body));
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return (value, body.get(at + 1..).unwrap_or("")),
            c if c.is_whitespace() && !quoted => return (value, body.get(at..).unwrap_or("")),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_conninfo_value_survives(first in ".*", second in ".*") {
            let text = format!("a={} b={}", conninfo_value(&first), conninfo_value(&second));
            prop_assert_eq!(value_of(&text, "a"), Some(first));
            prop_assert_eq!(value_of(&text, "b"), Some(second));
            prop_assert_eq!(value_of(&text, "c"), None);
        }

        #[test]
        fn a_pgpass_line_has_five_fields(user in "[^\n]*", password in "[^\n]*") {
            // libpq's rule: a field ends at an unescaped colon; a backslash protects the next character.
            let line = pgpass_line(&user, &password);
            let mut fields = vec![String::new()];
            let mut chars = line.trim_end_matches('\n').chars();
            while let Some(c) = chars.next() {
                match c {
                    ':' => fields.push(String::new()),
                    '\\' => fields.last_mut().unwrap().extend(chars.next()),
                    c => fields.last_mut().unwrap().push(c),
                }
            }
            let any = "*".to_owned();
            prop_assert_eq!(fields, vec![any.clone(), any.clone(), any, user, password]);
        }
    }

    #[test]
    fn settings_that_the_cluster_owns_leave_auto_conf() {
        let text = "# Do not edit\nwork_mem = '8MB'\nPrimary_conninfo = 'host=evil'\n  port=1\nport_x = 2\nmax_connections=5\n";
        let kept = |refused: &[String]| without_owned_settings(text, refused, settings::Owner::Pgherd);
        assert_eq!(kept(&[]), "# Do not edit\nwork_mem = '8MB'\nport_x = 2\n");
        assert_eq!(kept(&["work_mem".to_owned()]), "# Do not edit\nport_x = 2\n");
    }
}
