//! One scenario for every rule of `proxy::decide`: who leads and who reads, what HAProxy was told, what it must be told.

use std::collections::BTreeMap;

use pgherd::proxy::decide::{Order, decide};
use pgherd::proxy::view::{Door, Knowledge, Pool, Replica, Server, Stay, Target, Told, View, Weight};
use pgherd::types::NodeName;

const MAX_LAG: u64 = 16 << 20;

fn target(name: &str) -> Target {
    let last = name.trim_start_matches('n').parse::<u8>().unwrap();
    let address = ([10, 0, 0, last], 5432).into();
    Target { name: NodeName::from(name), address, api: 8008, knowledge: Knowledge::Assumed }
}

fn replica(name: &str, lag: u64) -> Replica {
    Replica { target: target(name), lag: Some(lag), stay: Stay::Stays }
}

fn server(pool: Pool, name: &str) -> Server {
    Server { pool, name: NodeName::from(name) }
}

fn primary(name: &str) -> Server {
    server(Pool::Primary, name)
}

fn reader(name: &str) -> Server {
    server(Pool::Replicas, name)
}

/// What is wanted of the proxy, with nothing told yet.
fn view(leader: Option<&str>, replicas: &[Replica]) -> View {
    View { primary: leader.map(target), replicas: replicas.to_vec(), max_lag: MAX_LAG, told: BTreeMap::new() }
}

/// The same, after everything about this cluster has been told.
fn told(leader: Option<&str>, replicas: &[Replica]) -> BTreeMap<Server, Told> {
    obeyed(view(leader, replicas))
}

fn obeyed(view: View) -> BTreeMap<Server, Told> {
    let orders = decide(&view);
    let mut told = view.told;
    for order in orders {
        order.note(&mut told);
    }
    told
}

#[test]
fn a_replica_that_is_about_to_stop_gets_no_new_readers() {
    let mut view = view(Some("n1"), &[Replica { stay: Stay::Leaves, ..replica("n2", 0) }, replica("n3", 0)]);
    view.told = told(Some("n1"), &[replica("n2", 0), replica("n3", 0)]);
    assert_eq!(decide(&view), [Order::Drain(reader("n2"))]);
    view.told = obeyed(view.clone());
    view.replicas.remove(0);
    assert_eq!(
        decide(&view),
        [Order::Close(reader("n2")), Order::Remove(reader("n2"))],
        "once it has stopped"
    );
}

#[test]
fn everybody_is_made_known_and_opened() {
    let orders = decide(&view(Some("n1"), &[replica("n2", 0)]));
    let add = |server, last| Order::Add(server, ([10, 0, 0, last], 5432).into(), 8008);
    let open = |server| Order::Open(server, Weight(128), Knowledge::Assumed);
    assert_eq!(
        orders,
        [add(primary("n1"), 1), open(primary("n1")), add(reader("n2"), 2), open(reader("n2"))]
    );
}

#[test]
fn what_was_told_is_not_told_again() {
    let readers = [replica("n2", 0), replica("n3", 3 << 20)];
    let told = told(Some("n1"), &readers);
    assert_eq!(decide(&View { told, ..view(Some("n1"), &readers) }), []);
}

#[test]
fn a_primary_that_has_lost_the_key_is_closed_before_anything_else() {
    let told = told(Some("n1"), &[replica("n2", 0)]);
    let nobody = View { told, ..view(None, &[replica("n2", 0)]) };
    assert_eq!(decide(&nobody), [Order::Close(primary("n1")), Order::Remove(primary("n1"))]);
}

#[test]
fn the_sessions_move_to_the_next_primary_which_no_longer_is_a_reader() {
    let told = told(Some("n1"), &[replica("n2", 0)]);
    let orders = decide(&View { told, ..view(Some("n2"), &[]) });
    assert_eq!(
        orders,
        [
            Order::Close(primary("n1")),
            Order::Close(reader("n2")),
            Order::Add(primary("n2"), ([10, 0, 0, 2], 5432).into(), 8008),
            Order::Open(primary("n2"), Weight(128), Knowledge::Assumed),
            Order::Remove(primary("n1")),
            Order::Remove(reader("n2")),
        ]
    );
}

#[test]
fn a_primary_that_returns_before_it_was_forgotten_is_opened_again() {
    let mut told = told(Some("n1"), &[]);
    Order::Close(primary("n1")).note(&mut told);
    let orders = decide(&View { told, ..view(Some("n1"), &[]) });
    assert_eq!(orders, [Order::Open(primary("n1"), Weight(128), Knowledge::Assumed)]);
}

#[test]
fn this_node_needs_no_check_of_itself() {
    let mut view = view(Some("n1"), &[]);
    view.primary = view.primary.map(|target| Target { knowledge: Knowledge::Known, ..target });
    let last = decide(&view).pop().unwrap();
    assert_eq!(last, Order::Open(primary("n1"), Weight(128), Knowledge::Known));
}

#[test]
fn a_replica_that_falls_behind_gets_less_and_then_no_new_readers() {
    let before = told(Some("n1"), &[replica("n2", 0)]);
    let slow = View { told: before.clone(), ..view(Some("n1"), &[replica("n2", 5 << 20)]) };
    assert_eq!(decide(&slow), [Order::Weigh(reader("n2"), Weight(16))]);
    let too_slow = View { told: before, ..view(Some("n1"), &[replica("n2", MAX_LAG + 1)]) };
    assert_eq!(decide(&too_slow), [Order::Drain(reader("n2"))]);
    let back = View { told: obeyed(too_slow), ..view(Some("n1"), &[replica("n2", 0)]) };
    assert_eq!(decide(&back), [Order::Resume(reader("n2"))]);
}

#[test]
fn a_replica_that_is_too_far_behind_from_the_start_is_not_opened() {
    let told = told(Some("n1"), &[replica("n2", MAX_LAG + 1)]);
    assert_eq!(told.get(&reader("n2")).map(|known| known.door), Some(Door::Closed));
}

#[test]
fn a_replica_of_which_nobody_knows_the_lag_is_the_last_choice() {
    let unknown = Replica { lag: None, ..replica("n2", 0) };
    let told = told(Some("n1"), &[unknown]);
    assert_eq!(
        told.get(&reader("n2")).map(|known| (known.door, known.weight)),
        Some((Door::Open, Weight(1)))
    );
}

#[test]
fn a_member_that_has_moved_is_forgotten_first() {
    let mut moved = view(Some("n1"), &[]);
    moved.told = told(Some("n1"), &[]);
    moved.primary = moved.primary.map(|target| Target { address: ([10, 0, 0, 9], 5432).into(), ..target });
    assert_eq!(decide(&moved), [Order::Close(primary("n1")), Order::Remove(primary("n1"))]);
    let told = obeyed(moved.clone());
    let next = decide(&View { told, ..moved });
    assert_eq!(next.first(), Some(&Order::Add(primary("n1"), ([10, 0, 0, 9], 5432).into(), 8008)));
}

#[test]
fn a_member_that_is_gone_is_removed_and_nobody_else_is_touched() {
    let told = told(Some("n1"), &[replica("n2", 0), replica("n3", 0)]);
    let orders = decide(&View { told, ..view(Some("n1"), &[replica("n2", 0)]) });
    assert_eq!(orders, [Order::Close(reader("n3")), Order::Remove(reader("n3"))]);
}
