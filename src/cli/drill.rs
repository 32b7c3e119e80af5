//! `pgherd drill failover`: what a change of primary costs on this very cluster, measured by a client.
//!
//! A writer commits a row every few milliseconds, always to whichever member takes writes, while the cluster is asked over REST to
//! move to another primary. Then it is counted: how long no commit was confirmed, and whether every confirmed one is
//! still there. The drill works in a schema of its own, which it removes. What is absent: any harm: the hand-over is the orderly
//! one, as a person would ask for it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::ctl::client::{Answer, Cluster, Errand};
use super::ctl::{Json, say};
use super::{Api, Printed};
use crate::clock::{self, Moment};
use crate::config::Config;
use crate::postgres::ClientTls;

/// One row so often: the resolution of what is measured.
const PERIOD: Duration = Duration::from_millis(5);
/// A commit or a connection that takes longer counts as refused.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it is written before and after.
const AROUND: Duration = Duration::from_secs(2);
/// Longer than any lease: nobody will lead any more by itself.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two looks at who leads.
const LOOK: Duration = Duration::from_millis(50);

/// What is tried.
#[derive(Debug, clap::Subcommand)]
pub enum Drill {
    /// Move the primary to another member while a client writes, and report what the client saw
    Failover(Args),
}

/// How the failover is asked for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// Who shall lead; without it the member that is best placed
    #[arg(long, value_name = "MEMBER")]
    pub candidate: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
}

/// Runs the drill and prints its report.
///
/// # Errors
/// The cluster is not whole, refuses, or is not writable afterwards; or a confirmed write is gone.
pub async fn failover(args: &Args, config: &Config) -> anyhow::Result<Printed> {
    let cluster = Cluster::new(&args.api, Some(config), Errand::Act)?;
    let before = Members::read(&cluster.get("/cluster").await?)?;
    let candidate = before.candidate(args.candidate.as_deref())?;
    let database = Database::new(config, own(args, config).into_iter().chain(before.addresses()))?;
    let (stop, stopped) = watch::channel(Writing::GoesOn);
    let (written, moved) = tokio::join!(write(&database, stopped), async {
        let moved = hand_over(&cluster, &before, &candidate).await;
        tokio::time::sleep(AROUND).await;
        stop.send_replace(Writing::Ends);
        moved
    });
    let (moved, written) = (moved?, written?);
    let lost = database.missing(&written).await?;
    let told = report(&before.leader, &moved, &written, &lost);
    let (words, value) = (told.words(), told.value());
    ensure!(lost.is_empty(), "{words}");
    say(args.json, &words, &value)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    GoesOn,
    Ends,
}

/// `/cluster` as far as the drill needs it.
#[derive(Debug)]
struct Members {
    leader: String,
    /// Name, lag and address of everybody.
    all: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    role: String,
    state: String,
    lag: u64,
    address: SocketAddr,
}

impl Members {
    fn read(page: &Value) -> anyhow::Result<Self> {
        let rows = page["members"].as_array().context("the API shows no members")?;
        let all: Vec<Member> = rows.iter().filter_map(member).collect();
        let leader =
            all.iter().find(|m| m.role == "leader").context("nobody leads: there is nothing to move")?;
        Ok(Self { leader: leader.name.clone(), all })
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.all.iter().map(|member| member.address)
    }

    /// The one that was asked for, or the streaming replica that is least behind.
    fn candidate(&self, wanted: Option<&str>) -> anyhow::Result<String> {
        let replicas = self.all.iter().filter(|m| m.role != "leader" && m.state == "streaming");
        let fits = |member: &&Member| wanted.is_none_or(|name| name == member.name);
        let best = replicas.filter(fits).min_by_key(|m| (m.role == "replica", m.lag));
        match (best, wanted) {
            (Some(member), _) => Ok(member.name.clone()),
            (None, Some(name)) => bail!("{name} is no replica that streams"),
            (None, None) => bail!("no replica streams: nobody could take over"),
        }
    }
}

/// This node's own server, from here: it cannot count on reaching itself by the address that others use. Another cluster's API
/// has nothing to do with it.
fn own(args: &Args, config: &Config) -> Option<SocketAddr> {
    args.api.url.is_none().then(|| SocketAddr::new(config.local_address(), config.bound.postgres))
}

fn member(row: &Value) -> Option<Member> {
    let port = row["port"].as_u64().and_then(|port| u16::try_from(port).ok())?;
    let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Some(Member {
        name: word("name"),
        role: word("role"),
        state: word("state"),
        lag: row["lag"].as_u64().unwrap_or(u64::MAX),
        address: SocketAddr::new(word("host").parse().ok()?, port),
    })
}

