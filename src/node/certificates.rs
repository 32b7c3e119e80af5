//! This node's keys and certificates: derived at the start, written where etcd and PostgreSQL read them, renewed in time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tracing::{error, info};

use crate::clock;
use crate::config::Config;
use crate::dcs::etcd::Credentials;
use crate::peer::PeerClient;
use crate::process::{self, Mode, RunAs};
use crate::supervisor::Unit;
use crate::tls::{self, Bundle, EtcdClient, Keys, Root, Secrecy, Secret, Subject};

use super::Place;

/// Certificates are looked at this often; they are renewed when two thirds of their life are over.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(3600);

/// The keys and certificates of this node, and how they were made.
pub(super) struct Certificates {
    pub(super) root: Root,
    subject: Subject,
    pub(super) bundle: Bundle,
    dir: Utf8PathBuf,
    run_as: RunAs,
    shown_to_etcd: watch::Sender<EtcdClient>,
    good_until: watch::Sender<Option<Timestamp>>,
    remote: Option<Remote>,
}

/// The cluster that is or may be followed, when its secret is this one's: what shows this node to it.
struct Remote {
    root: Root,
    subject: Subject,
    keys: Arc<Keys>,
}

/// What of it a walreceiver needs, and under which name it is written.
const REMOTE_FILES: [(&str, &str); 3] = [
    ("service-ca.crt", "remote-ca.crt"),
    ("replicator.crt", "remote-replicator.crt"),
    ("replicator.key", "remote-replicator.key"),
];

impl Certificates {
    pub(super) fn new(
        config: &Config,
        place: &Place,
        (root, remote): (Root, Option<Root>),
    ) -> anyhow::Result<Self> {
        let subject = Subject {
            app: config.app.clone(),
            node_id: place.record.read().node_id,
            addresses: config.tls.extra_addresses.clone(),
            names: config.tls.extra_names.clone(),
            validity_days: config.tls.validity_days,
        };
        let bundle = tls::issue(&root, &subject, clock::wall())?;
        info!(internal = bundle.ca_ids.0, service = bundle.ca_ids.1, "certificate authorities");
        let (shown_to_etcd, _nobody_yet) = watch::channel(bundle.etcd_client.clone());
        let remote = remote.zip(config.ha.remote_app.clone());
        let remote = match remote {
            Some((root, app)) => {
                let keys = Arc::new(Keys::generate()?);
                Some(Remote { root, subject: Subject { app, ..subject.clone() }, keys })
            }
            None => None,
        };
        let (good_until, _nobody_yet) = watch::channel(Some(bundle.good_until));
        let (dir, run_as) = (config.tls_dir(), place.run_as.clone());
        Ok(Self { root, subject, bundle, dir, run_as, shown_to_etcd, good_until, remote })
    }

    /// The same keys, now that the address is known, and the files that etcd and PostgreSQL read.
    pub(super) fn for_address(mut self, address: IpAddr) -> anyhow::Result<Self> {
        self.subject.addresses.insert(0, address);
        self.issue_again()?;
        Ok(self)
    }

    fn issue_again(&mut self) -> anyhow::Result<()> {
        let keys = Arc::clone(&self.bundle.keys);
        self.bundle = tls::reissue(&self.root, &self.subject, keys, clock::wall())?;
        self.shown_to_etcd.send_replace(self.bundle.etcd_client.clone());
        self.good_until.send_replace(Some(self.bundle.good_until));
        for file in &self.bundle.files {
            self.write(file, file.name)?;
        }
        self.issue_for_remote()
    }

    fn issue_for_remote(&self) -> anyhow::Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let keys = Arc::clone(&remote.keys);
        let bundle = tls::reissue(&remote.root, &remote.subject, keys, clock::wall())?;
        for (name, written) in REMOTE_FILES {
            bundle
                .files
                .iter()
                .filter(|file| file.name == name)
                .try_for_each(|file| self.write(file, written))?;
        }
        Ok(())
    }

    fn write(&self, file: &tls::File, name: &str) -> anyhow::Result<()> {
        let mode = match file.secret {
            Secrecy::Public => Mode::Public,
            Secrecy::Key => Mode::Private,
        };
        let path = self.dir.join(name);
        process::write_atomic(&path, file.pem.as_bytes(), &self.run_as, mode)
            .with_context(|| format!("could not write {path}"))
            .map(|_changed| ())
    }

    pub(super) fn peer_client(&self, config: &Config) -> anyhow::Result<PeerClient> {
        Ok(PeerClient::new(Arc::clone(&self.bundle.peer_client), config.advertised.api)?)
    }

    /// What the clients of etcd in this process show, now and after every renewal.
    pub(super) fn credentials(&self) -> Credentials {
        self.shown_to_etcd.subscribe()
    }

    /// When the first of the certificates ends, now and after every renewal.
    pub(super) fn good_until(&self) -> watch::Receiver<Option<Timestamp>> {
        self.good_until.subscribe()
    }

    /// Issues new certificates in time. etcd reads them at its next handshake, PostgreSQL when it is told to reload.
    pub(super) async fn renew(mut self, postgres: Unit) {
        loop {
            tokio::time::sleep(CERTIFICATE_CHECK).await;
            if clock::wall() < self.bundle.renew_after {
                continue;
            }
            match self.issue_again() {
                Ok(()) => {
                    postgres.signal(nix::sys::signal::Signal::SIGHUP);
                    info!(until = %self.bundle.renew_after, "renewed the certificates");
                }
                Err(error) => error!(error = format!("{error:#}"), "the certificates could not be renewed"),
            }
        }
    }
}

/// Takes 0.15 s of computing: not on the thread that beats.
pub(super) async fn derive(config: &Config) -> anyhow::Result<(Root, Option<Root>)> {
    let (tls, database, app) = (config.tls.clone(), config.database.clone(), config.app.clone());
    let remote = config.ha.remote_app.clone();
    let work = tokio::task::spawn_blocking(move || {
        let secret = match &tls.passphrase {
            Some(passphrase) => Secret::Passphrase(passphrase.expose_secret()),
            None => Secret::Passwords {
                superuser: database.superuser_password.expose_secret().as_bytes(),
                replication: database.replication_password.expose_secret().as_bytes(),
            },
        };
        let remote = remote.map(|app| Root::derive(&secret, &app)).transpose()?;
        Ok::<_, tls::Error>((Root::derive(&secret, &app)?, remote))
    });
    Ok(work.await.context("the key derivation was ended")??)
}
