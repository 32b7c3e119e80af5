//! A watchdog: the device that resets this machine unless it is told in time that all is well.
//!
//! Invariant: only [`Watchdog::disarm`] ends it in peace, with the letter that says so; dropped or left by a process that dies
//! it goes on counting. Absent: when it is to be told (`ha::watchdog`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::time::Duration;

use camino::Utf8PathBuf;
use nix::unistd::AccessFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

use super::Error;

/// `WDIOC_GETSUPPORT`, `_SETOPTIONS`, `_SETTIMEOUT` and `_GETTIMEOUT` of `linux/watchdog.h`.
const GET_SUPPORT: Opcode = opcode::read::<Support>(b'W', 0);
const SET_OPTIONS: Opcode = opcode::read::<i32>(b'W', 4);
const SET_TIMEOUT: Opcode = opcode::read_write::<i32>(b'W', 6);
const GET_TIMEOUT: Opcode = opcode::read::<i32>(b'W', 7);
/// `WDIOF_MAGICCLOSE`: a close alone does not stop it.
const MAGIC_CLOSE: u32 = 0x100;
/// `WDIOS_DISABLECARD`.
const TURN_OFF: i32 = 1;
/// `/dev/watchdog` itself, which is the first of them under an older number.
const OLD_NUMBER: (u64, u64) = (10, 130);
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

/// `struct watchdog_info`: what it can, a version, and a name of 32 bytes.
type Support = [u32; 10];

/// What stops a watchdog that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// The last letter, and nothing else.
    Heeded,
    /// Nothing (`nowayout`): the machine is reset once nobody says that all is well.
    Refused,
    /// The end of whoever holds it: it does not guard against that.
    Needless,
}

/// Whether somebody uses a watchdog, or has left it counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It counts.
    Taken,
    /// It does not, for all that is known.
    Free,
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

    /// Whether it is there, may be used, and counts: without touching it, since some can never be stopped once they were opened.
    ///
    /// # Errors
    /// It is not there, or may not be used.
    pub fn look(&self) -> Result<Use, Error> {
        nix::unistd::access(self.path.as_std_path(), AccessFlags::R_OK | AccessFlags::W_OK)
            .map_err(|errno| self.failed("use", errno.into()))?;
        let counts = self.attribute("state").as_deref() == Some("active");
        Ok(if counts { Use::Taken } else { Use::Free })
    }

    /// What the kernel says of it in `/sys`.
    fn attribute(&self, name: &str) -> Option<String> {
        let number = std::fs::metadata(&self.path).ok()?.rdev();
        let dir = match (nix::sys::stat::major(number), nix::sys::stat::minor(number)) {
            OLD_NUMBER => "/sys/class/watchdog/watchdog0".to_owned(),
            (major, minor) => format!("/sys/dev/char/{major}:{minor}"),
        };
        let text = std::fs::read_to_string(format!("{dir}/{name}")).ok()?;
        Some(text.trim().to_owned())
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

    /// What will stop it.
    pub fn farewell(&self) -> Farewell {
        match self.device.driver {
            WatchdogDriver::Written => Farewell::Heeded,
            WatchdogDriver::Kernel => {
                farewell(options(&self.file).ok(), self.device.attribute("nowayout").as_deref())
            }
        }
    }

    /// Stops it.
    ///
    /// # Errors
    /// It does not stop, or was not told: it resets the machine when its time, all of it from now on, has come.
    pub fn disarm(mut self) -> Result<(), Error> {
        let refused = match self.device.driver {
            WatchdogDriver::Kernel => turn_off(&self.file) == Err(Errno::BUSY),
            WatchdogDriver::Written => false,
        };
        if refused {
            self.ping()?;
            return Err(self.device.failed("stop", Errno::BUSY.into()));
        }
        self.file.write_all(FAREWELL).map_err(|source| self.device.failed("stop", source))
    }
}

/// What does not say what it can is taken for one of the usual kind.
fn farewell(options: Option<u32>, nowayout: Option<&str>) -> Farewell {
    match (options, nowayout) {
        (_, Some("1")) => Farewell::Refused,
        (Some(options), _) if options & MAGIC_CLOSE == 0 => Farewell::Needless,
        (Some(_) | None, _) => Farewell::Heeded,
    }
}

#[expect(unsafe_code, reason = "the kernel's interface to watchdogs is ioctl")]
fn options(device: &File) -> Result<u32, Errno> {
    // SAFETY: the request writes one `watchdog_info`, as `linux/watchdog.h` declares it.
    let [options, ..] = unsafe { ioctl(device, Getter::<GET_SUPPORT, Support>::new()) }?;
    Ok(options)
}

#[expect(unsafe_code, reason = "the kernel's interface to watchdogs is ioctl")]
fn turn_off(device: &File) -> Result<(), Errno> {
    // SAFETY: the request reads one int, as `linux/watchdog.h` declares it.
    unsafe { ioctl(device, Setter::<SET_OPTIONS, i32>::new(TURN_OFF)) }
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
    fn what_stops_it_is_known_beforehand() {
        assert_eq!(farewell(Some(MAGIC_CLOSE | 0x80), Some("0")), Farewell::Heeded);
        assert_eq!(farewell(Some(MAGIC_CLOSE), Some("1")), Farewell::Refused);
        assert_eq!(farewell(None, Some("1")), Farewell::Refused);
        assert_eq!(farewell(Some(0x80), None), Farewell::Needless);
        assert_eq!(farewell(None, None), Farewell::Heeded);
    }

    #[test]
    fn what_is_no_watchdog_says_so() {
        let nowhere = WatchdogDevice { driver: WatchdogDriver::Kernel, path: "/nowhere/watchdog".into() };
        assert!(nowhere.look().is_err());
        assert!(nowhere.arm(Duration::from_secs(5)).is_err());
        let null = WatchdogDevice { path: "/dev/null".into(), ..nowhere };
        let error = null.arm(Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.to_string(), "could not set the watchdog /dev/null");
        assert_eq!(null.look().unwrap(), Use::Free);
    }
}
