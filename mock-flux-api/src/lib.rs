//! A stand-in for the location API of the Flux network: the real response schema, and every failure it is known for.
//!
//! Invariant: with no fault set, an answer has exactly the fields of the real API, and an unknown application is an
//! empty list, not an error. What is absent: the 30 s cache, gossip delays, and every call that pgherd does not use.
//!
//! # What it serves
//!
//! | call | answer |
//! |---|---|
//! | `GET /apps/location/{app}`, `GET /apps/location?appname=` | `{"status":"success","data":[{"name","hash","ip","broadcastedAt","expireAt","runningSince","osUptime","staticIp"}]}` |
//! | `GET /apps/appspecifications/{app}`, `?appname=` | `{"status":"success","data":{"name","instances",..}}` |
//! | `GET /hostinfo`, `GET /hostinfo?ip=` | `{"status":"success","data":{"ip",..}}`: the caller's address, or what was asked for |
//! | `GET /echo` | the same address as plain text, as an HTTPS echo service would |
//!
//! The name matches without regard to case, as in the real API. Without a configured name, every name matches.
//!
//! # Admin calls
//!
//! | call | body | effect |
//! |---|---|---|
//! | `GET /admin/state` | | everything that is set, and why the file was refused last (`file_error`) |
//! | `POST /admin/nodes` | `{"ip":"203.0.113.7"}` or `{"ip":"203.0.113.7:16137"}` | adds a row (a row of the same address is replaced) |
//! | `DELETE /admin/nodes/{ip}` | | removes the rows of that address; 404 when there is none |
//! | `PUT /admin/nodes` | `["203.0.113.7", ..]` | replaces the list |
//! | `PUT /admin/fault` | `{"kind":"stall"}` | breaks the answers, see [`Fault`]; `none` heals them |
//! | `PUT /admin/instances` | `3` | the desired size in the specification |
//! | `PUT /admin/hostinfo` | `"source"`, `"error"` or an address | what `/hostinfo` and `/echo` answer |
//!
//! A refused call is answered with 400 and `{"error":".."}`. Changes live in memory only; when a file is given, the
//! file wins whenever it changes.
//!
//! # File format
//!
//! ```json
//! {"app": "mypg", "instances": 3, "nodes": ["127.0.1.1", "127.0.1.2:16127"]}
//! ```
//!
//! `app` and `instances` may be missing (then they stay as they are); a bare list of nodes is accepted too. The file
//! is read again when its content changes. A file that cannot be used leaves everything as it was, and the log and
//! `/admin/state` say why.

mod admin;
mod answer;
mod fault;
mod file;
mod state;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post, put};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use fault::Fault;
pub use file::{Error as FileError, follow};
pub use state::{Hostinfo, Node, State};

/// One mock: a handle that can be cloned into any number of listeners, tests included.
#[derive(Debug, Clone)]
pub struct Mock {
    state: Arc<watch::Sender<State>>,
}

impl Mock {
    /// A mock that answers from `state`.
    pub fn new(state: State) -> Self {
        Self { state: Arc::new(watch::Sender::new(state)) }
    }

    /// A copy of everything that is set.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Changes what the next answer is made of.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Answers on `listener` until the future is dropped.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let service = self.router().into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service).await
    }

    fn router(self) -> Router {
        Router::new()
            .route("/apps/location", get(answer::location_by_query))
            .route("/apps/location/{app}", get(answer::location))
            .route("/apps/appspecifications", get(answer::specification_by_query))
            .route("/apps/appspecifications/{app}", get(answer::specification))
            .route("/hostinfo", get(answer::hostinfo))
            .route("/echo", get(answer::echo))
            .route("/admin/state", get(admin::state))
            .route("/admin/nodes", post(admin::add_node).put(admin::set_nodes))
            .route("/admin/nodes/{ip}", delete(admin::remove_node))
            .route("/admin/fault", put(admin::set_fault))
            .route("/admin/instances", put(admin::set_instances))
            .route("/admin/hostinfo", put(admin::set_hostinfo))
            .with_state(self)
    }
}
