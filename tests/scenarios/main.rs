//! One scenario for every rule of `ha::decide`: what is known, what is decided, and why.

#![expect(clippy::unwrap_used, reason = "test helpers")]

mod scene;

use std::time::Duration;

use pgherd::dcs::{Claim, Initialize, Precondition, Readiness};
use pgherd::ha::reason::{Action, Decision, Reason, Task};
use pgherd::ha::view::{Job, Lease, Motion, PollAnswer, SurveyAnswer};
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{StartAs, StopMode};
use pgherd::types::{NodeName, Revision, SyncMode, SystemId, Timeline};

use scene::{CLUSTER, POSITION, Scene, candidate, still, upstream};

const HERE: u64 = POSITION.0;

/// The one action that was decided.
fn only(decision: Decision) -> Action {
    let [action] =
        decision.actions.try_into().unwrap_or_else(|actions| panic!("{actions:?}: {}", decision.reason));
    action
}

fn nothing_because(decision: Decision) -> Reason {
    assert_eq!(decision.actions, [], "{}", decision.reason);
    decision.reason
}

fn name(name: &str) -> NodeName {
    NodeName::from(name)
}

mod fencing {
    use super::*;

    #[test]
    fn a_primary_stops_at_once_when_another_node_leads() {
        let decision = Scene::new().leader("n1").primary("", &[]).lease(1).decide();
        assert_eq!(decision.reason, Reason::AnotherLeads(name("n1")));
        assert_eq!(only(decision), Action::Begin(Task::Stop(StopMode::Immediate)));
    }

    #[test]
    fn a_primary_stops_at_once_when_a_renewal_has_lost() {
        let decision = Scene::new().leader("n0").primary("", &[]).lease_lost().decide();
        assert_eq!(only(decision), Action::Begin(Task::Stop(StopMode::Immediate)));
    }

    #[test]
    fn a_primary_stops_before_its_lease_can_end_while_the_store_is_silent() {
        let scene = Scene::new().primary("", &[]).store_silent();
        assert!(matches!(nothing_because(scene.clone().lease(6).decide()), Reason::StoreSilent(_)));
        let decision = scene.lease(7).decide();
        assert_eq!(decision.reason, Reason::LeaseEnding);
        let patience = Duration::from_secs(1);
        assert_eq!(only(decision), Action::Begin(Task::Stop(StopMode::Fast { patience })));
    }

    #[test]
    fn the_fence_stands_above_any_job_but_a_stop_that_is_under_way() {
        let lost = Scene::new().leader("n1").primary("", &[]).lease_lost();
        let promoting = lost.clone().doing(Job::Promote).decide();
        assert_eq!(only(promoting), Action::Begin(Task::Stop(StopMode::Immediate)));
        assert_eq!(nothing_because(lost.doing(Job::Stop).decide()), Reason::Busy(Job::Stop));
    }

    #[test]
    fn a_primary_whose_key_was_deleted_takes_it_again_if_nobody_can_have_led() {
        let decision = Scene::new().no_leader().primary("", &[]).decide();
        assert_eq!(only(decision), Action::Acquire(Claim::Vacant));
        let outdated = Scene::new().no_leader().primary("", &[]).forked_at(HERE).decide();
        assert_eq!(only(outdated), Action::Begin(Task::Stop(StopMode::Immediate)));
    }

    /// A lease that is over and is not forgotten would make a primary of everything that is started after it.
    #[test]
    fn a_lease_that_is_over_is_forgotten_before_anything_is_started() {
        let lost = Scene::new().leader("n1").lease_lost();
        assert_eq!(only(lost.decide()), Action::Forget);
        let expired = Scene::new().store_silent().lease(8);
        assert_eq!(only(expired.decide()), Action::Forget);
        assert_eq!(only(lost.standby(HERE).decide()), Action::Forget);
    }

    #[test]
    fn a_standby_that_is_starting_is_left_alone_when_another_node_leads() {
        let starting = Scene::new().leader("n1").silent_process();
        assert_eq!(nothing_because(starting.decide()), Reason::Starting);
    }

    #[test]
    fn the_time_to_live_that_a_lease_was_sent_with_counts_not_a_later_one() {
        let mut scene = Scene::new().leader("n0").primary("", &[]).lease(8).store_silent();
        scene.0.rules.timing.ttl = Duration::from_secs(30);
        assert_eq!(scene.decide().reason, Reason::LeaseEnding);
    }

