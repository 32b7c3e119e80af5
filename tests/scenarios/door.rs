//! Clients are let in after a start when what it made visible is safe.

use std::time::Duration;

use pgherd::dcs::Role;
use pgherd::ha::door::{self, Closed};
use pgherd::ha::reason::{Action, Reason, Task, Wake};
use pgherd::ha::rules::{Mode, Unled};
use pgherd::ha::view::{Lease, SyncWrite};
use pgherd::postgres::StartAs;
use pgherd::postgres::status::{ControlState, Kind};
use pgherd::record::Record;
use pgherd::types::{Lsn, NodeId, SyncMode, Timeline};
use serde_json::json;

use crate::scene::{CLUSTER, HERE, POSITION, Scene, ago, name, only};

const NAMES: &str = "ANY 1 (n1,n2)";

/// A primary that has crashed while commits waited for one of two.
fn crashed() -> Scene {
    let scene = Scene::new().leads().data(ControlState::InProduction).sync_mode(SyncMode::Quorum);
    scene.sync_key("n0", 1, &["n1", "n2"]).with(|v| v.memory.sync_names = Some(NAMES.into()))
}

/// The same after its start, with what the standbys have flushed.
fn recovered(flushed: &[(&str, u64)]) -> Scene {
    let names: Vec<_> = flushed.iter().map(|(name, _)| *name).collect();
    let scene = Scene::new().leads().primary(NAMES, &names).sync_mode(SyncMode::Quorum);
    let scene = scene.sync_key("n0", 1, &["n1", "n2"]).with(|v| v.memory.closed = Some(closed(ago(0))));
    flushed.iter().fold(scene, |scene, (name, at)| scene.flushed(name, *at)).seen()
}

fn closed(since: pgherd::clock::Moment) -> Closed {
    Closed { since, end: None }
}

fn opens(scene: &Scene) -> bool {
    scene.decide().actions.first() == Some(&Action::OpenDoor)
}

#[test]
fn a_primary_whose_commits_wait_starts_with_its_door_closed() {
    let start = Action::Start(StartAs::Primary, NAMES.into());
    assert_eq!(crashed().decide().actions, [Action::CloseDoor, start.clone()]);
    let silent = crashed().store_silent();
    assert_eq!(silent.decide().actions, [Action::CloseDoor, start.clone()], "without the store as well");
    let shut_down = crashed().data(ControlState::ShutDown);
    assert_eq!(shut_down.decide().actions.first(), Some(&Action::CloseDoor), "a shutdown lets commits go");
    let only_candidate = crashed().sync_key("n0", 0, &[]);
    assert_eq!(only(only_candidate.decide()), start, "nobody else can be elected");
    let uncertain = crashed().sync_key("n0", 0, &[]).with(|v| v.memory.sync_write = SyncWrite::MayArrive);
    assert_eq!(uncertain.decide().actions.first(), Some(&Action::CloseDoor), "another may be under way");
    let alone = crashed().with(|v| v.memory.sync_names = Some(String::new()));
    assert_eq!(only(alone.decide()), Action::Start(StartAs::Primary, String::new()));
    let agent =
        crashed().with(|v| v.rules.mode = Mode::Agent { local: serde_json::Map::new(), unled: Unled::Waits });
    assert_eq!(only(agent.decide()), start, "whose rules are not ours");
}

#[test]
fn nobody_is_let_in_just_before_a_stop() {
    let open = recovered(&[("n1", HERE)]);
    assert!(opens(&open));
    let lost = open.with(|v| v.lease = Lease::Lost);
    let actions = lost.decide().actions;
    assert!(matches!(actions.as_slice(), [Action::Begin(Task::Stop(_))]), "{actions:?}");
}

