//! One value at a time: text to type. An error is the noun phrase of what was expected.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::{Map, Value};

use super::timing::Network;
use crate::ha::rules::Strictness;
use crate::ha::watchdog::Need;
use crate::log;
use crate::templates;
use crate::tls::REPLICATION_ROLE;
use crate::types::{NodeName, SyncMode};

type Parsed<T> = Result<T, String>;

fn expected<T>(what: &str) -> Parsed<T> {
    Err(what.to_owned())
}

/// One word out of a few.
fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Parsed<T> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("one of {}", words.join(", "))
    })
}

pub(super) fn switch(text: &str) -> Parsed<bool> {
    let words = [("yes", true), ("no", false), ("on", true), ("off", false), ("1", true), ("0", false)];
    one_of(text, &[("true", true), ("false", false)])
        .or_else(|plain| one_of(text, &words).map_err(|_long| plain))
}

pub(super) fn strictness(text: &str) -> Parsed<Strictness> {
    Ok(if switch(text)? { Strictness::Strict } else { Strictness::Degrade })
}

pub(super) fn network(text: &str) -> Parsed<Network> {
    let all = [Network::Auto, Network::Local, Network::Regional, Network::Global];
    one_of(text, &all.map(|network| (network.as_str(), network)))
}

pub(super) fn watchdog(text: &str) -> Parsed<Need> {
    one_of(text, &[("off", Need::Off), ("automatic", Need::Automatic), ("required", Need::Required)])
}

pub(super) fn sync_mode(text: &str) -> Parsed<SyncMode> {
    one_of(text, &[("off", SyncMode::Off), ("on", SyncMode::On), ("quorum", SyncMode::Quorum)])
}

pub(super) fn log_format(text: &str) -> Parsed<log::Format> {
    one_of(text, &[("text", log::Format::Text), ("json", log::Format::Json)])
}

pub(super) fn log_level(text: &str) -> Parsed<tracing::Level> {
    use tracing::Level;
    one_of(
        text,
        &[
            ("error", Level::ERROR),
            ("warn", Level::WARN),
            ("info", Level::INFO),
            ("debug", Level::DEBUG),
            ("trace", Level::TRACE),
        ],
    )
}

/// A name that goes into etcd keys, URL paths, certificates and log lines as it is.
fn plain_name(text: &str) -> Parsed<String> {
    let fits = text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if fits && !text.chars().all(|c| c == '.') {
        return Ok(text.to_owned());
    }
    expected("1 to 63 letters, digits, '-', '_' or '.'")
}

pub(super) fn app(text: &str) -> Parsed<String> {
    plain_name(text)
}

pub(super) fn node_name(text: &str) -> Parsed<NodeName> {
    plain_name(text).map(NodeName)
}

/// A role or a database: any text that PostgreSQL takes as a name.
pub(super) fn sql_name(text: &str) -> Parsed<String> {
    if text.len() > 63 || text.starts_with("pg_") || text.contains(char::is_control) {
        return expected("a name of at most 63 bytes that does not begin with pg_");
    }
    Ok(text.to_owned())
}

pub(super) fn superuser(text: &str) -> Parsed<String> {
    if text == REPLICATION_ROLE {
        return expected("another name (this one is the replication role's)");
    }
    sql_name(text)
}

pub(super) fn port(text: &str) -> Parsed<u16> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| "a port from 1 to 65535".to_owned())
}

pub(super) fn count(text: &str) -> Parsed<u32> {
    text.parse().ok().filter(|n| (1..=100).contains(n)).ok_or_else(|| "a number from 1 to 100".to_owned())
}

pub(super) fn validity_days(text: &str) -> Parsed<u32> {
    text.parse()
        .ok()
        .filter(|n| (1..=36_500).contains(n))
        .ok_or_else(|| "a number of days from 1 to 36500".to_owned())
}

