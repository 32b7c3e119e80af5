//! Every key of Patroni's file, and what becomes of it.

use serde_json::Value;

/// What a key's presence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does what it does in Patroni.
    Used,
    /// It is passed over; what happens instead.
    Passed(&'static str),
    /// It must not be passed over; why.
    Fatal(&'static str),
    /// No such key; the one that was meant, perhaps.
    Unknown(Option<&'static str>),
}

use Standing::{Fatal, Passed, Used};

const ONE_THREAD: &str = "pgherd needs no pool of threads";
const ONE_LINE: &str = "an error is told in one line, with its causes";
const OTHER_STORE: &str = "agent mode speaks to etcd by its version 3 API only: use the section `etcd3`";
const OTHER_NAMES: &str =
    "programs of other names are not looked for: give them their usual names in `bin_dir`";
const ONE_LOGIN: &str = "members show each other the name and the password of `restapi.authentication`";

/// The keys and their standing. `*` is any one key, `{}` any that has keys beneath it, `**` at the end all that lies beneath.
const KEYS: &[(&str, Standing)] = &[
    ("name", Used),
    ("scope", Used),
    ("namespace", Used),
    ("thread_pool_size", Passed(ONE_THREAD)),
    ("thread_stack_size", Passed(ONE_THREAD)),
    ("log.type", Used),
    ("log.level", Used),
    ("log.traceback_level", Passed(ONE_LINE)),
    ("log.format.**", Used),
    ("log.dateformat", Used),
    ("log.static_fields.**", Passed("lines in JSON have the same fields always")),
    ("log.max_queue_size", Passed("what waits for a slow reader is bounded by 4 MiB")),
    ("log.dir", Used),
    ("log.file_num", Used),
    ("log.file_size", Used),
    ("log.mode", Used),
    ("log.loggers.**", Used),
    ("log.deduplicate_heartbeat_logs", Passed("a decision that repeats itself is never logged twice")),
    ("ctl.insecure", Used),
    ("ctl.cacert", Used),
    ("ctl.certfile", Used),
    ("ctl.keyfile", Used),
    ("ctl.keyfile_password", Fatal("keys with a password cannot be read: store the key without one")),
    ("ctl.authentication.username", Passed(ONE_LOGIN)),
    ("ctl.authentication.password", Passed(ONE_LOGIN)),
    ("restapi.listen", Used),
    ("restapi.connect_address", Used),
    ("restapi.authentication.username", Used),
    ("restapi.authentication.password", Used),
    ("restapi.certfile", Used),
    ("restapi.keyfile", Used),
    ("restapi.keyfile_password", Fatal("keys with a password cannot be read: store the key without one")),
    ("restapi.cafile", Used),
    ("restapi.ciphers", Passed("TLS 1.2 and 1.3 with their safe ciphers are spoken")),
    ("restapi.verify_client", Used),
    ("restapi.allowlist", Used),
    ("restapi.allowlist_include_members", Used),
    ("restapi.http_extra_headers.**", Used),
    ("restapi.https_extra_headers.**", Used),
    ("restapi.request_queue_size", Passed("512 connections are served at a time")),
    ("restapi.thread_pool_size", Passed(ONE_THREAD)),
    ("restapi.server_tokens", Used),
    ("etcd3.host", Used),
    ("etcd3.hosts", Used),
    ("etcd3.url", Used),
    ("etcd3.protocol", Used),
    ("etcd3.username", Used),
    ("etcd3.password", Used),
    ("etcd3.cacert", Used),
    ("etcd3.cert", Used),
    ("etcd3.key", Used),
    ("etcd3.use_proxies", Passed("only the endpoints that are named here are ever used")),
    ("etcd3.proxy", Fatal("a proxy is not supported: name it as a host if it is one of etcd's own")),
    ("etcd3.srv", Fatal("SRV records are not asked for: name the endpoints in `etcd3.hosts`")),
    ("etcd3.srv_suffix", Fatal("SRV records are not asked for: name the endpoints in `etcd3.hosts`")),
    ("etcd3.retries.**", Passed("every call tries each endpoint once, within its time")),
    ("etcd.**", Fatal(OTHER_STORE)),
    ("consul.**", Fatal(OTHER_STORE)),
    ("zookeeper.**", Fatal(OTHER_STORE)),
    ("exhibitor.**", Fatal(OTHER_STORE)),
    ("raft.**", Fatal(OTHER_STORE)),
    ("kubernetes.**", Fatal(OTHER_STORE)),
    ("citus.**", Fatal("Citus is not supported, and its groups keep their keys elsewhere in the store")),
    ("bootstrap.dcs.**", Used),
    ("bootstrap.initdb.**", Used),
    ("bootstrap.method", Used),
    ("bootstrap.pg_hba", Used),
    ("bootstrap.users.**", Passed("Patroni does not make these roles since version 4 either")),
    ("bootstrap.post_bootstrap", Used),
    ("bootstrap.post_init", Used),
    // Sections of custom methods.
    ("bootstrap.{}", Passed("bootstrap.method does not name it")),
    ("postgresql.listen", Used),
    ("postgresql.connect_address", Used),
    ("postgresql.proxy_address", Used),
    ("postgresql.data_dir", Used),
    ("postgresql.config_dir", Used),
    ("postgresql.bin_dir", Used),
    ("postgresql.bin_name.**", Fatal(OTHER_NAMES)),
    ("postgresql.pgpass", Used),
    ("postgresql.database", Used),
    ("postgresql.authentication.*.username", Used),
    ("postgresql.authentication.*.password", Used),
    ("postgresql.authentication.*.sslmode", Used),
    ("postgresql.authentication.*.sslcert", Used),
    ("postgresql.authentication.*.sslkey", Used),
    (
        "postgresql.authentication.*.sslpassword",
        Fatal("keys with a password cannot be read: store the key without one"),
    ),
    ("postgresql.authentication.*.sslrootcert", Used),
    ("postgresql.authentication.*.sslcrl", Used),
    ("postgresql.authentication.*.sslcrldir", Used),
    ("postgresql.authentication.*.sslnegotiation", Used),
    ("postgresql.authentication.*.gssencmode", Used),
    ("postgresql.authentication.*.channel_binding", Used),
    ("postgresql.parameters.**", Used),
    ("postgresql.pg_hba", Used),
    ("postgresql.pg_ident", Used),
    ("postgresql.custom_conf", Used),
    ("postgresql.use_pg_rewind", Used),
    ("postgresql.use_slots", Passed("the dynamic configuration says so for every member")),
    ("postgresql.use_unix_socket", Used),
    ("postgresql.use_unix_socket_repl", Passed("nothing replicates over the socket")),
    ("postgresql.pg_ctl_timeout", Passed("a start is waited for as long as the dynamic configuration says")),
    ("postgresql.remove_data_directory_on_rewind_failure", Used),
    ("postgresql.remove_data_directory_on_diverged_timelines", Used),
    ("postgresql.callbacks.on_start", Used),
    ("postgresql.callbacks.on_stop", Used),
    ("postgresql.callbacks.on_restart", Used),
    ("postgresql.callbacks.on_reload", Used),
    ("postgresql.callbacks.on_role_change", Used),
    ("postgresql.pre_promote", Used),
    ("postgresql.before_stop", Used),
    ("postgresql.create_replica_methods", Used),
    ("postgresql.recovery_conf.restore_command", Used),
    ("postgresql.recovery_conf.*", Passed("of these only restore_command is used")),
    ("postgresql.basebackup.**", Used),
    // Sections of custom methods for replicas.
    (
        "postgresql.{}",
        Passed("create_replica_methods does not name it, and only a standby_cluster in the store can"),
    ),
    ("watchdog.mode", Used),
    ("watchdog.device", Used),
    ("watchdog.safety_margin", Used),
    ("watchdog.driver", Used),
    ("tags.**", Used),
];

/// Calls `found` with every key of the file that decides something, and its standing.
pub(super) fn walk(config: &Value, found: &mut impl FnMut(&str, Standing)) {
    let mut path = Vec::new();
    descend(config, &mut path, found);
}

fn descend<'a>(value: &'a Value, path: &mut Vec<&'a str>, found: &mut impl FnMut(&str, Standing)) {
    let Some(map) = value.as_object() else { return };
    for (key, value) in map {
        path.push(key);
        let ends = match standing(path, value) {
            // A section: what is in it decides.
            None => {
                descend(value, path, found);
                None
            }
            Some(standing) => Some(standing),
        };
        if let Some(standing) = ends.filter(|_| !value.is_null()) {
            found(&path.join("."), standing);
        }
        path.pop();
    }
}

/// The standing of a path; `None` for a section that must be looked into.
fn standing(path: &[&str], value: &Value) -> Option<Standing> {
    let exact = KEYS.iter().find(|(pattern, _)| !pattern.ends_with("{}") && matches(pattern, path));
    if let Some((_, standing)) = exact {
        return Some(*standing);
    }
    let beneath = |(pattern, _): &(&str, Standing)| !pattern.ends_with("{}") && leads_to(pattern, path);
    if value.is_object() && KEYS.iter().any(beneath) {
        return None;
    }
    let of_a_section = KEYS.iter().find(|(pattern, _)| pattern.ends_with("{}") && matches(pattern, path));
    match of_a_section {
        Some((_, standing)) if value.is_object() => Some(*standing),
        Some(_) | None => Some(Standing::Unknown(likely(path))),
    }
}

fn matches(pattern: &str, path: &[&str]) -> bool {
    let parts: Vec<&str> = pattern.split('.').collect();
    let same = |(part, key): (&&str, &&str)| matches!(*part, "*" | "{}") || part == key;
    match parts.split_last() {
        Some((&"**", head)) => path.len() >= head.len() && head.iter().zip(path).all(same),
        Some(_) | None => parts.len() == path.len() && parts.iter().zip(path).all(same),
    }
}

/// Whether keys of this pattern lie beneath the path.
fn leads_to(pattern: &str, path: &[&str]) -> bool {
    let parts: Vec<&str> = pattern.split('.').collect();
    parts.len() > path.len() && parts.iter().zip(path).all(|(part, key)| *part == "*" || part == key)
}

/// A known key of the same section that differs by a letter or two, or stands in another section.
fn likely(path: &[&str]) -> Option<&'static str> {
    let (key, section) = path.split_last()?;
    let near = |pattern: &&'static str| {
        let parts: Vec<&str> = pattern.split('.').collect();
        let Some((last, head)) = parts.split_last() else { return false };
        (head == section && distance(last, key) <= 2) || (head != section && *last == *key && *last != "**")
    };
    KEYS.iter().map(|(pattern, _)| *pattern).find(near)
}

