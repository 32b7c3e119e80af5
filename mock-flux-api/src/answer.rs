//! The calls of the real API.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, Path, Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::state::{Hostinfo, Node, State};
use crate::{Fault, Mock};

/// A row lives this long after its last broadcast.
const ROW_LIFE: SignedDuration = SignedDuration::from_mins(125);
/// A running node broadcasts its row this often.
const BROADCAST_EVERY_SECONDS: i64 = 3600;
/// The port of a node's own API when a row does not tell it.
const DEFAULT_PORT: u16 = 16127;
/// How large the huge answer is at least.
const HUGE: usize = 10 * 1024 * 1024;

const HTML: &str =
    "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>";

#[derive(Debug, Deserialize)]
pub(crate) struct AppName {
    #[serde(default)]
    appname: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Ip {
    ip: Option<std::net::IpAddr>,
}

pub(crate) async fn location_by_query(mock: Extract<Mock>, Query(name): Query<AppName>) -> Response {
    location(mock, Path(name.appname)).await
}

pub(crate) async fn location(Extract(mock): Extract<Mock>, Path(app): Path<String>) -> Response {
    mock.change(|state| state.asked += 1);
    let state = mock.state();
    let answer = if app.is_empty() { no_name() } else { success(Value::Array(rows(&state, &app))) };
    broken(state.fault, answer).await
}

pub(crate) async fn specification_by_query(mock: Extract<Mock>, Query(name): Query<AppName>) -> Response {
    specification(mock, Path(name.appname)).await
}

pub(crate) async fn specification(Extract(mock): Extract<Mock>, Path(app): Path<String>) -> Response {
    let state = mock.state();
    let answer = match () {
        () if app.is_empty() => no_name(),
        () if knows(&state, &app) => success(json!({
            "version": 7, "name": shown_name(&state, &app), "description": "a mock", "hash": hash(),
            "height": 1_000_000, "instances": state.instances, "compose": [], "contacts": [],
        })),
        () => error("Application not found"),
    };
    broken(state.fault, answer).await
}

pub(crate) async fn hostinfo(
    Extract(mock): Extract<Mock>,
    ConnectInfo(caller): ConnectInfo<SocketAddr>,
    Query(wanted): Query<Ip>,
) -> Json<Value> {
    let ip = match (wanted.ip, mock.state().hostinfo) {
        (Some(ip), _) | (None, Hostinfo::Fixed(ip)) => ip,
        (None, Hostinfo::Source) => caller.ip(),
        (None, Hostinfo::Error) => return Json(error("Host geolocation information not available")),
    };
    Json(success(json!({"appName": mock.state().app, "id": "mock0", "ip": ip, "geo": {}, "benchmark": {}})))
}

pub(crate) async fn echo(
    Extract(mock): Extract<Mock>,
    ConnectInfo(caller): ConnectInfo<SocketAddr>,
) -> Response {
    match mock.state().hostinfo {
        Hostinfo::Source => caller.ip().to_string().into_response(),
        Hostinfo::Fixed(ip) => format!("{ip}\n").into_response(),
        Hostinfo::Error => html(StatusCode::OK),
    }
}

/// The rows of `app`, with those faults that only change the list.
fn rows(state: &State, app: &str) -> Vec<Value> {
    if !knows(state, app) {
        return Vec::new();
    }
    let name = shown_name(state, app);
    listed(state).iter().map(|node| row(&name, node)).collect()
}

fn listed(state: &State) -> Vec<Node> {
    let nodes = state.nodes.iter().cloned();
    match state.fault {
        Fault::Empty => Vec::new(),
        Fault::Duplicates => nodes.flat_map(with_and_without_port).collect(),
        Fault::Ipv6 => nodes.chain(ipv6_nodes()).collect(),
        Fault::Without(ip) => nodes.filter(|node| node.ip != ip).collect(),
        Fault::Partial(n) => nodes.take(n).collect(),
        Fault::None
        | Fault::Error
        | Fault::Html
        | Fault::Truncated
        | Fault::Http500
        | Fault::Stall(_)
        | Fault::Huge => nodes.collect(),
    }
}

fn with_and_without_port(node: Node) -> [Node; 2] {
    [Node { port: None, ..node.clone() }, Node { port: Some(node.port.unwrap_or(DEFAULT_PORT)), ..node }]
}

fn ipv6_nodes() -> [Node; 2] {
    let ip = |last| std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
    [Node::from(ip(1)), Node { port: Some(DEFAULT_PORT), ..Node::from(ip(2)) }]
}

fn row(name: &str, node: &Node) -> Value {
    let now = Timestamp::now();
    let uptime = now.duration_since(node.running_since).as_secs().max(0);
    let since_broadcast = SignedDuration::from_secs(uptime % BROADCAST_EVERY_SECONDS);
    let broadcasted = now.checked_sub(since_broadcast).unwrap_or(now);
    let expires = broadcasted.checked_add(ROW_LIFE).unwrap_or(now);
    json!({
        "name": name, "hash": hash(), "ip": node.to_string(),
        "broadcastedAt": format!("{broadcasted:.3}"), "expireAt": format!("{expires:.3}"),
        "runningSince": format!("{:.3}", node.running_since), "osUptime": uptime + 86_400, "staticIp": true,
    })
}

fn knows(state: &State, app: &str) -> bool {
    state.app.as_ref().is_none_or(|known| known.eq_ignore_ascii_case(app))
}

/// The name as it was registered, not as it was asked for.
fn shown_name(state: &State, app: &str) -> String {
    state.app.clone().unwrap_or_else(|| app.to_owned())
}

fn hash() -> String {
    "5f".repeat(32)
}

#[expect(clippy::needless_pass_by_value, reason = "a temporary of the caller")]
fn success(data: Value) -> Value {
    json!({"status": "success", "data": data})
}

fn error(message: &str) -> Value {
    json!({"status": "error", "data": {"name": "Error", "message": message}})
}

fn no_name() -> Value {
    error("No Flux App name specified")
}

/// The answer, with those faults that break any answer.
async fn broken(fault: Fault, answer: Value) -> Response {
    match fault {
        Fault::Error => Json(error("Failed to connect to the database")).into_response(),
        Fault::Html => html(StatusCode::OK),
        Fault::Http500 => html(StatusCode::INTERNAL_SERVER_ERROR),
        Fault::Truncated => {
            let text = answer.to_string();
            as_json(text.chars().take(text.len() / 2).collect())
        }
        Fault::Huge => {
            let padding = " ".repeat(HUGE);
            as_json(format!("{answer}{padding}"))
        }
        Fault::Stall(time) => {
            tokio::time::sleep(time).await;
            Json(answer).into_response()
        }
        Fault::None
        | Fault::Empty
        | Fault::Duplicates
        | Fault::Ipv6
        | Fault::Without(_)
        | Fault::Partial(_) => Json(answer).into_response(),
    }
}

fn html(status: StatusCode) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html")], HTML).into_response()
}

fn as_json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
