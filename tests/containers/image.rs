//! The image by itself: its size, what it says of itself, and where else than on a friendly machine it runs.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::client::Target;
use super::engine::{IMAGE, docker, try_docker};
use super::{engine, eventually};

/// What the image may take, without the binary under test and with a release build in its place.
const LARGEST: u64 = 480_000_000;
/// What a release build takes at most.
const RELEASE: u64 = 20_000_000;
pub(crate) const STARTED: Duration = Duration::from_secs(60);

/// Containers of one case; removed when dropped.
pub(crate) struct Lonely {
    name: &'static str,
}

impl Lonely {
    /// A cluster of one, on the default network.
    pub(crate) fn run(name: &'static str, options: &[&str]) -> Self {
        try_docker(&["rm", "-f", "-v", name]).ok();
        let environment = [
            "APP_NAME=lonely",
            "POSTGRES_SUPERUSER_PASSWORD=super",
            "POSTGRES_REPLICATION_PASSWORD=replica",
            "DISCOVERY=static",
            "DISCOVERY_PEERS=127.0.0.1",
            "ADVERTISE_ADDRESS=127.0.0.1",
        ];
        let environment = environment.iter().flat_map(|variable| ["-e", variable]);
        let args: Vec<&str> = ["run", "-d", "--name", name]
            .into_iter()
            .chain(environment)
            .chain(options.iter().copied())
            .collect();
        docker(&[args.as_slice(), &[IMAGE]].concat());
        Self { name }
    }

    pub(crate) async fn serves(&self) {
        let query = ["exec", self.name, "pgherd", "health"];
        let up = eventually(STARTED, async || try_docker(&query).ok()).await;
        assert!(up.is_some(), "{} does not serve: {}", self.name, self.logs());
    }

    /// How a client of this machine reaches it.
    pub(crate) fn target(&self) -> Target {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        Target {
            host: docker(&["inspect", "-f", format, self.name]),
            at: None,
            port: 5432,
            user: "postgres".to_owned(),
            password: "super".to_owned(),
            database: "postgres".to_owned(),
            ca: None,
        }
    }

    /// What it said last.
    pub(crate) fn logs(&self) -> String {
        let output =
            std::process::Command::new("docker").args(["logs", "--tail", "40", self.name]).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    }
}

impl Drop for Lonely {
    fn drop(&mut self) {
        try_docker(&["rm", "-f", "-v", self.name]).ok();
    }
}

#[tokio::test]
async fn the_image_is_small_and_says_what_it_is() {
    let Some(_turn) = engine().await else { return };
    let about: Value = serde_json::from_str(&docker(&["image", "inspect", IMAGE])).unwrap();
    let (about, config) = (&about[0], &about[0]["Config"]);
    let size = about["Size"].as_u64().unwrap();
    let binary = std::fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/pgherd")).unwrap().len();
    let released = size - binary + RELEASE.min(binary);
    assert!(released <= LARGEST, "{size} bytes, {binary} of them the binary");
    assert_eq!(config["Entrypoint"][0], "pgherd");
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Healthcheck"]["Test"][1], "pgherd");
    assert!(config["Volumes"]["/var/lib/postgresql/data"].is_object());
    for port in ["5432/tcp", "8008/tcp", "2379/tcp", "2380/tcp"] {
        assert!(config["ExposedPorts"][port].is_object(), "{port}");
    }
    assert_eq!(config["Labels"]["org.opencontainers.image.title"], "pgherd");
}

#[tokio::test]
async fn a_read_only_root_an_init_and_a_limit_of_memory_are_no_obstacle() {
    let Some(_turn) = engine().await else { return };
    let tmpfs = ["--tmpfs", "/run", "--tmpfs", "/tmp"];
    let options =
        ["--read-only", "--init", "--memory", "512m", "--cap-drop", "NET_RAW", "--stop-timeout", "15"];
    let node = Lonely::run("pgherd-test-read-only", &[options.as_slice(), &tmpfs].concat());
    node.serves().await;
    docker(&["stop", node.name]);
    let ended = docker(&["inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}}", node.name]);
    assert_eq!(ended, "0 false", "{}", node.logs());
}

#[tokio::test]
async fn any_account_can_run_it() {
    let Some(_turn) = engine().await else { return };
    let node = Lonely::run("pgherd-test-account", &["--user", "4711:4712", "--cap-drop", "ALL"]);
    node.serves().await;
    let owner = docker(&["exec", node.name, "stat", "-c", "%u", "/var/lib/postgresql/data/pgdata"]);
    assert_eq!(owner, "4711");
}

#[tokio::test]
async fn the_stack_file_is_valid() {
    let Some(_turn) = engine().await else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/stack.yml");
    let file = file.to_str().unwrap();
    let read = try_docker(&["stack", "config", "-c", file]);
    let read = match read {
        // A client from before 2023 has no such command; compose reads the same language.
        Err(said) if said.contains("unknown") || said.contains("Usage") => {
            try_docker(&["compose", "-f", file, "config"])
        }
        other => other,
    };
    let text = read.unwrap_or_else(|said| panic!("{said}"));
    for part in ["mode: global", "node.labels.pgherd == true", "DISCOVERY_DNS_NAME", "stop-first"] {
        assert!(text.contains(part), "{part} is missing from\n{text}");
    }
}
