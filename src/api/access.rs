//! Who may change something over REST. Pure.
//!
//! A client certificate of the internal CA is always enough. Otherwise basic authentication, where it is configured; where it
//! is not, the caller must be a member's address or on this machine.

use std::net::IpAddr;

use axum::http::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};

use super::listener::Trust;

/// What a caller must show.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// `RESTAPI_USERNAME` and `RESTAPI_PASSWORD`.
    pub basic: Option<Basic>,
    /// Patroni's rules in place of ours: each of them must be met (agent mode).
    pub demands: Option<Demands>,
}

/// What Patroni's file demands besides a user and a password.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands {
    /// `allowlist` and `allowlist_include_members`; none: from anywhere.
    pub from: Option<Places>,
    /// `verify_client`.
    pub certificate: Certificate,
}

/// Where a caller must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Address and length of the prefix.
    pub networks: Vec<(IpAddr, u8)>,
    /// Names of machines. Nobody is let in by one: whoever starts the API puts their addresses into `networks`.
    pub hosts: Vec<String>,
    /// Whether a member's address is enough.
    pub members: Members,
}

/// Whether members are let in by their addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Members {
    /// They need no other rule.
    Admitted,
    /// They are nobody special.
    #[default]
    Unknown,
}

/// Whether a client certificate must be shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Certificate {
    /// It must.
    Required,
    /// It need not.
    #[default]
    NotNeeded,
}

impl Places {
    fn hold(&self, address: IpAddr, mut members: impl Iterator<Item = IpAddr>) -> bool {
        let listed = self.networks.iter().any(|(network, bits)| is_within(address, *network, *bits));
        listed || (self.members == Members::Admitted && members.any(|member| member == address))
    }
}

/// Whether an address lies in a network.
fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (u128::from(a.to_bits()), u128::from(n.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits(), n.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    let beyond = u32::from(width - bits.min(width));
    address.checked_shr(beyond) == network.checked_shr(beyond)
}

/// A user and a password.
#[derive(Debug, Clone)]
pub struct Basic {
    /// The user.
    pub user: String,
    /// The password.
    pub password: SecretString,
}

/// Why a caller is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Neither a member nor on this machine, or in no place that is let in: 403.
    Stranger,
    /// No client certificate: 403.
    NoCertificate,
    /// No `Authorization` header: 401.
    NoHeader,
    /// Another user or password: 401.
    NotAuthenticated,
}

impl Denied {
    /// Patroni's code.
    pub(super) fn code(self) -> StatusCode {
        match self {
            Self::Stranger | Self::NoCertificate => StatusCode::FORBIDDEN,
            Self::NoHeader | Self::NotAuthenticated => StatusCode::UNAUTHORIZED,
        }
    }

    /// Patroni's words.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Stranger => "Access is denied",
            Self::NoCertificate => "client certificate required",
            Self::NoHeader => "no auth header received",
            Self::NotAuthenticated => "not authenticated",
        }
    }
}

impl Access {
    /// Whether this caller may change something.
    ///
    /// # Errors
    /// See [`Denied`].
    pub(super) fn check(
        &self,
        (address, trust): (IpAddr, Trust),
        header: Option<&[u8]>,
        mut members: impl Iterator<Item = IpAddr>,
    ) -> Result<(), Denied> {
        let address = address.to_canonical();
        if let Some(demands) = &self.demands {
            return self.check_all(demands, (address, trust), header, members);
        }
        match (trust, &self.basic, header) {
            (Trust::Member, _, _) => Ok(()),
            (Trust::Anyone, None, _) if address.is_loopback() || members.any(|m| m == address) => Ok(()),
            (Trust::Anyone, None, _) => Err(Denied::Stranger),
            (Trust::Anyone, Some(_), None) => Err(Denied::NoHeader),
            (Trust::Anyone, Some(basic), Some(header)) if basic.is(header) => Ok(()),
            (Trust::Anyone, Some(_), Some(_)) => Err(Denied::NotAuthenticated),
        }
    }
}

impl Access {
    /// Patroni's order: the place, the certificate, the password.
    fn check_all(
        &self,
        demands: &Demands,
        (address, trust): (IpAddr, Trust),
        header: Option<&[u8]>,
        members: impl Iterator<Item = IpAddr>,
    ) -> Result<(), Denied> {
        if demands.from.as_ref().is_some_and(|places| !places.hold(address, members)) {
            return Err(Denied::Stranger);
        }
        if demands.certificate == Certificate::Required && trust == Trust::Anyone {
            return Err(Denied::NoCertificate);
        }
        match (&self.basic, header) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Denied::NoHeader),
            (Some(basic), Some(header)) if basic.is(header) => Ok(()),
            (Some(_), Some(_)) => Err(Denied::NotAuthenticated),
        }
    }
}

