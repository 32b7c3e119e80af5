//! The long actions: each runs beside the loop and ends with what the loop should remember.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::clock::{self, Moment};
use crate::peer::PeerClient;
use crate::postgres::{Pedigree, Postgres, StopMode, Upstream};
use crate::process::{self, Command};
use crate::types::{Chain, Lsn, NodeName};

use super::callbacks::Program;
use super::decide::STOP_PATIENCE;
use super::failsafe::Ping;
use super::manual::HandOver;
use super::reason::Task;
use super::view::{Ancestry, Job, PollAnswer, SurveyAnswer};
use super::{Error, handover, publish};

/// A promotion takes tens of milliseconds; one that takes longer than this is given up and tried again.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(10);
/// `pre_promote` must have answered by then: as long as it runs there is no primary.
const APPROVAL_PATIENCE: Duration = Duration::from_secs(60);
/// A member must answer a poll within this time: a dead leader's host does not hold up the vote for longer.
const POLL_PATIENCE: Duration = Duration::from_secs(1);
/// A member must promise within this time, so that a round ends well before the lease does (Patroni: 2 s and one more try;
/// the next round is ours).
const PROMISE_PATIENCE: Duration = Duration::from_secs(2);
/// The checkpoint before a planned stop shortens the one inside it; it is worth no more than this.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(2);

/// What a job works with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) postgres: Postgres,
    pub(super) client: PeerClient,
    /// The other members and their `api_url`.
    pub(super) members: BTreeMap<NodeName, String>,
    /// Every other address at which a node may be; none while the location list is not known.
    pub(super) others: Option<BTreeSet<IpAddr>>,
}

/// A job that has ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) result: Result<Outcome, Error>,
}

/// What the loop should remember of it.
#[derive(Debug)]
pub(super) enum Outcome {
    Stopped,
    Initialised,
    Bootstrapped,
    Cloned,
    Rewound,
    Approved,
    Promoted,
    HandedOver(HandOver),
    Polled(BTreeMap<NodeName, PollAnswer>),
    Surveyed(BTreeMap<IpAddr, SurveyAnswer>),
    Compared(Ancestry),
    SlotsCopied,
}

/// Runs a task to its end.
pub(super) async fn run(task: Task, context: Context) -> Done {
    let job = task.job();
    Done { job, result: perform(task, context).await }
}

async fn perform(task: Task, context: Context) -> Result<Outcome, Error> {
    let postgres = &context.postgres;
    Ok(match task {
        Task::Initdb => {
            postgres.initdb().await?;
            Outcome::Initialised
        }
        Task::FinishBootstrap => {
            postgres.finish_bootstrap().await?;
            Outcome::Bootstrapped
        }
        Task::Clone(upstream) => {
            postgres.clone_from(&upstream).await?;
            Outcome::Cloned
        }
        Task::CopyAlone => {
            postgres.copy_alone().await?;
            Outcome::Cloned
        }
        Task::Rewind(upstream) => {
            postgres.rewind(&upstream).await?;
            Outcome::Rewound
        }
        Task::Approval(program) => {
            approve(&program, postgres).await?;
            Outcome::Approved
        }
        Task::Promote => {
            postgres.promote(PROMOTE_PATIENCE).await?;
            Outcome::Promoted
        }
        Task::Stop(mode) => {
            postgres.stop(mode).await?;
            Outcome::Stopped
        }
        Task::StopAfterCheckpoint(mode) => {
            if let Err(error) = postgres.checkpoint(CHECKPOINT_PATIENCE).await {
                tracing::warn!(error = %Chain(&error), "stopping without a checkpoint");
            }
            postgres.stop(mode).await?;
            Outcome::Stopped
        }
        Task::HandOver { to, request } => {
            let end = handover::run(&context, &to).await;
            Outcome::HandedOver(HandOver { request, end })
        }
        Task::Poll => Outcome::Polled(poll(context).await),
        Task::Survey => Outcome::Surveyed(survey(context).await?),
        Task::Compare(upstream) => Outcome::Compared(compare(postgres, &upstream).await?),
        Task::CopySlots { from, names } => {
            postgres.copy_slots(&from, &names, StopMode::Fast { patience: STOP_PATIENCE }).await?;
            Outcome::SlotsCopied
        }
    })
}

async fn approve(program: &Program, postgres: &Postgres) -> Result<(), Error> {
    let command = Command::new("pre_promote", program.path.clone())
        .args(program.args.iter().cloned())
        .of_administrator(postgres.run_as());
    let output = process::run(&command, APPROVAL_PATIENCE).await.map_err(Error::Approval)?;
    if output.exit.is_success() { Ok(()) } else { Err(Error::NotApproved(output.exit)) }
}

