//! SQL: one connection over the Unix socket that stays open, and every statement of ours.
//!
//! Every session pins `search_path`, never waits for standbys itself, and keeps its statements out of the server's
//! log. A connection that has failed or timed out is dropped; the next call opens another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::ExposeSecret;
use serde::{Deserialize, Deserializer};
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};
use tracing::debug;

use super::slots::{Horizon, Slot, SlotKind, SlotWal};
use super::status::{Answer, Kind, PendingSetting, Standby};
use super::{Config, Error, Local, Shared, conf, lock, settings};
use crate::dcs::ReplicationState;
use crate::types::{Lsn, NodeName, SlotName, Timeline};

/// A local connection takes milliseconds, SCRAM included.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Every short statement of ours; the server cancels it after this long even when we are gone.
pub(super) const STATEMENT_LIMIT: Duration = Duration::from_secs(3);
/// How often a state that is about to change is looked at.
const POLL: Duration = Duration::from_millis(10);
/// A reload needs two signals and a file of a few kilobytes.
const RELOAD_LIMIT: Duration = Duration::from_secs(2);
/// A walreceiver ends at its next interrupt; what it received is replayed in the same time or the vote must do without.
const FREEZE_LIMIT: Duration = Duration::from_secs(1);

/// One open connection. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    observe: Statement,
    /// Drives the connection; ends with the session.
    _driver: JoinSet<()>,
}

/// The one connection that is kept, if it is open.
#[derive(Debug, Default)]
pub(super) struct Link(Mutex<Option<Arc<Session>>>);

impl Link {
    /// Closes it; the next statement opens another.
    pub(super) fn close(&self) {
        *lock(&self.0) = None;
    }

    async fn session(&self, config: &Config) -> Result<Arc<Session>, Error> {
        let open = lock(&self.0).clone().filter(|session| !session.client.is_closed());
        if let Some(session) = open {
            return Ok(session);
        }
        let session = Arc::new(Session::open(config, STATEMENT_LIMIT).await?);
        *lock(&self.0) = Some(Arc::clone(&session));
        Ok(session)
    }
}

impl Session {
    /// Opens a session whose statements may each take `limit`; zero is none.
    pub(super) async fn open(config: &Config, limit: Duration) -> Result<Self, Error> {
        Self::open_in(config, "postgres", limit).await
    }

    /// The same in another database.
    pub(super) async fn open_in(config: &Config, database: &str, limit: Duration) -> Result<Self, Error> {
        let connect = async {
            let (client, connection) = parameters(config, limit).dbname(database).connect(NoTls).await?;
            let mut driver = JoinSet::new();
            driver.spawn(async move {
                if let Err(error) = connection.await {
                    debug!(%error, "the local connection ended");
                }
            });
            let observe = client.prepare(OBSERVE).await?;
            Ok(Self { client, observe, _driver: driver })
        };
        let too_slow = Error::TimedOut { what: "connect", after: CONNECT_LIMIT };
        let opened = tokio::time::timeout(CONNECT_LIMIT, connect).await.map_err(|_elapsed| too_slow)?;
        opened.map_err(|source| Error::Connect { source })
    }

    /// Runs one statement and returns its rows.
    pub(super) async fn query(
        &self,
        what: &'static str,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.client.query(sql, values).await.map_err(|source| Error::Sql { what, source })
    }

    /// Runs statements that take no parameters (and may not run inside a transaction).
    pub(super) async fn execute(&self, what: &'static str, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(|source| Error::Sql { what, source })
    }

    /// Asks the server to end the statement that runs in this session, if one does.
    pub(super) async fn cancel(&self) {
        let asked = self.client.cancel_token();
        let asked = tokio::time::timeout(CONNECT_LIMIT, asked.cancel_query(NoTls)).await;
        if !matches!(asked, Ok(Ok(()))) {
            debug!(?asked, "a statement could not be cancelled");
        }
    }

