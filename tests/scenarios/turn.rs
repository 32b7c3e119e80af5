//! Copies of logical slots: what is asked before, and that one standby after the other is started again for them.

use std::time::Duration;

use pgherd::dcs::{Member, MemberState, ReplicationState};
use pgherd::ha::publish::{self, Addresses};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::rules::Pause;
use pgherd::ha::slots::Move;
use pgherd::ha::turn::Copies;
use pgherd::ha::view::Job;
use pgherd::postgres::{Horizon, Slot, SlotKind, SlotPlan, SlotWal};
use pgherd::types::{Lsn, SlotName, SyncMode};
use serde_json::json;

use crate::scene::{HERE, NOW, Scene, ago, name, nothing_because, only, upstream};

fn slot(name: &str, kind: SlotKind, confirmed: Option<u64>) -> Slot {
    Slot {
        name: SlotName(name.into()),
        kind,
        active: false,
        restart_lsn: Some(Lsn(HERE)),
        confirmed: confirmed.map(Lsn),
        wal: SlotWal::Kept,
        horizon: Horizon::Free,
        synchronised: false,
    }
}

fn cdc(confirmed: u64) -> Slot {
    let kind = SlotKind::Logical { database: "app".into(), plugin: "pgoutput".into() };
    slot("cdc", kind, Some(confirmed))
}

