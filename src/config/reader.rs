//! Raw values out of the environment: looked up in the table, with every mistake noted instead of returned.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;

use zeroize::Zeroizing;

use super::Warning;
use super::variables::{self, Kind};

/// The longest secret file that is read; a passphrase is not longer.
const SECRET_FILE_LIMIT: u64 = 64 * 1024;

/// The environment, and what was found wrong with it so far.
pub(super) struct Reader {
    vars: BTreeMap<String, OsString>,
    asked: BTreeSet<&'static str>,
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<Warning>,
}

impl Reader {
    pub(super) fn new(vars: impl Iterator<Item = (OsString, OsString)>) -> Self {
        // A name that is no UTF-8 is none of ours.
        let vars = vars.filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        Self { vars, asked: BTreeSet::new(), errors: Vec::new(), warnings: Vec::new() }
    }

    /// Notes a mistake.
    pub(super) fn wrong(&mut self, name: &str, what: impl std::fmt::Display) {
        self.errors.push(format!("{name}: {what}"));
    }

    pub(super) fn warn(&mut self, name: &str, what: impl std::fmt::Display) {
        self.warnings.push(Warning(format!("{name}: {what}")));
    }

    /// The value as bytes; an empty one is as good as none (compose files pass `NAME=`).
    fn raw(&mut self, name: &'static str) -> Option<OsString> {
        self.asked.insert(name);
        self.vars.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// The value as text, without blanks around it.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        match self.raw(name)?.into_string() {
            Ok(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Err(bytes) => {
                self.wrong(name, format_args!("{} bytes that are not UTF-8; expected text", bytes.len()));
                None
            }
        }
    }

    /// The value, parsed. `parse` says what it expected when the text is something else.
    pub(super) fn parsed<T, E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.wrong(name, format_args!("{}; expected {expected}", shape(&text)));
                None
            }
        }
    }

    /// A secret as bytes: from the variable, or from the file that `<name>_FILE` names. Only one line break at the end
    /// of a file is dropped; nothing else is touched.
    pub(super) fn secret(&mut self, name: &'static str) -> Option<Zeroizing<Vec<u8>>> {
        let direct = self.raw(name).map(|value| Zeroizing::new(value.into_vec()));
        let file_name = format!("{name}_FILE");
        let path = self.vars.get(&file_name).filter(|path| !path.is_empty()).cloned();
        match (direct, path) {
            (Some(_), Some(_)) => {
                self.wrong(name, format_args!("{file_name} is set too; expected one of them"));
                None
            }
            (Some(value), None) => Some(value),
            (None, Some(path)) => match read_secret(&path) {
                Ok(value) => Some(value),
                Err(why) => {
                    self.wrong(&file_name, format_args!("{}: {why}", path.display()));
                    None
                }
            },
            (None, None) => None,
        }
    }

    /// `PATH`: the system's, hence not in the table.
    pub(super) fn search_path(&self) -> String {
        let usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        self.vars.get("PATH").and_then(|path| path.to_str()).unwrap_or(usual).to_owned()
    }

    /// Warns of names that look like a slip, and of those that flux-pg-cluster knows and pgherd does not.
    pub(super) fn near_misses(&mut self) {
        for (name, instead) in variables::PREDECESSORS {
            if self.vars.contains_key(*name) {
                self.warn(
                    name,
                    format_args!("of flux-pg-cluster, and not used; in its place there is {instead}"),
                );
            }
        }
        let known = |name: &str| {
            let secret = |stem| variables::find(stem).is_some_and(|v| v.kind == Kind::Secret);
            let before = variables::PREDECESSORS.iter().any(|(before, _)| *before == name);
            before || variables::find(name).is_some() || name.strip_suffix("_FILE").is_some_and(secret)
        };
        let unknown = self.vars.keys().filter(|name| !known(name));
        let near = |name: &String| Some((name.clone(), variables::likely(name)?));
        for (name, likely) in unknown.filter_map(near).collect::<Vec<_>>() {
            self.warn(&name, format_args!("not a variable of pgherd; did you mean {likely}?"));
        }
    }

    /// The names that were asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> &BTreeSet<&'static str> {
        &self.asked
    }
}

fn read_secret(path: &OsString) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error: std::io::Error| error.to_string();
    // Only a regular file: opening a pipe that nobody writes to would wait for ever.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut value = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(SECRET_FILE_LIMIT).read_to_end(&mut value).map_err(failed)?;
    if value.ends_with(b"\n") {
        value.pop();
    }
    if value.is_empty() { Err("the file is empty".to_owned()) } else { Ok(value) }
}

/// A plain value as an error shows it: quoted, not too long, and not at all when it may hold a password after all.
pub(super) fn shape(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.contains("://") && text.contains('@') {
        return "a URL with credentials".to_owned();
    }
    if text.to_ascii_lowercase().contains("password") {
        return format!("{} characters that speak of a password", text.chars().count());
    }
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{start:?}... ({} characters)", text.chars().count())
}