    /// One value of one row.
    pub(super) async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        what: &'static str,
        sql: &str,
    ) -> Result<T, Error> {
        let row = self.client.query_one(sql, &[]).await;
        row.and_then(|row| row.try_get(0)).map_err(|source| Error::Sql { what, source })
    }
}

pub(super) fn parameters(config: &Config, limit: Duration) -> tokio_postgres::Config {
    let settings = [
        "search_path=pg_catalog,pg_temp".to_owned(),
        format!("statement_timeout={}", limit.as_millis()),
        format!("lock_timeout={}", limit.as_millis()),
        // Our own commits must never wait for a standby: they are what repairs a missing one.
        "synchronous_commit=local".to_owned(),
        "default_transaction_isolation=read\\ committed".to_owned(),
        "default_transaction_read_only=off".to_owned(),
        // Statements may carry password verifiers.
        "log_statement=none".to_owned(),
        "log_min_duration_statement=-1".to_owned(),
        "log_min_error_statement=panic".to_owned(),
        "jit=off".to_owned(),
    ];
    let options: Vec<_> = settings.iter().map(|s| format!("-c {s}")).collect();
    let mut parameters = tokio_postgres::Config::new();
    match config.local() {
        Local::Socket(dir) => drop(parameters.host_path(&dir)),
        Local::Tcp(host) => drop(parameters.host(&host)),
    }
    if !config.superuser_password.expose_secret().is_empty() {
        parameters.password(config.superuser_password.expose_secret());
    }
    parameters
        .port(config.port)
        .user(&config.superuser)
        .dbname("postgres")
        .application_name("pgherd")
        .connect_timeout(CONNECT_LIMIT)
        .options(options.join(" "));
    parameters
}

/// Why the server did not answer, in its own words where it has some.
pub(super) fn in_words(error: &Error) -> String {
    let source = std::error::Error::source(error).and_then(|s| s.downcast_ref::<tokio_postgres::Error>());
    match source.map(|e| (e.as_db_error(), std::error::Error::source(e))) {
        Some((Some(said), _)) => said.message().to_owned(),
        Some((None, Some(cause))) => format!("{error}: {cause}"),
        Some((None, None)) | None => error.to_string(),
    }
}

/// Does `work` with the kept connection, and drops the connection when it fails: an error of SQL leaves it usable, but
/// a new one costs little and a broken one would cost every later call.
pub(super) async fn with_session<T, F>(
    shared: &Shared,
    limit: Duration,
    what: &'static str,
    work: impl FnOnce(Arc<Session>) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let done = async { work(shared.link.session(&shared.config).await?).await };
    let result = tokio::time::timeout(limit, done).await;
    let result = result.unwrap_or(Err(Error::TimedOut { what, after: limit }));
    if result.is_err() {
        shared.link.close();
    }
    result
}

/// Asks a query for a yes until it says so.
async fn wait_until(
    shared: &Shared,
    limit: Duration,
    what: &'static str,
    sql: &'static str,
) -> Result<(), Error> {
    with_session(shared, limit, what, async |session: Arc<Session>| {
        while !session.value::<bool>(what, sql).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    })
    .await
}

