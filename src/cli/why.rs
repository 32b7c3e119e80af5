//! `pgherd why`: what a node decided and on what, what it waits for, and what would happen if the primary died now.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;

use super::{Api, client, fetch};

/// How `why` answers.
#[derive(Debug, Clone, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "the switches of a command")]
pub struct Args {
    /// The member to ask; without it, this node
    pub node: Option<String>,
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// Show so many of the last decisions (a thousand are kept)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub last: usize,
    /// Show what each decision went by
    #[arg(short, long)]
    pub verbose: bool,
    /// Print JSON, with everything
    #[arg(long)]
    pub json: bool,
}

/// Asks the node and returns what is to be printed.
///
/// # Errors
/// The API does not answer, or there is no such member.
pub async fn run(args: &Args, url: &str) -> anyhow::Result<String> {
    let client = client().context("could not make an HTTP client")?;
    let url = match &args.node {
        None => url.to_owned(),
        Some(name) => member_url(&fetch(&client, url, "cluster").await?, name)?,
    };
    let page = fetch(&client, &url, "why").await?;
    Ok(if args.json { format!("{page:#}\n") } else { in_words(&page, args) })
}

/// Where a member's API is.
fn member_url(cluster: &Value, name: &str) -> anyhow::Result<String> {
    let members = cluster.get("members").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = members.iter().filter_map(|m| m.get("name")?.as_str()).collect();
    let member = members.iter().find(|m| m.get("name").and_then(Value::as_str) == Some(name));
    let url = member.and_then(|m| m.get("api_url")?.as_str());
    let url = url.with_context(|| format!("there is no member {name}; there are {}", names.join(", ")))?;
    Ok(url.trim_end_matches("/patroni").to_owned())
}

fn in_words(page: &Value, args: &Args) -> String {
    let text = |key: &str| page.get(key).and_then(Value::as_str).unwrap_or("?");
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").unwrap_or_default();
    line(format!("{} ({}, {}): {}", text("name"), text("role"), text("state"), text("reason")));
    line(under_way(page));
    line(forecast(page.get("if_the_primary_dies").unwrap_or(&Value::Null)));
    let steps = page.get("decisions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    line(format!("The last of {} decisions:", steps.len()));
    for step in steps.iter().skip(steps.len().saturating_sub(args.last)) {
        line(decision(step));
        if args.verbose {
            inputs(step).into_iter().for_each(&mut line);
        }
    }
    out
}

fn under_way(page: &Value) -> String {
    let seconds = |path: &str| page.pointer(path).and_then(Value::as_f64).unwrap_or_default();
    let again = seconds("/looks_again_in_seconds");
    match page.pointer("/doing/job").and_then(Value::as_str) {
        Some(job) => format!("Under way for {:.1} s: {job}.", seconds("/doing/seconds")),
        None => {
            format!("Nothing is under way; it looks again within {again:.1} s, or when something changes.")
        }
    }
}

fn forecast(page: &Value) -> String {
    let known = page.get("known").and_then(Value::as_bool).unwrap_or_default();
    let leader = page.get("leader").and_then(Value::as_str);
    match (known, leader) {
        (false, _) => "If the primary dies now: nobody leads as far as this node knows.".to_owned(),
        (true, Some(leader)) => {
            let seconds = page.get("within_seconds").and_then(Value::as_f64).unwrap_or_default();
            let lost = match page.get("bytes_at_risk").and_then(Value::as_u64).unwrap_or_default() {
                0 => "no acknowledged commit is lost".to_owned(),
                bytes => format!("up to {bytes} bytes of acknowledged commits are lost"),
            };
            format!("If the primary dies now: {leader} takes over within {seconds:.1} s, {lost}.")
        }
        (true, None) => {
            let whys = page.get("nobody_because").and_then(Value::as_object);
            let whys = whys.into_iter().flatten().map(|(name, why)| format!("\n  {name}: {}", word(why)));
            let list: String = whys.collect();
            let list = if list.is_empty() { " there is no other member.".to_owned() } else { list };
            format!("If the primary dies now, nobody can take over:{list}")
        }
    }
}

fn decision(step: &Value) -> String {
    let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or("?");
    let actions = step.get("actions").and_then(Value::as_array).into_iter().flatten();
    let actions: Vec<String> = actions.map(word).collect();
    let actions = if actions.is_empty() { String::new() } else { format!("  [{}]", actions.join(", ")) };
    let times = match step.get("times").and_then(Value::as_u64) {
        Some(times) if times > 1 => format!("  {times} times"),
        Some(_) | None => String::new(),
    };
    format!("  {}  {}{actions}{times}", text("at"), text("reason"))
}

fn inputs(step: &Value) -> Vec<String> {
    let inputs = step.get("inputs").and_then(Value::as_object);
    inputs.into_iter().flatten().map(|(name, fact)| format!("      {name}: {}", word(fact))).collect()
}

/// A text without its quotes.
fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn args() -> Args {
        Args { node: None, api: Api { url: None }, last: 1, verbose: true, json: false }
    }

    #[test]
    fn the_page_reads_as_sentences() {
        let page = json!({
            "name": "n0", "role": "primary", "state": "running", "reason": "the leader with the lock",
            "looks_again_in_seconds": 2.0,
            "if_the_primary_dies": {"known": true, "leader": "n1", "within_seconds": 9.3, "bytes_at_risk": 0},
            "decisions": [
                {"at": "2026-11-20T15:54:15Z", "reason": "older", "times": 1},
                {"at": "2026-11-20T15:54:16Z", "reason": "the lock is ours: promoting", "times": 2,
                 "actions": ["begin promote"], "inputs": {"leader": "n0"}},
            ],
        });
        let expected = "n0 (primary, running): the leader with the lock\n\
            Nothing is under way; it looks again within 2.0 s, or when something changes.\n\
            If the primary dies now: n1 takes over within 9.3 s, no acknowledged commit is lost.\n\
            The last of 2 decisions:\n  \
            2026-11-20T15:54:16Z  the lock is ours: promoting  [begin promote]  2 times\n      leader: n0\n";
        assert_eq!(in_words(&page, &args()), expected);
    }

    #[test]
    fn nobody_is_explained_by_name() {
        let stuck = json!({"known": true, "leader": null, "nobody_because": {"n2": "1 of 2 votes"}});
        assert!(forecast(&stuck).ends_with("nobody can take over:\n  n2: 1 of 2 votes"));
        let alone = json!({"known": true, "leader": null, "nobody_because": {}});
        assert!(forecast(&alone).ends_with("there is no other member."));
    }

    #[test]
    fn a_member_is_found_by_name_or_the_names_are_told() {
        let cluster = json!({"members": [{"name": "n0", "api_url": "http://127.0.1.1:8008/patroni"}]});
        assert_eq!(member_url(&cluster, "n0").unwrap(), "http://127.0.1.1:8008");
        assert_eq!(
            member_url(&cluster, "n9").unwrap_err().to_string(),
            "there is no member n9; there are n0"
        );
    }
}
