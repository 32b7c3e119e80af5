//! The renewal of the leader lease: a task of its own, so that nothing the loop waits for can delay it.
//!
//! Invariant: the deadman is told a deadline only after a renewal that succeeded, and that deadline counts from before the
//! renewal was sent. The task never gives the lease up by itself: it reports, and `decide` draws the consequence.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tracing::{debug, warn};

use crate::clock::{self, Moment};
use crate::dcs::{Dcs, Error, Held};
use crate::process::{InitLink, Timer};
use crate::supervisor::UnitState;
use crate::types::{NodeName, Timing};

use super::arming::Arming;
use super::rules::Pause;
use super::view::{DEADMAN_MARGIN, Lease, demote_margin};
use super::watchdog::Device;

/// A renewal whose outcome is unknown is tried again after this long, until somebody decides otherwise.
const RETRY: Duration = Duration::from_millis(200);
/// Orders that may wait for the task: an acquisition and a release in a row.
const ORDERS: usize = 4;

/// An order to the task.
#[derive(Debug)]
enum Order {
    Hold(Held),
    /// Every member has promised not to take over: as good as a renewal that was sent at this moment for so long.
    Extend(Moment, Duration),
    Forget,
    /// Set the watchdog going.
    Arm(oneshot::Sender<Result<Device, super::Error>>),
    /// Stop it.
    Disarm(oneshot::Sender<Result<(), super::Error>>),
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

    /// Every member has promised, in answer to a question that was sent at this moment, not to take over for `ttl`.
    pub(super) async fn extend(&mut self, asked: Moment, ttl: Duration) {
        let obeyed = |lease: &Lease| match lease {
            Lease::Held { sent, .. } => *sent >= asked,
            Lease::None | Lease::Lost => true,
        };
        self.order(Order::Extend(asked, ttl), obeyed).await;
    }

    /// The lease is not wanted any more: renew it no longer.
    pub(super) async fn forget(&mut self) {
        self.order(Order::Forget, |l| *l == Lease::None).await;
    }

    /// Sets the watchdog going: from now on the lease counts for no longer than it waits.
    pub(super) async fn arm(&mut self) -> Result<Device, super::Error> {
        self.ask(Order::Arm).await
    }

    /// Stops the watchdog.
    pub(super) async fn disarm(&mut self) -> Result<(), super::Error> {
        self.ask(Order::Disarm).await
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, super::Error>>) -> Order,
    ) -> Result<T, super::Error> {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(order(answer)).await.is_err() {
            warn!("the lease task has ended");
        }
        answered.await.unwrap_or(Err(super::Error::OutOfTime))
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
    pub(super) arming: Arming,
}

/// Starts the task. It ends when the agent's end is dropped.
pub(super) fn spawn<D: Dcs>(deps: Deps<D>, tasks: &mut JoinSet<()>) -> Keeper {
    let (orders, inbox) = mpsc::channel(ORDERS);
    let (publish, state) = watch::channel(Lease::None);
    tasks.spawn(run(deps, inbox, publish));
    Keeper { orders, state }
}

