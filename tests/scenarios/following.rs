//! Another node leads: start, stream, rewind, copy.

use pgherd::dcs::MemberState;
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::view::{Job, Later, Origin};
use pgherd::ha::{lineage, publish};
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{Containment, StartAs, StopMode};
use pgherd::record::{Followed, Record};
use pgherd::types::{NodeId, SystemId, Timeline};

use crate::scene::{CLUSTER, HERE, Scene, ago, name, nothing_because, only, upstream};

/// A promotion while the store is mute leaves no row in the history; the next one must not leave that timeline to whom was followed before.
#[test]
fn a_timeline_of_ones_own_that_the_history_lacks_stays_ones_own_through_the_next_promotion() {
    let scene = Scene::new().leads().standby(HERE).reached(Timeline(2));
    let mut record = Record::new(NodeId("00000000000000a0".into()));
    record.followed = Some(Followed { leader: name("n2"), known: Timeline(1) });
    (record.promoted, record.promoted_as) = (scene.0.timeline(), Some(name("n0")));
    lineage::begin(&scene.0, &mut record);
    assert_eq!(record.followed, Some(Followed { leader: name("n0"), known: Timeline(1) }));
    assert_eq!(record.promoted, Some(Timeline(3)));
}

#[test]
fn an_empty_volume_copies_the_leader() {
    assert_eq!(only(Scene::new().empty().decide()), Action::Begin(Task::Clone(upstream("n1"))));
    assert_eq!(only(Scene::new().incomplete().decide()), Action::Begin(Task::Clone(upstream("n1"))));
}

#[test]
fn data_that_cannot_be_read_is_replaced_only_if_it_was_this_clusters() {
    let mut foreign = Scene::new().unreadable();
    foreign.0.volume.system_id = None;
    assert!(matches!(nothing_because(foreign.decide()), Reason::DataUnreadable(_)));
    assert_eq!(only(Scene::new().unreadable().decide()), Action::Begin(Task::Clone(upstream("n1"))));
}

#[test]
fn what_the_leader_said_before_its_promotion_is_not_its_history() {
    let mut scene = Scene::new().same_timeline();
    scene = scene.snapshot(|s| s.members[0].timeline = Some(Timeline(2)));
    assert_eq!(only(scene.decide()), Action::Begin(Task::Compare(upstream("n1"))));
}

#[test]
fn what_the_leader_said_half_a_minute_ago_is_asked_again() {
    let said = |seconds| {
        let mut scene = Scene::new().same_timeline();
        scene.0.memory.ancestry.as_mut().unwrap().at = ago(seconds);
        only(scene.decide())
    };
    assert_eq!(said(29), Action::Start(StartAs::Standby(Some(upstream("n1"))), String::new()));
    assert_eq!(said(30), Action::Begin(Task::Compare(upstream("n1"))));
}

#[test]
fn a_new_leader_is_followed_when_it_serves_and_has_made_its_checkpoint() {
    let promoting =
        Scene::new().same_timeline().snapshot(|s| s.members[0].role = pgherd::dcs::Role::Promoted);
    assert_eq!(nothing_because(promoting.decide()), Reason::WaitingForLeader);
    let owed = Scene::new().same_timeline().snapshot(|s| s.members[0].checkpoint_after_promote = Some(false));
    assert_eq!(nothing_because(owed.decide()), Reason::AwaitingCheckpoint(name("n1")));
}

#[test]
fn a_standby_whose_wal_is_gone_upstream_is_copied_anew() {
    let mut scene = Scene::new().standby(HERE).same_timeline().not_streaming(60);
    scene.0.memory.upstream_wal = pgherd::ha::view::UpstreamWal::Removed;
    assert_eq!(scene.decide().reason, Reason::WalRemoved(name("n1")));
    let soon = scene.not_streaming(59).decide();
    assert_eq!(soon.reason, Reason::Following(name("n1")), "it may have been a moment's answer");
    let mut down = Scene::new().same_timeline();
    down.0.memory.upstream_wal = pgherd::ha::view::UpstreamWal::Removed;
    assert_eq!(only(down.decide()), Action::Begin(Task::Clone(upstream("n1"))));
}

