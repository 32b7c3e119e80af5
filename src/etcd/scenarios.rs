//! One scenario per rule: a View built by hand, and what is decided about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Moment;
use crate::discovery::Peers;
use crate::etcd::ballot::{Refusal, may_promise};
use crate::etcd::decide::decide;
use crate::etcd::decision::{Action, Reason};
use crate::etcd::prune::Held;
use crate::etcd::view::{
    Ballot, ClusterKey, Dir, Ending, Joined, Listing, Local, Member, MemberId, Memory, PrimaryHere, Probe,
    Reply, StoreView, View, Vote,
};
use crate::peer::{DataFacts, NodeStatus, Promise, StoreFacts, StorePart};
use crate::record::Record;
use crate::supervisor::UnitState;
use crate::types::{Epoch, NodeId, NodeName, SystemId};

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn ip(n: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, n])
}

pub(super) fn ips(numbers: &[u8]) -> BTreeSet<IpAddr> {
    numbers.iter().map(|n| ip(*n)).collect()
}

pub(super) fn node_id(n: u8) -> NodeId {
    NodeId(format!("node{n}"))
}

fn url(n: u8) -> String {
    format!("https://{}:2380", ip(n))
}

/// A node that knows of nothing, and has the same list as everybody.
pub(super) fn empty_status(n: u8, listed: &BTreeSet<IpAddr>) -> NodeStatus {
    NodeStatus {
        node_id: node_id(n),
        name: NodeName::from(format!("node-{n}").as_str()),
        app: "app".to_owned(),
        your_address: None,
        store: StoreFacts::default(),
        data: DataFacts::default(),
        listed: listed.clone(),
        list_age_seconds: Some(1),
    }
}

fn member(n: u8, vote: Vote) -> Member {
    Member {
        id: MemberId(u64::from(n)),
        name: node_id(n).0,
        peer_urls: vec![url(n)],
        address: Some(ip(n)),
        vote,
    }
}

fn store_of(now: Moment, voters: &[u8]) -> StoreView {
    StoreView {
        read_at: now,
        cluster_id: 7,
        members: voters.iter().map(|n| member(*n, Vote::Voter)).collect(),
        leader: Some(MemberId(1)),
        cluster: Some(ClusterKey {
            uuid: "uuid".to_owned(),
            epoch: Epoch(1),
            seed: node_id(1),
            promisers: (1..=3).map(node_id).collect(),
            need: 2,
        }),
        ready: Some(Epoch(1)),
    }
}

/// Node 1 of three, with nothing on its volume; everybody answers and agrees.
pub(super) fn fresh() -> View {
    let now = Moment(0) + Duration::from_secs(100_000);
    let listed = ips(&[1, 2, 3]);
    let peers = Peers {
        addrs: listed.clone(),
        fetched_at: Some(now),
        answers: 1,
        failing: None,
        desired_size: Some(3),
    };
    let mut listing = Listing::default();
    listing.observe(&peers, ip(1), &BTreeSet::new());
    let mut view = View {
        now,
        address: ip(1),
        peer_url: url(1),
        prune_after: 5 * MINUTE,
        record: Record::new(node_id(1)),
        data: DataFacts::default(),
        primary: PrimaryHere::No,
        peers,
        listing,
        probes: BTreeMap::new(),
        local: Local::new(UnitState::Down { last: None }, Dir::Empty),
        store: None,
        memory: Memory { probed_at: Some(now), ..Memory::default() },
    };
    for n in [2, 3] {
        hears(&mut view, n, empty_status(n, &listed));
    }
    view
}

/// Node 1, raft leader of a steady store of three, everybody alive.
fn steady() -> View {
    let mut view = fresh();
    view.local.unit = UnitState::Running { pid: 1, since: view.now };
    view.local.dir = Dir::Data;
    view.record.cluster_uuid = Some("uuid".to_owned());
    view.record.epoch = Epoch(1);
    view.store = Some(store_of(view.now, &[1, 2, 3]));
    for n in [2, 3] {
        hears(&mut view, n, part_of(n, StorePart::Voter));
    }
    view
}

