//! House rules that the compiler does not know, as a table: each rule looks at one source file and names its faults.
//! The planted faults at the end prove that each rule can fail.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test helpers")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pgherd::config;
use pgherd::templates::Template;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A module imports only from rows above its own.
const LAYERS: &[&[&str]] = &[
    &["types", "clock"],
    &["log", "templates", "tls"],
    &["dcs", "peer", "process"],
    &["discovery", "record", "supervisor"],
    &["postgres"],
    &["etcd", "ha"],
    &["api", "proxy"],
    &["config"],
    &["node"],
    &["init"],
    &["cli"],
];

/// Files that decide or compute and do nothing else; `*` is any one folder, a trailing `/` all that is beneath. Whoever says
/// "Pure" of itself in its module docs is held to it as well.
const PURE: &[&str] = &[
    "types.rs",
    "tls/",
    "templates.rs",
    "*/view.rs",
    "*/view/",
    "*/decide.rs",
    "*/decide/",
    "supervisor/unit.rs",
    "postgres/hba.rs",
    "postgres/inherit.rs",
    "postgres/settings.rs",
    "ha/configure.rs",
    "ha/forecast.rs",
    "ha/door.rs",
    "ha/failsafe.rs",
    "ha/fitness.rs",
    "ha/adoption.rs",
    "ha/job.rs",
    "ha/lead.rs",
    "ha/lineage.rs",
    "ha/manual.rs",
    "ha/orders.rs",
    "ha/pause.rs",
    "ha/settings.rs",
    "ha/pace.rs",
    "ha/silence.rs",
    "api/access.rs",
    "ha/memory.rs",
    "ha/publish.rs",
    "ha/race.rs",
    "ha/reason.rs",
    "ha/rules.rs",
    "ha/candidates.rs",
    "ha/leaving.rs",
    "ha/remote.rs",
    "ha/replication.rs",
    "ha/slots.rs",
    "ha/sync.rs",
    "ha/trail.rs",
    "ha/turn.rs",
    "ha/tags.rs",
    "ha/upstreams.rs",
    "ha/watchdog.rs",
    "ha/reserve.rs",
    "etcd/ballot.rs",
    "etcd/decision.rs",
    "etcd/prune.rs",
];

/// What a pure file may not name.
const IMPURE: &[&str] =
    &["tokio", ".await", "async ", "std::fs", "std::process", "std::env", "::now()", "::wall()", "tracing::"];

/// Words that only some files may hold: the word, who may, and why.
const RESERVED: &[(&str, &[&str], &str)] = &[
    ("etcd_client::", &["dcs/etcd.rs", "dcs/etcd/", "etcd/"], "stores leak no types"),
    ("env::var", &["config/", "config.rs"], "only `config` reads the environment"),
    ("env::vars", &["config/", "config.rs"], "only `config` reads the environment"),
];

/// A file is one idea, at most this long without its tests.
const LONGEST: usize = 600;

/// Looks at a file, names its faults.
type Check = fn(&Source) -> Vec<String>;

/// The rules, in the order in which their faults are shown.
const RULES: &[(&str, Check)] = &[
    ("begins with module docs", module_docs),
    ("imports only from lower layers", layers),
    ("is pure where it decides", purity),
    ("uses reserved words only where they belong", reserved),
    ("is short", length),
    ("documents its public items", public_docs),
];

/// One file of `src`.
struct Source {
    /// Beneath `src`.
    path: String,
    text: String,
}

impl Source {
    /// The lines that are neither comments nor tests, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.before_tests().enumerate().map(|(i, line)| (i + 1, line));
        let code = lines.map(|(i, line)| (i, line.split_once(" // ").map_or(line, |(code, _)| code)));
        code.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// All lines up to the module of unit tests.
    fn before_tests(&self) -> impl Iterator<Item = &str> {
        let marker = |lines: &[&str]| {
            lines[0] == "#[cfg(test)]" && lines[1].starts_with("mod ") && lines[1].ends_with('{')
        };
        let lines: Vec<&str> = self.text.lines().collect();
        let end = lines.windows(2).position(marker).unwrap_or(lines.len());
        lines.into_iter().take(end)
    }

