//! The loop: look at what the HA core published, tell HAProxy the difference. No rule is here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use camino::Utf8PathBuf;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::decide::{Order, decide};
use super::view::{Door, Server, Told, View, Weight};
use super::{Config, Error, socket};
use crate::ha;
use crate::process::{self, Command, Mode};
use crate::supervisor::{Unit, UnitState};
use crate::templates::{HaproxyCfg, Template, render, url_host};
use crate::types::Chain;

/// How often it is looked whether everything was told, when nothing happens.
const STEADY: Duration = Duration::from_secs(2);
/// After an order that was not obeyed: HAProxy has just been started, or a session is still ending.
const AGAIN: Duration = Duration::from_millis(100);
/// After a start that failed.
const START_AGAIN: Duration = Duration::from_secs(5);
/// How long a connection waits for a server: a switchover takes half a second, an election after a lease has run out more
/// than any client would wait.
const HOLD_MS: u64 = 5000;
/// The socket's name in `PROXY_SOCKET_DIR`: what libpq looks for when it is given the directory.
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// No server is here: what HAProxy knows under this name is forgotten first.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// What the agent works with.
#[derive(Debug)]
pub struct Deps {
    /// HAProxy.
    pub unit: Unit,
    /// The HA core's last word.
    pub status: watch::Receiver<Option<ha::Status>>,
}

/// Writes HAProxy's files and starts the agent, which starts HAProxy. Whoever owns the unit stops it.
///
/// # Errors
/// The files could not be written.
pub fn spawn(
    config: Config,
    deps: Deps,
    tasks: &mut JoinSet<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    write_files(&config)?;
    let agent = Agent { config, deps, process: None, told: BTreeMap::new(), complaint: String::new() };
    tasks.spawn(agent.run(stop));
    Ok(())
}

impl Config {
    fn rendered(&self, name: &str) -> Utf8PathBuf {
        self.run_dir.join(name)
    }

    fn command_socket(&self) -> Utf8PathBuf {
        self.rendered("haproxy.sock")
    }
}

fn write_files(config: &Config) -> Result<(), Error> {
    let socket = config.socket_dir.as_ref().map(|dir| dir.join(SOCKET_NAME));
    if let Some(dir) = &config.socket_dir {
        process::make_shared_dir(dir, &config.run_as)?;
    }
    let context = HaproxyCfg {
        command_socket: &config.command_socket(),
        hold_script: &config.rendered(Template::HaproxyHold.name()),
        listen_host: &url_host(config.listen),
        read_write_port: config.ports.read_write,
        read_only_port: config.ports.read_only,
        stats_port: config.ports.stats,
        read_write_socket: socket.as_deref(),
        connect_ms: u64::try_from(config.connect.as_millis()).unwrap_or(HOLD_MS),
        hold_ms: HOLD_MS,
    };
    for template in [Template::HaproxyCfg, Template::HaproxyHold] {
        let text = render(template, &context)?;
        let path = config.rendered(template.name());
        process::write_atomic(&path, text.as_bytes(), &config.run_as, Mode::Private)?;
    }
    Ok(())
}

struct Agent {
    config: Config,
    deps: Deps,
    /// The process that `told` is about: another one knows nothing yet.
    process: Option<u32>,
    told: BTreeMap<Server, Told>,
    /// What was last complained of: a failure that repeats itself is no news.
    complaint: String,
}

impl Agent {
    async fn run(mut self, stop: CancellationToken) {
        let mut state = self.deps.unit.state();
        loop {
            let now = *state.borrow_and_update();
            let pause = self.step(now).await;
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = self.deps.status.changed() => {}
                Ok(()) = state.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn step(&mut self, state: UnitState) -> Duration {
        match state {
            UnitState::Down { .. } => self.start().await,
            UnitState::Running { pid, .. } => {
                if self.process.replace(pid) != Some(pid) {
                    self.told.clear();
                }
                self.tell().await
            }
            // The unit starts it again by itself.
            UnitState::Stopping { .. } | UnitState::Draining { .. } | UnitState::Backoff { .. } => STEADY,
        }
    }

    async fn start(&mut self) -> Duration {
        let cfg = self.config.rendered(Template::HaproxyCfg.name());
        let command = Command::new("haproxy", self.config.program.clone())
            .args(["-db", "-f", cfg.as_str()])
            .run_as(&self.config.run_as)
            .expendable();
        match self.deps.unit.start(command).await {
            Ok(_pid) => AGAIN,
            Err(error) => {
                self.complain(&Error::Start(error));
                START_AGAIN
            }
        }
    }

    /// Tells what is to be told; how long until the next look.
    async fn tell(&mut self) -> Duration {
        let orders = match self.deps.status.borrow_and_update().as_ref() {
            Some(status) => {
                decide(&View::of(status, self.config.own, self.config.max_lag, self.told.clone()))
            }
            None => Vec::new(),
        };
        let socket = self.config.command_socket();
        let mut pause = STEADY;
        for order in orders {
            match socket::obey(&socket, &order, self.config.checks).await {
                Ok(()) => {
                    info!(%order, "told the proxy");
                    order.note(&mut self.told);
                }
                Err(error) => {
                    pause = AGAIN;
                    self.not_obeyed(&order, &error);
                }
            }
        }
        pause
    }

    fn not_obeyed(&mut self, order: &Order, error: &Error) {
        match (order, error) {
            // Its last session is still ending.
            (Order::Remove(_), Error::Refused { .. }) => debug!(%error, "a server is not removed yet"),
            // Known from an order whose answer was lost.
            (Order::Add(server, ..), Error::Refused { .. }) => {
                self.complain(error);
                let unknown = Told { address: NOWHERE, api: 0, weight: Weight(1), door: Door::Closed };
                self.told.insert(server.clone(), unknown);
            }
            (_, Error::Socket { .. }) => debug!(error = %Chain(error), "the proxy does not listen yet"),
            (_, error) => self.complain(error),
        }
    }

    fn complain(&mut self, error: &Error) {
        let text = Chain(error).to_string();
        if text != self.complaint {
            warn!(error = %text, "the proxy is not as it should be");
            self.complaint = text;
        }
    }
}
