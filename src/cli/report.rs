//! `pgherd report`: what a helper at the other end of a mail would ask for, in one JSON document without secrets.
//!
//! Invariant: a value is shown only when it is known to be harmless: of the environment the variables of the table that
//! are no secrets, of everything else all but what a key or a connection string calls a password.

use serde_json::{Map, Value, json};

use super::ctl::client::{Cluster, Errand};
use super::doctor;
use super::{Api, Printed, print};
use crate::clock;
use crate::config::{self, Config, Warning};

/// What the API tells.
const PAGES: [&str; 5] = ["/patroni", "/cluster", "/why", "/config", "/history"];
/// A key with one of these in it holds a secret.
const SECRETIVE: [&str; 5] = ["password", "passphrase", "passwd", "secret", "token"];
/// In the place of a secret.
const HIDDEN: &str = "(hidden)";

/// Collects and prints.
///
/// # Errors
/// The node's secrets cannot be used, or standard output cannot be written.
pub async fn run(config: &Config, warnings: &[Warning]) -> anyhow::Result<Printed> {
    let cluster = Cluster::new(&Api { url: None }, Some(config), Errand::Act)?;
    let mut pages = Map::new();
    for path in PAGES {
        let page = cluster.get(path).await.unwrap_or_else(|error| Value::String(format!("{error:#}")));
        pages.insert(path.to_owned(), page);
    }
    let metrics = cluster.call(None, (reqwest::Method::GET, "/metrics"), None).await;
    let metrics = metrics.map_or_else(|error| format!("{error:#}"), |answer| answer.text);
    let mut report = json!({
        "made": clock::wall().to_string(),
        "pgherd": env!("CARGO_PKG_VERSION"),
        "environment": config::set_variables(HIDDEN),
        "doctor": doctor::findings(config, warnings).await?,
        "pages": pages,
        "metrics": metrics.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(),
    });
    redact(&mut report);
    print(&format!("{report:#}\n"))
}

/// Takes out what a key or a connection string calls a secret, wherever it stands.
fn redact(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                let key = key.to_ascii_lowercase();
                if SECRETIVE.iter().any(|word| key.contains(word)) && value.is_string() {
                    *value = HIDDEN.into();
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::String(text) => *text = without_passwords(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `password=...` up to the next blank, and the password of `scheme://user:password@host`.
fn without_passwords(text: &str) -> String {
    let word = |word: &str| {
        if let Some((name, value)) = word.split_once('=')
            && SECRETIVE.iter().any(|secret| name.to_ascii_lowercase().contains(secret))
            && !value.is_empty()
        {
            return format!("{name}={HIDDEN}");
        }
        let user_info = word.split_once("://").and_then(|(scheme, rest)| {
            let (user_info, host) = rest.split_once('@')?;
            let (user, _password) = user_info.split_once(':')?;
            Some(format!("{scheme}://{user}:{HIDDEN}@{host}"))
        });
        user_info.unwrap_or_else(|| word.to_owned())
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let mut report = json!({
            "config": {"postgresql": {"parameters": {
                "primary_conninfo": "host=a password=hush port=1",
                "archive_command": "put s3://key:hush@bucket/%f %p",
                "password_encryption_rounds": 5,
            }, "Secret_Key": "hush"}},
            "list": ["PGPASSWORD=hush x", "plain"],
        });
        redact(&mut report);
        let text = report.to_string();
        assert!(!text.contains("hush"), "{text}");
        assert_eq!(
            report["config"]["postgresql"]["parameters"]["primary_conninfo"],
            "host=a password=(hidden) port=1"
        );
        assert_eq!(report["config"]["postgresql"]["parameters"]["password_encryption_rounds"], 5);
        assert_eq!(report["list"][1], "plain");
    }
}