#[test]
fn clients_wait_until_so_many_have_confirmed_as_a_commit_needs() {
    let behind = recovered(&[("n1", HERE - 1), ("n2", HERE - 1)]);
    assert_eq!(behind.0.memory.closed.unwrap().end, Some(POSITION), "the end as it was first told");
    let decision = behind.decide();
    assert!(!decision.actions.contains(&Action::OpenDoor));
    assert_eq!(decision.reason, Reason::ClientsWait(vec![name("n1"), name("n2")]));
    assert_eq!(decision.wake, Wake::Soon(Duration::from_millis(5)), "they wait for this loop");
    assert!(opens(&recovered(&[("n1", HERE - 1), ("n2", HERE)])));
    assert!(!opens(&recovered(&[])), "nobody streams");
    assert!(!opens(&recovered(&[("n3", HERE)])), "somebody else's copy elects nobody");
    let later =
        behind.clone().with(|v| v.memory.closed = Some(Closed { since: ago(2), end: Some(POSITION) }));
    assert_eq!(later.decide().wake, Wake::Soon(Duration::from_millis(50)));
    assert!(door::hurries(&decision), "nothing else is done meanwhile");
    let status = |scene: &Scene| scene.decide().actions.iter().any(|a| matches!(a, Action::PutStatus(_)));
    assert!(!status(&behind) && status(&later));
    let names = |scene: &Scene| scene.decide().actions.iter().any(|a| matches!(a, Action::SetSyncNames(_)));
    let one = recovered(&[("n1", HERE - 1)]);
    let later = one.clone().with(|v| v.memory.closed = Some(Closed { since: ago(2), end: Some(POSITION) }));
    assert!(!names(&one) && names(&later), "the other one is about to come back");
    let after_a_long_recovery = Closed { since: ago(60), end: None };
    let first_told = recovered(&[]).with(|v| v.memory.closed = Some(after_a_long_recovery)).seen();
    assert!(door::hurries(&first_told.decide()), "nobody could look before");
    let open = recovered(&[("n1", HERE)]).decide();
    assert_eq!((open.actions.first(), open.wake), (Some(&Action::OpenDoor), Wake::Soon(Duration::ZERO)));
    let written_since = recovered(&[("n1", HERE), ("n2", HERE - 1)]);
    let written_since =
        written_since.with(|v| v.memory.closed = Some(Closed { since: ago(0), end: Some(Lsn(HERE - 1)) }));
    assert!(opens(&written_since));
}

/// Without standbys it is the `sync` key that is closed, and then nobody else can be elected.
#[test]
fn clients_wait_no_longer_than_somebody_else_could_be_elected() {
    let nobody = recovered(&[]);
    assert!(!opens(&nobody));
    assert!(opens(&nobody.clone().sync_key("n0", 0, &[])));
    assert!(!opens(&nobody.clone().sync_key("n1", 0, &[])), "another's key says nothing");
    let let_go = nobody.with(|v| v.local.sql.as_mut().unwrap().sync_names = String::new());
    assert!(opens(&let_go), "commits wait for nobody");
    let strict = recovered(&[]).with(|v| v.rules.strictness = pgherd::ha::rules::Strictness::Strict);
    let closes = strict
        .decide()
        .actions
        .into_iter()
        .any(|a| matches!(a, Action::PutSync(key, _) if key.sync_standby.is_none()));
    assert!(closes, "in strict mode at once");
}

#[test]
fn a_door_that_is_closed_is_opened_for_whatever_is_started_next() {
    let shut = |scene: Scene| scene.with(|v| v.memory.closed = Some(closed(ago(1))));
    let standby = shut(Scene::new().data(ControlState::ShutDownInRecovery).same_timeline());
    let actions = standby.decide().actions;
    assert!(
        matches!(actions.as_slice(), [Action::OpenDoor, Action::Start(StartAs::Standby(_), _)]),
        "{actions:?}"
    );
    assert!(opens(&shut(Scene::new().standby(HERE))));
    assert!(!opens(&Scene::new().standby(HERE)), "it is open");
}

/// What was a primary, and is started as a standby while nobody leads.
fn was_a_primary() -> Scene {
    Scene::new().no_leader().data(ControlState::InProduction).sync_mode(SyncMode::Quorum)
}

