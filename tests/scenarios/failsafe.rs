//! Failsafe: who is asked when the store is silent, what their promises are worth, and whom a promise binds.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::dcs::{Claim, Failover, Precondition, Shutdown, Snapshot, Status};
use pgherd::ha::failsafe::Outcome;
use pgherd::ha::promises::Promise;
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::rules::{Outlast, Pause};
use pgherd::ha::view::Job;
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{Horizon, Slot, SlotKind, SlotPlan, SlotWal, StartAs};
use pgherd::types::{Lsn, NodeName, Revision, SlotName, Timeline};

use crate::scene::{
    HERE, NOW, POSITION, Scene, ago, name, nothing_because, only, still, upstream, versioned,
};

fn names(names: &[&str]) -> BTreeSet<NodeName> {
    names.iter().map(|name| NodeName::from(*name)).collect()
}

/// A primary in a cluster whose `failsafe` key names all three; the store falls silent 4 s after its last renewal.
fn cut_off() -> Scene {
    let mut scene = Scene::new().primary("", &[]).failsafe(&["n0", "n1", "n2"]);
    scene.0.rules.outlast = Outlast::AllAgree;
    let snapshot = scene.0.snapshot().unwrap().clone();
    scene.0.memory.roll.saw_store(&snapshot);
    scene.store_silent().lease(4)
}

/// What `n1` was promised, whose server is at the address of the scene.
fn promise(until: Moment) -> Promise {
    Promise {
        leader: name("n1"),
        until,
        given: ago(1),
        position: Some(POSITION),
        upstream: Some(upstream("n1")),
        slots: std::collections::BTreeMap::new(),
    }
}

fn reason(scene: &Scene) -> Reason {
    scene.decide().reason
}

#[test]
fn a_leader_keeps_the_key_and_takes_it_away_when_the_mode_is_off() {
    let mut scene = Scene::new().leads().member_too("n0").primary("", &[]);
    let kept = |scene: &Scene| {
        scene.decide().actions.into_iter().find_map(|action| {
            let Action::PutFailsafe(members, when) = action else { return None };
            Some((members.into_keys().collect::<Vec<_>>(), when))
        })
    };
    assert_eq!(kept(&scene), None);
    scene.0.rules.outlast = Outlast::AllAgree;
    let all = vec![name("n0"), name("n1"), name("n2")];
    assert_eq!(kept(&scene), Some((all.clone(), Precondition::Absent)));
    let outdated = scene.clone().failsafe(&["n0"]);
    assert_eq!(kept(&outdated), Some((all, Precondition::Unchanged(Revision(3)))));
    let right = scene.failsafe(&["n0", "n1", "n2"]);
    assert_eq!(kept(&right), None);
    let mut off = right;
    off.0.rules.outlast = Outlast::Never;
    assert!(off.decide().actions.contains(&Action::DeleteFailsafe(Revision(3))));
}

#[test]
fn a_leader_without_a_store_asks_every_member_while_its_lease_is_good() {
    assert_eq!(only(cut_off().decide()), Action::AskMembers);
    let mut asked = cut_off();
    asked.0.memory.roll.ask(ago(2));
    assert!(asked.decide().actions.is_empty(), "a round is under way");
    assert_eq!(asked.0.memory.roll.hear(ago(2), &name("n0"), &names(&["n1", "n2"])), Outcome::Agreed);
    assert_eq!(only(asked.decide()), Action::AskMembers, "the next round");
    assert_eq!(reason(&asked), Reason::Outlasting(vec![name("n1"), name("n2")]));
    let late = cut_off().lease(8);
    assert!(!late.decide().actions.contains(&Action::AskMembers), "the lease is over: it stops");
    let mut off = cut_off();
    off.0.rules.outlast = Outlast::Never;
    assert!(off.decide().actions.is_empty());
    let mut paused = cut_off();
    paused.0.rules.pause = Pause::On;
    assert!(paused.decide().actions.is_empty(), "in maintenance mode it goes on without");
    assert!(paused.lease(12).decide().actions.is_empty());
    for leaving in [Job::Stop, Job::HandOver] {
        assert!(!cut_off().doing(leaving).decide().actions.contains(&Action::AskMembers), "{leaving:?}");
    }
}

/// A store that can be read and not be written renews no lease.
#[test]
fn a_lease_that_ages_although_the_store_can_be_read_is_reason_enough_to_ask() {
    let mut scene = Scene::new().leader("n0").primary("", &[]).failsafe(&["n0", "n1", "n2"]);
    scene.0.rules.outlast = Outlast::AllAgree;
    let snapshot = scene.0.snapshot().unwrap().clone();
    scene.0.memory.roll.saw_store(&snapshot);
    assert!(!scene.clone().lease(1).decide().actions.contains(&Action::AskMembers));
    assert!(scene.lease(4).decide().actions.contains(&Action::AskMembers));
}

