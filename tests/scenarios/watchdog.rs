//! What resets the machine of a leader that hangs: when it is armed and stopped, and who may not lead without.

use std::time::Duration;

use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::rules::Pause;
use pgherd::ha::watchdog::{Device, Guard, Margin, Need, Waits, Watch};
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{StartAs, StopMode};
use pgherd::process::Farewell;
use serde_json::json;

use crate::scene::{HERE, NOW, Scene, ago, frozen_for, nothing_because, only, still};

const ARMED: Watch = Watch::Armed(Device { waits: Waits::AsTold, farewell: Farewell::Heeded });

fn guarded(scene: Scene, need: Need, watch: Watch) -> Scene {
    let guard = Guard { need, margin: Margin::Of(Duration::from_secs(1)) };
    scene.with(|v| (v.rules.watchdog, v.memory.watchdog) = (guard, watch))
}

fn failed() -> Watch {
    Watch::Failed { at: NOW, why: "it is not there".into(), tries: 0 }
}

fn why() -> Reason {
    Reason::WatchdogFailed("it is not there".into())
}

fn elected() -> Scene {
    Scene::new().leads().standby(HERE)
}

fn promotes(scene: &Scene) -> bool {
    scene.decide().actions.contains(&Action::Begin(Task::Promote))
}

#[test]
fn it_is_armed_before_anything_can_take_writes() {
    let idle = guarded(elected(), Need::Automatic, Watch::Idle).decide();
    assert_eq!(idle.reason, Reason::ArmingWatchdog);
    assert_eq!(only(idle), Action::ArmWatchdog);
    assert!(promotes(&guarded(elected(), Need::Automatic, ARMED)));
    let crashed = || Scene::new().leads().data(ControlState::InProduction);
    assert_eq!(only(guarded(crashed(), Need::Required, Watch::Idle).decide()), Action::ArmWatchdog);
    let starts = guarded(crashed(), Need::Required, ARMED).decide();
    assert!(matches!(only(starts), Action::Start(StartAs::Primary, _)));
    let found = Scene::new().leads().primary("", &[]);
    assert_eq!(only(guarded(found, Need::Required, Watch::Idle).decide()), Action::ArmWatchdog);
    assert!(promotes(&elected()), "nobody has asked for one");
}

#[test]
fn without_one_a_leader_goes_on_unless_one_is_required() {
    assert!(promotes(&guarded(elected(), Need::Automatic, failed())));
    let decision = guarded(elected(), Need::Required, failed()).decide();
    assert_eq!(decision.reason, why());
    assert_eq!(only(decision), Action::Release);
    let primary = guarded(Scene::new().leads().primary("", &[]), Need::Required, failed()).decide();
    assert!(matches!(only(primary), Action::Begin(Task::Stop(StopMode::Fast { .. }))));
    let down = guarded(Scene::new().leads(), Need::Required, failed());
    assert_eq!(only(down.decide()), Action::Release);
}

#[test]
fn who_must_be_guarded_and_cannot_be_is_no_candidate() {
    let race = frozen_for(Scene::new().no_leader().votes(HERE, &[("n2", still(HERE))]), 1);
    assert!(matches!(only(race.decide()), Action::Acquire(_)));
    assert_eq!(nothing_because(guarded(race.clone(), Need::Required, failed()).decide()), why());
    assert!(matches!(only(guarded(race, Need::Automatic, failed()).decide()), Action::Acquire(_)));
    // Nor does it found a cluster, or take its own key back.
    let empty = Scene::new().no_leader().empty().initialize(None).surveyed(&[]);
    assert_eq!(nothing_because(guarded(empty, Need::Required, failed()).decide()), why());
    let found = guarded(Scene::new().no_leader().primary("", &[]), Need::Required, failed());
    assert!(matches!(only(found.decide()), Action::Begin(Task::Stop(_))));
}

#[test]
fn it_is_stopped_when_nothing_can_take_writes_any_more_and_not_before() {
    let armed = |scene| guarded(scene, Need::Required, ARMED).decide().actions;
    let stopped = |scene| armed(scene).first() == Some(&Action::DisarmWatchdog);
    assert!(stopped(Scene::new().leader("n1")), "down, without the lock");
    assert!(stopped(Scene::new().leader("n1").standby(HERE)));
    assert!(stopped(Scene::new().leads().stopping()), "before the loop ends");
    assert!(!stopped(Scene::new().leader("n1").primary("", &[]).lease_lost()), "it is being stopped");
    assert!(!stopped(Scene::new().leader("n1").silent_process()), "it may hang");
    assert!(!stopped(Scene::new().leads()), "it died, and is started again");
    assert!(!stopped(elected()));
}

