//! Where programs are.

use camino::{Utf8Path, Utf8PathBuf};

/// Where Debian and Ubuntu, and the images made of them, install each major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The newest installed PostgreSQL's programs, where Debian's packages and the images made of them put them.
pub fn newest_postgres() -> Option<Utf8PathBuf> {
    newest(Utf8Path::new(DEBIAN))
}

fn newest(root: &Utf8Path) -> Option<Utf8PathBuf> {
    let versions = root.read_dir_utf8().ok()?.filter_map(Result::ok);
    let complete = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().parse().ok()?;
        let bin = entry.path().join("bin");
        bin.join("postgres").is_file().then_some((version, bin))
    });
    complete.max().map(|(_, bin)| bin)
}

/// The first of these directories that has the program, with links followed: on some systems `postgres` is a link into
/// its version's directory, and its companions lie beside the target.
pub(super) fn find(path: &[Utf8PathBuf], name: &str) -> Option<Utf8PathBuf> {
    let found = path.iter().map(|dir| dir.join(name)).find(|program| program.is_file())?;
    Some(found.canonicalize_utf8().unwrap_or(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_complete_version_wins() {
        let temp = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(temp.path()).unwrap();
        for (version, program) in [("9", "postgres"), ("15", "postgres"), ("18", "psql"), ("old", "postgres")]
        {
            let bin = root.join(version).join("bin");
            std::fs::create_dir_all(&bin).unwrap();
            std::fs::File::create(bin.join(program)).unwrap();
        }
        assert_eq!(newest(root), Some(root.join("15/bin")));
        assert_eq!(newest(&root.join("absent")), None);
        assert_eq!(find(&[root.join("9/bin"), root.join("18/bin")], "psql"), Some(root.join("18/bin/psql")));
        assert_eq!(find(&[], "psql"), None);
    }
}
