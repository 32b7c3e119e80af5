//! The verbs that change something. Each asks first where service or data is at stake, then calls one path of the API and
//! prints its words.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::ask::{EVERY, LONGEST, confirm, until};
use super::client::{Answer, Cluster, Member, Picture};
use super::{Force, Json, Role, Wait, say};
use crate::cli::{Api, Printed, print};

/// Options of `switchover`.
#[derive(Debug, Clone, clap::Args)]
pub struct Switchover {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
    /// The present leader (found out, if nothing is said)
    #[arg(long, alias = "primary", value_name = "NAME")]
    pub leader: Option<String>,
    /// Who shall lead (the best one, if nothing is said)
    #[arg(long, value_name = "NAME")]
    pub candidate: Option<String>,
    /// When: a time with its zone, such as 2026-12-01T03:00+01:00 (at once, if nothing is said)
    #[arg(long, value_name = "TIME")]
    pub scheduled: Option<String>,
    /// Whether to ask.
    #[command(flatten)]
    pub force: Force,
}

/// Options of `failover`.
#[derive(Debug, Clone, clap::Args)]
pub struct Failover {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
    /// Who shall lead
    #[arg(long, value_name = "NAME")]
    pub candidate: String,
    /// Whether to ask.
    #[command(flatten)]
    pub force: Force,
}

/// Which members.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// These members (all, if none is named)
    #[arg(value_name = "MEMBER")]
    pub members: Vec<String>,
    /// Only those with this role
    #[arg(short, long, default_value = "any")]
    pub role: Role,
}

/// Options of `restart`.
#[derive(Debug, Clone, clap::Args)]
pub struct Restart {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
    /// Whom it is about.
    #[command(flatten)]
    pub which: Which,
    /// Only one of them, whichever
    #[command(flatten)]
    pub any: AnyOne,
    /// Under which conditions.
    #[command(flatten)]
    pub conditions: Conditions,
    /// Whether to ask.
    #[command(flatten)]
    pub force: Force,
}

/// `--any`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct AnyOne {
    /// Only one of them, whichever
    #[arg(long)]
    pub any: bool,
}

/// What must hold at the moment of a restart.
#[derive(Debug, Clone, clap::Args)]
pub struct Conditions {
    /// When: a time with its zone (at once, if nothing is said)
    #[arg(long, value_name = "TIME")]
    pub scheduled: Option<String>,
    /// Only where PostgreSQL is older than this version
    #[arg(short, long, value_name = "VERSION")]
    pub pg_version: Option<String>,
    /// Only where a setting waits for it
    #[arg(long)]
    pub pending: bool,
    /// Give the lock away when it takes longer than this
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<String>,
}

/// Options of `reload`.
#[derive(Debug, Clone, clap::Args)]
pub struct Reload {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
    /// Whom it is about.
    #[command(flatten)]
    pub which: Which,
    /// For scripts that say so: nobody is asked here.
    #[command(flatten)]
    pub force: Force,
}

/// Options of `reinit`.
#[derive(Debug, Clone, clap::Args)]
pub struct Reinit {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
    /// These members
    #[arg(value_name = "MEMBER", required = true)]
    pub members: Vec<String>,
    /// Where the copy comes from.
    #[command(flatten)]
    pub source: Source,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: Wait,
    /// Whether to ask; also ends what is under way there.
    #[command(flatten)]
    pub force: Force,
}

/// `--from-leader`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Source {
    /// Copy from the leader, even if another member is preferred
    #[arg(long)]
    pub from_leader: bool,
}

/// Options of `pause` and `resume`.
#[derive(Debug, Clone, clap::Args)]
pub struct Maintenance {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: Wait,
}

/// Options of `flush`.
#[derive(Debug, Clone, clap::Args)]
pub struct Flush {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
    /// What was scheduled
    pub what: Scheduled,
    /// Whom it is about.
    #[command(flatten)]
    pub which: Which,
    /// For scripts that say so: nobody is asked here.
    #[command(flatten)]
    pub force: Force,
}