fn part_of(n: u8, part: StorePart) -> NodeStatus {
    let mut status = empty_status(n, &ips(&[1, 2, 3]));
    status.store.part = part;
    status.store.quorum = true;
    status.store.epoch = Epoch(1);
    status.store.cluster_uuid = Some("uuid".to_owned());
    status
}

pub(super) fn hears(view: &mut View, n: u8, status: NodeStatus) {
    let probe = Probe { status: Some(status), answered_at: Some(view.now), dark_since: None };
    view.probes.insert(ip(n), probe);
}

fn dark(view: &mut View, n: u8, since: Duration) {
    let probe = Probe { status: None, answered_at: None, dark_since: Some(view.now - since) };
    view.probes.insert(ip(n), probe);
}

/// One more answer of the location API, some seconds later; the living keep answering and the store is read again.
fn next_answer(view: &mut View, after: Duration, listed: &[u8]) {
    view.now = view.now + after;
    view.peers.addrs = ips(listed);
    view.peers.answers += 1;
    view.peers.fetched_at = Some(view.now);
    let members = view.store.iter().flat_map(|s| s.members.iter().filter_map(|m| m.address)).collect();
    view.listing.observe(&view.peers, view.address, &members);
    stay_alive(view);
}

fn stay_alive(view: &mut View) {
    for probe in view.probes.values_mut().filter(|p| p.answered_at.is_some()) {
        probe.answered_at = Some(view.now);
    }
    if let Some(store) = &mut view.store {
        store.read_at = view.now;
    }
}

fn promised(epoch: u64, seed: u8) -> Promise {
    Promise { epoch: Epoch(epoch), seed: node_id(seed), electorate: ips(&[1, 2, 3]) }
}

fn ballot_with(view: &mut View, replies: &[(u8, Reply)]) {
    let promise = promised(1, 1);
    view.record.promised = Some(promise.clone());
    let replies = replies.iter().map(|(n, r)| (ip(*n), r.clone())).collect();
    view.memory.ballot = Some(Ballot { promise, asked_at: view.now, replies });
}

fn yes(n: u8) -> Reply {
    Reply::Promised { facts: Box::new(empty_status(n, &ips(&[1, 2, 3]))), before: None }
}

// The ballot.

#[test]
fn a_fresh_cluster_is_quick_when_nothing_is_in_doubt() {
    let decision = decide(&fresh());
    assert_eq!(decision.action, Action::AskPromises { epoch: Epoch(1), electorate: ips(&[1, 2, 3]) });
}

#[test]
fn only_the_lowest_address_calls_the_ballot() {
    let mut view = fresh();
    view.address = ip(2);
    let other = view.probes.remove(&ip(2)).unwrap();
    view.probes.insert(ip(1), other);
    assert_eq!(decide(&view).reason, Reason::OtherCandidate(ip(1)));
}

#[test]
fn a_silent_listed_node_stops_the_founding() {
    let mut view = fresh();
    dark(&mut view, 3, MINUTE);
    assert_eq!(decide(&view).reason, Reason::Silent(ip(3)));
}

#[test]
fn an_empty_list_founds_nothing() {
    let mut view = fresh();
    view.peers = Peers::default();
    assert_eq!(decide(&view).reason, Reason::NoList);
}

#[test]
fn a_list_of_only_me_founds_nothing_until_it_is_believed() {
    let mut view = fresh();
    view.probes.clear();
    next_answer(&mut view, Duration::from_secs(5), &[1]);
    assert!(matches!(decide(&view).reason, Reason::ListUnsettled { listed: 1, wanted: 3, .. }));
    // And even then one promise is not a majority of three.
    ballot_with(&mut view, &[(1, yes(1))]);
    view.memory.ballot.as_mut().unwrap().promise.electorate = ips(&[1]);
    view.record.promised = view.memory.ballot.as_ref().map(|b| b.promise.clone());
    assert_eq!(decide(&view).reason, Reason::TooFewPromises { have: 1, need: 2 });
}

