//! The calls that change what the others answer.

use std::fmt::Display;
use std::net::IpAddr;

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::{Fault, Hostinfo, Mock, Node, State};

#[derive(Debug, Deserialize)]
pub(crate) struct NewNode {
    ip: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NewFault {
    kind: String,
}

pub(crate) async fn state(Extract(mock): Extract<Mock>) -> Json<State> {
    Json(mock.state())
}

pub(crate) async fn add_node(Extract(mock): Extract<Mock>, Json(node): Json<NewNode>) -> Response {
    match node.ip.parse::<Node>() {
        Ok(node) => changed(&mock, |state| state.add(node)),
        Err(error) => refused(&error),
    }
}

pub(crate) async fn set_nodes(Extract(mock): Extract<Mock>, Json(nodes): Json<Vec<String>>) -> Response {
    match nodes.iter().map(|text| text.parse::<Node>()).collect() {
        Ok(nodes) => changed(&mock, |state| state.replace(nodes)),
        Err(error) => refused(&error),
    }
}

pub(crate) async fn remove_node(Extract(mock): Extract<Mock>, Path(ip): Path<IpAddr>) -> Response {
    let mut removed = 0;
    mock.change(|state| removed = state.remove(ip));
    match removed {
        0 => (StatusCode::NOT_FOUND, Json(json!({"error": format!("{ip} is not listed")}))).into_response(),
        1.. => Json(mock.state()).into_response(),
    }
}

pub(crate) async fn set_fault(Extract(mock): Extract<Mock>, Json(fault): Json<NewFault>) -> Response {
    match fault.kind.parse::<Fault>() {
        Ok(fault) => changed(&mock, |state| state.fault = fault),
        Err(error) => refused(&error),
    }
}

pub(crate) async fn set_instances(Extract(mock): Extract<Mock>, Json(instances): Json<usize>) -> Response {
    changed(&mock, |state| state.instances = instances)
}

pub(crate) async fn set_hostinfo(Extract(mock): Extract<Mock>, Json(answer): Json<String>) -> Response {
    match answer.parse::<Hostinfo>() {
        Ok(answer) => changed(&mock, |state| state.hostinfo = answer),
        Err(error) => refused(&error),
    }
}

fn changed(mock: &Mock, change: impl FnOnce(&mut State)) -> Response {
    mock.change(change);
    Json(mock.state()).into_response()
}

fn refused(error: &impl Display) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": error.to_string()}))).into_response()
}