/// What can be scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheduled {
    /// A restart of a member
    Restart,
    /// A switchover
    Switchover,
}

/// An answer for who asked; a refusal is an error.
fn told(answer: &Answer, json: Json) -> anyhow::Result<Printed> {
    if answer.is_success() { say(json, &answer.text, &answer.as_json()) } else { bail!("{}", answer.text) }
}

/// Calls every member in turn; all are tried, and one refusal makes the whole a failure.
async fn each(
    cluster: &Cluster,
    members: Vec<&Member>,
    (method, path): (Method, &str),
    body: Option<&Value>,
    json: Json,
) -> anyhow::Result<Printed> {
    let (mut refused, mut answers) = (Vec::new(), Map::new());
    for member in members {
        let (words, answer) = match cluster.call(Some(member), (method.clone(), path), body).await {
            Ok(answer) if answer.is_success() => (answer.text.clone(), answer.as_json()),
            Ok(answer) => {
                refused.push(member.name());
                (format!("refused: {}", answer.text), answer.as_json())
            }
            Err(error) => {
                refused.push(member.name());
                (format!("{error:#}"), json!({ "message": format!("{error:#}") }))
            }
        };
        answers.insert(member.name().to_owned(), answer);
        if !json.json {
            print(&format!("{}: {words}\n", member.name()))?;
        }
    }
    if json.json {
        print(&format!("{:#}\n", Value::Object(answers)))?;
    }
    if refused.is_empty() { Ok(Printed) } else { bail!("not done on {}", refused.join(", ")) }
}

fn names(members: &[&Member]) -> String {
    members.iter().map(|member| member.name()).collect::<Vec<_>>().join(", ")
}

/// See [`super::Verb::Switchover`].
///
/// # Errors
/// See [`super::run`].
pub async fn switchover(cluster: &Cluster, args: &Switchover) -> anyhow::Result<Printed> {
    let picture = cluster.picture().await?;
    let leader = match &args.leader {
        Some(name) => name.clone(),
        None => picture.leader().context("nobody leads: this is for `pgherd failover`")?.name().to_owned(),
    };
    let to = args.candidate.as_deref().unwrap_or("the best candidate");
    let at = args.scheduled.as_deref().unwrap_or("now");
    let what = format!("The leadership of {} goes from {leader} to {to}, {at}.", picture.scope());
    confirm(args.force, &what, &leader)?;
    let mut body = Map::from_iter([("leader".to_owned(), Value::from(leader))]);
    body.extend(args.candidate.clone().map(|name| ("candidate".to_owned(), name.into())));
    body.extend(args.scheduled.clone().map(|at| ("scheduled_at".to_owned(), at.into())));
    told(&cluster.call(None, (Method::POST, "/switchover"), Some(&body.into())).await?, args.json)
}

/// See [`super::Verb::Failover`].
///
/// # Errors
/// See [`super::run`].
pub async fn failover(cluster: &Cluster, args: &Failover) -> anyhow::Result<Printed> {
    let picture = cluster.picture().await?;
    let candidate = picture.member(&args.candidate)?.name();
    let leader = picture.leader().map_or("nobody leads", Member::name);
    let what = format!("{candidate} is made the leader of {} (now: {leader}).", picture.scope());
    confirm(args.force, &what, candidate)?;
    let body = json!({ "candidate": candidate });
    told(&cluster.call(None, (Method::POST, "/failover"), Some(&body)).await?, args.json)
}

