//! The watchdog, in the form of a pipe that is read here.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use crate::stand::{By, SOON, Stand};
use crate::wait::eventually;

/// What a member writes to its watchdog.
struct Pipe {
    reader: File,
    text: String,
}

impl Pipe {
    fn new(stand: &mut Stand, member: u8) -> Self {
        let path: PathBuf = stand.dir.join("watchdog");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        let required =
            format!("mode: required\n  device: {}\n  driver: testing\n  safety_margin: 5", path.display());
        stand.amend(member, ("mode: \"off\"", &required));
        let mut options = File::options();
        options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
        Self { reader: options.open(path).unwrap(), text: String::new() }
    }

    fn heard(&mut self) -> &str {
        let mut bytes = [0; 4096];
        while let Ok(n) = self.reader.read(&mut bytes) {
            self.text.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
        &self.text
    }

    fn forget(&mut self) {
        self.heard();
        self.text.clear();
    }

    async fn hears(&mut self, what: &str) {
        let heard = eventually(SOON, async || self.heard().contains(what).then_some(())).await;
        assert!(heard.is_some(), "{what:?} is not heard: {:?}", self.text);
    }
}

async fn configure(stand: &Stand, config: &'static str) {
    let url = format!("http://{}:8008/config", stand.ip(1));
    let answer = stand.http.patch(url).body(config).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
}

#[tokio::test]
async fn it_is_told_of_every_renewal_and_stopped_with_the_server_only() {
    let mut stand = Stand::new("false", None).await;
    let mut pipe = Pipe::new(&mut stand, 1);
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    pipe.hears("Ctimeout=15\n").await;
    pipe.forget();
    pipe.hears("111").await;
    configure(&stand, r#"{"ttl": 30}"#).await;
    pipe.hears("Ctimeout=25\n").await;
    configure(&stand, r#"{"pause": true}"#).await;
    pipe.hears("V").await;
    pipe.forget();
    configure(&stand, r#"{"pause": null, "ttl": 20}"#).await;
    pipe.hears("Ctimeout=15\n1").await;

    // Whoever is killed has not said that all is well.
    stand.kill(1);
    assert!(!pipe.heard().contains('V'), "{:?}", pipe.text);
    pipe.forget();
    stand.start(1, By::Pgherd);
    pipe.hears("Ctimeout=15\n").await;
    stand.leads(1).await;
    stand.stop(1).await;
    assert!(pipe.heard().ends_with('V'), "{:?}", pipe.text);
    stand.end().await;
}

#[tokio::test]
async fn who_needs_one_and_has_none_does_not_lead() {
    let mut stand = Stand::new("false", None).await;
    stand.amend(1, ("mode: \"off\"", "mode: required\n  device: /nowhere/watchdog"));
    stand.start(1, By::Pgherd);
    let says_so = async |stand: &Stand| {
        let (_, page) = stand.page(1, "patroni").await?;
        let reason = page["pgherd"]["reason"].as_str()?;
        (page["watchdog_failed"] == true && reason.contains("without a watchdog")).then_some(())
    };
    assert!(eventually(SOON, async || says_so(&stand).await).await.is_some(), "{}", stand.log(1));
    stand.start(2, By::Pgherd);
    stand.leads(2).await;
    stand.streams(2, 2).await;
    stand.stop(2).await;
    assert!(eventually(SOON, async || says_so(&stand).await).await.is_some(), "{}", stand.log(1));
    assert_eq!(stand.sql(1, "SELECT pg_is_in_recovery()").await, "t");
    stand.end().await;
}
