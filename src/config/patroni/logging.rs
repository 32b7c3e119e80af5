//! `log`: where lines go, what they look like, and which there are.

use tracing::Level;

use super::read::path;
use super::section::Reader;
use crate::log;

/// Patroni's loggers, and which part of pgherd says what they say there. One that is not here has no part of its own: to
/// take the next larger one for it would silence or unleash what nobody has named.
const LOGGERS: &[(&str, &str)] = &[
    ("patroni.postgresql.callback_executor", "pgherd::ha::callbacks"),
    ("patroni.postgresql.slots", "pgherd::postgres::slots"),
    ("patroni.postgresql.rewind", "pgherd::postgres::clone"),
    ("patroni.postgresql", "pgherd::postgres"),
    ("patroni.ha", "pgherd::ha"),
    ("patroni.watchdog", "pgherd::ha::arming"),
    ("patroni.api", "pgherd::api"),
    ("patroni.dcs", "pgherd::dcs"),
    ("patroni.dcs.etcd", "pgherd::dcs::etcd"),
    ("patroni.dcs.etcd3", "pgherd::dcs::etcd"),
    ("patroni", "pgherd"),
];

pub(super) fn log(r: &mut Reader) -> log::Config {
    let format = r.parsed("log.type", |text| match text {
        "plain" => Ok(log::Format::Patroni),
        "json" => Ok(log::Format::Json),
        _ => Err("plain or json".to_owned()),
    });
    let format = format.unwrap_or(log::Format::Patroni);
    let level = r.parsed("log.level", level).unwrap_or(Level::INFO);
    let levels = std::iter::once(level.to_string()).chain(loggers(r)).collect::<Vec<_>>();
    log::Config { format, level: levels.join(","), layout: layout(r, format), files: files(r) }
}

fn layout(r: &mut Reader, format: log::Format) -> log::Layout {
    if format == log::Format::Json {
        for (key, why) in [
            ("log.format", "not used: the fields of a JSON line are always the same"),
            ("log.dateformat", "not used: the time of a JSON line has one form"),
        ] {
            if r.value(key).is_some() {
                r.warn(key, why);
            }
        }
        return log::Layout::default();
    }
    let layout = r.parsed("log.format", log::Layout::parse).unwrap_or_default();
    let dated = r.parsed("log.dateformat", |date| layout.clone().dated(date));
    dated.unwrap_or(layout)
}

/// `pgherd::ha=debug` for each logger that there is.
fn loggers(r: &mut Reader) -> Vec<String> {
    const PATH: &str = "log.loggers";
    let mut levels = Vec::new();
    for (name, value) in r.map(PATH) {
        let at = format!("{PATH}.{name}");
        let wanted = value.as_str().map(level).unwrap_or_else(|| Err("a level".to_owned()));
        match (target(&name), wanted) {
            (Some(target), Ok(level)) => levels.push(format!("{target}={level}")),
            (None, Ok(_level)) => r.warn(&at, "not used: no part of pgherd is called so"),
            (_, Err(expected)) => r.wrong(&at, format_args!("expected {expected}")),
        }
    }
    levels
}

/// The part of pgherd, or one that is named in this spelling, such as `pgherd.ha`.
fn target(name: &str) -> Option<String> {
    if name == "pgherd" || name.starts_with("pgherd.") {
        return Some(name.replace('.', "::"));
    }
    LOGGERS.iter().find(|(logger, _)| *logger == name).map(|(_, target)| (*target).to_owned())
}

fn level(text: &str) -> Result<Level, String> {
    match text.to_ascii_uppercase().as_str() {
        "DEBUG" => Ok(Level::DEBUG),
        "INFO" => Ok(Level::INFO),
        "WARN" | "WARNING" => Ok(Level::WARN),
        "ERROR" | "FATAL" | "CRITICAL" => Ok(Level::ERROR),
        _ => Err("DEBUG, INFO, WARNING, ERROR or CRITICAL".to_owned()),
    }
}

/// Patroni's names and defaults.
fn files(r: &mut Reader) -> Option<log::Files> {
    let number = |text: &str| text.parse::<u64>().map_err(|_no_number| "a whole number".to_owned());
    let kept = r.parsed("log.file_num", |text| number(text).map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
    let limit = r.parsed("log.file_size", number);
    let mode = r.parsed("log.mode", |text| {
        // Octal, as whoever writes permissions means them; without quotes they come as a number of these digits.
        let digits = text.strip_suffix(".0").unwrap_or(text).trim_start_matches("0o");
        let read = u32::from_str_radix(digits, 8);
        read.ok().filter(|mode| *mode <= 0o777).ok_or_else(|| "permissions, such as 0644".to_owned())
    });
    let dir = path(r, "log.dir")?;
    let (kept, limit) = (kept.unwrap_or(4), limit.unwrap_or(25_000_000));
    Some(log::Files { dir, kept, limit, mode: mode.unwrap_or(0o666) })
}
