//! An administrator's file (agent mode), read again while the agent runs.

use std::fmt;
use std::sync::Arc;

use crate::dcs::Dcs;
use crate::postgres::NodeSettings;

use super::agent::Agent;
use super::rules::Rules;

/// What the file says and the running agent can take over.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// Tags and all that the store may overrule.
    pub rules: Rules,
    /// The server's settings.
    pub server: NodeSettings,
}

/// Reads the file; none when there is none, or it cannot be used, which whoever reads it says.
#[derive(Clone)]
pub struct Reread(Arc<dyn Fn() -> Option<Fresh> + Send + Sync>);

impl Reread {
    /// By this function.
    pub fn by(read: impl Fn() -> Option<Fresh> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// There is no file.
    pub fn nothing() -> Self {
        Self::by(|| None)
    }
}

impl fmt::Debug for Reread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reread")
    }
}

impl<D: Dcs> Agent<D> {
    /// What has changed counts from the next look on.
    pub(super) fn reread(&mut self) {
        if let Some(fresh) = self.config.reread.0() {
            self.deps.postgres.ask(fresh.server);
            self.config.rules = fresh.rules;
        }
        self.memory.configured = None;
    }
}
