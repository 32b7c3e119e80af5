//! The reserve of room on the volume: a file that holds blocks and nothing else, beside the data.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;

use camino::Utf8Path;

use super::launch::sync_dir;
use super::{Error, Postgres, conf};

/// Its name in the state directory. One that was not finished is as good: it is given back like any other.
const FILE: &str = "reserve";

/// How much room is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// In bytes.
    pub bytes: u64,
}

impl Postgres {
    /// Makes the file as large as it should be.
    ///
    /// # Errors
    /// The file system does not hold blocks for a file, or has none.
    pub async fn lay_in_reserve(&self, reserve: Reserve) -> Result<(), Error> {
        let path = self.shared.config.state_dir.join(FILE);
        conf::off_thread(move || {
            hold(&path, reserve.bytes).map_err(|source| {
                // Half of it helps nobody.
                std::fs::remove_file(&path).ok();
                Error::file("hold room with", &path)(source)
            })
        })
        .await
    }

    /// Removes the file, if it is there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn give_reserve(&self) -> Result<(), Error> {
        let path = self.shared.config.state_dir.join(FILE);
        conf::off_thread(move || match std::fs::remove_file(&path) {
            Ok(()) => sync_dir(path.parent().unwrap_or(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::file("remove", &path)(error)),
        })
        .await
    }
}

fn hold(path: &Utf8Path, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    let file: File = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // What was larger before is cut.
    file.set_len(file.metadata()?.len().min(bytes))?;
    nix::fcntl::posix_fallocate(&file, 0, length)?;
    file.sync_all()
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
        for bytes in [1 << 20, 3 << 20, 2 << 20] {
            hold(&path, bytes).unwrap();
            let about = std::fs::metadata(&path).unwrap();
            assert_eq!(about.len(), bytes);
            assert!(about.blocks() * 512 >= bytes, "{about:?}");
        }
    }
}
