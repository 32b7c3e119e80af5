//! SIGTERM.

use std::time::Duration;

use pgherd::dcs::MemberState;
use pgherd::ha::publish;
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::view::Job;
use pgherd::postgres::status::ControlState;

use crate::scene::{HERE, Scene, nothing_because, only};

#[test]
fn a_primary_makes_a_checkpoint_and_stops_before_anything_is_released() {
    let decision = Scene::new().leads().primary("", &["n1"]).stopping().decide();
    assert!(matches!(only(decision), Action::Begin(Task::StopAfterCheckpoint(_))));
}

#[test]
fn the_key_is_released_only_when_everything_is_down() {
    let down = Scene::new().leads().stopping();
    assert!(matches!(down.decide().actions[..], [Action::PutShutdown(..), Action::Release, Action::Finish]));
    let crashed = down.clone().data(ControlState::InProduction);
    assert_eq!(crashed.decide().actions, [Action::Release, Action::Finish]);
    let ending = down.silent_process().doing(Job::Stop).decide();
    assert_eq!(nothing_because(ending), Reason::Busy(Job::Stop));
}

#[test]
fn a_standby_has_nothing_to_release() {
    assert_eq!(only(Scene::new().stopping().decide()), Action::Finish);
}

#[test]
fn a_standby_says_that_it_stops_before_it_does() {
    let scene = |millis| Scene::new().standby(HERE).stopping().leaving_for(Duration::from_millis(millis));
    assert_eq!(nothing_because(scene(199).decide()), Reason::AwaitingDismissal);
    assert_eq!(publish::state(&scene(199).0), MemberState::Stopping, "the proxies lead readers elsewhere");
    let stops = |scene: Scene| matches!(only(scene.decide()), Action::Begin(Task::Stop(_)));
    assert!(stops(scene(200)));
    let alone = scene(0).member("n1", |m| m.state = MemberState::Stopped);
    assert!(stops(alone.member("n2", |m| m.state = MemberState::Stopped)), "nobody is there to hear it");
}

#[test]
fn a_copy_under_way_gives_way_to_a_stop() {
    let decision = Scene::new().empty().doing(Job::Clone).stopping().decide();
    assert_eq!(only(decision), Action::Finish);
}
