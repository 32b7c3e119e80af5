//! Scenarios of what lies between a primary and its standbys: tags, slots, the synchronous set, cascades, copies.

use std::time::Duration;

use serde_json::json;

use pgherd::dcs::{Claim, Member, MemberState, Role};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::view::{Job, PollAnswer};
use pgherd::postgres::status::Kind;
use pgherd::postgres::{Horizon, Slot, SlotKind, SlotPlan, SlotWal, StartAs, StopMode};
use pgherd::types::{Lsn, SyncMode, Timeline};

use crate::scene::{HERE, POSITION, Scene, ago, frozen_for, name, nothing_because, only, still, upstream};

mod tags {
    use super::*;

    /// A vote that another node of this priority takes part in, with as much as this one.
    fn beside(priority: u32) -> Scene {
        let PollAnswer::Standby(mut other) = still(HERE) else { panic!("a standby") };
        other.priority = priority;
        Scene::new().no_leader().votes(HERE, &[("n2", PollAnswer::Standby(other))])
    }

    #[test]
    fn of_equals_the_one_with_the_higher_priority_leads() {
        let reason = nothing_because(beside(2).decide());
        assert_eq!(reason, Reason::Outranked { name: name("n2"), theirs: 2, mine: 1 });
        assert_eq!(
            reason.to_string(),
            "n2 has equally tolerable WAL position and priority 2, while this node has priority 1"
        );
        assert_eq!(only(beside(1).decide()), Action::Acquire(Claim::Vacant));
        let above = beside(2).tagged(json!({"failover_priority": 3}));
        assert_eq!(only(above.decide()), Action::Acquire(Claim::Vacant));
    }

    /// Who is above may be cut off from the store: a cluster without a leader is worse than one with the second best.
    #[test]
    fn a_priority_is_passed_over_when_nobody_has_taken_the_lock_by_it() {
        let scene = frozen_for(beside(2), 2);
        assert_eq!(only(scene.decide()), Action::Acquire(Claim::Vacant));
    }

    #[test]
    fn more_data_outweighs_any_priority() {
        let behind = Scene::new().no_leader().votes(HERE, &[("n2", still(HERE + 1))]);
        let scene = behind.tagged(json!({"failover_priority": 9}));
        assert_eq!(nothing_because(scene.decide()), Reason::Behind(name("n2")));
    }

    #[test]
    fn with_voters_only_theirs_counts() {
        let quorum = |voters: &[&str]| beside(2).sync_mode(SyncMode::Quorum).sync_key("n1", 1, voters);
        assert!(matches!(quorum(&["n0", "n2"]).decide().reason, Reason::Outranked { .. }));
        assert!(matches!(quorum(&["n0", "n3"]).decide().reason, Reason::VotesMissing { .. }));
    }

    #[test]
    fn a_priority_of_zero_is_nofailover() {
        let scene = Scene::new().no_leader().votes(HERE, &[]).tagged(json!({"failover_priority": 0}));
        assert_eq!(nothing_because(scene.decide()), Reason::NoFailover);
    }
}

mod upstreams {
    use super::*;

    /// It follows `n1` already, and goes on.
    fn stays_with_n1(scene: &Scene) -> bool {
        let decision = scene.decide();
        decision.actions.iter().all(|action| !matches!(action, Action::Follow(_)))
            && decision.reason == Reason::Following(name("n1"))
    }

    fn from_n2() -> Scene {
        Scene::new().standby(HERE).tagged(json!({"replicatefrom": "n2"}))
    }

    #[test]
    fn a_standby_streams_from_the_member_of_its_tag() {
        assert_eq!(only(from_n2().decide()), Action::Follow(Some(upstream("n2"))));
        let start = Scene::new().same_timeline().tagged(json!({"replicatefrom": "n2"})).decide();
        assert_eq!(only(start), Action::Start(StartAs::Standby(Some(upstream("n2"))), String::new()));
    }

    #[test]
    fn a_member_that_is_gone_or_down_feeds_nobody() {
        let gone = from_n2().snapshot(|s| s.members.retain(|m| m.name != name("n2")));
        assert!(stays_with_n1(&gone));
        let down = from_n2().member("n2", |m| m.state = MemberState::Stopped);
        assert!(stays_with_n1(&down));
    }

