//! TLS by certificates that an administrator has made (agent mode): their PEM in, what rustls needs out.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

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
    let verifier = |ca: &str| -> Result<_, Error> {
        Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), Arc::clone(&provider)))
    };
    let builder = match clients {
        ClientCertificates::Ignored => builder.with_no_client_auth(),
        ClientCertificates::Accepted(ca) => {
            let verifier = verifier(&ca)?.allow_unauthenticated().build().map_err(refused(WHAT))?;
            builder.with_client_cert_verifier(verifier)
        }
        ClientCertificates::Required(ca) => {
            builder.with_client_cert_verifier(verifier(&ca)?.build().map_err(refused(WHAT))?)
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
    let builder = match ca {
        Some(ca) => builder.with_root_certificates(roots(ca)?),
        None => {
            let any: Arc<dyn ServerCertVerifier> = Arc::new(AnyServer { provider });
            builder.dangerous().with_custom_certificate_verifier(any)
        }
    };
    match identity {
        Some(identity) => {
            let (chain, key) = parts(identity)?;
            builder.with_client_auth_cert(chain, key).map_err(refused(WHAT))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

fn roots(pem: &str) -> Result<RootCertStore, Error> {
    const WHAT: &str = "a file of certificate authorities";
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(refused(WHAT))?).map_err(refused(WHAT))?;
    }
    Ok(roots)
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
