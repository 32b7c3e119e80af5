//! The mock as a program. What it serves and how it is changed is described in the library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;

use anyhow::{Context, bail};
use clap::Parser;
use mock_flux_api::{Mock, Node, State};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::info;

const FORMAT: &str = r#"File format:
  {"app": "mypg", "instances": 3, "nodes": ["127.0.1.1", "127.0.1.2:16127"]}
A bare list of nodes is accepted too; `app` and `instances` may be missing. The file is read again when its
content changes; one that cannot be used leaves everything as it was, and /admin/state says why.

Admin calls:
  GET    /admin/state
  POST   /admin/nodes       {"ip":"203.0.113.7"}
  DELETE /admin/nodes/IP
  PUT    /admin/nodes       ["203.0.113.7", "198.51.100.9:16137"]
  PUT    /admin/fault       {"kind":"none|error|html|truncated|http500|stall[:SECONDS]|empty|huge|
                             duplicates|ipv6|without:IP|partial[:N]"}
  PUT    /admin/instances   3
  PUT    /admin/hostinfo    "source" | "error" | "203.0.113.7"
The content type is application/json."#;

/// A stand-in for the location API of the Flux network
#[derive(Debug, Parser)]
#[command(version, after_help = FORMAT)]
struct Args {
    /// Where to listen; may be given several times
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:16127")]
    listen: Vec<SocketAddr>,
    /// The list as a file, read again when it changes
    #[arg(long, value_name = "NODES.JSON")]
    file: Option<PathBuf>,
    /// A node of the list; may be given several times
    #[arg(long = "node", value_name = "ADDR[:PORT]")]
    nodes: Vec<Node>,
    /// The desired size in the specification
    #[arg(long, value_name = "N")]
    instances: Option<usize>,
    /// The one application that is known; without it every name is
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    let mut state = State { app: args.app, ..State::default() };
    state.instances = args.instances.unwrap_or(state.instances);
    state.replace(args.nodes);
    let mock = Mock::new(state);
    let mut servers = JoinSet::new();
    for addr in args.listen {
        let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
        info!(addr = %listener.local_addr()?, "listening");
        servers.spawn(mock.clone().serve(listener));
    }
    let ended = async { servers.join_next().await };
    let Some(path) = args.file else {
        bail!("a listener ended: {:?}", ended.await);
    };
    tokio::select! {
        error = pin!(mock_flux_api::follow(mock, &path)) => Err(error).context("cannot use the file"),
        result = ended => bail!("a listener ended: {result:?}"),
    }
}
