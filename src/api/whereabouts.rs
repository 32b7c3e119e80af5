//! Where members are: the addresses behind the host names in their URLs, so that who calls is known for a member.
//!
//! Invariant: a request waits for no resolver. Names are looked up beside everything else, and what was found last stands until
//! something else is found: a resolver that is away (with the store, as a rule) makes no member a stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use axum::http::Uri;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::dcs::Member;
use crate::ha;
use crate::types::Host;

/// A member that has come back at another address is known again after this.
const LOOK: Duration = Duration::from_secs(5);
/// One name.
const PATIENCE: Duration = Duration::from_secs(4);

type Known = BTreeMap<String, BTreeSet<IpAddr>>;

/// What was found. Clones share it.
#[derive(Debug, Clone)]
pub struct Whereabouts(watch::Receiver<Known>);

impl Default for Whereabouts {
    /// No name is known.
    fn default() -> Self {
        Self(watch::channel(Known::new()).1)
    }
}

impl Whereabouts {
    /// Looks the members' names up on `tasks` until `stop` is cancelled.
    pub(super) fn watched(
        ha: watch::Receiver<Option<ha::Status>>,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> Self {
        let (found, known) = watch::channel(Known::new());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = look(ha, found) => {}
            }
        });
        Self(known)
    }

    /// The addresses that are members'.
    pub(super) fn addresses(&self, status: &ha::Status) -> Vec<IpAddr> {
        let known = self.0.borrow();
        let behind = |host| match host {
            Host::Address(address) => BTreeSet::from([address]),
            Host::Name(name) => known.get(&name).cloned().unwrap_or_default(),
        };
        members(status).flat_map(hosts).flat_map(behind).collect()
    }
}

/// For ever.
async fn look(mut ha: watch::Receiver<Option<ha::Status>>, found: watch::Sender<Known>) {
    let (mut asked, mut again) = (BTreeSet::new(), interval(LOOK));
    loop {
        let names = ha.borrow_and_update().as_ref().map(names).unwrap_or_default();
        if names == asked {
            tokio::select! {
                _ = again.tick() => {}
                changed = ha.changed() => match changed {
                    Ok(()) => continue,
                    Err(_no_loop) => return,
                }
            }
        }
        if !names.is_empty() {
            let news = lookups(&names).await;
            found.send_modify(|known| {
                known.retain(|name, _| names.contains(name));
                known.extend(news);
            });
        }
        asked = names;
    }
}

/// Those that were found.
async fn lookups(names: &BTreeSet<String>) -> Known {
    let lookups: JoinSet<_> = names.iter().cloned().map(lookup).collect();
    lookups.join_all().await.into_iter().filter(|(_, addresses)| !addresses.is_empty()).collect()
}

async fn lookup(name: String) -> (String, BTreeSet<IpAddr>) {
    let addresses = match timeout(PATIENCE, tokio::net::lookup_host((name.as_str(), 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
        Ok(Err(error)) => {
            debug!(%name, %error, "the host of a member is not found");
            BTreeSet::new()
        }
        Err(_elapsed) => BTreeSet::new(),
    };
    (name, addresses)
}

fn members(status: &ha::Status) -> impl Iterator<Item = &Member> {
    status.snapshot.iter().flat_map(|snapshot| &snapshot.members)
}

fn names(status: &ha::Status) -> BTreeSet<String> {
    let name = |host| match host {
        Host::Address(_) => None,
        Host::Name(name) => Some(name),
    };
    members(status).flat_map(hosts).filter_map(name).collect()
}

/// Where its API is, and where its server is.
fn hosts(member: &Member) -> impl Iterator<Item = Host> {
    let host = |url: &str| {
        let url = url.parse::<Uri>().ok().filter(|url| url.scheme().is_some())?;
        Some(Host::from(url.host()?))
    };
    [host(&member.api_url), host(&member.conn_url)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture;
    use crate::clock;

    fn of(members: &[(&str, &str)]) -> ha::Status {
        let mut status = fixture::replica("n1", 0, clock::now());
        let known = &mut status.snapshot.as_mut().unwrap().members;
        let pattern = known.first().unwrap().clone();
        *known = members
            .iter()
            .map(|(api_url, conn_url)| Member {
                api_url: (*api_url).to_owned(),
                conn_url: (*conn_url).to_owned(),
                ..pattern.clone()
            })
            .collect();
        status
    }

    #[test]
    fn an_address_in_either_url_is_a_members() {
        let status = of(&[
            ("http://192.0.2.1:8008/patroni", "postgres://192.0.2.2:5432/postgres"),
            ("https://[2001:db8::1]:8008/patroni", "nonsense"),
        ]);
        let expected: Vec<IpAddr> =
            ["192.0.2.1", "192.0.2.2", "2001:db8::1"].iter().map(|a| a.parse().unwrap()).collect();
        assert_eq!(Whereabouts::default().addresses(&status), expected);
        assert_eq!(names(&status), BTreeSet::new());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_what_was_found_outlives_the_resolver() {
        let local = of(&[("http://localhost:8008/patroni", "postgres://localhost:5432/postgres")]);
        let (status, ha) = watch::channel(Some(local.clone()));
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let mut whereabouts = Whereabouts::watched(ha, &mut tasks, stop.clone());
        assert_eq!(whereabouts.addresses(&local), [] as [IpAddr; 0]);
        timeout(PATIENCE, whereabouts.0.changed()).await.unwrap().unwrap();
        let addresses = whereabouts.addresses(&local);
        assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty(), "{addresses:?}");

        let both = of(&[
            ("http://localhost:8008/patroni", "postgres://localhost:5432/postgres"),
            ("http://nobody.invalid:8008/patroni", "postgres://nobody.invalid:5432/postgres"),
        ]);
        status.send_replace(Some(both.clone()));
        timeout(PATIENCE * 2, whereabouts.0.changed()).await.unwrap().unwrap();
        assert_eq!(whereabouts.addresses(&both), addresses);
        stop.cancel();
        tasks.join_all().await;
    }
}
