//! `pgherd demo`: a whole cluster on this machine, without containers.
//!
//! The demo plays the container platform: every node is a full `pgherd init` process tree in a shim that dies as a
//! whole (see [`shim`]), with its own loopback address and the same ports on each, its own volume and run directory,
//! and `mock-flux-api` as the location API. What the demo knows of PostgreSQL and etcd is what any client sees.
//! Invariant: when the demo ends, in whatever way, no process of it is left.
//! What is absent: containers, delays, partitions.

mod cluster;
mod control;
mod place;
mod screen;
mod shim;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use camino::Utf8PathBuf;

use control::Order;

/// `pgherd demo [COMMAND]`: without a command it starts a cluster, with one it talks to the demo that runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where everything lies, kept between runs.
    #[arg(long, global = true, default_value = "demo-data")]
    dir: Utf8PathBuf,
    #[command(flatten)]
    start: Start,
    #[command(subcommand)]
    command: Option<Command>,
}

/// How the cluster is started.
#[derive(Debug, clap::Args)]
struct Start {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: u8,
    /// Whether clients must use TLS (`SSL_ENABLED`).
    #[arg(long, value_enum, default_value_t = Ssl::False)]
    ssl: Ssl,
    /// Seconds until a node whose process tree died is started again.
    #[arg(long, default_value_t = 3)]
    restart_after: u64,
    /// The first three parts of the nodes' addresses.
    #[arg(long, default_value = "127.0.1")]
    subnet: String,
    /// Removes the data of earlier runs first.
    #[arg(long)]
    fresh: bool,
}

/// `SSL_ENABLED`, as the environment spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ssl {
    /// Clients may use TLS.
    False,
    /// Clients must use TLS.
    True,
}

/// What can be asked of a running demo. A node is a number, or `primary`.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start one node more and list it in the location API
    Add,
    /// Take a node out of the location API; it keeps running until `stop`
    Remove { node: String },
    /// Stop a node in order (SIGTERM); it stays stopped until `start`
    Stop { node: String },
    /// Start a stopped node, and list it again if it was removed
    Start { node: String },
    /// SIGKILL a node's whole process tree; it is started again as a container runtime would
    Kill { node: String },
    /// SIGKILL a node's postmaster only
    Crash { node: String },
    /// Stop or start the location API
    Api { state: control::Api },
    /// Hold one node's process tree (used by the demo itself)
    #[command(hide = true)]
    Shim(shim::Args),
}

/// Runs the demo, or asks something of the one that runs.
///
/// # Errors
/// The demo cannot start here, or the running one refuses.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let order = match args.command {
        None => return start(&args.dir, &args.start),
        Some(Command::Shim(shim)) => return shim::run(&shim),
        Some(Command::Add) => Order::Add,
        Some(Command::Remove { node }) => Order::Remove { node },
        Some(Command::Stop { node }) => Order::Stop { node },
        Some(Command::Start { node }) => Order::Start { node },
        Some(Command::Kill { node }) => Order::Kill { node },
        Some(Command::Crash { node }) => Order::Crash { node },
        Some(Command::Api { state }) => Order::Api { state },
    };
    runtime()?.block_on(control::ask(&place::Place::find(&args.dir)?, &order))
}

fn start(dir: &Utf8PathBuf, start: &Start) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {dir}"))?;
    let place = place::Place::find(dir)?;
    let plan = cluster::Plan {
        nodes: start.nodes,
        ssl: start.ssl,
        restart_after: Duration::from_secs(start.restart_after),
        subnet: place::Subnet::parse(&start.subnet)?,
    };
    if start.fresh {
        place.clear()?;
    }
    runtime()?.block_on(cluster::run(place, plan))
}

/// One thread: the demo's state belongs to one task, and its shims' parent must not be a thread that ends (their
/// parent-death signal follows the thread that spawned them).
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
