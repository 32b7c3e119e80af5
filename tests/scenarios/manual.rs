//! Another leader is asked for (the `failover` key): what the leader does, and what the race makes of it.

use std::collections::BTreeSet;

use pgherd::dcs::{Claim, Failover, ReplicationState, Shutdown, Status, Versioned};
use pgherd::ha::manual::{HandOver, HandOverEnd, Refusal, Unfit};
use pgherd::ha::reason::{Action, Reason, Task, Wake};
use pgherd::ha::view::{Candidate, Eligibility, Motion, Poll, PollAnswer};
use pgherd::postgres::StartAs;
use pgherd::postgres::status::{ControlState, Kind};
use pgherd::types::{Lsn, NodeName, Revision, SyncMode, Timeline};

use crate::scene::{HERE, NOW, Scene, ago, candidate, name, nothing_because, only, still};

const KEY: Revision = Revision(77);
/// Behind the shutdown checkpoint of a scene's data.
const END: u64 = HERE - 0x80 + 114;

fn asked(scene: Scene, leader: Option<&str>, member: Option<&str>) -> Scene {
    scheduled(scene, leader, member, None)
}

fn scheduled(scene: Scene, leader: Option<&str>, member: Option<&str>, at: Option<&str>) -> Scene {
    let value = Failover {
        leader: leader.map(NodeName::from),
        member: member.map(NodeName::from),
        scheduled_at: at.map(str::to_owned),
    };
    scene.snapshot(|s| s.failover = Some(Versioned { value, revision: KEY }))
}

fn polled(mut scene: Scene, answers: &[(&str, PollAnswer)]) -> Scene {
    let answers = answers.iter().map(|(n, answer)| (name(n), answer.clone())).collect();
    scene.0.memory.poll = Some(Poll { at: NOW, answers });
    scene
}

/// `n0` leads, `n1` and `n2` follow.
fn leader() -> Scene {
    Scene::new().leads().primary("", &["n1", "n2"])
}

fn standbys_answer(scene: Scene) -> Scene {
    let streams = candidate(1, HERE, Motion::Streaming);
    polled(scene, &[("n1", streams.clone()), ("n2", streams)])
}

fn refused(scene: &Scene) -> Refusal {
    let decision = scene.decide();
    assert_eq!(decision.actions, [Action::ClearFailover(KEY)], "{}", decision.reason);
    let Reason::RequestRefused(refusal) = decision.reason else { panic!("{}", decision.reason) };
    refusal
}

fn hands_over_to(scene: &Scene) -> BTreeSet<NodeName> {
    let action = only(scene.decide());
    let Action::Begin(Task::HandOver { to, request }) = action else { panic!("{action:?}") };
    assert_eq!(request, KEY);
    to
}

/// `n0` has stopped for the request.
fn stopped(end: HandOverEnd) -> Scene {
    let mut scene = asked(Scene::new().leads(), Some("n0"), Some("n1"));
    scene.0.memory.handover = Some(HandOver { request: KEY, end });
    scene
}

/// Nobody leads; `n1` did, and has left everything up to here behind.
fn left_behind(position: u64, end: u64) -> Scene {
    let shutdown = Shutdown { leader: name("n1"), timeline: Timeline(1), end: Lsn(end) };
    let value = Status { optime: Some(Lsn(end)), shutdown: Some(shutdown), ..Status::default() };
    let scene = Scene::new().no_leader().standby(position);
    scene.snapshot(|s| s.status = Some(Versioned { value, revision: Revision(5) }))
}

// ---- the leader

#[test]
fn the_others_are_asked_before_anything_is_stopped() {
    assert_eq!(only(asked(leader(), Some("n0"), None).decide()), Action::Begin(Task::Poll));
}

