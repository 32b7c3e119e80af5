//! Leaf certificates: whose they are, what they are good for, how long. A node's certificates carry its own addresses
//! only, so that nodes which come and go never need anybody else's to be issued anew.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use p256::SecretKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::PrivateKeyDer;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::authority::Domain;
use super::{BACKDATE, Error, NODE_DOMAIN, REPLICATION_ROLE, Subject};

/// What a leaf is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// etcd, on either port. Both usages: etcd shows its server certificate as a client too.
    Etcd,
    /// A client of etcd or of another node's control API.
    InternalClient,
    /// PostgreSQL and the API.
    Server,
    /// A standby that streams.
    Replicator,
    /// Somebody who logs in to PostgreSQL by certificate.
    DatabaseClient,
}

impl Role {
    pub(super) fn domain(self) -> Domain {
        match self {
            Self::Etcd | Self::InternalClient => Domain::Internal,
            Self::Server | Self::Replicator | Self::DatabaseClient => Domain::Service,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::InternalClient => "a client of the control plane",
            Self::Server => "a server",
            Self::Replicator => "the replication role",
            Self::DatabaseClient => "a client of PostgreSQL",
        }
    }

    fn usages(self) -> Vec<ExtendedKeyUsagePurpose> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        match self {
            Self::Etcd => vec![ServerAuth, ClientAuth],
            Self::Server => vec![ServerAuth],
            Self::InternalClient | Self::Replicator | Self::DatabaseClient => vec![ClientAuth],
        }
    }
}

/// A private key and its public point.
pub(super) struct Key {
    secret: SigningKey,
    point: Vec<u8>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    pub(super) fn random() -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        loop {
            fill(bytes.as_mut_slice())?;
            if let Ok(secret) = SecretKey::from_slice(bytes.as_slice()) {
                return Ok(Self::from(secret));
            }
        }
    }

    /// The subject key id: SHA-256 of the point, cut to 20 bytes.
    pub(super) fn id(&self) -> Vec<u8> {
        Sha256::digest(&self.point).iter().copied().take(20).collect()
    }

    /// PKCS#8, which all but pgjdbc read.
    pub(super) fn pem(&self) -> Result<Zeroizing<String>, Error> {
        self.secret.to_pkcs8_pem(LineEnding::LF).map_err(|source| Error::EncodeKey { source })
    }

    pub(super) fn der(&self) -> Result<PrivateKeyDer<'static>, Error> {
        let der = self.secret.to_pkcs8_der().map_err(|source| Error::EncodeKey { source })?;
        Ok(PrivateKeyDer::Pkcs8(der.as_bytes().to_vec().into()))
    }
}

impl From<SecretKey> for Key {
    fn from(secret: SecretKey) -> Self {
        let point = secret.public_key().to_sec1_bytes().into_vec();
        Self { secret: SigningKey::from(secret), point }
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    /// RFC 6979: no randomness, hence the same certificate each time.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature =
            self.secret.try_sign(message).map_err(|_opaque| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_bytes().to_vec())
    }
}

/// When a leaf is valid: from a little before the present, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    pub(super) now: i64,
    pub(super) life: Duration,
}

/// Everything about a leaf but its signature. `latest` is its authority's own end.
pub(super) fn params(
    key: &Key,
    role: Role,
    subject: &Subject,
    validity: Validity,
    latest: i64,
) -> Result<CertificateParams, Error> {
    let mut serial = [0_u8; 16];
    fill(&mut serial)?;
    let end = validity.now.saturating_add_unsigned(validity.life.as_secs()).min(latest);
    let mut params = CertificateParams::default();
    set_dates(&mut params, (validity.now.saturating_sub_unsigned(BACKDATE.as_secs()), end))?;
    params.serial_number = Some(serial_number(serial));
    params.subject_alt_names = match role {
        Role::Etcd | Role::Server => alternative_names(subject)?,
        Role::InternalClient | Role::Replicator | Role::DatabaseClient => Vec::new(),
    };
    let common_name = match role {
        Role::Replicator => REPLICATION_ROLE,
        Role::Etcd | Role::InternalClient | Role::Server | Role::DatabaseClient => subject.node_id.0.as_str(),
    };
    params.distinguished_name = distinguished_name(&subject.app, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = role.usages();
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key.id());
    Ok(params)
}

fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    OsRng.try_fill_bytes(bytes).map_err(|source| Error::Random { source })
}

/// The first byte is kept between 0x40 and 0x7f: positive, and always of the same length.
pub(super) fn serial_number(mut bytes: [u8; 16]) -> SerialNumber {
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    SerialNumber::from_slice(&bytes)
}

pub(super) fn distinguished_name(app: &str, common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "pgherd");
    name.push(DnType::OrganizationalUnitName, app);
    name.push(DnType::CommonName, common_name);
    name
}

/// Sets both ends, in seconds since 1970.
pub(super) fn set_dates(params: &mut CertificateParams, ends: (i64, i64)) -> Result<(), Error> {
    // Year 9999 is the last that a certificate can hold.
    const LATEST: u64 = 253_402_300_799;
    let date = |second: i64| {
        let since =
            u64::try_from(second).ok().filter(|since| *since <= LATEST).ok_or(Error::Date { second })?;
        Ok(rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since))
    };
    params.not_before = date(ends.0)?;
    params.not_after = date(ends.1)?;
    Ok(())
}

fn alternative_names(subject: &Subject) -> Result<Vec<SanType>, Error> {
    let own = format!("{}.{NODE_DOMAIN}", subject.node_id);
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let names = [own.as_str(), "localhost"].into_iter().chain(subject.names.iter().map(String::as_str));
    let mut all = Vec::new();
    for name in names {
        let dns = name.try_into().map_err(|source| Error::Name { name: name.to_owned(), source })?;
        all.push(SanType::DnsName(dns));
    }
    all.extend(subject.addresses.iter().copied().chain(loopback).map(SanType::IpAddress));
    let mut seen = std::collections::HashSet::new();
    all.retain(|name| seen.insert(name.clone()));
    Ok(all)
}
