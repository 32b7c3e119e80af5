//! Where an operator's requests arrive: a bounded channel to the loop, which alone acts.
//!
//! What only writes a document of the store runs beside the loop, so that a slow store does not hold the loop up; what moves
//! PostgreSQL becomes an order in the View, and `decide` says what is done about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::info;

use crate::clock::{self, Moment};
use crate::dcs::{self, Dcs, Failover, Key, Precondition};

use super::agent::Agent;
use super::orders::{Accepted, Order, Orders, Reinitialize, Reload, Restart, Scheduled, Settled};
use super::rules::Rules;
use super::settings::{self, Change};

/// Requests that may wait. A person's requests come one by one; a program that sends more is told to wait.
const LETTERS: usize = 16;
/// Writes to the store that may be under way at once.
const ERRANDS: usize = 8;
/// A write and the read before it.
const ERRAND_PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Write this request for another leader.
    Failover(Failover),
    /// Clear it.
    CancelFailover,
    /// Change the dynamic configuration.
    Config(Change),
    /// Restart PostgreSQL.
    Restart(Restart),
    /// Restart it later.
    Schedule(Scheduled),
    /// Do not restart it later.
    CancelSchedule,
    /// Read the configuration again.
    Reload,
    /// Take another copy of the leader's data.
    Reinitialize(Reinitialize),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Done, or on its way; the revision or the moment of a write is in the store.
    Done(Moment),
    /// The configuration is now this.
    Config(Value),
    /// There is nothing to change: no request, no schedule, no configuration.
    Nothing,
    /// Somebody else was faster.
    Conflict,
    /// There is one already.
    Already,
    /// It breaks a rule, in words.
    Invalid(String),
    /// The store could not be read or written.
    Store(String),
    /// What the loop made of an order.
    Settled(Settled),
    /// Too much is asked at once, or the loop has ended.
    Unavailable,
}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Letter {
    ask: Ask,
    reply: oneshot::Sender<Reply>,
}

/// The callers' end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    letters: mpsc::Sender<Letter>,
}

/// The loop's end.
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<Letter>);

/// Both ends.
pub fn open() -> (Desk, Inbox) {
    let (letters, inbox) = mpsc::channel(LETTERS);
    (Desk { letters }, Inbox(inbox))
}

impl Desk {
    /// Asks, and waits for the answer for this long.
    pub async fn ask(&self, ask: Ask, patience: Duration) -> Reply {
        let (reply, answer) = oneshot::channel();
        if self.letters.try_send(Letter { ask, reply }).is_err() {
            return Reply::Unavailable;
        }
        match timeout(patience, answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) | Err(_) => Reply::Unavailable,
        }
    }
}

impl Inbox {
    /// The next request; waits for ever when nobody can ask any more.
    pub(super) async fn next(&mut self) -> Letter {
        match self.0.recv().await {
            Some(letter) => letter,
            None => std::future::pending().await,
        }
    }
}

/// Who waits for which order.
pub(super) type Waiting = BTreeMap<Order, oneshot::Sender<Reply>>;

/// Answers; whoever does not wait any more sees the outcome in the status.
pub(super) fn answer(to: oneshot::Sender<Reply>, reply: Reply) {
    drop(to.send(reply));
}

impl<D: Dcs> Agent<D> {
    /// Takes a request in: a write is sent on its way, an order is remembered.
    pub(super) fn receive(&mut self, Letter { ask, reply }: Letter) {
        info!(?ask, "asked by an operator");
        let now = clock::now();
        let orders = &mut self.memory.orders;
        match ask {
            Ask::Failover(_) | Ask::CancelFailover | Ask::Config(_) => self.send_out(ask, reply),
            Ask::Restart(order) => {
                let order = Restart { since: now, ..order };
                self.accept(Order::Restart, reply, |orders| &mut orders.restart, order);
            }
            Ask::Reinitialize(order) => {
                let order = Reinitialize { stage: Accepted::No, ..order };
                self.accept(Order::Reinitialize, reply, |orders| &mut orders.reinitialize, order);
            }
            Ask::Reload => self.accept(Order::Reload, reply, |orders| &mut orders.reload, Reload),
            Ask::Schedule(_) if orders.scheduled.is_some() => answer(reply, Reply::Already),
            Ask::Schedule(scheduled) => {
                let started = self.last_started;
                orders.scheduled = Some(Scheduled { postmaster_started: started, ..scheduled });
                answer(reply, Reply::Done(now));
            }
            Ask::CancelSchedule => match orders.scheduled.take() {
                Some(_) => answer(reply, Reply::Done(now)),
                None => answer(reply, Reply::Nothing),
            },
        }
    }

