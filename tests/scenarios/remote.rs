//! A cluster that follows another one: who leads it, what becomes of a primary in it, and what is never joined.

use pgherd::dcs::{Initialize, MemberState, Role};
use pgherd::ha::publish;
use pgherd::ha::reason::{Action, Decision, Reason, Task};
use pgherd::ha::remote::Remote;
use pgherd::ha::rules::{Mode, Rules, Unled};
use pgherd::ha::view::{Ancestry, Job, Lease, SurveyAnswer, UpstreamWal};
use pgherd::postgres::status::ControlState;
use pgherd::postgres::{Containment, StartAs, StopMode, Upstream};
use pgherd::types::{Host, Lsn, SystemId, Timeline, TimelineHistory};
use serde_json::json;

use crate::scene::{CLUSTER, HERE, NOW, Scene, ago, name, nothing_because, only, still, upstream, versioned};

const OTHER: SystemId = SystemId(7_700_000_000_000_000_002);

/// The server that is followed.
fn elsewhere() -> Upstream {
    Remote { host: Some(Host::from("203.0.113.1")), port: 5432, slot: None }.upstream().unwrap()
}

fn declared() -> Scene {
    Scene::new().config(json!({"standby_cluster": {"host": "203.0.113.1"}}))
}

/// What the other cluster has said: its database, its timeline, and where the one before ended.
fn said(scene: Scene, system_id: SystemId, timeline: u32, fork: u64) -> Scene {
    let history = match timeline {
        1 => String::new(),
        _ => format!("{}\t{}\tx\n", timeline - 1, Lsn(fork)),
    };
    let ancestry = Ancestry {
        leader: elsewhere().name,
        at: ago(1),
        system_id: Some(system_id),
        timeline: Timeline(timeline),
        history: TimelineHistory::parse(&history).unwrap(),
        contains_ours: Containment::Unshown,
    };
    let mut scene = scene;
    scene.0.memory.ancestry = Some(ancestry);
    scene
}

/// The other log has our last checkpoint, which is on this timeline.
fn shown(scene: Scene, timeline: u32) -> Scene {
    compared(scene, Containment::Shown(Timeline(timeline)))
}

fn compared(mut scene: Scene, containment: Containment) -> Scene {
    scene.0.memory.ancestry.as_mut().unwrap().contains_ours = containment;
    scene
}

/// A standby with the lock, that follows nobody yet.
fn leads_unattached() -> Scene {
    let mut scene = declared().leads().standby(HERE);
    scene.0.memory.following = None;
    scene
}

fn follows_it(mut scene: Scene) -> Scene {
    scene.0.memory.following = Some(elsewhere());
    scene
}

fn told(decision: &Decision) -> Option<&Action> {
    decision.actions.iter().find(|action| matches!(action, Action::Follow(_) | Action::Begin(_)))
}

#[test]
fn a_standby_with_the_lock_is_the_standby_leader_and_is_not_promoted() {
    let scene = follows_it(declared().leads().standby(HERE));
    let decision = scene.decide();
    assert_eq!(decision.reason, Reason::LeadingStandby(Some(elsewhere().name)));
    assert_eq!(told(&decision), None, "{:?}", decision.actions);
    assert!(decision.actions.contains(&Action::PutStatus(Lsn(HERE))));
    assert_eq!(publish::role(&scene.0), Role::StandbyLeader);
    assert_eq!(publish::role(&declared().standby(HERE).0), Role::Replica);
}

#[test]
fn the_histories_are_compared_before_anything_is_streamed() {
    let scene = leads_unattached();
    assert_eq!(told(&scene.decide()), Some(&Action::Begin(Task::Compare(elsewhere()))));
    let same = said(leads_unattached(), CLUSTER, 1, 0);
    assert_eq!(told(&same.decide()), Some(&Action::Follow(Some(elsewhere()))));
}