impl Basic {
    /// In a time that does not depend on where the first difference is.
    fn is(&self, header: &[u8]) -> bool {
        let text = SecretString::from(format!("{}:{}", self.user, self.password.expose_secret()));
        let expected = SecretString::from(format!("Basic {}", base64(text.expose_secret().as_bytes())));
        let expected = expected.expose_secret().as_bytes();
        let differences = expected.iter().zip(header).fold(0, |all, (a, b)| all | (a ^ b));
        expected.len() == header.len() && differences == 0
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = (at(0) << 16) | (at(1) << 8) | at(2);
        for i in 0..4_usize {
            let digit = DIGITS.get(((bits >> (18 - 6 * i)) & 63) as usize).copied().unwrap_or(b'=');
            text.push(char::from(if i <= chunk.len() { digit } else { b'=' }));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn basic() -> Access {
        Access {
            basic: Some(Basic { user: "admin".into(), password: SecretString::from("secret") }),
            demands: None,
        }
    }

    #[test]
    fn what_patronis_file_demands_must_be_met_in_full() {
        let places = Places { networks: vec![("192.0.2.0".parse().unwrap(), 28)], ..Places::default() };
        let demands = |from, certificate| Access { demands: Some(Demands { from, certificate }), ..basic() };
        let check = |access: &Access, address: IpAddr, trust, header: Option<&str>| {
            access.check((address, trust), header.map(str::as_bytes), std::iter::once(FAR))
        };
        const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 16));
        const GOOD: Option<&str> = Some("Basic YWRtaW46c2VjcmV0");
        let near = demands(Some(places.clone()), Certificate::NotNeeded);
        assert_eq!(check(&near, OTHER, Trust::Anyone, GOOD), Ok(()));
        assert_eq!(
            check(&near, OTHER, Trust::Member, None),
            Err(Denied::NoHeader),
            "a certificate is not enough"
        );
        assert_eq!(check(&near, FAR, Trust::Anyone, GOOD), Err(Denied::Stranger));
        let members = Places { members: Members::Admitted, ..places };
        assert_eq!(check(&demands(Some(members), Certificate::NotNeeded), FAR, Trust::Anyone, GOOD), Ok(()));
        let shown = demands(None, Certificate::Required);
        assert_eq!(check(&shown, FAR, Trust::Anyone, GOOD), Err(Denied::NoCertificate));
        assert_eq!(check(&shown, FAR, Trust::Member, GOOD), Ok(()));
    }

    #[test]
    fn digits_are_those_of_the_standard() {
        for (text, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("admin:secret", "YWRtaW46c2VjcmV0")]
        {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn without_a_password_members_and_this_machine_may() {
        let access = Access::default();
        let check = |address: IpAddr, members: &[IpAddr]| {
            access.check((address, Trust::Anyone), None, members.iter().copied())
        };
        assert_eq!(check("127.0.0.1".parse().unwrap(), &[]), Ok(()));
        assert_eq!(check("::ffff:127.0.0.1".parse().unwrap(), &[]), Ok(()));
        assert_eq!(check(OTHER, &[OTHER]), Ok(()));
        assert_eq!(check(OTHER, &[]), Err(Denied::Stranger));
    }

    #[test]
    fn with_a_password_everybody_needs_it_but_a_member_with_its_certificate() {
        let check = |trust, header: Option<&str>| {
            basic().check((OTHER, trust), header.map(str::as_bytes), std::iter::once(OTHER))
        };
        assert_eq!(check(Trust::Anyone, None), Err(Denied::NoHeader));
        assert_eq!(check(Trust::Anyone, Some("Basic YWRtaW46c2VjcmV0")), Ok(()));
        for wrong in ["Basic YWRtaW46c2VjcmV1", "Basic ", "", "Bearer YWRtaW46c2VjcmV0"] {
            assert_eq!(check(Trust::Anyone, Some(wrong)), Err(Denied::NotAuthenticated), "{wrong}");
        }
        assert_eq!(check(Trust::Member, None), Ok(()));
    }
}