/// A server that dies right after its promotion has the new timeline in its control file, and no checkpoint on it yet.
#[test]
fn a_timeline_that_was_begun_here_is_known_before_its_first_checkpoint() {
    let mut down = Scene::new().data(ControlState::InProduction).forked_at(HERE);
    down.0.volume.promoted = Some(Timeline(2));
    assert_eq!(only(down.decide()), Action::Begin(Task::Rewind(upstream("n1"))), "it was never on it");
    assert_eq!(only(down.reached(Timeline(2)).decide()), Action::Begin(Task::Clone(upstream("n1"))));
}

/// PostgreSQL waits between two attempts, and clients wait for the standbys after a crash.
#[test]
fn a_standby_connects_at_once_when_its_upstream_is_there_again() {
    let upstream_is = |state, scene: Scene| scene.snapshot(|s| s.members[0].state = state).seen();
    let cut = Scene::new().standby(HERE).same_timeline().connecting();
    let away = upstream_is(MemberState::Crashed, cut.clone());
    let told = |scene: &Scene| scene.decide().actions.contains(&Action::Follow(Some(upstream("n1"))));
    let known = away.with(|v| v.volume.followed = Some(Followed { leader: name("n1"), known: Timeline(1) }));
    assert!(!told(&known), "nobody is there");
    let back = upstream_is(MemberState::Running, known);
    assert!(told(&back));
    assert!(!told(&back.with(|v| v.memory.follows(Some(upstream("n1"))))), "once");
    let stayed = upstream_is(MemberState::Running, cut);
    assert!(!told(&stayed), "it is not the server that it waits for");
}

/// A vote that came to nothing has stopped the walreceiver all the same.
#[test]
fn a_standby_is_told_again_whom_to_follow_after_a_hold_that_did_not_succeed() {
    let mut scene = Scene::new().standby(HERE);
    scene.0.memory.following = None;
    assert_eq!(only(scene.decide()), Action::Follow(Some(upstream("n1"))));
}

/// Enough others are whole; nothing is thrown away (what is replaced goes to the quarantine).
#[test]
fn data_that_does_not_start_is_replaced_when_two_others_are_whole() {
    let broken = |n| Scene::new().same_timeline().failed(Job::Start, n, 60).others_stream();
    assert!(matches!(only(broken(4).decide()), Action::Start(..)));
    assert_eq!(only(broken(5).decide()), Action::Begin(Task::Clone(upstream("n1"))));
    let mut full = broken(5);
    full.0.memory.failed(Job::Start, ago(60), "No space left on device".into());
    assert!(matches!(only(full.decide()), Action::Start(..)), "a copy needs more room, not less");
    let mut again = broken(5);
    again.0.memory.copied = Some(ago(600));
    assert!(matches!(only(again.decide()), Action::Start(..)), "it may not be the data");
    let last = Scene::new().same_timeline().failed(Job::Start, 5, 60);
    assert!(matches!(only(last.decide()), Action::Start(..)), "one other copy is too few");
}

/// Two promotions can give their timelines one number; going by numbers the logs would be joined.
#[test]
fn a_timeline_that_was_begun_here_and_is_not_the_clusters_is_replaced_not_joined() {
    let mut down = Scene::new().data(ControlState::ShutDown).same_timeline();
    down.0.volume.promoted = Some(Timeline(1));
    assert_eq!(only(down.decide()), Action::Begin(Task::Clone(upstream("n1"))));
    let mut running = Scene::new().standby(HERE).same_timeline();
    running.0.volume.promoted = Some(Timeline(1));
    assert!(matches!(only(running.decide()), Action::Begin(Task::Stop(StopMode::Fast { .. }))));
}

