//! Where the writer puts lines: standard output, or files of bounded size and number (agent mode).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Takes bytes; only the writer's thread waits for it.
pub(super) trait Sink {
    /// Writes everything, or tells what could not be written.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Vec<u8>>;
}

/// A descriptor, used as it was inherited.
#[derive(Debug)]
pub(super) struct Stream<F>(pub(super) F);

impl<F: AsFd> Sink for Stream<F> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Vec<u8>> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match nix::unistd::write(&self.0, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(nix::errno::Errno::EINTR) => {}
                // Somebody else who holds this terminal or pipe has made it non-blocking.
                Err(nix::errno::Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut fds, PollTimeout::NONE).map_err(|_failed| rest.to_vec())?;
                }
                Err(_gone) => return Err(rest.to_vec()),
            }
        }
        Ok(())
    }
}

/// `patroni.log`, and `patroni.log.1` and so on behind it, as Patroni's own are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Where they are; it must exist.
    pub dir: Utf8PathBuf,
    /// How many old ones are kept.
    pub kept: u32,
    /// Bytes at which another one is begun.
    pub limit: u64,
    /// Their permissions, less what the umask takes away.
    pub mode: u32,
}

/// The file that is written.
#[derive(Debug)]
pub(super) struct Rotating {
    files: Files,
    file: File,
    size: u64,
}

impl Rotating {
    pub(super) fn open(files: Files) -> io::Result<Self> {
        let file = open(&files)?;
        let size = file.metadata()?.len();
        Ok(Self { files, file, size })
    }

    /// Makes room: the oldest one goes, every other one moves on.
    /// The new file is there before any old one moves: without it nothing does, and the old one grows on.
    fn rotate(&mut self) -> io::Result<()> {
        let Files { dir, kept, mode, .. } = &self.files;
        let next = dir.join("patroni.log.new");
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = File::options().create_new(true).append(true).mode(*mode).open(&next)?;
        for n in (0..*kept).rev() {
            match fs::rename(numbered(dir, n), numbered(dir, n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        fs::rename(&next, numbered(dir, 0))?;
        (self.file, self.size) = (file, 0);
        Ok(())
    }
}

impl Sink for Rotating {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Vec<u8>> {
        let full = self.files.limit > 0 && self.size > 0 && self.size + bytes.len() as u64 > self.files.limit;
        // Where nothing can be renamed the file grows on: a line is worth more than its place.
        let _rotated = full.then(|| self.rotate().is_ok());
        let rest = written(&mut self.file, bytes);
        self.size += (bytes.len() - rest.len()) as u64;
        if rest.is_empty() { Ok(()) } else { Err(rest.to_vec()) }
    }
}

/// Writes what it can, and gives back the rest.
fn written<'a>(to: &mut impl io::Write, bytes: &'a [u8]) -> &'a [u8] {
    let mut rest = bytes;
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(n) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    rest
}

fn open(files: &Files) -> io::Result<File> {
    File::options().create(true).append(true).mode(files.mode).open(numbered(&files.dir, 0))
}

fn numbered(dir: &Utf8Path, n: u32) -> Utf8PathBuf {
    dir.join(if n == 0 { "patroni.log".to_owned() } else { format!("patroni.log.{n}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_bounded_in_size_and_number_and_go_on_where_they_ended() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let files = Files { dir: dir.clone(), kept: 2, limit: 10, mode: 0o600 };
        for n in 0..9 {
            // Opened anew each time, as by another start.
            Rotating::open(files.clone()).unwrap().put(format!("line{n}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        let all = ["patroni.log", "patroni.log.1", "patroni.log.2"].map(read);
        assert_eq!(all, ["line8\n", "line7\n", "line6\n"]);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
        // The new file cannot be made: no old one is pushed out, and the current one grows on.
        fs::create_dir(dir.join("patroni.log.new")).unwrap();
        let mut log = Rotating::open(files).unwrap();
        log.put(b"line9\n").unwrap();
        log.put(b"line10\n").unwrap();
        let all = ["patroni.log", "patroni.log.1", "patroni.log.2"].map(read);
        assert_eq!(all, ["line8\nline9\nline10\n", "line7\n", "line6\n"]);
    }

    #[test]
    fn what_a_full_disk_has_taken_is_not_given_back() {
        let mut room = [0; 4];
        assert_eq!(written(&mut room.as_mut_slice(), b"line9\n"), b"9\n");
    }
}
