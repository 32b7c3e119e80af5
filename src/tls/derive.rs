//! From the secret to keys: Argon2id once, HKDF-SHA256 for each purpose. Every constant here is frozen: another value
//! is another cluster.

use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use p256::SecretKey;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{Error, Secret};

/// The version of the whole scheme.
const SCHEME: &[u8] = b"pgherd/v1";
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;

/// Stretches the secret.
pub(super) fn root(secret: &Secret<'_>, app: &str) -> Result<Zeroizing<[u8; 32]>, Error> {
    let stretch = |source| Error::Stretch { source };
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(32)).map_err(stretch)?;
    let mut root = Zeroizing::new([0_u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(&input(secret), &salt(secret, app), root.as_mut_slice())
        .map_err(stretch)?;
    Ok(root)
}

/// The application is in the salt: the same passphrase makes unrelated keys for another one, and guesses at one
/// cluster are worth nothing at the next.
fn salt(secret: &Secret<'_>, app: &str) -> [u8; 32] {
    let label: &[u8] = match secret {
        Secret::Passphrase(_) => b"pgherd/v1/kdf-salt\0",
        Secret::Passwords { .. } => b"pgherd/v1-pw/kdf-salt\0",
    };
    Sha256::new().chain_update(label).chain_update(app).finalize().into()
}

/// What is stretched. Two passwords are joined with the first one's length before them: ("ab", "c") is not ("a", "bc").
fn input(secret: &Secret<'_>) -> Zeroizing<Vec<u8>> {
    match secret {
        Secret::Passphrase(passphrase) => Zeroizing::new(passphrase.to_vec()),
        Secret::Passwords { superuser, replication } => {
            let length = u64::try_from(superuser.len()).unwrap_or(u64::MAX).to_be_bytes();
            Zeroizing::new([length.as_slice(), superuser, replication].concat())
        }
    }
}

/// 32 bytes for one purpose.
pub(super) fn expand(root: &[u8; 32], label: &str, counter: u8) -> Zeroizing<[u8; 32]> {
    let info = [SCHEME, b"\0", label.as_bytes(), b"\0", &[counter]].concat();
    let mut bytes = Zeroizing::new([0_u8; 32]);
    if Hkdf::<Sha256>::new(Some(SCHEME), root).expand(&info, bytes.as_mut_slice()).is_err() {
        // Only for more than 255 * 32 bytes, which 32 are not.
    }
    bytes
}

/// A P-256 key for one purpose.
pub(super) fn key(root: &[u8; 32], label: &'static str) -> Result<SecretKey, Error> {
    first_key((0..=u8::MAX).map(|counter| expand(root, label, counter))).ok_or(Error::NoKey { label })
}

/// The first candidate that is a number from 1 to the order of the curve less one; nearly always the very first
/// (the chance of a second look is 2^-32).
fn first_key(candidates: impl Iterator<Item = Zeroizing<[u8; 32]>>) -> Option<SecretKey> {
    candidates.map(|bytes| SecretKey::from_slice(bytes.as_slice())).find_map(Result::ok)
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::Signer as _;
    use p256::ecdsa::{Signature, SigningKey};
    use secrecy::ExposeSecret as _;

    use super::super::{Root, hex};
    use super::*;

    const PASSPHRASE: Secret<'_> = Secret::Passphrase(b"correct horse battery staple");

    struct Vector<'a> {
        secret: Secret<'a>,
        app: &'a str,
        salt: &'a str,
        root: &'a str,
        internal: &'a str,
        service: &'a str,
        token: &'a str,
    }

    /// Computed once by an independent implementation (Python: argon2-cffi, and HKDF over the standard library's hmac).
    const VECTORS: &[Vector<'_>] = &[
        Vector {
            secret: PASSPHRASE,
            app: "myapp-postgres",
            salt: "caab88381c197d0671abe5e227e43e8860d8d26597e68098d6c694b7d750f85d",
            root: "ac3aa57e53e0186a89d6f2ae4d173d073cdf16788e9160fccb46487d8bd863f5",
            internal: "31a18e077af446170e39de960da7500d89960993f2a4b0c7ad1040665bae2003",
            service: "9baa715aae787f0a09cd230990f4b9328da627efe28ce13cc44036861837aacc",
            token: "fdb8d33c05a46441ca18cf83d757722a",
        },
        Vector {
            secret: PASSPHRASE,
            app: "shop",
            salt: "175bb1f5779775925addc95c3584aeef34995ca6f9ae204929e8a0b4199acdda",
            root: "79ef9201dae8b6ec7e6355dab8fb35b3ea21d3c16b007827259009763977f7f3",
            internal: "447c47624a96aae9739bc09d9fb5af90a78c0cd4aec95a77542013f8a8d209ff",
            service: "8a49242d42243bb7c4953f8e591aaffe116ea5377ce71000a756de26da6e7c8c",
            token: "d1c836652af7015086d48c291acf9520",
        },
        Vector {
            secret: Secret::Passwords { superuser: b"super-secret", replication: b"repl-secret" },
            app: "shop",
            salt: "46fd60ff7ef10f04640aa073509a216b55756fbabd07d889be4a85abe4b7a74a",
            root: "3fcccbcfd5e3ecf12e1fb5aac62bab3512e9f8cc047f2c0d1c0e858c2c5c209e",
            internal: "76ee9e0cc69afc5df4b507292a676d09cd984cc5c2d9d9f5f49dfc0752fcf8dd",
            service: "0e2215bbc2ea024114485c927806e8679da8270644ed6a3a6c83b9c967a12bc5",
            token: "0a0c285ec6f17925d42ca86b3b2928a7",
        },
    ];

    #[test]
    fn derivation_matches_the_fixed_vectors() {
        for v in VECTORS {
            assert_eq!(hex(&salt(&v.secret, v.app)), v.salt);
            let root = Root::derive(&v.secret, v.app).unwrap();
            let bytes = root.0.expose_secret();
            assert_eq!(hex(bytes), v.root);
            assert_eq!(hex(&*expand(bytes, "ca/internal", 0)), v.internal);
            assert_eq!(hex(&*expand(bytes, "ca/service", 0)), v.service);
            assert_eq!(root.token(), v.token);
        }
    }

    #[test]
    fn two_passwords_are_not_just_joined() {
        let one = input(&Secret::Passwords { superuser: b"ab", replication: b"c" });
        let other = input(&Secret::Passwords { superuser: b"a", replication: b"bc" });
        assert_ne!(one, other);
    }

    #[test]
    fn a_candidate_that_is_no_key_is_passed_over() {
        let candidates = [[0xff; 32], [0; 32], [7; 32]];
        let key = first_key(candidates.into_iter().map(Zeroizing::new)).unwrap();
        assert_eq!(key.to_bytes().as_slice(), [7; 32]);
        assert!(first_key(std::iter::once(Zeroizing::new([0xff; 32]))).is_none());
    }

    #[test]
    fn any_bytes_are_a_passphrase() {
        let long = vec![0xfe; 4096];
        for passphrase in [&b"\0\xff\xfe not text"[..], b"", &long] {
            assert!(Root::derive(&Secret::Passphrase(passphrase), "shop").is_ok());
        }
    }

    /// RFC 6979, A.2.5, SHA-256, "sample": the CA's bytes are the same everywhere only if signatures are.
    #[test]
    fn signatures_are_deterministic() {
        let secret = "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721";
        let bytes: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&secret[2 * i..2 * i + 2], 16).unwrap()).collect();
        let signature: Signature = SigningKey::from_slice(&bytes).unwrap().sign(b"sample");
        assert_eq!(
            hex(&signature.to_bytes()),
            "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716\
             f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
        );
    }
}
