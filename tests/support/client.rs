//! What clients of a cluster use: SQL and etcd's member list.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A frozen or fenced server answers nothing at all.
const ANSWER: Duration = Duration::from_secs(2);

/// One server, and who asks.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    /// Where that is, when `host` is a name which only the certificate knows.
    pub(crate) at: Option<std::net::IpAddr>,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) database: String,
    /// The CA to verify the server with; without one there is no TLS.
    pub(crate) ca: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no answer within {ANSWER:?}")]
    Silent,
    #[error("cannot read the CA: {0}")]
    Ca(String),
    #[error("the answer is empty")]
    Empty,
}

/// Opens a connection that lives as long as the client.
pub(crate) async fn connect(target: &Target) -> Result<Client, Error> {
    timeout(ANSWER, open(target)).await.map_err(|_elapsed| Error::Silent)?
}

async fn open(target: &Target) -> Result<Client, Error> {
    let mut config = Config::new();
    config
        .host(&target.host)
        .port(target.port)
        .user(&target.user)
        .password(&target.password)
        .dbname(&target.database);
    if let Some(address) = target.at {
        config.hostaddr(address);
    }
    let Some(ca) = &target.ca else {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        return Ok(client);
    };
    config.ssl_mode(tokio_postgres::config::SslMode::Require);
    let (client, connection) = config.connect(MakeRustlsConnect::new(verify_with(ca)?)).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn verify_with(ca: &Path) -> Result<rustls::ClientConfig, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::Ca(format!("{}: {error}", ca.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| wrong(&error))? {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    Ok(rustls::ClientConfig::builder().with_root_certificates(Arc::new(roots)).with_no_client_auth())
}

/// The first column of the first row as text.
pub(crate) async fn ask(target: &Target, query: &str) -> Result<String, Error> {
    let client = connect(target).await?;
    let rows = timeout(ANSWER, client.simple_query(query)).await.map_err(|_elapsed| Error::Silent)??;
    let first = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    first.ok_or(Error::Empty)
}

/// Who votes in etcd, by peer address; `None` when this node's etcd does not answer.
pub(crate) async fn etcd_voters(host: &str, tls_dir: &Path) -> Option<BTreeSet<String>> {
    let answer = timeout(ANSWER, etcd(host, tls_dir).await?.member_list()).await.ok()?.ok()?;
    let voters = answer.members().iter().filter(|member| !member.is_learner());
    Some(voters.flat_map(|member| member.peer_urls().iter().filter_map(|url| host_of(url))).collect())
}

/// Makes the etcd of `host` raft's leader; `None` when that does not work at once.
pub(crate) async fn etcd_lead(host: &str, tls_dir: &Path) -> Option<()> {
    let mut own = etcd(host, tls_dir).await?;
    let answer = timeout(ANSWER, own.member_list()).await.ok()?.ok()?;
    let leader = timeout(ANSWER, own.status()).await.ok()?.ok()?.leader();
    let of = |id: u64| {
        answer.members().iter().find(|m| m.id() == id)?.peer_urls().first().and_then(|url| host_of(url))
    };
    let is_ours =
        |m: &&etcd_client::Member| m.peer_urls().iter().filter_map(|url| host_of(url)).any(|h| h == host);
    let me = answer.members().iter().find(is_ours)?.id();
    if leader != me {
        let mut at_leader = etcd(&of(leader)?, tls_dir).await?;
        timeout(ANSWER, at_leader.move_leader(me)).await.ok()?.ok()?;
    }
    Some(())
}

/// Writes a key; `None` when this node's etcd does not answer.
pub(crate) async fn etcd_put(host: &str, tls_dir: &Path, (key, value): (&str, &str)) -> Option<()> {
    let mut client = etcd(host, tls_dir).await?;
    timeout(ANSWER, client.put(key, value, None)).await.ok()?.ok().map(|_put| ())
}

/// How many keys begin with this; `None` when this node's etcd does not answer.
pub(crate) async fn etcd_count(host: &str, tls_dir: &Path, prefix: &str) -> Option<i64> {
    let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
    let mut client = etcd(host, tls_dir).await?;
    Some(timeout(ANSWER, client.get(prefix, Some(options))).await.ok()?.ok()?.count())
}

fn host_of(url: &str) -> Option<String> {
    url.trim_start_matches("https://").split(':').next().map(str::to_owned)
}

async fn etcd(host: &str, tls_dir: &Path) -> Option<etcd_client::Client> {
    let pem = |name: &str| std::fs::read(tls_dir.join(name)).ok();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(pem("internal-ca.crt")?))
        .identity(Identity::from_pem(pem("etcd-client.crt")?, pem("etcd-client.key")?));
    let options = ConnectOptions::new().with_tls(tls).with_timeout(ANSWER).with_connect_timeout(ANSWER);
    etcd_client::Client::connect([format!("https://{host}:2379")], Some(options)).await.ok()
}