/// Two sources with different identifiers are never joined.
#[test]
fn another_database_is_not_followed() {
    let scene = said(leads_unattached(), OTHER, 1, 0);
    assert_eq!(scene.decide().reason, Reason::RemoteIsAnother(OTHER));
    assert_eq!(told(&scene.decide()), None);
    let attached = follows_it(scene).not_streaming(3);
    assert_eq!(told(&attached.decide()), Some(&Action::Follow(None)));
}

/// By its number the timeline is one that nobody here has begun; the log says that it is another.
#[test]
fn another_timeline_of_the_same_number_is_not_joined() {
    for timeline in [1, 2] {
        let differs = compared(said(leads_unattached(), CLUSTER, timeline, HERE + 1), Containment::Differs);
        assert_eq!(differs.decide().reason, Reason::RemoteDiffers(Timeline(1)));
        assert_eq!(told(&differs.decide()), None);
        let attached = follows_it(differs).not_streaming(3);
        assert_eq!(told(&attached.decide()), Some(&Action::Follow(None)));
    }
    let down = said(declared().leads().data(ControlState::ShutDown), CLUSTER, 2, HERE - 0x1000);
    let alone = Action::Start(StartAs::Standby(None), String::new());
    assert_eq!(only(compared(down, Containment::Differs).decide()), alone, "nothing to rewind by numbers");
}

#[test]
fn a_standby_leader_that_has_left_the_history_is_stopped_and_rewound() {
    let running = said(leads_unattached(), CLUSTER, 2, HERE - 0x1000);
    assert!(matches!(only(running.decide()), Action::Begin(Task::Stop(StopMode::Fast { .. }))));
    let down = said(declared().leads().data(ControlState::ShutDown), CLUSTER, 2, HERE - 0x1000);
    assert_eq!(only(down.decide()), Action::Begin(Task::Rewind(elsewhere())));
    let tried = down.failed(Job::Rewind, 2, 60);
    assert_eq!(only(tried.decide()), Action::Begin(Task::Clone(elsewhere())));
}

/// The stop may outlive what was said before it.
#[test]
fn a_standby_leader_that_was_stopped_to_be_copied_asks_again_and_does_not_start() {
    let mut down = said(declared().leads().data(ControlState::ShutDownInRecovery), CLUSTER, 1, 0);
    down.0.memory.upstream_wal = UpstreamWal::Removed;
    assert_eq!(only(down.decide()), Action::Begin(Task::Clone(elsewhere())));
    down.0.memory.ancestry.as_mut().unwrap().at = ago(31);
    assert_eq!(only(down.decide()), Action::Begin(Task::Compare(elsewhere())));
    let unanswered = down.failed(Job::Compare, 1, 1);
    let unattached = Action::Start(StartAs::Standby(None), String::new());
    assert_eq!(only(unanswered.decide()), unattached, "it can be read meanwhile");
}

/// It was promoted, this node has streamed its new timeline, and now it does not answer.
#[test]
fn what_the_other_cluster_said_before_its_promotion_is_no_reason_to_rewind() {
    let on_the_new_timeline = |scene: Scene, at| {
        let mut scene = said(scene, CLUSTER, 1, 0);
        scene.0.memory.ancestry.as_mut().unwrap().at = ago(at);
        scene.0.local.sql.as_mut().unwrap().timeline = Timeline(2);
        scene
    };
    let standing = || follows_it(declared().leads().standby(HERE)).not_streaming(6);
    let old = on_the_new_timeline(standing(), 7);
    assert_eq!(told(&old.decide()), Some(&Action::Begin(Task::Compare(elsewhere()))));
    // A server that was left behind has come back and answers in the place of the new one.
    let fresh = on_the_new_timeline(standing(), 1);
    assert_eq!(told(&fresh.decide()), None, "its walreceiver goes on trying");
    assert_eq!(fresh.decide().reason, Reason::RemoteBehind(Timeline(1)));
}