#[test]
fn a_paused_primary_goes_on_without() {
    let paused = |watch, need| {
        let scene = guarded(Scene::new().leads().primary("", &[]), need, watch);
        scene.with(|v| v.rules.pause = Pause::On).decide().actions
    };
    assert_eq!(paused(ARMED, Need::Required).first(), Some(&Action::DisarmWatchdog));
    assert!(!paused(Watch::Idle, Need::Required).contains(&Action::ArmWatchdog));
    assert!(!paused(failed(), Need::Required).iter().any(|action| matches!(action, Action::Begin(_))));
}

#[test]
fn a_standby_leader_has_nothing_to_guard() {
    let scene =
        Scene::new().config(json!({"standby_cluster": {"host": "203.0.113.1"}})).leads().standby(HERE);
    let decision = guarded(scene, Need::Required, failed()).decide();
    assert!(!decision.actions.contains(&Action::Release), "{decision:?}");
}

#[test]
fn a_primary_that_shall_follow_another_cluster_is_guarded_until_it_takes_no_writes() {
    let config = json!({"standby_cluster": {"host": "203.0.113.1"}});
    let armed = |scene: Scene| guarded(scene, Need::Required, ARMED).decide().actions;
    let stopped = |scene| armed(scene).contains(&Action::DisarmWatchdog);
    assert!(!stopped(Scene::new().config(config.clone()).leads().primary("", &[])));
    assert!(stopped(Scene::new().config(config).leads().standby(HERE)));
}

/// It looks as good as any: each time that it is tried costs a leader that gives the key back at once.
#[test]
fn one_that_could_not_be_set_going_is_tried_again_after_longer_and_longer() {
    let failed = |tries, since| Watch::Failed { at: ago(since), why: "it is not there".into(), tries };
    let decides = |tries, since| guarded(elected(), Need::Required, failed(tries, since)).decide();
    assert_eq!(only(decides(1, 9)), Action::Release);
    assert_eq!(only(decides(1, 10)), Action::ArmWatchdog);
    assert_eq!(only(decides(3, 39)), Action::Release);
    assert_eq!(only(decides(3, 40)), Action::ArmWatchdog);
    assert_eq!(only(decides(0, 3600)), Action::Release, "it was looked at, and is not there");
    assert!(promotes(&guarded(elected(), Need::Automatic, failed(3, 39))));
    let race = frozen_for(Scene::new().no_leader().votes(HERE, &[("n2", still(HERE))]), 1);
    assert_eq!(nothing_because(guarded(race, Need::Required, failed(3, 39)).decide()), why());
}

/// Nothing is told it under a lease that ends before it would fire, and nobody may lead so for long.
#[test]
fn one_that_waits_too_long_for_a_shorter_lease_guards_nobody() {
    let fixed = |seconds| {
        let waits = Waits::Fixed(Duration::from_secs(seconds));
        Watch::Armed(Device { waits, farewell: Farewell::Heeded })
    };
    let leads = |need, watch| guarded(Scene::new().leads().primary("", &[]), need, watch).decide();
    assert!(!matches!(leads(Need::Required, fixed(9)).reason, Reason::WatchdogFailed(_)));
    let stops = leads(Need::Required, fixed(10));
    assert!(matches!(stops.reason, Reason::WatchdogFailed(_)));
    assert!(matches!(only(stops), Action::Begin(Task::Stop(_))));
    assert!(!matches!(leads(Need::Automatic, fixed(10)).reason, Reason::WatchdogFailed(_)));
}

#[test]
fn a_stop_does_not_wait_for_a_device_to_be_armed() {
    let scene = || Scene::new().leader("n2").lease(0).primary("", &[]);
    let decision = guarded(scene(), Need::Required, Watch::Idle).decide();
    assert!(matches!(only(decision), Action::Begin(Task::Stop(StopMode::Immediate))));
}

#[test]
fn durations_that_it_cannot_keep_are_as_bad_as_none() {
    let slow = |need, watch| {
        let scene = guarded(Scene::new().leads().primary("", &[]), need, watch);
        scene.with(|v| v.rules.timing.loop_wait = Duration::from_secs(6)).decide()
    };
    assert_eq!(slow(Need::Automatic, ARMED).actions.first(), Some(&Action::DisarmWatchdog));
    let required = slow(Need::Required, ARMED);
    assert!(matches!(required.reason, Reason::WatchdogFailed(_)));
    assert!(matches!(only(required), Action::Begin(Task::Stop(_))), "it counts until nothing takes writes");
}
