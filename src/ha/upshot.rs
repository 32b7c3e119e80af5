//! What has come of a long action: the agent remembers it, here and on the volume.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinError;
use tracing::{debug, warn};

use crate::clock::{self, Moment};
use crate::dcs::Dcs;
use crate::postgres;
use crate::record::{self, Bootstrap};
use crate::types::{Chain, SlotName};

use super::Error;
use super::agent::Agent;
use super::jobs::{Done, Outcome};
use super::reserve::Stock;
use super::slots::Move;
use super::turn::Copies;
use super::view::{Approval, Checkpoint, Poll, Survey, UpstreamWal};

/// The checkpoint after a promotion writes every dirty page.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(600);

impl<D: Dcs> Agent<D> {
    pub(super) async fn take_in(&mut self, done: Result<Done, JoinError>) {
        let Some(doing) = self.doing.take() else { return };
        let now = clock::now();
        let done = done.unwrap_or_else(|error| Done { job: doing.job, result: Err(Error::JobEnded(error)) });
        match done.result {
            Ok(outcome) => {
                debug!(job = ?done.job, took = ?now.since(doing.since), "done");
                self.memory.ended_well(done.job);
                if let Err(error) = self.remember(outcome, now).await {
                    warn!(error = %Chain(&error), "the cluster record was not written");
                }
            }
            Err(error) => {
                warn!(job = ?done.job, error = %Chain(&error), "failed");
                self.memory.failed(done.job, now, Chain(&error).to_string());
            }
        }
    }

    pub(super) fn checkpoint_ended(&mut self, done: Result<Result<(), postgres::Error>, JoinError>) {
        // PostgreSQL makes one of its own soon: the worst that a failure here costs is a rewind that is tried twice.
        self.memory.checkpoint = Checkpoint::Made;
        match done {
            Ok(Ok(())) => debug!("made the checkpoint after the promotion"),
            Ok(Err(error)) => warn!(error = %Chain(&error), "no checkpoint after the promotion"),
            Err(error) => warn!(%error, "no checkpoint after the promotion"),
        }
    }

    pub(super) fn copy_moved(&mut self, moved: Result<(SlotName, Result<(), postgres::Error>), JoinError>) {
        match moved {
            Ok((slot, Ok(()))) => {
                self.memory.moving.remove(&slot);
            }
            Ok((slot, Err(error))) => {
                warn!(%slot, error = %Chain(&error), "the copy of a logical slot was not moved");
                self.memory.moving.insert(slot, Move::Failed(clock::now()));
            }
            Err(error) => {
                self.memory.moving.clear();
                warn!(%error, "a copy of a logical slot was not moved");
            }
        }
    }

    pub(super) fn copies_ready(
        &mut self,
        ready: Result<Result<BTreeSet<SlotName>, postgres::Error>, JoinError>,
    ) {
        let at = clock::now();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            warn!(error = %Chain(error), "logical slots of the leader's cannot be copied");
            Copies::Failed(at)
        };
        self.memory.copies = match ready {
            Ok(Ok(names)) => Copies::Ready { names, at },
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        };
    }

    pub(super) fn reserve_laid_in(&mut self, laid_in: Result<Result<(), postgres::Error>, JoinError>) {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            warn!(error = %Chain(error), "no room is held back");
            Stock::Impossible
        };
        self.memory.reserve = match laid_in {
            Ok(Ok(())) => Stock::Held,
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        };
    }

    async fn remember(&mut self, outcome: Outcome, now: Moment) -> Result<(), record::Error> {
        match outcome {
            Outcome::Stopped => self.memory.orders.stopped(now),
            Outcome::Initialised | Outcome::SlotsCopied => {}
            Outcome::Bootstrapped => {
                self.deps.record.update(|record| record.bootstrap = Bootstrap::Settled).await?;
            }
            Outcome::Cloned => {
                self.kept = None;
                self.memory.orders.copied(now);
                (self.memory.ancestry, self.memory.upstream_wal) = (None, UpstreamWal::Kept);
                self.memory.copied_at(now);
                let followed = self.memory.source.take();
                let copied = self.deps.record.update(|record| {
                    record.bootstrap = Bootstrap::Settled;
                    (record.promoted, record.followed, record.unconfirmed) = (None, followed, false);
                });
                copied.await?;
            }
            Outcome::Rewound => {
                self.memory.rewound_at(now);
                let followed = self.memory.source.take();
                let rewound = self.deps.record.update(|record| {
                    (record.promoted, record.followed, record.unconfirmed) = (None, followed, false);
                });
                rewound.await?;
            }
            Outcome::Approved => self.memory.approval = Approval::Given,
            Outcome::Promoted => {
                self.counts.promotions += 1;
                self.memory.checkpoint = Checkpoint::Owed;
                let postgres = self.deps.postgres.clone();
                self.checkpoint.spawn(async move { postgres.checkpoint(CHECKPOINT_PATIENCE).await });
            }
            Outcome::HandedOver(handover) => self.memory.handover = Some(handover),
            Outcome::Polled(answers) => self.memory.poll = Some(Poll { at: now, answers }),
            Outcome::Surveyed(answers) => self.memory.survey = Some(Survey { at: now, answers }),
            Outcome::Compared(ancestry) => self.memory.ancestry = Some(ancestry),
        }
        Ok(())
    }
}