#[test]
fn a_leader_stops_for_the_candidate_or_for_anybody_fit() {
    let named = standbys_answer(asked(leader(), Some("n0"), Some("n1")));
    assert_eq!(hands_over_to(&named), [name("n1")].into());
    let anybody = standbys_answer(asked(leader(), Some("n0"), None));
    assert_eq!(hands_over_to(&anybody), [name("n1"), name("n2")].into());
    let failover = standbys_answer(asked(leader(), None, Some("n2")));
    assert_eq!(hands_over_to(&failover), [name("n2")].into());
}

#[test]
fn a_request_that_does_not_fit_is_cleared_and_nothing_is_stopped() {
    let leaves = |leader_name, member| refused(&standbys_answer(asked(leader(), leader_name, member)));
    assert_eq!(leaves(Some("n2"), None), Refusal::NotTheLeader(name("n2")));
    assert_eq!(leaves(None, Some("n0")), Refusal::AlreadyLeads);
    assert_eq!(leaves(Some("n0"), Some("n9")), Refusal::NobodyFit(vec![]));
}

#[test]
fn nobody_is_stopped_for_a_candidate_that_cannot_take_over() {
    let with = |answer: PollAnswer| {
        let scene = leader().flushed("n1", HERE - 1_048_577);
        let refusal = refused(&polled(asked(scene, Some("n0"), Some("n1")), &[("n1", answer)]));
        let Refusal::NobodyFit(who) = refusal else { panic!("{refusal}") };
        who.first().unwrap().1
    };
    assert_eq!(with(PollAnswer::Unreachable), Unfit::Silent);
    assert_eq!(with(PollAnswer::Down), Unfit::Silent);
    let far = HERE - 1_048_577;
    assert_eq!(with(candidate(1, far, Motion::Streaming)), Unfit::Lag(1_048_577));
    assert_eq!(with(candidate(2, HERE, Motion::Streaming)), Unfit::OtherTimeline);
    let barred = Candidate {
        timeline: Timeline(1),
        position: Lsn(HERE),
        motion: Motion::Streaming,
        eligibility: Eligibility::NoFailover,
        priority: 0,
    };
    assert_eq!(with(PollAnswer::Standby(barred)), Unfit::NoFailover);
}

/// A restart of the leader has cut it off a moment ago: it would miss the end, and the leader would have stopped for nothing.
#[test]
fn a_candidate_that_does_not_stream_yet_is_waited_for_and_not_for_long() {
    let scene = |streaming: &[&str]| {
        let scene = asked(Scene::new().leads().primary("", streaming), Some("n0"), Some("n1"));
        standbys_answer(scene)
    };
    let since = |mut scene: Scene, seconds| {
        scene.0.memory.requested = Some((KEY, ago(seconds)));
        scene
    };
    assert_eq!(only(scene(&["n2"]).decide()), Action::Begin(Task::Poll));
    assert_eq!(only(since(scene(&["n2"]), 9).decide()), Action::Begin(Task::Poll));
    let late = refused(&since(scene(&["n2"]), 10));
    assert_eq!(late, Refusal::NobodyFit(vec![(name("n1"), Unfit::NotStreaming)]));
    assert_eq!(hands_over_to(&since(scene(&["n1"]), 9)), [name("n1")].into());
    let catches_up = scene(&["n1"]).with(|v| match &mut v.local.sql.as_mut().unwrap().kind {
        Kind::Primary { standbys, .. } => standbys[0].state = "catchup".into(),
        Kind::Standby { .. } => panic!("no primary in this scene"),
    });
    assert_eq!(only(catches_up.decide()), Action::Begin(Task::Poll));
    let anybody = asked(Scene::new().leads().primary("", &["n2"]), Some("n0"), None);
    assert_eq!(hands_over_to(&standbys_answer(anybody)), [name("n2")].into());
}