/// How many letters differ (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let best = (diagonal + usize::from(x != *y)).min(*cell + 1).min(left + 1);
            diagonal = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(config: Value) -> Vec<(String, Standing)> {
        let mut all = Vec::new();
        walk(&config, &mut |path, standing| all.push((path.to_owned(), standing)));
        all
    }

    #[test]
    fn used_keys_and_sections_say_nothing() {
        let all = found(json!({"name": "n", "restapi": {"listen": "x:1"}, "tags": {"a": 1},
            "bootstrap": {"dcs": {"ttl": 30, "any": {"thing": 1}}, "initdb": [{"encoding": "UTF8"}]}}));
        assert!(all.iter().all(|(_, standing)| *standing == Used), "{all:?}");
    }

    #[test]
    fn what_must_not_be_ignored_is_fatal_and_slips_are_named() {
        let all = found(
            json!({"consul": {"host": "x"}, "postgresql": {"bin_name": {"postgres": "x"}, "lisen": "x"},
            "retry_timeout": 5, "nonsense": 1}),
        );
        let of = |path: &str| all.iter().find(|(found, _)| found == path).map(|(_, standing)| *standing);
        assert!(matches!(of("consul"), Some(Fatal(_))), "{all:?}");
        assert!(matches!(of("postgresql.bin_name"), Some(Fatal(_))));
        assert_eq!(of("postgresql.lisen"), Some(Standing::Unknown(Some("postgresql.listen"))));
        assert_eq!(of("nonsense"), Some(Standing::Unknown(None)));
    }

    #[test]
    fn a_custom_methods_section_is_passed_over() {
        let all = found(
            json!({"bootstrap": {"wal_g": {"command": "x"}}, "postgresql": {"wal_e": {"command": "x"}}}),
        );
        assert!(all.iter().all(|(_, standing)| matches!(standing, Passed(_))), "{all:?}");
        assert_eq!(all.len(), 2);
    }
}
