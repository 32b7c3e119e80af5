//! A watchdog: the device that resets this machine unless it is told in time that all is well.
//!
//! Invariant: only [`Watchdog::disarm`] ends it in peace, with the letter that says so; dropped or left by a process that dies
//! it goes on counting. Absent: when it is to be told (`ha::watchdog`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use camino::Utf8PathBuf;
use nix::unistd::AccessFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};

use super::Error;

/// `WDIOC_SETTIMEOUT` and `WDIOC_GETTIMEOUT` of `linux/watchdog.h`.
const SET_TIMEOUT: Opcode = opcode::read_write::<i32>(b'W', 6);
const GET_TIMEOUT: Opcode = opcode::read::<i32>(b'W', 7);
/// Any byte but the last letter means that all is well.
const ALIVE: &[u8] = b"1";
/// What is written last by whoever wants it to stop counting.
const FAREWELL: &[u8] = b"V";

/// Where a watchdog is, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogDevice {
    /// How.
    pub driver: WatchdogDriver,
    /// Where.
    pub path: Utf8PathBuf,
}

/// How a watchdog is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogDriver {
    /// As the kernel's devices are.
    Kernel,
    /// In writing only: a pipe that a test reads (Patroni's `testing`).
    Written,
}

/// A watchdog that counts.
#[derive(Debug)]
pub struct Watchdog {
    device: WatchdogDevice,
    file: File,
    timeout: Duration,
}

impl WatchdogDevice {
    /// Where the kernel has it, unless it has several.
    pub const USUAL: &str = "/dev/watchdog";

    /// Whether it is there and may be used, without touching it: some can never be stopped once they were opened.
    ///
    /// # Errors
    /// It is not, or may not.
    pub fn look(&self) -> Result<(), Error> {
        nix::unistd::access(self.path.as_std_path(), AccessFlags::R_OK | AccessFlags::W_OK)
            .map_err(|errno| self.failed("use", errno.into()))
    }

    /// Sets it going. It counts from now, and waits as long as [`Watchdog::timeout`] says: not every one can be told how long.
    ///
    /// # Errors
    /// It cannot be opened, or does not say how long it waits.
    pub fn arm(&self, timeout: Duration) -> Result<Watchdog, Error> {
        // A pipe that nobody empties must not make us wait.
        let opened =
            OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.path);
        let file = opened.map_err(|source| self.failed("open", source))?;
        let mut watchdog = Watchdog { device: self.clone(), file, timeout };
        match watchdog.wait_for(timeout) {
            Ok(()) => Ok(watchdog),
            Err(error) => {
                watchdog.disarm()?;
                Err(error)
            }
        }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Watchdog { operation, device: self.path.clone(), source }
    }
}

impl Watchdog {
    /// How long it waits for a sign of life.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Has it wait so long, in whole seconds, or as near as it can. It counts anew.
    ///
    /// # Errors
    /// It does not say how long it waits.
    pub fn wait_for(&mut self, timeout: Duration) -> Result<(), Error> {
        let seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
        let waits = match self.device.driver {
            WatchdogDriver::Written => {
                self.file.write_all(format!("Ctimeout={seconds}\n").as_bytes()).map(|()| seconds)
            }
            WatchdogDriver::Kernel => set_timeout(&self.file, seconds).map_err(io::Error::from),
        };
        let waits = waits.map_err(|source| self.device.failed("set", source))?;
        self.timeout = Duration::from_secs(u64::try_from(waits).unwrap_or(0));
        Ok(())
    }

    /// Tells it that all is well: it counts anew.
    ///
    /// # Errors
    /// It was not told.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.file.write_all(ALIVE).map_err(|source| self.device.failed("ping", source))
    }

    /// Stops it.
    ///
    /// # Errors
    /// It was not told: it resets the machine when its time has come.
    pub fn disarm(mut self) -> Result<(), Error> {
        self.file.write_all(FAREWELL).map_err(|source| self.device.failed("stop", source))
    }
}

/// What the device waits now: what it was asked for, if it can be asked.
#[expect(unsafe_code, reason = "the kernel's interface to watchdogs is ioctl")]
fn set_timeout(device: &File, seconds: i32) -> Result<i32, Errno> {
    let mut asked = seconds;
    // SAFETY: both requests read or write one int, as `linux/watchdog.h` declares them.
    let (set, get) = unsafe {
        let set = ioctl(device, Updater::<SET_TIMEOUT, i32>::new(&mut asked));
        (set, ioctl(device, Getter::<GET_TIMEOUT, i32>::new()))
    };
    match set {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL) => get,
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn pipe() -> (tempfile::TempDir, WatchdogDevice, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("dog")).unwrap();
        nix::unistd::mkfifo(path.as_std_path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader =
            OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path);
        (dir, WatchdogDevice { driver: WatchdogDriver::Written, path }, reader.unwrap())
    }

    fn said(reader: &mut File) -> String {
        let mut text = [0; 100];
        let n = reader.read(&mut text).unwrap_or(0);
        String::from_utf8_lossy(&text[..n]).into_owned()
    }

    #[test]
    fn only_a_farewell_ends_it() {
        let (_keep, device, mut reader) = pipe();
        device.look().unwrap();
        let mut watchdog = device.arm(Duration::from_secs(15)).unwrap();
        watchdog.ping().unwrap();
        assert_eq!(said(&mut reader), "Ctimeout=15\n1");
        drop(watchdog);
        assert_eq!(said(&mut reader), "");
        device.arm(Duration::from_secs(9)).unwrap().disarm().unwrap();
        assert_eq!(said(&mut reader), "Ctimeout=9\nV");
    }

    #[test]
    fn what_is_no_watchdog_says_so() {
        let nowhere = WatchdogDevice { driver: WatchdogDriver::Kernel, path: "/nowhere/watchdog".into() };
        assert!(nowhere.look().is_err());
        assert!(nowhere.arm(Duration::from_secs(5)).is_err());
        let null = WatchdogDevice { path: "/dev/null".into(), ..nowhere };
        let error = null.arm(Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.to_string(), "could not set the watchdog /dev/null");
    }
}