    #[test]
    fn a_primary_without_a_lease_stops_when_the_store_is_not_ready() {
        let scene = Scene::new().no_leader().snapshot(|s| s.readiness = Readiness::NotReady).primary("", &[]);
        assert!(matches!(only(scene.decide()), Action::Begin(Task::Stop(_))));
    }
}

mod stopping {
    use super::*;

    #[test]
    fn a_primary_makes_a_checkpoint_and_stops_before_anything_is_released() {
        let decision = Scene::new().leads().primary("", &["n1"]).stopping().decide();
        assert!(matches!(only(decision), Action::Begin(Task::StopAfterCheckpoint(_))));
    }

    #[test]
    fn the_key_is_released_only_when_everything_is_down() {
        let down = Scene::new().leads().stopping();
        assert_eq!(down.decide().actions, [Action::Release, Action::Finish]);
        let ending = down.silent_process().doing(Job::Stop).decide();
        assert_eq!(nothing_because(ending), Reason::Busy(Job::Stop));
    }

    #[test]
    fn a_standby_has_nothing_to_release() {
        assert_eq!(only(Scene::new().stopping().decide()), Action::Finish);
    }

    #[test]
    fn a_copy_under_way_gives_way_to_a_stop() {
        let decision = Scene::new().empty().doing(Job::Clone).stopping().decide();
        assert_eq!(only(decision), Action::Finish);
    }
}

mod leading {
    use super::*;

    #[test]
    fn a_crash_is_restarted_in_place_with_the_names_that_were_in_force() {
        let mut scene = Scene::new().leads().data(ControlState::InProduction);
        scene.0.memory.sync_names = Some("ANY 1 (n1,n2)".into());
        let decision = scene.decide();
        assert_eq!(decision.reason, Reason::CrashRestart);
        assert_eq!(only(decision), Action::Start(StartAs::Primary, "ANY 1 (n1,n2)".into()));
    }

