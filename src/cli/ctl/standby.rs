//! `demote-cluster` and `promote-cluster`: a whole cluster begins, or ends, to follow another one.

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::{Value, json};

use super::ask::{LONGEST, confirm, until};
use super::client::Cluster;
use super::{Force, Json, say};
use crate::cli::{Api, Printed};

/// Options of `demote-cluster`.
#[derive(Debug, Clone, clap::Args)]
pub struct Demote {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// The server of the other cluster that shall be followed, or several with commas between them
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Its port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The command that fetches a file of its WAL archive (agent mode only)
    #[arg(long, value_name = "COMMAND")]
    pub restore_command: Option<String>,
    /// The replication slot that exists there
    #[arg(long, value_name = "NAME")]
    pub primary_slot_name: Option<String>,
    /// Whether to ask.
    #[command(flatten)]
    pub force: Force,
    /// How the outcome is told.
    #[command(flatten)]
    pub json: Json,
}

/// Options of `promote-cluster`.
#[derive(Debug, Clone, clap::Args)]
pub struct Promote {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// Whether to ask.
    #[command(flatten)]
    pub force: Force,
    /// How the outcome is told.
    #[command(flatten)]
    pub json: Json,
}

/// See [`super::Verb::DemoteCluster`].
///
/// # Errors
/// See [`super::run`].
pub async fn demote(cluster: &Cluster, args: &Demote) -> anyhow::Result<Printed> {
    let section = section(args);
    if args.host.is_none() && args.restore_command.is_none() {
        bail!("--host or --restore-command is needed: without one nobody is followed");
    }
    let whom = args.host.as_deref().unwrap_or("an archive");
    let what = format!("follows {whom}, and takes no writes");
    change(cluster, (args.force, args.json), (section, "standby_leader", &what)).await
}

/// See [`super::Verb::PromoteCluster`].
///
/// # Errors
/// See [`super::run`].
pub async fn promote(cluster: &Cluster, args: &Promote) -> anyhow::Result<Printed> {
    let what = "follows no other cluster any more, and takes writes of its own";
    change(cluster, (args.force, args.json), (Value::Null, "primary", what)).await
}

/// All of it: what an earlier section said is not to be mixed with this one.
fn section(args: &Demote) -> Value {
    json!({
        "host": args.host,
        "port": args.port,
        "primary_slot_name": args.primary_slot_name,
        "restore_command": args.restore_command,
        "archive_cleanup_command": null,
        "create_replica_methods": null,
        "recovery_min_apply_delay": null,
    })
}

async fn change(
    cluster: &Cluster,
    (force, json): (Force, Json),
    (section, role, what): (Value, &str, &str),
) -> anyhow::Result<Printed> {
    let picture = cluster.picture().await?;
    let leader = picture.leader().context("nobody leads: it has to be led before its part can change")?;
    if part(&cluster.page_of(leader).await?) == (role, "running") {
        bail!("{} is what it shall be already", picture.scope());
    }
    confirm(force, &format!("{} {what}.", picture.scope()), picture.scope())?;
    let body = json!({ "standby_cluster": section });
    let answer = cluster.call(None, (Method::PATCH, "/config"), Some(&body)).await?;
    if !answer.is_success() {
        bail!("{}", answer.text);
    }
    until(LONGEST, || waits_for(cluster, role)).await?;
    let told = json!({ "scope": picture.scope(), "role": role, "standby_cluster": section });
    say(json, &format!("{} {what}\n", picture.scope()), &told)
}

/// Role and state of a member's own page.
fn part(page: &Value) -> (&str, &str) {
    let text = |key: &str| page.get(key).and_then(Value::as_str).unwrap_or("unknown");
    (text("role"), text("state"))
}

/// What is still missing: the leader's own word counts, since the list goes by the configuration.
async fn waits_for(cluster: &Cluster, role: &str) -> Option<String> {
    let look = async {
        let picture = cluster.picture().await?;
        let Some(leader) = picture.leader() else { return Ok("nobody leads".to_owned()) };
        let page = cluster.page_of(leader).await?;
        let (is, state) = part(&page);
        let done = (is, state) == (role, "running");
        Ok::<_, anyhow::Error>(if done {
            String::new()
        } else {
            format!("{} is {is}, {state}", leader.name())
        })
    };
    let missing = look.await.unwrap_or_else(|error| format!("{error:#}"));
    (!missing.is_empty()).then_some(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_takes_the_place_of_all_that_was_said_before() {
        let args = Demote {
            api: Api { url: None },
            host: Some("203.0.113.1".into()),
            port: None,
            restore_command: None,
            primary_slot_name: Some("dr".into()),
            force: Force { force: true },
            json: Json { json: false },
        };
        let expected = json!({
            "host": "203.0.113.1", "port": null, "primary_slot_name": "dr", "restore_command": null,
            "archive_cleanup_command": null, "create_replica_methods": null, "recovery_min_apply_delay": null,
        });
        assert_eq!(section(&args), expected);
    }
}
