//! `edit-config`: the dynamic configuration changed by options, from a file, or in an editor.
//!
//! What is sent is the smallest merge patch that makes the one of the other: nothing that somebody else has changed
//! meanwhile is written back.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitStatus;

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::{Map, Value};

use super::ask::confirm;
use super::client::Cluster;
use super::{Force, Json, say};
use crate::cli::{Api, Printed, yaml};
use crate::ha::settings::merge;
use crate::process::{self, Mode, RunAs};

/// Options of `edit-config`.
#[derive(Debug, Clone, clap::Args)]
pub struct Edit {
    /// Which node to ask.
    #[command(flatten)]
    pub api: Api,
    /// Set this, such as ttl=20 or postgresql.parameters.work_mem=8MB; `null` removes it
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Set a parameter of PostgreSQL, such as max_connections=200
    #[arg(short, long = "pg", value_name = "NAME=VALUE")]
    pub pg: Vec<String>,
    /// Merge what this file says (YAML or JSON, `-` for standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "replace")]
    pub apply: Option<String>,
    /// Take this file in place of everything (YAML or JSON, `-` for standard input)
    #[arg(long, value_name = "FILE")]
    pub replace: Option<String>,
    /// How to print: the whole configuration as it is then.
    #[command(flatten)]
    pub json: Json,
    /// Do not show what changes
    #[arg(short, long)]
    pub quiet: bool,
    /// Whether to ask.
    #[command(flatten)]
    pub force: Force,
}

/// Changes the configuration.
///
/// # Errors
/// The change cannot be read, is not confirmed, or the API refuses it.
pub async fn edit(cluster: &Cluster, args: &Edit) -> anyhow::Result<Printed> {
    let before = cluster.get("/config").await?;
    let after = wanted(args, &before)?;
    let patch = difference(&before, &after);
    if patch.as_object().is_some_and(Map::is_empty) {
        return say(args.json, "nothing changes", &before);
    }
    if !args.quiet {
        writeln!(std::io::stderr(), "{}", lines(&patch, "").join("\n")).context("could not print")?;
    }
    let scope = cluster.picture().await?.scope().to_owned();
    confirm(args.force, "This becomes the configuration of every member.", &scope)?;
    let answer = cluster.call(None, (Method::PATCH, "/config"), Some(&patch)).await?;
    if !answer.is_success() {
        bail!("{}", answer.text);
    }
    let changed = serde_json::from_str(&answer.text).unwrap_or(after);
    say(args.json, "the configuration has changed", &changed)
}

fn wanted(args: &Edit, before: &Value) -> anyhow::Result<Value> {
    let mut after = before.clone();
    if let Some(file) = &args.replace {
        after = read(file)?;
    }
    if let Some(file) = &args.apply {
        merge(&mut after, &read(file)?);
    }
    for setting in &args.set {
        let (key, value) =
            setting.split_once('=').with_context(|| format!("{setting}: expected KEY=VALUE"))?;
        merge(&mut after, &nested(key.trim(), yaml::read(value.trim())?));
    }
    for setting in &args.pg {
        let (name, value) =
            setting.split_once('=').with_context(|| format!("{setting}: expected NAME=VALUE"))?;
        let value = yaml::read(value.trim())?;
        let parameter = Value::Object(Map::from_iter([(name.trim().to_owned(), value)]));
        merge(&mut after, &nested("postgresql.parameters", parameter));
    }
    let by_options =
        args.replace.is_some() || args.apply.is_some() || !(args.set.is_empty() && args.pg.is_empty());
    let after = if by_options { after } else { in_editor(before)? };
    if after.is_object() { Ok(after) } else { bail!("that is no configuration: expected keys and values") }
}

/// `a.b.c` and a value as nested objects.
fn nested(key: &str, value: Value) -> Value {
    key.rsplit('.').fold(value, |value, part| Value::Object(Map::from_iter([(part.to_owned(), value)])))
}

fn read(file: &str) -> anyhow::Result<Value> {
    let text = if file == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).context("could not read standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("could not read {file}"))?
    };
    yaml::read(&text).with_context(|| format!("{file} is neither YAML nor JSON"))
}

/// The merge patch that makes `after` of `before`.
fn difference(before: &Value, after: &Value) -> Value {
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else { return after.clone() };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match old.get(key) {
            Some(same) if same == value => {}
            Some(other) => {
                patch.insert(key.clone(), difference(other, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    patch.into()
}

/// One line for each value that changes.
fn lines(patch: &Value, prefix: &str) -> Vec<String> {
    match patch {
        Value::Object(entries) => {
            let under =
                |key: &String| if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            entries.iter().flat_map(|(key, value)| lines(value, &under(key))).collect()
        }
        Value::Null => vec![format!("- {prefix}")],
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            vec![format!("+ {prefix}: {patch}")]
        }
    }
}

/// Hands the configuration to the person's editor and takes back what was saved.
fn in_editor(before: &Value) -> anyhow::Result<Value> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to edit it: use --set, --pg, --apply or --replace");
    }
    let file = std::env::temp_dir().join(format!("pgherd-config-{}.yaml", std::process::id()));
    let path =
        camino::Utf8PathBuf::from_path_buf(file).map_err(|path| anyhow::anyhow!("{path:?} is no UTF-8"))?;
    process::write_atomic(&path, yaml::write(before).as_bytes(), &RunAs::Same, Mode::Private)
        .with_context(|| format!("could not write {path}"))?;
    let edited = open_editor(&path).and_then(|status| {
        if !status.success() {
            bail!("the editor failed ({status}): nothing was done");
        }
        read(path.as_str())
    });
    std::fs::remove_file(&path).with_context(|| format!("could not remove {path}"))?;
    edited
}

fn open_editor(path: &camino::Utf8Path) -> anyhow::Result<ExitStatus> {
    let editor = crate::config::editor();
    process::with_terminal(&editor, path).with_context(|| format!("could not run {editor} (set EDITOR)"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn options_become_the_smallest_patch() {
        let before = json!({"ttl": 10, "loop_wait": 2, "postgresql": {"parameters": {"work_mem": "4MB", "jit": false}}});
        let args = Edit {
            api: Api { url: None },
            set: vec!["ttl=20".into(), "loop_wait=null".into(), "postgresql.use_slots=false".into()],
            pg: vec!["work_mem=8MB".into(), "jit=off".into()],
            apply: None,
            replace: None,
            json: Json { json: false },
            quiet: true,
            force: Force { force: true },
        };
        let after = wanted(&args, &before).unwrap();
        let patch = difference(&before, &after);
        let expected = json!({"loop_wait": null, "ttl": 20,
            "postgresql": {"parameters": {"work_mem": "8MB"}, "use_slots": false}});
        assert_eq!(patch, expected);
        assert_eq!(
            lines(&patch, ""),
            [
                "- loop_wait",
                "+ ttl: 20",
                "+ postgresql.parameters.work_mem: \"8MB\"",
                "+ postgresql.use_slots: false"
            ]
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<u8>().prop_map(Value::from), "[a-z]{0,3}".prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }

    fn sorted(value: &Value) -> String {
        match value {
            Value::Object(map) => {
                let ordered: std::collections::BTreeMap<_, _> =
                    map.iter().map(|(k, v)| (k, sorted(v))).collect();
                format!("{ordered:?}")
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                value.to_string()
            }
        }
    }

    proptest! {
        #[test]
        fn a_difference_applied_gives_what_was_wanted(before in value(), after in value()) {
            let mut changed = before.clone();
            merge(&mut changed, &difference(&before, &after));
            prop_assert_eq!(sorted(&changed), sorted(&after));
        }
    }
}
