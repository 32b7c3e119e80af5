//! No cluster yet: whether one may be made, and how.

use pgherd::dcs::{Claim, Initialize, Precondition, Readiness, Sync};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::view::SurveyAnswer;
use pgherd::peer::Adopted;
use pgherd::postgres::StartAs;
use pgherd::types::{Lsn, Revision, SyncMode, SystemId, Timeline};

use crate::scene::{CLUSTER, Scene, name, nothing_because, only};

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

/// Also with the lock: it may have been taken by a life of this process that had asked.
#[test]
fn with_the_lock_too_no_cluster_is_made_that_nobody_was_asked_about() {
    let unasked = first_start().leads();
    assert_eq!(only(unasked.decide()), Action::Release);
    let mut remembers = first_start().surveyed(&NO_DATA).leads();
    remembers.0.volume.system_id = Some(CLUSTER);
    assert_eq!(only(remembers.decide()), Action::Release);
}

#[test]
fn a_node_that_must_not_lead_makes_no_cluster() {
    let decision = first_start().surveyed(&NO_DATA).nofailover().decide();
    assert_eq!(nothing_because(decision), Reason::NoFailover);
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
fn the_identifier_is_published_before_the_first_write_can_be_accepted_and_the_configuration_with_it() {
    let scene = Scene::new().leads().initialize(Some(Initialize::InProgress)).pending_bootstrap();
    let decision = scene.snapshot(|s| s.config = None).decide();
    let [Action::PutInitialize(CLUSTER), Action::PutConfig, Action::Start(StartAs::Primary, _)] =
        decision.actions.as_slice()
    else {
        panic!("{:?}", decision.actions)
    };
}

/// It may acknowledge commits and stop before the first standby has them.
#[test]
fn nobody_else_can_be_elected_from_before_the_first_write_of_a_new_cluster() {
    let scene = Scene::new().leads().pending_bootstrap();
    let begins = |scene: Scene| scene.decide().actions.first().cloned();
    let closed = Action::PutSync(Sync::new(&name("n0"), 0, &[]), Precondition::Absent);
    assert_eq!(begins(scene.clone().sync_mode(SyncMode::Quorum)), Some(closed));
    assert!(matches!(begins(scene.clone()), Some(Action::Start(..))), "nothing waits for standbys");
    let written = scene.sync_mode(SyncMode::Quorum).sync_key("n0", 1, &["n1"]);
    assert!(!matches!(begins(written), Some(Action::PutSync(..))), "a key that stands tells who has what");
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

/// Data from before pgherd, of a database and up to a position.
fn adopted(id: u64, lsn: u64) -> Adopted {
    Adopted { system_id: SystemId(id), timeline: Timeline(1), lsn: Lsn(lsn) }
}

#[test]
fn no_empty_cluster_is_made_beside_data_from_before() {
    let answers = [NO_DATA[0], ("192.0.2.2", SurveyAnswer::Adopted(adopted(7, 100)))];
    let decision = first_start().surveyed(&answers).decide();
    assert_eq!(nothing_because(decision), Reason::AdoptedElsewhere("192.0.2.2".parse().unwrap()));
}

#[test]
fn the_data_from_before_that_goes_furthest_begins_the_cluster() {
    let with = |mine: u64, theirs: Adopted| {
        let mut scene = first_start().surveyed(&[NO_DATA[0], ("192.0.2.2", SurveyAnswer::Adopted(theirs))]);
        scene.0.volume.adopted = Some(adopted(7, mine));
        scene.decide()
    };
    let there = "192.0.2.2".parse().unwrap();
    assert_eq!(only(with(100, adopted(7, 99))), Action::Acquire(Claim::Vacant));
    assert_eq!(only(with(100, adopted(7, 100))), Action::Acquire(Claim::Vacant));
    assert_eq!(nothing_because(with(100, adopted(7, 101))), Reason::AdoptedElsewhere(there));
    let later = Adopted { timeline: Timeline(2), ..adopted(7, 1) };
    assert_eq!(nothing_because(with(100, later)), Reason::AdoptedElsewhere(there));
    assert_eq!(nothing_because(with(100, adopted(8, 1))), Reason::AdoptedTwo(there));
}