#[test]
fn since_when_a_request_stands_is_remembered_until_there_is_another() {
    let mut scene = asked(leader(), Some("n0"), Some("n1"));
    let look = |scene: &mut Scene, at| {
        scene.0.now = at;
        let mut memory = scene.0.memory.clone();
        memory.saw_instance(&scene.0);
        scene.0.memory = memory;
        scene.0.memory.requested
    };
    assert_eq!(look(&mut scene, ago(3)), Some((KEY, ago(3))));
    assert_eq!(look(&mut scene, ago(1)), Some((KEY, ago(3))));
    let mut cleared = scene.clone().snapshot(|s| s.failover = None);
    assert_eq!(look(&mut cleared, NOW), None);
    let mut another = scene.snapshot(|s| s.failover.as_mut().unwrap().revision = Revision(78));
    assert_eq!(look(&mut another, NOW), Some((Revision(78), NOW)));
}

/// A cascade gets the end from a member that gets it from here.
#[test]
fn a_candidate_may_stream_from_another_member() {
    let scene = |fed_by: &'static str, streaming: &[&str]| {
        let scene = asked(Scene::new().leads().primary("", streaming), Some("n0"), Some("n2"));
        let scene = scene.member("n2", |m| {
            m.tags.insert("replicatefrom".into(), fed_by.into());
            m.replication_state = Some(ReplicationState::Streaming);
        });
        standbys_answer(scene)
    };
    assert_eq!(hands_over_to(&scene("n1", &["n1"])), [name("n2")].into());
    assert_eq!(only(scene("n1", &[]).decide()), Action::Begin(Task::Poll), "nor does that one");
    assert_eq!(only(scene("n2", &[]).decide()), Action::Begin(Task::Poll), "it names itself");
    let away = scene("n1", &["n1"]).member("n2", |m| m.replication_state = None);
    assert_eq!(only(away.decide()), Action::Begin(Task::Poll));
    let nostream = scene("n1", &["n1"]).member("n2", |m| {
        m.tags.insert("nostream".into(), true.into());
    });
    assert_eq!(refused(&nostream), Refusal::NobodyFit(vec![(name("n2"), Unfit::NoStream)]));
}

/// Its own answer is as old as its last look; the primary sees what it has now.
#[test]
fn a_candidate_that_streams_is_judged_by_what_the_primary_sees() {
    let old = candidate(1, HERE - 9_000_000, Motion::Streaming);
    let scene = polled(asked(leader(), Some("n0"), Some("n1")), &[("n1", old)]);
    assert_eq!(hands_over_to(&scene), [name("n1")].into());
}

#[test]
fn in_priority_mode_a_switchover_goes_to_a_synchronous_standby_and_a_failover_to_anybody() {
    let scene = |leads| {
        let scene = leader().sync_mode(SyncMode::On).sync_key("n0", 0, &["n1"]);
        standbys_answer(asked(scene, leads, Some("n2")))
    };
    assert_eq!(refused(&scene(Some("n0"))), Refusal::NobodyFit(vec![(name("n2"), Unfit::NotSynchronous)]));
    assert_eq!(hands_over_to(&scene(None)), [name("n2")].into());
}

#[test]
fn a_scheduled_switchover_waits_for_its_time_and_is_dropped_when_it_has_passed() {
    let at = |text| standbys_answer(scheduled(leader(), Some("n0"), None, Some(text)));
    let early = at("2026-11-20T12:00:01+00:00");
    assert_eq!(early.decide().reason, Reason::Leading);
    assert_eq!(early.0.next_deadline(), Some(NOW + std::time::Duration::from_secs(1)));
    assert!(!hands_over_to(&at("2026-11-20T12:59:58+01:00")).is_empty(), "two seconds late");
    assert_eq!(refused(&at("2026-11-20T11:59:56Z")), Refusal::Stale);
    assert_eq!(refused(&at("tomorrow")), Refusal::Stale);
}

