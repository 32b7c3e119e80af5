//! Nobody leads: who may.

use std::time::Duration;

use pgherd::dcs::Claim;
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::rules::Pause;
use pgherd::ha::view::{Job, Motion, PollAnswer};
use pgherd::ha::{Position, lineage, publish};
use pgherd::postgres::StartAs;
use pgherd::types::{Revision, SyncMode, Timeline};
use serde_json::json;

use crate::scene::{HERE, NOW, Scene, ago, candidate, name, nothing_because, only, still};

fn race(position: u64, answers: &[(&str, PollAnswer)]) -> Scene {
    Scene::new().no_leader().votes(position, answers)
}

#[test]
fn the_position_is_held_then_the_others_are_asked_then_the_lock_is_taken() {
    let mut scene = Scene::new().no_leader().standby(HERE);
    assert_eq!(only(scene.decide()), Action::Freeze);
    scene.0.memory.frozen = Some(ago(0));
    assert_eq!(only(scene.decide()), Action::Begin(Task::Poll));
    let decision = race(HERE, &[("n2", still(HERE))]).decide();
    assert_eq!(only(decision), Action::Acquire(Claim::Vacant));
}

#[test]
fn answers_from_before_the_position_was_held_or_from_long_ago_count_for_nothing() {
    let mut scene = race(HERE, &[("n2", still(HERE))]);
    scene.0.memory.frozen = Some(NOW + Duration::from_nanos(1));
    assert_eq!(only(scene.decide()), Action::Begin(Task::Poll));
    let mut scene = race(HERE, &[("n2", still(HERE))]);
    scene.0.memory.frozen = Some(ago(60));
    scene.0.memory.poll.as_mut().unwrap().at = ago(30);
    assert_eq!(only(scene.decide()), Action::Begin(Task::Poll));
}

/// Nothing stops a primary in maintenance mode, and it may be deaf when that ends.
#[test]
fn after_maintenance_a_primary_without_its_lock_has_a_ttl_to_hear_of_it() {
    let ended = |seconds| race(HERE, &[("n2", still(HERE))]).with(|v| v.memory.paused = Some(ago(seconds)));
    assert_eq!(nothing_because(ended(9).decide()), Reason::Resumed);
    assert_eq!(only(ended(10).decide()), Action::Acquire(Claim::Vacant));
    let seen = race(HERE, &[]).with(|v| v.rules.pause = Pause::On).seen();
    assert_eq!(seen.0.memory.paused, Some(NOW));
    let own = Scene::new().no_leader().primary("", &[]).with(|v| v.memory.paused = Some(ago(0)));
    assert_eq!(only(own.decide()), Action::Acquire(Claim::Vacant), "it is that primary itself");
}

#[test]
fn a_stopped_node_starts_to_vote() {
    let decision = Scene::new().no_leader().decide();
    assert_eq!(only(decision), Action::Start(StartAs::Standby(None), String::new()));
}

#[test]
fn a_key_that_stood_still_for_a_ttl_is_taken_over_and_not_a_moment_before() {
    let scene = race(HERE, &[("n2", still(HERE))]).leader("n1");
    assert_eq!(scene.clone().observed(9).decide().reason, Reason::Following(name("n1")));
    assert_eq!(only(scene.observed(10).decide()), Action::Acquire(Claim::Expired(Revision(9))));
}

#[test]
fn a_stock_leaders_key_counts_only_by_its_absence() {
    let scene = race(HERE, &[("n2", still(HERE))]).leader("n1");
    // What this node saw of the key a minute ago, and sees now.
    let watched = |before: Scene, now: Scene| {
        let mut watched = now.clone();
        for (scene, at) in [(&before, ago(60)), (&now, NOW)] {
            let snapshot = scene.0.snapshot().unwrap().clone();
            watched.0.memory.saw_store(&name("n0"), &snapshot, at, None);
        }
        watched.decide()
    };
    let stock = scene.clone().snapshot(|s| s.members[0].pgherd_version = None);
    let gone = scene.clone().snapshot(|s| drop(s.members.remove(0)));
    assert_eq!(watched(stock.clone(), stock.clone()).reason, Reason::Following(name("n1")));
    assert_eq!(watched(stock, gone.clone()).reason, Reason::WaitingForLeader, "its own key is gone");
    assert_eq!(watched(gone.clone(), gone.clone()).reason, Reason::WaitingForLeader, "nobody knows");
    assert_eq!(only(watched(scene, gone)), Action::Acquire(Claim::Expired(Revision(9))), "it was ours");
}