/// A standby with these slots beside those of the members, in a cluster with a permanent logical one.
fn follower(slots: &[Slot]) -> Scene {
    let config = json!({"slots": {"cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}}});
    let members = ["n1", "n2"].map(|name| slot(name, SlotKind::Physical, None));
    let slots: Vec<_> = members.iter().chain(slots).cloned().collect();
    let scene = Scene::new().standby(HERE).slots(&slots).config(config);
    scene.published_slots(&[("cdc", HERE)]).member_too("n0").others_stream()
}

/// What it lacks can be copied.
fn ready() -> Scene {
    let names = [SlotName("cdc".into())].into();
    follower(&[]).with(|v| v.memory.copies = Copies::Ready { names, at: ago(1) })
}

fn shows(scene: Scene, member: &str, state: MemberState) -> Scene {
    scene.member(member, |m| m.state = state)
}

fn announced() -> Scene {
    shows(ready(), "n0", MemberState::Restarting).leaving_for(Duration::from_secs(1))
}

fn own_key(scene: &Scene) -> Member {
    let at = Addresses { conn_url: String::new(), api_url: String::new(), proxy_url: None };
    publish::member(&scene.0, &at)
}

fn copies() -> Action {
    Action::Begin(Task::CopySlots { from: upstream("n1"), names: [SlotName("cdc".into())].into() })
}

#[test]
fn a_standby_asks_first_whether_the_slots_that_it_lacks_can_be_copied() {
    let asks = |scene: Scene| {
        scene.decide().actions.iter().any(|action| matches!(action, Action::PrepareCopies(..)))
    };
    let names = [SlotName("cdc".into())].into();
    assert_eq!(only(follower(&[]).decide()), Action::PrepareCopies(upstream("n1"), names));
    assert_eq!(own_key(&follower(&[])).state, MemberState::Running, "nothing is said before the answer");
    assert!(!asks(follower(&[]).published_slots(&[])), "the leader has none yet");
    let known = |copies| follower(&[]).with(|v| v.memory.copies = copies);
    assert!(!asks(known(Copies::UnderWay)));
    assert!(!asks(known(Copies::Failed(ago(59)))), "not again and again");
    assert!(asks(known(Copies::Failed(ago(60)))));
    assert!(!asks(follower(&[]).tagged(json!({"nofailover": true}))), "nobody reads it here, ever");
    assert!(!asks(follower(&[]).with(|v| v.rules.pause = Pause::On)), "a server would be stopped");
    assert!(!asks(follower(&[]).connecting()), "it lacks what the slot needs, or soon will");
    assert!(!asks(follower(&[cdc(HERE)])), "it is here");
    let outdated = ready().with(|v| v.now = NOW + Duration::from_secs(59));
    assert!(asks(outdated.with(|v| v.memory.not_streaming = None)));
}

#[test]
fn it_says_that_it_will_start_again_and_goes_when_that_is_known() {
    assert_eq!(nothing_because(ready().decide()), Reason::CopyingSlots(name("n1")));
    let key = own_key(&ready());
    assert_eq!((key.state, key.tags.get("nosync")), (MemberState::Restarting, Some(&json!(true))));
    assert_eq!(only(announced().decide()), copies());
    assert_eq!(own_key(&announced().doing(Job::CopySlots)).tags.get("nosync"), Some(&json!(true)));
    assert_eq!(
        nothing_because(announced().leaving_for(Duration::ZERO).decide()),
        Reason::CopyingSlots(name("n1"))
    );
    assert!(!ready().failed(Job::CopySlots, 2, 0).decide().reason.to_string().contains("copying"));
    assert!(!announced().connecting().decide().actions.contains(&copies()), "it does not stream");
}

#[test]
fn of_two_that_would_start_again_one_waits() {
    let first = shows(announced(), "n2", MemberState::Restarting);
    assert_eq!(
        nothing_because(first.decide()),
        Reason::CopyingSlots(name("n1")),
        "n2 takes its word back, or has gone"
    );
    assert_eq!(own_key(&first).state, MemberState::Restarting);
    let second = first.with(|v| v.me = name("n3")).member_too("n3");
    let second = shows(second, "n3", MemberState::Restarting);
    assert_eq!(second.decide().reason, Reason::AwaitingTurn(name("n0")));
    assert_eq!(own_key(&second).state, MemberState::Running);
    let late = shows(ready(), "n2", MemberState::Restarting);
    assert_eq!(late.decide().reason, Reason::AwaitingTurn(name("n2")), "it has spoken first");
    assert_eq!(
        shows(announced(), "n2", MemberState::Starting).decide().reason,
        Reason::AwaitingTurn(name("n2"))
    );
    assert_eq!(
        only(shows(announced(), "n2", MemberState::Crashed).decide()),
        copies(),
        "nobody knows for how long"
    );
}

#[test]
fn none_goes_that_commits_need() {
    let quorum = |scene: Scene| scene.sync_mode(SyncMode::Quorum).leaving_for(Duration::from_millis(500));
    let needed = quorum(announced()).sync_key("n1", 0, &["n0"]);
    assert_eq!(nothing_because(needed.decide()), Reason::CopyingSlots(name("n1")));
    assert_eq!(only(needed.leaving_for(Duration::from_secs(4)).decide()), copies(), "nobody takes its place");
    let one_of_two = quorum(announced()).sync_key("n1", 1, &["n0", "n2"]);
    assert_eq!(only(one_of_two.decide()), copies());
    let connecting = |m: &mut Member| m.replication_state = Some(ReplicationState::InArchiveRecovery);
    assert_eq!(
        one_of_two.member("n2", connecting).decide().reason,
        Reason::AwaitingTurn(name("n2")),
        "it has just been started again, and is counted on"
    );
    assert_eq!(only(announced().member("n2", connecting).decide()), copies(), "nobody counts on it");
}

#[test]
fn a_copy_that_could_not_be_moved_is_left_alone_for_a_while_and_one_on_its_way_too() {
    let moved = |state| {
        let behind =
            follower(&[cdc(HERE - 9)]).with(|v| v.memory.moving.extend([(SlotName("cdc".into()), state)]));
        let plans = behind.decide().actions.into_iter();
        let plans =
            plans.filter_map(|action| if let Action::ChangeSlots(plan) = action { Some(plan) } else { None });
        plans.map(|plan: SlotPlan| plan.follow.len()).sum::<usize>()
    };
    assert_eq!(moved(Move::UnderWay), 0, "one after the other");
    assert_eq!(moved(Move::Failed(ago(9))), 0);
    assert_eq!(moved(Move::Failed(ago(10))), 1);
}

/// Each stride decodes from the oldest WAL of the slot on, and what is cut off begins there again.
#[test]
fn the_further_a_copy_has_to_decode_the_longer_is_its_stride() {
    let stride = |restart: u64, at: u64| {
        let slot = Slot { restart_lsn: Some(Lsn(restart)), ..cdc(at) };
        let scene =
            follower(&[slot]).standby_at(HERE + (10 << 30)).published_slots(&[("cdc", HERE + (10 << 30))]);
        let plans = scene.decide().actions.into_iter();
        let mut plans =
            plans.filter_map(|action| if let Action::ChangeSlots(plan) = action { Some(plan) } else { None });
        plans.find_map(|plan: SlotPlan| plan.follow.into_values().next()).unwrap().1.0 - at
    };
    assert_eq!(stride(HERE, HERE), 64 << 20);
    assert_eq!(stride(HERE, HERE + (1 << 30)), 1 << 30);
    assert_eq!(stride(HERE, HERE + (8 << 30)), 2 << 30, "no further than its reader");
}
