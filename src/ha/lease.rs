//! The renewal of the leader lease: a task of its own, so that nothing the loop waits for can delay it.
//!
//! Invariant: the deadman is told a deadline only after a renewal that succeeded, and that deadline counts from before the
//! renewal was sent. The task never gives the lease up by itself: it reports, and `decide` draws the consequence.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::clock::{self, Moment};
use crate::dcs::{Dcs, Error, Held};
use crate::process::InitLink;
use crate::supervisor::UnitState;
use crate::types::{NodeName, Timing};

use super::rules::Pause;
use super::view::{DEADMAN_MARGIN, Lease, demote_margin};

/// A renewal whose outcome is unknown is tried again after this long, until somebody decides otherwise.
const RETRY: Duration = Duration::from_millis(200);
/// Orders that may wait for the task: an acquisition and a release in a row.
const ORDERS: usize = 4;

/// An order to the task.
#[derive(Debug)]
enum Order {
    Hold(Held),
    /// Every member has promised not to take over: as good as a renewal that was sent at this moment.
    Extend(Moment),
    Forget,
}

/// The agent's end.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<Lease>,
}

impl Keeper {
    /// The lease was acquired: keep it.
    pub(super) async fn hold(&mut self, held: Held) {
        self.order(Order::Hold(held), |l| matches!(l, Lease::Held { .. })).await;
    }

    /// Every member has promised, in answer to a question that was sent at this moment, not to take over.
    pub(super) async fn extend(&mut self, asked: Moment) {
        self.order(Order::Extend(asked), |_lease| true).await;
    }

    /// The lease is not wanted any more: renew it no longer.
    pub(super) async fn forget(&mut self) {
        self.order(Order::Forget, |l| *l == Lease::None).await;
    }

    /// What is known of it.
    pub(super) fn state(&self) -> Lease {
        *self.state.borrow()
    }

    /// Waits for a change.
    pub(super) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            // The task has ended with the node; there is nothing left to report.
            std::future::pending::<()>().await;
        }
    }

    /// Sends an order and waits until it has been obeyed: the next view must show it.
    async fn order(&mut self, order: Order, obeyed: impl FnMut(&Lease) -> bool) {
        if self.orders.send(order).await.is_ok() && self.state.wait_for(obeyed).await.is_err() {
            warn!("the lease task has ended");
        }
    }
}

/// What the task works with.
#[derive(Debug)]
pub(super) struct Deps<D> {
    pub(super) store: Arc<D>,
    pub(super) me: NodeName,
    pub(super) init: InitLink,
    pub(super) process: watch::Receiver<UnitState>,
    pub(super) timing: watch::Receiver<Timing>,
    pub(super) pause: watch::Receiver<Pause>,
}

/// Starts the task. It ends when the agent's end is dropped.
pub(super) fn spawn<D: Dcs>(deps: Deps<D>, tasks: &mut JoinSet<()>) -> Keeper {
    let (orders, inbox) = mpsc::channel(ORDERS);
    let (publish, state) = watch::channel(Lease::None);
    tasks.spawn(run(deps, inbox, publish));
    Keeper { orders, state }
}

async fn run<D: Dcs>(mut deps: Deps<D>, mut inbox: mpsc::Receiver<Order>, publish: watch::Sender<Lease>) {
    // When the next renewal is due; none while the lease is not ours.
    let mut due: Option<Moment> = None;
    // The question that all members have last answered with their promise.
    let mut promised: Option<Moment> = None;
    loop {
        tokio::select! {
            order = inbox.recv() => match order {
                Some(Order::Hold(held)) => due = Some(deps.keep(held, &publish)),
                Some(Order::Extend(asked)) => promised = deps.extend(asked, &publish).or(promised),
                Some(Order::Forget) => {
                    (due, promised) = (None, None);
                    publish.send_replace(Lease::None);
                }
                None => return,
            },
            () = until(due) => due = deps.renew(promised, &publish).await,
            Ok(()) = deps.pause.changed() => {
                let paused = *deps.pause.borrow_and_update();
                match paused {
                    Pause::On => deps.init.disarm(),
                    Pause::Off => deps.arm(*publish.borrow()),
                }
            }
            changed = deps.process.changed() => {
                if changed.is_err() {
                    return;
                }
                deps.arm(*publish.borrow());
            }
        }
    }
}

/// Whether what the others have promised still lasts.
fn promises_hold(promised: Option<Moment>, lease: Lease) -> bool {
    match (promised, lease) {
        (Some(asked), Lease::Held { ttl, .. }) => clock::now() < asked + ttl - demote_margin(ttl),
        (Some(_), Lease::None | Lease::Lost) | (None, _) => false,
    }
}

async fn until(due: Option<Moment>) {
    match due {
        Some(at) => tokio::time::sleep(clock::now().until(at)).await,
        None => std::future::pending().await,
    }
}

impl<D: Dcs> Deps<D> {
    /// A successful acquisition or renewal: publish it, move the deadman, and say when the next is due.
    fn keep(&self, held: Held, publish: &watch::Sender<Lease>) -> Moment {
        let lease = Lease::Held { sent: held.sent, ttl: held.ttl };
        publish.send_if_modified(|known| {
            // A renewal is no news for the loop: it reads the new moment at its next tick.
            let news = !matches!(known, Lease::Held { .. });
            *known = lease;
            news
        });
        self.arm(lease);
        held.sent + self.timing.borrow().loop_wait
    }

    /// The promises of all members move the lease, and the deadman, as a renewal would. Says what counts from now on.
    fn extend(&self, asked: Moment, publish: &watch::Sender<Lease>) -> Option<Moment> {
        let Lease::Held { sent, ttl } = *publish.borrow() else { return None };
        if asked <= sent {
            return None;
        }
        let lease = Lease::Held { sent: asked, ttl };
        publish.send_replace(lease);
        self.arm(lease);
        Some(asked)
    }

    async fn renew(&self, promised: Option<Moment>, publish: &watch::Sender<Lease>) -> Option<Moment> {
        match self.store.renew_leader(&self.me).await {
            Ok(held) => Some(self.keep(held, publish)),
            // A refusal (no space, a member that is being replaced) says nothing of who holds the key.
            Err(error @ (Error::Unreachable(_) | Error::Rejected(_))) => {
                debug!(%error, "the lease could not be renewed, trying again");
                Some(clock::now() + RETRY)
            }
            // The key has run out in a store that was away; nobody may have taken it. The loop looks, and takes it again or stops.
            Err(error @ Error::Conflict { .. }) if promises_hold(promised, *publish.borrow()) => {
                warn!(%error, "the leader key has run out under the failsafe");
                publish.send_modify(|_lease| {});
                None
            }
            Err(error @ Error::Conflict { .. }) => {
                warn!(%error, "the leader lease is lost");
                publish.send_replace(Lease::Lost);
                None
            }
        }
    }

    /// Tells the deadman which postmaster to stop, and when.
    fn arm(&self, lease: Lease) {
        let Lease::Held { sent, ttl } = lease else { return };
        if *self.pause.borrow() == Pause::On {
            return;
        }
        if clock::now() >= sent + ttl - demote_margin(ttl) {
            // Too late for a postmaster that was started under this lease; what runs by now is none.
            return;
        }
        let pid = match *self.process.borrow() {
            UnitState::Running { pid, .. } | UnitState::Stopping { pid } => pid,
            UnitState::Down { .. } | UnitState::Draining { .. } | UnitState::Backoff { .. } => return,
        };
        self.init.arm(pid, sent + ttl - DEADMAN_MARGIN);
    }
}
