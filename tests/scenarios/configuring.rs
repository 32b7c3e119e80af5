//! When the server is brought to other settings.

use pgherd::ha::configure::{Configured, with_settings};
use pgherd::ha::reason::{Action, Decision, Reason, Task, Wake};
use pgherd::ha::view::Job;
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{Part, Stored};
use serde_json::json;

use crate::scene::{POSITION, Scene};

fn stored(max_connections: u32) -> Stored {
    Stored::of(&json!({"postgresql": {"parameters": {"max_connections": max_connections}}}))
}

/// With the store's word, and what the server was last brought to.
fn scene(scene: Scene, configured: Option<(Stored, Part)>) -> Scene {
    let mut scene = scene;
    scene.0.rules.server = Some(stored(200));
    scene.0.memory.configured = configured.map(|(stored, part)| Configured { stored, part });
    scene
}

fn decided(scene: &Scene) -> Decision {
    with_settings(&scene.0, scene.decide())
}

fn configures(scene: &Scene) -> Option<Part> {
    let part = |action: &Action| if let Action::Configure(part) = action { Some(*part) } else { None };
    decided(scene).actions.iter().find_map(part)
}

#[test]
fn a_server_that_has_just_started_is_brought_to_what_the_store_says_after_everything_else() {
    let primary = scene(Scene::new().leads().primary("", &[]), None);
    assert_eq!(decided(&primary).actions.last(), Some(&Action::Configure(Part::Primary)));
    let replica = scene(Scene::new().standby(0x500_0000), None);
    assert_eq!(configures(&replica), Some(Part::Replica));
}

#[test]
fn nothing_is_done_when_neither_the_store_nor_the_part_has_changed() {
    let as_before = Some((stored(200), Part::Primary));
    assert_eq!(configures(&scene(Scene::new().leads().primary("", &[]), as_before)), None);
    let changed = Some((stored(100), Part::Primary));
    assert_eq!(configures(&scene(Scene::new().leads().primary("", &[]), changed)), Some(Part::Primary));
    let promoted = Some((stored(200), Part::Replica));
    assert_eq!(configures(&scene(Scene::new().leads().primary("", &[]), promoted)), Some(Part::Primary));
}

#[test]
fn a_leader_of_a_standby_cluster_has_a_part_of_its_own() {
    let follows = json!({"standby_cluster": {"host": "203.0.113.1"}});
    let leads = Scene::new().leads().standby(0x500_0000).config(follows);
    let nothing = Decision { actions: vec![], reason: Reason::Leading, wake: Wake::Loop };
    let configure = |scene: Scene| with_settings(&scene.0, nothing.clone()).actions;
    assert_eq!(configure(scene(leads, None)), [Action::Configure(Part::StandbyLeader)]);
    let follows = Scene::new().standby(0x500_0000);
    assert_eq!(configure(scene(follows, None)), [Action::Configure(Part::Replica)]);
}

#[test]
fn what_is_down_stopping_or_busy_or_unknown_is_left_alone() {
    assert_eq!(configures(&scene(Scene::new(), None)), None);
    assert_eq!(configures(&scene(Scene::new().leads().primary("", &[]).stopping(), None)), None);
    assert_eq!(configures(&scene(Scene::new().standby(1).doing(Job::Poll), None)), None);
    let mut unheard = Scene::new().standby(1);
    unheard.0.rules.server = None;
    assert_eq!(configures(&unheard), None);
}

#[test]
fn without_rewind_a_standby_that_has_left_the_history_is_copied() {
    let mut scene = Scene::new().data(ControlState::InProduction).forked_at(POSITION.0 - 0x100_0000);
    assert!(matches!(scene.decide().reason, Reason::Diverged(_)), "{}", scene.decide().reason);
    scene.0.rules.server = Some(Stored::of(&json!({"postgresql": {"use_pg_rewind": false}})));
    let actions = scene.decide().actions;
    assert!(matches!(actions.as_slice(), [Action::Begin(Task::Clone(_))]), "{actions:?}");
}
