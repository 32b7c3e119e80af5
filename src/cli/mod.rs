//! The command line: the commands that a person types, as thin as they can be.
//!
//! Each command parses its arguments, calls one room and prints. Absent: every command that changes a cluster.

pub mod demo;
pub mod drill;
pub mod foreign;
pub mod list;
pub mod supervise;
pub mod table;
pub mod why;

use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::postgres;
use crate::process::{RunAs, VolumeLock};
use serde_json::Value;

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
    /// Run the services of a list, with PID 1 duties
    Supervise(supervise::Args),
    /// The services of a list, started by `init`
    #[command(hide = true)]
    Units(supervise::Args),
    /// Show the members of the cluster
    List(list::Args),
    /// Tell what a node decided and on what, and who would take over if the primary died now
    Why(why::Args),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Exit with 0 when PostgreSQL runs on this node, with 1 otherwise (for HEALTHCHECK)
    Health(Api),
    /// Try something on the running cluster, and measure it
    #[command(subcommand)]
    Drill(drill::Drill),
    /// Put data from before pgherd back where it was; no node may run on the volume
    RestoreVolume,
    /// Print the version
    Version,
    /// Run a whole cluster on this machine
    Demo(demo::Args),
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the environment and say everything that is wrong with it
    Check,
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
pub fn restore_volume(config: &Config) -> anyhow::Result<String> {
    let state_dir = config.state_dir();
    let _alone = VolumeLock::take(&state_dir.join(".lock"), &RunAs::Same)?;
    let n = postgres::restore(&state_dir, &config.database.data_dir)?;
    Ok(format!("{n} entries are back on the root of {}\n", config.data_volume))
}