#[test]
fn a_list_without_me_founds_nothing() {
    let mut view = fresh();
    next_answer(&mut view, Duration::from_secs(5), &[2, 3]);
    let decision = decide(&view);
    assert_eq!((decision.action, decision.reason), (Action::Hold, Reason::NotListed));
}

#[test]
fn a_stale_list_founds_nothing() {
    let mut view = fresh();
    view.now = view.now + 5 * MINUTE;
    stay_alive(&mut view);
    assert!(matches!(decide(&view).reason, Reason::StaleList { .. }));
}

#[test]
fn a_cluster_of_one_needs_nobody() {
    let mut view = fresh();
    view.probes.clear();
    view.peers = Peers { desired_size: Some(1), ..Peers::default() };
    assert_eq!(decide(&view).action, Action::AskPromises { epoch: Epoch(1), electorate: ips(&[1]) });
}

#[test]
fn different_lists_and_one_too_many_wait_for_the_stability_window() {
    let mut view = fresh();
    hears(&mut view, 3, empty_status(3, &ips(&[1, 2])));
    assert!(matches!(decide(&view).reason, Reason::ListUnsettled { .. }));

    let mut view = fresh();
    let four = ips(&[1, 2, 3, 4]);
    for n in [2, 3, 4] {
        hears(&mut view, n, empty_status(n, &four));
    }
    next_answer(&mut view, Duration::from_secs(1), &[1, 2, 3, 4]);
    view.memory.candidate = Some((ip(1), view.now));
    assert!(matches!(decide(&view).reason, Reason::ListUnsettled { listed: 4, .. }));
    next_answer(&mut view, 2 * MINUTE, &[1, 2, 3, 4]);
    assert!(matches!(decide(&view).action, Action::AskPromises { .. }));
}

#[test]
fn everybody_promised_is_won() {
    let mut view = fresh();
    ballot_with(&mut view, &[(1, yes(1)), (2, yes(2)), (3, yes(3))]);
    assert_eq!(decide(&view).action, Action::Found { epoch: Epoch(1) });
}

#[test]
fn a_promise_given_to_a_later_ballot_spoils_the_own_one() {
    let mut view = fresh();
    ballot_with(&mut view, &[(1, yes(1)), (2, yes(2)), (3, yes(3))]);
    view.record.promised = Some(promised(2, 2));
    assert!(!matches!(decide(&view).action, Action::Found { .. }));
}

#[test]
fn somebody_that_only_a_promiser_has_heard_of_must_be_asked_too() {
    let mut view = fresh();
    let wider = Reply::Promised { facts: Box::new(empty_status(3, &ips(&[1, 2, 3, 4]))), before: None };
    ballot_with(&mut view, &[(1, yes(1)), (2, yes(2)), (3, wider)]);
    assert_eq!(decide(&view).reason, Reason::Silent(ip(4)));
}

#[test]
fn a_promiser_with_data_means_a_cold_start_which_is_held() {
    let mut view = fresh();
    let mut facts = empty_status(3, &ips(&[1, 2, 3]));
    facts.data.system_id = Some(SystemId(42));
    ballot_with(
        &mut view,
        &[(1, yes(1)), (2, yes(2)), (3, Reply::Promised { facts: Box::new(facts), before: None })],
    );
    let decision = decide(&view);
    assert_eq!((decision.action, decision.reason), (Action::Hold, Reason::PeerRemembers(ip(3))));
}

