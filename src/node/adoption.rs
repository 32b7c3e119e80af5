//! Data from before pgherd: taken at the start, before anybody is told what this node has.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::peer::Adopted;
use crate::postgres::{Memory, Postgres, Stored};
use crate::record::{Bootstrap, Keeper, Record};

/// Moves it aside, and remembers what there is.
pub(super) async fn adopt(postgres: &Postgres, record: &Keeper) -> anyhow::Result<Option<Adopted>> {
    let known = record.read();
    let fresh =
        known.system_id.is_none() && known.cluster_uuid.is_none() && known.bootstrap == Bootstrap::Settled;
    let memory = if fresh { Memory::OfNoCluster } else { Memory::OfACluster };
    let adopted = postgres.adopt(memory).await.context("the data on this volume cannot be used")?;
    if known.adopted != adopted {
        record.update(|record| record.adopted = adopted).await?;
    }
    Ok(adopted)
}

/// What a new cluster begins with: with data from before pgherd no fewer connections than its server had, from the first start on.
pub(super) async fn beginning(
    postgres: &Postgres,
    record: &Record,
    parameters: &BTreeMap<String, String>,
) -> anyhow::Result<Stored> {
    // Whoever has joined another's cluster keeps what it had aside.
    if record.adopted.is_none() || record.system_id.is_some() {
        return Ok(Stored::initial(parameters));
    }
    let beginning = postgres.beginning(parameters).await?;
    postgres.intend(beginning.clone());
    Ok(beginning)
}
