//! `pgherd list`: the members of the cluster, once or again and again.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::ctl::client::Cluster;
use super::{Api, Printed, table};

/// How `list` shows the members.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Print again every so many seconds
    #[arg(
        short = 'W',
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub watch: Option<u64>,
}

/// How the members are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// By name.
    Table,
    /// Each below the one that it streams from.
    Tree,
}

/// Moves to the top left corner and clears from there on: no flicker, nothing in the scroll-back.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Prints the members; with `--watch` until interrupted or until nobody reads any more.
///
/// # Errors
/// The API does not answer (a watch goes on and says so), or the output cannot be written.
pub async fn run(args: &Args, cluster: &Cluster, shape: Shape) -> anyhow::Result<Printed> {
    let Some(seconds) = args.watch else {
        let text = page(args, &cluster.get("/cluster").await?, shape);
        return print(&text).map(|_written| Printed).context("could not print");
    };
    loop {
        let text = match cluster.get("/cluster").await {
            Ok(cluster) => page(args, &cluster, shape),
            // A node that restarts is what one watches for.
            Err(error) => format!("{error:#}\n"),
        };
        let start = if io::stdout().is_terminal() { REDRAW } else { "" };
        if print(&format!("{start}{text}")).context("could not print")? == Reader::Gone {
            return Ok(Printed);
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

fn page(args: &Args, cluster: &Value, shape: Shape) -> String {
    match shape {
        Shape::Table | Shape::Tree if args.json => format!("{cluster:#}\n"),
        Shape::Table => table::members(cluster),
        Shape::Tree => table::members(&table::as_tree(cluster)),
    }
}

/// Whether anybody still reads what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    There,
    Gone,
}

fn print(text: &str) -> io::Result<Reader> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        // `pgherd list -W | head`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error),
    }
}