#[test]
fn whoever_is_ahead_leads_by_ancestry_first_and_then_by_position() {
    let behind = race(HERE, &[("n2", still(HERE + 1))]).decide();
    assert_eq!(nothing_because(behind), Reason::Behind(name("n2")));
    let older = race(HERE, &[("n2", candidate(2, HERE - 1, Motion::Frozen))]).decide();
    assert_eq!(nothing_because(older), Reason::Behind(name("n2")));
}

#[test]
fn a_primary_that_answers_is_waited_for() {
    let decision = race(HERE, &[("n1", PollAnswer::Primary)]).decide();
    assert_eq!(nothing_because(decision), Reason::PrimaryAlive(name("n1")));
}

#[test]
fn a_node_behind_the_clusters_timeline_or_too_far_behind_is_no_candidate() {
    let outdated = race(HERE, &[]).forked_at(HERE).decide();
    assert_eq!(nothing_because(outdated), Reason::BehindTimeline { mine: Timeline(1), cluster: Timeline(2) });
    let lagging = race(HERE, &[]).optime(HERE + 1_048_577).decide();
    assert_eq!(nothing_because(lagging), Reason::LagTooLarge(1_048_577));
}

/// The history goes by names.
#[test]
fn a_node_that_was_renamed_may_lead_the_timeline_that_it_began() {
    let mut began = race(HERE, &[]).reached(Timeline(2)).begun_by(&["n7"]);
    began.0.volume.promoted = Some(Timeline(2));
    let reason = Reason::AnotherTimeline { timeline: Timeline(2), began: name("n7") };
    assert_eq!(began.decide().reason, reason);
    began.0.volume.promoted_as = Some(name("n7"));
    assert_ne!(began.decide().reason, reason);
}

#[test]
fn a_node_on_another_timeline_of_the_clusters_number_is_no_candidate() {
    let own = race(HERE, &[]).reached(Timeline(2)).followed("n2").begun_by(&["n1"]);
    let reason = Reason::AnotherTimeline { timeline: Timeline(2), began: name("n1") };
    assert_eq!(nothing_because(own.decide()), reason);
    assert_eq!(lineage::position(&own.0), Position::Foreign, "nor does it stand in anybody's way");
    let page = json!({"state": "running", "timeline": 2, "xlog": {"received_location": 80}, "pgherd": {"position": "foreign"}});
    assert_eq!(publish::poll_answer(&page), PollAnswer::Down);
}

#[test]
fn with_a_synchronous_set_the_votes_decide_not_the_lag() {
    let scene = quorum(&[("n2", still(HERE))]).optime(HERE + 1_048_577);
    assert_eq!(only(scene.decide()), Action::Acquire(Claim::Vacant));
}

#[test]
fn a_comparison_with_a_leader_that_is_gone_gives_way_to_the_vote() {
    let scene = Scene::new().no_leader().standby(HERE).doing(Job::Compare);
    assert_eq!(only(scene.decide()), Action::Freeze);
}

#[test]
fn a_copy_of_slots_gives_way_to_the_vote_while_the_server_still_runs() {
    let running = Scene::new().no_leader().standby(HERE).doing(Job::CopySlots);
    assert_eq!(only(running.decide()), Action::Freeze);
    let stopped = Scene::new().no_leader().doing(Job::CopySlots);
    assert_eq!(stopped.decide().reason, Reason::Busy(Job::CopySlots));
}

#[test]
fn after_a_change_the_longer_time_to_live_counts_for_a_while() {
    let mut scene = race(HERE, &[("n2", still(HERE))]).leader("n1").observed(12);
    scene.0.memory.ttl_before = Some((Duration::from_secs(30), ago(15)));
    assert_eq!(scene.decide().reason, Reason::Following(name("n1")));
}

