//! Room that is held back for the recovery of a server that has filled the volume.

use pgherd::ha::reason::{Action, Reason};
use pgherd::ha::reserve::Stock;
use pgherd::ha::view::Job;
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{Check, Pulse, Reserve, StartAs};

use crate::scene::{HERE, Scene, only, room};

const RESERVE: Reserve = Reserve { bytes: 64 << 20 };

fn with(scene: Scene, stock: Stock, free: u64) -> Scene {
    let scene = scene.sign(Check::Measure, 0, &Pulse::Measured(room(free)));
    scene.with(|v| (v.rules.reserve, v.memory.reserve) = (Some(RESERVE), stock))
}

fn crashed(stock: Stock, free: u64) -> Scene {
    with(Scene::new().leads().data(ControlState::InProduction), stock, free)
}

fn lays_in(scene: &Scene) -> bool {
    scene.decide().actions.last() == Some(&Action::LayInReserve(RESERVE))
}

#[test]
fn it_is_given_back_before_a_start_that_would_fail_for_want_of_room() {
    let full = crashed(Stock::Held, 3).decide();
    assert_eq!(full.reason, Reason::GivingReserve);
    assert_eq!(only(full), Action::GiveReserve);
    assert_eq!(only(crashed(Stock::Unknown, 3).decide()), Action::GiveReserve, "from an earlier life");
    assert_eq!(only(crashed(Stock::Impossible, 3).decide()), Action::GiveReserve, "its making was cut off");
    assert_eq!(
        only(crashed(Stock::OnItsWay, 3).decide()),
        Action::GiveReserve,
        "nor does a start wait for it"
    );
    let starts = |scene: Scene| matches!(only(scene.decide()), Action::Start(StartAs::Primary, _));
    assert!(starts(crashed(Stock::Given, 3)), "there is no more to give");
    assert!(starts(crashed(Stock::Held, 5000)));
    // The kernel counts otherwise than a quota.
    let mut said = crashed(Stock::Held, 5000);
    let why = "could not write to file: No space left on device".into();
    said.0.memory.failed(Job::Start, crate::scene::ago(60), why);
    assert_eq!(only(said.decide()), Action::GiveReserve);
}

#[test]
fn a_server_that_runs_does_not_get_it() {
    let primary = with(Scene::new().leads().primary("", &[]), Stock::Held, 3);
    assert!(!primary.decide().actions.contains(&Action::GiveReserve), "it would fill it too");
}

#[test]
fn it_is_laid_in_when_there_is_plenty_and_never_when_the_volume_would_be_low_by_it() {
    let serves = |stock, free| with(Scene::new().standby(HERE), stock, free);
    assert!(lays_in(&serves(Stock::Given, 50_000)));
    assert!(lays_in(&serves(Stock::Unknown, 50_000)));
    assert!(!lays_in(&serves(Stock::Held, 50_000)));
    assert!(!lays_in(&serves(Stock::Impossible, 50_000)));
    assert!(!lays_in(&serves(Stock::OnItsWay, 50_000)));
    // A volume of 100 GiB is low below 2 GiB.
    assert!(!lays_in(&serves(Stock::Given, 2048 + 127)));
    assert!(lays_in(&serves(Stock::Given, 2048 + 128)));
    assert!(!lays_in(&serves(Stock::Given, 50_000).with(|v| v.rules.reserve = None)));
    assert!(!lays_in(&serves(Stock::Given, 50_000).doing(Job::Compare)));
    assert!(
        !lays_in(&Scene::new().standby(HERE).with(|v| v.rules.reserve = Some(RESERVE))),
        "not measured yet"
    );
}
