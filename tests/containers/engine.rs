//! The Docker engine as a person uses it: its command line, and nothing else.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The image under test.
pub(crate) const IMAGE: &str = "pgherd:test";
/// The image that an upgrade brings: the same with another label.
pub(crate) const IMAGE_NEXT: &str = "pgherd:test-next";
/// The location API's.
pub(crate) const MOCK: &str = "mock-flux-api:test";
/// What both are made from.
const BASE: &str = "debian:trixie-slim";

/// Whether there is an engine, and what must be known of it.
pub(crate) enum Engine {
    Ready,
    /// Why there is none.
    Missing(String),
}

impl Engine {
    /// Looks once, and builds the image once.
    pub(crate) fn get() -> &'static Self {
        static ENGINE: OnceLock<Engine> = OnceLock::new();
        ENGINE.get_or_init(|| match missing() {
            Some(why) => Self::Missing(why),
            None => {
                build();
                Self::Ready
            }
        })
    }
}

fn missing() -> Option<String> {
    let version = run(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]));
    match version {
        Err(error) => return Some(format!("docker cannot be run: {error}")),
        Ok(output) if !output.status.success() => return Some("no Docker engine answers".to_owned()),
        Ok(_) => {}
    }
    if compose().is_none() {
        return Some("neither `docker compose` nor `docker-compose` is installed".to_owned());
    }
    // A newer client without its plugin refuses even to say how it is used.
    let buildkit = run(Command::new("docker").args(["build", "--help"]).env("DOCKER_BUILDKIT", "1"));
    if !buildkit.is_ok_and(|said| said.status.success()) {
        return Some("this client cannot build with BuildKit: its buildx plugin is not installed".to_owned());
    }
    let there = |args: &[&str]| run(Command::new("docker").args(args)).is_ok_and(|out| out.status.success());
    let base = there(&["image", "inspect", BASE]) || there(&["pull", "--quiet", BASE]);
    (!base).then(|| format!("no image {BASE} and no registry; docker/offline/base-image makes one"))
}

fn run(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).output()
}

/// The first words of a compose command line.
pub(crate) fn compose() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
    static COMPOSE: OnceLock<Option<&'static [&'static str]>> = OnceLock::new();
    *COMPOSE.get_or_init(|| {
        WAYS.into_iter().find(|way| {
            let version = run(Command::new(way[0]).args(&way[1..]).arg("version"));
            version.is_ok_and(|out| out.status.success())
        })
    })
}

/// Runs `docker`; what it printed.
pub(crate) fn docker(args: &[&str]) -> String {
    let output = run(Command::new("docker").args(args)).unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

/// Runs `docker`; what it printed on both streams when it failed.
pub(crate) fn try_docker(args: &[&str]) -> Result<String, String> {
    let output = run(Command::new("docker").args(args)).unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    if output.status.success() { Ok(text(&output.stdout).trim().to_owned()) } else { Err(said) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The image, from the binaries that were built for these tests.
fn build() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dist = root.join("dist");
    std::fs::create_dir_all(&dist).unwrap();
    for (from, name) in [(super::pgherd(), "pgherd"), (super::mock(), "mock-flux-api")] {
        // Without debug information: the image is measured.
        let stripped = Command::new("strip").arg("-o").arg(dist.join(name)).arg(&from).status();
        if !stripped.is_ok_and(|status| status.success()) {
            std::fs::copy(&from, dist.join(name)).unwrap();
        }
    }
    for (target, tag) in [("pgherd", IMAGE), ("mock-flux-api", MOCK)] {
        let mut command = Command::new("docker");
        command.args(["build", "-f", "docker/Dockerfile", "--build-arg", "BIN=prebuilt"]);
        command.args(["--target", target, "-t", tag, "."]).current_dir(root).env("DOCKER_BUILDKIT", "1");
        let output = run(&mut command).unwrap();
        assert!(output.status.success(), "the image cannot be built: {}", text(&output.stderr));
    }
}

/// The image that an upgrade brings.
pub(crate) fn build_next() {
    let mut command = Command::new("docker");
    let label = "org.opencontainers.image.version=next";
    command.args(["build", "--label", label, "-t", IMAGE_NEXT, "-"]).env("DOCKER_BUILDKIT", "1");
    let mut build =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let file = format!("FROM {IMAGE}\n");
    build.stdin.take().unwrap().write_all(file.as_bytes()).unwrap();
    assert!(build.wait().unwrap().success(), "{IMAGE_NEXT} cannot be built");
}
