//! Agent mode: in the place of a Patroni process, beside others of Patroni's own.

use pgherd::dcs::{Claim, Initialize, MemberState, Role, Snapshot};
use pgherd::ha::reason::{Action, Reason, Task};
use pgherd::ha::rules::{Mode, Pause, Unled};
use pgherd::ha::view::{Job, Life, Origin, Store};
use pgherd::postgres::StopMode;
use pgherd::postgres::status::ControlState;
use pgherd::types::Revision;
use serde_json::Map;

use crate::scene::{NOW, Scene, ago, nothing_because, only};

fn agent() -> Scene {
    let mut scene = Scene::new();
    scene.0.rules.mode = Mode::Agent { local: Map::new(), unled: Unled::Waits };
    scene
}

fn paused(mut scene: Scene) -> Scene {
    scene.0.rules.pause = Pause::On;
    scene
}

fn initialize(scene: Scene, value: Option<Initialize>) -> Scene {
    scene.snapshot(|s| {
        s.initialize = value.map(|value| pgherd::dcs::Versioned { value, revision: Revision(3) });
    })
}

/// The agent before this one was killed: PostgreSQL has gone on, and its key still stands. In a container neither happens.
#[test]
fn a_primary_whose_key_names_this_node_is_taken_over_with_it() {
    let found = agent().leader("n0").primary("", &[]);
    assert_eq!(only(found.decide()), Action::Acquire(Claim::Expired(Revision(9))));
    let in_a_container = Scene::new().leader("n0").primary("", &[]);
    assert!(matches!(only(in_a_container.decide()), Action::Begin(Task::Stop(_))));
    let gone = agent().leader("n1").primary("", &[]);
    assert!(matches!(only(gone.decide()), Action::Begin(Task::Stop(_))), "somebody else leads by now");
}

/// A Patroni node takes `initialize` when it begins and the lock when it has finished.
#[test]
fn nobody_founds_a_cluster_beside_a_patroni_node_that_founds_one() {
    let beside = initialize(agent().no_leader().empty(), Some(Initialize::InProgress));
    assert_eq!(nothing_because(beside.decide()), Reason::WaitingForLeader);
    let late = initialize(agent().leads().empty(), Some(Initialize::InProgress));
    assert_eq!(only(late.decide()), Action::Release, "it was faster by a moment");
    let our_own = late.pending_bootstrap();
    assert_eq!(only(our_own.decide()), Action::Begin(Task::Initdb), "begun here, and interrupted");
}

/// `no_leader`: a backup brings a replica up while nobody leads.
#[test]
fn a_command_that_needs_no_leader_copies_while_nobody_leads() {
    let copies = |scene: Scene| {
        let local = Map::new();
        scene.with(|v| v.rules.mode = Mode::Agent { local, unled: Unled::Copies })
    };
    assert_eq!(only(copies(Scene::new().no_leader().empty()).decide()), Action::Begin(Task::CopyAlone));
    assert_eq!(only(copies(Scene::new().no_leader().incomplete()).decide()), Action::Begin(Task::CopyAlone));
    let failed = copies(Scene::new().no_leader().empty().failed(Job::Clone, 4, 1)).decide();
    assert_eq!(nothing_because(failed), Reason::RetryLater(Job::Clone, "why".into()));
    let led = only(copies(Scene::new().empty()).decide());
    assert!(matches!(led, Action::Begin(Task::Clone(_))), "somebody leads: {led:?}");
    assert_eq!(nothing_because(agent().no_leader().empty().decide()), Reason::WaitingForLeader);
    let new = initialize(copies(Scene::new().no_leader().empty()), None).snapshot(|s| s.members.clear());
    assert_eq!(only(new.decide()), Action::Acquire(Claim::Vacant), "there is no cluster yet");
}

/// Its process died before it was done, and the key has no lease: without this nobody would ever found the cluster.
#[test]
fn what_a_dead_founder_has_left_stands_in_nobodys_way() {
    for left in [Initialize::InProgress, Initialize::Invalid] {
        let alone = |scene: Scene| initialize(scene.empty(), Some(left)).snapshot(|s| s.members.clear());
        assert_eq!(only(alone(agent().no_leader()).decide()), Action::Acquire(Claim::Vacant), "{left:?}");
        let actions = alone(agent().leads()).decide().actions;
        assert_eq!(actions.last(), Some(&Action::Begin(Task::Initdb)), "{left:?}");
    }
}

