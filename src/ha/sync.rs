//! Which standbys confirm commits, and who may be elected on the strength of that: one safe step at a time.
//!
//! Two things change apart from each other: `synchronous_standby_names` in PostgreSQL ([`Names`]: a commit waits for
//! `need` of `names`) and the `sync` key ([`Electors`]: a candidate needs `quorum` other voters that are not ahead of it).
//! Invariant before and after every step, whatever crashes in between: `quorum + need >= |voters + names|`, so that every
//! acknowledged commit is known to whoever can be elected. No voters at all means that only the leader itself can be
//! elected, which is always safe. (Patroni's rule.)

use std::collections::BTreeSet;

use crate::dcs::Sync;
use crate::types::{NodeName, SyncMode};

use super::rules::Strictness;

/// Stands for a standby in strict mode when there is none (Patroni's word: other tools know it).
const PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// `synchronous_standby_names`, read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// How many must confirm; 0 when commits wait for nobody.
    pub need: u32,
    /// Who counts.
    pub names: BTreeSet<NodeName>,
}

/// The part of the `sync` key that elections use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Electors {
    /// Votes that a candidate needs besides its own.
    pub quorum: u32,
    /// Who may vote and be elected.
    pub voters: BTreeSet<NodeName>,
}

/// A standby as the primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmer {
    /// Its name.
    pub name: NodeName,
    /// Whether it has everything that was acknowledged before the set in force.
    pub progress: Progress,
}

/// How far a standby is, relative to the moment the set in force was last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It has flushed everything from before.
    CaughtUp,
    /// Not yet.
    Behind,
}

/// What is wanted, from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The mode.
    pub mode: SyncMode,
    /// What happens without a standby.
    pub strictness: Strictness,
    /// How many must confirm.
    pub count: u32,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Everything is as it should be, or has to wait for a standby.
    None,
    /// Change PostgreSQL's setting to this text.
    SetNames(String),
    /// Write the `sync` key.
    WriteKey(Sync),
    /// Delete the `sync` key: the mode is off.
    DeleteKey,
}

impl Names {
    /// Those of them that are members.
    pub fn members(&self) -> impl Iterator<Item = &NodeName> {
        self.names.iter().filter(|name| name.as_str() != PLACEHOLDER)
    }

    /// Reads the setting in any form that Patroni or we write: empty, a name, `2 (a, b)`, `ANY 1 (a, b)`, `FIRST ..`.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if text.is_empty() {
            return Self::default();
        }
        let (head, list) = match text.split_once('(') {
            Some((head, rest)) => (head.trim(), rest.trim_end_matches([')', ' '])),
            None => ("1", text),
        };
        let need = head.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(1);
        let names = list.split(',').map(|name| NodeName(unquote(name.trim()))).collect();
        Self { need, names }
    }

    /// The setting that is safe with these electors and keeps exactly their promise.
    pub fn implied_by(electors: &Electors) -> Self {
        let need = len(electors.voters.len()).saturating_sub(electors.quorum);
        Self { need, names: electors.voters.clone() }
    }

    /// The setting's text, in the form of this mode. A name list that all must confirm has no `ANY`.
    pub fn to_setting(&self, mode: SyncMode) -> String {
        if self.need == 0 || self.names.is_empty() {
            return String::new();
        }
        let list: Vec<_> = self.names.iter().map(|n| quote(n.as_str())).collect();
        match mode {
            SyncMode::Quorum => format!("ANY {} ({})", self.need, list.join(",")),
            SyncMode::Off | SyncMode::On if list.len() == 1 => list.concat(),
            SyncMode::Off | SyncMode::On => format!("{} ({})", self.need, list.join(",")),
        }
    }
}

impl Electors {
    /// From the key.
    pub fn of(sync: &Sync) -> Self {
        Self { quorum: sync.quorum, voters: sync.standbys().into_iter().collect() }
    }