#[test]
fn an_old_ballot_of_unknown_outcome_binds() {
    let old = Promise { epoch: Epoch(1), seed: node_id(9), electorate: ips(&[1, 2, 9]) };
    let bound =
        |n| Reply::Promised { facts: Box::new(empty_status(n, &ips(&[1, 2, 3]))), before: Some(old.clone()) };
    let mut view = fresh();
    ballot_with(&mut view, &[(1, yes(1)), (2, bound(2)), (3, yes(3))]);
    let ballot = view.memory.ballot.as_mut().unwrap();
    ballot.promise.epoch = Epoch(2);
    view.record.promised = Some(ballot.promise.clone());
    assert_eq!(decide(&view).reason, Reason::OldBallot { epoch: Epoch(1), missing: ip(9) });
    // Gone for good: delisted and dark for ten minutes.
    dark(&mut view, 9, 11 * MINUTE);
    assert_eq!(decide(&view).action, Action::Found { epoch: Epoch(2) });
}

#[test]
fn promises_are_refused_by_the_rules() {
    let mut view = fresh();
    view.record.promised = Some(promised(5, 2));
    assert_eq!(may_promise(&view, &promised(4, 2)), Err(Refusal::Later(Epoch(5))));
    assert_eq!(may_promise(&view, &promised(5, 3)), Err(Refusal::OtherSeed(Epoch(5))));
    assert_eq!(may_promise(&view, &promised(5, 2)), Ok(()));
    assert_eq!(may_promise(&view, &promised(6, 3)), Ok(()));

    let mut visible = fresh();
    hears(&mut visible, 2, part_of(2, StorePart::Voter));
    assert_eq!(may_promise(&visible, &promised(9, 3)), Err(Refusal::Quorum));

    let mut with_etcd = fresh();
    with_etcd.local.dir = Dir::Data;
    assert_eq!(may_promise(&with_etcd, &promised(9, 3)), Err(Refusal::EtcdData));

    let mut with_data = fresh();
    with_data.data.system_id = Some(SystemId(1));
    assert_eq!(may_promise(&with_data, &promised(9, 3)), Err(Refusal::KnowsCluster));
}

#[test]
fn whoever_remembers_a_cluster_holds_and_says_why() {
    let mut view = fresh();
    view.record.cluster_uuid = Some("uuid".to_owned());
    let decision = decide(&view);
    assert_eq!(decision.action, Action::Hold);
    assert_eq!(decision.to_string(), "held: this volume remembers a cluster whose store is not in sight");

    let mut view = fresh();
    let mut status = empty_status(2, &ips(&[1, 2, 3]));
    status.data.system_id = Some(SystemId(42));
    hears(&mut view, 2, status);
    assert_eq!(decide(&view).reason, Reason::PeerRemembers(ip(2)));
}

// READY.

#[test]
fn ready_needs_promisers_not_just_any_member() {
    let mut view = steady();
    let store = view.store.as_mut().unwrap();
    store.ready = None;
    store.members = vec![member(1, Vote::Voter), member(8, Vote::Voter)];
    view.probes.clear();
    assert_eq!(decide(&view).reason, Reason::NotReady { have: 1, need: 2 });
    view.store.as_mut().unwrap().members.push(member(2, Vote::Voter));
    assert_eq!(decide(&view).action, Action::WriteReady { epoch: Epoch(1) });
}

#[test]
fn a_learner_does_not_open_the_gate() {
    let mut view = steady();
    let store = view.store.as_mut().unwrap();
    store.ready = None;
    store.members = vec![member(1, Vote::Voter), member(2, Vote::Learner)];
    view.probes.clear();
    assert_eq!(decide(&view).reason, Reason::NotReady { have: 1, need: 2 });
}

#[test]
fn a_founder_that_forgot_its_ballot_starts_over() {
    let mut view = steady();
    view.record.cluster_uuid = None;
    view.record.epoch = Epoch(0);
    let store = view.store.as_mut().unwrap();
    (store.cluster, store.ready) = (None, None);
    store.members = vec![member(1, Vote::Voter)];
    assert_eq!((decide(&view).action, decide(&view).reason), (Action::QuarantineData, Reason::Abandoned));
}