/// Asks every other member at once; whoever does not answer in the client's time is unreachable.
async fn poll(context: Context) -> BTreeMap<NodeName, PollAnswer> {
    let asked = context.members.into_iter().map(|(name, url)| {
        let client = context.client.clone();
        async move {
            let answer = match timeout(POLL_PATIENCE, client.leader_poll(&url)).await {
                Ok(Ok(page)) => publish::poll_answer(&page),
                Ok(Err(error)) => {
                    tracing::debug!(%name, error = %Chain(&error), "no answer to the poll");
                    PollAnswer::Unreachable
                }
                Err(_elapsed) => PollAnswer::Unreachable,
            };
            (name, answer)
        }
    });
    all(asked).await
}

/// What came of asking the members.
#[derive(Debug)]
pub(super) struct Round {
    /// Before the first question was sent.
    pub(super) asked: Moment,
    /// For how long a promise was asked.
    pub(super) ttl: Duration,
    /// The question, but for whom it was put to.
    pub(super) ping: Ping,
    /// Who has given it, and how far each says that it is.
    pub(super) promised: BTreeMap<NodeName, Option<Lsn>>,
}

/// Asks every member for its promise, all at once; who has given it, and how far each says that it is.
pub(super) async fn ask_for_promises(
    client: PeerClient,
    others: BTreeMap<NodeName, String>,
    ping: &Ping,
) -> BTreeMap<NodeName, Option<Lsn>> {
    let asked = others.into_iter().map(|(name, url)| {
        let (client, ping) = (client.clone(), Ping { to: Some(name.clone()), ..ping.clone() });
        async move {
            let answer = timeout(PROMISE_PATIENCE, client.failsafe(&url, &ping)).await;
            match &answer {
                Ok(Ok(_position)) => {}
                Ok(Err(error)) => tracing::warn!(%name, error = %Chain(error), "no promise"),
                Err(_elapsed) => tracing::warn!(%name, "no promise in time"),
            }
            (name, answer.ok().and_then(Result::ok))
        }
    });
    all(asked).await.into_iter().filter_map(|(name, promised)| Some((name, promised?))).collect()
}

/// Tells every member that a question has come to nothing, once and as far as it hears it: else its promise ends by itself.
pub(super) async fn withdraw(client: PeerClient, others: BTreeMap<NodeName, String>, ping: Ping) {
    let told = others.into_iter().map(|(name, url)| {
        let (client, ping) = (client.clone(), ping.clone());
        async move {
            let told = timeout(PROMISE_PATIENCE, client.withdraw(&url, &ping)).await;
            tracing::debug!(%name, ?told, "a question was withdrawn");
            (name, ())
        }
    });
    all(told).await;
}

async fn survey(context: Context) -> Result<BTreeMap<IpAddr, SurveyAnswer>, Error> {
    let others = context.others.ok_or(Error::NoList)?;
    let asked = others.into_iter().map(|address| {
        let client = context.client.clone();
        async move {
            let answer = match client.status(address).await {
                Ok(status) if status.data.unreadable.is_some() => SurveyAnswer::Unreadable,
                Ok(status) => match (status.data.system_id, status.data.adopted) {
                    (Some(id), _) => SurveyAnswer::Data(id),
                    (None, Some(adopted)) => SurveyAnswer::Adopted(adopted),
                    (None, None) => SurveyAnswer::NoData,
                },
                Err(error) => {
                    tracing::debug!(%address, %error, "no answer to the survey");
                    SurveyAnswer::Silent
                }
            };
            (address, answer)
        }
    });
    Ok(all(asked).await)
}

pub(super) async fn all<K, V, F>(asked: impl Iterator<Item = F>) -> BTreeMap<K, V>
where
    K: Ord + Send + 'static,
    V: Send + 'static,
    F: Future<Output = (K, V)> + Send + 'static,
{
    let calls: JoinSet<_> = asked.collect();
    calls.join_all().await.into_iter().collect()
}

async fn compare(postgres: &Postgres, upstream: &Upstream) -> Result<Ancestry, Error> {
    let Pedigree { system_id, timeline, history, contains_ours } =
        postgres.upstream_history(upstream).await?;
    let (leader, system_id) = (upstream.name.clone(), Some(system_id));
    Ok(Ancestry { leader, at: clock::now(), system_id, timeline, history, contains_ours })
}