    fn to_key(&self, leader: &NodeName) -> Sync {
        Sync::new(leader, self.quorum, &self.voters.iter().cloned().collect::<Vec<_>>())
    }
}

/// Whether every commit that `names` acknowledges is known to whoever `electors` can elect.
pub fn safe(electors: &Electors, names: &Names) -> bool {
    electors.voters.is_empty()
        || (names.need > 0
            && electors.quorum + names.need >= len(electors.voters.union(&names.names).count()))
}

/// The key that a new leader writes before its promotion: nobody else can be elected until standbys have caught up.
pub fn closed(leader: &NodeName) -> Sync {
    Sync::new(leader, 0, &[])
}

/// What the setting should be at a promotion: the first commit waits for one of those that are expected to follow, so
/// that a failover does not open a window in which a second one loses commits.
pub fn names_at_promotion(policy: &Policy, expected: &[NodeName]) -> String {
    target(policy, expected).to_setting(policy.mode)
}

/// The next step towards what `policy` wants with these standbys, or none.
pub fn next_step(
    policy: &Policy,
    me: &NodeName,
    key: Option<&Sync>,
    in_force: &Names,
    standbys: &[Confirmer],
) -> Step {
    if policy.mode == SyncMode::Off {
        return switch_off(key, in_force);
    }
    let Some(key) = key.filter(|k| k.leader.as_ref() == Some(me)) else {
        return Step::WriteKey(closed(me));
    };
    let electors = Electors::of(key);
    let wanted = target(policy, &standbys.iter().map(|s| s.name.clone()).collect::<Vec<_>>());
    if wanted != *in_force {
        return if safe(&electors, &wanted) {
            Step::SetNames(wanted.to_setting(policy.mode))
        } else {
            Step::WriteKey(between(&electors, in_force, &wanted).to_key(me))
        };
    }
    let next = electors_for(&electors, in_force, standbys);
    if next == electors { Step::None } else { Step::WriteKey(next.to_key(me)) }
}

fn switch_off(key: Option<&Sync>, in_force: &Names) -> Step {
    match key {
        Some(_) if in_force.need == 0 => Step::DeleteKey,
        Some(_) => Step::SetNames(String::new()),
        None if in_force.need > 0 => Step::SetNames(String::new()),
        None => Step::None,
    }
}

/// The setting that the policy wants with these standbys, the first choice first.
fn target(policy: &Policy, standbys: &[NodeName]) -> Names {
    match (policy.mode, standbys.is_empty(), policy.strictness) {
        (SyncMode::Off, _, _) | (_, true, Strictness::Degrade) => Names::default(),
        (_, true, Strictness::Strict) => {
            Names { need: 1, names: BTreeSet::from([NodeName::from(PLACEHOLDER)]) }
        }
        (SyncMode::On, false, _) => {
            let names: BTreeSet<_> = standbys.iter().take(policy.count as usize).cloned().collect();
            Names { need: len(names.len()), names }
        }
        (SyncMode::Quorum, false, _) => {
            Names { need: policy.count.min(len(standbys.len())), names: standbys.iter().cloned().collect() }
        }
    }
}

/// Electors that are safe with the setting in force *and* with the one wanted.
fn between(electors: &Electors, in_force: &Names, wanted: &Names) -> Electors {
    if wanted.need == 0 || wanted.names.contains(&NodeName::from(PLACEHOLDER)) {
        return Electors::default();
    }
    let voters: BTreeSet<_> = electors.voters.union(&wanted.names).cloned().collect();
    let need_for = |names: &Names| len(voters.union(&names.names).count()).saturating_sub(names.need);
    Electors { quorum: need_for(in_force).max(need_for(wanted)), voters }
}