#[test]
fn a_volume_under_another_name_is_told_so_and_nothing_is_founded() {
    let mut view = steady();
    let store = view.store.as_mut().unwrap();
    (store.cluster, store.ready) = (None, None);
    assert_eq!((decide(&view).action, decide(&view).reason), (Action::Hold, Reason::OtherName));
    // Nor by the last one who is left.
    view.store.as_mut().unwrap().members = vec![member(1, Vote::Voter)];
    assert_eq!((decide(&view).action, decide(&view).reason), (Action::Hold, Reason::OtherName));
}

#[test]
fn a_founder_with_a_fresh_ballot_registers() {
    let mut view = steady();
    view.record.cluster_uuid = None;
    view.record.epoch = Epoch(0);
    let store = view.store.as_mut().unwrap();
    (store.cluster, store.ready) = (None, None);
    store.members = vec![member(1, Vote::Voter)];
    ballot_with(&mut view, &[(1, yes(1)), (2, yes(2)), (3, yes(3))]);
    let want = Action::Register { epoch: Epoch(1), promisers: ips(&[1, 2, 3]), need: 2 };
    assert_eq!(decide(&view).action, want);
}

// Joining.

fn joiner(voters: &[u8]) -> View {
    let mut view = fresh();
    view.address = ip(3);
    view.peer_url = url(3);
    view.record = Record::new(node_id(3));
    view.probes.clear();
    for n in [1, 2] {
        hears(&mut view, n, part_of(n, StorePart::Voter));
    }
    view.store = Some(store_of(view.now, voters));
    view
}

#[test]
fn a_free_place_is_asked_for_as_a_learner() {
    assert_eq!(decide(&joiner(&[1, 2])).action, Action::AddLearner);
}

#[test]
fn after_the_answer_the_learner_starts_and_is_promoted() {
    let mut view = joiner(&[1, 2]);
    let joined = Joined { member_id: MemberId(33), initial_cluster: "from the answer".to_owned() };
    view.local.joined = Some(joined.clone());
    let mut entry = member(3, Vote::Learner);
    (entry.id, entry.name) = (MemberId(33), String::new());
    view.store.as_mut().unwrap().members.push(entry.clone());
    assert_eq!(decide(&view).action, Action::StartJoined(joined));

    view.local.unit = UnitState::Running { pid: 1, since: view.now };
    view.local.dir = Dir::Data;
    assert_eq!(decide(&view).reason, Reason::Starting);
    entry.name = node_id(3).0;
    *view.store.as_mut().unwrap().members.last_mut().unwrap() = entry;
    assert_eq!(decide(&view).action, Action::Promote(MemberId(33)));
}

#[test]
fn a_learner_that_is_too_late_gives_its_place_back() {
    let mut view = joiner(&[1, 2]);
    view.local.unit = UnitState::Running { pid: 1, since: view.now };
    view.local.dir = Dir::Data;
    view.store.as_mut().unwrap().members.push(member(3, Vote::Learner));
    view.memory.members.insert(MemberId(3), (view.now - 6 * MINUTE, Vote::Learner));
    assert_eq!(decide(&view).action, Action::RemoveLearner(MemberId(3)));
}

#[test]
fn a_wiped_voter_never_starts_under_its_old_number() {
    // The volume was lost: another name, the same address.
    let mut view = joiner(&[1, 2, 3]);
    view.record = Record::new(NodeId("new".to_owned()));
    assert_eq!(decide(&view).action, Action::RemoveStaleSelf(MemberId(3)));
    // Only etcd's directory was lost: the same name.
    let mut view = joiner(&[1, 2, 3]);
    view.record.cluster_uuid = Some("uuid".to_owned());
    view.record.member_id = Some("3".to_owned());
    assert_eq!(decide(&view).action, Action::RemoveStaleSelf(MemberId(3)));
}

