//! A watchdog resets the machine of a leader that hangs: when it is armed, for how long, and who may lead without one. Pure.
//!
//! What must never be: a primary that takes writes after its lease has ended, because everything that would stop it hangs. So
//! the device is armed before anything can take writes, it is told that all is well only when the lease has been renewed
//! (`arming`), and it is stopped only when nothing can take writes any more: a stop that hangs resets the machine too. While it
//! is armed the lease counts for no longer than the device waits, so that the orderly stop comes first. In maintenance
//! mode a primary goes on without its lease, and without a watchdog.

use std::time::Duration;

use crate::clock::Moment;
use crate::postgres::{StartAs, StopMode};
use crate::types::Timing;

use super::decide::{STOP_PATIENCE, act, idle};
use super::lead::NOW;
use super::pause;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::remote;
use super::view::{Instance, Lease, View, demote_margin};

/// What is wanted of a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// Whether there must be one.
    pub need: Need,
    /// How much earlier than the lease it ends.
    pub margin: Margin,
}

/// Whether a leader needs a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Need {
    /// There is none.
    #[default]
    Off,
    /// It is used if it can be.
    Automatic,
    /// Nobody leads without.
    Required,
}

/// How much earlier than a lease the watchdog fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Margin {
    /// By so much.
    Of(Duration),
    /// By half of the lease: also a renewal that was answered as late as possible is covered.
    Half,
}

/// What is known of the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Watch {
    /// It does not count.
    #[default]
    Idle,
    /// It counts.
    Armed,
    /// It cannot be used, as was found at this moment.
    Failed {
        /// When.
        at: Moment,
        /// Why.
        why: String,
    },
}

/// What others are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// As good as is wanted.
    #[default]
    Sound,
    /// This node may not lead for want of one.
    Failed,
}

/// Why a watchdog would do no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Useless {
    /// It would fire before a primary whose renewals fail is stopped in order.
    #[error(
        "a watchdog that waits {waits:?} fires before a late renewal is dealt with (loop_wait is {loop_wait:?})"
    )]
    TooShort {
        /// What it would wait.
        waits: Duration,
        /// The time between two renewals.
        loop_wait: Duration,
    },
    /// It waits longer than the lease allows.
    #[error("the watchdog waits {waits:?}, and may wait no longer than {limit:?}")]
    TooLong {
        /// What it waits.
        waits: Duration,
        /// What it may.
        limit: Duration,
    },
}

impl Guard {
    /// None.
    pub const OFF: Self = Self { need: Need::Off, margin: Margin::Half };

    /// How long the device waits under these durations.
    ///
    /// # Errors
    /// That would be too short to be of use.
    pub fn timeout(&self, timing: &Timing) -> Result<Duration, Useless> {
        let exact = match self.margin {
            Margin::Of(margin) => timing.ttl.saturating_sub(margin),
            Margin::Half => timing.ttl / 2,
        };
        useful(Duration::from_secs(exact.as_secs()), timing)
    }

    /// For how long a lease may count with a device that waits so long instead of `wanted`: no longer than that.
    ///
    /// # Errors
    /// It would do no good.
    pub fn accept(&self, wanted: Duration, waits: Duration, timing: &Timing) -> Result<Duration, Useless> {
        match self.need {
            // Better than nothing: it resets a machine that hangs, only too late.
            Need::Automatic if waits > wanted => Ok(timing.ttl),
            Need::Off | Need::Automatic | Need::Required if waits <= wanted => useful(waits, timing),
            Need::Off | Need::Automatic | Need::Required => Err(Useless::TooLong { waits, limit: wanted }),
        }
    }
}

/// A renewal that is a `loop_wait` away must come before the orderly stop, and that before the device.
fn useful(waits: Duration, timing: &Timing) -> Result<Duration, Useless> {
    let orderly = waits.saturating_sub(demote_margin(waits));
    if orderly > timing.loop_wait {
        Ok(waits)
    } else {
        Err(Useless::TooShort { waits, loop_wait: timing.loop_wait })
    }
}

/// How long the device may wait from now on, of the time that it would, for a lease that ends then: in whole seconds, and not
/// at all in the last one.
pub fn within(end: Moment, usual: Duration, now: Moment) -> Option<Duration> {
    let left = usual.min(Duration::from_secs(now.until(end).as_secs()));
    (!left.is_zero()).then_some(left)
}

/// Why this node may not lead: it cannot be guarded as it must be.
pub(super) fn barred(view: &View) -> Option<Reason> {
    let guard = &view.rules.watchdog;
    if guard.need != Need::Required || !guards(view) {
        return None;
    }
    let useless = guard.timeout(&view.rules.timing).err().map(|useless| useless.to_string());
    let failed = match &view.memory.watchdog {
        Watch::Failed { why, .. } => Some(why.clone()),
        Watch::Idle | Watch::Armed => None,
    };
    useless.or(failed).map(Reason::WatchdogFailed)
}

/// What the others are told.
pub(super) fn health(view: &View) -> Health {
    if barred(view).is_some() { Health::Failed } else { Health::Sound }
}