async fn run<D: Dcs>(mut deps: Deps<D>, mut inbox: mpsc::Receiver<Order>, publish: watch::Sender<Lease>) {
    let mut timer = Timer::default();
    // When the next renewal is due; none while the lease is not ours.
    let mut due: Option<Moment> = None;
    // The question that all members have last answered with their promise.
    let mut promised: Option<Moment> = None;
    // At most one renewal is under way. A store that is silent keeps it waiting; promises do not wait for it.
    let mut renewal = JoinSet::new();
    loop {
        tokio::select! {
            order = inbox.recv() => match order {
                Some(Order::Hold(held)) => due = Some(deps.keep(held, &publish)),
                Some(Order::Extend(asked, ttl)) => {
                    promised = deps.extend((asked, ttl), &publish).or(promised);
                }
                Some(Order::Arm(answer)) => drop(answer.send(deps.guard(&publish))),
                Some(Order::Disarm(answer)) => drop(answer.send(deps.arming.disarm())),
                Some(Order::Forget) => {
                    (due, promised) = (None, None);
                    // What it would say is about a lease that is given up.
                    renewal = JoinSet::new();
                    publish.send_replace(Lease::None);
                }
                None => return,
            },
            () = until(due, &mut timer), if renewal.is_empty() => {
                deps.shorten(&publish);
                deps.begin_renewal(&mut renewal);
            }
            Some(renewed) = renewal.join_next() => due = deps.renewed(renewed, promised, &publish),
            Ok(()) = deps.pause.changed() => {
                let paused = *deps.pause.borrow_and_update();
                match paused {
                    Pause::On => deps.init.disarm(),
                    Pause::Off => deps.arm_again(*publish.borrow()),
                }
            }
            Ok(()) = deps.timing.changed() => deps.shorten(&publish),
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

async fn until(due: Option<Moment>, timer: &mut Timer) {
    match due {
        Some(at) => timer.at(at).await,
        None => std::future::pending().await,
    }
}

impl<D: Dcs> Deps<D> {
    /// A successful acquisition or renewal: publish it, move the deadman, and say when the next is due.
    fn keep(&mut self, held: Held, publish: &watch::Sender<Lease>) -> Moment {
        // A renewal that took long is older than what was promised meanwhile.
        self.arming.renewed(held.sent + held.ttl, &self.timing.borrow());
        let limit = self.arming.limit(held.ttl);
        let sent = match *publish.borrow() {
            Lease::Held { sent, ttl } if ttl == limit => sent.max(held.sent),
            Lease::Held { .. } | Lease::None | Lease::Lost => held.sent,
        };
        let lease = Lease::Held { sent, ttl: limit };
        publish.send_if_modified(|known| {
            // A renewal is no news for the loop: it reads the new moment at its next tick.
            let news = !matches!(known, Lease::Held { .. });
            *known = lease;
            news
        });
        self.arm(lease);
        held.sent + self.timing.borrow().loop_wait
    }

    /// A shorter TTL counts at once: the next renewal puts the key under a lease of that length, and its answer may be lost.
    fn shorten(&mut self, publish: &watch::Sender<Lease>) {
        let timing = *self.timing.borrow_and_update();
        let Lease::Held { sent, ttl } = *publish.borrow() else { return };
        self.arming.retimed(sent + ttl.min(timing.ttl), &timing);
        let limit = self.arming.limit(timing.ttl);
        if limit < ttl {
            let lease = Lease::Held { sent, ttl: limit };
            publish.send_replace(lease);
            self.arm(lease);
        }
    }

    /// Sets the watchdog going, and has the lease count for no longer than it waits.
    fn guard(&mut self, publish: &watch::Sender<Lease>) -> Result<Device, super::Error> {
        let device = self.arming.arm(*publish.borrow(), &self.timing.borrow())?;
        publish.send_if_modified(|lease| {
            if let Lease::Held { ttl, .. } = lease {
                *ttl = self.arming.limit(*ttl);
            }
            // Whoever has asked for this looks again anyway.
            false
        });
        self.arm(*publish.borrow());
        Ok(device)
    }

    /// The promises of all members move the lease, and the deadman, as a renewal would. Says what counts from now on.
    fn extend(&mut self, promise: (Moment, Duration), publish: &watch::Sender<Lease>) -> Option<Moment> {
        let (asked, ttl) = promise;
        let Lease::Held { sent, .. } = *publish.borrow() else { return None };
        if asked <= sent {
            return None;
        }
        self.arming.renewed(asked + ttl, &self.timing.borrow());
        let ttl = self.arming.limit(ttl.min(self.timing.borrow().ttl));
        let lease = Lease::Held { sent: asked, ttl };
        publish.send_replace(lease);
        self.arm(lease);
        Some(asked)
    }

    fn begin_renewal(&self, renewal: &mut JoinSet<Result<Held, Error>>) {
        let (store, me) = (Arc::clone(&self.store), self.me.clone());
        renewal.spawn(async move { store.renew_leader(&me).await });
    }

    /// What a renewal has come to. Says when the next is due.
    fn renewed(
        &mut self,
        renewed: Result<Result<Held, Error>, JoinError>,
        promised: Option<Moment>,
        publish: &watch::Sender<Lease>,
    ) -> Option<Moment> {
        let renewed = match renewed {
            Ok(renewed) => renewed,
            Err(error) => {
                warn!(%error, "a renewal of the lease has ended by itself");
                return Some(clock::now() + RETRY);
            }
        };
        match renewed {
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
                // It may be ours again by a request that was not answered: then nobody takes it, and only a renewal shows it.
                Some(clock::now() + self.timing.borrow().loop_wait)
            }
            Err(error @ Error::Conflict { .. }) => {
                warn!(%error, "the leader lease is lost");
                publish.send_replace(Lease::Lost);
                None
            }
        }
    }

    /// Tells the deadman which postmaster to stop, and when. Also when that moment has passed: a postmaster whose start was
    /// under way while the machine stood still, or while the lease was lost, is stopped at once, since nobody else looks at the
    /// clock for sure.
    fn arm(&self, lease: Lease) {
        match lease {
            Lease::Held { sent, ttl } => self.arm_at(sent + ttl - DEADMAN_MARGIN),
            Lease::Lost => self.arm_at(clock::now()),
            Lease::None => {}
        }
    }

    /// After maintenance mode, in which a lease may have run out unheeded: `node` gets the time for an orderly stop that it
    /// would have had.
    fn arm_again(&self, lease: Lease) {
        let Lease::Held { sent, ttl } = lease else { return };
        let orderly = clock::now() + (demote_margin(ttl) - DEADMAN_MARGIN);
        self.arm_at((sent + ttl - DEADMAN_MARGIN).max(orderly));
    }

    fn arm_at(&self, deadline: Moment) {
        if *self.pause.borrow() == Pause::On {
            return;
        }
        let pid = match *self.process.borrow() {
            UnitState::Running { pid, .. } | UnitState::Stopping { pid } => pid,
            UnitState::Down { .. } | UnitState::Draining { .. } | UnitState::Backoff { .. } => return,
        };
        self.init.arm(pid, deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcs::memory::{MemoryCluster, MemoryStore};
    use crate::ha::watchdog::{Guard, Margin, Need};
    use crate::process::{InitEnd, WatchdogDevice, WatchdogDriver};
    use crate::types::Revision;

    const TTL: Duration = Duration::from_secs(10);

    fn device() -> WatchdogDevice {
        WatchdogDevice { driver: WatchdogDriver::Written, path: "/nowhere".into() }
    }

    /// The task's things beside a postmaster that runs, and `init`'s end of the link.
    fn deps() -> (Deps<MemoryStore>, InitEnd) {
        let (link, init) = InitLink::pair(TTL).unwrap();
        let timing =
            Timing { ttl: TTL, loop_wait: Duration::from_secs(2), retry_timeout: Duration::from_secs(4) };
        let process = UnitState::Running { pid: std::process::id(), since: clock::now() };
        let deps = Deps {
            store: Arc::new(MemoryCluster::default().store(TTL)),
            me: NodeName::from("n1"),
            init: link,
            arming: Arming::new(device(), Guard::OFF, watch::channel(process).1),
            process: watch::channel(process).1,
            timing: watch::channel(timing).1,
            pause: watch::channel(Pause::Off).1,
        };
        (deps, init)
    }

    /// A renewal that was sent just now.
    fn held() -> Held {
        Held { sent: clock::now(), ttl: TTL, revision: Revision(1) }
    }

    /// A lease whose last renewal was sent so long ago.
    fn sent(ago: Duration) -> Lease {
        Lease::Held { sent: clock::now() - ago, ttl: TTL }
    }

    #[test]
    fn a_postmaster_that_was_started_too_late_is_stopped_at_once() {
        let (deps, init) = deps();
        deps.arm(sent(Duration::from_secs(8)));
        assert!(init.lease.setting().is_some(), "after the demotion, before the deadline");
        assert_eq!(init.lease.take_due(), None);
        deps.arm(sent(TTL));
        assert!(init.lease.take_due().is_some());
        deps.arm(Lease::None);
        assert_eq!(init.lease.take_due(), None);
        deps.arm(Lease::Lost);
        assert!(init.lease.take_due().is_some(), "the key was lost while it was being started");
    }

    #[test]
    fn a_key_that_has_run_out_under_promises_is_renewed_on() {
        let (mut deps, _init) = deps();
        let (publish, state) = watch::channel(sent(TTL / 5));
        let refused = || Ok(Err(Error::Conflict { what: "the leader key" }));
        let next = deps.renewed(refused(), Some(clock::now() - TTL / 5), &publish);
        assert!(next.is_some_and(|at| clock::now() < at));
        assert!(matches!(*state.borrow(), Lease::Held { .. }));
        assert_eq!(deps.renewed(refused(), Some(clock::now() - TTL), &publish), None, "they have ended");
        assert_eq!(*state.borrow(), Lease::Lost);
    }

    #[test]
    fn promises_move_a_lease_and_the_deadman_by_no_more_than_was_promised() {
        let (mut deps, init) = deps();
        let (publish, state) = watch::channel(sent(TTL / 2));
        let (asked, promised) = (clock::now() - TTL / 5, TTL * 4 / 5);
        assert_eq!(deps.extend((asked, promised), &publish), Some(asked));
        assert_eq!(*state.borrow(), Lease::Held { sent: asked, ttl: promised });
        // The alarm counts from when it is set.
        let fires = init.lease.setting().unwrap().at;
        let due = asked + promised - DEADMAN_MARGIN;
        assert!(fires.since(due).max(due.since(fires)) < Duration::from_millis(100), "{fires:?} {due:?}");
        assert_eq!(deps.extend((asked - TTL, TTL), &publish), None, "an older round says nothing new");
        publish.send_replace(Lease::Lost);
        assert_eq!(deps.extend((clock::now(), TTL), &publish), None, "what is lost is not given back");
    }

    #[test]
    fn after_maintenance_mode_an_old_lease_leaves_time_for_an_orderly_stop() {
        let (deps, init) = deps();
        deps.arm_again(sent(10 * TTL));
        assert_eq!(init.lease.take_due(), None);
        let left = clock::now().until(init.lease.setting().unwrap().at);
        assert!(left > Duration::from_secs(1) && left <= Duration::from_secs(2), "{left:?}");
    }

    #[test]
    fn a_shorter_ttl_counts_before_a_renewal_with_it_is_answered() {
        let (mut deps, init) = deps();
        let Lease::Held { sent, .. } = sent(Duration::from_secs(1)) else { unreachable!() };
        let (publish, state) = watch::channel(Lease::Held { sent, ttl: 2 * TTL });
        deps.shorten(&publish);
        assert_eq!(*state.borrow(), Lease::Held { sent, ttl: TTL });
        let left = clock::now().until(init.lease.setting().unwrap().at);
        assert!(left <= TTL - Duration::from_secs(1) - DEADMAN_MARGIN, "{left:?}");
        publish.send_replace(Lease::Held { sent, ttl: TTL / 2 });
        deps.shorten(&publish);
        assert_eq!(
            *state.borrow(),
            Lease::Held { sent, ttl: TTL / 2 },
            "a longer one has to be granted first"
        );
    }

    #[test]
    fn under_a_watchdog_a_lease_counts_for_no_longer_than_it_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("dog")).unwrap();
        nix::unistd::mkfifo(path.as_std_path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (mut deps, init) = deps();
        let guard = Guard { need: Need::Required, margin: Margin::Of(Duration::from_secs(2)) };
        let device = WatchdogDevice { path: path.clone(), ..device() };
        let (process, seen) = watch::channel(*deps.process.borrow());
        deps.arming = Arming::new(device.clone(), guard, seen.clone());
        let mut reader = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut said = || {
            let mut text = [0; 100];
            let n = std::io::Read::read(&mut reader, &mut text).unwrap();
            String::from_utf8_lossy(&text[..n]).into_owned()
        };
        let Lease::Held { sent, .. } = sent(Duration::from_millis(500)) else { unreachable!() };
        let (publish, state) = watch::channel(Lease::Held { sent, ttl: TTL });
        deps.guard(&publish).unwrap();
        assert_eq!(
            (said(), *state.borrow()),
            ("Ctimeout=8\n".into(), Lease::Held { sent, ttl: 8 * TTL / 10 })
        );
        let due = sent + 8 * TTL / 10 - DEADMAN_MARGIN;
        assert!(init.lease.setting().is_some_and(|set| set.at <= due + Duration::from_millis(100)));
        // A renewal that was answered late may not have it fire after the lease has ended.
        let late = clock::now() - Duration::from_millis(3500);
        deps.keep(Held { sent: late, ..held() }, &publish);
        assert_eq!(said(), "Ctimeout=6\n1");
        deps.keep(held(), &publish);
        assert_eq!(said(), "Ctimeout=8\n1");
        deps.arming.disarm().unwrap();
        deps.keep(held(), &publish);
        assert_eq!(said(), "V");
        assert!(matches!(*state.borrow(), Lease::Held { ttl: TTL, .. }));
        // What ends while the server runs leaves it counting; after the server it is stopped, also by a stop in a hurry.
        deps.guard(&publish).unwrap();
        drop(std::mem::replace(&mut deps.arming, Arming::new(device, guard, seen)));
        deps.guard(&publish).unwrap();
        process.send_replace(UnitState::Down { last: None });
        drop(deps);
        let all = said();
        assert!(all.ends_with('V') && all.matches('V').count() == 1, "{all}");
    }
}
