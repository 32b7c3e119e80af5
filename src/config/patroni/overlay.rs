//! The raw configuration: the file, or the files of a directory, and over it the `PATRONI_*` variables.

use std::collections::BTreeMap;
use std::ffi::OsString;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value};

use super::section::Reader;
use crate::config::Errors;

/// The whole configuration as text; the file and all other variables are then passed over.
const WHOLE: &str = "PATRONI_CONFIGURATION";
/// What every variable begins with.
const PREFIX: &str = "PATRONI_";
/// Variables for other programs, and switches of Patroni's own process.
const OF_OTHERS: &[&str] = &["PATRONICTL_CONFIG_FILE", "PATRONI_CONFIG_LOCATION", "PATRONI_EXPORTER"];

/// Reads everything; what is odd about the variables is noted in the reader.
pub(super) fn load(
    path: Option<&Utf8Path>,
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Reader, Errors> {
    let vars: BTreeMap<String, String> = vars
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
        .collect();
    if let Some(text) = vars.get(WHOLE) {
        return Ok(Reader::new(yaml(text, WHOLE)?));
    }
    let mut config = match path {
        Some(path) => from_files(path)?,
        None => Value::Object(Map::new()),
    };
    let mut unknown = Vec::new();
    for (name, text) in &vars {
        match target(name) {
            Some(keys) => put(&mut config, &keys, typed(&keys, text)),
            None if OF_OTHERS.contains(&name.as_str()) => {}
            None => unknown.push(name.clone()),
        }
    }
    let mut reader = Reader::new(config);
    for name in unknown {
        reader.warn(&name, "not a variable of Patroni that pgherd knows: it is not used");
    }
    Ok(reader)
}

fn from_files(path: &Utf8Path) -> Result<Value, Errors> {
    let unreadable = |path: &Utf8Path, error: &std::io::Error| Errors(vec![format!("{path}: {error}")]);
    if !path.is_dir() {
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        return yaml(&text, path.as_str());
    }
    let entries = path.read_dir_utf8().map_err(|error| unreadable(path, &error))?;
    let paths: Result<Vec<Utf8PathBuf>, _> = entries.map(|entry| Ok(entry?.into_path())).collect();
    let mut paths = paths.map_err(|error| unreadable(path, &error))?;
    paths.retain(|path| path.extension().is_some_and(|ext| matches!(ext, "yml" | "yaml")));
    paths.sort_unstable();
    let mut config = Value::Object(Map::new());
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
        merge(&mut config, yaml(&text, path.as_str())?);
    }
    Ok(config)
}

fn yaml(text: &str, of: &str) -> Result<Value, Errors> {
    // The parser's message may quote the text around the fault, which may be a password: only the place is told.
    let fault = |error: serde_saphyr::Error| {
        let place = error.location().map_or_else(String::new, |at| format!(", line {}", at.line()));
        Errors(vec![format!("{of}: not YAML that can be read{place}")])
    };
    let value: Value = serde_saphyr::from_str(text).map_err(fault)?;
    if value.is_object() { Ok(value) } else { Err(Errors(vec![format!("{of}: expected keys and values")])) }
}

/// Objects merge, everything else is replaced.
fn merge(target: &mut Value, over: Value) {
    match (target.as_object_mut(), over) {
        (Some(target), Value::Object(over)) => {
            for (key, value) in over {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, over) => *target = over,
    }
}

fn put(config: &mut Value, keys: &[String], value: Value) {
    let over =
        keys.iter().rev().fold(value, |value, key| Value::Object(Map::from_iter([(key.clone(), value)])));
    merge(config, over);
}

/// The path that a variable stands for.
fn target(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
    let path = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect());
    if matches!(rest.as_str(), "name" | "scope" | "namespace" | "thread_pool_size" | "thread_stack_size") {
        return path(&[&rest]);
    }
    let (section, key) = rest.split_once('_')?;
    match (section, key) {
        ("restapi" | "ctl", "username" | "password") => path(&[section, "authentication", key]),
        ("restapi" | "ctl" | "log" | "etcd3" | "citus", _) => path(&[section, key]),
        ("superuser" | "replication" | "rewind", _) => path(&["postgresql", "authentication", section, key]),
        ("postgresql", _) => match key.strip_prefix("bin_") {
            Some(program) if program != "dir" => path(&["postgresql", "bin_name", program]),
            Some(_) | None => path(&["postgresql", key]),
        },
        _ => None,
    }
}

/// Lists and booleans are written as YAML; everything else is text as it stands.
fn typed(keys: &[String], text: &str) -> Value {
    const LISTS: &[&str] = &["hosts", "allowlist"];
    let last = keys.last().map_or("", String::as_str);
    let as_yaml = || serde_saphyr::from_str::<Value>(text).ok();
    match last {
        "allowlist_include_members" | "use_proxies" | "insecure" => {
            as_yaml().filter(Value::is_boolean).unwrap_or_else(|| text.into())
        }
        "http_extra_headers" | "https_extra_headers" | "static_fields" | "loggers" => {
            as_yaml().unwrap_or_else(|| text.into())
        }
        _ if LISTS.contains(&last) => {
            let listed = as_yaml().filter(Value::is_array);
            listed.unwrap_or_else(|| text.split(',').map(|item| Value::from(item.trim())).collect())
        }
        _ => text.into(),
    }
}
