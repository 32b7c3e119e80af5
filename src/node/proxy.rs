//! The proxy's place in a node: what it is configured with, and its unit.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Ground;
use crate::clock::Backoff;
use crate::config::{self, Config, Network};
use crate::postgres::ClientTls;
use crate::process::InitLink;
use crate::proxy::{Checks, Deps, Own};
use crate::supervisor::{Restart, Rung, Unit, UnitSpec};
use crate::{ha, proxy};

/// It has nothing to write down at its end.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
/// A proxy that dies takes its sessions with it, so the next one is started without much ado.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(10) };
/// One that has run for so long starts afresh.
const HEALTHY: Duration = Duration::from_secs(30);

/// Starts the proxy when it is wanted.
pub(super) fn start(
    ground: &Ground,
    status: watch::Receiver<Option<ha::Status>>,
    init: InitLink,
    background: &mut JoinSet<()>,
    stop: CancellationToken,
) -> anyhow::Result<Option<Unit>> {
    let Some(wanted) = &ground.config.proxy else { return Ok(None) };
    let config = configuration(ground, wanted)?;
    let unit = Unit::spawn(spec(), init, background);
    let deps = Deps { unit: unit.clone(), status };
    proxy::spawn(config, deps, background, stop)?;
    Ok(Some(unit))
}

fn spec() -> UnitSpec {
    let stop = vec![Rung { signal: nix::sys::signal::Signal::SIGTERM, wait: STOP_PATIENCE }];
    UnitSpec { name: "haproxy", restart: Restart::Always { backoff: BACKOFF, healthy_after: HEALTHY }, stop }
}

fn configuration(ground: &Ground, wanted: &config::Proxy) -> anyhow::Result<proxy::Config> {
    let Config { listen, bound, run_dir, tls, .. } = &ground.config;
    let missing = "haproxy was not found in PATH: install it, or set PROXY_ENABLED=false";
    Ok(proxy::Config {
        program: ground.config.program("haproxy").context(missing)?,
        run_as: ground.place.run_as.clone(),
        run_dir: run_dir.clone(),
        listen: *listen,
        ports: wanted.ports,
        socket_dir: wanted.socket_dir.clone(),
        max_lag: wanted.max_lag,
        connect: connect_patience(ground.network),
        checks: match tls.clients {
            ClientTls::Offered => Checks::Plain,
            ClientTls::Required => Checks::Tls,
        },
        own: Own { postgres: SocketAddr::new(ground.config.local_address(), bound.postgres), api: bound.api },
    })
}

/// A few round trips, and a lost packet where distances are long.
fn connect_patience(network: Network) -> Duration {
    let millis = match network {
        Network::Local => 300,
        Network::Regional => 1500,
        Network::Auto | Network::Global => 3000,
    };
    Duration::from_millis(millis)
}