    fn accept<T>(
        &mut self,
        order: Order,
        reply: oneshot::Sender<Reply>,
        place: impl Fn(&mut Orders) -> &mut Option<T>,
        value: T,
    ) {
        let place = place(&mut self.memory.orders);
        if place.is_some() {
            return answer(reply, Reply::Already);
        }
        *place = Some(value);
        self.waiting.insert(order, reply);
    }

    /// Tells whoever asked, and forgets the order.
    pub(super) fn settle(&mut self, order: Order, how: Settled) {
        info!(?order, ?how, "an order is settled");
        self.memory.orders.settle(order);
        if let Some(reply) = self.waiting.remove(&order) {
            answer(reply, Reply::Settled(how));
        }
    }

    /// A copy is begun: whoever asked need not wait for its end.
    pub(super) fn accept_reinitialize(&mut self) {
        if let Some(order) = &mut self.memory.orders.reinitialize {
            order.stage = Accepted::Yes;
        }
        if let Some(reply) = self.waiting.remove(&Order::Reinitialize) {
            answer(reply, Reply::Settled(Settled::Done));
        }
    }

    fn send_out(&mut self, ask: Ask, reply: oneshot::Sender<Reply>) {
        // Those that are done count no more: the loop takes one of them back at a time.
        while self.errands.try_join_next().is_some() {}
        if self.errands.len() >= ERRANDS {
            return answer(reply, Reply::Unavailable);
        }
        let (store, rules) = (Arc::clone(&self.deps.store), self.config.rules.clone());
        self.errands.spawn(async move {
            let done = timeout(ERRAND_PATIENCE, run(store.as_ref(), &rules, ask)).await;
            answer(reply, done.unwrap_or_else(|_elapsed| Reply::Store("no answer in time".to_owned())));
        });
    }
}

async fn run<D: Dcs>(store: &D, rules: &Rules, ask: Ask) -> Reply {
    let result = match ask {
        Ask::Failover(request) => put(store, Key::Failover, &request, Precondition::None).await,
        Ask::CancelFailover => cancel(store).await,
        Ask::Config(change) => configure(store, rules, &change).await,
        Ask::Restart(_) | Ask::Schedule(_) | Ask::CancelSchedule | Ask::Reload | Ask::Reinitialize(_) => {
            Ok(Reply::Nothing)
        }
    };
    result.unwrap_or_else(|error| match error {
        dcs::Error::Conflict { .. } => Reply::Conflict,
        error @ (dcs::Error::Unreachable(_) | dcs::Error::Rejected(_)) => Reply::Store(error.to_string()),
    })
}

async fn put<D: Dcs>(
    store: &D,
    key: Key,
    value: &impl serde::Serialize,
    when: Precondition,
) -> Result<Reply, dcs::Error> {
    match serde_json::to_string(value) {
        Ok(text) => store.put(key, text, when).await.map(|_revision| Reply::Done(clock::now())),
        Err(error) => Ok(Reply::Invalid(error.to_string())),
    }
}

async fn cancel<D: Dcs>(store: &D) -> Result<Reply, dcs::Error> {
    match store.snapshot().await?.failover {
        None => Ok(Reply::Nothing),
        Some(request) => {
            let when = Precondition::Unchanged(request.revision);
            put(store, Key::Failover, &Failover::default(), when).await
        }
    }
}

async fn configure<D: Dcs>(store: &D, rules: &Rules, change: &Change) -> Result<Reply, dcs::Error> {
    let before = store.snapshot().await?.config;
    match settings::changed(rules, before.as_ref().map(|config| &config.value), change) {
        Err(settings::Wrong::NoConfig) => Ok(Reply::Nothing),
        Err(settings::Wrong::Rule(why)) => Ok(Reply::Invalid(why)),
        Ok(value) => {
            let unchanged = before.as_ref().is_some_and(|config| config.value == value);
            let when = before.map_or(Precondition::Absent, |config| Precondition::Unchanged(config.revision));
            if !unchanged {
                put(store, Key::Config, &value, when).await?;
            }
            Ok(Reply::Config(value))
        }
    }
}