#[test]
fn what_was_a_primary_hides_its_commits_when_it_is_started_to_vote() {
    let start = Action::Start(StartAs::Standby(None), String::new());
    let hidden = [Action::CloseDoor, start.clone()];
    assert_eq!(was_a_primary().decide().actions, hidden);
    let shut_down = was_a_primary().data(ControlState::ShutDown);
    assert_eq!(shut_down.decide().actions, hidden, "a shutdown lets commits go");
    let standby = was_a_primary().data(ControlState::InArchiveRecovery);
    assert_eq!(only(standby.decide()), start, "what a standby has shown before it may show again");
    let again = standby.with(|v| v.volume.unconfirmed = true);
    assert_eq!(again.decide().actions, hidden, "it was started like this before");
    let alone = was_a_primary().sync_mode(SyncMode::Off);
    assert_eq!(only(alone.decide()), start, "nothing waits for standbys");
    let unread = alone.store_silent().with(|v| v.rules.server = None);
    assert_eq!(unread.decide().actions, hidden, "the store may say otherwise, and was not read yet");
    let agent = was_a_primary()
        .with(|v| v.rules.mode = Mode::Agent { local: serde_json::Map::new(), unled: Unled::Waits });
    assert_eq!(only(agent.decide()), start, "whose rules are not ours");
    // The environment still speaks of the cluster that was followed when this one was made.
    let declared = was_a_primary().config(json!({"standby_cluster": {"host": "203.0.113.1"}})).store_silent();
    let outdated = declared.with(|v| (v.rules.server, v.volume.system_id) = (None, Some(CLUSTER)));
    assert_eq!(outdated.decide().actions, hidden, "it may have been promoted since");
    let follows = was_a_primary().config(json!({"standby_cluster": {"host": "203.0.113.1"}}));
    assert_eq!(
        follows.decide().actions.first(),
        Some(&Action::CloseDoor),
        "declared a standby cluster since"
    );
    let compared = |scene: Scene| scene.leader("n1").same_timeline().decide().actions;
    let judged = was_a_primary().data(ControlState::ShutDown);
    assert!(!compared(judged.clone()).contains(&Action::CloseDoor), "up to its last record");
    assert_eq!(compared(was_a_primary()).first(), Some(&Action::CloseDoor), "nobody knows its last record");
    // Of what was started since nobody knows where it ends: it was compared up to where it is consistent.
    let again = judged.data(ControlState::ShutDownInRecovery).with(|v| v.volume.unconfirmed = true);
    assert_eq!(compared(again).first(), Some(&Action::CloseDoor));
}

#[test]
fn what_is_hidden_is_remembered_until_it_is_shown() {
    let scene = was_a_primary();
    let mut record = Record::new(NodeId("00000000000000a0".into()));
    door::remember(&scene.0, &Action::CloseDoor, &mut record);
    door::remember(&scene.0, &Action::Start(StartAs::Standby(None), String::new()), &mut record);
    door::remember(&scene.0, &Action::Freeze, &mut record);
    assert!(record.unconfirmed);
    let harmless = scene.clone().data(ControlState::InArchiveRecovery);
    door::remember(&harmless.0, &Action::Start(StartAs::Standby(None), String::new()), &mut record);
    assert!(record.unconfirmed, "another start has confirmed nothing");
    door::remember(&scene.0, &Action::OpenDoor, &mut record);
    assert!(!record.unconfirmed);
}

#[test]
fn readers_wait_until_a_former_primary_streams_the_leaders_timeline() {
    let hidden = |scene: Scene| scene.with(|v| v.memory.closed = Some(closed(ago(0))));
    let follows = || hidden(Scene::new().standby(HERE).sync_mode(SyncMode::Quorum));
    assert!(opens(&follows()));
    let writes = |timeline| {
        follows().snapshot(|s| s.members.iter_mut().for_each(|m| m.timeline = Some(Timeline(timeline))))
    };
    assert!(!opens(&writes(2)), "the end of the timeline before, which it may have gone beyond");
    assert!(!opens(&follows().snapshot(|s| s.leader = None)));
    assert!(!opens(&follows().store_silent()));
    let standby_cluster = || writes(1).config(json!({"standby_cluster": {"host": "203.0.113.1"}}));
    let led_by_a_standby =
        standby_cluster().snapshot(|s| s.members.iter_mut().for_each(|m| m.role = Role::StandbyLeader));
    assert!(opens(&led_by_a_standby));
    let ahead =
        led_by_a_standby.snapshot(|s| s.members.iter_mut().for_each(|m| m.timeline = Some(Timeline(2))));
    assert!(!opens(&ahead), "its leader has gone on to another timeline, which it may not be part of");
    let idle = follows().with(|v| match &mut v.local.sql.as_mut().unwrap().kind {
        Kind::Standby { replication, .. } => *replication = None,
        Kind::Primary { .. } => unreachable!(),
    });
    assert!(!opens(&idle));
    assert_eq!(idle.decide().wake, Wake::Soon(Duration::from_millis(300)), "nothing tells");
    let holds = follows().with(|v| v.memory.frozen = Some(ago(1)));
    assert!(!opens(&holds), "what it last streamed was another leader's");
}