/// A bare number is seconds, as in Patroni.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or("").trim();
    let millis: Option<u64> = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let value = digits.trim().parse::<u64>().ok().zip(millis).and_then(|(n, unit)| n.checked_mul(unit));
    // A year, so that sums of these never overflow.
    let sane = value.filter(|ms| (1..=31_536_000_000).contains(ms));
    sane.map(Duration::from_millis).ok_or_else(|| "a duration such as 10, 10s, 500ms or 5min".to_owned())
}

pub(super) fn bytes(text: &str) -> Parsed<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor: Option<u64> = match text.get(digits.len()..).unwrap_or("").trim() {
        "" | "B" => Some(1),
        "kB" | "KB" => Some(1 << 10),
        "MB" => Some(1 << 20),
        "GB" => Some(1 << 30),
        _ => None,
    };
    let value = digits.trim().parse::<u64>().ok().zip(factor).and_then(|(n, unit)| n.checked_mul(unit));
    value.ok_or_else(|| "a size such as 1048576, 1024kB or 1MB".to_owned())
}

/// An address that can be listened on.
pub(super) fn listen(text: &str) -> Parsed<IpAddr> {
    text.parse().map_err(|_not_an_address| "an IP address, or 0.0.0.0 or :: for all".to_owned())
}

/// An address that can be dialled.
pub(super) fn address(text: &str) -> Parsed<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        Ok(_) | Err(_) => expected("the IP address of one node"),
    }
}

/// As the platform writes it: with or without a port.
pub(super) fn address_maybe_port(text: &str) -> Parsed<IpAddr> {
    address(
        &text.parse::<SocketAddr>().map_or_else(|_no_port| text.to_owned(), |socket| socket.ip().to_string()),
    )
}

/// Items separated by commas or blanks.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty())
}

pub(super) fn addresses<C: FromIterator<IpAddr>>(text: &str) -> Parsed<C> {
    list(text)
        .map(address_maybe_port)
        .collect::<Parsed<C>>()
        .map_err(|_one| "IP addresses separated by commas".to_owned())
}

/// Extra names of certificates, and extra addresses.
pub(super) fn sans(text: &str) -> Parsed<(Vec<IpAddr>, Vec<String>)> {
    let (mut ips, mut names) = (Vec::new(), Vec::new());
    for item in list(text) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.*".contains(c);
        match item.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) if item.len() <= 253 && item.chars().all(is_name) => names.push(item.to_owned()),
            Err(_) => return expected("host names and IP addresses separated by commas"),
        }
    }
    Ok((ips, names))
}

pub(super) fn url(text: &str) -> Parsed<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let fits = |rest: &str| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace);
    if rest.is_some_and(fits) {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    expected("a URL that begins with https:// or http://")
}

pub(super) fn urls(text: &str) -> Parsed<Vec<String>> {
    list(text).map(url).collect::<Parsed<_>>().map_err(|_one| "URLs separated by commas".to_owned())
}

/// A host or service name.
pub(super) fn dns_name(text: &str) -> Parsed<String> {
    let label = |label: &str| {
        let fits = label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        !label.is_empty() && label.len() <= 63 && fits
    };
    if text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label) {
        return Ok(text.to_owned());
    }
    expected("a host name such as tasks.node, or a service name such as _pgherd._tcp.example.org")
}

/// An address with a port; the port of DNS without one.
pub(super) fn socket_address(text: &str) -> Parsed<SocketAddr> {
    const DNS: u16 = 53;
    let bare = || text.parse().ok().map(|ip: IpAddr| (ip, DNS).into());
    match text.parse().ok().or_else(bare) {
        Some(address) => Ok(address),
        None => expected("an address such as 10.0.0.2:53"),
    }
}

pub(super) fn directory(text: &str) -> Parsed<Utf8PathBuf> {
    let path = Utf8PathBuf::from(text);
    let dots = path.components().any(|part| part.as_str() == "..");
    if path.is_absolute() && path.parent().is_some() && !dots && !text.contains(char::is_control) {
        return Ok(path.components().collect());
    }
    expected("an absolute path without '..'")
}

