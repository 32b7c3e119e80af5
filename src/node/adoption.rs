//! Data from before pgherd: taken at the start, before anybody is told what this node has.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::peer::Adopted;
use crate::postgres::{Memory, Postgres, Stored};
use crate::record::{Bootstrap, Keeper};

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

/// What a new cluster begins with: with data from before pgherd no fewer connections than its server had.
pub(super) async fn beginning(
    postgres: &Postgres,
    adopted: Option<Adopted>,
    parameters: &BTreeMap<String, String>,
) -> anyhow::Result<Stored> {
    match adopted {
        Some(_aside) => Ok(postgres.beginning(parameters).await?),
        None => Ok(Stored::initial(parameters)),
    }
}