/// Everything in one round trip, as one JSON document. Works on 14 to 18.
const OBSERVE: &str = r"
SELECT json_build_object(
  'server_version', current_setting('server_version_num')::int,
  'started_at_micros', (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
  'loaded_at_micros', (extract(epoch FROM pg_conf_load_time()) * 1000000)::bigint,
  'timeline', CASE WHEN r.recovering
    THEN (SELECT greatest(w.received_tli, c.min_recovery_end_timeline, k.timeline_id)
            FROM pg_control_recovery() c, pg_control_checkpoint() k LEFT JOIN pg_stat_wal_receiver w ON true)
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::bigint END,
  'primary_lsn', CASE WHEN r.recovering THEN NULL ELSE pg_current_wal_flush_lsn() END,
  'received', pg_last_wal_receive_lsn(),
  'replayed', pg_last_wal_replay_lsn(),
  'replayed_at_micros', (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint,
  'replay_paused', CASE WHEN r.recovering THEN pg_is_wal_replay_paused() ELSE false END,
  'receiver', (SELECT status FROM pg_stat_wal_receiver),
  'archive', current_setting('restore_command') <> '',
  'conninfo', current_setting('primary_conninfo'),
  'sync_names', current_setting('synchronous_standby_names'),
  'slots', (SELECT json_agg(to_jsonb(s)) FROM pg_replication_slots s WHERE NOT s.temporary),
  'weakened', (SELECT json_agg(concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname))
                 FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
                 LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
                WHERE c ~* '^synchronous_commit=(off|false|no|0|local|remote_write)$'),
  'pending_restart', (SELECT json_agg(json_build_object('name', s.name, 'old_value', current_setting(s.name),
                        'new_value', coalesce((SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name
                                                ORDER BY f.seqno DESC LIMIT 1), s.boot_val, '')) ORDER BY s.name)
                        FROM pg_settings s WHERE s.pending_restart AND s.name <> ALL ($1::text[])),
  'shared', (SELECT json_object_agg(n, current_setting(n)) FROM unnest($1::text[]) n),
  'standbys', (SELECT json_agg(json_build_object('name', application_name, 'user', usename,
                 'client', host(client_addr), 'state', state, 'sync_state', sync_state,
                 'sync_priority', sync_priority, 'sent', sent_lsn, 'flushed', flush_lsn, 'replayed', replay_lsn)
                 ORDER BY application_name, pid)
                 FROM pg_stat_replication)
)::text FROM (SELECT pg_is_in_recovery() AS recovering OFFSET 0) r";

/// Asks for everything.
pub(super) async fn observe(shared: &Shared, patience: Duration) -> Result<Answer, Error> {
    let what = "ask for the status";
    let text = with_session(shared, patience, what, async |session: Arc<Session>| {
        let shared_names = settings::command_line_names();
        let row = session.client.query_one(&session.observe, &[&shared_names]).await;
        row.and_then(|row| row.try_get::<_, String>(0)).map_err(|source| Error::Sql { what, source })
    })
    .await?;
    let mut raw: RawAnswer = serde_json::from_str(&text)
        .map_err(|e| Error::Unparsable { what: "the status", text: e.to_string() })?;
    // The server does not count what stands on its command line.
    let (differences, applied) = {
        let mut configuration = lock(&shared.configuration);
        configuration.prove();
        (configuration.differences(&raw.shared), configuration.commits_are_applied())
    };
    let more =
        differences.into_iter().map(|(name, old_value, new_value)| RawSetting { name, old_value, new_value });
    raw.pending_restart.get_or_insert_default().extend(more);
    let answer = Answer::from(raw);
    Ok(if applied { answer.waiting_for_replay() } else { answer })
}

/// The lines of pg_hba.conf, as it now stands on disk, that the server could not read, and why.
pub(super) async fn unreadable_rules(shared: &Shared) -> Result<Vec<(i32, String)>, Error> {
    let what = "check pg_hba.conf";
    // For some mistakes the server has no words here: the rule then has no type either.
    let sql = "SELECT line_number, coalesce(error, 'PostgreSQL cannot read it') FROM pg_hba_file_rules
                WHERE error IS NOT NULL OR type IS NULL";
    with_session(shared, STATEMENT_LIMIT, what, async |session: Arc<Session>| {
        let rows = session.query(what, sql, &[]).await?;
        let pair = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
        rows.iter().map(pair).collect::<Result<_, _>>().map_err(|source| Error::Sql { what, source })
    })
    .await
}

/// The document of [`OBSERVE`].
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, named as PostgreSQL names them")]
struct RawAnswer {
    server_version: u32,
    started_at_micros: i64,
    loaded_at_micros: i64,
    timeline: u32,
    #[serde(deserialize_with = "lsn")]
    primary_lsn: Option<Lsn>,
    #[serde(deserialize_with = "lsn")]
    received: Option<Lsn>,
    #[serde(deserialize_with = "lsn")]
    replayed: Option<Lsn>,
    replayed_at_micros: Option<i64>,
    replay_paused: bool,
    receiver: Option<String>,
    archive: bool,
    conninfo: String,
    sync_names: String,
    slots: Option<Vec<RawSlot>>,
    weakened: Option<Vec<String>>,
    pending_restart: Option<Vec<RawSetting>>,
    shared: BTreeMap<String, String>,
    standbys: Option<Vec<RawStandby>>,
}

/// A row of `pg_replication_slots`: the last columns are those of newer versions.
#[derive(Debug, Deserialize)]
struct RawSlot {
    slot_name: SlotName,
    slot_type: String,
    plugin: Option<String>,
    database: Option<String>,
    active: bool,
    xmin: Option<serde_json::Value>,
    catalog_xmin: Option<serde_json::Value>,
    #[serde(deserialize_with = "lsn")]
    restart_lsn: Option<Lsn>,
    #[serde(deserialize_with = "lsn")]
    confirmed_flush_lsn: Option<Lsn>,
    wal_status: Option<String>,
    #[serde(default)]
    failover: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct RawSetting {
    name: String,
    old_value: String,
    new_value: String,
}

#[derive(Debug, Deserialize)]
struct RawStandby {
    name: Option<String>,
    user: Option<String>,
    client: Option<String>,
    state: Option<String>,
    sync_state: Option<String>,
    sync_priority: Option<i32>,
    #[serde(deserialize_with = "lsn")]
    sent: Option<Lsn>,
    #[serde(deserialize_with = "lsn")]
    flushed: Option<Lsn>,
    #[serde(deserialize_with = "lsn")]
    replayed: Option<Lsn>,
}

/// PostgreSQL's text of a position: this is the line where it becomes a number.
fn lsn<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Lsn>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|t| t.parse()).transpose().map_err(serde::de::Error::custom)
}