#[test]
fn the_last_leader_does_not_wait_for_a_node_that_is_ahead_and_may_not_lead() {
    let scene = race(HERE, &[("n2", still(HERE + 1))]).sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]);
    assert_eq!(only(scene.decide()), Action::Acquire(Claim::Vacant));
    let alive = race(HERE, &[("n2", PollAnswer::Primary)]).sync_mode(SyncMode::Quorum);
    let alive = alive.sync_key("n0", 0, &[]).decide();
    assert_eq!(nothing_because(alive), Reason::PrimaryAlive(name("n2")));
}

#[test]
fn in_priority_mode_an_asynchronous_standby_that_is_ahead_does_not_stand_in_the_way() {
    let answers = [("n2", still(HERE + 1))];
    let scene = race(HERE, &answers).sync_mode(SyncMode::On).sync_key("n1", 0, &["n0"]);
    assert_eq!(only(scene.decide()), Action::Acquire(Claim::Vacant));
    let both = race(HERE, &answers).sync_mode(SyncMode::On).sync_key("n1", 0, &["n0", "n2"]).decide();
    assert_eq!(nothing_because(both), Reason::Behind(name("n2")));
}

#[test]
fn in_priority_mode_a_set_that_is_changing_needs_its_votes() {
    let changing = |answer: PollAnswer| {
        race(HERE, &[("n2", answer)]).sync_mode(SyncMode::On).sync_key("n1", 1, &["n0", "n2"]).decide()
    };
    assert_eq!(only(changing(still(HERE))), Action::Acquire(Claim::Vacant));
    assert!(matches!(nothing_because(changing(PollAnswer::Down)), Reason::VotesMissing { .. }));
}

#[test]
fn a_nofailover_node_never_leads() {
    assert_eq!(nothing_because(race(HERE, &[]).nofailover().decide()), Reason::NoFailover);
}

fn quorum(answers: &[(&str, PollAnswer)]) -> Scene {
    race(HERE, answers).sync_mode(SyncMode::Quorum).sync_key("n1", 1, &["n0", "n2"])
}

#[test]
fn a_voter_needs_the_votes_of_the_set_in_force() {
    assert_eq!(only(quorum(&[("n2", still(HERE - 5))]).decide()), Action::Acquire(Claim::Vacant));
    let refused = quorum(&[("n2", PollAnswer::Unreachable)]).decide();
    let missing = vec![name("n2")];
    assert_eq!(nothing_because(refused), Reason::VotesMissing { have: 0, need: 1, missing });
}

#[test]
fn a_vote_on_a_position_that_still_moves_does_not_count() {
    let decision = quorum(&[("n2", candidate(1, HERE, Motion::Streaming))]).decide();
    assert!(matches!(nothing_because(decision), Reason::VotesMissing { have: 0, .. }));
}

#[test]
fn the_last_leader_has_every_acknowledged_commit_itself() {
    let scene = race(HERE, &[]).sync_mode(SyncMode::Quorum).sync_key("n0", 1, &["n1", "n2"]);
    assert_eq!(only(scene.decide()), Action::Acquire(Claim::Vacant));
}

#[test]
fn nobody_but_the_last_leader_leads_while_no_standby_confirms_commits() {
    let scene = race(HERE, &[]).sync_mode(SyncMode::Quorum).sync_key("n1", 0, &[]);
    assert_eq!(nothing_because(scene.decide()), Reason::NotSynchronous(vec![name("n1")]));
}

#[test]
fn a_node_outside_the_set_needs_one_vote_more() {
    let outside = |answers: &[(&str, PollAnswer)]| {
        race(HERE, answers).sync_mode(SyncMode::Quorum).sync_key("n1", 1, &["n2", "n3"])
    };
    let both = outside(&[("n2", still(HERE)), ("n3", still(HERE))]);
    assert_eq!(only(both.decide()), Action::Acquire(Claim::Vacant));
    let one = outside(&[("n2", still(HERE))]);
    assert!(matches!(nothing_because(one.decide()), Reason::VotesMissing { have: 1, need: 2, .. }));
}

#[test]
fn in_priority_mode_only_a_synchronous_standby_leads() {
    let scene = race(HERE, &[]).sync_mode(SyncMode::On).sync_key("n1", 0, &["n2"]);
    assert!(matches!(nothing_because(scene.decide()), Reason::NotSynchronous(_)));
    let member = race(HERE, &[]).sync_mode(SyncMode::On).sync_key("n1", 0, &["n0"]);
    assert_eq!(only(member.decide()), Action::Acquire(Claim::Vacant));
}
