//! The form that an administrator gives to our own lines: Python's `%(levelname)-8s`, as Patroni's file has it.
//!
//! What has no equal here has the nearest thing: `funcName` is the module that says the line, `processName` the program.

use jiff::Timestamp;
use jiff::fmt::strtime;
use tracing::{Level, Metadata};

use super::{CRITICAL, OURSELVES};

/// Patroni's own form.
const USUAL: &str = "%(asctime)s %(levelname)s: %(message)s";

/// How a line looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pieces: Vec<Piece>,
    /// `log.dateformat`; none: `2026-01-02 03:04:05,678`.
    date: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field, Room),
}

/// How much room a field takes at least, and how it stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    width: usize,
    fill: Fill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    Left,
    Spaces,
    Zeros,
}

/// Python's names are the variants'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
enum Field {
    Asctime,
    Created,
    Filename,
    #[strum(serialize = "funcName")]
    FuncName,
    Levelname,
    Levelno,
    Lineno,
    Message,
    Module,
    Msecs,
    Name,
    Pathname,
    Process,
    #[strum(serialize = "processName")]
    ProcessName,
    #[strum(serialize = "threadName")]
    ThreadName,
}

impl Default for Layout {
    fn default() -> Self {
        let pieces = pieces(USUAL).unwrap_or_default();
        Self { pieces, date: None }
    }
}

impl Layout {
    /// Reads `log.format`.
    ///
    /// # Errors
    /// What was expected in its place.
    pub fn parse(format: &str) -> Result<Self, String> {
        Ok(Self { pieces: pieces(format)?, date: None })
    }

    /// The same with times in the form of `log.dateformat`.
    ///
    /// # Errors
    /// What was expected in its place.
    pub fn dated(self, date: &str) -> Result<Self, String> {
        match strtime::format(date, &utc(Timestamp::UNIX_EPOCH)) {
            Ok(_text) => Ok(Self { date: Some(date.to_owned()), ..self }),
            Err(_unknown) => Err("a form for strftime, such as %Y-%m-%dT%H:%M:%S".to_owned()),
        }
    }

    /// A line, without its end. The message is clean already.
    pub(super) fn line(&self, now: Timestamp, metadata: &Metadata<'_>, message: &str) -> String {
        let mut line = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Field(field, room) => room.put(&mut line, &self.value(*field, now, metadata, message)),
            }
        }
        line
    }

    fn value(&self, field: Field, now: Timestamp, metadata: &Metadata<'_>, message: &str) -> String {
        let path = metadata.file().unwrap_or_default();
        let module = metadata.module_path().unwrap_or_else(|| metadata.target());
        let last = |text: &str, separator| text.rsplit(separator).next().unwrap_or_default().to_owned();
        match field {
            Field::Asctime => self.date(now),
            Field::Created => format!("{}.{:06}", now.as_second(), now.subsec_microsecond()),
            Field::Filename => last(path, '/'),
            Field::FuncName | Field::Module => last(module, ':'),
            Field::Levelname => level(metadata).0.to_owned(),
            Field::Levelno => level(metadata).1.to_string(),
            Field::Lineno => metadata.line().unwrap_or_default().to_string(),
            Field::Message => message.to_owned(),
            Field::Msecs => now.subsec_millisecond().to_string(),
            Field::Name => metadata.target().replace("::", "."),
            Field::Pathname => path.to_owned(),
            Field::Process => std::process::id().to_string(),
            Field::ProcessName => OURSELVES.to_owned(),
            Field::ThreadName => std::thread::current().name().unwrap_or(OURSELVES).to_owned(),
        }
    }

    fn date(&self, now: Timestamp) -> String {
        let format = self.date.as_deref().unwrap_or("%Y-%m-%d %H:%M:%S,%3f");
        strtime::format(format, &utc(now)).unwrap_or_default()
    }
}

fn utc(at: Timestamp) -> jiff::Zoned {
    at.to_zoned(jiff::tz::TimeZone::UTC)
}

impl Room {
    fn put(self, line: &mut String, value: &str) {
        let missing = self.width.saturating_sub(value.chars().count());
        let (before, after) = match self.fill {
            Fill::Left => (String::new(), " ".repeat(missing)),
            Fill::Spaces => (" ".repeat(missing), String::new()),
            Fill::Zeros => ("0".repeat(missing), String::new()),
        };
        line.extend([before.as_str(), value, after.as_str()]);
    }
}