    /// The files that this one declares as modules of tests.
    fn test_files(&self) -> Vec<String> {
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let folder = match name.trim_end_matches(".rs") {
            "mod" | "lib" | "main" => folder.to_owned(),
            stem => format!("{folder}/{stem}").trim_start_matches('/').to_owned(),
        };
        let lines: Vec<&str> = self.text.lines().collect();
        let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").map(|pair| pair[1]);
        let names = declared.filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        names.map(|name| format!("{folder}/{name}.rs").trim_start_matches('/').to_owned()).collect()
    }

    /// `ha` for `ha/decide.rs` and for `ha.rs`.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// Whether a pattern of the tables above fits this path.
    fn is(&self, pattern: &str) -> bool {
        let path = match pattern.strip_prefix('*') {
            Some(_) => self.path.split_once('/').map_or("", |(_, rest)| rest),
            None => &self.path,
        };
        let pattern = pattern.trim_start_matches("*/");
        if pattern.ends_with('/') { path.starts_with(pattern) } else { path == pattern }
    }
}

fn module_docs(source: &Source) -> Vec<String> {
    if source.text.starts_with("//!") { Vec::new() } else { vec!["its first line is no `//!`".to_owned()] }
}

fn layers(source: &Source) -> Vec<String> {
    let layer = |module: &str| LAYERS.iter().position(|row| row.contains(&module));
    let own = source.module();
    if own == "lib" || own == "main" {
        return Vec::new();
    }
    let Some(own_layer) = layer(own) else { return vec![format!("`{own}` stands in no layer")] };
    let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
    let faults =
        imports(&code).into_iter().filter(|name| name != own).filter_map(|name| match layer(&name) {
            Some(theirs) if theirs < own_layer => None,
            Some(_) => Some(format!("imports `{name}`, which is not below `{own}`")),
            // Something of lib.rs itself, or a name that the compiler will refuse.
            None => None,
        });
    faults.collect()
}

/// The modules that follow `crate::`, also inside braces.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(heads(list)),
            None => found.extend(head(rest)),
        }
    }
    found
}

