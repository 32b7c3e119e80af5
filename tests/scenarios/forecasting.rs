//! What would happen if the primary died now: the race, run ahead of time.

use std::time::Duration;

use pgherd::dcs::{Member, MemberState};
use pgherd::ha::forecast::{Forecast, forecast};
use pgherd::types::{Lsn, SyncMode};

use crate::scene::{HERE, Scene, name};

const ELECTION: Duration = Duration::from_millis(300);

fn member(scene: Scene, of: &str, change: impl FnOnce(&mut Member)) -> Scene {
    scene.snapshot(|s| change(s.members.iter_mut().find(|m| m.name == name(of)).unwrap()))
}

fn why_not(scene: &Scene, of: &str) -> String {
    match forecast(&scene.0) {
        Forecast::Stuck(whys) => whys.get(&name(of)).cloned().unwrap_or_default(),
        other @ (Forecast::Unknown | Forecast::Succeeded { .. }) => panic!("{other:?}"),
    }
}

#[test]
fn the_streaming_standby_takes_over_and_what_it_lacks_is_at_risk() {
    let scene = Scene::new().leader("n1").standby(HERE).observed(4).optime(HERE + 500);
    let expected =
        Forecast::Succeeded { by: name("n2"), within: Duration::from_secs(6) + ELECTION, at_risk: 500 };
    assert_eq!(forecast(&scene.0), expected);
}

#[test]
fn with_a_synchronous_set_nothing_is_at_risk() {
    let scene = Scene::new().leads().primary("ANY 1 (n2)", &["n2"]).sync_mode(SyncMode::Quorum);
    let scene = member(scene.sync_key("n0", 0, &["n2"]), "n1", |m| m.state = MemberState::Stopped);
    let expected =
        Forecast::Succeeded { by: name("n2"), within: Duration::from_secs(10) + ELECTION, at_risk: 0 };
    assert_eq!(forecast(&scene.0), expected);
}

#[test]
fn nobody_can_where_the_race_would_refuse() {
    let alone = Scene::new().leader("n1").sync_mode(SyncMode::Quorum).sync_key("n1", 0, &[]);
    assert!(why_not(&alone, "n2").contains("may lack acknowledged commits"), "{}", why_not(&alone, "n2"));
    let behind = Scene::new().leader("n1").optime(HERE + 2_000_000);
    assert!(why_not(&behind, "n2").contains("bytes behind"));
    let barred = |m: &mut Member| drop(m.tags.insert("nofailover".into(), true.into()));
    assert!(why_not(&member(Scene::new(), "n2", barred), "n2").contains("nofailover"));
    let copying = |m: &mut Member| m.state = MemberState::CreatingReplica;
    assert!(why_not(&member(Scene::new(), "n2", copying), "n2").contains("no running replica"));
}

#[test]
fn votes_that_cannot_be_had_are_named() {
    let scene = Scene::new().leader("n1").sync_mode(SyncMode::Quorum).sync_key("n1", 1, &["n2", "n3"]);
    assert_eq!(why_not(&scene, "n2"), "0 of 1 votes: an acknowledged commit may be on n3 only");
}

/// The leader knows what a standby has flushed before the standby has published it.
#[test]
fn the_leader_counts_what_it_knows_to_be_flushed() {
    let scene = Scene::new().leads().primary("", &["n2"]);
    let behind = |m: &mut Member| m.xlog_location = Some(Lsn(HERE - 700));
    let mut scene = member(scene, "n2", behind);
    let at_risk = |scene: &Scene| match forecast(&scene.0) {
        Forecast::Succeeded { at_risk, .. } => at_risk,
        other @ (Forecast::Unknown | Forecast::Stuck(_)) => panic!("{other:?}"),
    };
    assert_eq!(at_risk(&scene), 0);
    scene = scene.primary("", &[]);
    assert_eq!(at_risk(&scene), 700);
}

#[test]
fn without_a_leader_or_a_store_there_is_no_forecast() {
    assert_eq!(forecast(&Scene::new().no_leader().0), Forecast::Unknown);
    assert_eq!(forecast(&Scene::new().store_silent().0), Forecast::Unknown);
}