    #[test]
    fn a_restarted_node_starts_its_primary_with_the_names_that_the_sync_key_implies() {
        let scene = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 1, &["n1", "n2"]);
        assert_eq!(only(scene.decide()), Action::Start(StartAs::Primary, "ANY 1 (n1,n2)".into()));
    }

    #[test]
    fn a_crash_is_restarted_even_while_the_store_is_silent_if_the_lease_is_good() {
        let decision = Scene::new().leads().store_silent().decide();
        assert!(matches!(only(decision), Action::Start(StartAs::Primary, _)), "commits wait for nobody here");
    }

    #[test]
    fn without_the_store_no_primary_is_started_whose_names_are_not_known() {
        let scene = Scene::new().leads().sync_mode(SyncMode::Quorum).store_silent();
        assert!(matches!(nothing_because(scene.decide()), Reason::StoreSilent(_)));
        let mut known = scene;
        known.0.memory.sync_names = Some("ANY 1 (n1)".into());
        assert_eq!(only(known.decide()), Action::Start(StartAs::Primary, "ANY 1 (n1)".into()));
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

    #[test]
    fn a_promotion_is_not_begun_on_the_last_second_of_a_lease() {
        let mut late = Scene::new().leads().standby(HERE);
        let (sent, ttl) = (scene::ago(6) - Duration::from_millis(500), late.0.rules.timing.ttl);
        late.0.lease = Lease::Held { sent, ttl };
        assert_eq!(nothing_because(late.decide()), Reason::LeaseTooShort);
        let short = Scene::new().leader("n0").lease(6).standby(HERE).decide();
        assert!(matches!(short.actions.last(), Some(Action::Begin(Task::Promote))), "one second is enough");
    }

    #[test]
    fn a_leader_keeps_status_slots_and_missing_keys() {
        let mut scene = Scene::new().leads().primary("", &[]).initialize(None).snapshot(|s| s.config = None);
        scene.0.memory.seen_slots.insert(name("n1").slot_name(), scene::ago(60));
        scene.0.memory.seen_slots.insert(name("gone").slot_name(), scene::ago(3600));
        let actions = scene.decide().actions;
        assert!(actions.contains(&Action::PutInitialize(CLUSTER)));
        assert!(actions.contains(&Action::PutConfig));
        assert!(actions.contains(&Action::PutStatus(POSITION)));
        let slots = [name("n1").slot_name()].into();
        assert!(actions.contains(&Action::SetSlots(slots)), "{actions:?}");
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
        scene.0.memory.sync_starved = Some(scene::ago(3));
        let first = |scene: &Scene| scene.decide().actions.first().cloned();
        assert_eq!(first(&scene), Some(Action::PutStatus(POSITION)));
        scene.0.memory.sync_starved = Some(scene::ago(4));
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
}

mod bootstrapping {
    use super::*;

    fn first_start() -> Scene {
        let nobody = Scene::new().no_leader().initialize(None).empty();
        nobody.snapshot(|s| {
            s.members.clear();
            s.config = None;
        })
    }

    const NO_DATA: [(&str, SurveyAnswer); 2] =
        [("192.0.2.1", SurveyAnswer::NoData), ("192.0.2.2", SurveyAnswer::NoData)];

    #[test]
    fn everybody_is_asked_for_data_before_a_cluster_is_made() {
        assert_eq!(only(first_start().decide()), Action::Begin(Task::Survey));
        let decision = first_start().surveyed(&NO_DATA).decide();
        assert_eq!(only(decision), Action::Acquire(Claim::Vacant));
    }

    #[test]
    fn a_silent_listed_node_may_have_data_no_cluster_is_made() {
        let answers = [NO_DATA[0], ("192.0.2.2", SurveyAnswer::Silent)];
        let decision = first_start().surveyed(&answers).decide();
        assert_eq!(nothing_because(decision), Reason::SurveyIncomplete(vec!["192.0.2.2".parse().unwrap()]));
    }

    #[test]
    fn a_node_with_data_leads_no_cluster_is_made_beside_it() {
        let answers = [NO_DATA[0], ("192.0.2.2", SurveyAnswer::Data(CLUSTER))];
        let decision = first_start().surveyed(&answers).decide();
        assert_eq!(nothing_because(decision), Reason::DataElsewhere("192.0.2.2".parse().unwrap()));
    }

    #[test]
    fn a_volume_that_remembers_a_cluster_makes_no_second_one() {
        let mut scene = first_start().surveyed(&NO_DATA);
        scene.0.volume.system_id = Some(CLUSTER);
        assert_eq!(nothing_because(scene.decide()), Reason::DataLost(CLUSTER));
    }

    #[test]
    fn a_known_cluster_is_waited_for_not_made_again() {
        let decision = first_start().initialize(Some(Initialize::Done(CLUSTER))).surveyed(&NO_DATA).decide();
        assert_eq!(nothing_because(decision), Reason::WaitingForLeader);
    }

    #[test]
    fn a_node_whose_data_cannot_be_read_may_have_any() {
        let answers = [NO_DATA[0], ("192.0.2.2", SurveyAnswer::Unreadable)];
        let decision = first_start().surveyed(&answers).decide();
        assert!(matches!(nothing_because(decision), Reason::SurveyIncomplete(_)));
    }

    #[test]
    fn a_maker_whose_acquisition_was_not_answered_goes_on() {
        let decision = first_start().surveyed(&NO_DATA).leader("n0").decide();
        assert_eq!(only(decision), Action::Acquire(Claim::Expired(Revision(9))));
    }

    #[test]
    fn nobody_leads_a_store_that_is_not_ready() {
        let scene = first_start().surveyed(&NO_DATA).snapshot(|s| s.readiness = Readiness::NotReady);
        assert_eq!(nothing_because(scene.decide()), Reason::StoreNotReady);
    }

    #[test]
    fn initdb_runs_with_the_lock_and_after_the_claim() {
        let decision = first_start().surveyed(&NO_DATA).leads().decide();
        let claim = Action::ClaimInitialize(Precondition::Absent);
        assert_eq!(decision.actions, [claim, Action::Begin(Task::Initdb)]);
    }

    #[test]
    fn the_identifier_is_published_before_the_first_write_can_be_accepted() {
        let decision =
            Scene::new().leads().initialize(Some(Initialize::InProgress)).pending_bootstrap().decide();
        let [Action::PutInitialize(CLUSTER), Action::Start(StartAs::Primary, _)] =
            decision.actions.as_slice()
        else {
            panic!("{:?}", decision.actions)
        };
    }

    #[test]
    fn a_new_primary_gets_its_roles_before_anything_else() {
        let decision = Scene::new().leads().primary("", &[]).pending_bootstrap().decide();
        assert_eq!(only(decision), Action::Begin(Task::FinishBootstrap));
    }

    #[test]
    fn a_bootstrap_that_was_interrupted_goes_on_where_its_data_is() {
        let scene = Scene::new().no_leader().initialize(Some(Initialize::InProgress)).pending_bootstrap();
        assert_eq!(only(scene.decide()), Action::Acquire(Claim::Vacant));
    }
}

mod following {
    use super::*;

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
    fn a_new_leader_is_followed_when_it_serves_and_has_made_its_checkpoint() {
        let promoting =
            Scene::new().same_timeline().snapshot(|s| s.members[0].role = pgherd::dcs::Role::Promoted);
        assert_eq!(nothing_because(promoting.decide()), Reason::WaitingForLeader);
        let owed =
            Scene::new().same_timeline().snapshot(|s| s.members[0].checkpoint_after_promote = Some(false));
        assert_eq!(nothing_because(owed.decide()), Reason::AwaitingCheckpoint(name("n1")));
    }

    #[test]
    fn a_standby_whose_wal_is_gone_upstream_is_copied_anew() {
        let mut scene = Scene::new().standby(HERE).same_timeline().not_streaming(60);
        scene.0.memory.upstream_wal = pgherd::ha::view::UpstreamWal::Removed;
        assert_eq!(scene.decide().reason, Reason::WalRemoved(name("n1")));
        let mut down = Scene::new().same_timeline();
        down.0.memory.upstream_wal = pgherd::ha::view::UpstreamWal::Removed;
        assert_eq!(only(down.decide()), Action::Begin(Task::Clone(upstream("n1"))));
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

    #[test]
    fn a_running_standby_is_pointed_at_the_new_leader() {
        let mut scene = Scene::new().standby(HERE);
        scene.0.memory.following = Some(upstream("n2"));
        assert_eq!(only(scene.decide()), Action::Follow(upstream("n1")));
    }

    #[test]
    fn a_held_walreceiver_is_let_go_when_somebody_leads() {
        let mut scene = Scene::new().standby(HERE);
        scene.0.memory.frozen = Some(scene::ago(1));
        assert_eq!(only(scene.decide()), Action::Follow(upstream("n1")));
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
}

mod racing {
    use super::*;

    fn race(position: u64, answers: &[(&str, PollAnswer)]) -> Scene {
        Scene::new().no_leader().votes(position, answers)
    }

    #[test]
    fn the_position_is_held_then_the_others_are_asked_then_the_lock_is_taken() {
        let mut scene = Scene::new().no_leader().standby(HERE);
        assert_eq!(only(scene.decide()), Action::Freeze);
        scene.0.memory.frozen = Some(scene::ago(0));
        assert_eq!(only(scene.decide()), Action::Begin(Task::Poll));
        let decision = race(HERE, &[("n2", still(HERE))]).decide();
        assert_eq!(only(decision), Action::Acquire(Claim::Vacant));
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
        let scene = race(HERE, &[("n2", still(HERE))]).leader("n1").observed(60);
        let stock = scene.snapshot(|s| s.members[0].pgherd_version = None);
        assert_eq!(stock.decide().reason, Reason::Following(name("n1")));
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
        assert_eq!(
            nothing_because(outdated),
            Reason::BehindTimeline { mine: Timeline(1), cluster: Timeline(2) }
        );
        let lagging = race(HERE, &[]).optime(HERE + 1_048_577).decide();
        assert_eq!(nothing_because(lagging), Reason::LagTooLarge(1_048_577));
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
    fn after_a_change_the_longer_time_to_live_counts_for_a_while() {
        let mut scene = race(HERE, &[("n2", still(HERE))]).leader("n1").observed(12);
        scene.0.memory.ttl_before = Some((Duration::from_secs(30), scene::ago(15)));
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
}

/// Every reason has words, and they end without a full stop.
#[test]
fn a_reason_is_a_sentence_for_a_log() {
    let missing = vec![name("n2")];
    let text = Reason::VotesMissing { have: 0, need: 1, missing }.to_string();
    assert_eq!(text, "0 of 1 votes: an acknowledged commit may be on n2 only");
}
