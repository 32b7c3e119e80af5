//! Our own environment, after the configuration has been read: `/proc/<pid>/environ` shows it to everybody of our account
//! and to every root of the container for as long as we live, unless the memory that it shows is overwritten.

use std::ffi::{CStr, OsString, c_char};
use std::os::unix::ffi::OsStringExt as _;

/// Parts of the names of variables that hold secrets. The name of a file with a secret is none. A server is named in more
/// forms than can be told from harmless text: URLs with a bare slash in the password, keywords.
const SECRET_WORDS: [&[u8]; 6] = [b"PASSWORD", b"PASSPHRASE", b"SECRET", b"TOKEN", b"_KEY", b"IMPORT_URL"];

#[expect(unsafe_code, reason = "the standard library does not show where the environment lies")]
unsafe extern "C" {
    /// The C library's: a list of `NAME=value`, ended by null.
    static environ: *const *mut c_char;
}

/// Overwrites the values of secrets where the kernel shows them, and returns the environment as it was, for a child that
/// needs it (`init` starts `node` again and again). Call it while this is the only thread.
#[expect(unsafe_code, reason = "the environment block is memory that only C names")]
pub fn take_environment() -> Vec<(OsString, OsString)> {
    let mut all = Vec::new();
    // SAFETY: the list and its strings were made by the kernel and live in our writable stack area. There is one thread,
    // so nobody reads them at the same time.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            let entry = CStr::from_ptr(*next).to_bytes();
            let at = entry.iter().position(|byte| *byte == b'=').unwrap_or(entry.len());
            let (name, value) = entry.split_at(at);
            let value = value.get(1..).unwrap_or_default();
            let is_secret = is_secret(name, value);
            let (start, len) = (value.as_ptr().cast_mut(), value.len());
            all.push((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())));
            if is_secret && len > 0 {
                std::ptr::write_bytes(start, 0, len);
            }
            next = next.add(1);
        }
    }
    all
}

fn is_secret(name: &[u8], value: &[u8]) -> bool {
    let holds = |word: &&[u8]| name.windows(word.len()).any(|part| part == *word);
    SECRET_WORDS.iter().any(holds) && !name.ends_with(b"_FILE") || is_url_with_password(value)
}

/// `postgres://user:password@host/...`, whatever the variable is called.
fn is_url_with_password(value: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(value) else { return false };
    let after = text.split("://").skip(1);
    let mut authorities = after.filter_map(|rest| rest.split(['/', '?', '#']).next());
    authorities.any(|authority| authority.rsplit_once('@').is_some_and(|(user, _host)| user.contains(':')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known() {
        for name in [
            "POSTGRES_SUPERUSER_PASSWORD",
            "SSL_PASSPHRASE",
            "SSL_PASSPHRASE_PREVIOUS",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            assert!(is_secret(name.as_bytes(), b""), "{name}");
        }
        for value in ["postgres://me:ab/cd@host/app", "host=old user=me password=hush"] {
            assert!(is_secret(b"IMPORT_URL", value.as_bytes()), "{value}");
        }
        for name in ["POSTGRES_SUPERUSER_PASSWORD_FILE", "IMPORT_URL_FILE", "PATH", "APP_NAME"] {
            assert!(!is_secret(name.as_bytes(), b""), "{name}");
        }
    }

    #[test]
    fn a_url_may_hold_one() {
        for value in ["postgres://me:hush@old:5432/app", "a=b http://me:hu@sh@[::1]:2379,http://other"] {
            assert!(is_secret(b"PATRONI_ETCD3_URL", value.as_bytes()), "{value}");
        }
        for value in ["https://api.runonflux.io", "http://[::1]:2379/a@b:c", "postgres://me@old", "me:x@y"] {
            assert!(!is_secret(b"FLUX_API_URL", value.as_bytes()), "{value}");
        }
    }
}
