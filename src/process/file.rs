//! Files and directories with an owner and a mode, whole or not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};

use super::{Error, RunAs};

/// Who may read a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 0600
    Private,
    /// 0644
    Public,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Writes a file so that a reader sees the old or the new text, never a part: temporary file beside it, owner, mode, fsync,
/// rename, fsync of the directory. What is right already is not written again; tells whether it wrote. Either way it is on disk
/// when this returns: what lies there may be left by a write that failed at the very end, or did not wait for the disk.
///
/// # Errors
/// Any step failed; the file is then as it was, or as it should be and not for certain on disk.
pub fn write_atomic(path: &Utf8Path, contents: &[u8], owner: &RunAs, mode: Mode) -> Result<bool, Error> {
    write_synced(path, contents, (owner, mode), sync_dir)
}

fn write_synced(
    path: &Utf8Path,
    contents: &[u8],
    (owner, mode): (&RunAs, Mode),
    sync_dir: impl FnOnce(&Utf8Path) -> io::Result<()>,
) -> Result<bool, Error> {
    let wrote = replace(path, contents, (owner, mode), File::sync_all)?;
    let file = || if wrote { Ok(()) } else { File::open(path)?.sync_all() };
    let synced = file().and_then(|()| sync_dir(path));
    synced.map(|()| wrote).map_err(|source| Error::WriteFile { path: path.to_owned(), source })
}

/// The same without waiting for the disk: for what is compared again before anybody relies on it after a crash of the machine.
///
/// # Errors
/// Any step failed; the file is then as it was.
pub fn write_whole(path: &Utf8Path, contents: &[u8], owner: &RunAs, mode: Mode) -> Result<bool, Error> {
    replace(path, contents, (owner, mode), |_file| Ok(()))
}

fn replace(
    path: &Utf8Path,
    contents: &[u8],
    (owner, mode): (&RunAs, Mode),
    settle: impl FnOnce(&File) -> io::Result<()>,
) -> Result<bool, Error> {
    let failed = |source| Error::WriteFile { path: path.to_owned(), source };
    if is_right(path, contents, owner, mode).map_err(failed)? {
        return Ok(false);
    }
    let temporary = beside(path).map_err(failed)?;
    let written = write_new(&temporary, contents, owner, mode)
        .and_then(|file| settle(&file))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(source) = written {
        // Best effort: the next write removes it as well.
        drop(std::fs::remove_file(&temporary));
        return Err(failed(source));
    }
    Ok(true)
}

fn is_right(path: &Utf8Path, contents: &[u8], owner: &RunAs, mode: Mode) -> io::Result<bool> {
    let about = match std::fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let same_shape = about.is_file()
        && about.uid() == owner.uid()
        && about.mode() & 0o7777 == mode.bits()
        && about.len() == contents.len() as u64;
    Ok(same_shape && std::fs::read(path)? == contents)
}

fn beside(path: &Utf8Path) -> io::Result<Utf8PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(path.with_file_name(format!(".{name}.pgherd-new")))
}

fn write_new(path: &Utf8Path, contents: &[u8], owner: &RunAs, mode: Mode) -> io::Result<File> {
    // Left by a crash. Whatever else lies here is not followed: the name must be new.
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    give_to(&file, owner)?;
    file.set_permissions(Permissions::from_mode(mode.bits()))?;
    file.write_all(contents)?;
    Ok(file)
}

pub(super) fn give_to(file: &File, owner: &RunAs) -> io::Result<()> {
    match owner {
        RunAs::Same => Ok(()),
        RunAs::Account(account) => std::os::unix::fs::fchown(file, Some(account.uid), Some(account.gid)),
    }
}

fn sync_dir(path: &Utf8Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_str().is_empty()).unwrap_or_else(|| Utf8Path::new("."));
    File::open(dir)?.sync_all()
}