#[test]
fn a_crash_between_adding_and_starting_is_repaired() {
    let mut view = joiner(&[1, 2]);
    let mut entry = member(3, Vote::Learner);
    entry.name = String::new();
    view.store.as_mut().unwrap().members.push(entry);
    assert_eq!(decide(&view).action, Action::RemoveStaleSelf(MemberId(3)));
}

#[test]
fn one_learner_at_a_time() {
    let mut view = joiner(&[1]);
    view.store.as_mut().unwrap().members.push(member(2, Vote::Learner));
    assert_eq!(decide(&view).reason, Reason::OtherLearner(ip(2).to_string()));
}

#[test]
fn a_node_too_many_is_a_client() {
    let mut view = joiner(&[1, 2, 4]);
    assert_eq!(decide(&view).action, Action::BeClient);
    view.peers.desired_size = Some(5);
    assert_eq!(decide(&view).action, Action::AddLearner);
}

#[test]
fn nobody_joins_what_is_older_than_its_promise_or_not_its_own() {
    let mut view = joiner(&[1, 2]);
    view.record.promised = Some(promised(2, 2));
    assert!(matches!(decide(&view).reason, Reason::OlderStore { epoch: Epoch(1), bound: Epoch(2) }));
    let mut view = joiner(&[1, 2]);
    view.record.cluster_uuid = Some("another".to_owned());
    let decision = decide(&view);
    assert_eq!(decision.action, Action::Hold);
    assert!(matches!(decision.reason, Reason::TwoClusters { .. }));
}

#[test]
fn an_unregistered_store_is_not_joined() {
    let mut view = joiner(&[1]);
    view.store.as_mut().unwrap().cluster = None;
    assert_eq!(decide(&view).reason, Reason::Unregistered);
}

// Restarting.

fn restarting() -> View {
    let mut view = steady();
    view.local.unit = UnitState::Down { last: None };
    view.store = None;
    view.probes.clear();
    view
}

#[test]
fn with_data_and_nobody_in_sight_etcd_starts_at_once() {
    assert_eq!(decide(&restarting()).action, Action::StartWithData);
}

#[test]
fn a_pruned_member_puts_its_data_aside() {
    let mut view = restarting();
    view.store = Some(store_of(view.now, &[2, 3]));
    assert_eq!((decide(&view).action, decide(&view).reason), (Action::QuarantineData, Reason::Expelled));
    view.store = Some(store_of(view.now, &[1, 2, 3]));
    assert_eq!(decide(&view).action, Action::StartWithData);
}

#[test]
fn data_is_kept_while_no_other_store_is_in_sight() {
    for ending in [Ending::Removed, Ending::DataLost] {
        let mut view = restarting();
        view.local.ending = Some(ending);
        let decision = decide(&view);
        assert_eq!((decision.action, decision.reason), (Action::Hold, Reason::DataLostAlone));
        view.store = Some(store_of(view.now, &[1, 2, 3]));
        assert_eq!(decide(&view).action, Action::QuarantineData);
    }
}

#[test]
fn another_failure_is_tried_again_later() {
    let mut view = restarting();
    view.local.ending = Some(Ending::Other);
    view.local.retry_at = Some(view.now + Duration::from_secs(1));
    assert_eq!(decide(&view).reason, Reason::Backoff);
    view.now = view.now + Duration::from_secs(2);
    assert_eq!(decide(&view).action, Action::StartWithData);
}

#[test]
fn a_later_epoch_of_the_same_cluster_wins() {
    let mut view = restarting();
    view.store = Some(store_of(view.now, &[2, 3]));
    view.store.as_mut().unwrap().cluster.as_mut().unwrap().epoch = Epoch(2);
    assert_eq!(decide(&view).reason, Reason::LaterStore { epoch: Epoch(2) });
}

