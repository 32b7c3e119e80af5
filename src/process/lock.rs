//! The lock of a volume: one node at a time, and it outlives us as long as a process of PostgreSQL does.
//!
//! Invariant: the lock is a `flock` on an open file description which services inherit. It is released when the last of
//! its holders has ended, so a second node never meets the backends of the first, not even after our own violent death.
//! Absent: any wait, and a file that is removed (the next holder would lock a file that nobody else can see).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use camino::Utf8Path;

use super::file::give_to;
use super::{Error, RunAs};

/// What is read of the name of a holder.
const HOLDER_BYTES: u64 = 512;

/// A volume that is ours. Clones share the one lock.
#[derive(Debug, Clone)]
pub struct VolumeLock {
    file: Arc<File>,
}

impl VolumeLock {
    /// Locks a volume by this file, which becomes the owner's, and writes down who we are.
    ///
    /// # Errors
    /// Somebody else holds it (the error says who), or the file cannot be used.
    pub fn take(path: &Utf8Path, owner: &RunAs) -> Result<Self, Error> {
        let failed = |source| Error::Lock { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // The directory may be another account's: what it plants there is not written through.
        let options = options.custom_flags(nix::libc::O_NOFOLLOW);
        let mut file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked { path: path.to_owned(), holder: read_holder(file) });
            }
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(%path, "this file system has no locks: nothing keeps a second node away");
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // The same volume may be used without root the next time.
        give_to(&file, owner).and_then(|()| write_holder(&mut file)).map_err(failed)?;
        Ok(Self { file: Arc::new(file) })
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// For a person who wonders who it is: the container's host name, and the pid there.
fn write_holder(file: &mut File) -> io::Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (host, boot, pid) = (host.trim(), boot.trim(), std::process::id());
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "host {host}, pid {pid}, boot {boot}, since {}", crate::clock::wall())?;
    file.sync_all()
}

fn read_holder(file: File) -> String {
    let mut text = String::new();
    match file.take(HOLDER_BYTES).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        Ok(_) | Err(_) => "somebody who has left no name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join(".lock")).unwrap();
        let first = VolumeLock::take(&path, &RunAs::Same).unwrap();
        let error = VolumeLock::take(&path, &RunAs::Same).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        let clone = first.clone();
        drop(first);
        assert!(VolumeLock::take(&path, &RunAs::Same).is_err(), "a clone holds it");
        drop(clone);
        VolumeLock::take(&path, &RunAs::Same).unwrap();
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join(".lock")).unwrap();
        let victim = dir.path().join("victim");
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        VolumeLock::take(&path, &RunAs::Same).unwrap_err();
        assert!(!victim.exists());
    }

    #[tokio::test]
    async fn a_service_that_lives_on_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join(".lock")).unwrap();
        let lock = VolumeLock::take(&path, &RunAs::Same).unwrap();
        let command = super::super::Command::new("test", "/bin/sleep").arg("60").hold(&lock);
        let (mut child, _streams) = super::super::spawn(&command).unwrap();
        drop((lock, command));
        assert!(VolumeLock::take(&path, &RunAs::Same).is_err());
        child.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
        child.gone().await;
        VolumeLock::take(&path, &RunAs::Same).unwrap();
    }
}
