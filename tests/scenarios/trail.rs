//! The trail of decisions: what is kept, and what is only counted.

use pgherd::ha::trail::{KEPT, Trail};
use pgherd::types::SyncMode;

use crate::scene::{HERE, Scene, still};

#[test]
fn a_round_that_repeats_itself_is_counted_not_kept() {
    let racing = Scene::new().no_leader().sync_mode(SyncMode::Quorum).sync_key("n1", 1, &["n0", "n2"]);
    let round = [
        racing.clone().standby(HERE),
        racing.votes(HERE, &[("n1", pgherd::ha::view::PollAnswer::Unreachable)]),
    ];
    let mut trail = Trail::default();
    let new =
        (0..100).flat_map(|_| &round).filter(|scene| trail.note(&scene.0, &scene.decide(), "t").is_some());
    assert_eq!(new.count(), 2);
    let times: Vec<_> = trail.steps().map(|step| (step.kind.as_str(), step.times)).collect();
    assert_eq!(times, [("freezing", 100), ("votes_missing", 100)]);
    assert_eq!(trail.counts().collect::<Vec<_>>(), [("freezing", 100), ("votes_missing", 100)]);
}

#[test]
fn a_step_carries_what_it_went_by_and_survives_a_restart() {
    let scene = Scene::new().no_leader().votes(HERE, &[("n2", still(HERE + 1))]);
    let step = Trail::default().note(&scene.0, &scene.decide(), "2026-11-20T15:54:16Z").unwrap();
    assert_eq!(step.inputs.get("votes").unwrap(), "n2: timeline 1, 0/5000001, Frozen");
    assert_eq!(step.inputs.get("instance").unwrap(), "standby, timeline 1, 0/5000000, held");
    let lines = vec!["half a li".to_owned(), serde_json::to_string(step.as_ref()).unwrap()];
    assert_eq!(Trail::resumed(&lines).steps().collect::<Vec<_>>(), [step.as_ref()]);
}

#[test]
fn the_oldest_steps_give_way() {
    let scene = Scene::new().no_leader().standby(HERE);
    let step = Trail::default().note(&scene.0, &scene.decide(), "t").unwrap();
    let lines = vec![serde_json::to_string(step.as_ref()).unwrap(); KEPT + 7];
    assert_eq!(Trail::resumed(&lines).steps().count(), KEPT);
}
