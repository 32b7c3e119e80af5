//! Accounts that children run as, looked up before any fork (the lookup is not safe after one).

use std::ffi::CString;
use std::io;

use camino::Utf8PathBuf;
use nix::unistd::{Gid, Uid, User};

use super::Error;

/// The account that a child runs as, resolved before the fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunAs {
    /// The account we run as.
    Same,
    /// Another account: only possible as root.
    Account(Account),
}

/// A resolved account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: Utf8PathBuf,
}

impl RunAs {
    /// The account of this name when we are root (and it is not root's) and able to become it, else [`RunAs::Same`].
    ///
    /// # Errors
    /// We are root and there is no such account, or it cannot be read.
    pub fn account(name: &str) -> Result<Self, Error> {
        if !Uid::effective().is_root() {
            return Ok(Self::Same);
        }
        let unreadable = |errno| Error::ReadAccount { name: name.to_owned(), source: io::Error::from(errno) };
        let user = User::from_name(name)
            .map_err(unreadable)?
            .ok_or_else(|| Error::FindAccount { name: name.to_owned() })?;
        if user.uid.is_root() {
            return Ok(Self::Same);
        }
        if let Some(why) = cannot_become(user.uid.as_raw()) {
            // A program that refuses to run as root says so itself; everything else works.
            tracing::warn!(
                account = name,
                why,
                "cannot become another account: running everything as our own"
            );
            return Ok(Self::Same);
        }
        Ok(Self::Account(Account {
            name: name.to_owned(),
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups(name, user.gid).map_err(unreadable)?,
            home: Utf8PathBuf::from_path_buf(user.dir).unwrap_or_else(|_not_utf8| "/".into()),
        }))
    }

    /// The user id that files of this account have.
    pub(super) fn uid(&self) -> u32 {
        match self {
            Self::Same => Uid::effective().as_raw(),
            Self::Account(account) => account.uid,
        }
    }
}

/// Why root cannot become this account: its capabilities were dropped, or its user namespace has no such account.
fn cannot_become(uid: u32) -> Option<&'static str> {
    /// `CAP_SETGID` and `CAP_SETUID`, as bits.
    const NEEDED: u64 = 0b11 << 6;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    if effective.is_some_and(|bits| bits & NEEDED != NEEDED) {
        return Some("CAP_SETUID and CAP_SETGID are missing");
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    (!map.is_empty() && !is_mapped(&map, uid)).then_some("the user namespace does not know it")
}

/// Lines of `inside outside count`.
fn is_mapped(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let (inside, count) = (numbers.next(), numbers.nth(1));
        let uid = u64::from(uid);
        inside.zip(count).is_some_and(|(inside, count)| (inside..inside + count).contains(&uid))
    })
}

fn groups(name: &str, primary: Gid) -> nix::Result<Vec<u32>> {
    let name = CString::new(name).map_err(|_nul| nix::errno::Errno::EINVAL)?;
    Ok(nix::unistd::getgrouplist(&name, primary)?.into_iter().map(Gid::as_raw).collect())
}

/// Name and home of the account that we run as; numbers do when `/etc/passwd` does not know it.
pub(super) fn own_name_and_home() -> (String, Utf8PathBuf) {
    let uid = Uid::effective();
    let known = User::from_uid(uid).ok().flatten();
    known.map_or_else(
        || (uid.to_string(), "/".into()),
        |user| (user.name, Utf8PathBuf::from_path_buf(user.dir).unwrap_or_else(|_not_utf8| "/".into())),
    )
}

/// Whether `/etc/passwd` knows the account that we run as.
pub fn account_has_a_name() -> bool {
    matches!(User::from_uid(Uid::effective()), Ok(Some(_)))
}

/// The library that has a program take other files for `/etc/passwd` and `/etc/group`: in the directory of the machine's
/// own libraries.
pub fn name_library() -> Option<Utf8PathBuf> {
    const LIBRARY: &str = "libnss_wrapper.so";
    let dirs = camino::Utf8Path::new("/usr/lib").read_dir_utf8().ok()?.filter_map(Result::ok);
    dirs.map(|dir| dir.path().join(LIBRARY)).find(|path| path.is_file())
}

/// The lines of a passwd and a group file that give the account that we run as the name `postgres`.
pub fn account_lines() -> [String; 2] {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    [format!("postgres:x:{uid}:{gid}:PostgreSQL:/:/bin/false\n"), format!("postgres:x:{gid}:\n")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_knows_what_is_in_its_map() {
        assert!(is_mapped("         0          0 4294967295\n", 999));
        assert!(!is_mapped("0 1000 1\n", 999));
        assert!(is_mapped("0 1000 1\n1 100000 65536\n", 999));
    }

    #[test]
    fn an_account_is_resolved_or_named_in_the_error() {
        if !Uid::effective().is_root() {
            assert_eq!(RunAs::account("nobody-of-this-name").unwrap(), RunAs::Same);
            return;
        }
        assert_eq!(RunAs::account("root").unwrap(), RunAs::Same);
        let RunAs::Account(nobody) = RunAs::account("nobody").unwrap() else { panic!("nobody is not root") };
        assert!(nobody.uid > 0 && nobody.groups.contains(&nobody.gid));
        let error = RunAs::account("nobody-of-this-name").unwrap_err();
        assert_eq!(error.to_string(), "there is no account nobody-of-this-name");
    }
}
