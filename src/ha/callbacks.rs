//! Callbacks: programs of the operator's that are told what became of PostgreSQL here, as Patroni does it.
//!
//! Called as `<program> <action> <role> <scope>`, as the account that PostgreSQL runs as. They hang on the published status, so nothing
//! ever waits for them; a new call ends the one before, since what that was about to say is out of date (`on_reload` stands
//! apart from the others). Which program runs is said by the environment of this node alone, never by the store: whoever
//! may write there must not be able to run programs on every node.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8PathBuf;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::dcs::{MemberState, Role};
use crate::process::{self, Command, RunAs};
use crate::types::Chain;

use super::Status;

/// A callback that has not ended by then hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// PostgreSQL answers.
    Start,
    /// It has ended, whatever for.
    Stop,
    /// It answers again after a restart that was asked for.
    Restart,
    /// It has read its configuration again.
    Reload,
    /// It takes writes and did not before, or the other way round.
    RoleChange,
}

impl Event {
    /// All of them, with the variable that names the program.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Start, "CALLBACK_ON_START"),
        (Self::Stop, "CALLBACK_ON_STOP"),
        (Self::Restart, "CALLBACK_ON_RESTART"),
        (Self::Reload, "CALLBACK_ON_RELOAD"),
        (Self::RoleChange, "CALLBACK_ON_ROLE_CHANGE"),
    ];

    /// The action's name, as the program gets it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "on_start",
            Self::Stop => "on_stop",
            Self::Restart => "on_restart",
            Self::Reload => "on_reload",
            Self::RoleChange => "on_role_change",
        }
    }
}

/// The programs.
pub type Programs = BTreeMap<Event, Program>;

/// A program, and what it is told before what has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: Utf8PathBuf,
    /// Its first arguments.
    pub args: Vec<String>,
}

impl From<&str> for Program {
    fn from(path: &str) -> Self {
        Utf8PathBuf::from(path).into()
    }
}

impl From<Utf8PathBuf> for Program {
    fn from(path: Utf8PathBuf) -> Self {
        Self { path, args: Vec::new() }
    }
}

/// What was last known of PostgreSQL.
#[derive(Debug, Clone, Default)]
struct Last {
    running: Option<Running>,
    /// Its role when it last ran.
    role: Option<Role>,
    restarting: bool,
    end: End,
}

/// What became of a server that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum End {
    /// Nothing yet.
    #[default]
    Open,
    /// It was the leader's, and was started to go on.
    Resumed,
}

/// A PostgreSQL that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    role: Role,
    started: i64,
    loaded: i64,
}

impl Last {
    /// What has happened since.
    fn take_in(&mut self, status: &Status) -> Option<(Event, Role)> {
        let answer = status.postgres.sql.as_ref();
        let now = answer.filter(|_| settled(status.role)).map(|answer| Running {
            role: status.role,
            started: answer.started_at_micros,
            loaded: answer.loaded_at_micros,
        });
        self.restarting |= status.state == MemberState::Restarting;
        if self.running.is_none() && status.state == MemberState::Starting && leads(self.role) {
            self.end = End::Resumed;
        }
        // A server that is slow to answer has not ended.
        let silent = now.is_none()
            && !matches!(status.state, MemberState::Stopped | MemberState::Stopping | MemberState::Crashed);
        if silent {
            return None;
        }
        let before = std::mem::replace(&mut self.running, now);
        match (before, now) {
            (None, None) if self.end == End::Resumed && status.lease_until.is_none() => Some(self.given_up()),
            (None, None) => None,
            (Some(before), None) => Some((Event::Stop, before.role)),
            (None, Some(now)) => Some((self.started(now), now.role)),
            (Some(before), Some(now)) if before.started != now.started => Some((self.started(now), now.role)),
            (Some(before), Some(now)) if before.role != now.role => {
                self.role = Some(now.role);
                Some((Event::RoleChange, now.role))
            }
            (Some(before), Some(now)) => (before.loaded != now.loaded).then_some((Event::Reload, now.role)),
        }
    }

    /// The server did not start again, and somebody else is to lead: nobody waits for it to come back as something else.
    fn given_up(&mut self) -> (Event, Role) {
        (self.end, self.role) = (End::Open, Some(Role::Demoted));
        (Event::RoleChange, Role::Demoted)
    }

    /// A server that came back as something else has changed its role: that is what matters then.
    fn started(&mut self, now: Running) -> Event {
        let restarted = std::mem::take(&mut self.restarting);
        self.end = End::Open;
        match self.role.replace(now.role) {
            Some(role) if role != now.role => Event::RoleChange,
            Some(_) if restarted => Event::Restart,
            Some(_) | None => Event::Start,
        }
    }
}

fn leads(role: Option<Role>) -> bool {
    matches!(role, Some(Role::Primary | Role::StandbyLeader))
}

/// A role that lasts.
fn settled(role: Role) -> bool {
    match role {
        Role::Primary | Role::Replica | Role::StandbyLeader => true,
        Role::Demoted | Role::Promoted | Role::Uninitialized => false,
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Primary | Role::Promoted => "primary",
        Role::StandbyLeader => "standby_leader",
        Role::Demoted => "demoted",
        Role::Replica | Role::Uninitialized => "replica",
    }
}

/// Calls the programs until the status ends.
pub async fn run(programs: Programs, run_as: RunAs, mut status: watch::Receiver<Option<Status>>) {
    let (mut last, mut call, mut reloads) = (Last::default(), JoinSet::new(), JoinSet::new());
    while status.changed().await.is_ok() {
        let news =
            status.borrow_and_update().as_ref().and_then(|s| Some((last.take_in(s)?, s.scope.clone())));
        let Some(((event, role), scope)) = news else { continue };
        let Some(program) = programs.get(&event) else { continue };
        info!(action = event.word(), role = role_word(role), program = %program.path, "running a callback");
        let command = Command::new("callback", program.path.clone())
            .args(program.args.iter().cloned())
            .args([event.word(), role_word(role), scope.as_str()])
            .of_administrator(&run_as);
        let calls = if event == Event::Reload { &mut reloads } else { &mut call };
        // Dropped, it is killed.
        *calls = JoinSet::new();
        calls.spawn(async move { call_once(command).await });
    }
}

async fn call_once(command: Command) {
    match process::run(&command, LIMIT).await {
        Ok(output) if output.exit.is_success() => {}
        Ok(output) => warn!(program = %command.program, exit = ?output.exit, "a callback failed"),
        Err(error) => warn!(program = %command.program, error = %Chain(&error), "a callback was not run"),
    }
}