/// A leader that must be guarded and cannot be: another one shall lead.
pub(super) fn unguarded(view: &View) -> Option<Decision> {
    let reason = barred(view)?;
    let action = match view.instance() {
        Instance::Primary(..) | Instance::Silent => {
            Action::Begin(Task::Stop(StopMode::Fast { patience: STOP_PATIENCE }))
        }
        Instance::Standby(..) | Instance::Down => Action::Release,
        Instance::Ending => return None,
    };
    Some(act(vec![action], reason))
}

/// Whether a leader of this cluster is guarded at this time.
fn guards(view: &View) -> bool {
    !pause::is_on(view) && remote::of(view).is_none()
}

/// Arms the device before anything can take writes, and stops it when nothing can any more.
pub(super) fn also_guard(view: &View, mut decision: Decision) -> Decision {
    if decision.actions.iter().any(|action| matches!(action, Action::Acquire(_)))
        && let Some(reason) = barred(view)
    {
        return idle(reason, Wake::Loop);
    }
    match &view.memory.watchdog {
        Watch::Armed if is_of_no_use(view, &decision) => {
            decision.actions.insert(0, Action::DisarmWatchdog);
            decision
        }
        Watch::Idle if is_wanted(view, &decision) => {
            Decision { actions: vec![Action::ArmWatchdog], reason: Reason::ArmingWatchdog, wake: NOW }
        }
        Watch::Idle | Watch::Armed | Watch::Failed { .. } => decision,
    }
}

fn is_of_no_use(view: &View, decision: &Decision) -> bool {
    let harmless = matches!(view.instance(), Instance::Down | Instance::Standby(..));
    let over = view.lease == Lease::None || decision.actions.contains(&Action::Finish);
    let guard = &view.rules.watchdog;
    // Where one is required the primary is stopped first.
    let useless = guard.need == Need::Automatic && guard.timeout(&view.rules.timing).is_err();
    let elsewhere = remote::of(view).is_some();
    pause::is_on(view) || (harmless && (over || elsewhere)) || useless
}

fn is_wanted(view: &View, decision: &Decision) -> bool {
    let makes_primary =
        |action: &Action| matches!(action, Action::Start(StartAs::Primary, _) | Action::Begin(Task::Promote));
    let guard = &view.rules.watchdog;
    let writes =
        matches!(view.instance(), Instance::Primary(..)) || decision.actions.iter().any(makes_primary);
    guard.need != Need::Off
        && guards(view)
        && view.leads()
        && writes
        && !decision.actions.iter().any(gives_up)
        && guard.timeout(&view.rules.timing).is_ok()
}

/// What must not wait for a device: it ends what would have to be guarded.
fn gives_up(action: &Action) -> bool {
    matches!(action, Action::Begin(Task::Stop(_)) | Action::Release | Action::Forget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(ttl: u64, loop_wait: u64) -> Timing {
        let seconds = Duration::from_secs;
        Timing { ttl: seconds(ttl), loop_wait: seconds(loop_wait), retry_timeout: seconds(3) }
    }

    const fn guard(need: Need, margin: Margin) -> Guard {
        Guard { need, margin }
    }

    #[test]
    fn it_waits_for_the_lease_less_the_margin() {
        let five = guard(Need::Required, Margin::Of(Duration::from_secs(5)));
        assert_eq!(five.timeout(&timing(20, 2)), Ok(Duration::from_secs(15)));
        assert_eq!(five.timeout(&timing(30, 10)), Ok(Duration::from_secs(25)));
        let half = guard(Need::Required, Margin::Half);
        assert_eq!(half.timeout(&timing(31, 10)), Ok(Duration::from_secs(15)));
        assert!(matches!(half.timeout(&timing(20, 10)), Err(Useless::TooShort { .. })));
    }

    #[test]
    fn a_device_that_waits_too_long_is_better_than_none_unless_one_is_required() {
        let (wanted, long, short) =
            (Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(10));
        let timing = timing(20, 2);
        let (automatic, required) =
            (guard(Need::Automatic, Margin::Half), guard(Need::Required, Margin::Half));
        assert_eq!(automatic.accept(wanted, long, &timing), Ok(timing.ttl));
        assert!(matches!(required.accept(wanted, long, &timing), Err(Useless::TooLong { .. })));
        assert_eq!(required.accept(wanted, short, &timing), Ok(short), "the lease counts for no longer");
        assert!(automatic.accept(wanted, Duration::from_secs(3), &timing).is_err());
    }

    #[test]
    fn a_late_answer_never_lets_it_wait_beyond_the_lease() {
        let (sent, usual) = (Moment(0), Duration::from_secs(15));
        let end = sent + Duration::from_secs(20);
        let at = |seconds| within(end, usual, sent + Duration::from_millis(seconds));
        assert_eq!(at(10), Some(usual));
        assert_eq!(at(6_500), Some(Duration::from_secs(13)));
        assert_eq!(at(19_500), None);
    }
}
