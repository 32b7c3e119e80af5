//! The key names this node: restart in place, promotion, the duties of a primary.

use std::time::Duration;

use pgherd::dcs::{Claim, Initialize, Precondition, Role, Sync};
use pgherd::ha::reason::{Action, Reason, Task, Wake};
use pgherd::ha::view::{Approval, Job, Lease, ShutdownMark, SyncWrite};
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{SlotKind, SlotPlan, StartAs};
use pgherd::types::{Revision, SyncMode, Timeline};

use crate::scene::{CLUSTER, HERE, POSITION, Scene, ago, name, nothing_because, only};

#[test]
fn a_crash_is_restarted_in_place_with_the_names_that_were_in_force() {
    let mut scene = Scene::new().leads().data(ControlState::InProduction);
    scene.0.memory.sync_names = Some("ANY 1 (n1,n2)".into());
    let decision = scene.decide();
    assert_eq!(decision.reason, Reason::CrashRestart);
    let start = Action::Start(StartAs::Primary, "ANY 1 (n1,n2)".into());
    assert_eq!(decision.actions, [Action::CloseDoor, start]);
}

#[test]
fn a_restarted_node_starts_its_primary_with_the_names_that_the_sync_key_implies() {
    let scene = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 1, &["n1", "n2"]);
    let start = Action::Start(StartAs::Primary, "ANY 1 (n1,n2)".into());
    assert_eq!(scene.decide().actions, [Action::CloseDoor, start]);
}

#[test]
fn a_crash_is_restarted_even_while_the_store_is_silent_if_the_lease_is_good() {
    let decision = Scene::new().leads().store_silent().decide();
    assert!(matches!(only(decision), Action::Start(StartAs::Primary, _)), "commits wait for nobody here");
}

/// Another node takes the key by that mark without a vote, and would lack what is written after it.
#[test]
fn a_primary_whose_shutdown_may_be_in_the_store_takes_that_back_before_it_starts() {
    let mut stopped = Scene::new().leads();
    stopped.0.memory.shutdown_mark = ShutdownMark::MayStand;
    let actions = stopped.decide().actions;
    assert!(matches!(actions.as_slice(), [Action::PutStatus(_), Action::Start(..)]), "{actions:?}");
    assert_eq!(nothing_because(stopped.store_silent().decide()), Reason::ShutdownMarkStands);
}

#[test]
fn without_the_store_no_primary_is_started_whose_names_are_not_known() {
    let scene = Scene::new().leads().sync_mode(SyncMode::Quorum).store_silent();
    assert!(matches!(nothing_because(scene.decide()), Reason::StoreSilent(_)));
    let mut known = scene;
    known.0.memory.sync_names = Some("ANY 1 (n1)".into());
    let start = Action::Start(StartAs::Primary, "ANY 1 (n1)".into());
    assert_eq!(known.decide().actions, [Action::CloseDoor, start]);
}

/// What another standby feeds never connects to the leader: a loop that looks out for it would look for ever.
#[test]
fn nobody_looks_out_for_a_standby_that_another_one_feeds() {
    let scene = || {
        let leads = Scene::new().leads().primary("ANY 1 (n1)", &["n1"]);
        leads.sync_mode(SyncMode::Quorum).sync_key("n0", 0, &["n1"]).member("n1", |m| m.role = Role::Replica)
    };
    assert_eq!(scene().decide().wake, Wake::Soon(Duration::from_millis(300)), "n2 comes in a moment");
    let fed = scene().member("n2", |m| m.tags.extend([("replicatefrom".into(), "n1".into())]));
    assert_eq!(fed.decide().wake, Wake::Loop);
}

/// Started as a primary it would go on writing the timeline that its promotion was to end.
#[test]
fn a_standby_that_died_between_the_lock_and_its_promotion_starts_as_a_standby() {
    for state in [ControlState::InArchiveRecovery, ControlState::ShutDownInRecovery] {
        let scene = Scene::new().leads().data(state);
        let start = Action::Start(StartAs::Standby(None), String::new());
        assert_eq!(only(scene.decide()), start);
        assert_eq!(only(scene.store_silent().decide()), start);
    }
}

#[test]
fn two_nodes_of_one_name_never_share_a_key() {
    let mut scene = Scene::new().leader("n0").data(ControlState::InProduction);
    scene.0.memory.name = pgherd::ha::view::Name::Unclaimed;
    assert_eq!(nothing_because(scene.decide()), Reason::ClaimingName);
}

#[test]
fn a_crash_loop_gives_the_lock_to_a_node_that_runs() {
    let looping = Scene::new().leads().failed(Job::Start, 5, 60);
    assert_eq!(looping.decide().reason, Reason::CrashLoop(5));
    assert_eq!(only(looping.decide()), Action::Release);
    let alone = looping.snapshot(|s| s.members.clear()).decide();
    assert!(matches!(only(alone), Action::Start(StartAs::Primary, _)), "nobody else could lead");
}