/// The first word of each item of a brace list, up to its closing brace.
fn heads(list: &str) -> BTreeSet<String> {
    let (mut depth, mut start, mut found) = (0, 0, BTreeSet::new());
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found.extend(head(list[start..i].trim()));
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

fn head(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn purity(source: &Source) -> Vec<String> {
    if !PURE.iter().any(|pattern| source.is(pattern)) && !says_that_it_is_pure(source) {
        return Vec::new();
    }
    let impure = |line: &str| IMPURE.iter().find(|word| line.contains(*word));
    source.code().filter_map(|(i, line)| Some(format!("line {i} names `{}`", impure(line)?.trim()))).collect()
}

fn says_that_it_is_pure(source: &Source) -> bool {
    let docs = source.text.lines().take_while(|line| line.starts_with("//!"));
    docs.flat_map(str::split_whitespace).any(|word| matches!(word, "Pure" | "Pure." | "Pure:" | "Pure;"))
}

fn reserved(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (word, places, why) in RESERVED {
        if places.iter().any(|place| source.is(place)) {
            continue;
        }
        let lines = source.code().filter(|(_, line)| line.contains(word));
        faults.extend(lines.map(|(i, _)| format!("line {i} names `{word}`: {why}")));
    }
    faults
}

fn length(source: &Source) -> Vec<String> {
    let n = source.before_tests().count();
    if n <= LONGEST { Vec::new() } else { vec![format!("{n} lines without tests; at most {LONGEST}")] }
}

fn public_docs(source: &Source) -> Vec<String> {
    const ITEMS: &[&str] =
        &["fn", "async", "unsafe", "struct", "enum", "trait", "type", "const", "static", "union"];
    let lines: Vec<&str> = source.before_tests().collect();
    let is_item = |line: &str| {
        line.strip_prefix("pub ").is_some_and(|rest| ITEMS.contains(&rest.split(' ').next().unwrap()))
    };
    // Attributes may stand between an item and its docs; a blank line or another item may not.
    let documented = |i: usize| {
        let between =
            |line: &&&str| line.starts_with("///") || !(line.is_empty() || line.ends_with(['}', ';']));
        let above = lines[..i].iter().rev().take_while(between);
        above.into_iter().any(|line| line.starts_with("///"))
    };
    let bare = lines.iter().enumerate().filter(|(i, line)| is_item(line) && !documented(*i));
    bare.map(|(i, line)| format!("line {}: no `///` above `{line}`", i + 1)).collect()
}

fn sources() -> Vec<Source> {
    let src = Path::new(ROOT).join("src");
    let relative = |path: &Path| path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
    let rust = files(&src).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    let read =
        |path: PathBuf| Source { path: relative(&path), text: std::fs::read_to_string(&path).unwrap() };
    without_tests(rust.map(read).collect())
}

fn without_tests(mut sources: Vec<Source>) -> Vec<Source> {
    let tests: Vec<String> = sources.iter().flat_map(Source::test_files).collect();
    sources.retain(|source| !tests.contains(&source.path));
    sources
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn every_file_keeps_every_rule() {
    let sources = sources();
    assert!(sources.len() > 20, "found only {} files", sources.len());
    let mut faults = Vec::new();
    for (rule, check) in RULES {
        for source in &sources {
            faults.extend(check(source).iter().map(|fault| format!("src/{} {rule}? {fault}", source.path)));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_module_of_the_library_stands_in_one_layer() {
    let lib = std::fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap();
    let declared = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let layered: Vec<&str> = LAYERS.iter().flat_map(|row| row.iter().copied()).collect();
    for module in declared {
        let n = layered.iter().filter(|name| **name == module).count();
        assert_eq!(n, 1, "`{module}` stands in {n} layers");
    }
}

#[test]
fn every_template_is_known_and_rendered_by_a_test() {
    let src = std::fs::read_to_string(Path::new(ROOT).join("src/templates.rs")).unwrap();
    let (_, tests) = src.split_once("#[cfg(test)]").unwrap();
    let on_disk: BTreeSet<String> = files(&Path::new(ROOT).join("templates"))
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let known: BTreeSet<String> = Template::ALL.iter().map(|template| template.name().to_owned()).collect();
    assert_eq!(on_disk, known);
    for template in Template::ALL {
        assert!(tests.contains(&format!("render(Template::{template:?}")), "no test renders {template:?}");
    }
}

/// README's table stands between two markers; no README, no fault.
fn readme_fault(readme: Option<&str>, table: &str) -> Option<String> {
    let readme = readme?;
    let Some((_, rest)) = readme.split_once("<!-- variables -->\n") else {
        return Some("no line `<!-- variables -->`".to_owned());
    };
    let Some((found, _)) = rest.split_once("<!-- /variables -->") else {
        return Some("no line `<!-- /variables -->`".to_owned());
    };
    let differs = found.trim() != table.trim();
    differs.then(|| format!("the table of variables differs from `config`; it should be\n{table}"))
}

#[test]
fn the_readme_lists_the_variables_that_are_read() {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).ok();
    let fault = readme_fault(readme.as_deref(), &config::markdown_table());
    assert!(fault.is_none(), "README.md: {}", fault.unwrap());
}

mod planted {
    //! Each rule fails on a planted fault, and not on what resembles one.

    use super::*;

    /// A rule's name, where, and a text that breaks it.
    const FAULTS: &[(&str, &str, &str)] = &[
        ("begins with module docs", "ha/x.rs", "use std::fmt;\n"),
        ("imports only from lower layers", "ha/x.rs", "//! x\nuse crate::etcd::Status;\n"),
        (
            "imports only from lower layers",
            "dcs/mod.rs",
            "//! x\nuse crate::{clock::now, types, ha::{a, b}};\n",
        ),
        ("imports only from lower layers", "clock.rs", "//! x\nfn f() { crate::types::Lsn(0) }\n"),
        ("imports only from lower layers", "stray.rs", "//! x\n"),
        ("is pure where it decides", "ha/decide.rs", "//! x\nuse tokio::time;\n"),
        ("is pure where it decides", "etcd/view.rs", "//! x\nlet now = clock::now();\n"),
        ("is pure where it decides", "etcd/decide/prune.rs", "//! x\ntracing::info!(\"x\");\n"),
        ("is pure where it decides", "ha/x.rs", "//! A rule. Pure.\nuse tokio::time;\n"),
        ("is pure where it decides", "tls/leaf.rs", "//! x\nstd::fs::read(path);\n"),
        ("uses reserved words only where they belong", "ha/agent.rs", "//! x\nuse etcd_client::Client;\n"),
        ("uses reserved words only where they belong", "node.rs", "//! x\nstd::env::var_os(\"X\");\n"),
        ("documents its public items", "ha/x.rs", "//! x\n\npub fn f() {}\n"),
        (
            "documents its public items",
            "ha/x.rs",
            "//! x\n\n/// a\npub fn f() {}\n#[derive(Debug)]\npub struct S;\n",
        ),
    ];

    /// Texts that break no rule.
    const FINE: &[(&str, &str)] = &[
        (
            "ha/decide.rs",
            "//! No tokio here.\nuse crate::{postgres, types::Lsn};\n// tokio::spawn\nlet x = 1; // tokio\n",
        ),
        ("ha/agent.rs", "//! x\nuse crate::ha::view;\nuse tokio::time;\n"),
        ("dcs/etcd.rs", "//! x\nuse etcd_client::Client;\n"),
        ("config/mod.rs", "//! x\nuse crate::discovery;\nstd::env::vars_os();\n"),
        ("main.rs", "//! x\nuse pgherd::cli;\n"),
        ("clock.rs", "//! x\n#[cfg(test)]\nmod tests {\n    use crate::ha;\n}\n"),
        ("types.rs", "//! x\n\n/// Doc.\n#[derive(\n    Debug,\n)]\npub struct S;\n\npub(crate) fn f() {}\n"),
    ];

    fn broken(path: &str, text: &str) -> Vec<&'static str> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        RULES.iter().filter(|(_, check)| !check(&source).is_empty()).map(|(rule, _)| *rule).collect()
    }

    #[test]
    fn every_rule_can_fail() {
        let long = format!("//! x\n{}", "fn f() {}\n".repeat(LONGEST));
        let mut seen = BTreeSet::new();
        for (rule, path, text) in FAULTS.iter().copied().chain([("is short", "ha/x.rs", long.as_str())]) {
            assert_eq!(broken(path, text), [rule], "{path}: {text:.80}");
            seen.insert(rule);
        }
        assert_eq!(seen.len(), RULES.len(), "a rule without a planted fault: only {seen:?}");
    }

    #[test]
    fn what_is_fine_is_left_alone() {
        for (path, text) in FINE {
            assert_eq!(broken(path, text), [""; 0], "{path}: {text}");
        }
    }

    #[test]
    fn files_of_tests_are_passed_over() {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let kept = without_tests(vec![
            source("ha/mod.rs", "//! x\n#[cfg(test)]\nmod scenarios;\nmod agent;\n"),
            source("ha/scenarios.rs", ""),
            source("ha/agent.rs", ""),
            source("ha/decide.rs", "#[cfg(test)]\nmod cases;\n"),
            source("ha/decide/cases.rs", ""),
            source("scenarios.rs", ""),
        ]);
        let paths: Vec<&str> = kept.iter().map(|source| source.path.as_str()).collect();
        assert_eq!(paths, ["ha/mod.rs", "ha/agent.rs", "ha/decide.rs", "scenarios.rs"]);
    }

    #[test]
    fn a_readme_that_lags_behind_is_noticed() {
        let readme = |table: &str| format!("# x\n<!-- variables -->\n{table}\n<!-- /variables -->\n");
        assert_eq!(readme_fault(Some(&readme("| a |")), "| a |\n"), None);
        assert!(readme_fault(Some(&readme("| b |")), "| a |").is_some());
        assert!(readme_fault(Some("# x\n"), "| a |").is_some());
        assert!(readme_fault(Some("<!-- variables -->\n"), "| a |").is_some());
    }
}