    #[test]
    fn two_that_name_each_other_are_not_cut_off() {
        let circle = from_n2().member("n2", |m| m.tags.extend([("replicatefrom".into(), "n0".into())]));
        assert!(stays_with_n1(&circle));
        let itself = from_n2().member("n2", |m| m.tags.extend([("replicatefrom".into(), "n2".into())]));
        assert_eq!(only(itself.decide()), Action::Follow(Some(upstream("n2"))), "n2 streams from the leader");
        let own = Scene::new().standby(HERE).tagged(json!({"replicatefrom": "n0"}));
        assert!(stays_with_n1(&own));
    }

    #[test]
    fn a_node_without_streaming_follows_nobody_and_lets_go_of_a_held_position() {
        let scene = Scene::new().standby(HERE).tagged(json!({"nostream": true}));
        assert_eq!(only(scene.decide()), Action::Follow(None));
        let start = Scene::new().same_timeline().tagged(json!({"nostream": true})).decide();
        assert_eq!(only(start), Action::Start(StartAs::Standby(None), String::new()));
    }

    #[test]
    fn a_copy_is_taken_from_a_replica_that_offers_itself_and_after_failures_from_the_leader() {
        let offer = |m: &mut Member| m.tags.extend([("clonefrom".into(), true.into())]);
        let scene = Scene::new().empty().member("n2", offer);
        assert_eq!(only(scene.decide()), Action::Begin(Task::Clone(upstream("n2"))));
        let failed = scene.clone().failed(Job::Clone, 1, 60).decide();
        assert_eq!(only(failed), Action::Begin(Task::Clone(upstream("n1"))));
        let outdated = scene.clone().member("n2", |m| m.timeline = Some(Timeline(7)));
        assert_eq!(only(outdated.decide()), Action::Begin(Task::Clone(upstream("n1"))));
        let down = scene.member("n2", |m| m.state = MemberState::Crashed);
        assert_eq!(only(down.decide()), Action::Begin(Task::Clone(upstream("n1"))));
    }
}

mod slots {
    use super::*;

    fn slot(name: &str, at: u64) -> Slot {
        Slot {
            name: pgherd::types::SlotName(name.into()),
            kind: SlotKind::Physical,
            active: false,
            restart_lsn: Some(Lsn(at)),
            confirmed: None,
            wal: SlotWal::Kept,
            horizon: Horizon::Free,
            synchronised: false,
        }
    }

    fn logical(name: &str) -> Slot {
        let kind = SlotKind::Logical { database: "app".into(), plugin: "pgoutput".into() };
        Slot { kind, confirmed: Some(POSITION), ..slot(name, HERE) }
    }

    fn plan(scene: &Scene) -> SlotPlan {
        let mut plans = scene
            .decide()
            .actions
            .into_iter()
            .filter_map(|action| if let Action::ChangeSlots(plan) = action { Some(plan) } else { None });
        plans.next_back().unwrap_or_default()
    }

    fn dropped(scene: &Scene) -> Vec<String> {
        plan(scene).drop.into_iter().map(|slot| slot.0).collect()
    }

    fn created(scene: &Scene) -> Vec<String> {
        plan(scene).create.into_keys().map(|slot| slot.0).collect()
    }

    fn leader(slots: &[Slot]) -> Scene {
        Scene::new().leads().primary("", &["n1", "n2"]).slots(slots)
    }

    fn follower(slots: &[Slot]) -> Scene {
        Scene::new().standby(HERE).slots(slots)
    }

    #[test]
    fn a_standby_that_does_not_stream_has_slots_for_those_that_stream_from_it() {
        let scene = follower(&[]).member("n2", |m| drop(m.tags.insert("replicatefrom".into(), "n0".into())));
        assert!(created(&scene.not_streaming(60).same_timeline()).contains(&"n2".to_owned()));
    }

    #[test]
    fn every_node_has_a_slot_for_every_other_member() {
        assert_eq!(created(&leader(&[])), ["n1", "n2"]);
        assert_eq!(created(&follower(&[])), ["n1", "n2"]);
        let none = follower(&[]).config(json!({"postgresql": {"use_slots": false}}));
        assert_eq!(plan(&none), SlotPlan::default());
        let only_users = follower(&[]).config(json!({"member_slots_ttl": 0}));
        assert_eq!(plan(&only_users), SlotPlan::default(), "nobody streams from here");
    }

