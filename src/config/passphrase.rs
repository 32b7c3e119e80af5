//! What is too weak to derive every key of a cluster from.
//!
//! One anonymous TLS handshake yields a certificate against which guesses can be checked offline, for ever; Argon2id
//! is the only brake. A passphrase that a list or a person would think of falls to it all the same.

/// Below this even random lower-case letters fall.
const SHORTEST: usize = 12;
/// Below this a passphrase must be truly random to be safe.
const SHORT: usize = 20;
const FEWEST_DISTINCT: usize = 5;

/// Passphrases that stand in documentation.
const PUBLISHED: &[&str] = &["change-this-to-secure-deterministic-passphrase", "your-ssl-passphrase"];

/// A judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Strength {
    Good,
    /// Usable if it is random.
    Short,
    /// Not usable, and why.
    Weak(&'static str),
}

/// Judges a passphrase; `others` are values it must not consist of (the application's name, the passwords).
pub(super) fn judge(passphrase: &[u8], others: &[&[u8]]) -> Strength {
    let mut distinct = passphrase.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let n_distinct = distinct.len();
    zeroize::Zeroize::zeroize(&mut distinct);
    let contains = |part: &&&[u8]| !part.is_empty() && passphrase.windows(part.len()).any(|w| w == **part);
    if passphrase.len() < SHORTEST {
        Strength::Weak("shorter than 12 bytes")
    } else if n_distinct < FEWEST_DISTINCT {
        Strength::Weak("fewer than 5 different bytes")
    } else if PUBLISHED.iter().any(|example| example.as_bytes() == passphrase) {
        Strength::Weak("an example from documentation")
    } else if others.iter().find(contains).is_some() {
        Strength::Weak("it contains APP_NAME or one of the passwords")
    } else if passphrase.len() < SHORT {
        Strength::Short
    } else {
        Strength::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_passphrases_are_told_apart() {
        let others: &[&[u8]] = &[b"my-app", b"super-secret", b""];
        let weak = |text: &str| matches!(judge(text.as_bytes(), others), Strength::Weak(_));
        assert!(weak("short"));
        assert!(weak("aaaabbbbccccddddaaaabbbb"));
        assert!(weak("change-this-to-secure-deterministic-passphrase"));
        assert!(weak("prod-my-app-2026-xyzw"));
        assert!(weak("super-secret"));
        assert_eq!(judge(b"Tr0ub4dor&3xyz", others), Strength::Short);
        assert_eq!(judge(b"n7q2m5x9c4v8b1k6j3h0", others), Strength::Good);
    }
}
