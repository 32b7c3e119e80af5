//! The calls that change something, in Patroni's codes and words: each is checked against memory, handed to the HA loop
//! through its desk, and answered with what became of it.
//!
//! Invariants: nothing is read of a body before the caller may change something; bodies are bounded in size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Request, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::access::Denied;
use super::listener::Caller;
use super::routes::{bytes, error_page, json, text};
use super::{State, status};
use crate::clock::{self, Moment};
use crate::dcs::{Failover, Member, MemberState, Role, Snapshot};
use crate::ha::manual::priority;
use crate::ha::orders::{
    Accepted, Conditions, Insistence, Pending, Reinitialize, Restart, Scheduled, Settled, Source, Stage,
};
use crate::ha::settings::Change;
use crate::ha::tags::Tags;
use crate::ha::{self, desk::Ask, desk::Reply};
use crate::types::{NodeName, SyncMode};

/// A dynamic configuration with hundreds of parameters is a tenth of this.
const MAX_BODY: usize = 256 * 1024;
/// What a write to the store, or an order's acceptance, may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
/// A switchover that is not over by then is waited for no longer: twice ten tries a second apart, as Patroni does, or
/// twice `loop_wait`.
const OUTCOME_PATIENCE: Duration = Duration::from_secs(20);
/// Beyond what a restart's start may take: its stop.
const STOP_ALLOWANCE: Duration = Duration::from_secs(70);

/// An answer other than the expected one.
type Answered<T> = Result<T, Box<Response>>;

fn deny(code: StatusCode, sentence: impl Into<String>) -> Box<Response> {
    Box::new(text(code, sentence))
}

fn deny_page(code: StatusCode) -> Box<Response> {
    Box::new(error_page(code))
}

/// Whether this call is one of this file's.
pub(super) fn is_action(method: &Method, path: &str) -> bool {
    let first = path.split('/').nth(1).unwrap_or_default();
    match *method {
        Method::PATCH | Method::PUT => first == "config",
        Method::POST => {
            matches!(first, "switchover" | "failover" | "restart" | "reload" | "reinitialize" | "sigterm")
        }
        Method::DELETE => matches!(first, "switchover" | "restart"),
        _ => false,
    }
}

/// Everything that changes something.
pub(super) async fn act(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    if let Err(denied) = admit(&state, caller, request.headers()) {
        return turned_away(denied);
    }
    perform(&state, request).await.unwrap_or_else(|answer| *answer)
}

async fn perform(state: &State, request: Request) -> Answered<Response> {
    let first = request.uri().path().split('/').nth(1).unwrap_or_default().to_owned();
    match (request.method().clone(), first.as_str()) {
        (Method::PATCH, _) => Ok(configured(state, Change::Patch(required(request).await?)).await),
        (Method::PUT, _) => Ok(configured(state, Change::Replace(required(request).await?)).await),
        (Method::DELETE, "switchover") => Ok(cancelled(
            state.ask(Ask::CancelFailover, ANSWER_PATIENCE).await,
            ("scheduled switchover deleted", "no switchover is scheduled"),
        )),
        (Method::DELETE, _) => Ok(cancelled(
            state.ask(Ask::CancelSchedule, ANSWER_PATIENCE).await,
            ("scheduled restart deleted", "no restarts are scheduled"),
        )),
        (_, "reload") => Ok(match state.ask(Ask::Reload, ANSWER_PATIENCE).await {
            Reply::Settled(_) | Reply::Already | Reply::Done(_) => {
                text(StatusCode::ACCEPTED, "reload scheduled")
            }
            other @ (Reply::Config(_)
            | Reply::Nothing
            | Reply::Conflict
            | Reply::Invalid(_)
            | Reply::Store(_)
            | Reply::Unavailable) => unavailable(&other),
        }),
        (_, "sigterm") => Ok(text(StatusCode::ACCEPTED, "shutdown scheduled")),
        (_, "reinitialize") => {
            let body = optional(request).await?;
            reinitialize(state, &body).await
        }
        (_, "restart") => {
            let body = optional(request).await?;
            restart(state, &body).await
        }
        (_, word) => {
            let action = if word == "failover" { Action::Failover } else { Action::Switchover };
            let body = required(request).await?;
            another_leader(state, action, &body).await
        }
    }
}

