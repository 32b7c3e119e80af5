//! What a person does with a cluster: patronictl's verbs with patronictl's options, against the REST API.
//!
//! Inside a node (`docker exec NODE pgherd list`) nothing needs to be said: the node's environment tells where its API
//! is and how to be let in (a client certificate made from the node's own secret). With `--api URL` and without such an
//! environment the verbs speak to any node as a stranger, who may read, and write where the API lets him.
//!
//! Invariants: what endangers data or interrupts service is done only after the right name was typed, or with
//! `--force`; a verb that waits says what it waits for, and every wait has an end. What is absent: any decision; the
//! nodes refuse what is not safe, and their words are printed as they are.

pub mod ask;
pub mod client;
pub mod config;
pub mod query;
pub mod read;
pub mod standby;
pub mod write;

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use super::{Api, Printed, list, print};
use crate::config::Config;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the members of the cluster
    List(list::Args),
    /// Show the members as a tree: who follows whom
    Topology(list::Args),
    /// Show the timelines of the cluster: when each began, and who began it
    History(read::Args),
    /// Make a replica the primary, in order and without loss
    Switchover(write::Switchover),
    /// Make a member the primary although there is none, or it does not answer
    Failover(write::Failover),
    /// Restart PostgreSQL on members
    Restart(write::Restart),
    /// Have members read their configuration again
    Reload(write::Reload),
    /// Copy the data anew to a member
    Reinit(write::Reinit),
    /// Stop automatic failover: maintenance mode
    Pause(write::Maintenance),
    /// End maintenance mode
    Resume(write::Maintenance),
    /// Show the dynamic configuration
    ShowConfig(read::Args),
    /// Change the dynamic configuration, in an editor or by options
    EditConfig(config::Edit),
    /// Run a statement on a member
    Query(query::Args),
    /// Print how to connect to a member
    Dsn(read::Dsn),
    /// Take back what was scheduled
    Flush(write::Flush),
    /// Have the whole cluster follow another one: nobody takes writes here any more
    DemoteCluster(standby::Demote),
    /// End that: the leader of a standby cluster is promoted
    PromoteCluster(standby::Promote),
}

/// A part that a member plays, as patronictl names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Whoever leads
    Leader,
    /// The leader of a cluster that takes writes
    Primary,
    /// The leader of a cluster that follows another one
    StandbyLeader,
    /// Who follows
    Replica,
    /// Everybody
    Any,
}

/// `--json`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Json {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `--force`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Force {
    /// Do not ask
    #[arg(long)]
    pub force: bool,
}

/// `--wait`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Wait {
    /// Wait until it is done
    #[arg(long)]
    pub wait: bool,
}

/// Words for a person, or a value for a program.
///
/// # Errors
/// Standard output cannot be written.
pub fn say(json: Json, words: &str, value: &Value) -> anyhow::Result<Printed> {
    if json.json { print(&format!("{value:#}\n")) } else { print(&format!("{words}\n")) }
}

impl Verb {
    fn errand(&self) -> client::Errand {
        match self {
            Self::List(_)
            | Self::Topology(_)
            | Self::History(_)
            | Self::ShowConfig(_)
            | Self::Query(_)
            | Self::Dsn(_) => client::Errand::Look,
            Self::Switchover(_)
            | Self::Failover(_)
            | Self::Restart(_)
            | Self::Reload(_)
            | Self::Reinit(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::EditConfig(_)
            | Self::DemoteCluster(_)
            | Self::PromoteCluster(_)
            | Self::Flush(_) => client::Errand::Act,
        }
    }

    /// Which API it goes to.
    pub fn api(&self) -> &Api {
        match self {
            Self::List(args) | Self::Topology(args) => &args.api,
            Self::History(args) | Self::ShowConfig(args) => &args.api,
            Self::Switchover(args) => &args.api,
            Self::Failover(args) => &args.api,
            Self::Restart(args) => &args.api,
            Self::Reload(args) => &args.api,
            Self::Reinit(args) => &args.api,
            Self::Pause(args) | Self::Resume(args) => &args.api,
            Self::EditConfig(args) => &args.api,
            Self::Query(args) => &args.api,
            Self::Dsn(args) => &args.api,
            Self::Flush(args) => &args.api,
            Self::DemoteCluster(args) => &args.api,
            Self::PromoteCluster(args) => &args.api,
        }
    }
}

/// Does what was asked. `config` is the node's own environment, if there is one.
///
/// # Errors
/// The API cannot be reached or refuses; what was asked for makes no sense; nobody confirmed it.
pub async fn run(verb: Verb, config: Option<&Config>) -> anyhow::Result<ExitCode> {
    let cluster = client::Cluster::new(verb.api(), config, verb.errand())?;
    match verb {
        Verb::List(args) => list::run(&args, &cluster, list::Shape::Table).await,
        Verb::Topology(args) => list::run(&args, &cluster, list::Shape::Tree).await,
        Verb::History(args) => print(&read::history(&cluster, args.json).await?),
        Verb::ShowConfig(args) => print(&read::show_config(&cluster, args.json).await?),
        Verb::Dsn(args) => print(&read::dsn(&cluster, &args).await?),
        Verb::Switchover(args) => write::switchover(&cluster, &args).await,
        Verb::Failover(args) => write::failover(&cluster, &args).await,
        Verb::Restart(args) => write::restart(&cluster, &args).await,
        Verb::Reload(args) => write::reload(&cluster, &args).await,
        Verb::Reinit(args) => write::reinit(&cluster, &args).await,
        Verb::Pause(args) => write::pause(&cluster, &args).await,
        Verb::Resume(args) => write::resume(&cluster, &args).await,
        Verb::EditConfig(args) => config::edit(&cluster, &args).await,
        Verb::Query(args) => query::run(&cluster, &args, config).await,
        Verb::Flush(args) => write::flush(&cluster, &args).await,
        Verb::DemoteCluster(args) => standby::demote(&cluster, &args).await,
        Verb::PromoteCluster(args) => standby::promote(&cluster, &args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}
