//! Scenarios of what lies between a primary and its standbys: tags, slots, the synchronous set, cascades, copies.

use serde_json::json;

use pgherd::dcs::{Claim, Member, MemberState};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::view::{Job, PollAnswer};
use pgherd::postgres::StartAs;
use pgherd::types::{SyncMode, Timeline};

use crate::scene::{HERE, Scene, frozen_for, name, nothing_because, only, still, upstream};

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
        assert!(matches!(nothing_because(gone.decide()), Reason::Following(_)), "it follows n1 already");
        let down = from_n2().member("n2", |m| m.state = MemberState::Stopped);
        assert!(matches!(nothing_because(down.decide()), Reason::Following(_)));
    }

    #[test]
    fn two_that_name_each_other_are_not_cut_off() {
        let circle = from_n2().member("n2", |m| m.tags.extend([("replicatefrom".into(), "n0".into())]));
        assert!(matches!(nothing_because(circle.decide()), Reason::Following(_)));
        let own = Scene::new().standby(HERE).tagged(json!({"replicatefrom": "n0"}));
        assert!(matches!(nothing_because(own.decide()), Reason::Following(_)));
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