/// The leader that was followed died before the store knew of its timeline, and another was promoted to the same number.
#[test]
fn a_timeline_of_a_leader_that_is_gone_is_not_joined_with_another_of_its_number() {
    let down = Scene::new().data(ControlState::ShutDown).forked_at(HERE).reached(Timeline(2)).followed("n2");
    assert_eq!(only(down.decide()), Action::Begin(Task::Clone(upstream("n1"))));
    let running = || Scene::new().standby(HERE).reached(Timeline(2)).followed("n2");
    let writes = |scene: Scene, timeline| scene.member("n1", |m| m.timeline = Some(Timeline(timeline)));
    assert!(matches!(only(writes(running(), 2).decide()), Action::Begin(Task::Stop(_))));
    assert!(matches!(
        only(writes(running().begun_by(&["n3", "n1"]), 3).decide()),
        Action::Begin(Task::Stop(_))
    ));
    assert_eq!(
        nothing_because(writes(running(), 3).decide()),
        Reason::WaitingForLeader,
        "it has not said yet"
    );
    let same = writes(running().begun_by(&["n2", "n1"]), 3).decide();
    assert_eq!(same.reason, Reason::Following(name("n1")), "what n2 began is a part of n1's history");
}

/// The leader that was followed had itself taken in a timeline that the store never heard of before it began its own.
#[test]
fn of_several_timelines_that_the_store_did_not_know_none_is_joined_with_another_of_its_number() {
    let running = || Scene::new().standby(HERE).reached(Timeline(3)).followed("n2");
    let writes = |scene: Scene, timeline| scene.member("n1", |m| m.timeline = Some(Timeline(timeline)));
    assert!(matches!(only(writes(running(), 3).decide()), Action::Begin(Task::Stop(_))));
    assert!(matches!(
        only(writes(running().begun_by(&["", "n1", "n1"]), 4).decide()),
        Action::Begin(Task::Stop(_))
    ));
    let same = running().begun_by(&["", "n2", "n1"]).member("n1", |m| m.timeline = Some(Timeline(4)));
    assert_eq!(
        same.decide().reason,
        Reason::Following(name("n1")),
        "what n2 began is a part of n1's history"
    );
}

/// Who leads next writes down who began the timelines that the store had not heard of.
#[test]
fn a_timeline_that_the_store_did_not_know_is_written_down_as_its_beginners() {
    let scene = Scene::new().leads().primary("", &[]).followed("n2");
    let snapshot = scene.0.snapshot().unwrap();
    let rows = publish::history(&scene.0, snapshot, "1\t0/5000000\t\n2\t0/6000000\t\n", "now");
    assert_eq!(rows.beginner_of(Timeline(2)), Some(name("n2")));
    assert_eq!(rows.beginner_of(Timeline(3)), Some(name("n0")));
}

#[test]
fn a_cluster_that_was_never_born_gives_way_to_the_one_that_was() {
    let scene = Scene::new().data_of(SystemId(7_700_000_000_000_000_002)).pending_bootstrap();
    assert_eq!(only(scene.decide()), Action::Begin(Task::Clone(upstream("n1"))));
    let unled = scene.no_leader().decide();
    assert!(matches!(nothing_because(unled), Reason::SystemIdMismatch { .. }));
}

#[test]
fn a_failed_copy_is_not_repeated_at_once() {
    let decision = Scene::new().empty().failed(Job::Clone, 4, 1).decide();
    assert_eq!(nothing_because(decision), Reason::RetryLater(Job::Clone, "why".into()));
}

#[test]
fn foreign_data_is_held_and_never_touched() {
    let other = SystemId(7_700_000_000_000_000_002);
    let decision = Scene::new().data_of(other).decide();
    assert_eq!(nothing_because(decision), Reason::SystemIdMismatch { local: other, cluster: CLUSTER });
}

#[test]
fn nothing_is_started_before_the_histories_are_compared() {
    assert_eq!(only(Scene::new().decide()), Action::Begin(Task::Compare(upstream("n1"))));
}