    #[test]
    fn a_copy_follows_what_the_leader_publishes_and_never_beyond_its_own_position() {
        let slots = [slot("n1", HERE - 9), slot("n2", HERE - 9)];
        let scene = follower(&slots).published_slots(&[("n1", HERE - 5), ("n2", HERE + 5)]);
        let advance = [(slots[0].name.clone(), Lsn(HERE - 5)), (slots[1].name.clone(), POSITION)].into();
        assert_eq!(plan(&scene), SlotPlan { advance, ..SlotPlan::default() });
    }

    #[test]
    fn a_slot_that_somebody_streams_through_is_moved_by_its_user_alone() {
        let cascade = |m: &mut Member| m.tags.extend([("replicatefrom".into(), "n0".into())]);
        let scene = follower(&[slot("n1", HERE), slot("n2", HERE - 9)]).member("n2", cascade);
        assert_eq!(plan(&scene.published_slots(&[("n2", HERE)])), SlotPlan::default());
    }

    #[test]
    fn the_leader_moves_the_slot_of_a_member_that_streams_from_another() {
        let scene = leader(&[slot("n1", HERE), slot("n2", HERE - 9)]).member("n2", |m| {
            m.tags.extend([("replicatefrom".into(), "n1".into())]);
            m.receive_lsn = Some(Lsn(HERE - 3));
        });
        let advance = [(slot("n2", 0).name, Lsn(HERE - 3))].into();
        assert_eq!(plan(&scene), SlotPlan { advance, ..SlotPlan::default() });
    }

    #[test]
    fn the_slot_of_an_absent_member_is_kept_for_a_while() {
        let mut scene = leader(&[slot("n1", HERE), slot("n2", HERE), slot("gone", 1)]);
        scene.0.memory.seen_slots.insert(name("gone").slot_name(), ago(1700));
        assert_eq!(plan(&scene), SlotPlan::default());
        scene.0.memory.seen_slots.insert(name("gone").slot_name(), ago(1800));
        scene.0.memory.unused_slots.insert(name("gone").slot_name(), ago(1800));
        assert_eq!(dropped(&scene), ["gone"]);
        let mut scene = follower(&[slot("n1", HERE), slot("n2", HERE), slot("gone", HERE)]);
        assert_eq!(plan(&scene), SlotPlan::default(), "it has just been seen");
        scene.0.memory.unused_slots.insert(name("gone").slot_name(), ago(1800));
        assert_eq!(dropped(&scene), ["gone"]);
        assert_eq!(plan(&scene.retained_slots(&["gone"])), SlotPlan::default());
    }

    #[test]
    fn a_slot_of_nobody_goes_unless_it_is_used_ignored_or_the_cluster_paused() {
        let with = |extra: Slot| {
            let unused = (extra.name.clone(), ago(1800));
            let scene = leader(&[slot("n1", HERE), slot("n2", HERE), extra]);
            scene.with(|v| v.memory.unused_slots.extend([unused]))
        };
        assert_eq!(dropped(&with(slot("x", 1))), ["x"]);
        assert_eq!(dropped(&with(Slot { active: true, ..slot("x", 1) })), [""; 0]);
        assert_eq!(dropped(&with(Slot { synchronised: true, ..logical("x") })), [""; 0]);
        let ignored = with(slot("x", 1)).config(json!({"ignore_slots": [{"name": "x", "type": "physical"}]}));
        assert_eq!(dropped(&ignored), [""; 0]);
        assert_eq!(dropped(&with(slot("x", 1)).config(json!({"pause": true}))), [""; 0]);
        let spoilt = || Slot { wal: SlotWal::Lost, ..slot("n1", HERE) };
        let scene = || leader(&[spoilt(), slot("n2", HERE)]);
        assert_eq!(dropped(&scene()), ["n1"]);
        assert_eq!(plan(&scene().config(json!({"pause": true}))), SlotPlan::default());
    }

