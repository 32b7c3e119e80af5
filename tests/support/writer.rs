//! A client that never stops writing, and what became of its writes.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd::clock::{self, Moment};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::client::{self, Target};

/// One insert every so often: the resolution of an outage.
const PERIOD: Duration = Duration::from_millis(10);
/// A commit that waits longer (for a standby, for a frozen server) counts as not acknowledged; the next one gets a new
/// connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// A running writer.
#[derive(Debug)]
pub(crate) struct Writer {
    targets: Vec<Target>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<Acknowledged>>,
}

/// One write whose commit was confirmed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    /// What was written.
    pub(crate) id: i64,
    /// When the confirmation came.
    pub(crate) at: Moment,
}

/// What became of the writes.
#[derive(Debug)]
pub(crate) struct Report {
    /// Every confirmed write, in order.
    pub(crate) acknowledged: Vec<Acknowledged>,
    /// Those that are not in the table any more.
    pub(crate) lost: BTreeSet<i64>,
}

impl Report {
    /// The longest time without a confirmation.
    pub(crate) fn longest_outage(&self) -> Duration {
        let times: Vec<Moment> = self.acknowledged.iter().map(|write| write.at).collect();
        times.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap_or(Duration::MAX)
    }

    /// The longest time without a confirmation that began around this moment: what is struck then may confirm a little longer.
    pub(crate) fn outage_at(&self, moment: Moment) -> Duration {
        let before = self.acknowledged.iter().rposition(|write| write.at <= moment);
        let (Some(before), true) = (before, self.acknowledged.last().is_some_and(|write| write.at > moment))
        else {
            return Duration::MAX;
        };
        let around = self.acknowledged[before..].windows(2);
        let around = around.take_while(|pair| pair[0].at.since(moment) < PATIENCE * 5);
        around.map(|pair| pair[1].at.since(pair[0].at)).max().unwrap_or(Duration::MAX)
    }
}

impl Writer {
    pub(super) fn start(targets: Vec<Target>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(write(targets.clone(), stopped));
        Self { targets, stop, task }
    }

    /// Stops writing, then looks at which confirmed writes a primary still has.
    pub(crate) async fn finish(self, primary: Target) -> Report {
        self.stop.send(true).ok();
        let acknowledged = self.task.await.unwrap();
        assert!(!acknowledged.is_empty(), "not one write was confirmed by any of {:?}", self.targets);
        let client = client::connect(&primary).await.unwrap();
        let rows = client.query("SELECT id FROM writes", &[]).await.unwrap();
        let kept: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let lost = acknowledged.iter().map(|write| write.id).filter(|id| !kept.contains(id)).collect();
        Report { acknowledged, lost }
    }
}

async fn write(targets: Vec<Target>, stopped: watch::Receiver<bool>) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    let mut connection = None;
    let mut next = targets.iter().cycle();
    // Another writer's numbers are below: what one has written must not refuse what the next one writes.
    let first = jiff::Timestamp::now().as_microsecond();
    for id in first.. {
        if *stopped.borrow() {
            break;
        }
        if connection.is_none() {
            connection = writable(next.next().unwrap()).await;
        }
        if let Some(client) = &connection {
            match timeout(PATIENCE, client.execute("INSERT INTO writes VALUES ($1)", &[&id])).await {
                Ok(Ok(_)) => acknowledged.push(Acknowledged { id, at: clock::now() }),
                Ok(Err(_)) | Err(_) => connection = None,
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
    acknowledged
}

/// A connection to this server, if it takes writes.
async fn writable(target: &Target) -> Option<Client> {
    let client = timeout(PATIENCE, client::connect(target)).await.ok()?.ok()?;
    let prepare = client.batch_execute("CREATE TABLE IF NOT EXISTS writes (id bigint PRIMARY KEY)");
    timeout(PATIENCE, prepare).await.ok()?.ok()?;
    Some(client)
}