/// See [`super::Verb::Restart`].
///
/// # Errors
/// See [`super::run`].
pub async fn restart(cluster: &Cluster, args: &Restart) -> anyhow::Result<Printed> {
    let picture = cluster.picture().await?;
    let mut members = picture.chosen(&args.which.members, args.which.role)?;
    if args.conditions.pending {
        members.retain(|member| member.is_restart_pending());
    }
    if args.any.any {
        members.truncate(1);
    }
    if members.is_empty() {
        return say(args.json, "nothing to restart", &json!({}));
    }
    // A standby with fewer connections than its primary stops: they go first.
    members.sort_by_key(|member| member.leads());
    let at = args.conditions.scheduled.as_deref().unwrap_or("now");
    confirm(args.force, &format!("PostgreSQL is restarted on {}, {at}.", names(&members)), picture.scope())?;
    each(cluster, members, (Method::POST, "/restart"), Some(&restart_body(&args.conditions)), args.json).await
}

fn restart_body(conditions: &Conditions) -> Value {
    let mut body = Map::new();
    body.extend(conditions.scheduled.clone().map(|at| ("schedule".to_owned(), at.into())));
    body.extend(conditions.pg_version.clone().map(|v| ("postgres_version".to_owned(), v.into())));
    body.extend(conditions.timeout.clone().map(|t| ("timeout".to_owned(), t.into())));
    if conditions.pending {
        body.insert("restart_pending".to_owned(), true.into());
    }
    body.into()
}

/// See [`super::Verb::Reload`].
///
/// # Errors
/// See [`super::run`].
pub async fn reload(cluster: &Cluster, args: &Reload) -> anyhow::Result<Printed> {
    let picture = cluster.picture().await?;
    let members = picture.chosen(&args.which.members, args.which.role)?;
    each(cluster, members, (Method::POST, "/reload"), None, args.json).await
}

/// See [`super::Verb::Reinit`].
///
/// # Errors
/// See [`super::run`].
pub async fn reinit(cluster: &Cluster, args: &Reinit) -> anyhow::Result<Printed> {
    let picture = cluster.picture().await?;
    let members = picture.chosen(&args.members, Role::Any)?;
    let what = format!("The data of {} is put aside and copied anew.", names(&members));
    confirm(args.force, &what, &names(&members))?;
    let body = json!({ "force": args.force.force, "from_leader": args.source.from_leader });
    each(cluster, members, (Method::POST, "/reinitialize"), Some(&body), args.json).await?;
    if args.wait.wait {
        for name in &args.members {
            until_replica(cluster, name).await?;
        }
    }
    Ok(Printed)
}

/// Waits until a member is through: right after the call it may still look as before, so it must have been seen at work
/// once, or have stood whole for some looks.
async fn until_replica(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let mut progress = Copying::default();
    let deadline = crate::clock::now() + LONGEST;
    while crate::clock::now() < deadline {
        let state = match cluster.picture().await {
            Ok(picture) => picture.member(name).map_or_else(|_| "away".to_owned(), |m| m.state().to_owned()),
            Err(error) => format!("{error:#}"),
        };
        if progress.is_over(&state) {
            return Ok(());
        }
        let said = std::mem::replace(&mut progress.said, state.clone());
        if said != state {
            writeln!(std::io::stderr(), "waiting: {name} is {state}").context("could not print")?;
        }
        tokio::time::sleep(EVERY).await;
    }
    bail!("{name} is still {} after {LONGEST:?}", progress.said)
}

/// How far a member is that is copied anew.
#[derive(Debug, Default)]
struct Copying {
    seen_at_work: bool,
    whole_for: u32,
    said: String,
}

impl Copying {
    /// So many looks in a row must show it whole when it was never seen at work: a small copy is quick.
    const WHOLE: u32 = 20;

    fn is_over(&mut self, state: &str) -> bool {
        if !matches!(state, "streaming" | "running" | "in archive recovery") {
            (self.seen_at_work, self.whole_for) = (true, 0);
            return false;
        }
        self.whole_for += 1;
        self.seen_at_work || self.whole_for >= Self::WHOLE
    }
}

/// See [`super::Verb::Pause`].
///
/// # Errors
/// See [`super::run`].
pub async fn pause(cluster: &Cluster, args: &Maintenance) -> anyhow::Result<Printed> {
    maintenance(cluster, args, Mode::Paused).await
}