#[test]
fn the_last_words_of_etcd_are_classified() {
    let of = |line: &str| Ending::from_lines(["noise", line, "noise"].into_iter());
    assert_eq!(of("the member has been permanently removed from the cluster"), Ending::Removed);
    assert_eq!(of("panic: tocommit(5) is out of range [lastIndex(3)]"), Ending::DataLost);
    assert_eq!(of("walpb: crc mismatch"), Ending::DataLost);
    assert_eq!(of("listen tcp 0.0.0.0:2380: bind: address already in use"), Ending::Other);
}

#[test]
fn a_lost_quorum_is_held_after_a_while_and_never_forced() {
    let mut view = steady();
    view.store = None;
    view.local.silent_since = Some(view.now - 6 * MINUTE);
    assert_eq!(decide(&view).action, Action::Hold);
    view.local.silent_since = Some(view.now - MINUTE);
    assert_eq!(decide(&view).action, Action::Wait);
}

#[test]
fn a_new_address_is_told_to_the_store() {
    let mut view = steady();
    view.peer_url = url(11);
    assert_eq!(decide(&view).action, Action::UpdatePeerUrl(MemberId(1)));
}

// Pruning.

/// Ten minutes of answers, one every 30 s.
fn ten_minutes_of(view: &mut View, listed: &[u8]) {
    for _ in 0..20 {
        next_answer(view, Duration::from_secs(30), listed);
    }
}

#[test]
fn a_departed_member_is_removed_once_it_is_dark_and_absent() {
    let mut view = steady();
    dark(&mut view, 3, Duration::ZERO);
    next_answer(&mut view, Duration::from_secs(30), &[1, 2, 4]);
    let decision = decide(&view);
    assert_eq!(decision.action, Action::Rest);
    assert_eq!(decision.held, [(ip(3), Held::TooSoon { left: 5 * MINUTE })]);
    assert_eq!(decision.held[0].1.to_string(), "too soon, 300 s left");
    ten_minutes_of(&mut view, &[1, 2, 4]);
    assert_eq!(decide(&view).action, Action::Remove(MemberId(3)));
}

#[test]
fn only_the_raft_leader_prunes() {
    let mut view = steady();
    dark(&mut view, 3, 10 * MINUTE);
    ten_minutes_of(&mut view, &[1, 2]);
    view.store.as_mut().unwrap().leader = Some(MemberId(2));
    assert_eq!(decide(&view).action, Action::Rest);
}

#[test]
fn no_lie_of_the_location_list_removes_a_live_member() {
    for listed in [&[][..], &[1], &[2, 3], &[1, 2], &[1, 4, 5]] {
        let mut view = steady();
        for _ in 0..240 {
            next_answer(&mut view, Duration::from_secs(30), listed);
            assert_eq!(decide(&view).action, Action::Rest, "with the list {listed:?}");
        }
    }
}

#[test]
fn empty_partial_and_old_lists_remove_nobody_even_if_dark() {
    // Empty: discovery keeps the last list and lets it age.
    let mut view = steady();
    dark(&mut view, 3, Duration::ZERO);
    next_answer(&mut view, Duration::from_secs(1), &[1, 2]);
    view.now = view.now + 30 * MINUTE;
    stay_alive(&mut view);
    assert_eq!(decide(&view).held, [(ip(3), Held::StalePeers)]);
    // Without this node.
    let mut view = steady();
    dark(&mut view, 3, Duration::ZERO);
    ten_minutes_of(&mut view, &[2, 4]);
    assert_eq!(decide(&view).held, [(ip(3), Held::StalePeers)]);
}

#[test]
fn a_member_that_answers_is_kept_though_it_is_delisted() {
    let mut view = steady();
    ten_minutes_of(&mut view, &[1, 2]);
    assert_eq!(decide(&view).held, [(ip(3), Held::Alive)]);
}

#[test]
fn an_open_port_is_alive_enough() {
    let mut view = steady();
    view.probes.insert(ip(3), Probe::default());
    ten_minutes_of(&mut view, &[1, 2]);
    assert_eq!(decide(&view).held, [(ip(3), Held::Alive)]);
}

