//! Keys and certificates from one passphrase.
//!
//! Every node derives the same two certificate authorities (internal: etcd and node-to-node calls; service:
//! PostgreSQL and the API) and signs leaf certificates with random keys of its own. Invariant: the same secret and
//! application give the same CA keys, names and key ids on every node, in every year; CA keys exist only while
//! certificates are signed and are never written anywhere.
//!
//! Pure: time is an argument, files are returned to whoever writes them. What is absent: revocation (leaves live at
//! most 90 days), and the rotation of the passphrase.

mod authority;
mod derive;
mod leaf;
pub mod machine;
mod pinned;
mod session;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretBox};
use zeroize::Zeroizing;

use crate::types::NodeId;
use authority::{Authority, Domain};
use leaf::{Key, Role};
use session::Served;

/// The role that standbys stream as: the client certificate's name, which PostgreSQL compares.
pub const REPLICATION_ROLE: &str = "replicator";

/// The domain of the names that PostgreSQL certificates carry, so that `verify-full` survives a change of address.
pub const NODE_DOMAIN: &str = "pgherd.internal";

/// How long leaves live at most.
const LEAF_DAYS: u32 = 90;

/// How far a certificate reaches back, for peers whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(7 * DAY);

/// No clock is right that shows an earlier time than this (2026-01-01): this program did not exist.
const EARLIEST: i64 = 1_767_225_600;

const DAY: u64 = 86_400;

/// The stretched secret: everything is derived from it.
#[derive(Debug)]
pub struct Root(SecretBox<[u8; 32]>);

/// Where the root comes from.
pub enum Secret<'a> {
    /// `SSL_PASSPHRASE`.
    Passphrase(&'a [u8]),
    /// No passphrase: the two required passwords.
    Passwords {
        /// `POSTGRES_SUPERUSER_PASSWORD`.
        superuser: &'a [u8],
        /// `POSTGRES_REPLICATION_PASSWORD`.
        replication: &'a [u8],
    },
}

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase",
            Self::Passwords { .. } => "Passwords",
        })
    }
}

impl Root {
    /// Argon2id; takes about 0.15 s of computing and 64 MiB, so call it where blocking is allowed.
    ///
    /// # Errors
    /// A secret of more than 4 GiB.
    pub fn derive(secret: &Secret<'_>, app: &str) -> Result<Self, Error> {
        derive::root(secret, app).map(|root| Self(SecretBox::new(Box::new(*root))))
    }

    /// etcd's `initial-cluster-token` prefix. It shows nothing of the root.
    pub fn token(&self) -> String {
        let token = derive::expand(self.0.expose_secret(), "etcd/token", 0);
        hex(token.get(..16).unwrap_or_default())
    }
}

/// Whom the leaf certificates are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// `APP_NAME`.
    pub app: String,
    /// The node's id: the certificates' common name.
    pub node_id: NodeId,
    /// Own address(es); loopback is added.
    pub addresses: Vec<IpAddr>,
    /// Host names; `localhost` and `<node_id>.pgherd.internal` are added.
    pub names: Vec<String>,
    /// `SSL_CERT_VALIDITY_DAYS` (CA); leaves live `min(90, this)`.
    pub validity_days: u32,
}

/// One PEM file to write.
#[derive(Clone)]
pub struct File {
    /// `etcd-server.crt`, ...
    pub name: &'static str,
    /// Its text.
    pub pem: Zeroizing<String>,
    /// Whether it is a key: mode 0600, and the owner is who uses it.
    pub secret: Secrecy,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("name", &self.name).field("secret", &self.secret).finish_non_exhaustive()
    }
}

/// Whether a file is a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// A certificate.
    Public,
    /// A private key.
    Key,
}

/// What an etcd client in this process shows and trusts, as PEM.
#[derive(Clone)]
pub struct EtcdClient {
    /// The internal CA, or whose certificate etcd shows.
    pub ca: String,
    /// `etcd-client.crt` and `etcd-client.key`; none where etcd asks for no certificate.
    pub identity: Option<Identity>,
}

/// A certificate and its key as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, and the chain behind it.
    pub certificate: String,
    /// Its key.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdClient").finish_non_exhaustive()
    }
}

/// The node's private keys, random, kept for the life of the process (PostgreSQL and etcd read certificate and key as
/// two files: a key that never changes cannot mismatch), and what rustls serves for them at present.
#[derive(Debug)]
pub struct Keys {
    etcd_server: Key,
    etcd_peer: Key,
    etcd_client: Key,
    postgres: Key,
    replicator: Key,
    api_server: Key,
    api_client: Key,
    served_by_api: Arc<Served>,
    shown_to_peers: Arc<Served>,
}

