//! A primary, or what may be one, that has no right to go on.

use std::time::Duration;

use pgherd::dcs::{Claim, Readiness};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::rules::Pause;
use pgherd::ha::view::Job;
use pgherd::postgres::StopMode;
use pgherd::types::SyncMode;

use crate::scene::{HERE, Scene, name, nothing_because, only};

#[test]
fn a_primary_stops_at_once_when_another_node_leads() {
    let decision = Scene::new().leader("n1").primary("", &[]).lease(1).decide();
    assert_eq!(decision.reason, Reason::AnotherLeads(name("n1")));
    assert_eq!(only(decision), Action::Begin(Task::Stop(StopMode::Immediate)));
}

#[test]
fn a_primary_stops_at_once_when_a_renewal_has_lost() {
    let decision = Scene::new().leader("n0").primary("", &[]).lease_lost().decide();
    assert_eq!(only(decision), Action::Begin(Task::Stop(StopMode::Immediate)));
}

#[test]
fn a_primary_stops_before_its_lease_can_end_while_the_store_is_silent() {
    let scene = Scene::new().primary("", &[]).store_silent();
    assert!(matches!(nothing_because(scene.clone().lease(6).decide()), Reason::StoreSilent(_)));
    let decision = scene.lease(7).decide();
    assert_eq!(decision.reason, Reason::LeaseEnding);
    let patience = Duration::from_secs(1);
    assert_eq!(only(decision), Action::Begin(Task::Stop(StopMode::Fast { patience })));
}

#[test]
fn the_fence_stands_above_any_job_but_a_stop_that_is_under_way() {
    let lost = Scene::new().leader("n1").primary("", &[]).lease_lost();
    let promoting = lost.clone().doing(Job::Promote).decide();
    assert_eq!(only(promoting), Action::Begin(Task::Stop(StopMode::Immediate)));
    assert_eq!(nothing_because(lost.doing(Job::Stop).decide()), Reason::Busy(Job::Stop));
}

#[test]
fn a_primary_whose_key_was_deleted_takes_it_again_if_nobody_can_have_led() {
    let decision = Scene::new().no_leader().primary("", &[]).decide();
    assert_eq!(only(decision), Action::Acquire(Claim::Vacant));
    let outdated = Scene::new().no_leader().primary("", &[]).forked_at(HERE).decide();
    assert_eq!(only(outdated), Action::Begin(Task::Stop(StopMode::Immediate)));
}

/// A lease that is over and is not forgotten would make a primary of everything that is started after it.
#[test]
fn a_lease_that_is_over_is_forgotten_before_anything_is_started() {
    let lost = Scene::new().leader("n1").lease_lost();
    assert_eq!(only(lost.decide()), Action::Forget);
    let expired = Scene::new().store_silent().lease(8);
    assert_eq!(only(expired.decide()), Action::Forget);
    assert_eq!(only(lost.standby(HERE).decide()), Action::Forget);
}

#[test]
fn a_standby_that_is_starting_is_left_alone_when_another_node_leads() {
    let starting = Scene::new().leader("n1").silent_process();
    assert_eq!(nothing_because(starting.decide()), Reason::Starting);
}

#[test]
fn the_time_to_live_that_a_lease_was_sent_with_counts_not_a_later_one() {
    let mut scene = Scene::new().leader("n0").primary("", &[]).lease(8).store_silent();
    scene.0.rules.timing.ttl = Duration::from_secs(30);
    assert_eq!(scene.decide().reason, Reason::LeaseEnding);
}

#[test]
fn a_primary_without_a_lease_stops_when_the_store_is_not_ready() {
    let scene = Scene::new().no_leader().snapshot(|s| s.readiness = Readiness::NotReady).primary("", &[]);
    assert!(matches!(only(scene.decide()), Action::Begin(Task::Stop(_))));
}

/// Whoever has led since has closed the `sync` key in its own name.
#[test]
fn a_primary_that_was_found_running_does_not_lead_again_after_another() {
    let found = Scene::new().no_leader().primary("", &[]).sync_mode(SyncMode::Quorum);
    assert_eq!(only(found.decide()), Action::Acquire(Claim::Vacant));
    assert_eq!(only(found.clone().sync_key("n0", 1, &["n1", "n2"]).decide()), Action::Acquire(Claim::Vacant));
    let led = found.sync_key("n1", 0, &[]);
    assert_eq!(only(led.decide()), Action::Begin(Task::Stop(StopMode::Immediate)));
    assert_eq!(led.decide().reason, Reason::NotSynchronous(vec![name("n1")]));
}

/// It is not stopped, but what a leader writes is for a leader to write.
#[test]
fn a_paused_primary_whose_lease_is_over_has_no_duties_of_a_leader() {
    let paused = |seconds| {
        let mut scene = Scene::new().leader("n0").primary("", &[]).lease(seconds);
        scene.0.rules.pause = Pause::On;
        scene.decide().actions
    };
    assert!(paused(8).is_empty());
    assert!(!paused(1).is_empty());
}