/// Python's name and number of a level.
pub(super) fn level(metadata: &Metadata<'_>) -> (&'static str, u8) {
    match *metadata.level() {
        Level::ERROR if metadata.target() == CRITICAL => ("CRITICAL", 50),
        Level::ERROR => ("ERROR", 40),
        Level::WARN => ("WARNING", 30),
        Level::INFO => ("INFO", 20),
        Level::DEBUG | Level::TRACE => ("DEBUG", 10),
    }
}

fn pieces(format: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = format;
    while let Some((text, field)) = rest.split_once('%') {
        pieces.push(Piece::Text(text.to_owned()));
        rest = match field.strip_prefix('%') {
            Some(rest) => {
                pieces.push(Piece::Text("%".to_owned()));
                rest
            }
            None => {
                let (piece, rest) = named(field).ok_or_else(|| expected(field))?;
                pieces.push(piece);
                rest
            }
        };
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(pieces)
}

/// `(levelname)-8s` at the beginning, and what comes behind it.
fn named(text: &str) -> Option<(Piece, &str)> {
    let (name, rest) = text.strip_prefix('(')?.split_once(')')?;
    let field = name.parse().ok()?;
    let (flag, rest) = rest.split_at(rest.find(|c| !matches!(c, '-' | '0'))?);
    let (width, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
    // A precision changes nothing in a text that is short, and nothing else is given one.
    let rest =
        rest.strip_prefix('.').map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    let rest = rest.strip_prefix(['s', 'd', 'f'])?;
    let fill = match flag {
        "" => Fill::Spaces,
        "0" => Fill::Zeros,
        _ => Fill::Left,
    };
    let width = if width.is_empty() { 0 } else { width.parse().ok().filter(|width| *width <= 200)? };
    Some((Piece::Field(field, Room { width, fill }), rest))
}

fn expected(text: &str) -> String {
    let name = text.strip_prefix('(').and_then(|text| text.split_once(')'));
    let unknown = name.map_or_else(String::new, |(name, _)| format!("not {name}, but "));
    format!("{unknown}fields such as %(asctime)s, %(levelname)-8s and %(message)s")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of two events.
    fn lines(layout: &Layout) -> Vec<String> {
        use std::sync::{Arc, Mutex};
        use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

        struct Seen(Layout, Arc<Mutex<Vec<String>>>);
        impl<S: tracing::Subscriber> Layer<S> for Seen {
            fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
                let line = self.0.line("2026-01-02T03:04:05.006Z".parse().unwrap(), event.metadata(), "text");
                self.1.lock().unwrap().push(line);
            }
        }
        let seen = Arc::default();
        let layer = Seen(layout.clone(), Arc::clone(&seen));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!("text");
            tracing::error!(target: CRITICAL, "text");
        });
        std::mem::take(&mut *seen.lock().unwrap())
    }

    #[test]
    fn without_a_form_lines_are_patronis() {
        let expected = ["2026-01-02 03:04:05,006 WARNING: text", "2026-01-02 03:04:05,006 CRITICAL: text"];
        assert_eq!(lines(&Layout::default()), expected);
    }

    #[test]
    fn pythons_fields_widths_and_dates_are_understood() {
        let format =
            "%(asctime)s|%(levelname)-9s|%(levelno)4d|%(msecs)03d|%(name)s|%(filename)s|%(funcName)s|100%%";
        let layout = Layout::parse(format).unwrap().dated("%d/%m/%y").unwrap();
        let expected = "02/01/26|WARNING  |  30|006|pgherd.log.layout.tests|layout.rs|tests|100%";
        assert_eq!(lines(&layout)[0], expected);
    }

    #[test]
    fn what_is_no_form_is_refused_with_what_is() {
        for wrong in ["%(nothing)s", "%s", "%(message)", "%(message)q", "%", "%(message)9999s"] {
            assert!(Layout::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Layout::parse("%(nothing)s").unwrap_err().starts_with("not nothing, but "));
        assert!(Layout::default().dated("%Q%").is_err());
    }
}
