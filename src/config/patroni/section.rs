//! Values out of the raw configuration by their paths, with every mistake noted instead of returned.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::keys::{self, Standing};
use crate::config::reader::shape;
use crate::config::{Errors, Warning};
use crate::postgres::settings::as_text;

/// The raw configuration, and what was found wrong with it so far.
pub(super) struct Reader {
    config: Value,
    errors: Vec<String>,
    warnings: Vec<Warning>,
}

impl Reader {
    pub(super) fn new(config: Value) -> Self {
        let mut reader = Self { config, errors: Vec::new(), warnings: Vec::new() };
        reader.judge_keys();
        reader
    }

    /// Says what stands in the file and is not used.
    fn judge_keys(&mut self) {
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        keys::walk(&self.config, &mut |path, standing| match standing {
            Standing::Used => {}
            Standing::Passed(_) if self.names_method(path) => {}
            Standing::Passed(instead) => warnings.push(Warning(format!("{path}: not used yet; {instead}"))),
            Standing::Fatal(why) => errors.push(format!("{path}: {why}")),
            Standing::Unknown(None) => {
                warnings.push(Warning(format!("{path}: neither Patroni nor pgherd knows this key")));
            }
            Standing::Unknown(Some(likely)) => warnings.push(Warning(format!(
                "{path}: neither Patroni nor pgherd knows this key; did you mean {likely}?"
            ))),
        });
        self.errors.extend(errors);
        self.warnings.extend(warnings);
    }

    /// Whether this is the section of a method that `create_replica_methods` or `bootstrap.method` names.
    fn names_method(&self, path: &str) -> bool {
        if let Some(section) = path.strip_prefix("bootstrap.") {
            return self.value("bootstrap.method").and_then(Value::as_str) == Some(section);
        }
        let section = path.strip_prefix("postgresql.");
        match self.value("postgresql.create_replica_methods") {
            Some(Value::Array(names)) => names.iter().any(|name| name.as_str() == section),
            one => one.and_then(Value::as_str) == section && section.is_some(),
        }
    }

    pub(super) fn finish<T>(self, read: Option<T>) -> Result<(T, Vec<Warning>), Errors> {
        match read {
            Some(value) if self.errors.is_empty() => Ok((value, self.warnings)),
            Some(_) | None => Err(Errors(self.errors)),
        }
    }

    /// Notes a mistake.
    pub(super) fn wrong(&mut self, path: &str, what: impl std::fmt::Display) {
        self.errors.push(format!("{path}: {what}"));
    }

    pub(super) fn warn(&mut self, path: &str, what: impl std::fmt::Display) {
        self.warnings.push(Warning(format!("{path}: {what}")));
    }

    /// Reads what may never be used: what is wrong with it is a warning, and then it counts as absent.
    pub(super) fn tolerating<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let n_before = self.errors.len();
        let found = read(self);
        let wrong = self.errors.split_off(n_before);
        let usable = wrong.is_empty();
        self.warnings.extend(wrong.into_iter().map(|what| Warning(format!("{what}; not used"))));
        found.filter(|_| usable)
    }

    /// What stands there; null is as good as nothing.
    pub(super) fn value(&self, path: &str) -> Option<&Value> {
        let value = path.split('.').try_fold(&self.config, |value, key| value.get(key))?;
        Some(value).filter(|value| !value.is_null())
    }

    /// Text, or a number as text.
    pub(super) fn text(&mut self, path: &str) -> Option<String> {
        let value = self.value(path)?;
        match as_text(value) {
            Some(text) => Some(text).filter(|text| !text.is_empty()),
            None => {
                self.wrong(path, "expected text");
                None
            }
        }
    }

    /// Text that must be there.
    pub(super) fn required(&mut self, path: &str) -> Option<String> {
        if self.value(path).is_none() {
            self.wrong(path, "is required");
        }
        self.text(path)
    }

    /// A secret that must be there.
    pub(super) fn secret(&mut self, path: &str) -> Option<SecretString> {
        self.text(path).map(SecretString::from)
    }

    /// The value, parsed. `parse` says what it expected when the text is something else.
    pub(super) fn parsed<T>(
        &mut self,
        path: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(path)?;
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.wrong(path, format_args!("{}; expected {expected}", shape(&text)));
                None
            }
        }
    }

    pub(super) fn flag(&mut self, path: &str) -> Option<bool> {
        self.parsed(path, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Ok(true),
            "false" | "off" | "no" | "0" => Ok(false),
            _ => Err("true or false".to_owned()),
        })
    }

    /// A list of texts; one text counts as a list of one.
    pub(super) fn list(&mut self, path: &str) -> Vec<String> {
        let Some(value) = self.value(path) else { return Vec::new() };
        let read: Option<Vec<String>> = match value.as_array() {
            Some(items) => items.iter().map(as_text).collect(),
            None => as_text(value).map(|text| vec![text]),
        };
        read.unwrap_or_else(|| {
            self.wrong(path, "expected a list of texts");
            Vec::new()
        })
    }

    pub(super) fn map(&mut self, path: &str) -> Map<String, Value> {
        match self.value(path) {
            None => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(_) => {
                self.wrong(path, "expected keys and values");
                Map::new()
            }
        }
    }

    /// A map of texts.
    pub(super) fn texts(&mut self, path: &str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for (key, value) in self.map(path) {
            match as_text(&value) {
                Some(text) => drop(texts.insert(key, text)),
                None if value.is_null() => {}
                None => self.wrong(&format!("{path}.{key}"), "expected text"),
            }
        }
        texts
    }
}
