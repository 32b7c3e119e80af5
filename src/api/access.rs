//! Who may change something over REST. Pure.
//!
//! A client certificate of the internal CA is always enough. Otherwise basic authentication, where it is configured; where it
//! is not, the caller must be a member's address or on this machine.

use std::net::IpAddr;

use secrecy::{ExposeSecret as _, SecretString};

use super::listener::Trust;

/// What a caller must show.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// `RESTAPI_USERNAME` and `RESTAPI_PASSWORD`.
    pub basic: Option<Basic>,
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
    /// Neither a member nor on this machine: 403.
    Stranger,
    /// No `Authorization` header: 401.
    NoHeader,
    /// Another user or password: 401.
    NotAuthenticated,
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
        Access { basic: Some(Basic { user: "admin".into(), password: SecretString::from("secret") }) }
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
