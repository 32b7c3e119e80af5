//! A list that never changes, and therefore never grows old.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::Publisher;
use crate::clock;
use crate::process::Timer;

/// A fixed list, published again and again so that rules about age and number of answers work as with any source.
#[derive(Debug)]
pub(super) struct List {
    addrs: BTreeSet<IpAddr>,
    every: Duration,
    publisher: Publisher,
}

impl List {
    /// The list is there before anybody can look. Its length is the desired size unless the operator named one.
    pub(super) fn publish(addrs: BTreeSet<IpAddr>, every: Duration, publisher: Publisher) -> Self {
        if publisher.peers().desired_size.is_none() && !addrs.is_empty() {
            publisher.desired_size(addrs.len());
        }
        publisher.good(addrs.clone(), clock::now());
        Self { addrs, every, publisher }
    }

    /// Publishes the list at every interval, for ever.
    pub(super) async fn keep_fresh(self) {
        let mut timer = Timer::default();
        loop {
            timer.pause(self.every).await;
            self.publisher.good(self.addrs.clone(), clock::now());
        }
    }
}
