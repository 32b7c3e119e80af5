//! A file of lines that grows at its end: for what is worth keeping through a restart, but not worth a sync each time.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use super::file::give_to;
use super::{Error, Mode, RunAs, write_atomic};

/// Such a file. Whoever opened it is its only writer.
#[derive(Debug)]
pub struct Lines {
    path: Utf8PathBuf,
    owner: RunAs,
    present: usize,
    kept: usize,
}

impl Lines {
    /// Opens the file, cut to its last `kept` lines, which are returned; without one there are none.
    ///
    /// # Errors
    /// It is there and cannot be read, or cannot be cut.
    pub fn open(path: &Utf8Path, owner: &RunAs, kept: usize) -> Result<(Self, Vec<String>), Error> {
        let mut lines = Self { path: path.to_owned(), owner: owner.clone(), present: 0, kept };
        let last = lines.cut()?;
        Ok((lines, last))
    }

    /// Adds a line. When twice as many as are kept have gathered, the older half is dropped.
    ///
    /// # Errors
    /// It could not be written; half a line at the end of the file is left out at the next start.
    pub fn append(&mut self, line: &str) -> Result<(), Error> {
        let failed = |source| Error::WriteFile { path: self.path.clone(), source };
        let mut file =
            OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path).map_err(failed)?;
        give_to(&file, &self.owner).map_err(failed)?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
        self.present += 1;
        if self.present >= 2 * self.kept {
            self.cut()?;
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<Vec<String>, Error> {
        let text = match std::fs::read(&self.path) {
            // A crash may have left anything: one broken line does not hide the others.
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::ReadFile { path: self.path.clone(), source }),
        };
        let lines: Vec<&str> = text.lines().collect();
        let surplus = lines.len().saturating_sub(self.kept);
        let last: Vec<String> = lines.into_iter().skip(surplus).map(str::to_owned).collect();
        if surplus > 0 || !(text.is_empty() || text.ends_with('\n')) {
            let whole: String = last.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
            write_atomic(&self.path, whole.as_bytes(), &self.owner, Mode::Private)?;
        }
        self.present = last.len();
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(from: u32, to: u32) -> Vec<String> {
        (from..to).map(|n| n.to_string()).collect()
    }

    #[test]
    fn the_last_lines_are_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("lines")).unwrap();
        let (mut lines, none) = Lines::open(&path, &RunAs::Same, 5).unwrap();
        assert_eq!(none, Vec::<String>::new());
        for line in numbers(0, 23) {
            lines.append(&line).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.lines().count() < 10, "it is cut as it grows");
        assert_eq!(Lines::open(&path, &RunAs::Same, 5).unwrap().1, numbers(18, 23));
    }

    #[test]
    fn half_a_line_does_not_swallow_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("lines")).unwrap();
        write_atomic(&path, b"whole\nhal\xff", &RunAs::Same, Mode::Private).unwrap();
        let (mut lines, _) = Lines::open(&path, &RunAs::Same, 5).unwrap();
        lines.append("next").unwrap();
        let (_, last) = Lines::open(&path, &RunAs::Same, 5).unwrap();
        assert_eq!(last, ["whole", "hal\u{fffd}", "next"]);
    }
}
