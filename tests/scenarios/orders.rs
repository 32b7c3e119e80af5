//! What an operator asks of one node: restart, another copy, and maintenance mode.

use std::time::Duration;

use pgherd::dcs::{Claim, Failover, MemberState, Role, Shutdown, Status as LeaderStatus};
use pgherd::ha::orders::{
    Accepted, Conditions, Insistence, Order, Pending, Reinitialize, Restart, Scheduled, Settled, Source,
    Stage,
};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::rules::Pause;
use pgherd::ha::view::{Job, Life, PollAnswer};
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{StartAs, StopMode};
use pgherd::types::{Lsn, SyncMode, Timeline};

use crate::scene::{HERE, NOW, Scene, ago, name, nothing_because, only, upstream, versioned};

fn restart(mut scene: Scene, stage: Stage, conditions: Conditions) -> Scene {
    scene.0.memory.orders.restart = Some(Restart { conditions, timeout: None, stage, since: ago(1) });
    scene
}

fn announced(scene: Scene) -> Scene {
    scene.snapshot(|s| {
        let mut own = s.members.first().unwrap().clone();
        (own.name, own.state) = (name("n0"), MemberState::Restarting);
        s.members.insert(0, own);
    })
}

fn paused(mut scene: Scene) -> Scene {
    scene.0.rules.pause = Pause::On;
    scene.0.memory.life = Life::HasRun;
    scene
}

fn reinitialize(mut scene: Scene, insistence: Insistence, stage: Accepted) -> Scene {
    scene.0.memory.orders.reinitialize = Some(Reinitialize { insistence, source: Source::Usual, stage });
    scene
}

/// H42: nobody takes it for a failure, because everybody could read it before.
#[test]
fn a_restart_is_announced_before_anything_is_stopped_and_the_lock_is_kept() {
    let asked = restart(Scene::new().leads().primary("", &[]), Stage::Asked, Conditions::default());
    assert_eq!(nothing_because(asked.decide()), Reason::Restarting);
    assert_eq!(pgherd::ha::publish::state(&asked.0), MemberState::Restarting);
    let stop = only(announced(asked).decide());
    assert!(matches!(stop, Action::Begin(Task::StopAfterCheckpoint(StopMode::Fast { .. }))));
    let down = restart(Scene::new().leads(), Stage::Stopped, Conditions::default());
    assert!(matches!(only(down.decide()), Action::Start(StartAs::Primary, _)));
    let up = restart(Scene::new().leads().primary("", &[]), Stage::Stopped, Conditions::default());
    assert_eq!(only(up.decide()), Action::Settle(Order::Restart, Settled::Done));
}

#[test]
fn a_restart_waits_for_the_stop_that_it_has_begun() {
    let asked = restart(Scene::new().leads().primary("", &[]), Stage::Asked, Conditions::default());
    assert_eq!(nothing_because(announced(asked).doing(Job::Stop).decide()), Reason::Busy(Job::Stop));
}

#[test]
fn a_restart_whose_conditions_do_not_hold_is_not_done() {
    let settles = |conditions| {
        only(restart(Scene::new().leads().primary("", &[]), Stage::Asked, conditions).decide())
            == Action::Settle(Order::Restart, Settled::Conditions)
    };
    assert!(settles(Conditions { role: Some(Role::Replica), ..Conditions::default() }));
    assert!(settles(Conditions { pending: Pending::Required, ..Conditions::default() }));
    assert!(settles(Conditions { older_than: Some((150_018, "15.18".into())), ..Conditions::default() }));
}

#[test]
fn a_restart_does_not_interrupt_what_is_under_way_and_fails_when_the_start_does() {
    let busy = restart(Scene::new().doing(Job::Clone), Stage::Asked, Conditions::default());
    assert_eq!(only(busy.decide()), Action::Settle(Order::Restart, Settled::Busy(Job::Clone)));
    let failed =
        restart(Scene::new().leads().failed(Job::Start, 1, 0), Stage::Stopped, Conditions::default());
    assert_eq!(only(failed.decide()), Action::Settle(Order::Restart, Settled::Failed));
}

#[test]
fn a_scheduled_restart_waits_for_its_time_and_dies_with_its_postmaster() {
    let at = |at: &str, postmaster| {
        let mut scene = Scene::new().standby(HERE);
        let conditions = Conditions::default();
        let postmaster_started = Some(postmaster);
        let scheduled = Scheduled { at: at.into(), conditions, timeout: None, postmaster_started };
        scene.0.memory.orders.scheduled = Some(scheduled);
        scene
    };
    let early = at("2026-11-20T12:00:01Z", 1);
    assert_eq!(early.decide().reason, Reason::Following(name("n1")));
    assert_eq!(early.0.next_deadline(), Some(NOW + Duration::from_secs(1)));
    assert_eq!(only(at("2026-11-20T12:00:00Z", 1).decide()), Action::TakeUpSchedule);
    assert_eq!(only(at("2026-11-20T11:59:00Z", 1).decide()), Action::DropSchedule);
    assert_eq!(only(at("2026-11-20T13:00:00Z", 2).decide()), Action::DropSchedule);
}