#[test]
fn one_member_that_does_not_promise_is_enough_to_stop() {
    let mut scene = cut_off();
    scene.0.memory.roll.ask(ago(2));
    assert_ne!(scene.0.memory.roll.hear(ago(2), &name("n0"), &names(&["n1"])), Outcome::Agreed);
    assert_eq!(reason(&scene), Reason::NotAllowedToOutlast(vec![name("n2")]));
    assert_eq!(reason(&scene.lease(7)), Reason::LeaseEnding);
}

#[test]
fn a_leader_that_is_not_in_the_key_asks_nobody() {
    let mut scene = Scene::new().primary("", &[]).failsafe(&["n1", "n2"]);
    scene.0.rules.outlast = Outlast::AllAgree;
    let snapshot = scene.0.snapshot().unwrap().clone();
    scene.0.memory.roll.saw_store(&snapshot);
    assert!(scene.store_silent().lease(4).decide().actions.is_empty());
}

/// A write whose outcome is unknown may have made somebody a candidate.
#[test]
fn whoever_is_in_a_key_that_was_only_tried_is_asked_too() {
    let mut scene = cut_off();
    let all = ["n0", "n1", "n2", "n3"].map(|n| (NodeName::from(n), String::new()));
    scene.0.memory.roll.writes(&all.into());
    scene.0.memory.roll.ask(ago(2));
    assert_ne!(scene.0.memory.roll.hear(ago(2), &name("n0"), &names(&["n1", "n2"])), Outcome::Agreed);
    assert_eq!(scene.0.memory.roll.hear(ago(2), &name("n0"), &names(&["n1", "n2", "n3"])), Outcome::Agreed);
}

#[test]
fn a_promise_binds_until_it_ends_and_a_stranger_to_the_key_never_leads() {
    let mut bound = Scene::new().no_leader().votes(HERE, &[("n1", still(HERE)), ("n2", still(HERE))]);
    bound.0.memory.promised = Some(promise(NOW + Duration::from_secs(1)));
    assert_eq!(nothing_because(bound.decide()), Reason::Promised(name("n1")));
    bound.0.memory.promised = Some(promise(NOW));
    assert_eq!(only(bound.decide()), Action::Acquire(Claim::Vacant));
    let mut stranger = bound.failsafe(&["n1", "n2"]);
    stranger.0.rules.outlast = Outlast::AllAgree;
    assert_eq!(nothing_because(stranger.decide()), Reason::NotInFailsafe);
    assert_eq!(only(stranger.failsafe(&["n0", "n1"]).decide()), Action::Acquire(Claim::Vacant));
}

#[test]
fn a_person_can_let_a_stranger_to_the_key_lead_and_not_break_a_promise() {
    let mut stranger = Scene::new().no_leader().votes(HERE, &[("n1", still(HERE)), ("n2", still(HERE))]);
    stranger = stranger.failsafe(&["n1", "n2"]);
    let off = stranger.clone();
    assert_eq!(
        nothing_because(off.decide()),
        Reason::NotInFailsafe,
        "its leader may not have heard that it is off"
    );
    stranger.0.rules.outlast = Outlast::AllAgree;
    let named = |s: &mut Snapshot| {
        s.failover = Some(versioned(Failover { member: Some(name("n0")), ..Failover::default() }));
    };
    let mut forced = stranger.snapshot(named);
    assert_eq!(only(forced.decide()), Action::Acquire(Claim::Vacant));
    forced.0.memory.promised = Some(promise(NOW + Duration::from_secs(1)));
    assert_eq!(nothing_because(forced.decide()), Reason::Promised(name("n1")));
}

/// The store is back, the key has run out, nobody could have taken it: the primary never stopped.
#[test]
fn a_primary_that_outlived_the_store_takes_its_key_again_if_it_is_vacant() {
    let back = Scene::new().no_leader().lease(1).primary("", &[]);
    assert_eq!(only(back.decide()), Action::Acquire(Claim::Vacant));
    let taken = Scene::new().leader("n1").lease(1).primary("", &[]);
    assert_eq!(reason(&taken), Reason::AnotherLeads(name("n1")));
}

#[test]
fn a_crash_under_the_failsafe_is_restarted_and_the_members_are_asked_on() {
    let mut down = cut_off();
    down.0.local.process = pgherd::supervisor::UnitState::Down { last: None };
    down.0.local.sql = None;
    let actions = down.data(ControlState::InProduction).decide().actions;
    assert!(matches!(actions.as_slice(), [Action::AskMembers, Action::Start(..)]), "{actions:?}");
}

