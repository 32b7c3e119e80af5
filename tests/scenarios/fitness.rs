//! A leader that cannot do a primary's work: when it hands over, to whom, and when it stays.

use pgherd::dcs::{Claim, History, Role};
use pgherd::ha::fitness::{Ailment, due};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::view::{Job, Lease};
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{Check, Posture, Pulse, StartAs, StopMode};
use pgherd::supervisor::UnitState;
use pgherd::types::{Access, SyncMode, Timeline};

use crate::scene::{HERE, Scene, ago, name, nothing_because, only, room, still, versioned};

const SILENCE: Pulse = Pulse::Silent(Posture::Alive);
const STOPPED: Pulse = Pulse::Silent(Posture::Stopped);
const KILL: Action = Action::Begin(Task::Stop(StopMode::Immediate));

/// n0 leads, n1 and n2 follow; it was first seen as the primary 20 s ago, and no WAL has moved since.
fn primary() -> Scene {
    let mut scene = Scene::new().leads().primary("", &["n1"]).snapshot(|s| {
        s.members.iter_mut().for_each(|m| m.role = Role::Replica);
    });
    scene.0.now = ago(20);
    let mut scene = scene.seen();
    scene.0.now = crate::scene::NOW;
    scene
}

fn reason(scene: &Scene) -> Reason {
    scene.decide().reason
}

#[test]
fn a_postmaster_that_makes_no_backends_for_a_ttl_is_replaced() {
    let early = primary().sign(Check::Knock, 9, &SILENCE).seen();
    assert_eq!(reason(&early), Reason::Leading);
    let mute = primary().sign(Check::Knock, 10, &SILENCE).seen();
    assert_eq!(reason(&mute), Reason::Unfit(Ailment::Mute, name("n1")));
    assert_eq!(only(mute.decide()), KILL);
}

#[test]
fn nothing_is_handed_over_to_a_standby_of_an_older_timeline_which_could_not_be_elected() {
    let rows = vec![vec![1.into(), HERE.into(), "".into()]];
    let ill = |timeline| {
        let scene = primary().sign(Check::Knock, 10, &SILENCE).seen().snapshot(|s| {
            s.history = Some(versioned(History(rows.clone())));
            s.members.iter_mut().for_each(|m| m.timeline = Some(Timeline(timeline)));
        });
        reason(&scene)
    };
    assert_eq!(ill(1), Reason::UnfitAlone(Ailment::Mute));
    assert_eq!(ill(2), Reason::Unfit(Ailment::Mute, name("n1")));
}

/// Whoever pauses a cluster looks after it.
#[test]
fn nothing_is_handed_over_in_maintenance_mode() {
    let mut mute = primary().sign(Check::Knock, 10, &SILENCE).seen();
    mute.0.rules.pause = pgherd::ha::rules::Pause::On;
    assert_eq!(reason(&mute), Reason::UnfitAlone(Ailment::Mute), "it stays, and says what is wrong");
    assert!(!mute.decide().actions.iter().any(|action| matches!(action, Action::Begin(_))));
}

/// The status connection may have ended with it: then the instance is silent, which is no reason to wait for ever.
#[test]
fn a_postmaster_that_was_stopped_is_replaced_sooner_and_also_when_nothing_answers_at_all() {
    let early = primary().sign(Check::Knock, 4, &STOPPED).seen();
    assert_eq!(reason(&early), Reason::Leading);
    let stopped = primary().sign(Check::Knock, 5, &STOPPED);
    assert_eq!(reason(&stopped.clone().seen()), Reason::Unfit(Ailment::Stopped, name("n1")));
    let mut silent = stopped;
    silent.0.local.sql = None;
    assert_eq!(only(silent.seen().decide()), KILL);
}

#[test]
fn while_wal_moves_a_mute_postmaster_is_given_six_times_as_long() {
    let busy = |seconds| {
        let mut scene = primary();
        scene.0.memory.vitals = pgherd::ha::fitness::Vitals::default();
        scene.seen().sign(Check::Knock, seconds, &SILENCE).seen()
    };
    assert_eq!(reason(&busy(59)), Reason::Leading);
    assert_eq!(reason(&busy(60)), Reason::Unfit(Ailment::Mute, name("n1")));
}

#[test]
fn a_full_house_is_no_dead_one() {
    let full = Pulse::Declined("sorry, too many clients already".into());
    let scene = primary().sign(Check::Knock, 12, &Pulse::Answered).sign(Check::Write, 12, &full).seen();
    assert_eq!(reason(&scene), Reason::Leading);
}

