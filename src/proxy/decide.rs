//! What HAProxy must be told: the difference between what should be and what it was told. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use super::view::{Door, Knowledge, Pool, Replica, Server, Stay, Target, Told, View, Weight};

/// A replica that is no further behind than this has its full share.
const FRESH: u64 = 1 << 20;
/// The share of a replica that is fresh, halved for each doubling of its lag.
const FULL: u8 = 128;

/// One thing to tell HAProxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Make the server known, closed.
    Add(Server, SocketAddr, u16),
    /// Give it connections from now on.
    Open(Server, Weight, Knowledge),
    /// Give it connections again: it has kept the ones it had, and its health is known.
    Resume(Server),
    /// Give it no new ones.
    Drain(Server),
    /// Change its share.
    Weigh(Server, Weight),
    /// Give it none, and cut those that it has.
    Close(Server),
    /// Forget it; refused while a session is still ending.
    Remove(Server),
}

impl Order {
    /// Whom it is about.
    pub fn server(&self) -> &Server {
        match self {
            Self::Add(server, ..)
            | Self::Open(server, ..)
            | Self::Resume(server)
            | Self::Drain(server)
            | Self::Weigh(server, _)
            | Self::Close(server)
            | Self::Remove(server) => server,
        }
    }

    /// What HAProxy has been told once it has obeyed.
    pub fn note(&self, told: &mut BTreeMap<Server, Told>) {
        let set = |told: &mut BTreeMap<Server, Told>, change: &dyn Fn(&mut Told)| {
            if let Some(known) = told.get_mut(self.server()) {
                change(known);
            }
        };
        match self {
            Self::Add(server, address, api) => {
                let new = Told { address: *address, api: *api, weight: Weight(FULL), door: Door::Closed };
                told.insert(server.clone(), new);
            }
            Self::Open(_, weight, _) => {
                set(told, &|known| (known.door, known.weight) = (Door::Open, *weight))
            }
            Self::Resume(_) => set(told, &|known| known.door = Door::Open),
            Self::Drain(_) => set(told, &|known| known.door = Door::Drained),
            Self::Weigh(_, weight) => set(told, &|known| known.weight = *weight),
            Self::Close(_) => set(told, &|known| known.door = Door::Closed),
            Self::Remove(server) => drop(told.remove(server)),
        }
    }
}

impl fmt::Display for Order {
    /// In a few words, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(server, address, _) => write!(f, "{server} is {address}"),
            Self::Open(server, ..) => write!(f, "{server} opened"),
            Self::Resume(server) => write!(f, "{server} opened again"),
            Self::Drain(server) => write!(f, "{server} gets no new sessions"),
            Self::Weigh(server, weight) => write!(f, "{server} weighs {}", weight.0),
            Self::Close(server) => write!(f, "{server} closed, its sessions cut"),
            Self::Remove(server) => write!(f, "{server} removed"),
        }
    }
}

/// What should be of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    target: Target,
    weight: Weight,
    door: Door,
}

/// The orders of this moment: who must lose its sessions comes first, then whoever gets them, then what has time.
pub fn decide(view: &View) -> Vec<Order> {
    let wanted = wanted(view);
    let gone = view.told.iter().filter(|(server, known)| match wanted.get(server) {
        Some(wish) => !same_place(&wish.target, known),
        None => true,
    });
    let gone: Vec<(&Server, &Told)> = gone.collect();
    let close = gone.iter().filter(|(_, known)| known.door != Door::Closed);
    let mut orders: Vec<Order> = close.map(|(server, _)| Order::Close((*server).clone())).collect();
    for (server, wish) in &wanted {
        match view.told.get(server) {
            None => {
                orders.push(Order::Add(server.clone(), wish.target.address, wish.target.api));
                orders.extend(turn(server, wish, Door::Closed, Weight(FULL)));
            }
            Some(known) if same_place(&wish.target, known) => {
                orders.extend(turn(server, wish, known.door, known.weight));
            }
            // Its new place can be told when the old one is forgotten.
            Some(_moved) => {}
        }
    }
    orders.extend(gone.into_iter().map(|(server, _)| Order::Remove(server.clone())));
    orders
}

fn same_place(target: &Target, known: &Told) -> bool {
    (target.address, target.api) == (known.address, known.api)
}

/// From one door to another.
fn turn(server: &Server, wish: &Wanted, door: Door, weight: Weight) -> Vec<Order> {
    let open = || Order::Open(server.clone(), wish.weight, wish.target.knowledge);
    let weigh = (weight != wish.weight).then(|| Order::Weigh(server.clone(), wish.weight));
    match (door, wish.door) {
        (Door::Open | Door::Drained, Door::Closed) => vec![Order::Close(server.clone())],
        (Door::Closed, Door::Closed) => Vec::new(),
        (Door::Closed, Door::Open) => vec![open()],
        // Never opened for it: the next one who lags less is.
        (Door::Closed, Door::Drained) => Vec::new(),
        (Door::Open, Door::Drained) => vec![Order::Drain(server.clone())],
        (Door::Drained, Door::Open) => weigh.into_iter().chain([Order::Resume(server.clone())]).collect(),
        (Door::Open, Door::Open) => weigh.into_iter().collect(),
        (Door::Drained, Door::Drained) => Vec::new(),
    }
}

fn wanted(view: &View) -> BTreeMap<Server, Wanted> {
    let primary = view.primary.iter().map(|target| {
        let server = Server { pool: Pool::Primary, name: target.name.clone() };
        (server, Wanted { target: target.clone(), weight: Weight(FULL), door: Door::Open })
    });
    let replicas = view.replicas.iter().map(|replica| {
        let server = Server { pool: Pool::Replicas, name: replica.target.name.clone() };
        (server, reader(replica, view.max_lag))
    });
    primary.chain(replicas).collect()
}

fn reader(replica: &Replica, max_lag: u64) -> Wanted {
    let door = match (replica.stay, replica.lag) {
        // What it is asked at this moment it still answers.
        (Stay::Leaves, _) => Door::Drained,
        (Stay::Stays, Some(lag)) if lag > max_lag => Door::Drained,
        (Stay::Stays, Some(_) | None) => Door::Open,
    };
    Wanted { target: replica.target.clone(), weight: share(replica.lag), door }
}

/// Half the share for each doubling of the lag beyond [`FRESH`]: steps, so that small changes are no news.
fn share(lag: Option<u64>) -> Weight {
    let Some(lag) = lag else { return Weight(1) };
    let doublings = (lag / FRESH).checked_ilog2().map_or(0, |n| n + 1);
    Weight(FULL.checked_shr(doublings).unwrap_or(0).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_falls_with_the_lag() {
        let shares = [Some(0), Some(FRESH - 1), Some(FRESH), Some(3 * FRESH), Some(200 * FRESH), None];
        assert_eq!(shares.map(|lag| share(lag).0), [128, 128, 64, 32, 1, 1]);
    }
}