#[test]
fn two_dark_members_of_three_are_both_kept() {
    let mut view = steady();
    dark(&mut view, 2, Duration::ZERO);
    dark(&mut view, 3, Duration::ZERO);
    ten_minutes_of(&mut view, &[1, 4, 5]);
    let decision = decide(&view);
    assert_eq!(decision.action, Action::Rest);
    assert_eq!(decision.held, [(ip(2), Held::Quorum), (ip(3), Held::Quorum)]);
}

#[test]
fn a_listed_dark_member_makes_room_for_a_joiner_after_ten_minutes() {
    let mut view = steady();
    dark(&mut view, 3, 9 * MINUTE);
    let mut waiting = part_of(4, StorePart::Client);
    waiting.node_id = node_id(4);
    hears(&mut view, 4, waiting);
    next_answer(&mut view, Duration::from_secs(1), &[1, 2, 3, 4]);
    assert!(matches!(decide(&view).held[..], [(_, Held::TooSoon { .. })]));
    next_answer(&mut view, MINUTE, &[1, 2, 3, 4]);
    assert_eq!(decide(&view).action, Action::Remove(MemberId(3)));
    // Nobody waits: an hour.
    view.probes.remove(&ip(4));
    assert_eq!(decide(&view).action, Action::Rest);
    next_answer(&mut view, 51 * MINUTE, &[1, 2, 3]);
    assert_eq!(decide(&view).action, Action::Remove(MemberId(3)));
}

#[test]
fn one_change_at_a_time() {
    let mut view = steady();
    dark(&mut view, 3, Duration::ZERO);
    ten_minutes_of(&mut view, &[1, 2]);
    view.memory.changed_at = Some(view.now - Duration::from_secs(10));
    assert_eq!(decide(&view).held, [(ip(3), Held::OneAtATime)]);
    view.memory.changed_at = None;
    view.store.as_mut().unwrap().members.push(member(4, Vote::Learner));
    assert_eq!(decide(&view).held, [(ip(3), Held::OneAtATime)]);
}

#[test]
fn a_restart_forgets_absence() {
    let mut view = steady();
    dark(&mut view, 3, Duration::ZERO);
    ten_minutes_of(&mut view, &[1, 2]);
    view.listing = Listing::default();
    next_answer(&mut view, Duration::from_secs(1), &[1, 2]);
    assert!(matches!(decide(&view).held[..], [(_, Held::TooSoon { .. })]));
}

#[test]
fn another_node_at_the_address_replaces_the_member() {
    let mut view = steady();
    hears(&mut view, 3, part_of(9, StorePart::None));
    assert_eq!(decide(&view).action, Action::Remove(MemberId(3)));
}

#[test]
fn stuck_learners_are_removed() {
    let mut view = steady();
    let mut unstarted = member(4, Vote::Learner);
    unstarted.name = String::new();
    view.store.as_mut().unwrap().members.push(unstarted);
    view.memory.members.insert(MemberId(4), (view.now - MINUTE, Vote::Learner));
    assert_eq!(decide(&view).action, Action::Rest);
    view.memory.members.insert(MemberId(4), (view.now - 3 * MINUTE, Vote::Learner));
    assert_eq!(decide(&view).action, Action::RemoveLearner(MemberId(4)));
}

// Raft leadership.

#[test]
fn raft_leadership_moves_away_from_the_primary_but_not_all_the_time() {
    let mut view = steady();
    view.primary = PrimaryHere::Yes;
    assert_eq!(decide(&view).action, Action::MoveLeader(MemberId(2)));
    view.memory.moved_at = Some(view.now - Duration::from_secs(10));
    assert_eq!(decide(&view).action, Action::Rest);
    view.memory.moved_at = None;
    view.probes.clear();
    assert_eq!(decide(&view).action, Action::Rest);
}