#[test]
fn a_knock_that_is_answered_again_clears_the_silence_before_it() {
    let back = primary().sign(Check::Knock, 30, &SILENCE).sign(Check::Knock, 0, &Pulse::Answered).seen();
    assert_eq!(reason(&back), Reason::Leading);
}

#[test]
fn commits_that_do_not_reach_the_disk_for_a_ttl_make_a_failed_primary() {
    let early = primary().sign(Check::Write, 9, &SILENCE).seen();
    assert_eq!(reason(&early), Reason::Leading);
    let stuck = primary().sign(Check::Write, 10, &SILENCE).seen();
    assert_eq!(reason(&stuck), Reason::Unfit(Ailment::Stuck, name("n1")));
    assert_eq!(only(stuck.decide()), KILL);
    let refused = primary().sign(Check::Write, 10, &Pulse::Refused("no space".into())).seen();
    assert_eq!(reason(&refused), Reason::Unfit(Ailment::Refused("no space".into()), name("n1")));
}

#[test]
fn a_commit_is_asked_for_only_where_none_was_seen_and_nothing_is_asked_of_a_standby() {
    let checks = |scene: &Scene| due(&scene.0).into_iter().map(|(check, _)| check).collect::<Vec<_>>();
    assert_eq!(checks(&primary()), [Check::Measure, Check::Knock, Check::Write]);
    assert_eq!(checks(&Scene::new().leads().primary("", &[]).seen()), [Check::Measure, Check::Knock]);
    assert_eq!(checks(&Scene::new().standby(HERE).seen()), [Check::Measure]);
    let mut asked = primary();
    asked.0.memory.vitals.ask(Check::Write, ago(30));
    assert!(!checks(&asked).contains(&Check::Write), "one at a time");
}

#[test]
fn a_file_system_that_turned_read_only_is_a_failed_primary() {
    let mut dead = room(50_000);
    dead.access = Access::ReadOnly;
    let scene = primary().sign(Check::Measure, 0, &Pulse::Measured(dead)).seen();
    assert_eq!(reason(&scene), Reason::Unfit(Ailment::ReadOnly, name("n1")));
}

#[test]
fn the_key_is_released_only_when_the_killed_server_is_down_and_the_node_stands_back() {
    let mut down = primary().sign(Check::Knock, 5, &STOPPED).seen();
    down.0.local.process = UnitState::Down { last: None };
    down.0.local.sql = None;
    let down = down.data(ControlState::InProduction).seen();
    assert_eq!(only(down.decide()), Action::Release);
    let mut free = down.no_leader();
    free.0.lease = Lease::None;
    let free = free.seen();
    assert_eq!(nothing_because(free.decide()), Reason::StandingBack);
    // Nobody has come: it is better than nobody.
    let decision = free.later(30).seen().decide();
    assert_eq!(only(decision), Action::Start(StartAs::Standby(None), String::new()));
}

#[test]
fn a_stopped_postmaster_is_restarted_in_place_where_nobody_else_could_lead() {
    let alone = primary().snapshot(|s| s.members.clear()).sign(Check::Knock, 5, &STOPPED).seen();
    assert_eq!(reason(&alone), Reason::UnfitAlone(Ailment::Stopped));
    assert_eq!(only(alone.decide()), KILL);
    let mut down = alone;
    down.0.local.process = UnitState::Down { last: None };
    down.0.local.sql = None;
    assert!(matches!(only(down.seen().decide()), Action::Start(StartAs::Primary, _)));
}

/// No restart mends a disk, and whoever is alone keeps what it has.
#[test]
fn a_dead_disk_is_kept_with_its_reason_where_nobody_else_could_lead() {
    let alone = primary().snapshot(|s| s.members.clear()).sign(Check::Write, 10, &SILENCE).seen();
    let decision = alone.decide();
    assert_eq!(decision.reason, Reason::UnfitAlone(Ailment::Stuck));
    assert!(decision.actions.iter().all(|a| !matches!(a, Action::Begin(_) | Action::Release)));
}

#[test]
fn in_a_synchronous_mode_only_an_election_that_could_be_won_is_begun() {
    let stuck = |quorum, standbys: &[&str]| {
        let scene = primary().sync_mode(SyncMode::Quorum).sync_key("n0", quorum, standbys);
        scene.sign(Check::Write, 10, &SILENCE).seen()
    };
    assert_eq!(reason(&stuck(1, &["n1", "n2"])), Reason::Unfit(Ailment::Stuck, name("n1")));
    // The only elector is gone.
    let gone = stuck(0, &["n3"]);
    assert_eq!(reason(&gone), Reason::UnfitAlone(Ailment::Stuck));
    let lone = stuck(1, &["n1", "n2"]).snapshot(|s| s.members.retain(|m| m.name.as_str() == "n1"));
    assert_eq!(reason(&lone), Reason::UnfitAlone(Ailment::Stuck), "one vote of two");
}