/// What became of the hand-over.
struct Moved {
    leader: String,
    took: Duration,
}

/// Writes for a while, asks, and waits until the other one leads.
async fn hand_over(cluster: &Cluster, before: &Members, candidate: &str) -> anyhow::Result<Moved> {
    tokio::time::sleep(AROUND).await;
    let asked_at = clock::now();
    let body = json!({ "leader": before.leader, "candidate": candidate });
    // The answer comes when it is over, or not at all when this node was the old primary: the table tells.
    let asked = timeout(LONGEST, cluster.call(None, (Method::POST, "/failover"), Some(&body)));
    let led = async {
        loop {
            let page = cluster.get("/cluster").await.ok().and_then(|page| Members::read(&page).ok());
            if page.is_some_and(|page| page.leader == candidate) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::pin!(led);
    tokio::select! {
        answer = asked => refusal(answer.context("no answer to the request")?)?,
        () = &mut led => return Ok(Moved { leader: candidate.to_owned(), took: clock::now().since(asked_at) }),
    }
    timeout(LONGEST, led).await.with_context(|| format!("{candidate} does not lead after {LONGEST:?}"))?;
    Ok(Moved { leader: candidate.to_owned(), took: clock::now().since(asked_at) })
}

fn refusal(answer: anyhow::Result<Answer>) -> anyhow::Result<()> {
    match answer {
        Ok(answer) if !answer.is_success() => {
            bail!("the cluster refuses ({}): {}", answer.code, answer.text)
        }
        // A connection that broke is no refusal.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// How to reach any member that takes writes.
struct Database {
    settings: tokio_postgres::Config,
    tls: Option<MakeRustlsConnect>,
}

impl Database {
    fn new(config: &Config, places: impl Iterator<Item = SocketAddr>) -> anyhow::Result<Self> {
        let mut settings = tokio_postgres::Config::new();
        for place in places {
            settings.host(place.ip().to_string()).port(place.port());
        }
        settings
            .user(&config.database.superuser)
            .password(config.database.superuser_password.expose_secret())
            .dbname(&config.database.name)
            .application_name("pgherd drill")
            .connect_timeout(PATIENCE)
            .target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
        let tls = match config.tls.clients {
            ClientTls::Offered => None,
            ClientTls::Required => {
                settings.ssl_mode(tokio_postgres::config::SslMode::Require);
                Some(verifier(config)?)
            }
        };
        Ok(Self { settings, tls })
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let late = || format!("no member takes writes within {PATIENCE:?}");
        timeout(PATIENCE, self.open()).await.with_context(late)?.context("could not connect")
    }

    async fn open(&self) -> Result<Client, tokio_postgres::Error> {
        let Some(tls) = &self.tls else {
            let (client, connection) = self.settings.connect(NoTls).await?;
            drive(connection);
            return Ok(client);
        };
        let (client, connection) = self.settings.connect(tls.clone()).await?;
        drive(connection);
        Ok(client)
    }

    /// Which of these rows are gone; the schema goes with them.
    async fn missing(&self, written: &Written) -> anyhow::Result<BTreeSet<i64>> {
        let client = self.connect().await?;
        let rows = client.query("SELECT id FROM pgherd_drill.writes", &[]).await?;
        let kept: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let missing = written.confirmed.iter().map(|(id, _)| *id).filter(|id| !kept.contains(id)).collect();
        client.batch_execute("DROP SCHEMA pgherd_drill CASCADE").await?;
        Ok(missing)
    }
}

/// The connection's task ends with the client that it belongs to.
#[expect(
    clippy::disallowed_methods,
    reason = "a command of a few seconds, and the task ends with its client"
)]
fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static) {
    tokio::spawn(async move {
        // Whoever uses the client gets the error too.
        drop(connection.await);
    });
}

/// The service CA, as every node of the cluster writes it.
fn verifier(config: &Config) -> anyhow::Result<MakeRustlsConnect> {
    let path = config.tls_dir().join("service-ca.crt");
    let mut roots = rustls::RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(&path).with_context(|| format!("could not read {path}"))?
    {
        roots.add(certificate.with_context(|| format!("could not read {path}"))?)?;
    }
    let tls = rustls::ClientConfig::builder().with_root_certificates(Arc::new(roots)).with_no_client_auth();
    Ok(MakeRustlsConnect::new(tls))
}

/// What was confirmed, and when.
struct Written {
    confirmed: Vec<(i64, Moment)>,
}

impl Written {
    /// The longest time without a confirmation.
    fn outage(&self) -> Duration {
        let pairs = self.confirmed.iter().zip(self.confirmed.iter().skip(1));
        pairs.map(|((_, one), (_, next))| next.since(*one)).max().unwrap_or(Duration::MAX)
    }
}

async fn write(database: &Database, stopped: watch::Receiver<Writing>) -> anyhow::Result<Written> {
    let prepare = "CREATE SCHEMA IF NOT EXISTS pgherd_drill;
                   DROP TABLE IF EXISTS pgherd_drill.writes;
                   CREATE TABLE pgherd_drill.writes (id bigint PRIMARY KEY)";
    let first = database.connect().await?;
    first.batch_execute(prepare).await.context("could not make the drill's table")?;
    let (mut connection, mut confirmed) = (Some(first), Vec::new());
    for id in 0_i64.. {
        if *stopped.borrow() == Writing::Ends {
            break;
        }
        if connection.is_none() {
            connection = database.connect().await.ok();
        }
        if let Some(client) = &connection {
            match timeout(PATIENCE, insert(client, id)).await {
                Ok(Ok(_)) => confirmed.push((id, clock::now())),
                Ok(Err(_)) | Err(_) => connection = None,
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
    Ok(Written { confirmed })
}

async fn insert(client: &Client, id: i64) -> Result<u64, tokio_postgres::Error> {
    client.execute("INSERT INTO pgherd_drill.writes VALUES ($1)", &[&id]).await
}

/// What came of it.
struct Report<'a> {
    old: &'a str,
    new: &'a str,
    led_after: Duration,
    outage: Duration,
    n_confirmed: usize,
    n_lost: usize,
}

fn report<'a>(old: &'a str, moved: &'a Moved, written: &Written, lost: &BTreeSet<i64>) -> Report<'a> {
    Report {
        old,
        new: &moved.leader,
        led_after: moved.took,
        outage: written.outage(),
        n_confirmed: written.confirmed.len(),
        n_lost: lost.len(),
    }
}

impl Report<'_> {
    fn words(&self) -> String {
        let Self { old, new, n_confirmed, n_lost, .. } = self;
        let (took, outage) = (self.led_after.as_millis(), self.outage.as_millis());
        format!(
            "{old} -> {new}: led by {new} after {took} ms\n\
             a client saw {outage} ms without a confirmed write\n\
             {n_confirmed} writes were confirmed, {n_lost} of them are lost"
        )
    }

    fn value(&self) -> Value {
        json!({
            "from": self.old, "to": self.new, "led_after_seconds": self.led_after.as_secs_f64(),
            "outage_seconds": self.outage.as_secs_f64(), "confirmed": self.n_confirmed, "lost": self.n_lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Members {
        let row = |name: &str, role: &str, lag: u64| {
            json!({"name": name, "role": role, "state": if role == "leader" { "running" } else { "streaming" },
                   "lag": lag, "host": "127.0.0.1", "port": 5432})
        };
        let rows = [row("n1", "leader", 0), row("n2", "replica", 0), row("n3", "quorum_standby", 9)];
        Members::read(&json!({ "members": rows })).unwrap()
    }

    #[test]
    fn the_best_placed_replica_is_the_candidate() {
        assert_eq!(
            members().candidate(None).unwrap(),
            "n3",
            "who confirms commits comes before who lags less"
        );
        assert_eq!(members().candidate(Some("n2")).unwrap(), "n2");
        assert!(members().candidate(Some("n1")).is_err());
    }

    #[test]
    fn the_outage_is_the_longest_gap() {
        let at = |millis: u64| Moment(0) + Duration::from_millis(millis);
        let written = Written { confirmed: vec![(0, at(0)), (1, at(5)), (4, at(150)), (5, at(155))] };
        assert_eq!(written.outage(), Duration::from_millis(145));
        let moved = Moved { leader: "n2".to_owned(), took: Duration::from_millis(1500) };
        let lost = BTreeSet::from([4]);
        let told = report("n1", &moved, &written, &lost);
        let expected = json!({
            "from": "n1", "to": "n2", "led_after_seconds": 1.5, "outage_seconds": 0.145, "confirmed": 4, "lost": 1,
        });
        assert_eq!(told.value(), expected);
        assert!(told.words().ends_with("4 writes were confirmed, 1 of them are lost"));
    }
}