#[test]
fn the_key_of_a_life_before_is_taken_over_by_its_revision() {
    let decision = Scene::new().leader("n0").data(ControlState::InProduction).decide();
    assert_eq!(only(decision), Action::Acquire(Claim::Expired(Revision(9))));
}

#[test]
fn an_emptied_volume_does_not_take_its_old_key() {
    let decision = Scene::new().leader("n0").empty().decide();
    assert_eq!(nothing_because(decision), Reason::WaitingForLeader);
}

#[test]
fn an_emptied_volume_with_the_lock_gives_it_away_and_never_runs_initdb() {
    let decision = Scene::new().leads().empty().decide();
    assert_eq!(decision.reason, Reason::NothingToLead);
    assert_eq!(only(decision), Action::Release);
}

#[test]
fn a_standby_with_the_lock_closes_the_election_and_is_promoted() {
    let scene = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n1", 1, &["n0", "n2"]);
    let decision = scene.standby(HERE).decide();
    let [Action::PutSync(sync, when), Action::SetSyncNames(names), Action::Begin(Task::Promote)] =
        decision.actions.as_slice()
    else {
        panic!("{:?}", decision.actions)
    };
    assert_eq!((sync.leader.as_ref(), sync.sync_standby.as_ref()), (Some(&name("n0")), None));
    assert_eq!(*when, Precondition::Unchanged(Revision(3)));
    assert_eq!(names, "ANY 1 (n2)", "the first commit waits for the standby that will follow");
}

/// The set of a term before entitles somebody who will not confirm this term's commits.
#[test]
fn the_election_is_closed_also_when_the_key_is_this_nodes_own_of_a_term_before() {
    for mode in [SyncMode::On, SyncMode::Quorum] {
        let scene = Scene::new().leads().standby(HERE).sync_mode(mode).sync_key("n0", 0, &["n1"]);
        let first = scene.decide().actions.into_iter().next();
        let closed = Sync::new(&name("n0"), 0, &[]);
        assert_eq!(first, Some(Action::PutSync(closed, Precondition::Unchanged(Revision(3)))));
        let decision = Scene::new().leads().standby(HERE).sync_mode(mode).sync_key("n0", 0, &[]).decide();
        assert!(!decision.actions.iter().any(|a| matches!(a, Action::PutSync(..))), "it is closed already");
    }
}

#[test]
fn a_promotion_is_not_begun_on_the_last_second_of_a_lease() {
    let mut late = Scene::new().leads().standby(HERE);
    let (sent, ttl) = (ago(6) - Duration::from_millis(500), late.0.rules.timing.ttl);
    late.0.lease = Lease::Held { sent, ttl };
    assert_eq!(nothing_because(late.decide()), Reason::LeaseTooShort);
    let short = Scene::new().leader("n0").lease(6).standby(HERE).decide();
    assert!(matches!(short.actions.last(), Some(Action::Begin(Task::Promote))), "one second is enough");
}

#[test]
fn a_leader_keeps_status_slots_and_missing_keys() {
    let mut scene = Scene::new().leads().primary("", &[]).initialize(None).snapshot(|s| s.config = None);
    scene.0.memory.seen_slots.insert(name("n1").slot_name(), ago(60));
    scene.0.memory.seen_slots.insert(name("gone").slot_name(), ago(3600));
    let actions = scene.decide().actions;
    assert!(actions.contains(&Action::PutInitialize(CLUSTER)));
    for broken in [Initialize::InProgress, Initialize::Invalid] {
        let scene = Scene::new().leads().primary("", &[]).initialize(Some(broken));
        assert!(scene.decide().actions.contains(&Action::PutInitialize(CLUSTER)), "{broken:?}");
    }
    assert!(actions.contains(&Action::PutConfig));
    let create = ["n1", "n2"].map(|member| (name(member).slot_name(), SlotKind::Physical)).into();
    let plan = SlotPlan { create, ..SlotPlan::default() };
    // A slot that cannot be made ends the list: elections go by the position, which must not stand still then.
    let last_two = [Action::PutStatus(POSITION), Action::ChangeSlots(plan)];
    assert!(actions.ends_with(&last_two), "{actions:?}");
}

