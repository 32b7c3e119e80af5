//! TLS by certificates that an administrator has made (agent mode): their PEM in, what rustls needs out.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::pinned::Pinned;
use super::session::{AnyServer, VERSIONS};
use super::{Error, Identity};

/// Whether a client must show a certificate.
#[derive(Debug, Clone)]
pub enum ClientCertificates {
    /// None is asked for.
    Ignored,
    /// It may show one, which must be of this CA (PEM).
    Accepted(String),
    /// It must.
    Required(String),
}

/// A server that shows this certificate.
///
/// # Errors
/// Something is no PEM, or does not belong together.
pub fn server(identity: &Identity, clients: ClientCertificates) -> Result<ServerConfig, Error> {
    const WHAT: &str = "the API's certificate";
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(VERSIONS)
        .map_err(refused(WHAT))?;
    let webpki = |roots| WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let pinned = |trusted, verifier| Arc::new(Pinned::<dyn ClientCertVerifier> { trusted, verifier });
    let builder = match clients {
        ClientCertificates::Ignored => builder.with_no_client_auth(),
        ClientCertificates::Accepted(ca) => {
            let (trusted, roots) = authorities(&ca)?;
            let verifier = webpki(roots).allow_unauthenticated().build().map_err(refused(WHAT))?;
            builder.with_client_cert_verifier(pinned(trusted, verifier))
        }
        ClientCertificates::Required(ca) => {
            let (trusted, roots) = authorities(&ca)?;
            let verifier = webpki(roots).build().map_err(refused(WHAT))?;
            builder.with_client_cert_verifier(pinned(trusted, verifier))
        }
    };
    let (chain, key) = parts(identity)?;
    let mut config = builder.with_single_cert(chain, key).map_err(refused(WHAT))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A client that trusts servers of this CA (PEM) under their names; without a CA, any server.
///
/// # Errors
/// Something is no PEM, or does not belong together.
pub fn client(ca: Option<&str>, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    const WHAT: &str = "calls to other members";
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(VERSIONS)
        .map_err(refused(WHAT))?;
    let verifier: Arc<dyn ServerCertVerifier> = match ca {
        Some(ca) => {
            let (trusted, roots) = authorities(ca)?;
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            Arc::new(Pinned { trusted, verifier: verifier.build().map_err(refused(WHAT))? })
        }
        None => Arc::new(AnyServer { provider }),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    match identity {
        Some(identity) => {
            let (chain, key) = parts(identity)?;
            builder.with_client_auth_cert(chain, key).map_err(refused(WHAT))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

/// Those that are trusted, and the same as anchors of chains.
fn authorities(pem: &str) -> Result<(Vec<CertificateDer<'static>>, RootCertStore), Error> {
    const WHAT: &str = "a file of certificate authorities";
    let trusted: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let trusted = trusted.map_err(refused(WHAT))?;
    let mut roots = RootCertStore::empty();
    for certificate in &trusted {
        roots.add(certificate.clone()).map_err(refused(WHAT))?;
    }
    Ok((trusted, roots))
}

fn parts(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect();
    let chain = chain.map_err(refused("a certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(refused("a private key"))?;
    Ok((chain, key))
}

fn refused<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl Fn(E) -> Error {
    move |source| Error::Session { what, source: Box::new(source) }
}
