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
use crate::process::{Farewell, Use};
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
    Armed(Device),
    /// It cannot be used, as was found at this moment.
    Failed {
        /// When.
        at: Moment,
        /// Why.
        why: String,
        /// So many times in a row it was not to be set going. Zero: it was looked at, which touches nothing.
        tries: u32,
    },
}

/// What a device that counts is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Whether it waits as long as it is told.
    pub waits: Waits,
    /// What stops it.
    pub farewell: Farewell,
}

/// Whether a device can be told how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It can.
    AsTold,
    /// It waits so long, whatever it is told.
    Fixed(Duration),
}

impl Watch {
    /// Whether the device is to be looked at: one that is not in use may have gone, one that was not there may have come.
    pub fn wants_a_look(&self, now: Moment, ttl: Duration) -> bool {
        match self {
            Self::Idle => true,
            Self::Armed(_) => false,
            Self::Failed { at, tries, .. } => now.since(*at) >= rest(*tries, ttl),
        }
    }

    /// Takes in a look. Only setting it going can show that one that could not be set going can: it may be somebody else's, or of
    /// another kind, and looks as good as ever.
    pub fn looked(&mut self, seen: Result<Use, String>, now: Moment) {
        *self = match (std::mem::take(self), seen) {
            (Self::Failed { why, tries: tries @ 1.., .. }, Ok(Use::Taken)) => {
                Self::Failed { at: now, why, tries }
            }
            (tried @ Self::Failed { tries: 1.., .. }, Ok(Use::Free)) => tried,
            (Self::Failed { tries, .. }, Err(why)) => Self::Failed { at: now, why, tries },
            (Self::Idle | Self::Armed(_) | Self::Failed { .. }, Ok(Use::Taken | Use::Free)) => Self::Idle,
            (Self::Idle | Self::Armed(_), Err(why)) => Self::Failed { at: now, why, tries: 0 },
        };
    }

    /// It could not be set going.
    pub fn refused(&mut self, why: String, now: Moment) {
        let before = if let Self::Failed { tries, .. } = self { *tries } else { 0 };
        *self = Self::Failed { at: now, why, tries: before.saturating_add(1) };
    }

    /// Why it is not to be tried, if it is not.
    fn failure(&self, now: Moment, ttl: Duration) -> Option<&str> {
        match self {
            Self::Failed { at, why, tries } if *tries == 0 || now.since(*at) < rest(*tries, ttl) => Some(why),
            Self::Idle | Self::Armed(_) | Self::Failed { .. } => None,
        }
    }
}

/// Between two tries: a TTL, and twice as long each time, since each costs the cluster a leader that gives the key back at once.
fn rest(tries: u32, ttl: Duration) -> Duration {
    ttl.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1))).min(LONGEST_REST)
}

/// By then somebody may have looked after it.
const LONGEST_REST: Duration = Duration::from_secs(3600);

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
            Need::Automatic if waits > wanted => Ok(timing.ttl.min(waits)),
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

/// Whether a device that waits `fixed`, whatever it is told, may be told that all is well: it must not fire after the end of the
/// lease, which is `left` away. One that waits longer than any lease (`limit`) was taken all the same: as long as there is a lease.
pub fn covers(fixed: Duration, limit: Duration, left: Duration) -> bool {
    fixed <= left || (fixed > limit && !left.is_zero())
}

/// Why this node may not lead: it cannot be guarded as it must be.
pub(super) fn barred(view: &View) -> Option<Reason> {
    let (guard, timing) = (&view.rules.watchdog, &view.rules.timing);
    if guard.need != Need::Required || !guards(view) {
        return None;
    }
    let accepted = guard.timeout(timing).and_then(|wanted| match &view.memory.watchdog {
        // The durations have changed since it was set going.
        Watch::Armed(Device { waits: Waits::Fixed(waits), .. }) => guard.accept(wanted, *waits, timing),
        Watch::Armed(Device { waits: Waits::AsTold, .. }) | Watch::Idle | Watch::Failed { .. } => Ok(wanted),
    });
    let useless = accepted.err().map(|useless| useless.to_string());
    let failed = || view.memory.watchdog.failure(view.now, timing.ttl).map(str::to_owned);
    useless.or_else(failed).map(Reason::WatchdogFailed)
}

/// What of it counts for `why`: what a stop will do, and what it does not guard against.
pub(super) fn in_words(view: &View) -> Option<String> {
    match &view.memory.watchdog {
        Watch::Idle => None,
        Watch::Armed(Device { farewell, .. }) => Some(format!("it counts, and {}", after_a_stop(*farewell))),
        Watch::Failed { why, .. } => Some(why.clone()),
    }
}

/// What becomes of a machine whose node stops, in words.
pub fn after_a_stop(farewell: Farewell) -> &'static str {
    match farewell {
        Farewell::Heeded => "is stopped with PostgreSQL",
        Farewell::Refused => {
            "nothing stops it (nowayout): once this node leads no more the machine is reset, unless it leads again in time"
        }
        Farewell::Needless => {
            "is stopped with PostgreSQL, and by the end of this process too: it guards against what hangs only"
        }
    }
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
        Watch::Armed(_) if is_of_no_use(view, &decision) => {
            decision.actions.insert(0, Action::DisarmWatchdog);
            decision
        }
        watch @ (Watch::Idle | Watch::Failed { .. })
            if watch.failure(view.now, view.rules.timing.ttl).is_none() && is_wanted(view, &decision) =>
        {
            Decision { actions: vec![Action::ArmWatchdog], reason: Reason::ArmingWatchdog, wake: NOW }
        }
        Watch::Idle | Watch::Armed(_) | Watch::Failed { .. } => decision,
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
    fn one_that_cannot_be_told_how_long_to_wait_is_told_nothing_under_a_lease_that_ends_before() {
        let seconds = Duration::from_secs;
        assert!(covers(seconds(10), seconds(10), seconds(10)));
        assert!(!covers(seconds(10), seconds(10), Duration::from_millis(9_900)), "the renewal came late");
        assert!(covers(seconds(60), seconds(20), seconds(3)), "it was taken as it is");
        assert!(!covers(seconds(60), seconds(20), Duration::ZERO));
    }

    #[test]
    fn what_could_not_be_set_going_is_tried_again_after_longer_and_longer() {
        let (ttl, at) = (Duration::from_secs(20), |seconds| Moment(0) + Duration::from_secs(seconds));
        let mut watch = Watch::Idle;
        watch.looked(Err("it is not there".into()), at(0));
        assert!(!watch.wants_a_look(at(19), ttl) && watch.wants_a_look(at(20), ttl));
        assert!(watch.failure(at(20), ttl).is_some(), "until it is seen");
        watch.looked(Ok(Use::Free), at(20));
        assert_eq!(watch, Watch::Idle);
        for (tries, rests) in [(1, 20), (2, 40), (3, 80), (20, 3600)] {
            watch = Watch::Failed { at: at(0), why: String::new(), tries: tries - 1 };
            watch.refused("somebody else has it".into(), at(0));
            watch.looked(Ok(Use::Free), at(rests));
            assert!(watch.failure(at(rests - 1), ttl).is_some(), "a look says nothing: {tries}");
            assert!(watch.failure(at(rests), ttl).is_none() && watch.wants_a_look(at(rests), ttl));
            watch.looked(Ok(Use::Taken), at(rests));
            assert!(watch.failure(at(rests), ttl).is_some(), "somebody still has it");
        }
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