impl Keys {
    /// New random keys.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self {
            etcd_server: Key::random()?,
            etcd_peer: Key::random()?,
            etcd_client: Key::random()?,
            postgres: Key::random()?,
            replicator: Key::random()?,
            api_server: Key::random()?,
            api_client: Key::random()?,
            served_by_api: Arc::default(),
            shown_to_peers: Arc::default(),
        })
    }
}

/// Everything a node needs, in memory.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// internal-ca.crt service-ca.crt etcd-server.{crt,key} etcd-peer.{crt,key} etcd-client.{crt,key}
    /// postgres.{crt,key} replicator.{crt,key}, each key before its certificate.
    pub files: Vec<File>,
    /// For the API port: api-server certificate of the service CA; client certificates are checked against the
    /// internal CA when one is shown (optional at the handshake; a route that needs one asks for it).
    pub api_server: Arc<rustls::ServerConfig>,
    /// For calls to other nodes: shows our api-client certificate (internal CA), accepts servers of the service CA
    /// whatever name or address they carry.
    pub peer_client: Arc<rustls::ClientConfig>,
    /// For the etcd client in this process.
    pub etcd_client: EtcdClient,
    /// CA id for people: 8 hex digits of the internal and the service CA.
    pub ca_ids: (String, String),
    /// When the leaves should be issued anew (2/3 of their life).
    pub renew_after: jiff::Timestamp,
    /// When the first of them ends.
    pub good_until: jiff::Timestamp,
    /// For [`reissue`].
    pub keys: Arc<Keys>,
}

/// Makes rustls use aws-lc-rs wherever a library takes the default. Once, at the start of `main`.
pub fn install_provider() {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        // Somebody was first, and there is only one provider in the program: nothing is lost.
    }
}

/// Issues both CAs and every leaf of this node, for new keys.
///
/// # Errors
/// A name that cannot stand in a certificate.
pub fn issue(root: &Root, subject: &Subject, now: jiff::Timestamp) -> Result<Bundle, Error> {
    reissue(root, subject, Arc::new(Keys::generate()?), now)
}

/// Issues new certificates for the same keys. The configurations handed out before for these keys serve the new
/// certificates too, from the next handshake on.
///
/// # Errors
/// A name that cannot stand in a certificate; nothing has changed then.
pub fn reissue(
    root: &Root,
    subject: &Subject,
    keys: Arc<Keys>,
    now: jiff::Timestamp,
) -> Result<Bundle, Error> {
    let now = now.as_second().max(EARLIEST);
    let internal = Authority::derive(root.0.expose_secret(), Domain::Internal, subject, now)?;
    let service = Authority::derive(root.0.expose_secret(), Domain::Service, subject, now)?;
    let life = Duration::from_secs(DAY * u64::from(subject.validity_days.min(LEAF_DAYS)));
    let sign = |key: &Key, role: Role| {
        let authority = match role.domain() {
            Domain::Internal => &internal,
            Domain::Service => &service,
        };
        authority.sign(key, role, subject, leaf::Validity { now, life })
    };

    let mut files = vec![
        public("internal-ca.crt", internal.certificate.pem()),
        public("service-ca.crt", service.certificate.pem()),
    ];
    for (name, key, role) in [
        (("etcd-server.crt", "etcd-server.key"), &keys.etcd_server, Role::Etcd),
        (("etcd-peer.crt", "etcd-peer.key"), &keys.etcd_peer, Role::Etcd),
        (("etcd-client.crt", "etcd-client.key"), &keys.etcd_client, Role::InternalClient),
        (("postgres.crt", "postgres.key"), &keys.postgres, Role::Server),
        (("replicator.crt", "replicator.key"), &keys.replicator, Role::Replicator),
    ] {
        files.push(File { name: name.1, pem: key.pem()?, secret: Secrecy::Key });
        files.push(public(name.0, sign(key, role)?.pem()));
    }
    let etcd_client = EtcdClient {
        ca: internal.certificate.pem(),
        identity: Some(Identity {
            certificate: sign(&keys.etcd_client, Role::InternalClient)?.pem(),
            key: keys.etcd_client.pem()?,
        }),
    };
    let server = session::certified(&keys.api_server, sign(&keys.api_server, Role::Server)?)?;
    let client = session::certified(&keys.api_client, sign(&keys.api_client, Role::InternalClient)?)?;
    let api_server = session::server(&internal, Arc::clone(&keys.served_by_api))?;
    let peer_client = session::client(&service, Arc::clone(&keys.shown_to_peers))?;
    keys.served_by_api.replace(server);
    keys.shown_to_peers.replace(client);

    let renew_after = now.saturating_add_unsigned(life.as_secs() / 3 * 2);
    let end = now.saturating_add_unsigned(life.as_secs()).min(internal.not_after).min(service.not_after);
    Ok(Bundle {
        files,
        api_server: Arc::new(api_server),
        peer_client: Arc::new(peer_client),
        etcd_client,
        ca_ids: (internal.id(), service.id()),
        renew_after: jiff::Timestamp::from_second(renew_after).unwrap_or(jiff::Timestamp::MAX),
        good_until: jiff::Timestamp::from_second(end).unwrap_or(jiff::Timestamp::MAX),
        keys,
    })
}