/// Both clusters may have been promoted to timelines of one number.
#[test]
fn a_timeline_that_was_begun_here_is_joined_only_when_the_other_log_holds_ours() {
    let began = |scene: Scene| {
        let row = vec![1.into(), HERE.into(), "".into(), "".into(), "n0".into()];
        let mut scene = scene.snapshot(|s| s.history = Some(versioned(pgherd::dcs::History(vec![row]))));
        scene.0.local.sql.as_mut().unwrap().timeline = Timeline(2);
        scene
    };
    let scene = said(began(leads_unattached()), CLUSTER, 2, HERE - 0x1000);
    assert_eq!(scene.decide().reason, Reason::RemoteUnshown(Timeline(2)));
    assert_eq!(told(&scene.decide()), None);
    let shown_before_it = shown(scene.clone(), 1);
    assert_eq!(
        shown_before_it.decide().reason,
        Reason::RemoteUnshown(Timeline(2)),
        "both logs go on from there"
    );
    // The control file that was read before the start is older.
    let shown_on_it = shown(scene, 2);
    assert_eq!(told(&shown_on_it.decide()), Some(&Action::Follow(Some(elsewhere()))));
    let mut promoted = declared().leads().data(ControlState::ShutDown).reached(Timeline(2));
    promoted.0.volume.promoted = Some(Timeline(2));
    let down = said(promoted, CLUSTER, 3, HERE - 0x1000);
    let unattached = Action::Start(StartAs::Standby(None), String::new());
    assert_eq!(only(down.decide()), unattached, "nothing is rewound or copied on suspicion");
    assert_eq!(only(shown(down, 2).decide()), Action::Begin(Task::Rewind(elsewhere())));
}

#[test]
fn a_primary_becomes_a_standby_when_the_cluster_is_to_follow_another_one() {
    let primary = || declared().leads().primary("", &["n1"]);
    assert_eq!(only(primary().decide()), Action::Begin(Task::Compare(elsewhere())));
    let answered = said(primary(), CLUSTER, 1, 0);
    assert!(matches!(only(answered.decide()), Action::Begin(Task::StopAfterCheckpoint(_))));
    let silent = primary().failed(Job::Compare, 1, 1);
    assert!(matches!(only(silent.decide()), Action::Begin(Task::StopAfterCheckpoint(_))));
    let nowhere =
        declared().config(json!({"standby_cluster": {"host": "no/host"}})).leads().primary("", &["n1"]);
    assert_eq!(nowhere.decide().reason, Reason::RemoteUnusable, "no reason to stop a primary");
    let mistyped = said(primary(), OTHER, 1, 0);
    assert_eq!(mistyped.decide().reason, Reason::RemoteIsAnother(OTHER), "no reason to stop a primary");
    assert_eq!(told(&mistyped.decide()), None);
}

/// Whatever it was, and whether the store answers or not.
#[test]
fn nothing_is_started_as_a_primary() {
    let unattached = Action::Start(StartAs::Standby(None), String::new());
    for state in [ControlState::ShutDown, ControlState::InProduction, ControlState::ShutDownInRecovery] {
        assert_eq!(only(declared().leads().data(state).decide()), unattached);
        let mut silent = declared().lease(1).data(state).store_silent();
        silent.0.memory.sync_names = Some(String::new());
        assert_eq!(only(silent.decide()), unattached);
    }
}

#[test]
fn a_new_standby_cluster_is_copied_and_never_made() {
    let new = |scene: Scene| {
        let mut scene = scene.empty().initialize(None).snapshot(|s| s.config = None);
        scene.0.rules.remote = Some(Remote { host: Some(Host::from("203.0.113.1")), port: 5432, slot: None });
        scene.surveyed(&[("192.0.2.1", SurveyAnswer::NoData)])
    };
    let actions = new(Scene::new().leads()).decide().actions;
    assert!(
        matches!(actions.as_slice(), [Action::ClaimInitialize(_), Action::Begin(Task::Clone(_))]),
        "{actions:?}"
    );
    let unsure = new(Scene::new().leads()).surveyed(&[("192.0.2.1", SurveyAnswer::Silent)]);
    assert_eq!(only(unsure.decide()), Action::Release);
    let half = new(Scene::new().no_leader()).incomplete().initialize(Some(Initialize::InProgress));
    assert!(matches!(only(half.decide()), Action::Acquire(_)), "a copy that was cut short is begun anew");
    let mut done = declared().leads().initialize(None).data(ControlState::InProduction);
    done.0.volume.system_id = None;
    let actions = done.decide().actions;
    assert!(
        matches!(actions.as_slice(), [Action::PutInitialize(CLUSTER), Action::Start(StartAs::Standby(_), _)]),
        "{actions:?}"
    );
}