/// `POSTGRES_PARAMETERS`: one setting a line, as postgresql.conf would have it.
pub(super) fn parameters(text: &str) -> Parsed<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for line in lines(text) {
        let (name, value) = parameter(line)?;
        if all.insert(name.clone(), value).is_some() {
            return Err(format!("each parameter once (`{name}` is there twice)"));
        }
    }
    Ok(all)
}

fn parameter(line: &str) -> Parsed<(String, String)> {
    let (name, value) = line.split_once('=').ok_or("lines of the form name=value")?;
    let name = name.trim().to_ascii_lowercase();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !name.chars().all(is_name) {
        return expected("lines of the form name=value");
    }
    if templates::CLUSTER_OWNED.contains(&name.as_str()) {
        return Err(format!("other parameters (`{name}` belongs to the cluster)"));
    }
    let value = value.trim();
    if name == "wal_level" && unquoted(value) == "minimal" {
        return expected("wal_level=replica or logical (a standby needs it)");
    }
    Ok((name, unquoted(value)))
}

/// A value in single quotes is what stands between them, with doubled quotes halved.
fn unquoted(value: &str) -> String {
    let inner = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    inner.map_or_else(|| value.to_owned(), |inner| inner.replace("''", "'"))
}

/// A program that exists and may be run. It is named by its path: nothing is searched, and there is no shell.
pub(super) fn program(text: &str) -> Parsed<Utf8PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = Utf8PathBuf::from(text);
    let runs = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if path.is_absolute() && runs { Ok(path) } else { expected("the path of a program that can be run") }
}

/// A tag's priority.
pub(super) fn priority(text: &str) -> Parsed<u32> {
    text.parse().map_err(|_not_a_number| "a whole number, 0 or more".to_owned())
}

/// `TAGS`: tags without a meaning to pgherd. A value keeps the type that it would have in YAML.
pub(super) fn tags(text: &str) -> Parsed<Map<String, Value>> {
    const OWN: &[&str] = &[
        "nofailover",
        "failover_priority",
        "noloadbalance",
        "clonefrom",
        "nosync",
        "sync_priority",
        "nostream",
        "replicatefrom",
    ];
    let mut all = Map::new();
    for tag in lines(text).flat_map(|line| line.split(',')).map(str::trim).filter(|tag| !tag.is_empty()) {
        let (name, value) = tag.split_once('=').ok_or("tags of the form name=value")?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            return expected("tags of the form name=value, the name of letters, digits, `_`, `-` and `.`");
        }
        if OWN.contains(&name) {
            return Err(format!("other tags (this one is TAG_{})", name.to_ascii_uppercase()));
        }
        let number = || value.parse::<i64>().map(Value::from).ok();
        let flag = || value.parse::<bool>().map(Value::from).ok();
        let value = flag().or_else(number).unwrap_or_else(|| value.into());
        if all.insert(name.to_owned(), value).is_some() {
            return Err(format!("each tag once (`{name}` is there twice)"));
        }
    }
    Ok(all)
}