// ---- who may, and what is said

pub(super) fn admit(state: &State, caller: Caller, headers: &HeaderMap) -> Result<(), Denied> {
    let ha = state.ha.borrow();
    let members = ha.iter().flat_map(|ha| state.whereabouts.addresses(ha));
    let header = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    state.access.check((caller.address.ip(), caller.trust), header, members)
}

pub(super) fn turned_away(denied: Denied) -> Response {
    let mut response = text(denied.code(), denied.sentence());
    if matches!(denied, Denied::NoHeader | Denied::NotAuthenticated) {
        let realm = header::HeaderValue::from_static("Basic realm=\"Patroni\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
    }
    // The body was not read: the connection cannot be used again.
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// A body that must be there.
pub(super) async fn required(request: Request) -> Answered<Value> {
    let headers = request.headers();
    if !headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(deny_page(StatusCode::LENGTH_REQUIRED));
    }
    let body = read(request).await?.filter(|body| !body.is_empty());
    body.map(Value::Object).ok_or_else(|| deny_page(StatusCode::BAD_REQUEST))
}

/// A body that may be missing.
async fn optional(request: Request) -> Answered<Map<String, Value>> {
    Ok(read(request).await?.unwrap_or_default())
}

/// An object; `None` where there is no body.
async fn read(request: Request) -> Answered<Option<Map<String, Value>>> {
    let bytes = bytes(request, MAX_BODY).await.map_err(deny_page)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|_no_json_or_no_object| deny_page(StatusCode::BAD_REQUEST))
}

fn unavailable(reply: &Reply) -> Response {
    let why = match reply {
        Reply::Store(why) => format!("the store could not be written: {why}"),
        Reply::Already => "the same is under way already".to_owned(),
        Reply::Done(_)
        | Reply::Config(_)
        | Reply::Nothing
        | Reply::Conflict
        | Reply::Invalid(_)
        | Reply::Settled(_)
        | Reply::Unavailable => "this node does not take requests now, or too many at once".to_owned(),
    };
    text(StatusCode::SERVICE_UNAVAILABLE, why)
}

fn cancelled(reply: Reply, (done, nothing): (&'static str, &'static str)) -> Response {
    match reply {
        Reply::Done(_) => text(StatusCode::OK, done),
        Reply::Nothing => text(StatusCode::NOT_FOUND, nothing),
        Reply::Conflict => error_page(StatusCode::CONFLICT),
        other @ (Reply::Config(_)
        | Reply::Already
        | Reply::Invalid(_)
        | Reply::Store(_)
        | Reply::Settled(_)
        | Reply::Unavailable) => unavailable(&other),
    }
}

async fn configured(state: &State, change: Change) -> Response {
    let replaces = matches!(change, Change::Replace(_));
    match state.ask(Ask::Config(change), ANSWER_PATIENCE).await {
        Reply::Config(value) => json(StatusCode::OK, &value),
        Reply::Conflict => error_page(StatusCode::CONFLICT),
        Reply::Nothing => error_page(StatusCode::SERVICE_UNAVAILABLE),
        Reply::Invalid(why) => text(StatusCode::UNPROCESSABLE_ENTITY, why),
        Reply::Store(_) if replaces => error_page(StatusCode::BAD_GATEWAY),
        other @ (Reply::Done(_)
        | Reply::Already
        | Reply::Store(_)
        | Reply::Settled(_)
        | Reply::Unavailable) => unavailable(&other),
    }
}

