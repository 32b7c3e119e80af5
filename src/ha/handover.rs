//! The stop of a leader for a request: until one of those who may take over has everything that was written.
//!
//! Nothing here waits longer than it must: as soon as one of them has the shutdown checkpoint, whatever still keeps the
//! postmaster (a standby that does not answer, the archiver) is cut short. The lock is not touched here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::clock;
use crate::postgres::StopMode;
use crate::types::{Chain, Lsn, NodeName};

use super::jobs::{self, Context};
use super::manual::{HandOverEnd, end_of_shutdown};
use super::publish;
use super::view::PollAnswer;

/// The checkpoint before the stop: nobody waits for it but the operator, and every page that it writes shortens the outage.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(60);
/// A fast shutdown after a checkpoint takes milliseconds; what takes longer is given up, and this node leads on.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// When everything is down, whoever has all of it says so within this time: it looks at itself all the time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// A shutdown that takes longer than this is looked into.
const LONG: Duration = Duration::from_millis(200);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// One answer of one member.
const ASK_PATIENCE: Duration = Duration::from_millis(500);

/// Makes a checkpoint, stops, and finds out who of `to` has everything.
pub(super) async fn run(context: &Context, to: &BTreeSet<NodeName>) -> HandOverEnd {
    let postgres = &context.postgres;
    if let Err(error) = postgres.checkpoint(CHECKPOINT_PATIENCE).await {
        warn!(error = %Chain(&error), "handing over without a checkpoint");
    }
    let stopped = postgres.stop(StopMode::Fast { patience: STOP_PATIENCE });
    tokio::pin!(stopped);
    let reached = tokio::select! {
        result = &mut stopped => {
            if let Err(error) = result {
                return HandOverEnd::Missed(Chain(&error).to_string());
            }
            None
        }
        name = reached_while_stopping(context, to) => Some(name),
    };
    if let Some(name) = reached {
        // What still holds it up has no say: the one that counts has everything.
        if let Err(error) = postgres.stop(StopMode::Immediate).await {
            return HandOverEnd::Missed(Chain(&error).to_string());
        }
        return HandOverEnd::Reached(name);
    }
    let Some(end) = postgres.control().await.as_ref().and_then(end_of_shutdown) else {
        return HandOverEnd::Missed("it was no clean shutdown".to_owned());
    };
    match timeout(ANSWER_PATIENCE, first_to_reach(context, to, end)).await {
        Ok(name) => HandOverEnd::Reached(name),
        Err(_elapsed) => HandOverEnd::Missed(missed(context, to, end).await),
    }
}

/// Returns when the shutdown checkpoint is written, the postmaster still runs, and somebody has all of it.
async fn reached_while_stopping(context: &Context, to: &BTreeSet<NodeName>) -> NodeName {
    loop {
        sleep(LONG).await;
        if let Some(end) = context.postgres.control().await.as_ref().and_then(end_of_shutdown) {
            return first_to_reach(context, to, end).await;
        }
    }
}

/// Asks until one of them has received everything up to `end`.
async fn first_to_reach(context: &Context, to: &BTreeSet<NodeName>, end: Lsn) -> NodeName {
    loop {
        let began = clock::now();
        let answers = ask(context, to).await;
        if let Some((name, _)) = answers.into_iter().find(|(_, position)| *position >= Some(end)) {
            return name;
        }
        sleep(LOOK.saturating_sub(clock::now().since(began))).await;
    }
}

async fn missed(context: &Context, to: &BTreeSet<NodeName>, end: Lsn) -> String {
    let said = |(name, position): (NodeName, Option<Lsn>)| match position {
        Some(position) => format!("{name} is at {position}"),
        None => format!("{name} does not answer"),
    };
    let all: Vec<_> = ask(context, to).await.into_iter().map(said).collect();
    format!("nobody has everything up to {end}: {}", all.join(", "))
}

/// How far each of them is; `None` for one that does not answer as a standby.
async fn ask(context: &Context, to: &BTreeSet<NodeName>) -> BTreeMap<NodeName, Option<Lsn>> {
    let asked = context.members.iter().filter(|(name, _)| to.contains(*name)).map(|(name, url)| {
        let (client, name, url) = (context.client.clone(), name.clone(), url.clone());
        async move {
            let answer = timeout(ASK_PATIENCE, client.leader_poll(&url)).await;
            let position = match answer.map(|page| page.map(|page| publish::poll_answer(&page))) {
                Ok(Ok(PollAnswer::Standby(candidate))) => Some(candidate.position),
                Ok(Ok(PollAnswer::Primary | PollAnswer::Down | PollAnswer::Unreachable) | Err(_))
                | Err(_) => None,
            };
            (name, position)
        }
    });
    jobs::all(asked).await
}