#[test]
fn another_copy_is_taken_only_while_two_others_are_whole_unless_a_person_insists() {
    let standby = || Scene::new().standby(HERE);
    let alone = reinitialize(standby(), Insistence::Careful, Accepted::No);
    assert_eq!(only(alone.decide()), Action::Settle(Order::Reinitialize, Settled::TooFewCopies));
    let forced = reinitialize(standby(), Insistence::Forced, Accepted::No);
    assert_eq!(only(forced.decide()), Action::AcceptReinitialize);
    let streams = |s: &mut pgherd::dcs::Snapshot| {
        s.members[1].replication_state = Some(pgherd::dcs::ReplicationState::Streaming);
    };
    assert_eq!(only(alone.snapshot(streams).decide()), Action::AcceptReinitialize);
    let broken = reinitialize(Scene::new(), Insistence::Careful, Accepted::No);
    assert_eq!(only(broken.decide()), Action::AcceptReinitialize, "it is no whole copy itself");
}

#[test]
fn a_copy_that_was_accepted_is_stopped_at_once_and_cloned() {
    let running = reinitialize(Scene::new().standby(HERE), Insistence::Careful, Accepted::Yes);
    assert_eq!(only(running.decide()), Action::Begin(Task::Stop(StopMode::Immediate)));
    let down = reinitialize(Scene::new(), Insistence::Careful, Accepted::Yes);
    assert_eq!(only(down.decide()), Action::Begin(Task::Clone(upstream("n1"))));
}

#[test]
fn another_copy_is_made_of_whoever_offers_itself_unless_it_is_to_be_the_leaders() {
    let ordered = |source| {
        let order = Reinitialize { insistence: Insistence::Careful, source, stage: Accepted::Yes };
        let offers = |m: &mut pgherd::dcs::Member| m.tags.extend([("clonefrom".into(), true.into())]);
        let mut scene = Scene::new().member("n2", offers);
        scene.0.memory.orders.reinitialize = Some(order);
        only(scene.decide())
    };
    assert_eq!(ordered(Source::Usual), Action::Begin(Task::Clone(upstream("n2"))));
    assert_eq!(ordered(Source::Leader), Action::Begin(Task::Clone(upstream("n1"))));
}

#[test]
fn a_leader_is_never_replaced_by_a_copy_and_nobody_copies_from_nobody() {
    let leads = reinitialize(Scene::new().leads().primary("", &[]), Insistence::Forced, Accepted::No);
    assert_eq!(only(leads.decide()), Action::Settle(Order::Reinitialize, Settled::Leads));
    let nobody = reinitialize(Scene::new().no_leader().standby(HERE), Insistence::Forced, Accepted::No);
    assert_eq!(only(nobody.decide()), Action::Settle(Order::Reinitialize, Settled::NoLeader));
}

// ---- a start that takes too long

#[test]
fn a_primary_that_starts_for_too_long_gives_way_if_somebody_can_lead() {
    let mut scene = Scene::new().leads().silent_process();
    assert_eq!(scene.decide().reason, Reason::StartTooSlow);
    scene.0.rules.primary_start_timeout = Duration::from_secs(1_000_000);
    assert_eq!(nothing_because(scene.decide()), Reason::Starting);
    let mut down = Scene::new().leads().data(ControlState::InProduction);
    down.0.memory.give_away = Some(ago(1));
    assert_eq!(only(down.decide()), Action::Release);
}

#[test]
fn a_start_timeout_of_zero_fails_over_at_once() {
    let mut scene = Scene::new().leads().data(ControlState::InProduction);
    (scene.0.rules.primary_start_timeout, scene.0.memory.life) = (Duration::ZERO, Life::HasRun);
    assert_eq!(only(scene.decide()), Action::Release);
    let alone = scene.snapshot(|s| s.members.clear());
    assert!(matches!(only(alone.decide()), Action::Start(StartAs::Primary, _)), "nobody else could lead");
}

// ---- maintenance mode

#[test]
fn a_paused_primary_goes_on_whatever_becomes_of_the_lock_and_the_store() {
    let silent = paused(Scene::new().primary("", &[]).store_silent().lease(30));
    assert!(matches!(nothing_because(silent.decide()), Reason::Paused));
    let other = paused(Scene::new().leader("n1").primary("", &[]));
    assert_eq!(nothing_because(other.decide()), Reason::Paused);
    let vacant = paused(Scene::new().no_leader().primary("", &[]));
    assert_eq!(only(vacant.decide()), Action::Acquire(Claim::Vacant));
}

#[test]
fn a_paused_cluster_elects_and_starts_nobody() {
    assert_eq!(nothing_because(paused(Scene::new().no_leader().standby(HERE)).decide()), Reason::Paused);
    assert_eq!(nothing_because(paused(Scene::new().no_leader()).decide()), Reason::Paused);
    assert_eq!(nothing_because(paused(Scene::new().same_timeline()).decide()), Reason::Paused);
    assert_eq!(nothing_because(paused(Scene::new().empty()).decide()), Reason::Paused);
}