// ---- another leader

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Switchover,
    Failover,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::Failover => "failover",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Switchover => "Switchover",
            Self::Failover => "Failover",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Self::Switchover => "switched over",
            Self::Failover => "failed over",
        }
    }

    fn past_title(self) -> &'static str {
        match self {
            Self::Switchover => "Switched over",
            Self::Failover => "Failed over",
        }
    }
}

async fn another_leader(state: &State, asked: Action, body: &Value) -> Answered<Response> {
    let name = |key: &str| words(body, key).map(|name| name.map(NodeName::from));
    let wrong = |()| deny_page(StatusCode::BAD_REQUEST);
    let (leader, candidate) = (name("leader").map_err(wrong)?, name("candidate").map_err(wrong)?);
    let member = candidate.or(name("member").map_err(wrong)?);
    // A failover away from a leader is a switchover.
    let action = if leader.is_some() { Action::Switchover } else { asked };
    // What is no time must not be taken for "now".
    let scheduled = words(body, "scheduled_at").map_err(|()| no_time())?;
    let known = state.ha.borrow().clone();
    let request = Failover { leader, member, scheduled_at: scheduled.map(str::to_owned) };
    check(asked, &request, known.as_ref())?;
    let Some(known) = known else { return Err(Box::new(unavailable(&Reply::Unavailable))) };
    if scheduled.is_none()
        && let Some(why) = impossible(action, &request, &known)
    {
        return Err(deny(StatusCode::PRECONDITION_FAILED, why));
    }
    let before = known.snapshot.as_ref().and_then(Snapshot::leader_name).cloned();
    match state.ask(Ask::Failover(request.clone()), ANSWER_PATIENCE).await {
        Reply::Done(_) if scheduled.is_some() => {
            Ok(text(StatusCode::ACCEPTED, format!("{} scheduled", action.title())))
        }
        Reply::Done(written) => Ok(outcome(state, action, (&request, before), written).await),
        Reply::Conflict
        | Reply::Store(_)
        | Reply::Config(_)
        | Reply::Nothing
        | Reply::Already
        | Reply::Invalid(_)
        | Reply::Settled(_)
        | Reply::Unavailable => {
            Err(deny(StatusCode::SERVICE_UNAVAILABLE, "failed to write failover key into DCS"))
        }
    }
}

/// A text in a body; empty is as good as absent, and so is null.
fn words<'a>(body: &'a Value, key: &str) -> Result<Option<&'a str>, ()> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => Err(()),
    }
}

/// What is wrong with the request itself.
fn check(asked: Action, request: &Failover, known: Option<&ha::Status>) -> Answered<()> {
    let paused = known.is_some_and(status::is_paused);
    let wrong = |sentence: &'static str| Err(deny(StatusCode::BAD_REQUEST, sentence));
    // What it is called counts here, and what it is from then on.
    match (asked, &request.leader, &request.member, &request.scheduled_at) {
        (Action::Failover, _, None, _) => {
            return wrong("Failover could be performed only to a specific candidate");
        }
        (Action::Switchover, None, _, _) => {
            return wrong("Switchover could be performed only from a specific leader");
        }
        (Action::Failover, _, _, Some(_)) => return wrong("Failover can't be scheduled"),
        (_, _, _, Some(_)) if paused => return wrong("Can't schedule switchover in the paused state"),
        (_, _, _, Some(at)) => schedule(at, "switchover")?,
        (_, _, None, None) if paused => {
            return wrong("Switchover is possible only to a specific candidate in a paused state");
        }
        (_, _, _, None) => {}
    }
    if request.leader.is_some() && request.leader == request.member {
        return wrong("Switchover target and source are the same");
    }
    Ok(())
}

