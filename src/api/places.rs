//! The places of the API port, and who gives way when all are taken.
//!
//! Invariant: a new connection always gets a place unless every place is at work on an answer. Whoever holds one without
//! asking anything (a slow client, an idle one) loses it first, and of those the one from the address that holds the most: so
//! a thousand clients that send a byte a minute cost a health check nothing. What is absent: any limit on how often somebody
//! may connect.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;

/// Whether a connection is at work on an answer. Written by the connection, read when somebody has to go.
#[derive(Debug, Clone, Default)]
pub(super) struct Work(Arc<AtomicBool>);

impl Work {
    /// From now until what is returned is dropped.
    pub(super) fn begin(&self) -> AtWork {
        self.0.store(true, Ordering::Relaxed);
        AtWork(Self(Arc::clone(&self.0)))
    }

    /// The client has the word: until what is returned is dropped, its connection counts as one that asks nothing.
    pub(super) fn wait_for_client(&self) -> ClientsTurn {
        self.0.store(false, Ordering::Relaxed);
        ClientsTurn(self.clone())
    }

    fn is_under_way(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An answer is being made.
#[derive(Debug)]
pub(super) struct AtWork(Work);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

/// An answer is being made, and waits for the rest of the question.
#[derive(Debug)]
pub(super) struct ClientsTurn(Work);

impl Drop for ClientsTurn {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Who holds a place.
#[derive(Debug)]
struct Guest {
    from: IpAddr,
    work: Work,
    task: AbortHandle,
}

/// The places and their holders, the oldest first.
#[derive(Debug)]
pub(super) struct Places {
    n_places: usize,
    guests: Vec<Guest>,
}

/// No place can be had: every one of them is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AllAtWork;

impl Places {
    /// So many.
    pub(super) fn new(n_places: usize) -> Self {
        Self { n_places, guests: Vec::new() }
    }

    /// Makes room for one more, by ending the connection of somebody else if need be.
    pub(super) fn make_room(&mut self) -> Result<(), AllAtWork> {
        if self.guests.len() < self.n_places {
            return Ok(());
        }
        self.guests.retain(|guest| !guest.task.is_finished());
        if self.guests.len() < self.n_places {
            return Ok(());
        }
        let leaves = self.who_gives_way().ok_or(AllAtWork)?;
        self.guests.remove(leaves).task.abort();
        Ok(())
    }

    /// Gives a place to a connection.
    pub(super) fn take(&mut self, from: IpAddr, work: Work, task: AbortHandle) {
        self.guests.push(Guest { from, work, task });
    }

    /// The oldest that is not at work, of the address that holds the most places.
    fn who_gives_way(&self) -> Option<usize> {
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for guest in &self.guests {
            *held.entry(guest.from).or_default() += 1;
        }
        let idle = self.guests.iter().enumerate().filter(|(_, guest)| !guest.work.is_under_way());
        // Of equals the last one found counts, and the oldest is to be it.
        let greedy = idle.rev().max_by_key(|(_, guest)| held.get(&guest.from));
        greedy.map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn place(places: &mut Places, tasks: &mut JoinSet<()>, from: IpAddr) -> (Work, AbortHandle) {
        let work = Work::default();
        let task = tasks.spawn(std::future::pending());
        places.take(from, work.clone(), task.clone());
        (work, task)
    }

    async fn ended(tasks: &mut JoinSet<()>, task: &AbortHandle) -> bool {
        tasks.join_next_with_id().await.unwrap().unwrap_err().id() == task.id()
    }

    #[tokio::test]
    async fn the_oldest_idle_one_of_the_greediest_address_gives_way() {
        let (mut places, mut tasks) = (Places::new(4), JoinSet::new());
        let _checker = place(&mut places, &mut tasks, A);
        let (work, busy) = place(&mut places, &mut tasks, B);
        let (_, oldest) = place(&mut places, &mut tasks, B);
        let _younger = place(&mut places, &mut tasks, B);
        let at_work = work.begin();
        assert_eq!(places.make_room(), Ok(()));
        assert!(ended(&mut tasks, &oldest).await);
        let _new = place(&mut places, &mut tasks, B);
        drop(at_work);
        assert_eq!(places.make_room(), Ok(()));
        assert!(ended(&mut tasks, &busy).await, "its answer is out: it is the oldest now");
    }

    #[tokio::test]
    async fn who_is_at_work_stays_and_who_has_gone_holds_nothing() {
        let (mut places, mut tasks) = (Places::new(1), JoinSet::new());
        let (work, task) = place(&mut places, &mut tasks, A);
        let _at_work = work.begin();
        assert_eq!(places.make_room(), Err(AllAtWork));
        task.abort();
        assert!(ended(&mut tasks, &task).await);
        assert_eq!(places.make_room(), Ok(()));
    }
}