#[test]
fn data_from_before_has_no_place_in_a_standby_cluster() {
    let mut scene = declared().leads().empty().initialize(None);
    scene.0.volume.adopted =
        Some(pgherd::peer::Adopted { system_id: CLUSTER, timeline: Timeline(1), lsn: Lsn(HERE) });
    let decision = scene.surveyed(&[]).decide();
    assert_eq!(
        (decision.actions.as_slice(), decision.reason),
        ([Action::Release].as_slice(), Reason::AdoptedInStandby)
    );
}

/// What the environment says is for a cluster that is to be made.
#[test]
fn a_primary_is_not_stopped_by_the_environments_word() {
    let mut scene = Scene::new().leads().primary("", &[]).snapshot(|s| s.config = None);
    scene.0.rules.remote = Remote::of(&json!({"standby_cluster": {"host": "203.0.113.1"}})).0;
    scene.0.rules.server = None;
    let decision = scene.decide();
    assert_eq!(decision.reason, Reason::Leading);
    assert!(decision.actions.contains(&Action::PutConfig));
    let founding = json!({"ttl": 10, "standby_cluster": {"host": "203.0.113.1"}});
    assert_eq!(publish::founding(&scene.0, &founding), json!({"ttl": 10}));
}

#[test]
fn without_the_section_the_standby_leader_is_promoted() {
    let scene = follows_it(Scene::new().leads().standby(HERE));
    assert!(scene.decide().actions.contains(&Action::Begin(Task::Promote)));
}

#[test]
fn the_others_follow_the_standby_leader() {
    let start = Action::Start(StartAs::Standby(Some(upstream("n1"))), String::new());
    let scene = declared().same_timeline().member("n1", |m| m.role = Role::StandbyLeader);
    assert_eq!(only(scene.decide()), start);
    let copying = scene.member("n1", |m| m.state = MemberState::CreatingReplica);
    assert_eq!(nothing_because(copying.decide()), Reason::WaitingForLeader);
}

#[test]
fn a_standby_leader_keeps_no_set_of_synchronous_standbys() {
    let scene = follows_it(declared().leads().standby(HERE)).sync_key("n0", 1, &["n1"]);
    assert!(scene.decide().actions.contains(&Action::DeleteSync(pgherd::types::Revision(3))));
}

/// Nothing is stopped, and nobody leads next who lacks what this one had.
#[test]
fn a_request_at_a_standby_leader_waits_until_somebody_has_as_much() {
    let request = |scene: Scene| {
        scene.snapshot(|s| {
            let value = pgherd::dcs::Failover {
                leader: Some(name("n0")),
                member: Some(name("n1")),
                scheduled_at: None,
            };
            s.failover = Some(versioned(value));
            s.members.iter_mut().for_each(|m| m.role = Role::Replica);
        })
    };
    let polled = |at: u64, frozen: bool| {
        let mut scene = follows_it(request(declared().leads().votes(HERE, &[("n1", still(at))])));
        scene.0.memory.frozen = frozen.then_some(ago(1));
        scene
    };
    assert_eq!(only(polled(HERE - 8, false).decide()), Action::Freeze);
    assert_eq!(only(polled(HERE, true).decide()), Action::Release);
    let of_a_primary = polled(HERE, true).sync_key("n0", 1, &["n2"]).decide();
    assert!(!of_a_primary.actions.contains(&Action::Release), "the set lets nobody else lead");
    assert!(of_a_primary.actions.contains(&Action::DeleteSync(pgherd::types::Revision(3))));
    assert_eq!(only(polled(HERE - 8, true).decide()), Action::Begin(Task::Poll));
    let mut late = polled(HERE - 8, true);
    late.0.memory.frozen = Some(ago(5));
    let decision = late.decide();
    assert!(matches!(decision.reason, Reason::RequestRefused(_)), "{}", decision.reason);
    let mut resumed = follows_it(declared().leads().standby(HERE));
    resumed.0.memory.frozen = Some(ago(1));
    let resumed = said(resumed, CLUSTER, 1, 0);
    assert_eq!(told(&resumed.decide()), Some(&Action::Follow(Some(elsewhere()))));
}