/// Whether a time can be scheduled.
fn schedule(at: &str, what: &str) -> Answered<()> {
    match at.parse::<Timestamp>() {
        Ok(time) if time < clock::wall() => {
            Err(deny(StatusCode::UNPROCESSABLE_ENTITY, format!("Cannot schedule {what} in the past")))
        }
        Ok(_) => Ok(()),
        Err(_) if at.parse::<jiff::civil::DateTime>().is_ok() => {
            let sentence = format!("Timezone information is mandatory for the scheduled {what}");
            Err(deny(StatusCode::BAD_REQUEST, sentence))
        }
        Err(_) => Err(no_time()),
    }
}

fn no_time() -> Box<Response> {
    let sentence =
        "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601";
    deny(StatusCode::UNPROCESSABLE_ENTITY, sentence)
}

/// Why it cannot be done now, as far as is known here; the leader looks again before it stops anything.
fn impossible(action: Action, request: &Failover, known: &ha::Status) -> Option<String> {
    let snapshot = known.snapshot.as_ref()?;
    let leader = snapshot.leader_name();
    if request.leader.is_some() && request.leader.as_ref() != leader {
        return Some("leader name does not match".to_owned());
    }
    let synchronous = known.sync_mode != SyncMode::Off && snapshot.sync.is_some();
    let electors = snapshot.sync.as_ref().map(|sync| sync.value.standbys()).unwrap_or_default();
    let others = || snapshot.members.iter().filter(|m| Some(&m.name) != leader);
    let word = action.word();
    let candidates: Vec<_> = match &request.member {
        Some(name) if action == Action::Switchover && synchronous && !electors.contains(name) => {
            return Some("candidate name does not match with sync_standby".to_owned());
        }
        Some(name) => snapshot.members.iter().filter(|m| m.name == *name).collect(),
        None if synchronous => others().filter(|m| electors.contains(&m.name)).collect(),
        None => others().collect(),
    };
    if candidates.is_empty() {
        return Some(match (&request.member, synchronous) {
            (Some(_), _) => "candidate does not exists".to_owned(),
            (None, true) => format!("{word} is not possible: can not find sync_standby"),
            (None, false) => format!("{word} is not possible: cluster does not have members except leader"),
        });
    }
    // What this node says of itself is newer than what it has read.
    let willing = |m: &Member| match m.name == known.name {
        true => Tags::from_json(&known.tags).failover_priority > 0,
        false => priority(m) > 0,
    };
    let good = |m: &&Member| m.state == MemberState::Running && m.role == Role::Replica && willing(m);
    let none = candidates.into_iter().find(good).is_none();
    none.then(|| format!("{word} is not possible: no good candidates have been found"))
}

/// Waits until somebody else leads, or the request is cleared without that.
async fn outcome(
    state: &State,
    action: Action,
    (request, before): (&Failover, Option<NodeName>),
    written: Moment,
) -> Response {
    let mut seen = state.ha.clone();
    let loop_wait = seen.borrow().as_ref().map(|ha| ha.timing.loop_wait).unwrap_or_default();
    let patience = OUTCOME_PATIENCE.max(loop_wait * 2);
    let watched = async {
        loop {
            if let Some(end) = seen.borrow_and_update().as_ref().and_then(|ha| ended(ha, &before, written)) {
                return end;
            }
            if seen.changed().await.is_err() {
                return End::Unknown;
            }
        }
    };
    match timeout(patience, watched).await.unwrap_or(End::Unknown) {
        End::Leads(new) if request.member.as_ref().is_none_or(|asked| *asked == new) => {
            text(StatusCode::OK, format!("Successfully {} to \"{new}\"", action.past()))
        }
        End::Leads(new) => {
            let asked = request.member.as_ref().map_or("", NodeName::as_str);
            text(StatusCode::OK, format!("{} to \"{new}\" instead of \"{asked}\"", action.past_title()))
        }
        End::Cleared => text(StatusCode::SERVICE_UNAVAILABLE, format!("{} failed", action.title())),
        End::Unknown => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "{} status unknown after {} seconds; operation may still be in progress",
                action.title(),
                patience.as_secs()
            ),
        ),
    }
}

