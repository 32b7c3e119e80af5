//! The verbs that only show something.

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::client::{Cluster, Picture};
use super::{Json, Role};
use crate::cli::{Api, table, yaml};

/// Options of what is only shown.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
}

/// Options of `dsn`.
#[derive(Debug, Clone, clap::Args)]
pub struct Dsn {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// Of any member with this role (the leader, if nothing is said)
    #[arg(short, long)]
    pub role: Option<Role>,
    /// Of this member
    #[arg(short, long, conflicts_with = "role")]
    pub member: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: Json,
}

/// The timelines.
///
/// # Errors
/// No answer.
pub async fn history(cluster: &Cluster, json: Json) -> anyhow::Result<String> {
    let page = cluster.get("/history").await?;
    Ok(if json.json { format!("{page:#}\n") } else { table::history(&page) })
}

/// The dynamic configuration, as YAML unless JSON is asked for.
///
/// # Errors
/// No answer.
pub async fn show_config(cluster: &Cluster, json: Json) -> anyhow::Result<String> {
    let page = cluster.get("/config").await?;
    Ok(if json.json { format!("{page:#}\n") } else { yaml::write(&page) })
}

/// How libpq reaches a member.
///
/// # Errors
/// No answer, or no such member.
pub async fn dsn(cluster: &Cluster, args: &Dsn) -> anyhow::Result<String> {
    let picture = cluster.picture().await?;
    let (host, port) = address(&picture, args.member.as_deref(), args.role)?;
    if args.json.json {
        return Ok(format!("{}\n", json!({ "host": host, "port": port })));
    }
    Ok(format!("host={host} port={port}\n"))
}

/// The address of the member that is meant: by name, else the first that plays the part, else the leader.
///
/// # Errors
/// There is none.
pub fn address(picture: &Picture, name: Option<&str>, role: Option<Role>) -> anyhow::Result<(String, u16)> {
    let member = match name {
        Some(name) => picture.member(name)?,
        None => {
            let role = role.unwrap_or(Role::Leader);
            let found = picture.members.iter().find(|member| member.plays(role));
            found.with_context(|| format!("{} has no such member at present", picture.scope()))?
        }
    };
    member.address().with_context(|| format!("{} has not said how it is reached", member.name()))
}

/// The versions that a member tells of: pgherd's, Patroni's language, PostgreSQL's.
pub fn version_line(name: &str, page: &Value) -> String {
    let text = |pointer: &str| page.pointer(pointer).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let server = page.get("server_version").and_then(Value::as_u64);
    let server = server.map_or_else(|| "down".to_owned(), |v| format!("{}.{}", v / 10_000, v % 10_000));
    format!(
        "{name}: pgherd {}, Patroni {}, PostgreSQL {server}\n",
        text("/pgherd/version"),
        text("/patroni/version")
    )
}

/// The same for a program; null where nothing is known.
fn version_facts(page: &Value) -> Value {
    let of = |pointer: &str| page.pointer(pointer).cloned().unwrap_or_default();
    json!({ "pgherd": of("/pgherd/version"), "patroni": of("/patroni/version"), "server_version": of("/server_version") })
}

/// One line for each member, or what the versions are of every one.
///
/// # Errors
/// No list of members.
pub async fn versions(cluster: &Cluster, names: &[String], json: Json) -> anyhow::Result<String> {
    let picture = cluster.picture().await?;
    if json.json {
        let mut all = Map::new();
        for member in picture.chosen(names, Role::Any)? {
            let page = cluster.page_of(member).await.unwrap_or_default();
            all.insert(member.name().to_owned(), version_facts(&page));
        }
        return Ok(format!("{:#}\n", Value::Object(all)));
    }
    let mut lines = String::new();
    for member in picture.chosen(names, Role::Any)? {
        let line = match cluster.page_of(member).await {
            Ok(page) => version_line(member.name(), &page),
            Err(error) => format!("{}: {error:#}\n", member.name()),
        };
        lines.push_str(&line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::super::client::Member;
    use super::*;

    #[test]
    fn versions_are_told_as_numbers_that_people_know() {
        let page = json!({"server_version": 150_018, "patroni": {"version": "4.1.4"}, "pgherd": {"version": "0.1.0"}});
        assert_eq!(version_line("n0", &page), "n0: pgherd 0.1.0, Patroni 4.1.4, PostgreSQL 15.18\n");
        assert_eq!(version_line("n1", &json!({})), "n1: pgherd unknown, Patroni unknown, PostgreSQL down\n");
    }

    #[test]
    fn an_address_is_the_leaders_unless_said_otherwise() {
        let row = |name: &str, role: &str, port: u16| {
            Member(json!({"name": name, "role": role, "host": "10.0.0.1", "port": port}))
        };
        let members = vec![row("n0", "leader", 1), row("n1", "replica", 2)];
        let picture = Picture { page: json!({"scope": "demo"}), members };
        assert_eq!(address(&picture, None, None).unwrap().1, 1);
        assert_eq!(address(&picture, None, Some(Role::Replica)).unwrap().1, 2);
        assert_eq!(address(&picture, Some("n1"), None).unwrap().1, 2);
        assert!(address(&picture, None, Some(Role::StandbyLeader)).is_err());
    }
}