/// A standby goes on whatever becomes of the lock; a lease that has run out is forgotten.
#[test]
fn a_standby_leader_without_the_store_goes_on_reading() {
    let scene = follows_it(declared().standby(HERE).lease(9).store_silent());
    assert_eq!(only(scene.decide()), Action::Forget);
    let mut after = scene;
    after.0.lease = Lease::None;
    assert!(matches!(nothing_because(after.decide()), Reason::StoreSilent(_)));
}

#[test]
fn the_last_node_of_a_standby_cluster_copies_again_what_it_lost() {
    let alone = |scene: Scene| scene.empty().snapshot(|s| s.members.clear());
    assert!(matches!(only(alone(declared().no_leader()).decide()), Action::Acquire(_)));
    let with_others = declared().no_leader().empty();
    assert_eq!(nothing_because(with_others.decide()), Reason::WaitingForLeader);
    let leads = alone(declared().leads());
    assert_eq!(only(leads.decide()), Action::Begin(Task::Compare(elsewhere())));
    assert_eq!(only(said(leads.clone(), CLUSTER, 1, 0).decide()), Action::Begin(Task::Clone(elsewhere())));
    assert_eq!(only(said(leads, OTHER, 1, 0).decide()), Action::Release);
}

#[test]
fn maintenance_mode_leaves_the_lock_of_a_standby_leader_alone() {
    let config = json!({"pause": true, "standby_cluster": {"host": "203.0.113.1"}});
    let scene = follows_it(Scene::new().config(config).leads().standby(HERE));
    assert!(!scene.decide().actions.contains(&Action::Release));
    assert_eq!(scene.0.now, NOW);
}

#[test]
fn a_section_is_read_with_patronis_rule_and_what_is_odd_is_said() {
    let read = |section| Remote::of(&json!({ "standby_cluster": section }));
    assert_eq!(read(json!(null)), (None, vec![]));
    assert_eq!(read(json!({"primary_slot_name": "x"})), (None, vec![]), "Patroni's rule");
    let (remote, complaints) = read(json!({"host": "a,b", "port": "5433", "primary_slot_name": "dr"}));
    assert_eq!(complaints, [""; 0]);
    let remote = remote.unwrap();
    assert_eq!((remote.port, remote.slot.as_ref().unwrap().0.as_str()), (5433, "dr"));
    assert_eq!(Remote::of(&json!({ "standby_cluster": remote.to_json() })).0, Some(remote));
    let (remote, complaints) = read(json!({"host": "a b' x", "port": 0}));
    assert!(remote.unwrap().host.is_none(), "it still is a standby cluster");
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    // Commands of an administrator's are on machines only.
    let own = json!({ "standby_cluster": {"host": "a", "create_replica_methods": ["wal_g"]} });
    let node = Scene::new().0.rules;
    assert_eq!(node.with_config(&own).1.len(), 1);
    let agent = Rules { mode: Mode::Agent { local: serde_json::Map::new(), unled: Unled::Waits }, ..node };
    assert!(!agent.with_config(&own).1.iter().any(|said| said.contains("create_replica_methods")));
    let (remote, complaints) = read(json!({"restore_command": "cp x y"}));
    assert!(remote.is_some() && complaints.is_empty());
}