/// See [`super::Verb::Resume`].
///
/// # Errors
/// See [`super::run`].
pub async fn resume(cluster: &Cluster, args: &Maintenance) -> anyhow::Result<Printed> {
    maintenance(cluster, args, Mode::Active).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Paused,
    Active,
}

async fn maintenance(cluster: &Cluster, args: &Maintenance, mode: Mode) -> anyhow::Result<Printed> {
    let picture = cluster.picture().await?;
    let paused = picture.page.get("pause").and_then(Value::as_bool) == Some(true);
    let (value, already, done) = match mode {
        Mode::Paused => (Value::Bool(true), paused, "paused: nobody is made the leader by itself"),
        Mode::Active => (Value::Null, !paused, "resumed"),
    };
    let outcome = |changed: bool| json!({ "pause": mode == Mode::Paused, "changed": changed });
    if already {
        let words = done.split(':').next().unwrap_or(done);
        return say(args.json, &format!("{} was {words} already", picture.scope()), &outcome(false));
    }
    let body = json!({ "pause": value });
    let answer = cluster.call(None, (Method::PATCH, "/config"), Some(&body)).await?;
    if !answer.is_success() {
        bail!("{}", answer.text);
    }
    if args.wait.wait {
        until(LONGEST, || unaware(cluster, &picture, mode)).await?;
    }
    say(args.json, done, &outcome(true))
}

/// Who has not noticed yet.
async fn unaware(cluster: &Cluster, picture: &Picture, mode: Mode) -> Option<String> {
    let mut left = Vec::new();
    for member in &picture.members {
        let noticed = match cluster.page_of(member).await {
            Ok(page) => (page.get("pause").and_then(Value::as_bool) == Some(true)) == (mode == Mode::Paused),
            // Who does not answer cannot notice, and is not waited for.
            Err(_gone) => true,
        };
        if !noticed {
            left.push(member.name());
        }
    }
    (!left.is_empty()).then(|| format!("{} has not noticed yet", left.join(", ")))
}

/// See [`super::Verb::Flush`].
///
/// # Errors
/// See [`super::run`].
pub async fn flush(cluster: &Cluster, args: &Flush) -> anyhow::Result<Printed> {
    match args.what {
        Scheduled::Switchover => {
            told(&cluster.call(None, (Method::DELETE, "/switchover"), None).await?, args.json)
        }
        Scheduled::Restart => {
            let picture = cluster.picture().await?;
            let mut members = picture.chosen(&args.which.members, args.which.role)?;
            if args.which.members.is_empty() {
                members.retain(|member| member.0.get("scheduled_restart").is_some());
            }
            if members.is_empty() {
                return say(args.json, "no restarts are scheduled", &json!({}));
            }
            each(cluster, members, (Method::DELETE, "/restart"), None, args.json).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_over_when_it_was_seen_at_work_and_streams() {
        let mut copy = Copying::default();
        assert!(!copy.is_over("streaming"), "the call has not been noticed yet");
        assert!(!copy.is_over("creating replica"));
        assert!(copy.is_over("streaming"));
        let mut quick = Copying::default();
        assert!((1..Copying::WHOLE).all(|_| !quick.is_over("streaming")));
        assert!(quick.is_over("streaming"));
    }

    #[test]
    fn a_restart_says_only_what_was_asked() {
        let none = Conditions { scheduled: None, pg_version: None, pending: false, timeout: None };
        assert_eq!(restart_body(&none), json!({}));
        let all = Conditions {
            scheduled: Some("2026-12-01T03:00Z".into()),
            pg_version: Some("16.1".into()),
            pending: true,
            timeout: Some("30".into()),
        };
        let body = json!({"schedule": "2026-12-01T03:00Z", "postgres_version": "16.1", "timeout": "30",
            "restart_pending": true});
        assert_eq!(restart_body(&all), body);
    }
}
