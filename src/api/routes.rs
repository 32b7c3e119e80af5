//! Paths to answers. Patroni dispatches by the first segment of the path and takes every other GET for a health
//! check (503 with the status, never 404); so do we, for its clients rely on it.
//!
//! HEAD and OPTIONS answer every path with GET's status and no body. (Patroni answers 503 to them on the pages that
//! are not health checks; nobody can want that.)

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, Query, Request, State as Shared};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::health::{self, Check, Filters};
use super::listener::{Caller, Trust};
use super::places::Work;
use super::{State, actions, cluster, failsafe, metrics, openapi, status, why};
use crate::clock::{self, Moment};
use crate::peer::{NodeStatus, PromiseRequest};
use crate::{ha, log};

/// A promise request is a few hundred bytes; an electorate of hundreds of nodes still fits.
const MAX_BODY: usize = 64 * 1024;
/// What a caller may take to send a body.
const BODY_PATIENCE: Duration = Duration::from_secs(5);
/// What the etcd room may take to write a promise to disk: as long as the caller waits for it.
const PROMISE_PATIENCE: Duration = Duration::from_secs(5);

/// Every route.
pub(super) fn router(state: State) -> Router {
    Router::new()
        .route("/v1/status", routing::get(node_status).options(node_status_code))
        .route("/v1/promise", routing::post(promise))
        .method_not_allowed_fallback(not_so)
        .fallback(patroni)
        // Handed to each request: one count, not every part of it.
        .with_state(Arc::new(state))
}

/// Everything that Patroni's clients ask for.
async fn patroni(Shared(state): Shared<Arc<State>>, caller: Extension<Caller>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    if actions::is_action(&method, uri.path()) {
        return actions::act(Shared(state), caller, request).await;
    }
    match method {
        Method::GET => answer(&state, &uri, clock::now()),
        Method::POST if uri.path().split('/').nth(1) == Some("failsafe") => {
            failsafe::ask(&state, caller.0, request).await
        }
        Method::DELETE if uri.path().split('/').nth(1) == Some("failsafe") => {
            failsafe::withdraw(&state, caller.0, request).await
        }
        Method::HEAD | Method::OPTIONS => bodiless(answer(&state, &uri, clock::now())),
        _ => unsupported().await,
    }
}

fn answer(state: &State, uri: &Uri, now: Moment) -> Response {
    let ha = state.ha.borrow();
    let filters = Filters::from_query(&pairs(uri));
    let path = one_slash(uri.path());
    match path.split('/').nth(1).unwrap_or_default() {
        "patroni" => json(StatusCode::OK, &member(state, ha.as_ref(), now)),
        "cluster" => {
            let page = || cluster::newborn_json(&state.node);
            json(StatusCode::OK, &ha.as_ref().map_or_else(page, |ha| cluster::cluster_json(ha, now)))
        }
        "why" => document(ha.as_ref().map(|ha| why::why_json(ha, now))),
        "history" => json(StatusCode::OK, &history(ha.as_ref())),
        "config" => document(config(ha.as_ref())),
        "failsafe" => document(failsafe_map(ha.as_ref())),
        "openapi.json" => json(StatusCode::OK, &openapi::document()),
        "metrics" => metrics_page(state, ha.as_ref(), now),
        "liveness" => verdict(health::is_live(ha.as_ref(), now)).into_response(),
        "readiness" => {
            verdict(ha.as_ref().is_some_and(|s| health::is_ready(&filters, s, now))).into_response()
        }
        _ => {
            let check = Check::of(path);
            let healthy = ha.as_ref().is_some_and(|s| health::is_healthy(check, &filters, s, now));
            json(verdict(healthy), &member(state, ha.as_ref(), now))
        }
    }
}

/// However many slashes a path begins with: one.
fn one_slash(path: &str) -> &str {
    let more = path.len() - path.trim_start_matches('/').len();
    path.get(more.saturating_sub(1)..).unwrap_or(path)
}

/// 200 or 503: the whole vocabulary of a health check.
fn verdict(healthy: impl Into<bool>) -> StatusCode {
    if healthy.into() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn pairs(uri: &Uri) -> Vec<(String, String)> {
    Query::try_from_uri(uri).map(|Query(pairs)| pairs).unwrap_or_default()
}

fn member(state: &State, ha: Option<&ha::Status>, now: Moment) -> Value {
    ha.map_or_else(|| status::newborn_json(&state.node), |ha| status::member_json(ha, now))
}

fn history(ha: Option<&ha::Status>) -> Value {
    let history = ha.and_then(|ha| ha.snapshot.as_ref()?.history.as_ref());
    history.map_or_else(|| Value::Array(Vec::new()), |history| status::to_json(&history.value))
}

fn config(ha: Option<&ha::Status>) -> Option<Value> {
    Some(ha?.snapshot.as_ref()?.config.as_ref()?.value.clone())
}

/// The failsafe map; `None` when the mode is off.
fn failsafe_map(ha: Option<&ha::Status>) -> Option<Value> {
    let ha = ha.filter(|ha| ha.failsafe.mode == ha::rules::Outlast::AllAgree)?;
    let map = ha.snapshot.as_ref().and_then(|snapshot| snapshot.failsafe.as_ref());
    Some(map.map_or_else(|| Value::Object(serde_json::Map::new()), |map| status::to_json(&map.value)))
}

fn metrics_page(state: &State, ha: Option<&ha::Status>, now: Moment) -> Response {
    let (store, peers) = (state.store.borrow(), state.peers.borrow());
    let restarts: Vec<_> =
        state.processes.units.borrow().iter().map(|unit| (unit.name(), unit.n_restarts())).collect();
    let life = state.certificates.borrow().map(|end| end.duration_since(clock::wall()));
    let facts = metrics::Facts {
        node: &state.node,
        ha,
        store: &store,
        peers: &peers,
        certificate_life: life,
        log_lines_dropped: log::n_dropped(),
        restarts: &restarts,
        reaped_orphans: state.processes.init.n_reaped(),
        now,
    };
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&facts)).into_response()
}

