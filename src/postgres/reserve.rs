//! The reserve of room on the volume: a file that holds blocks and nothing else, beside the data.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use camino::Utf8Path;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::launch::sync_dir;
use super::{Error, Postgres, conf};

/// Its name in the state directory. One that was not finished is as good: it is given back like any other.
const FILE: &str = "reserve";

/// So much is held at once.
const PIECE: u64 = 16 << 20;
/// Nothing waits for it; a disk that takes longer has other troubles.
const LAY_IN_LIMIT: Duration = Duration::from_secs(120);
/// A start waits for it.
const GIVE_LIMIT: Duration = Duration::from_secs(2);

/// How much room is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// In bytes.
    pub bytes: u64,
}

impl Postgres {
    /// Makes the file as large as it should be. Whoever stops waiting for it has it removed again.
    ///
    /// # Errors
    /// The file system does not hold blocks for a file, or has none, or not in time.
    pub async fn lay_in_reserve(&self, reserve: Reserve) -> Result<(), Error> {
        let path = self.shared.config.state_dir.join(FILE);
        let wanted = CancellationToken::new();
        let (given_up, _waits) = (wanted.clone(), wanted.drop_guard());
        let laid_in = conf::off_thread(move || {
            hold(&path, reserve.bytes, &given_up).map_err(|source| {
                // Half of it helps nobody.
                std::fs::remove_file(&path).ok();
                Error::file("hold room with", &path)(source)
            })
        });
        let too_slow = Error::TimedOut { what: "hold room back", after: LAY_IN_LIMIT };
        timeout(LAY_IN_LIMIT, laid_in).await.unwrap_or(Err(too_slow))
    }

    /// Removes the file, if it is there.
    ///
    /// # Errors
    /// It cannot be removed, or not in time.
    pub async fn give_reserve(&self) -> Result<(), Error> {
        let path = self.shared.config.state_dir.join(FILE);
        let given = conf::off_thread(move || match std::fs::remove_file(&path) {
            Ok(()) => sync_dir(path.parent().unwrap_or(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::file("remove", &path)(error)),
        });
        let too_slow = Error::TimedOut { what: "give room back", after: GIVE_LIMIT };
        timeout(GIVE_LIMIT, given).await.unwrap_or(Err(too_slow))
    }
}

/// A piece after the other: a file system that cannot reserve blocks writes them all, which takes long on a slow disk.
fn hold(path: &Utf8Path, bytes: u64, given_up: &CancellationToken) -> io::Result<()> {
    let go_on = || if given_up.is_cancelled() { Err(io::ErrorKind::Interrupted) } else { Ok(()) };
    go_on()?;
    let file: File = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // What was larger before is cut.
    file.set_len(file.metadata()?.len().min(bytes))?;
    let mut from = 0;
    while from < bytes {
        let length = PIECE.min(bytes - from);
        let place = (i64::try_from(from), i64::try_from(length));
        let (Ok(offset), Ok(length_of)) = place else { return Err(io::ErrorKind::FileTooLarge.into()) };
        nix::fcntl::posix_fallocate(&file, offset, length_of)?;
        from += length;
        go_on()?;
    }
    file.sync_all()?;
    go_on()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use camino::Utf8PathBuf;

    use super::*;

    #[test]
    fn the_file_holds_as_many_blocks_as_it_should() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join(FILE)).unwrap();
        let unwanted = CancellationToken::new();
        for bytes in [1 << 20, 33 << 20, 2 << 20] {
            hold(&path, bytes, &unwanted).unwrap();
            let about = std::fs::metadata(&path).unwrap();
            assert_eq!(about.len(), bytes);
            assert!(about.blocks() * 512 >= bytes, "{about:?}");
        }
        unwanted.cancel();
        assert!(hold(&path, 3 << 20, &unwanted).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 << 20, "nothing is done for nobody");
    }
}