#[test]
fn commits_begin_to_wait_before_anybody_may_be_elected_on_them() {
    let quorum = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]);
    let decision = quorum.clone().primary("", &["n1", "n2"]).decide();
    assert_eq!(decision.actions.first(), Some(&Action::SetSyncNames("ANY 1 (n1,n2)".into())));
    let next = quorum.primary("ANY 1 (n1,n2)", &["n1", "n2"]).decide();
    let Some(Action::PutSync(sync, _)) = next.actions.first() else { panic!("{:?}", next.actions) };
    assert_eq!((sync.quorum, sync.sync_standby.as_deref()), (1, Some("n1,n2")));
}

#[test]
fn commits_are_not_let_go_while_the_standbys_may_come_back() {
    let mut scene = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 0, &["n1"]);
    scene = scene.primary("ANY 1 (n1)", &[]);
    scene.0.memory.sync_starved = Some(ago(3));
    let first = |scene: &Scene| scene.decide().actions.first().cloned();
    assert!(!matches!(first(&scene), Some(Action::PutSync(..) | Action::SetSyncNames(_))));
    scene.0.memory.sync_starved = Some(ago(4));
    assert!(
        matches!(first(&scene), Some(Action::PutSync(..))),
        "first nobody can be elected, then commits go on"
    );
}

#[test]
fn the_timeline_history_is_written_after_a_promotion() {
    let mut scene = Scene::new().leads().primary("", &[]);
    if let Some(answer) = &mut scene.0.local.sql {
        answer.timeline = Timeline(2);
    }
    assert!(scene.decide().actions.contains(&Action::PutHistory(Timeline(2))));
}

/// A program of the operator's that may refuse a promotion.
mod pre_promote {
    use super::*;

    fn elected() -> Scene {
        let mut scene =
            Scene::new().leads().standby(HERE).sync_mode(SyncMode::Quorum).sync_key("n1", 1, &["n0", "n2"]);
        scene.0.rules.pre_promote = Some("/usr/local/bin/allowed".into());
        scene
    }

    #[test]
    fn it_is_asked_before_anything_else_and_once_for_a_lease() {
        assert_eq!(only(elected().decide()), Action::Begin(Task::Approval("/usr/local/bin/allowed".into())));
        let mut given = elected();
        given.0.memory.approval = Approval::Given;
        assert_eq!(given.decide().reason, Reason::Promoting);
        assert_eq!(nothing_because(elected().doing(Job::Approval).decide()), Reason::Busy(Job::Approval));
    }

    #[test]
    fn a_no_gives_the_key_back_and_the_node_is_no_candidate_for_a_ttl() {
        let refused = elected().failed(Job::Approval, 1, 1);
        assert_eq!(refused.decide().reason, Reason::NotApproved("why".into()));
        assert_eq!(only(refused.decide()), Action::Release);
        let again = elected().failed(Job::Approval, 1, 10);
        assert_eq!(again.decide().reason, Reason::AwaitingApproval);
        let vote = Scene::new().no_leader().votes(HERE, &[]).failed(Job::Approval, 1, 9);
        assert_eq!(nothing_because(vote.decide()), Reason::NotApproved("why".into()));
        let later = Scene::new().no_leader().votes(HERE, &[]).failed(Job::Approval, 1, 10);
        assert_eq!(only(later.decide()), Action::Acquire(Claim::Vacant));
    }

    /// A program that hangs holds nobody up once the lease is gone.
    #[test]
    fn without_the_lease_its_answer_is_not_waited_for() {
        let scene = Scene::new().standby(HERE).doing(Job::Approval);
        assert!(matches!(scene.decide().reason, Reason::Following(_)));
    }
}

/// A write that was not answered may arrive after the key was read, and name somebody whom nothing reckons with.
#[test]
fn a_sync_key_whose_last_write_was_not_answered_is_written_again_before_anything_relies_on_it() {
    let unknown = |scene: Scene| scene.with(|v| v.memory.sync_write = SyncWrite::MayArrive);
    let leads = || Scene::new().leads().primary("ANY 1 (n1)", &["n1"]).sync_mode(SyncMode::Quorum);
    let key = Sync::new(&name("n0"), 0, &[name("n1")]);
    let again = Action::PutSync(key, Precondition::Unchanged(Revision(3)));
    let first = |scene: &Scene| scene.decide().actions.into_iter().next();
    assert_eq!(first(&unknown(leads().sync_key("n0", 0, &["n1"]))), Some(again.clone()));
    assert_ne!(first(&leads().sync_key("n0", 0, &["n1"])), Some(again));
    let closed = Action::PutSync(Sync::new(&name("n0"), 0, &[]), Precondition::Unchanged(Revision(3)));
    let others = unknown(leads().sync_key("n2", 0, &["n0"]));
    assert_eq!(first(&others), Some(closed.clone()), "another's is closed in any case");
    let standby =
        unknown(Scene::new().leads().standby(HERE).sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]));
    assert_eq!(first(&standby), Some(closed), "before a promotion too");
}