#[test]
fn the_lock_is_given_up_only_when_the_target_has_everything() {
    let decision = stopped(HandOverEnd::Reached(name("n1"))).decide();
    let [Action::PutShutdown(optime, shutdown), Action::Release] = decision.actions.as_slice() else {
        panic!("{:?}", decision.actions)
    };
    assert_eq!((*optime, shutdown.end), (Lsn(HERE - 0x80), Lsn(END)));
    assert_eq!(decision.reason, Reason::HandedOver(name("n1")));
}

#[test]
fn a_leader_whose_target_missed_the_end_starts_again_and_says_so() {
    let missed = stopped(HandOverEnd::Missed("n1 is at 0/1".into()));
    assert!(matches!(only(missed.decide()), Action::Start(StartAs::Primary, _)));
    let mut up = standbys_answer(asked(leader(), Some("n0"), Some("n1")));
    up.0.memory.handover = missed.0.memory.handover;
    assert_eq!(refused(&up), Refusal::Missed("n1 is at 0/1".into()));
}

#[test]
fn a_request_that_was_withdrawn_while_it_was_carried_out_changes_nothing() {
    let scene = stopped(HandOverEnd::Reached(name("n1"))).snapshot(|s| s.failover = None);
    assert!(matches!(only(scene.decide()), Action::Start(StartAs::Primary, _)));
}

#[test]
fn a_winner_clears_the_request_and_what_the_leader_before_left_behind() {
    let scene = asked(left_behind(END, END), Some("n1"), Some("n0")).leads();
    let actions = scene.decide().actions;
    let [Action::PutStatus(position), .., Action::Begin(Task::Promote), Action::ClearFailover(KEY)] =
        actions.as_slice()
    else {
        panic!("{actions:?}")
    };
    assert_eq!(*position, Lsn(END));
    let in_place = left_behind(END, END).leads().data(ControlState::ShutDown);
    let mut in_place = in_place;
    in_place.0.local = Scene::new().0.local;
    assert!(matches!(
        in_place.decide().actions[..],
        [Action::PutStatus(_), Action::Start(StartAs::Primary, _)]
    ));
}

// ---- the others

#[test]
fn a_standby_that_is_meant_looks_all_the_time() {
    let wake = |member| asked(Scene::new().standby(HERE), Some("n1"), member).decide().wake;
    assert!(matches!(wake(Some("n0")), Wake::Soon(_)));
    assert!(matches!(wake(None), Wake::Soon(_)));
    assert_eq!(wake(Some("n2")), Wake::Loop);
}

#[test]
fn whoever_has_everything_that_the_leader_left_behind_needs_no_vote() {
    assert_eq!(only(left_behind(END, END).decide()), Action::Acquire(Claim::Vacant));
    assert_eq!(only(left_behind(END - 1, END).decide()), Action::Freeze, "not quite everything");
    let named = asked(left_behind(END, END), Some("n1"), Some("n0"));
    assert_eq!(only(named.decide()), Action::Acquire(Claim::Vacant));
}

/// It had just been promoted: nobody confirmed its commits yet, so that nobody else could be elected.
#[test]
fn whoever_has_everything_leads_also_after_a_leader_whose_set_was_still_empty() {
    let closed = left_behind(END, END).sync_mode(SyncMode::Quorum).sync_key("n1", 0, &[]);
    assert_eq!(only(closed.decide()), Action::Acquire(Claim::Vacant));
    let less = left_behind(END - 1, END).sync_mode(SyncMode::Quorum).sync_key("n1", 0, &[]);
    assert!(matches!(nothing_because(less.decide()), Reason::NotSynchronous(_)));
}

/// A leader that came after it has closed the `sync` key before it could write.
#[test]
fn what_an_earlier_leader_left_behind_counts_for_nothing_once_another_has_led() {
    let quorum = left_behind(END, END).sync_mode(SyncMode::Quorum);
    let same = quorum.clone().sync_key("n1", 1, &["n0", "n2"]);
    assert_eq!(only(same.decide()), Action::Acquire(Claim::Vacant));
    let later = quorum.sync_key("n2", 1, &["n0", "n1"]);
    assert_eq!(only(later.decide()), Action::Freeze);
    let mut other_timeline = left_behind(END, END);
    other_timeline = other_timeline.snapshot(|s| {
        s.status.as_mut().unwrap().value.shutdown.as_mut().unwrap().timeline = Timeline(2);
    });
    assert_eq!(only(other_timeline.decide()), Action::Freeze);
}