#[test]
fn a_history_that_is_part_of_the_leaders_streams_on() {
    let start = Action::Start(StartAs::Standby(Some(upstream("n1"))), String::new());
    assert_eq!(only(Scene::new().same_timeline().decide()), start);
    assert_eq!(only(Scene::new().forked_at(HERE).decide()), start);
}

#[test]
fn a_crashed_old_primary_is_rewound_and_after_failures_copied() {
    let crashed = Scene::new().data(ControlState::InProduction).forked_at(HERE);
    assert_eq!(only(crashed.decide()), Action::Begin(Task::Rewind(upstream("n1"))));
    let failed = crashed.failed(Job::Rewind, 2, 60).decide();
    assert_eq!(only(failed), Action::Begin(Task::Clone(upstream("n1"))));
}

/// pg_rewind finds nothing to do while the leader's control file shows the timeline before.
#[test]
fn rewinds_that_end_well_and_change_nothing_end_in_a_copy() {
    let mut scene = Scene::new().data(ControlState::InProduction);
    for seconds in [70, 60] {
        scene.0.memory.ended_well(Job::Rewind);
        scene.0.memory.rewound_at(ago(seconds));
    }
    assert_eq!(only(scene.forked_at(HERE).decide()), Action::Begin(Task::Clone(upstream("n1"))));
}

#[test]
fn a_running_standby_is_pointed_at_the_new_leader() {
    let mut scene = Scene::new().standby(HERE);
    scene.0.memory.following = Some(upstream("n2"));
    assert_eq!(only(scene.decide()), Action::Follow(Some(upstream("n1"))));
}

#[test]
fn a_held_walreceiver_is_let_go_when_somebody_leads() {
    let mut scene = Scene::new().standby(HERE);
    scene.0.memory.frozen = Some(ago(1));
    assert_eq!(only(scene.decide()), Action::Follow(Some(upstream("n1"))));
}

#[test]
fn a_standby_that_cannot_connect_and_has_left_the_history_is_stopped_for_a_rewind() {
    let stalled = Scene::new().standby(HERE + 1).not_streaming(3);
    assert_eq!(only(stalled.decide()), Action::Begin(Task::Compare(upstream("n1"))));
    let left = stalled.forked_at(HERE).decide();
    assert_eq!(left.reason, Reason::Diverged(name("n1")));
    assert!(matches!(only(left), Action::Begin(Task::Stop(StopMode::Fast { .. }))));
}

#[test]
fn a_node_that_starts_gives_the_store_a_moment_to_say_that_the_lock_is_its_own() {
    let decision = Scene::new().data(ControlState::InProduction).store_silent_for(3).decide();
    assert!(matches!(nothing_because(decision), Reason::StoreSilent(_)));
}

#[test]
fn whole_data_is_readable_while_the_store_is_silent() {
    let decision = Scene::new().store_silent().decide();
    assert_eq!(only(decision), Action::Start(StartAs::Standby(None), String::new()));
}

#[test]
fn who_is_followed_is_on_disk_before_anything_is_taken_in() {
    // It is on a timeline that the store does not know yet.
    let scene = Scene::new().member("n1", |m| m.timeline = Some(Timeline(2)));
    let mut record = Record::new(scene.0.node_id.clone());
    lineage::remember(&scene.0, &Action::Follow(Some(upstream("n1"))), &mut record);
    assert_eq!(record.followed.map(|followed| followed.leader), Some(name("n1")));
}

#[test]
fn a_server_that_fails_at_each_start_is_not_started_without_a_pause() {
    let start = Action::Start(StartAs::Standby(Some(upstream("n1"))), String::new());
    let after = |n, seconds| Scene::new().same_timeline().failed(Job::Start, n, seconds).decide();
    assert_eq!(only(after(1, 0)), start, "a first crash");
    assert!(matches!(nothing_because(after(2, 0)), Reason::RetryLater(Job::Start, _)));
    assert!(matches!(nothing_because(after(4, 1)), Reason::RetryLater(Job::Start, _)), "each time longer");
    assert_eq!(only(after(2, 60)), start);
}

