//! The command line: the commands that a person types, as thin as they can be.
//!
//! Each command parses its arguments, calls one room and prints. What changes a cluster is in [`ctl`], and speaks to the
//! API like anybody else. What is absent: any rule about a cluster; the nodes refuse what is not safe.

pub mod credentials;
pub mod ctl;
pub mod demo;
pub mod doctor;
pub mod drill;
pub mod foreign;
pub mod list;
pub mod remove;
pub mod report;
pub mod supervise;
pub mod table;
pub mod why;
pub mod yaml;

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use serde_json::Value;

use crate::config::Config;
use crate::postgres;
use crate::process::{RunAs, VolumeLock};

/// What any call of the own node's API may take: it answers from memory, over loopback as a rule.
const API_PATIENCE: Duration = Duration::from_secs(5);

/// One binary that turns N containers into one highly available PostgreSQL cluster.
#[derive(Debug, Parser)]
#[command(name = "pgherd", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; without it, `init` for the first process of a container and this help for a person.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node: the entrypoint of the container
    Init(foreign::Args),
    /// The node itself, started by `init`
    #[command(hide = true)]
    Node,
    /// Run in the place of a Patroni process, with its configuration file
    Agent(Agent),
    /// Run the services of a list, with PID 1 duties
    Supervise(supervise::Args),
    /// The services of a list, started by `init`
    #[command(hide = true)]
    Units(supervise::Args),
    /// The verbs of patronictl.
    #[command(flatten)]
    Ctl(ctl::Verb),
    /// Remove what a cluster has left in the store; data directories stay
    Remove(remove::Args),
    /// Tell what a node decided and on what, and who would take over if the primary died now
    Why(why::Args),
    /// Look at everything that a person would when something is odd, and say what to do about it
    Doctor(doctor::Args),
    /// Print a report for whoever helps, as JSON and without secrets
    Report,
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Exit with 0 when PostgreSQL runs on this node, with 1 otherwise (for HEALTHCHECK)
    Health(Api),
    /// Try something on the running cluster, and measure it
    #[command(subcommand)]
    Drill(drill::Drill),
    /// Put data from before pgherd back where it was; no node may run on the volume
    RestoreVolume(ctl::Json),
    /// Print the version; with names, or --cluster, those of the members
    Version(Version),
    /// Print the certificate of an authority of this cluster
    Ca(credentials::Ca),
    /// Make a certificate for a tool, from this cluster's secret and without asking any node
    ClientCert(credentials::ClientCert),
    /// Write a configuration for patronictl, with the certificates that it (and etcdctl) need
    PatronictlConfig(credentials::Patronictl),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Run a whole cluster on this machine
    Demo(demo::Args),
}

/// Options of `agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct Agent {
    /// Say what is wrong with the file, or that nothing is, and end
    #[arg(long)]
    pub validate_config: bool,
    /// Patroni's YAML file, or a directory of such files
    #[arg(value_name = "FILE")]
    pub file: Option<camino::Utf8PathBuf>,
}

/// Options of `version`.
#[derive(Debug, Clone, clap::Args)]
pub struct Version {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// Of these members
    #[arg(value_name = "MEMBER")]
    pub members: Vec<String>,
    /// Of every member
    #[arg(long)]
    pub cluster: bool,
    /// How to print.
    #[command(flatten)]
    pub json: ctl::Json,
}

/// Something has been said, or nobody listens any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Printed;

/// Prints. That nobody reads (`pgherd show-config | head -1`) is no failure.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(text: &str) -> anyhow::Result<Printed> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("could not print"),
        Ok(()) | Err(_) => Ok(Printed),
    }
}

/// The command line for a shell, or as a manual page.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<Printed> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgherd", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// The manual page, with every command.
///
/// # Errors
/// Standard output cannot be written.
pub fn manual() -> anyhow::Result<Printed> {
    let mut text = Vec::new();
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut text).context("could not make the page")?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("pgherd {}", command.get_name());
        let page = clap_mangen::Man::new(command.clone().bin_name(name.clone()).display_name(name));
        page.render_synopsis_section(&mut text).context("could not make the page")?;
        page.render_description_section(&mut text).context("could not make the page")?;
        page.render_options_section(&mut text).context("could not make the page")?;
    }
    print(&String::from_utf8_lossy(&text))
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the environment and say everything that is wrong with it
    Check(ctl::Json),
}

/// Which API to ask.
#[derive(Debug, Clone, clap::Args)]
pub struct Api {
    /// Ask this API, such as http://203.0.113.7:8008, instead of this node's own
    #[arg(long = "api", value_name = "URL")]
    pub url: Option<String>,
}

/// A client of an API whose certificate is not verified: this is the own node, reached by an address of its own, and
/// only what anybody may know is read from it.
fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().timeout(API_PATIENCE).build()
}

/// A page of the API.
async fn fetch(client: &reqwest::Client, url: &str, page: &str) -> anyhow::Result<Value> {
    let url = format!("{}/{page}", url.trim_end_matches('/'));
    let answer = client.get(&url).send().await;
    let answer = answer.and_then(reqwest::Response::error_for_status);
    let answer = answer.map_err(reqwest::Error::without_url);
    let text = match answer {
        Ok(answer) => answer.text().await.map_err(reqwest::Error::without_url),
        Err(error) => Err(error),
    };
    let text = text.with_context(|| format!("could not read {url} (does the node run?)"))?;
    serde_json::from_str(&text).with_context(|| format!("{url} does not answer like a node of ours"))
}

/// Whether the API says that PostgreSQL runs.
///
/// # Errors
/// The API cannot be reached, which is not healthy either.
pub async fn is_healthy(url: &str) -> anyhow::Result<bool> {
    let answer = client()?.get(format!("{}/health", url.trim_end_matches('/'))).send().await?;
    Ok(answer.status().is_success())
}

/// Puts what was adopted back to the root of the volume, for the program that made it.
///
/// # Errors
/// A node runs on the volume, nothing was adopted there, or something is in the way.
pub fn restore_volume(config: &Config, json: ctl::Json) -> anyhow::Result<Printed> {
    let state_dir = config.state_dir();
    let _alone = VolumeLock::take(&state_dir.join(".lock"), &RunAs::Same)?;
    let n = postgres::restore(&state_dir, &config.database.data_dir)?;
    let volume = &config.data_volume;
    let told = serde_json::json!({ "entries": n, "volume": volume });
    ctl::say(json, &format!("{n} entries are back on the root of {volume}"), &told)
}