/// A page of the store: 502 when the store has none, as Patroni does.
fn document(value: Option<Value>) -> Response {
    value.map_or_else(|| error_page(StatusCode::BAD_GATEWAY), |value| json(StatusCode::OK, &value))
}

pub(super) fn json(code: StatusCode, value: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn bodiless(response: Response) -> Response {
    let (mut parts, _body) = response.into_parts();
    parts.headers.remove(header::CONTENT_TYPE);
    Response::from_parts(parts, Body::empty())
}

async fn unsupported() -> Response {
    let mut response = error_page(StatusCode::NOT_IMPLEMENTED);
    // The body was not read: the connection cannot be used again.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// An error as Patroni's server words it: patronictl looks for the phrase of a 501.
pub(super) fn error_page(code: StatusCode) -> Response {
    let explanation = match code {
        StatusCode::NOT_IMPLEMENTED => "Server does not support this operation",
        StatusCode::BAD_GATEWAY => "Invalid responses from another server/proxy",
        StatusCode::BAD_REQUEST => "Bad request syntax or unsupported method",
        StatusCode::LENGTH_REQUIRED => "Client must specify Content-Length",
        StatusCode::CONFLICT => "Request conflict",
        StatusCode::SERVICE_UNAVAILABLE => "The server cannot process the request due to a high load",
        _ => code.canonical_reason().unwrap_or("unknown"),
    };
    let (number, message) = (code.as_u16(), code.canonical_reason().unwrap_or("unknown"));
    let page = format!(
        "<!DOCTYPE HTML>\n<html lang=\"en\"><head><title>Error response</title></head><body>\n\
         <h1>Error response</h1>\n<p>Error code: {number}</p>\n<p>Message: {message}.</p>\n\
         <p>Error code explanation: {number} - {explanation}.</p>\n</body></html>\n"
    );
    (code, [(header::CONTENT_TYPE, "text/html;charset=utf-8")], page).into_response()
}

/// A sentence for a caller that must be told why.
pub(super) fn text(code: StatusCode, sentence: impl Into<String>) -> Response {
    (code, [(header::CONTENT_TYPE, "text/html")], sentence.into()).into_response()
}

/// `GET /v1/status`: what this node knows, for a peer.
async fn node_status(Shared(state): Shared<Arc<State>>, Extension(caller): Extension<Caller>) -> Response {
    match caller.trust {
        Trust::Anyone => stranger(),
        Trust::Member => json(StatusCode::OK, &status::to_json(about_node(&state, caller, clock::now()))),
    }
}

async fn node_status_code(state: Shared<Arc<State>>, caller: Extension<Caller>) -> Response {
    bodiless(node_status(state, caller).await)
}

/// A path of ours by another method.
async fn not_so(method: Method) -> Response {
    match method {
        Method::HEAD | Method::OPTIONS => bodiless(unsupported().await),
        _ => unsupported().await,
    }
}

/// `POST /v1/promise`: the etcd room decides; this only carries the question to it.
async fn promise(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    match caller.trust {
        // Before the body is read: a stranger gets none of our time.
        Trust::Anyone => return stranger(),
        Trust::Member => {}
    }
    let Some(request) = body::<PromiseRequest>(request).await else {
        return text(StatusCode::BAD_REQUEST, "not a promise request");
    };
    let Some(etcd) = &state.etcd else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this node takes no part in a ballot yet");
    };
    match timeout(PROMISE_PATIENCE, etcd.promise(request)).await {
        Ok(reply) => json(StatusCode::OK, &status::to_json(reply)),
        Err(_elapsed) => text(StatusCode::SERVICE_UNAVAILABLE, "the promise was not written in time"),
    }
}

/// A body of JSON; `None` when it is too long, too slow or something else.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Option<T> {
    serde_json::from_slice(&bytes(request, MAX_BODY).await.ok()?).ok()
}

/// A body of at most `limit` bytes; one that is too long or too slow has its status.
pub(super) async fn bytes(request: Request, limit: usize) -> Result<Bytes, StatusCode> {
    let _until_it_is_whole = request.extensions().get::<Work>().map(Work::wait_for_client);
    let body = timeout(BODY_PATIENCE, to_bytes(request.into_body(), limit)).await;
    body.map_err(|_elapsed| StatusCode::REQUEST_TIMEOUT)?.map_err(|error| fault(&error))
}

/// What a connection cannot read is no request; everything else that goes wrong is the length.
fn fault(error: &axum::Error) -> StatusCode {
    let (mut next, mut broken) = (error.source(), false);
    while let Some(cause) = next {
        broken |= cause.is::<hyper::Error>();
        next = cause.source();
    }
    if broken { StatusCode::BAD_REQUEST } else { StatusCode::PAYLOAD_TOO_LARGE }
}

fn stranger() -> Response {
    text(StatusCode::FORBIDDEN, "client certificate required")
}

fn about_node(state: &State, caller: Caller, now: Moment) -> NodeStatus {
    let peers = state.peers.borrow();
    NodeStatus {
        node_id: state.node.node_id.clone(),
        name: state.node.name.clone(),
        app: state.node.app.clone(),
        your_address: Some(caller.address.ip().to_canonical()),
        store: state.store.borrow().facts.clone(),
        data: state.data.borrow().clone(),
        listed: peers.addrs.clone(),
        list_age_seconds: peers.fetched_at.map(|at| now.since(at).as_secs()),
    }
}
