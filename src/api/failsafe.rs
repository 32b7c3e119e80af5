//! `POST /failsafe`: a leader without a store asks this member to promise that it will not take its place. `DELETE /failsafe`: it
//! takes a question back that not everybody has answered with yes.
//!
//! Only members may ask: a promise given to a stranger would keep a cluster without a leader. What may be promised is the HA
//! core's rule, and its `Promises` give the promise; this only carries the question. Patroni's words and codes.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;

use super::access::Denied;
use super::listener::{Caller, Trust};
use super::{State, actions, routes};
use crate::clock;
use crate::ha;
use crate::ha::failsafe::{Ping, Refusal, may_promise};
use crate::ha::promises::NotPromised;
use crate::postgres::status::Kind;

/// Nobody is promised anything for longer than this, unless the cluster's own TTL is longer.
const LONGEST: Duration = Duration::from_secs(300);

/// The answer to a question.
pub(super) async fn ask(state: &State, caller: Caller, request: Request) -> Response {
    let (status, ping) = match read(state, caller, request).await {
        Ok(asked) => asked,
        Err(answer) => return *answer,
    };
    match promise(state, &status, &ping).await {
        Ok(()) => accepted(&status),
        Err(refusal) => refused(&refusal),
    }
}

/// The answer to a question that is withdrawn.
pub(super) async fn withdraw(state: &State, caller: Caller, request: Request) -> Response {
    let ping = match read(state, caller, request).await {
        Ok((_status, ping)) => ping,
        Err(answer) => return *answer,
    };
    let withdrawn = match (&state.promises, ping.question) {
        (Some(promises), Some(question)) => promises.withdraw(&ping.name, question).await,
        (Some(_), None) | (None, _) => Err(NotPromised),
    };
    match withdrawn {
        Ok(()) => routes::text(StatusCode::OK, "Withdrawn"),
        Err(NotPromised) => routes::text(StatusCode::NOT_FOUND, "Nothing is promised in answer to that"),
    }
}

/// What a member says, and this node's status.
async fn read(state: &State, caller: Caller, request: Request) -> Result<(ha::Status, Ping), Box<Response>> {
    let Some(status) = state.ha.borrow().clone() else {
        let why = routes::text(StatusCode::SERVICE_UNAVAILABLE, "the HA loop has not run yet");
        return Err(Box::new(why));
    };
    // Whoever else may change something, with the password or on this machine, is given no promise.
    let admitted = actions::admit(state, caller, request.headers());
    if let Err(denied) = admitted.and_then(|()| is_member(state, caller, &status)) {
        return Err(Box::new(actions::turned_away(denied)));
    }
    let ping = serde_json::from_value(actions::required(request).await?);
    let ping = ping.map_err(|_not_a_question| Box::new(routes::error_page(StatusCode::BAD_REQUEST)))?;
    Ok((status, ping))
}

async fn promise(state: &State, status: &ha::Status, ping: &Ping) -> Result<(), Refusal> {
    let now = clock::now();
    may_promise(status, ping, now)?;
    let asked = ping.ttl.map_or(Duration::ZERO, Duration::from_secs);
    // A shorter promise than the one that is asked for would be none: the leader counts on all of it.
    if asked > LONGEST.max(status.timing.ttl) {
        return Err(Refusal::TooLong);
    }
    let promises = state.promises.as_ref().ok_or(Refusal::Standing)?;
    promises.promise(ping, now, asked.max(status.timing.ttl)).await
}

/// By certificate; a stock member, which has none, by its address.
fn is_member(state: &State, caller: Caller, status: &ha::Status) -> Result<(), Denied> {
    let address = caller.address.ip().to_canonical();
    match caller.trust {
        Trust::Member => Ok(()),
        Trust::Anyone if state.whereabouts.addresses(status).contains(&address) => Ok(()),
        Trust::Anyone => Err(Denied::Stranger),
    }
}

/// Patroni's leader reads the position from a header.
fn accepted(status: &ha::Status) -> Response {
    let mut response = routes::text(StatusCode::OK, "Accepted");
    let position = status.postgres.sql.as_ref().and_then(|answer| match &answer.kind {
        Kind::Standby { received, replayed, .. } => Some(*received.max(replayed)),
        Kind::Primary { .. } => None,
    });
    if let Some(position) = position {
        response.headers_mut().insert(HeaderName::from_static("lsn"), HeaderValue::from(position.0));
    }
    response
}

fn refused(refusal: &Refusal) -> Response {
    match refusal {
        Refusal::Off => routes::error_page(StatusCode::BAD_GATEWAY),
        Refusal::NotMeant => routes::text(StatusCode::FORBIDDEN, "Another member is meant"),
        Refusal::Leading => routes::text(StatusCode::INTERNAL_SERVER_ERROR, "Running as a leader"),
        Refusal::AnotherLeads(_) => routes::text(StatusCode::INTERNAL_SERVER_ERROR, "Another node leads"),
        Refusal::Standing => routes::text(StatusCode::INTERNAL_SERVER_ERROR, "Taking the leader key"),
        Refusal::TooLong => routes::text(StatusCode::BAD_REQUEST, "Too long a promise is asked for"),
        Refusal::NotWritten => routes::text(StatusCode::INTERNAL_SERVER_ERROR, "The promise was not written"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fixture;
    use crate::ha::rules::Outlast;

    #[test]
    fn a_question_for_another_member_is_answered_with_no() {
        let now = clock::now();
        let mut status = fixture::replica("n1", 0, now);
        status.failsafe.mode = Outlast::AllAgree;
        let asked = |to: serde_json::Value| {
            let ping: Ping = serde_json::from_value(json!({"name": "n0", "pgherd_to": to})).unwrap();
            may_promise(&status, &ping, now)
        };
        assert_eq!(asked(json!("n1")), Ok(()));
        assert_eq!(asked(json!("n2")), Err(Refusal::NotMeant));
        assert_eq!(asked(json!(null)), Ok(()), "a stock leader does not say whom it asks");
    }
}