/// The electors that fit the setting in force. Nobody becomes easier to elect who may lack a commit that was acknowledged
/// before the setting: the key waits until those whom it will name have caught up. And it names somebody only when those who
/// are named could elect somebody.
fn electors_for(electors: &Electors, in_force: &Names, standbys: &[Confirmer]) -> Electors {
    let closed = electors.voters.is_empty();
    let listed = standbys.iter().filter(|s| in_force.names.contains(&s.name));
    let (ready, late): (Vec<_>, Vec<_>) = listed.partition(|s| s.progress == Progress::CaughtUp);
    let counted = ready.into_iter().chain(late.iter().copied().filter(|_| !closed));
    let voters: BTreeSet<_> = counted.map(|s| s.name.clone()).collect();
    let quorum = len(in_force.names.len()).saturating_sub(in_force.need);
    if in_force.need == 0 || quorum >= len(voters.len()) {
        return Electors::default();
    }
    let next = Electors { quorum, voters };
    let stricter = next.voters == electors.voters && next.quorum >= electors.quorum;
    let waits = !closed && !stricter && !late.is_empty() && safe(electors, in_force);
    if waits { electors.clone() } else { next }
}

/// The number of members of a set: a cluster is small.
fn len(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A plain identifier stays as it is; everything else is quoted, as Patroni does.
fn quote(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn unquote(name: &str) -> String {
    match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(names: &[&str]) -> BTreeSet<NodeName> {
        names.iter().map(|n| NodeName::from(*n)).collect()
    }

    fn caught_up(names: &[&str]) -> Vec<Confirmer> {
        let confirmer = |n: &&str| Confirmer { name: NodeName::from(*n), progress: Progress::CaughtUp };
        names.iter().map(confirmer).collect()
    }

    const QUORUM: Policy = Policy { mode: SyncMode::Quorum, strictness: Strictness::Degrade, count: 1 };

    /// Applies steps until none is left, checking the invariant after each.
    fn settle(
        policy: &Policy,
        mut key: Option<Sync>,
        mut names: Names,
        standbys: &[Confirmer],
    ) -> (Sync, Names) {
        let me = NodeName::from("me");
        for _ in 0..10 {
            match next_step(policy, &me, key.as_ref(), &names, standbys) {
                Step::None => return (key.unwrap_or_default(), names),
                Step::SetNames(text) => names = Names::parse(&text),
                Step::WriteKey(next) => key = Some(next),
                Step::DeleteKey => key = None,
            }
            let electors = key.as_ref().filter(|k| k.leader.as_ref() == Some(&me)).map(Electors::of);
            if policy.mode != SyncMode::Off {
                assert!(electors.is_none_or(|e| safe(&e, &names)), "unsafe step: {key:?} with {names:?}");
            }
        }
        panic!("does not settle: {key:?} {names:?}");
    }

    #[test]
    fn names_are_written_as_patroni_writes_them_and_read_back() {
        let names = Names { need: 1, names: set(&["n1", "postgres-1"]) };
        assert_eq!(names.to_setting(SyncMode::Quorum), r#"ANY 1 (n1,"postgres-1")"#);
        let one = Names { need: 1, names: set(&["postgres-1"]) };
        assert_eq!(one.to_setting(SyncMode::On), r#""postgres-1""#);
        let two = Names { need: 2, names: set(&["postgres-1", "postgres-2"]) };
        assert_eq!(two.to_setting(SyncMode::On), r#"2 ("postgres-1","postgres-2")"#);
        for (names, mode) in [(names, SyncMode::Quorum), (one, SyncMode::On), (two, SyncMode::On)] {
            assert_eq!(Names::parse(&names.to_setting(mode)), names);
        }
    }

    #[test]
    fn two_streaming_standbys_become_a_quorum_of_one() {
        let (key, names) = settle(&QUORUM, None, Names::default(), &caught_up(&["n1", "n2"]));
        assert_eq!(names, Names { need: 1, names: set(&["n1", "n2"]) });
        assert_eq!((key.quorum, key.sync_standby.as_deref()), (1, Some("n1,n2")));
    }

    #[test]
    fn a_standby_that_has_not_caught_up_is_no_voter() {
        let mut standbys = caught_up(&["n1"]);
        standbys[0].progress = Progress::Behind;
        let (key, names) = settle(&QUORUM, None, Names::default(), &standbys);
        assert_eq!(names.need, 1, "commits already wait for it");
        assert_eq!(key.sync_standby, None, "but it cannot be elected");
    }

    #[test]
    fn the_last_standby_leaving_closes_the_election_before_commits_stop_waiting() {
        let (key, names) = settle(&QUORUM, None, Names::default(), &caught_up(&["n1"]));
        let step = next_step(&QUORUM, &NodeName::from("me"), Some(&key), &names, &[]);
        assert_eq!(step, Step::WriteKey(closed(&NodeName::from("me"))));
        let (key, names) = settle(&QUORUM, Some(key), names, &[]);
        assert_eq!((key.sync_standby, names), (None, Names::default()));
    }

    #[test]
    fn a_voter_that_leaves_is_waited_out_until_those_who_stay_have_what_it_confirmed() {
        let (key, names) = settle(&QUORUM, None, Names::default(), &caught_up(&["n1", "n2"]));
        let mut stays = caught_up(&["n1"]);
        stays[0].progress = Progress::Behind;
        let (key, names) = settle(&QUORUM, Some(key), names, &stays);
        assert_eq!(names, Names { need: 1, names: set(&["n1"]) });
        assert_eq!(
            (key.quorum, key.sync_standby.as_deref()),
            (1, Some("n1,n2")),
            "n1 alone elects nobody yet"
        );
        let (key, _) = settle(&QUORUM, Some(key), names, &caught_up(&["n1"]));
        assert_eq!((key.quorum, key.sync_standby.as_deref()), (0, Some("n1")));
    }

    #[test]
    fn strict_mode_without_a_standby_lets_commits_wait() {
        let strict = Policy { strictness: Strictness::Strict, ..QUORUM };
        let (key, names) = settle(&strict, None, Names::default(), &[]);
        assert_eq!(names.to_setting(SyncMode::Quorum), format!("ANY 1 ({PLACEHOLDER})"));
        assert_eq!(key.sync_standby, None);
    }

    #[test]
    fn a_new_leader_first_closes_the_old_leaders_key() {
        let old = Sync::new(&NodeName::from("n0"), 1, &["me".into(), "n2".into()]);
        let step =
            next_step(&QUORUM, &NodeName::from("me"), Some(&old), &Names::default(), &caught_up(&["n2"]));
        assert_eq!(step, Step::WriteKey(closed(&NodeName::from("me"))));
    }

    #[test]
    fn priority_mode_needs_every_named_standby() {
        let policy = Policy { mode: SyncMode::On, ..QUORUM };
        let (key, names) = settle(&policy, None, Names::default(), &caught_up(&["n1", "n2"]));
        assert_eq!(names, Names { need: 1, names: set(&["n1"]) });
        assert_eq!((key.quorum, key.sync_standby.as_deref()), (0, Some("n1")));
    }

    proptest! {
        /// Standbys come and go in any order and the mode changes: every step keeps the invariant, and all settle.
        #[test]
        fn every_path_is_safe(changes in proptest::collection::vec((0_u8..32, 1_u32..4, 0_u8..4), 1..12)) {
            let (mut key, mut names) = (None, Names::default());
            for (bits, count, kind) in changes {
                let present: Vec<_> = (0..5).filter(|i| bits & (1 << i) != 0).map(|i| format!("n{i}")).collect();
                let refs: Vec<_> = present.iter().map(String::as_str).collect();
                let mode = if kind & 1 == 0 { SyncMode::Quorum } else { SyncMode::On };
                let strictness = if kind & 2 == 0 { Strictness::Degrade } else { Strictness::Strict };
                let (k, n) = settle(&Policy { mode, strictness, count }, key, names, &caught_up(&refs));
                (key, names) = (Some(k), n);
            }
        }
    }
}