impl From<RawAnswer> for Answer {
    fn from(mut raw: RawAnswer) -> Self {
        let pending = raw.pending_restart.take();
        Self {
            server_version: raw.server_version,
            started_at_micros: raw.started_at_micros,
            loaded_at_micros: raw.loaded_at_micros,
            timeline: Timeline(raw.timeline),
            sync_names: raw.sync_names.clone(),
            slots: raw.slots.take().into_iter().flatten().map(Slot::from).collect(),
            weakened: raw.weakened.take().unwrap_or_default(),
            pending_restart: pending.into_iter().flatten().map(PendingSetting::from).collect(),
            kind: raw.kind(),
        }
    }
}

impl RawAnswer {
    fn kind(self) -> Kind {
        let replication = match self.receiver.as_deref() {
            Some("streaming") => Some(ReplicationState::Streaming),
            Some(_) | None => self.archive.then_some(ReplicationState::InArchiveRecovery),
        };
        match self.primary_lsn {
            Some(lsn) => Kind::Primary {
                lsn,
                standbys: self.standbys.into_iter().flatten().map(Standby::from).collect(),
            },
            None => Kind::Standby {
                received: self.received.unwrap_or_default(),
                replayed: self.replayed.unwrap_or_default(),
                replayed_at_micros: self.replayed_at_micros,
                replay_paused: self.replay_paused,
                replication,
                upstream_host: conf::value_of(&self.conninfo, "host"),
            },
        }
    }
}

impl Answer {
    /// The same where commits wait until they are visible.
    fn waiting_for_replay(mut self) -> Self {
        if let Kind::Primary { standbys, .. } = &mut self.kind {
            for standby in standbys {
                standby.confirmed = standby.replayed;
            }
        }
        self
    }
}