#[test]
fn a_full_volume_is_handed_over_in_order_to_one_with_twice_the_room() {
    let full = primary().sign(Check::Measure, 0, &Pulse::Measured(room(1000)));
    let decision = full.clone().room_of("n1", 50_000).seen().decide();
    assert_eq!(decision.reason, Reason::Unfit(Ailment::Full(1000 << 20), name("n1")));
    assert!(matches!(only(decision), Action::Begin(Task::StopAfterCheckpoint(_))));
    let second = full.clone().room_of("n1", 900).room_of("n2", 50_000).seen();
    assert_eq!(
        reason(&second),
        Reason::Unfit(Ailment::Full(1000 << 20), name("n2")),
        "never to a fuller one"
    );
    let nowhere = full.clone().room_of("n1", 900).room_of("n2", 1100).seen();
    assert_eq!(reason(&nowhere), Reason::UnfitAlone(Ailment::Full(1000 << 20)));
    assert_eq!(reason(&full.seen()), Reason::UnfitAlone(Ailment::Full(1000 << 20)), "nobody tells its room");
    let enough = primary().sign(Check::Measure, 0, &Pulse::Measured(room(2048))).room_of("n1", 50_000).seen();
    assert_eq!(reason(&enough), Reason::Leading);
}

#[test]
fn a_dead_disk_is_not_handed_to_a_full_one() {
    let stuck = primary().sign(Check::Write, 10, &SILENCE);
    let full = stuck.room_of("n1", 40).room_of("n2", 40).seen();
    assert_eq!(reason(&full), Reason::UnfitAlone(Ailment::Stuck));
}

#[test]
fn a_server_that_does_not_start_for_want_of_space_is_given_up_at_its_first_failure() {
    let mut scene = Scene::new().leads().data(ControlState::InProduction).snapshot(|s| {
        s.members.iter_mut().for_each(|m| m.role = Role::Replica);
    });
    scene.0.memory.failed(Job::Start, ago(1), "could not write: No space left on device".into());
    assert_eq!(only(scene.clone().seen().decide()), Action::Release);
    let alone = scene.snapshot(|s| s.members.clear()).seen().decide();
    assert!(matches!(only(alone), Action::Start(StartAs::Primary, _)), "nobody else could");
}

/// Otherwise the next leader would give its own timeline the same number.
#[test]
fn a_full_volume_is_not_handed_over_before_the_timeline_is_written() {
    let full = |timeline| {
        let mut scene =
            primary().sign(Check::Measure, 0, &Pulse::Measured(room(1000))).room_of("n1", 50_000).seen();
        scene.0.local.sql.as_mut().unwrap().timeline = Timeline(timeline);
        reason(&scene)
    };
    assert!(matches!(full(1), Reason::Unfit(Ailment::Full(_), _)));
    assert!(matches!(full(2), Reason::UnfitAlone(Ailment::Full(_))), "its duties come first");
}

#[test]
fn in_a_race_a_full_node_leaves_the_lock_to_one_that_has_as_much_and_more_room() {
    let full = Scene::new().no_leader().votes(HERE, &[("n1", still(HERE)), ("n2", still(HERE))]);
    let full = full.sign(Check::Measure, 0, &Pulse::Measured(room(100)));
    let yields = full.clone().room_of("n2", 50_000);
    assert_eq!(nothing_because(yields.decide()), Reason::Fuller(name("n2")));
    assert_eq!(only(full.decide()), Action::Acquire(Claim::Vacant), "nobody tells of more room");
    let behind = Scene::new().no_leader().votes(HERE, &[("n1", still(HERE)), ("n2", still(HERE - 8))]);
    let behind = behind.sign(Check::Measure, 0, &Pulse::Measured(room(100))).room_of("n2", 50_000);
    assert_eq!(only(behind.decide()), Action::Acquire(Claim::Vacant), "data comes before room");
}

/// A process that waits for a dead disk cannot be killed, and with SIGKILL pending it can do nothing either.
#[test]
fn a_stop_that_does_not_end_lets_the_lease_run_out_and_never_releases_it() {
    let mut scene = primary().doing(Job::Stop);
    assert_eq!(nothing_because(scene.decide()), Reason::Busy(Job::Stop));
    scene.0.doing.as_mut().unwrap().since = ago(15);
    assert_eq!(only(scene.decide()), Action::Forget);
}
