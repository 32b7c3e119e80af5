//! Copies of logical slots on a standby: what can be copied, and how far a copy is moved.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd::clock;
use pgherd::postgres::{Answer, Error, Slot};
use pgherd::types::{Lsn, SlotName};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{DEADLINE, FAST, Node, SUPERUSER_PASSWORD, is_primary, position, replayed};

fn feed() -> BTreeSet<SlotName> {
    [SlotName("feed".into())].into()
}

fn copy(answer: &Answer) -> Option<&Slot> {
    answer.slots.iter().find(|slot| slot.name.0 == "feed")
}

fn logical(name: &str, last: u8) -> Node {
    Node::with(name, last, |config| {
        config.parameters.insert("wal_level".into(), "logical".into());
    })
}

/// A transaction that goes on until it is dropped.
struct Open {
    _client: tokio_postgres::Client,
    _driver: JoinSet<()>,
}

impl Open {
    async fn on(node: &Node) -> Self {
        let mut client = tokio_postgres::Config::new();
        client.host(node.config.listen.as_str()).port(node.config.port).user(&node.config.superuser);
        client.password(SUPERUSER_PASSWORD).dbname("postgres");
        let (client, connection) = client.connect(tokio_postgres::NoTls).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        client.simple_query("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        Self { _client: client, _driver: driver }
    }
}

/// Where the primary is, once the standby has replayed that.
async fn both_at(a: &Node, b: &Node) -> Lsn {
    a.ask("SELECT pg_logical_emit_message(false, 'test', 'more')").await;
    a.ask("CHECKPOINT").await;
    let at = position(&a.until("primary", is_primary).await);
    b.until("replayed", |answer| replayed(answer) >= at).await;
    at
}

/// A copy that begins under a transaction waits for its end: a reader that has read up to here has its oldest WAL there.
async fn behind_a_transaction(a: &Node, b: &Node) -> Open {
    let open = Open::on(a).await;
    both_at(a, b).await;
    a.ask_as(
        (&a.config.superuser, SUPERUSER_PASSWORD),
        "postgres",
        "SELECT count(*) FROM pg_logical_slot_get_changes('feed', NULL, NULL)",
    )
    .await;
    open
}

/// Begins to move the copy, which comes to no end while the transaction is open.
async fn begin(b: &Node, to: Lsn, moving: &mut JoinSet<Result<(), Error>>) -> CancellationToken {
    let (pg, unwanted) = (b.pg.clone(), CancellationToken::new());
    let token = unwanted.clone();
    moving.spawn(async move { pg.move_copy(&SlotName("feed".into()), ("postgres", to), &token).await });
    b.until("a move", |answer| copy(answer).is_some_and(|slot| slot.active)).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), moving.join_next()).await.is_err(), "it waits");
    unwanted
}

#[tokio::test]
async fn a_copy_is_moved_for_as_long_as_it_takes_and_no_longer_than_it_is_wanted() {
    let (a, b) = (logical("s-1", 41), logical("s-2", 42));
    a.bootstrap().await;
    a.keep_slots(&[b.config.name.slot_name()]).await;
    b.pg.clone_from(&a.upstream()).await.unwrap();
    b.start_standby_of(&a).await;
    let absent = b.pg.prepare_copies(&a.upstream(), &feed()).await;
    assert!(matches!(absent, Err(Error::SlotNotCopied { .. })), "{absent:?}");
    let make = "SELECT pg_create_logical_replication_slot('feed', 'test_decoding')";
    a.ask_as((&a.config.superuser, SUPERUSER_PASSWORD), "postgres", make).await;

    let open = behind_a_transaction(&a, &b).await;
    let wanted: BTreeSet<_> = feed().into_iter().chain([SlotName("absent".into())]).collect();
    assert_eq!(b.pg.prepare_copies(&a.upstream(), &wanted).await.unwrap(), feed(), "as far as it goes");
    assert!(copy(&b.until("an answer", |_| true).await).is_none(), "nothing is stopped for a question");
    b.pg.copy_slots(&a.upstream(), &feed(), FAST).await.unwrap();
    let began = copy(&b.start_standby_of(&a).await).unwrap().confirmed;
    let to = both_at(&a, &b).await;

    let mut moving = JoinSet::new();
    begin(&b, to, &mut moving).await.cancel();
    let ended = tokio::time::timeout(DEADLINE, moving.join_next()).await.unwrap().unwrap().unwrap();
    assert!(ended.is_ok(), "nobody wants it: {ended:?}");
    let free = b.until("a copy that is free", |answer| copy(answer).is_some_and(|slot| !slot.active)).await;
    assert_eq!(copy(&free).unwrap().confirmed, began);

    // Nor does the end of the server wait for it.
    begin(&b, to, &mut moving).await;
    let asked = clock::now();
    b.pg.stop(FAST).await.unwrap();
    assert!(clock::now().since(asked) < Duration::from_secs(10));
    assert!(moving.join_next().await.unwrap().unwrap().is_err());
    b.start_standby_of(&a).await;

    let unwanted = begin(&b, to, &mut moving).await;
    drop(open);
    let moved = tokio::time::timeout(DEADLINE, moving.join_next()).await.unwrap().unwrap().unwrap();
    assert!(moved.is_ok() && !unwanted.is_cancelled(), "{moved:?}");
    let there = b.until("a copy", |answer| copy(answer).is_some_and(|slot| !slot.active)).await;
    assert_eq!(copy(&there).unwrap().confirmed, Some(to));
}
