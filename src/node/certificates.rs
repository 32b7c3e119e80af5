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
use crate::tls::{self, Bundle, EtcdClient, Root, Secrecy, Secret, Subject};

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
}

impl Certificates {
    pub(super) fn new(config: &Config, place: &Place, root: Root) -> anyhow::Result<Self> {
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
        let (good_until, _nobody_yet) = watch::channel(Some(bundle.good_until));
        let (dir, run_as) = (config.tls_dir(), place.run_as.clone());
        Ok(Self { root, subject, bundle, dir, run_as, shown_to_etcd, good_until })
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
            let mode = match file.secret {
                Secrecy::Public => Mode::Public,
                Secrecy::Key => Mode::Private,
            };
            let path = self.dir.join(file.name);
            process::write_atomic(&path, file.pem.as_bytes(), &self.run_as, mode)
                .with_context(|| format!("could not write {path}"))?;
        }
        Ok(())
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
pub(super) async fn derive(config: &Config) -> anyhow::Result<Root> {
    let (tls, database, app) = (config.tls.clone(), config.database.clone(), config.app.clone());
    let work = tokio::task::spawn_blocking(move || {
        let secret = match &tls.passphrase {
            Some(passphrase) => Secret::Passphrase(passphrase.expose_secret()),
            None => Secret::Passwords {
                superuser: database.superuser_password.expose_secret().as_bytes(),
                replication: database.replication_password.expose_secret().as_bytes(),
            },
        };
        Root::derive(&secret, &app)
    });
    Ok(work.await.context("the key derivation was ended")??)
}
