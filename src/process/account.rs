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
    /// The account of this name when we are root (and it is not root's), else [`RunAs::Same`].
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

#[cfg(test)]
mod tests {
    use super::*;

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