/// `POSTGRES_HBA`: lines of pg_hba.conf; only rules, so that no file of elsewhere is included.
pub(super) fn hba(text: &str) -> Parsed<Vec<String>> {
    const TYPES: &[&str] = &["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
    let rule = |line: &str| {
        let n_words = line.split_whitespace().count();
        let known = line.split_whitespace().next().is_some_and(|word| TYPES.contains(&word));
        if known && n_words >= 4 { Ok(line.to_owned()) } else { expected("rules of pg_hba.conf, one a line") }
    };
    lines(text).map(rule).collect()
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// `POSTGRES_INITDB_ARGS`: words, with the shell's quotes but nothing else of a shell.
pub(super) fn arguments(text: &str) -> Parsed<Vec<String>> {
    const OURS: &[&str] =
        &["-D", "--pgdata", "-U", "--username", "-W", "--pwprompt", "--pwfile", "-A", "--auth"];
    let words = words(text)?;
    let name = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
    if let Some(ours) = words.iter().map(name).find(|word| OURS.contains(&word.as_str())) {
        return Err(format!("other arguments ({ours} is set by pgherd)"));
    }
    Ok(words)
}

/// Words with the shell's quotes: a command and its arguments.
pub(super) fn words(text: &str) -> Parsed<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            Some(_) | None => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return expected("arguments with every quote closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5 min"), Ok(Duration::from_secs(300)));
        for wrong in ["0", "-1", "1.5", "5 parsecs", "s", "", "99999999999999999999", "9999999h", "10é"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("1MB"), Ok(1 << 20));
        assert_eq!(bytes("16 kB"), Ok(16 << 10));
        for wrong in ["-1", "1TBX", "99999999999GB", "MB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_taken_in_the_platforms_forms() {
        let ip = |text: &str| address_maybe_port(text).map(|ip| ip.to_string());
        assert_eq!(ip("203.0.113.7:16127").as_deref(), Ok("203.0.113.7"));
        assert_eq!(ip("[2001:db8::1]:16127").as_deref(), Ok("2001:db8::1"));
        assert_eq!(ip("[2001:db8::1]").as_deref(), Ok("2001:db8::1"));
        assert_eq!(ip("::ffff:203.0.113.7").as_deref(), Ok("203.0.113.7"));
        for wrong in ["0.0.0.0", "::", "224.0.0.1", "example.org", "203.0.113", "<html>"] {
            assert!(ip(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parameters_keep_their_values_and_refuse_what_the_cluster_owns() {
        let parsed =
            parameters("# tuning\nshared_buffers = '256MB'\nwork_mem=8MB\nsearch_path='a''b, \"$user\"'\n")
                .unwrap();
        assert_eq!(parsed["shared_buffers"], "256MB");
        assert_eq!(parsed["work_mem"], "8MB");
        assert_eq!(parsed["search_path"], "a'b, \"$user\"");
        for wrong in
            ["port=1", "Primary_Conninfo=x", "no value", "a=1\na=2", "1x=2", "wal_level='minimal'", "=x"]
        {
            assert!(parameters(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hba_takes_rules_only() {
        assert_eq!(hba("host all all 10.0.0.0/8 md5\n\n# x\n").unwrap().len(), 1);
        for wrong in ["include /etc/passwd", "host all", "@file a b c"] {
            assert!(hba(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arguments_are_split_as_a_shell_would() {
        assert_eq!(
            arguments(r#"--locale=C  --set 'a b'"c" """#).unwrap(),
            ["--locale=C", "--set", "a bc", ""]
        );
        for wrong in ["'open", "-D /x", "--pgdata=/x", "--pwfile=/x"] {
            assert!(arguments(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn directories_are_absolute_and_plain() {
        assert_eq!(directory("/a//b/").unwrap(), "/a/b");
        for wrong in ["a", "/", "/a/../b", "/a\nb"] {
            assert!(directory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_fit_keys_urls_and_certificates() {
        assert!(app("my-app_1.x").is_ok());
        for wrong in ["", "a b", "a/b", "..", "é", &"x".repeat(64)] {
            assert!(app(wrong).is_err(), "{wrong}");
        }
        assert!(superuser("replicator").is_err());
        assert!(sql_name("pg_x").is_err());
        assert!(sql_name("Ünïcode \"name\"").is_ok());
    }

    #[test]
    fn extra_names_are_told_from_addresses() {
        let (ips, names) = sans("db.example.org, 203.0.113.7 *.x.org,2001:db8::1").unwrap();
        assert_eq!((ips.len(), names), (2, vec!["db.example.org".to_owned(), "*.x.org".to_owned()]));
        assert!(sans("https://x").is_err());
    }

    #[test]
    fn dns_names_and_servers_are_checked() {
        for yes in ["tasks.node", "_pgherd._tcp.example.org.", "localhost"] {
            assert!(dns_name(yes).is_ok(), "{yes}");
        }
        for no in ["a..b", "a b", ".", "http://x", "x:53"] {
            assert!(dns_name(no).is_err(), "{no}");
        }
        assert_eq!(socket_address("10.0.0.2").unwrap().to_string(), "10.0.0.2:53");
        assert_eq!(socket_address("[::1]:5353").unwrap().port(), 5353);
        assert!(socket_address("dns.example.org").is_err());
    }
}
