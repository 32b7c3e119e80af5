//! The two certificate authorities, derived anew whenever something is signed. Their validity hangs on the calendar
//! year, so there is no day on which they all expire; peers agree on name, key and key id, not on dates.

use jiff::civil;
use jiff::tz::TimeZone;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose};
use sha2::{Digest as _, Sha256};

use super::leaf::{self, Key, Role, Validity};
use super::{DAY, Error, Subject, derive, hex};

/// The shortest life of a CA: a copy that somebody keeps is good for a year at least.
const SHORTEST_DAYS: u32 = 730;

/// 1 and not 0: a later CA of the same cluster can be cross-signed by this one.
const PATH_LENGTH: u8 = 1;

/// Whom an authority vouches for. A PostgreSQL client certificate that an application was given must never open etcd
/// or the control API: hence two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Domain {
    /// etcd, and callers of the control API.
    Internal,
    /// PostgreSQL, and the API's own certificate.
    Service,
}

impl Domain {
    fn label(self) -> &'static str {
        match self {
            Self::Internal => "ca/internal",
            Self::Service => "ca/service",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Service => "service",
        }
    }
}

/// An authority, for the moment of signing.
pub(super) struct Authority {
    issuer: Issuer<'static, Key>,
    pub(super) certificate: Certificate,
    key_id: Vec<u8>,
    pub(super) not_after: i64,
}

impl Authority {
    pub(super) fn derive(
        root: &[u8; 32],
        domain: Domain,
        subject: &Subject,
        now: i64,
    ) -> Result<Self, Error> {
        let key = Key::from(derive::key(root, domain.label())?);
        let key_id = key.id();
        let (not_before, not_after) = validity(now, subject.validity_days)?;
        let params = params(&key_id, domain, &subject.app, (not_before, not_after))?;
        let sign = |source| Error::Sign { whom: "a certificate authority", source };
        let certificate = params.self_signed(&key).map_err(sign)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate, key_id, not_after })
    }

    pub(super) fn sign(
        &self,
        key: &Key,
        role: Role,
        subject: &Subject,
        validity: Validity,
    ) -> Result<Certificate, Error> {
        let params = leaf::params(key, role, subject, validity, self.not_after)?;
        params.signed_by(key, &self.issuer).map_err(|source| Error::Sign { whom: role.as_str(), source })
    }

    /// For people: the first 8 hex digits of the key id.
    pub(super) fn id(&self) -> String {
        short(&self.key_id)
    }
}

fn short(key_id: &[u8]) -> String {
    hex(key_id.get(..4).unwrap_or(key_id))
}

fn params(key_id: &[u8], domain: Domain, app: &str, dates: (i64, i64)) -> Result<CertificateParams, Error> {
    let (not_before, not_after) = dates;
    let serial = Sha256::new()
        .chain_update(key_id)
        .chain_update(not_before.to_be_bytes())
        .chain_update(not_after.to_be_bytes())
        .chain_update([PATH_LENGTH])
        .finalize();
    let mut sixteen = [0_u8; 16];
    sixteen.iter_mut().zip(serial).for_each(|(to, from)| *to = from);
    let mut params = CertificateParams::default();
    leaf::set_dates(&mut params, dates)?;
    params.serial_number = Some(leaf::serial_number(sixteen));
    // The key id in the name: verifiers never confuse the CAs of two passphrases.
    let name = format!("pgherd {} CA {}", domain.as_str(), short(key_id));
    params.distinguished_name = leaf::distinguished_name(app, &name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(PATH_LENGTH));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
    Ok(params)
}

/// From the first of January of last year to so many days after this year's.
fn validity(now: i64, days: u32) -> Result<(i64, i64), Error> {
    let wrong = || Error::Date { second: now };
    let year = jiff::Timestamp::from_second(now).map_err(|_range| wrong())?.to_zoned(TimeZone::UTC).year();
    let new_year = |year: i16| {
        let date = civil::Date::new(year, 1, 1).ok()?;
        Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
    };
    let from = new_year(year.saturating_sub(1)).ok_or_else(wrong)?;
    let this = new_year(year).ok_or_else(wrong)?;
    Ok((from, this.saturating_add_unsigned(u64::from(days.max(SHORTEST_DAYS)) * DAY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(text: &str) -> i64 {
        text.parse::<jiff::Timestamp>().unwrap().as_second()
    }

    #[test]
    fn validity_hangs_on_the_year() {
        let whole_year = ["2027-01-01T00:00:00Z", "2027-07-01T12:34:56Z", "2027-12-31T23:59:59Z"];
        for now in whole_year {
            let (from, to) = validity(second(now), 3650).unwrap();
            assert_eq!(from, second("2026-01-01T00:00:00Z"));
            assert_eq!(to, second("2036-12-29T00:00:00Z"));
        }
        let (_, to) = validity(second("2028-02-29T00:00:00Z"), 30).unwrap();
        assert_eq!(to, second("2029-12-31T00:00:00Z"), "at least 730 days");
    }
}
