//! What stands in the state directory while PGDATA is being changed: it outlives a crash in the middle of that.
//!
//! Invariant: nothing is deleted because of a marker. A marker names the directory that it was set for: only of that very one does
//! [`ORIGIN`] say that it is as good as empty. Of any other, and for every other marker, the data is not to be trusted
//! (`control::classify`): a directory that was moved with its volume is the same half of a rewind.

use std::os::unix::fs::MetadataExt as _;
use std::time::UNIX_EPOCH;

use camino::Utf8Path;

use super::launch::sync_dir;
use super::{Error, Shared, conf};
use crate::process::{self, Mode};

/// While a clone is under way.
pub(super) const CLONE: &str = "clone-in-progress";
/// While pg_rewind changes PGDATA.
pub(super) const REWIND: &str = "rewind-in-progress";
/// While a command of the administrator's copies into PGDATA itself.
pub(super) const FILL: &str = "copy-in-progress";
/// While such a command makes a new cluster in PGDATA.
pub(super) const ORIGIN: &str = "bootstrap-in-progress";

/// Which directory a marker was set for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The one that is there.
    This,
    /// Another one, that was in its place.
    Another,
    /// It does not say: there was none, or an older version has set it.
    Unsaid,
}

/// Sets one for the data directory as it is now.
pub(super) async fn set(shared: &Shared, name: &str) -> Result<(), Error> {
    let (path, data_dir) = (shared.config.state_dir.join(name), shared.config.data_dir.clone());
    conf::off_thread(move || {
        let text = identity(&data_dir).unwrap_or_default();
        process::write_atomic(&path, text.as_bytes(), &process::RunAs::Same, Mode::Private)
            .map(|_written| ())
            .map_err(|source| Error::Write { path, source })
    })
    .await
}

/// Removes it, durably, if it is there.
pub(super) async fn clear(shared: &Shared, name: &str) -> Result<(), Error> {
    let (path, state_dir) = (shared.config.state_dir.join(name), shared.config.state_dir.clone());
    conf::off_thread(move || match std::fs::remove_file(&path) {
        Ok(()) => sync_dir(&state_dir),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file("remove", &path)(error)),
    })
    .await
}

/// Whether it stands, and for which directory.
pub(super) fn found(shared: &Shared, name: &str) -> Option<Whose> {
    let path = shared.config.state_dir.join(name);
    if !path.exists() {
        return None;
    }
    let said = std::fs::read_to_string(&path).unwrap_or_default();
    Some(whose(&said, identity(&shared.config.data_dir).as_deref()))
}

fn whose(said: &str, there: Option<&str>) -> Whose {
    match there {
        _ if said.is_empty() => Whose::Unsaid,
        Some(there) if there == said => Whose::This,
        Some(_) | None => Whose::Another,
    }
}

/// A file system gives the number of a removed directory to the next one: the time of birth, where it is known, tells them apart.
fn identity(dir: &Utf8Path) -> Option<String> {
    let meta = dir.metadata().ok()?;
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Some(format!("{} {} {}", meta.dev(), meta.ino(), born.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_the_place_of_another_is_another() {
        let place = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(place.path()).unwrap().join("data");
        std::fs::create_dir(&dir).unwrap();
        let said = identity(&dir).unwrap();
        std::fs::create_dir(dir.join("base")).unwrap();
        assert_eq!(whose(&said, identity(&dir).as_deref()), Whose::This, "what is in it makes no difference");
        std::fs::rename(&dir, dir.with_extension("old")).unwrap();
        assert_eq!(whose(&said, identity(&dir).as_deref()), Whose::Another);
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(whose(&said, identity(&dir).as_deref()), Whose::Another);
        assert_eq!(whose("", identity(&dir).as_deref()), Whose::Unsaid);
    }
}