/// What a certificate for somebody outside of the cluster is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// etcd and the API.
    Control,
    /// PostgreSQL, as the role that it names.
    Database,
}

/// Both CA certificates as PEM: the internal one, the service one.
///
/// # Errors
/// See [`issue`].
pub fn authorities(root: &Root, subject: &Subject, now: jiff::Timestamp) -> Result<(String, String), Error> {
    let now = now.as_second().max(EARLIEST);
    let pem = |domain| Ok(Authority::derive(root.0.expose_secret(), domain, subject, now)?.certificate.pem());
    Ok((pem(Domain::Internal)?, pem(Domain::Service)?))
}

/// A new key and certificate for somebody outside of the cluster, named by the subject's id and valid for so many days, with
/// the CA that it hangs on: `ca.crt`, `client.crt`, `client.key`.
///
/// # Errors
/// See [`issue`].
pub fn client(
    root: &Root,
    subject: &Subject,
    (purpose, days): (Purpose, u32),
    now: jiff::Timestamp,
) -> Result<Vec<File>, Error> {
    let now = now.as_second().max(EARLIEST);
    let role = match purpose {
        Purpose::Control => Role::InternalClient,
        Purpose::Database => Role::DatabaseClient,
    };
    let authority = Authority::derive(root.0.expose_secret(), role.domain(), subject, now)?;
    let key = Key::random()?;
    let life = Duration::from_secs(DAY * u64::from(days));
    let certificate = authority.sign(&key, role, subject, leaf::Validity { now, life })?;
    Ok(vec![
        public("ca.crt", authority.certificate.pem()),
        public("client.crt", certificate.pem()),
        File { name: "client.key", pem: key.pem()?, secret: Secrecy::Key },
    ])
}

/// For a client of PostgreSQL in this process: it shows no certificate, and trusts every server of the service CA.
///
/// # Errors
/// See [`issue`].
pub fn database_client(
    root: &Root,
    subject: &Subject,
    now: jiff::Timestamp,
) -> Result<Arc<rustls::ClientConfig>, Error> {
    let now = now.as_second().max(EARLIEST);
    let service = Authority::derive(root.0.expose_secret(), Domain::Service, subject, now)?;
    session::client(&service, Arc::default()).map(Arc::new)
}

fn public(name: &'static str, pem: String) -> File {
    File { name, pem: Zeroizing::new(pem), secret: Secrecy::Public }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keys or certificates that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Argon2id refused its input.
    #[error("could not stretch the secret")]
    Stretch {
        /// Why.
        #[source]
        source: argon2::Error,
    },
    /// Not one of 256 candidates was a P-256 key: the derivation is broken.
    #[error("no key could be derived for {label}")]
    NoKey {
        /// What for.
        label: &'static str,
    },
    /// The system's randomness failed.
    #[error("could not make a random key")]
    Random {
        /// Why.
        #[source]
        source: rand::rand_core::OsError,
    },
    /// A private key could not be written as PEM.
    #[error("could not encode a private key")]
    EncodeKey {
        /// Why.
        #[source]
        source: p256::pkcs8::Error,
    },
    /// A name of the subject cannot stand in a certificate.
    #[error("{name:?} cannot stand in a certificate")]
    Name {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A date outside of what a certificate can hold.
    #[error("no certificate can be valid at {second} s after 1970")]
    Date {
        /// The present, in seconds since 1970.
        second: i64,
    },
    /// A certificate could not be signed.
    #[error("could not sign the certificate of {whom}")]
    Sign {
        /// Whose.
        whom: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// rustls refused our own certificates.
    #[error("could not set up {what}")]
    Session {
        /// What for.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