/// How a request ended.
enum End {
    Leads(NodeName),
    Cleared,
    Unknown,
}

fn ended(ha: &ha::Status, before: &Option<NodeName>, written: Moment) -> Option<End> {
    let snapshot = ha.snapshot.as_ref().filter(|snapshot| snapshot.taken >= written)?;
    match snapshot.leader_name() {
        Some(new) if Some(new) != before.as_ref() => Some(End::Leads(new.clone())),
        Some(_) | None => snapshot.failover.is_none().then_some(End::Cleared),
    }
}

// ---- this node

async fn reinitialize(state: &State, body: &Map<String, Value>) -> Answered<Response> {
    let said = (Insistence::said(body.get("force")), Source::said(body.get("from_leader")));
    let (Some(insistence), Some(source)) = said else {
        return Err(deny_page(StatusCode::BAD_REQUEST));
    };
    let order = Reinitialize { insistence, source, stage: Accepted::No };
    let reply = state.ask(Ask::Reinitialize(order), ANSWER_PATIENCE).await;
    Ok(carried_out(&reply, "reinitialize", "reinitialize started"))
}

/// What became of an order.
fn carried_out(reply: &Reply, what: &str, done: &'static str) -> Response {
    match reply {
        Reply::Settled(Settled::Done) => text(StatusCode::OK, done),
        Reply::Settled(how) => text(StatusCode::SERVICE_UNAVAILABLE, settled(how, what)),
        Reply::Already => text(StatusCode::SERVICE_UNAVAILABLE, format!("{what} already in progress")),
        Reply::Done(_)
        | Reply::Config(_)
        | Reply::Nothing
        | Reply::Conflict
        | Reply::Invalid(_)
        | Reply::Store(_)
        | Reply::Unavailable => unavailable(reply),
    }
}

fn settled(how: &Settled, what: &str) -> String {
    match how {
        Settled::Done => "restarted successfully".to_owned(),
        Settled::Conditions => "restart conditions are not satisfied".to_owned(),
        Settled::Busy(job) => format!("{} already in progress", job.words()),
        Settled::StillStarting => "postgres is still starting".to_owned(),
        Settled::Failed => format!("{what} failed"),
        Settled::Leads => "I am the leader, can not reinitialize".to_owned(),
        Settled::NoLeader => "Cluster has no leader, can not reinitialize".to_owned(),
        Settled::TooFewCopies => {
            "fewer than two whole copies of the data would remain, can not reinitialize without force"
                .to_owned()
        }
    }
}

async fn restart(state: &State, body: &Map<String, Value>) -> Answered<Response> {
    let known = state.ha.borrow().clone();
    if body.contains_key("schedule") && known.as_ref().is_some_and(status::is_paused) {
        let sentence = "Can't schedule restart in the paused state";
        return Err(deny(StatusCode::INTERNAL_SERVER_ERROR, sentence));
    }
    let asked = restart_request(body)?;
    if let Some(at) = asked.schedule {
        schedule(&at, "restart")?;
        let (conditions, timeout) = (asked.conditions, asked.timeout);
        let order = Scheduled { at, conditions, timeout, postmaster_started: None };
        return Ok(match state.ask(Ask::Schedule(order), ANSWER_PATIENCE).await {
            Reply::Done(_) => text(StatusCode::ACCEPTED, "Restart scheduled"),
            Reply::Already => text(StatusCode::CONFLICT, "Another restart is already scheduled"),
            other @ (Reply::Config(_)
            | Reply::Nothing
            | Reply::Conflict
            | Reply::Invalid(_)
            | Reply::Store(_)
            | Reply::Settled(_)
            | Reply::Unavailable) => unavailable(&other),
        });
    }
    let starts_within = known.map_or(Duration::from_secs(300), |ha| ha.primary_start_timeout);
    let patience = asked.timeout.unwrap_or(starts_within) + STOP_ALLOWANCE;
    let order = Restart {
        conditions: asked.conditions,
        timeout: asked.timeout,
        stage: Stage::Asked,
        since: clock::now(),
    };
    let reply = state.ask(Ask::Restart(order), patience).await;
    Ok(carried_out(&reply, "restart", "restarted successfully"))
}