impl From<RawSetting> for PendingSetting {
    fn from(raw: RawSetting) -> Self {
        Self { name: raw.name, old_value: raw.old_value, new_value: raw.new_value }
    }
}

impl From<RawSlot> for Slot {
    fn from(raw: RawSlot) -> Self {
        let kind = match raw.slot_type.as_str() {
            "physical" => SlotKind::Physical,
            _ => SlotKind::Logical {
                database: raw.database.unwrap_or_default(),
                plugin: raw.plugin.unwrap_or_default(),
            },
        };
        // A logical slot always holds the catalogues.
        let catalogues = raw.catalog_xmin.is_some() && kind == SlotKind::Physical;
        Self {
            name: raw.slot_name,
            kind,
            active: raw.active,
            restart_lsn: raw.restart_lsn,
            confirmed: raw.confirmed_flush_lsn,
            wal: if raw.wal_status.as_deref() == Some("lost") { SlotWal::Lost } else { SlotWal::Kept },
            horizon: if raw.xmin.is_some() || catalogues { Horizon::Held } else { Horizon::Free },
            synchronised: raw.failover.unwrap_or_default(),
        }
    }
}

impl From<RawStandby> for Standby {
    fn from(raw: RawStandby) -> Self {
        Self {
            name: NodeName(raw.name.unwrap_or_default()),
            user: raw.user.unwrap_or_default(),
            client: raw.client,
            state: raw.state.unwrap_or_default(),
            sync_state: raw.sync_state.unwrap_or_default(),
            sync_priority: raw.sync_priority.unwrap_or_default(),
            sent: raw.sent,
            flushed: raw.flushed,
            replayed: raw.replayed,
            confirmed: raw.flushed,
        }
    }
}

/// Asks for promotion and waits until the server takes writes.
pub(super) async fn promote(shared: &Shared, patience: Duration) -> Result<(), Error> {
    let what = "promote";
    with_session(shared, patience, what, async |session: Arc<Session>| {
        let in_recovery = "SELECT pg_is_in_recovery()";
        if !session.value::<bool>(what, in_recovery).await? {
            return Ok(());
        }
        // Once: asked again when recovery has just ended, it is an error.
        session.value::<bool>(what, "SELECT pg_promote(false)").await?;
        while session.value::<bool>(what, in_recovery).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    })
    .await
}

/// A checkpoint on its own connection.
pub(super) async fn checkpoint(shared: &Shared, patience: Duration) -> Result<(), Error> {
    let what = "checkpoint";
    let session = Session::open(&shared.config, patience).await?;
    let done = session.execute(what, "CHECKPOINT");
    tokio::time::timeout(patience, done).await.unwrap_or(Err(Error::TimedOut { what, after: patience }))
}

/// Waits until the position can no longer move: no walreceiver exists (not even one that is connecting). The position is
/// the further of received and replayed, so what was received need not be replayed. A standby that has received nothing
/// since its start knows its position only when it has replayed all of its own WAL: then its startup process waits for more.
pub(super) async fn wait_until_frozen(shared: &Shared) -> Result<(), Error> {
    let sql = "SELECT current_setting('primary_conninfo') = ''
                  AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')
                  AND (pg_last_wal_receive_lsn() IS NOT NULL
                       OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
                                     AND wait_event = 'RecoveryRetrieveRetryInterval'))";
    wait_until(shared, FREEZE_LIMIT, "stop the walreceiver", sql).await
}

/// Waits until a session sees the new `synchronous_standby_names`.
pub(super) async fn wait_for_sync_names(shared: &Shared, names: &str) -> Result<(), Error> {
    let what = "set synchronous_standby_names";
    with_session(shared, RELOAD_LIMIT, what, async |session: Arc<Session>| {
        while session.value::<String>(what, "SHOW synchronous_standby_names").await? != names {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    })
    .await
}