/// Each sees the other, and neither can be the founder: it would say so in its member key.
#[test]
fn two_that_wait_for_a_dead_founder_do_not_wait_for_ever() {
    let waiting = |scene: Scene| {
        initialize(scene.empty(), Some(Initialize::InProgress)).snapshot(|s| {
            for member in &mut s.members {
                (member.state, member.role) = (MemberState::Stopped, Role::Uninitialized);
            }
        })
    };
    let watched = |scene: Scene, from, to| {
        let mut scene = waiting(scene);
        let Store::Fresh(snapshot) = &scene.0.store else { unreachable!() };
        for seconds in (to..=from).rev() {
            scene.0.memory.saw_store(&scene.0.me, snapshot, ago(seconds), None);
        }
        scene
    };
    let early = watched(agent().no_leader(), 19, 0);
    assert_eq!(nothing_because(early.decide()), Reason::WaitingForLeader, "its member key may come yet");
    let late = watched(agent().no_leader(), 20, 0);
    assert_eq!(only(late.decide()), Action::Acquire(Claim::Vacant));
    let leads = watched(agent().leads(), 20, 0);
    assert_eq!(
        only(leads.decide()),
        Action::Begin(Task::Initdb),
        "with the lock in hand nothing is different"
    );
    let another = late.clone().with(|v| v.memory.saw_store(&v.me, &taken_anew(), NOW, None));
    assert_eq!(nothing_because(another.decide()), Reason::WaitingForLeader, "somebody has taken it since");
    let busy = late.member("n1", |m| m.state = MemberState::Initializing);
    let Store::Fresh(snapshot) = busy.0.store.clone() else { unreachable!() };
    let busy = busy.with(|v| v.memory.saw_store(&v.me, &snapshot, NOW, None));
    assert_eq!(nothing_because(busy.decide()), Reason::WaitingForLeader, "there it is");
}

/// The same store with the key of another founder.
fn taken_anew() -> Snapshot {
    let scene = initialize(agent().no_leader().empty(), Some(Initialize::InProgress)).snapshot(|s| {
        s.members.clear();
        s.initialize.iter_mut().for_each(|key| key.revision = Revision(4));
    });
    let Store::Fresh(snapshot) = scene.0.store else { unreachable!() };
    *snapshot
}

/// There is no list of nodes: `initialize` decides.
#[test]
fn a_cluster_is_founded_without_asking_anybody() {
    let alone = initialize(agent().no_leader().empty(), None);
    assert_eq!(only(alone.decide()), Action::Acquire(Claim::Vacant));
}

/// Patroni leaves a paused server to its operator, and so does the agent: it goes on alone.
#[test]
fn in_maintenance_mode_the_process_ends_and_nothing_else_does() {
    let leader = paused(agent().leads().primary("", &[]));
    assert_eq!(only(leader.stopping().decide()), Action::Finish);
    let container = paused(Scene::new().leads().primary("", &[]));
    assert!(matches!(only(container.stopping().decide()), Action::Begin(Task::StopAfterCheckpoint(_))));
}

/// In a container nothing but its restart can have stopped it; on a machine somebody may have.
#[test]
fn in_maintenance_mode_a_server_that_is_down_stays_down() {
    let mut down = paused(agent().no_leader().data(ControlState::ShutDown));
    down.0.memory.life = Life::Fresh;
    assert_eq!(nothing_because(down.decide()), Reason::Paused);
}

/// It does not answer, so nobody knows what it is: its control file says that it takes writes.
#[test]
fn a_primary_that_was_found_running_and_does_not_answer_is_fenced_when_another_leads() {
    let found = |state| agent().leader("n1").data(state).silent_process();
    let hung = found(ControlState::InProduction);
    assert_eq!(only(hung.decide()), Action::Begin(Task::Stop(StopMode::Immediate)));
    let standby = found(ControlState::InArchiveRecovery);
    assert_eq!(nothing_because(standby.decide()), Reason::Starting);
    let mut started_here = hung;
    started_here.0.memory.origin = Origin::Started;
    assert_eq!(nothing_because(started_here.decide()), Reason::Starting, "a primary that becomes a standby");
    let mine = agent().leader("n0").data(ControlState::InProduction).silent_process();
    assert_eq!(only(mine.decide()), Action::Acquire(Claim::Expired(Revision(9))));
}