/// What the body of a restart says.
#[derive(Default)]
struct RestartRequest {
    schedule: Option<String>,
    conditions: Conditions,
    timeout: Option<Duration>,
}

fn restart_request(body: &Map<String, Value>) -> Answered<RestartRequest> {
    let wrong = |sentence: String| deny(StatusCode::BAD_REQUEST, sentence);
    let mut asked = RestartRequest::default();
    for (key, value) in body {
        match key.as_str() {
            "schedule" => asked.schedule = Some(value.as_str().ok_or_else(no_time)?.to_owned()),
            "role" => {
                let role = value.as_str().and_then(role);
                let sentence = "PostgreSQL role should be either primary, standby_leader, or replica";
                asked.conditions.role = Some(role.ok_or_else(|| wrong(sentence.to_owned()))?);
            }
            "postgres_version" => {
                let words = value.as_str().unwrap_or_default();
                let number = version(words).map_err(|why| wrong(format!("{why}: {words}")))?;
                asked.conditions.older_than = Some((number, words.to_owned()));
            }
            // It counts by being there, whatever it says.
            "restart_pending" => asked.conditions.pending = Pending::Required,
            "timeout" => {
                let sentence = "Timeout should be a positive number of seconds";
                asked.timeout = Some(seconds(value).ok_or_else(|| wrong(sentence.to_owned()))?);
            }
            other => return Err(wrong(format!("Unknown filter for the scheduled restart: {other}"))),
        }
    }
    Ok(asked)
}

fn role(word: &str) -> Option<Role> {
    match word {
        "primary" | "master" => Some(Role::Primary),
        "standby_leader" => Some(Role::StandbyLeader),
        "replica" => Some(Role::Replica),
        _ => None,
    }
}

/// `16.1` is 160001, `9.6.3` is 90603.
fn version(words: &str) -> Result<u32, &'static str> {
    let numbers: Option<Vec<u32>> =
        words.split('.').map(|part| part.parse().ok().filter(|n| *n < 100)).collect();
    match numbers.ok_or("Invalid PostgreSQL version")?.as_slice() {
        [major, minor] => Ok(major * 10_000 + minor),
        [major, minor, patch] => Ok(major * 10_000 + minor * 100 + patch),
        _ => Err("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted"),
    }
}

/// A positive number of seconds, or a number with a unit.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value.as_str() {
        None => value.as_f64()?,
        Some(words) => {
            let words = words.trim();
            let digits = words.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(words.len());
            let (number, unit) = words.split_at_checked(digits)?;
            let factor = match unit.trim() {
                "" | "s" => 1.0,
                "ms" => 0.001,
                "min" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
            number.parse::<f64>().ok()? * factor
        }
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero())
}

impl State {
    async fn ask(&self, ask: Ask, patience: Duration) -> Reply {
        match &self.desk {
            Some(desk) => desk.ask(ask, patience).await,
            None => Reply::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_and_times_are_read_as_patroni_reads_them() {
        assert_eq!((version("16.1"), version("9.6.3")), (Ok(160_001), Ok(90_603)));
        assert!(version("16").is_err_and(|why| why.contains("X.Y")));
        assert_eq!((version("x.y"), version("")), (version("100.1"), version("x")));
        assert_eq!(seconds(&json!("1min")), Some(Duration::from_secs(60)));
        assert_eq!(seconds(&json!("1.5 min")), Some(Duration::from_secs(90)));
        assert_eq!(seconds(&json!(5)), Some(Duration::from_secs(5)));
        for wrong in [json!(0), json!(-1), json!("soon"), json!(null)] {
            assert_eq!(seconds(&wrong), None, "{wrong}");
        }
    }
}