    /// Its reader may be away for a moment, and would lose its place.
    #[test]
    fn a_slot_that_nobody_asked_for_goes_when_it_was_unused_for_long() {
        for strange in [logical("cdc"), slot("cdc", 1)] {
            let mut scene = leader(&[slot("n1", HERE), slot("n2", HERE), strange]);
            assert_eq!(dropped(&scene), [""; 0]);
            scene.0.memory.unused_slots.insert(logical("cdc").name, ago(60));
            assert_eq!(dropped(&scene), [""; 0]);
            scene.0.memory.unused_slots.insert(logical("cdc").name, ago(1800));
            assert_eq!(dropped(&scene), ["cdc"]);
        }
        let outdated = follower(&[slot("n1", HERE), slot("n2", HERE), logical("cdc")]);
        assert_eq!(dropped(&outdated), ["cdc"], "a standby's copy is of an earlier life");
        let physical = follower(&[slot("n1", HERE), slot("n2", HERE), slot("backup", 1)]);
        assert_eq!(dropped(&physical), [""; 0]);
        let nostream = |m: &mut Member| m.tags.extend([("nostream".into(), true.into())]);
        let unwanted = leader(&[slot("n1", HERE), slot("n2", HERE)]).member("n2", nostream);
        assert_eq!(dropped(&unwanted), ["n2"], "a member's that it must not have");
    }

    /// Without slots for everybody, too, whoever streams from the leader has one there.
    #[test]
    fn a_member_whose_feeder_is_down_has_its_slot_on_the_leader() {
        let scene = leader(&[])
            .config(json!({"member_slots_ttl": 0}))
            .member("n2", |m| m.tags.extend([("replicatefrom".into(), "n1".into())]));
        assert_eq!(created(&scene), ["n1"]);
        assert_eq!(created(&scene.member("n1", |m| m.state = MemberState::Stopped)), ["n1", "n2"]);
    }

    #[test]
    fn a_slot_without_its_wal_and_a_copy_that_holds_back_vacuum_are_made_anew() {
        let lost = leader(&[Slot { wal: SlotWal::Lost, ..slot("n1", 1) }, slot("n2", HERE)]);
        assert_eq!((dropped(&lost), created(&lost)), (vec!["n1".to_owned()], vec!["n1".to_owned()]));
        let held = follower(&[Slot { horizon: Horizon::Held, ..slot("n1", HERE) }, slot("n2", HERE)]);
        assert_eq!((dropped(&held), created(&held)), (vec!["n1".to_owned()], vec!["n1".to_owned()]));
    }

