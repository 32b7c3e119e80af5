//! The trail of decisions: what was decided, why and on what, kept through restarts. Pure; the agent writes the lines.
//!
//! A decision that repeats one of the last few is counted, not added: a vote that goes round and round for an hour, or an
//! idle leader, leaves a handful of steps, and the thousand that are kept reach back to what led there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::postgres::status::DataDir;
use crate::types::NodeName;

use super::Phase;
use super::reason::{Action, Decision};
use super::view::{Instance, Lease, POLL_AGE, PollAnswer, Store, View};
use super::watchdog;

/// So many steps are kept, in memory and in the file.
pub const KEPT: usize = 1000;
/// A decision like one of so many last steps is a repetition: a round of a vote is up to three different ones.
const ROUND: usize = 4;

/// A decision that differed from those right before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When it was first made: RFC 3339, by this node's wall clock.
    pub at: String,
    /// The kind of its reason, such as `votes_missing`.
    pub kind: String,
    /// Its reason in words.
    pub reason: String,
    /// The kinds of what was done, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<String>,
    /// The facts that it went by.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// How often it was made, in this life of the node.
    #[serde(skip, default = "once")]
    pub times: u64,
}

fn once() -> u64 {
    1
}

/// The last steps, oldest first, and how often each kind of reason was given. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trail {
    steps: VecDeque<Arc<Step>>,
    counts: BTreeMap<&'static str, u64>,
}

impl Trail {
    /// The trail of the lives before this one, from the lines of the file; what cannot be read is left out.
    pub fn resumed(lines: &[String]) -> Self {
        let steps = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).map(Arc::new);
        let mut trail = Self { steps: steps.collect(), counts: BTreeMap::new() };
        trail.cut();
        trail
    }

    /// Takes in the decision of this moment. What is returned is new, and is to be written down.
    pub fn note(&mut self, view: &View, decision: &Decision, at: &str) -> Option<Arc<Step>> {
        let kind: &'static str = (&decision.reason).into();
        *self.counts.entry(kind).or_default() += 1;
        let actions: Vec<String> = decision.actions.iter().filter(is_news).map(in_short).collect();
        let mut last = self.steps.iter_mut().rev().take(ROUND);
        if let Some(known) = last.find(|step| step.kind == kind && step.actions == actions) {
            Arc::make_mut(known).times += 1;
            return None;
        }
        let step = Arc::new(Step {
            at: at.to_owned(),
            kind: kind.to_owned(),
            reason: decision.reason.to_string(),
            actions,
            inputs: inputs(view),
            times: 1,
        });
        self.steps.push_back(Arc::clone(&step));
        self.cut();
        Some(step)
    }

    /// The steps, oldest first.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.steps.iter().map(Arc::as_ref)
    }

    /// Decisions since the start of this process, by the kind of their reason.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(kind, n)| (*kind, *n))
    }

    fn cut(&mut self) {
        let surplus = self.steps.len().saturating_sub(KEPT);
        self.steps.drain(..surplus);
    }
}

/// The leader's position goes out every few seconds: that says nothing.
fn is_news(action: &&Action) -> bool {
    !matches!(action, Action::PutStatus(_))
}

fn in_short(action: &Action) -> String {
    let kind: &'static str = action.into();
    if let Action::Begin(task) = action {
        let task: &'static str = task.into();
        return format!("{kind} {task}");
    }
    kind.to_owned()
}

/// The facts behind a decision, as far as there are any, in words that a log line could have.
fn inputs(view: &View) -> BTreeMap<String, String> {
    let snapshot = view.snapshot();
    let facts = [
        ("instance", Some(instance(view))),
        ("lease", lease(view)),
        ("store", store(view)),
        ("leader", snapshot.and_then(|s| s.leader_name()).map(ToString::to_string)),
        ("sync", snapshot.and_then(|s| s.sync.as_ref()).and_then(|s| serde_json::to_string(&s.value).ok())),
        ("names", view.memory.sync_names.clone().filter(|names| !names.is_empty())),
        ("votes", votes(view)),
        ("doing", view.doing.map(|d| format!("{:?} for {:.1?}", d.job, view.now.since(d.since)))),
        ("failures", failures(view)),
        ("watchdog", watchdog::in_words(view)),
        ("phase", (view.phase == Phase::Stopping).then(|| "stopping".to_owned())),
    ];
    facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))).collect()
}

fn instance(view: &View) -> String {
    match view.instance() {
        Instance::Primary(answer, lsn) => format!("primary, timeline {}, {lsn}", answer.timeline),
        Instance::Standby(answer, lsn) => {
            let motion = if view.memory.frozen.is_some() { ", held" } else { "" };
            format!("standby, timeline {}, {lsn}{motion}", answer.timeline)
        }
        Instance::Silent => "running, no answer".to_owned(),
        Instance::Ending => "ending".to_owned(),
        Instance::Down => match &view.local.data {
            DataDir::Cluster(control) => {
                format!("down, {:?}, timeline {}, {}", control.state, control.timeline, control.checkpoint)
            }
            DataDir::Empty => "down, no data".to_owned(),
            DataDir::Incomplete { .. } => "down, half a copy".to_owned(),
            DataDir::Unreadable { .. } => "down, data not readable".to_owned(),
        },
    }
}

fn lease(view: &View) -> Option<String> {
    match view.lease {
        Lease::None => None,
        Lease::Lost => Some("lost".to_owned()),
        Lease::Held { sent, ttl } => Some(format!("{:.1?} left", view.now.until(sent + ttl))),
    }
}

fn store(view: &View) -> Option<String> {
    match &view.store {
        Store::Fresh(_) => None,
        Store::Silent { since, .. } => Some(format!("silent for {:.1?}", view.now.since(*since))),
    }
}

/// What the others said, while it counts.
fn votes(view: &View) -> Option<String> {
    let poll = view.memory.poll.as_ref().filter(|poll| view.now.since(poll.at) < POLL_AGE)?;
    let said = |(name, answer): (&NodeName, &PollAnswer)| match answer {
        PollAnswer::Unreachable => format!("{name}: no answer"),
        PollAnswer::Down => format!("{name}: down"),
        PollAnswer::Primary => format!("{name}: a primary"),
        PollAnswer::Standby(c) => format!("{name}: timeline {}, {}, {:?}", c.timeline, c.position, c.motion),
    };
    Some(poll.answers.iter().map(said).collect::<Vec<_>>().join("; "))
}

fn failures(view: &View) -> Option<String> {
    let failed = view.memory.failures.iter().map(|(job, f)| format!("{job:?}: {} in a row", f.n));
    let list: Vec<_> = failed.collect();
    (!list.is_empty()).then(|| list.join("; "))
}