/// The leader that goes on with this node's promise says how it is reached: its WAL need not wait for the store.
#[test]
fn a_standby_that_follows_nobody_follows_the_leader_that_it_has_promised() {
    let bound = |scene: Scene| {
        scene.store_silent_for(9).with(|v| v.memory.promised = Some(promise(NOW + Duration::from_secs(5))))
    };
    let down = Scene::new().data(ControlState::ShutDownInRecovery);
    assert_eq!(only(bound(down.clone()).decide()), Action::Begin(Task::Compare(upstream("n1"))));
    let compared = bound(down.clone().same_timeline());
    let follower = StartAs::Standby(Some(upstream("n1")));
    assert_eq!(only(compared.decide()), Action::Start(follower, String::new()));
    let alone = Action::Start(StartAs::Standby(None), String::new());
    let left = bound(down.clone().forked_at(HERE - 0x1000)).decide();
    assert_eq!(only(left), alone, "another history waits for the store");
    let silent = bound(down.clone()).failed(Job::Compare, 1, 1).decide();
    assert_eq!(only(silent), alone, "it is not reached");
    assert_eq!(only(down.store_silent_for(9).decide()), alone, "nobody was promised anything");

    let running = Scene::new().standby(HERE).same_timeline().with(|v| v.memory.following = None);
    assert_eq!(only(bound(running.clone()).decide()), Action::Follow(Some(upstream("n1"))));
    let follows = bound(running.clone().with(|v| v.memory.following = Some(upstream("n2"))));
    assert!(follows.decide().actions.is_empty(), "what is in force goes on");
    let ended = running.store_silent().with(|v| v.memory.promised = Some(promise(NOW)));
    assert!(ended.decide().actions.is_empty());
}

/// Who has stopped and said so in the store, after it asked, holds nobody any more; the store must be without a leader then.
#[test]
fn a_promise_ends_early_only_by_what_its_leader_wrote_after_it() {
    let given = promise(NOW);
    let end = Shutdown { leader: name("n1"), timeline: Timeline(1), end: Lsn(POSITION.0 + 1) };
    let status = Status { shutdown: Some(end), ..Status::default() };
    let scene = Scene::new().no_leader().snapshot(|s| s.status = Some(versioned(status)));
    let over = |scene: &Scene, taken: Moment| {
        let snapshot = scene.0.snapshot().unwrap().clone();
        given.is_over(&Snapshot { taken, ..snapshot })
    };
    assert!(over(&scene, NOW));
    assert!(!over(&scene, given.given), "it was read before it asked");
    assert!(!over(&scene.leader("n2"), NOW), "somebody leads");
}

fn slot(name: &str, kind: SlotKind) -> Slot {
    Slot {
        name: SlotName(name.into()),
        kind,
        active: false,
        restart_lsn: Some(Lsn(HERE - 9)),
        confirmed: Some(Lsn(HERE - 9)),
        wal: SlotWal::Kept,
        horizon: Horizon::Free,
        synchronised: false,
    }
}

/// Who streams from another standby than the leader says with its promise how far it is.
#[test]
fn a_leader_without_a_store_moves_the_copies_of_slots_by_what_is_promised() {
    let slots = [slot("n1", SlotKind::Physical), slot("n2", SlotKind::Physical)];
    let used = Slot { active: true, ..slots[0].clone() };
    let mut scene = cut_off().slots(&[used, slots[1].clone()]);
    scene.0.memory.roll.ask(ago(0));
    assert_eq!(scene.decide().actions, []);
    let said = |at| [(name("n1"), Lsn(HERE - 5)), (name("n2"), Lsn(at))];
    scene.0.memory.roll.positions.extend(said(HERE - 3));
    let plan = |to| SlotPlan { advance: [(slots[1].name.clone(), Lsn(to))].into(), ..SlotPlan::default() };
    assert_eq!(scene.decide().actions, [Action::ChangeSlots(plan(HERE - 3))]);
    scene.0.memory.roll.positions.extend(said(HERE + 5));
    assert_eq!(scene.decide().actions, [Action::ChangeSlots(plan(HERE))], "not beyond what is written");
    scene.0.memory.roll.positions.extend(said(HERE - 11));
    assert_eq!(scene.decide().actions, [], "never back");
}

/// Slots that nobody moved would keep WAL for as long as the store is away.
#[test]
fn while_the_store_is_silent_slots_go_where_the_promised_leader_says() {
    let logical = SlotKind::Logical { database: "app".into(), plugin: "pgoutput".into() };
    let slots = [slot("n2", SlotKind::Physical), slot("cdc", logical), slot("own", SlotKind::Physical)];
    let scene = Scene::new().standby(HERE).slots(&slots).store_silent();
    let said = [(SlotName("n2".into()), Lsn(HERE - 5)), (SlotName("cdc".into()), Lsn(HERE + 5))];
    let promise = Promise { slots: said.into(), ..promise(NOW + Duration::from_secs(5)) };
    let scene = scene.with(|v| v.memory.promised = Some(promise));
    let plan = SlotPlan {
        advance: [(slots[0].name.clone(), Lsn(HERE - 5))].into(),
        follow: [(slots[1].name.clone(), ("app".into(), Lsn(HERE)))].into(),
        ..SlotPlan::default()
    };
    assert_eq!(scene.decide().actions, [Action::ChangeSlots(plan)]);
    assert_eq!(scene.with(|v| v.memory.promised = None).decide().actions, []);
}