    #[test]
    fn permanent_slots_are_made_wherever_they_belong() {
        let config = json!({"slots": {
            "backup": {"type": "physical"}, "dr": {"type": "physical", "cluster_type": "standby"},
            "cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}}});
        let have = [slot("n1", HERE), slot("n2", HERE)];
        assert_eq!(created(&follower(&have).config(config.clone())), ["backup"]);
        let actions = leader(&have).config(config.clone()).decide().actions;
        let plans: Vec<_> = actions.iter().filter(|a| matches!(a, Action::ChangeSlots(_))).collect();
        assert_eq!(plans.len(), 2, "a plugin that is missing must not cost a standby its slot");
        let never_leads = follower(&have).config(config).tagged(json!({"nofailover": true}));
        assert_eq!(created(&never_leads), [""; 0]);
        assert_eq!(dropped(&never_leads), ["n1", "n2"]);
    }

    fn with_cdc(slots: &[Slot], at: u64) -> Scene {
        let config = json!({"slots": {"cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}}});
        let have: Vec<_> = [slot("n1", HERE), slot("n2", HERE)].iter().chain(slots).cloned().collect();
        follower(&have).config(config).published_slots(&[("cdc", at)])
    }

    #[test]
    fn a_copy_of_a_logical_slot_follows_its_reader_as_far_as_it_was_replayed_and_in_strides() {
        let at = |back: u64| Slot { confirmed: Some(Lsn(HERE - back)), ..logical("cdc") };
        let moved = |scene: Scene| plan(&scene).follow.into_values().next();
        assert_eq!(moved(with_cdc(&[at(9)], HERE - 5)), Some(("app".into(), Lsn(HERE - 5))));
        assert_eq!(
            moved(with_cdc(&[at(9)], HERE + 5)),
            Some(("app".into(), POSITION)),
            "no further than here"
        );
        assert_eq!(moved(with_cdc(&[at(5)], HERE - 9)), None);
        let far = with_cdc(&[Slot { confirmed: Some(Lsn(1)), ..logical("cdc") }], HERE).decide();
        let stride = Lsn(1 + (64 << 20));
        assert!(far.actions.iter().any(|action| matches!(action,
            Action::ChangeSlots(plan) if plan.follow.values().all(|(_, to)| *to == stride))));
    }

    #[test]
    fn a_copy_that_is_of_no_use_goes_and_one_that_looks_after_itself_stays() {
        let lost = Slot { wal: SlotWal::Lost, ..logical("cdc") };
        assert_eq!(
            dropped(&with_cdc(std::slice::from_ref(&lost), HERE)),
            ["cdc"],
            "the leader's is copied again"
        );
        let kind = SlotKind::Logical { database: "app".into(), plugin: "test_decoding".into() };
        assert_eq!(dropped(&with_cdc(&[Slot { kind, ..logical("cdc") }], HERE)), ["cdc"]);
        let own = Slot { synchronised: true, confirmed: Some(Lsn(HERE - 9)), ..logical("cdc") };
        assert_eq!(plan(&with_cdc(&[own], HERE)), SlotPlan::default());
        let config = json!({"slots": {"cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}}});
        let kept = leader(&[slot("n1", HERE), slot("n2", HERE), lost]).config(config);
        assert_eq!(dropped(&kept), [""; 0], "its reader must know");
    }

    #[test]
    fn a_member_that_does_not_stream_needs_no_slot() {
        let scene =
            leader(&[slot("n1", HERE)]).member("n2", |m| m.tags.extend([("nostream".into(), true.into())]));
        assert_eq!(plan(&scene), SlotPlan::default());
    }
}

mod synchronous_set {
    use super::*;

    fn priority_mode(names: &str, standbys: &[&str]) -> Scene {
        Scene::new().leads().sync_mode(SyncMode::On).sync_key("n0", 0, &[]).primary(names, standbys)
    }

    fn names_set(scene: &Scene) -> Option<String> {
        scene
            .decide()
            .actions
            .into_iter()
            .find_map(|action| if let Action::SetSyncNames(names) = action { Some(names) } else { None })
    }

    fn tag(scene: Scene, member: &str, tag: &str, value: serde_json::Value) -> Scene {
        scene.member(member, |m| m.tags.extend([(tag.to_owned(), value)]))
    }

    #[test]
    fn the_highest_sync_priority_is_chosen_then_whoever_confirms_already() {
        let both = || priority_mode("", &["n1", "n2"]);
        assert_eq!(names_set(&both()).as_deref(), Some("n1"));
        assert_eq!(names_set(&tag(both(), "n2", "sync_priority", 2.into())).as_deref(), Some("n2"));
        let sitting = priority_mode("n2", &["n1", "n2"]).sync_key("n0", 0, &["n2"]);
        assert_eq!(names_set(&sitting), None);
    }

    #[test]
    fn a_member_that_may_not_lead_confirms_only_where_there_are_too_few_others() {
        let never = |scene| tag(scene, "n1", "nofailover", true.into());
        assert_eq!(names_set(&never(priority_mode("", &["n1", "n2"]))).as_deref(), Some("n2"));
        assert_eq!(
            names_set(&never(priority_mode("", &["n1"]))).as_deref(),
            Some("n1"),
            "better than nobody"
        );
        let quorum = |standbys: &[&str]| {
            let scene = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]);
            names_set(&never(scene.primary("", standbys)))
        };
        assert_eq!(quorum(&["n1", "n2"]).as_deref(), Some("ANY 1 (n2)"));
        assert_eq!(quorum(&["n1"]).as_deref(), Some("ANY 1 (n1)"));
    }

    #[test]
    fn a_member_tagged_nosync_confirms_nothing_in_either_mode() {
        let one = tag(priority_mode("", &["n1", "n2"]), "n1", "nosync", true.into());
        assert_eq!(names_set(&one).as_deref(), Some("n2"));
        let quorum = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]);
        let quorum = tag(quorum.primary("", &["n1", "n2"]), "n1", "sync_priority", 0.into());
        assert_eq!(names_set(&quorum).as_deref(), Some("ANY 1 (n2)"));
    }

    #[test]
    fn a_laggard_is_swapped_out() {
        let slow = |scene: Scene| scene.flushed("n1", HERE - 2000);
        let limit = json!({"maximum_lag_on_syncnode": 1000});
        let first = slow(priority_mode("", &["n1", "n2"]));
        assert_eq!(names_set(&first.clone().config(limit.clone())).as_deref(), Some("n2"));
        assert_eq!(
            names_set(&first.flushed("n2", HERE - 2500).config(limit)).as_deref(),
            Some("n1"),
            "by the first one"
        );
        // With `remote_apply` commits wait for what is visible, however much is durable.
        let mut unseen = priority_mode("", &["n1", "n2"]);
        if let Some(Kind::Primary { standbys, .. }) = unseen.0.local.sql.as_mut().map(|sql| &mut sql.kind) {
            standbys[0].confirmed = Some(Lsn(HERE - 2000));
        }
        assert_eq!(
            names_set(&unseen.config(json!({"maximum_lag_on_syncnode": 1000}))).as_deref(),
            Some("n2")
        );
    }

    #[test]
    fn only_members_that_stream_confirm() {
        let quorum = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]);
        let strange = quorum.clone().primary("", &["n1", "stranger"]);
        assert_eq!(names_set(&strange).as_deref(), Some("ANY 1 (n1)"));
        let mut catching_up = quorum.primary("", &["n1", "n2"]);
        if let Some(Kind::Primary { standbys, .. }) =
            catching_up.0.local.sql.as_mut().map(|sql| &mut sql.kind)
        {
            standbys[1].state = "catchup".into();
        }
        assert_eq!(names_set(&catching_up).as_deref(), Some("ANY 1 (n1)"));
    }

    #[test]
    fn a_standby_that_lacks_what_was_before_its_name_is_nobody_to_elect_yet() {
        let voters = |at| {
            let scene = Scene::new().leads().sync_mode(SyncMode::Quorum).sync_key("n0", 0, &[]);
            let scene = scene.primary("ANY 1 (n1,n2)", &["n1", "n2"]).flushed("n1", at).flushed("n2", at);
            let put = |action| if let Action::PutSync(sync, _) = action { sync.sync_standby } else { None };
            scene.decide().actions.into_iter().find_map(put)
        };
        let barrier = Scene::new().primary("", &[]).0.memory.sync_barrier.unwrap().0;
        assert_eq!(voters(barrier - 1), None);
        assert_eq!(voters(barrier).as_deref(), Some("n1,n2"));
    }

    #[test]
    fn a_standby_that_stops_is_let_go_first_where_commits_would_wait_for_it() {
        let needed = || {
            let scene = Scene::new().standby(HERE).sync_mode(SyncMode::Quorum).sync_key("n1", 0, &["n0"]);
            scene.stopping().leaving_for(Duration::from_millis(200))
        };
        assert_eq!(nothing_because(needed().decide()), Reason::AwaitingDismissal);
        let stop =
            |scene: Scene| matches!(only(scene.decide()), Action::Begin(Task::Stop(StopMode::Fast { .. })));
        assert!(stop(needed().sync_key("n1", 0, &[])), "it was let go");
        assert!(stop(needed().sync_key("n1", 1, &["n0", "n2"])), "n2 confirms alone");
        assert!(stop(needed().member("n1", |m| m.state = MemberState::Stopping)), "nobody is left to do it");
        assert!(stop(needed().leaving_for(Duration::from_secs(3))), "it was not let go in time");
    }

    #[test]
    fn commits_that_wait_for_nobody_in_sight_are_a_reason_of_their_own() {
        let mut scene = Scene::new()
            .leads()
            .sync_mode(SyncMode::Quorum)
            .sync_key("n0", 0, &["n1"])
            .primary("ANY 1 (n1)", &[]);
        scene.0.memory.sync_starved = Some(ago(2));
        let reason = scene.decide().reason;
        assert_eq!(reason, Reason::CommitsWait(vec![name("n1")]));
        assert!(reason.to_string().contains("commits wait, since none of n1 streams"), "{reason}");
    }

    #[test]
    fn at_a_promotion_only_those_who_may_confirm_are_waited_for() {
        let scene = Scene::new().leader("n0").lease(0).standby(HERE).sync_mode(SyncMode::Quorum);
        let scene = scene.member("n1", |m| m.role = Role::Replica);
        assert_eq!(names_set(&scene).as_deref(), Some("ANY 1 (n1,n2)"));
        let without = tag(scene, "n2", "nosync", true.into());
        assert_eq!(names_set(&without).as_deref(), Some("ANY 1 (n1)"));
    }
}
