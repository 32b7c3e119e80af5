//! `pgherd report`: what a helper at the other end of a mail would ask for, in one JSON document without secrets.
//!
//! Invariant: when in doubt a value is hidden whole: every secret of the environment, whatever is under a key or in a text that
//! speaks of a secret, every URL with an account in it, every command and connection string.

use serde_json::{Map, Value, json};

use super::ctl::client::{Cluster, Errand};
use super::doctor;
use super::{Api, Printed, print};
use crate::clock;
use crate::config::{self, Config, Warning};

/// What the API tells.
const PAGES: [&str; 5] = ["/patroni", "/cluster", "/why", "/config", "/history"];
/// A key or a text with one of these in it speaks of a secret.
const SECRETIVE: [&str; 6] = ["password", "passphrase", "passwd", "secret", "token", "bearer"];
/// A key that ends like this may hold one among other things.
const MAY_HOLD_ONE: [&str; 4] = ["_command", "conninfo", "dsn", "postgres_parameters"];
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

/// Takes out whatever is under a key, or in a text, that speaks of a secret, wherever it stands.
fn redact(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                if speaks_of_a_secret(key)
                    || MAY_HOLD_ONE.iter().any(|word| key.to_ascii_lowercase().ends_with(word))
                {
                    *value = HIDDEN.into();
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::String(text) if speaks_of_a_secret(text) || text.contains("://") && text.contains('@') => {
            *text = HIDDEN.to_owned();
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn speaks_of_a_secret(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    SECRETIVE.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let mut report = json!({
            "environment": {"APP_NAME": "demo", "POSTGRES_PARAMETERS": "archive_command=KEY=hush put %p"},
            "config": {"postgresql": {"parameters": {
                "primary_conninfo": "host=a password='hush hush' port=1",
                "archive_command": "put s3://key:hush@bucket/%f %p",
                "work_mem": "64MB",
            }, "Secret_Key": "hush", "password": 12345}},
            "list": ["a=1\npassword=hush", "postgres://h/d?user=u&password=hush", "postgres://u:p@hush@h",
                "Authorization: Bearer hush", "plain"],
        });
        redact(&mut report);
        let text = report.to_string();
        assert!(!text.contains("hush") && !text.contains("12345"), "{text}");
        assert_eq!(report["environment"]["APP_NAME"], "demo");
        assert_eq!(report["config"]["postgresql"]["parameters"]["work_mem"], "64MB");
        assert_eq!(report["list"][4], "plain");
    }
}