/// Whoever asks for a copy in maintenance mode wants a standby, not a directory.
#[test]
fn a_copy_that_was_asked_for_is_started_in_a_paused_cluster_too() {
    let mut copied = paused(reinitialize(Scene::new().same_timeline(), Insistence::Forced, Accepted::Yes));
    copied.0.memory.orders.copied(NOW);
    assert_eq!(copied.0.memory.orders.reinitialize, None);
    assert!(matches!(only(copied.decide()), Action::Start(StartAs::Standby(Some(_)), _)));
    // A copy's control file is that of the primary that it was taken from, which may have lost its key and goes on.
    let mut of_a_primary = copied.no_leader().data(ControlState::InProduction);
    of_a_primary.0.memory.copied = Some(NOW);
    let actions = of_a_primary.decide().actions;
    assert!(!actions.iter().any(|action| matches!(action, Action::Acquire(_))), "{actions:?}");
}

/// A paused primary that is cut off goes on without its key.
#[test]
fn in_a_paused_cluster_a_switchover_waits_until_the_leader_has_stopped() {
    let request = |leader: Option<&str>| Failover {
        leader: leader.map(name),
        member: Some(name("n0")),
        scheduled_at: None,
    };
    let asked = |leader| {
        let scene = Scene::new().no_leader().votes(HERE, &[("n1", PollAnswer::Unreachable)]);
        paused(scene.snapshot(|s| s.failover = Some(versioned(request(leader)))))
    };
    assert_eq!(nothing_because(asked(Some("n1")).decide()), Reason::Paused);
    let shutdown = Shutdown { leader: name("n1"), timeline: Timeline(1), end: Lsn(HERE) };
    let left = LeaderStatus { shutdown: Some(shutdown), ..LeaderStatus::default() };
    let stopped = asked(Some("n1")).snapshot(|s| s.status = Some(versioned(left)));
    assert_eq!(only(stopped.decide()), Action::Acquire(Claim::Vacant));
    assert_eq!(only(asked(None).decide()), Action::Acquire(Claim::Vacant), "a person answers for a failover");
}

#[test]
fn a_paused_node_that_is_no_primary_drops_the_lock() {
    assert_eq!(only(paused(Scene::new().leads().standby(HERE)).decide()), Action::Release);
    assert_eq!(only(paused(Scene::new().leads()).decide()), Action::Release);
}

#[test]
fn a_node_that_starts_in_a_paused_cluster_goes_on_in_the_part_that_it_had() {
    let fresh = |scene: Scene| {
        let mut scene = paused(scene);
        scene.0.memory.life = Life::Fresh;
        scene
    };
    let standby = fresh(Scene::new().same_timeline());
    assert!(matches!(only(standby.decide()), Action::Start(StartAs::Standby(_), _)));
    let primary = fresh(Scene::new().no_leader().data(ControlState::ShutDown));
    assert_eq!(only(primary.decide()), Action::Acquire(Claim::Vacant));
    let closed = primary.sync_mode(SyncMode::Quorum).sync_key("n1", 0, &[]);
    let Action::Start(StartAs::Standby(None), _) = closed.decide().actions.pop().unwrap() else {
        panic!("another node has led since: {:?}", closed.decide())
    };
    let led = fresh(Scene::new().leads());
    assert!(matches!(only(led.decide()), Action::Start(StartAs::Primary, _)));
}

#[test]
fn a_node_that_is_stopped_in_a_paused_cluster_leaves_the_lock_alone() {
    let running = paused(Scene::new().leads().primary("", &[])).stopping();
    assert!(matches!(only(running.decide()), Action::Begin(Task::StopAfterCheckpoint(_))));
    assert_eq!(only(paused(Scene::new().leads()).stopping().decide()), Action::Finish);
}

#[test]
fn an_operator_restarts_what_is_down_in_a_paused_cluster() {
    let ordered = |scene: Scene| restart(paused(scene), Stage::Stopped, Conditions::default());
    let down = ordered(Scene::new().same_timeline());
    assert!(matches!(only(down.decide()), Action::Start(StartAs::Standby(_), _)));
    let primary = || Scene::new().no_leader().data(ControlState::ShutDown);
    assert_eq!(
        only(ordered(primary()).decide()),
        Action::Acquire(Claim::Vacant),
        "it goes on as what it was"
    );
    let held = ordered(Scene::new().leads().data(ControlState::ShutDown));
    assert!(matches!(only(held.decide()), Action::Start(StartAs::Primary, _)));
    assert_eq!(nothing_because(paused(primary()).decide()), Reason::Paused, "nobody has ordered it");
    let another = primary().sync_mode(SyncMode::Quorum).sync_key("n1", 0, &["n2"]);
    let taken = ordered(another).decide().actions;
    assert!(!taken.iter().any(|action| matches!(action, Action::Acquire(_))), "n1 has led since: {taken:?}");
}