/// Makes a directory (and its parents), with owner and mode 0700. Parents that had to be made can be walked through by
/// everybody; parents that existed stay as they are, and so does a directory that is somebody else's and cannot be taken:
/// a mount that was made for any account. What we make beneath it is private.
///
/// # Errors
/// It could not be made, or not be given to its owner.
pub fn make_private_dir(path: &Utf8Path, owner: &RunAs) -> Result<(), Error> {
    let failed = |source| Error::MakeDir { path: path.to_owned(), source };
    make_parents(path).map_err(failed)?;
    make_dir(path, 0o700).map_err(failed)?;
    let dir = File::open(path).map_err(failed)?;
    let about = dir.metadata().map_err(failed)?;
    if about.uid() != owner.uid() {
        if *owner == RunAs::Same {
            return Ok(());
        }
        give_to(&dir, owner).map_err(failed)?;
    }
    dir.set_permissions(Permissions::from_mode(0o700)).map_err(failed)
}

/// Gives a directory and all that is beneath it to an account, unless it is the account's already. Links are not followed.
///
/// # Errors
/// Something could not be read or given.
pub fn give_tree(path: &Utf8Path, owner: &RunAs) -> Result<(), Error> {
    let RunAs::Account(account) = owner else { return Ok(()) };
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let failed = |source| Error::MakeDir { path: path.clone(), source };
        let about = std::fs::symlink_metadata(&path).map_err(failed)?;
        if about.uid() != account.uid {
            std::os::unix::fs::lchown(&path, Some(account.uid), Some(account.gid)).map_err(failed)?;
        }
        if about.is_dir() {
            let entries = path.read_dir_utf8().map_err(failed)?;
            for entry in entries {
                waiting.push(entry.map_err(failed)?.path().to_owned());
            }
        }
    }
    Ok(())
}

/// Makes a directory (and its parents) that everybody may enter and its owner may write to. The mode of one that exists
/// stays as it is: it is somebody's mount.
///
/// # Errors
/// It could not be made, or not be given to its owner.
pub fn make_shared_dir(path: &Utf8Path, owner: &RunAs) -> Result<(), Error> {
    let failed = |source| Error::MakeDir { path: path.to_owned(), source };
    make_parents(path).map_err(failed)?;
    make_dir(path, 0o755).map_err(failed)?;
    let dir = File::open(path).map_err(failed)?;
    if dir.metadata().map_err(failed)?.uid() != owner.uid() {
        give_to(&dir, owner).map_err(failed)?;
    }
    Ok(())
}

fn make_parents(path: &Utf8Path) -> io::Result<()> {
    let missing: Vec<_> =
        path.ancestors().skip(1).filter(|dir| !dir.as_str().is_empty() && !dir.exists()).collect();
    missing.into_iter().rev().try_for_each(|dir| make_dir(dir, 0o755))
}

/// The mode is set afterwards because the umask would narrow it.
fn make_dir(path: &Utf8Path, mode: u32) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_and_repaired_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("conf")).unwrap();
        let write = |text: &str, mode| write_atomic(&path, text.as_bytes(), &RunAs::Same, mode).unwrap();
        assert!(write("one", Mode::Private));
        assert!(!write("one", Mode::Private));
        assert!(write("one", Mode::Public), "another mode is another file");
        assert!(write("two", Mode::Public));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_was_not_synced_is_synced_by_the_next_try() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("record")).unwrap();
        let write = |synced| write_synced(&path, b"one", (&RunAs::Same, Mode::Private), |_path| synced);
        let broken = || Err(io::Error::from(io::ErrorKind::Other));
        write(broken()).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one", "the name is there and may be lost");
        write(broken()).unwrap_err();
        assert!(!write(Ok(())).unwrap());
    }

    #[test]
    fn a_planted_temporary_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("conf")).unwrap();
        let victim = dir.path().join("victim");
        std::os::unix::fs::symlink(&victim, dir.path().join(".conf.pgherd-new")).unwrap();
        write_atomic(&path, b"secret", &RunAs::Same, Mode::Private).unwrap();
        assert!(!victim.exists());
    }

    #[test]
    fn a_private_dir_has_its_owner_and_walkable_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("a/b/c")).unwrap();
        let owner = RunAs::account("nobody").unwrap();
        make_private_dir(&path, &owner).unwrap();
        make_private_dir(&path, &owner).unwrap();
        let about = std::fs::metadata(&path).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid()), (0o700, owner.uid()));
        assert_eq!(std::fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_failure_names_the_file() {
        let error =
            write_atomic("/nonexistent/dir/file".into(), b"", &RunAs::Same, Mode::Public).unwrap_err();
        assert_eq!(error.to_string(), "could not write /nonexistent/dir/file");
    }
}
