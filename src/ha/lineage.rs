//! Is the local history part of the leader's, or has it left it? Ancestry first, then position.

use crate::postgres::status::{Control, ControlState};
use crate::types::{Lsn, Timeline};

use super::rules::Mode;
use super::view::{Ancestry, Origin, View};

/// How a local history relates to the leader's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// It is part of it: streaming can go on from here.
    Part,
    /// It has gone its own way: it must be rewound.
    Left,
    /// The end of the local history is not known (it crashed as a primary on an older timeline): pg_rewind finds out.
    Unknown,
}

/// The lineage of a running standby at this position.
pub fn of_running(timeline: Timeline, position: Lsn, leader: &Ancestry) -> Lineage {
    if timeline == leader.timeline {
        return Lineage::Part;
    }
    match leader.history.end_of(timeline) {
        Some(end) if position <= end => Lineage::Part,
        Some(_) | None => Lineage::Left,
    }
}

/// The lineage of a stopped instance, by its control file.
pub fn of_stopped(control: &Control, leader: &Ancestry) -> Lineage {
    let timeline = control.reached();
    if timeline == leader.timeline {
        return Lineage::Part;
    }
    let Some(end) = leader.history.end_of(timeline) else {
        return Lineage::Left;
    };
    match control.state {
        // The shutdown checkpoint is the last record: it must lie before the fork, not at it.
        ControlState::ShutDown if control.checkpoint < end => Lineage::Part,
        ControlState::ShutDown => Lineage::Left,
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
            of_running(timeline, control.min_recovery_end.max(control.checkpoint), leader)
        }
        ControlState::StartingUp
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction
        | ControlState::Unknown => Lineage::Unknown,
    }
}

/// Whether PostgreSQL was found running when the agent started, and its control file is not a standby's. What was started
/// since then is another matter: the control file of a primary that starts as a standby still says what it was.
pub fn was_found_writable(view: &View) -> bool {
    let agent = matches!(view.rules.mode, Mode::Agent { .. });
    let found = view.memory.origin == Origin::Found;
    agent && found && view.control().is_some_and(|control| !was_standby(control))
}

/// Whether the data was a standby's when the server ended, or cannot be shown to have been a primary's.
pub fn was_standby(control: &Control) -> bool {
    match control.state {
        ControlState::ShutDown
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => false,
        ControlState::StartingUp
        | ControlState::ShutDownInRecovery
        | ControlState::InArchiveRecovery
        | ControlState::Unknown => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::types::{NodeName, SystemId, TimelineHistory};

    fn leader(history: &str, timeline: u32) -> Ancestry {
        let history = TimelineHistory::parse(history).unwrap();
        Ancestry { leader: NodeName::from("n1"), at: Moment(0), timeline: Timeline(timeline), history }
    }

    fn control(state: ControlState, timeline: u32, checkpoint: u64, min_recovery_end: u64) -> Control {
        Control {
            system_id: SystemId(7_000_000_000_000_000_000),
            state,
            timeline: Timeline(timeline),
            checkpoint: Lsn(checkpoint),
            min_recovery_end: Lsn(min_recovery_end),
            min_recovery_timeline: Timeline(if min_recovery_end > 0 { timeline } else { 0 }),
        }
    }

    #[test]
    fn a_clean_shutdown_before_the_fork_is_part_of_the_leaders_history() {
        let leader = leader("1\t0/5000000\tno recovery target specified\n", 2);
        let clean = |lsn| of_stopped(&control(ControlState::ShutDown, 1, lsn, 0), &leader);
        assert_eq!(clean(0x4ff_ff88), Lineage::Part);
        assert_eq!(clean(0x500_0000), Lineage::Left, "the shutdown checkpoint itself was not received");
    }

    #[test]
    fn a_crashed_primary_on_an_older_timeline_is_left_to_pg_rewind() {
        let leader = leader("1\t0/5000000\t\n", 2);
        assert_eq!(
            of_stopped(&control(ControlState::InProduction, 1, 0x400_0000, 0), &leader),
            Lineage::Unknown
        );
    }

    #[test]
    fn a_newer_private_timeline_has_left_however_long_it_is() {
        let leader = leader("1\t0/5000000\t\n", 2);
        assert_eq!(of_stopped(&control(ControlState::ShutDown, 3, 0x900_0000, 0), &leader), Lineage::Left);
        assert_eq!(of_running(Timeline(3), Lsn(0x100), &leader), Lineage::Left);
    }

    #[test]
    fn a_standby_that_replayed_beyond_the_fork_has_left() {
        let leader = leader("1\t0/5000000\t\n", 2);
        let standby =
            |end| of_stopped(&control(ControlState::ShutDownInRecovery, 1, 0x300_0000, end), &leader);
        assert_eq!(standby(0x500_0000), Lineage::Part);
        assert_eq!(standby(0x500_0001), Lineage::Left);
        assert_eq!(of_running(Timeline(1), Lsn(0x500_0001), &leader), Lineage::Left);
    }
}