/// Nothing in the record tells that another leader's timeline was taken in: the leader's own log does.
#[test]
fn what_the_leaders_log_does_not_hold_is_copied_whatever_the_numbers_say() {
    let differs = |scene: Scene| {
        scene.same_timeline().with(|v| {
            v.memory.ancestry.as_mut().unwrap().contains_ours = Containment::Differs;
        })
    };
    let down = differs(Scene::new());
    assert_eq!(only(down.decide()), Action::Begin(Task::Clone(upstream("n1"))), "pg_rewind goes by numbers");
    let running = differs(Scene::new().standby(HERE).not_streaming(3));
    assert_eq!(running.decide().reason, Reason::Diverged(name("n1")));
}

#[test]
fn who_was_followed_is_forgotten_when_what_it_began_is_part_of_a_timeline_begun_here() {
    let forgets = |scene: Scene| {
        let mut record = Record::new(scene.0.node_id.clone());
        record.followed = Some(Followed { leader: name("n2"), known: Timeline(1) });
        lineage::forget(&scene.0, &mut record);
        record.followed.is_none()
    };
    let leads = Scene::new().leads().primary("", &[]);
    assert!(!forgets(leads.clone()), "it goes on where another one was followed");
    assert!(forgets(leads.with(|v| v.volume.promoted = Some(Timeline(1)))));
}

#[test]
fn without_the_store_whoever_is_followed_is_remembered_unless_another_one_left_something_here() {
    let remembers = |scene: Scene| {
        let mut record = Record::new(scene.0.node_id.clone());
        record.followed = Some(Followed { leader: name("n2"), known: Timeline(1) });
        lineage::remember(&scene.0, &Action::Follow(Some(upstream("n1"))), &mut record);
        record.followed.unwrap().leader
    };
    let silent = Scene::new().standby(HERE).store_silent();
    assert_eq!(remembers(silent.clone()), name("n1"));
    let taken = silent.with(|v| v.volume.taken = Some(Followed { leader: name("n2"), known: Timeline(1) }));
    assert_eq!(remembers(taken), name("n2"));
}

/// Its record was written too late for whoever waited for it, and the next leader's timeline has the number: without this a whole
/// copy would be thrown away for it.
#[test]
fn a_promotion_that_nobody_asked_for_is_forgotten_before_another_leader_is_followed() {
    let forgets = |scene: &Scene, action: &Action| {
        let mut record = Record::new(scene.0.node_id.clone());
        record.promoted = Some(Timeline(2));
        lineage::remember(&scene.0, action, &mut record);
        record.promoted.is_none()
    };
    let follow = Action::Follow(Some(upstream("n1")));
    let start = Action::Start(StartAs::Standby(Some(upstream("n1"))), String::new());
    let not_seen = |scene: Scene| {
        scene.with(|v| {
            v.volume.later = Later::NotSeen;
            v.memory.origin = Origin::Started;
        })
    };
    let running = not_seen(Scene::new().standby(HERE));
    assert!(forgets(&running, &follow));
    let down = not_seen(Scene::new().data(ControlState::ShutDownInRecovery));
    assert!(forgets(&down, &start));
    let began = running.clone().with(|v| v.volume.later = Later::MayBe);
    assert!(!forgets(&began, &follow), "its history is there");
    assert!(!forgets(&running.clone().reached(Timeline(2)), &follow), "it was begun");
    assert!(!forgets(&running.clone().failed(Job::Promote, 1, 5), &follow), "it may be under way");
    assert!(forgets(&down.failed(Job::Promote, 1, 5), &start), "a server that starts has not been asked");
    let found = running.with(|v| v.memory.origin = Origin::Found);
    assert!(!forgets(&found, &follow), "the agent before this one may have asked");
}