#[test]
fn a_member_that_comes_first_is_not_overtaken() {
    let other_named = asked(left_behind(END, END), Some("n1"), Some("n2"));
    assert_eq!(only(other_named.decide()), Action::Freeze);
    let preferred = left_behind(END, END).snapshot(|s| {
        s.members[1].tags.insert("failover_priority".into(), 2.into());
    });
    assert_eq!(only(preferred.decide()), Action::Freeze);
}

fn race(position: u64, answers: &[(&str, PollAnswer)]) -> Scene {
    Scene::new().no_leader().votes(position, answers)
}

#[test]
fn the_others_leave_the_lead_to_the_candidate_while_it_can_win() {
    let with = |answer| asked(race(HERE, &[("n2", answer)]), Some("n1"), Some("n2")).decide();
    assert_eq!(nothing_because(with(still(HERE))), Reason::LeftTo(name("n2")));
    assert_eq!(only(with(PollAnswer::Unreachable)), Action::Acquire(Claim::Vacant));
    assert_eq!(only(with(still(HERE - 8))), Action::Acquire(Claim::Vacant), "it would wait for this node");
}

#[test]
fn the_old_leader_of_a_switchover_leads_again_only_if_nobody_else_can() {
    let with = |answer| asked(race(HERE, &[("n2", answer)]), Some("n0"), None).decide();
    assert_eq!(nothing_because(with(still(HERE))), Reason::LeftTo(name("n2")));
    assert_eq!(only(with(PollAnswer::Down)), Action::Acquire(Claim::Vacant));
}

/// Both would wait for ever otherwise: the one that was asked to go for one that cannot be elected.
#[test]
fn a_leader_that_was_asked_to_go_leads_again_where_nobody_else_can_be_elected_or_is() {
    let level = || asked(race(HERE, &[("n2", still(HERE))]), Some("n0"), None);
    let only_it = level().sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]);
    assert_eq!(only(only_it.decide()), Action::Acquire(Claim::Vacant));
    let mut voter = level().sync_mode(SyncMode::Quorum).sync_key("n0", 1, &["n2", "n3"]);
    assert_eq!(nothing_because(voter.decide()), Reason::LeftTo(name("n2")));
    voter.0.memory.frozen = Some(ago(4));
    assert_eq!(only(voter.decide()), Action::Acquire(Claim::Vacant), "it lacks a vote, or does not hear");
}

/// The one way to lose what was acknowledged: a person names a member after the leader is gone.
#[test]
fn a_failover_without_a_leader_goes_to_whom_a_person_has_named() {
    let scene = |leader, member| {
        let scene = race(HERE, &[("n2", still(HERE + 64))]).sync_mode(SyncMode::On);
        asked(scene.sync_key("n1", 0, &["n2"]), leader, Some(member)).optime(HERE + 9_000_000)
    };
    assert_eq!(only(scene(None, "n0").decide()), Action::Acquire(Claim::Vacant));
    assert!(matches!(nothing_because(scene(Some("n1"), "n0").decide()), Reason::NotSynchronous(_)));
    let alive = asked(race(HERE, &[("n1", PollAnswer::Primary)]), None, Some("n0"));
    assert_eq!(nothing_because(alive.decide()), Reason::PrimaryAlive(name("n1")));
}

#[test]
fn the_others_leave_a_forced_failover_alone_even_if_they_have_more() {
    let scene = asked(race(HERE, &[("n2", still(HERE - 8))]), None, Some("n2"));
    assert_eq!(nothing_because(scene.decide()), Reason::LeftTo(name("n2")));
}
