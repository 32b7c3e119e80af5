//! One stream of lines on standard output: our own events and everything that the children print.
//!
//! Invariant: nobody who logs ever waits for the reader of standard output. A line goes into a ring of bounded size; one
//! thread writes the ring out and is the only one that may block. When the ring is full, new lines are dropped and
//! counted, and the exact count is reported at the place where they are missing.
//! The writer writes to standard output as it was inherited: a private non-blocking description is not needed when only
//! this thread can wait, and could not be had for a socket or another account's pipe.
//! Absent on purpose: rate limits, colours, and files where a container's runtime keeps the stream; an agent may write files.

mod layout;
mod line;
mod ring;
mod sink;

use crate::types::Chain;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use line::{Origin, Stamp, append, printable, render};
use ring::{Chunk, Ring, write_out};
use sink::{Rotating, Stream as Descriptor};

pub use layout::Layout;
pub use line::Splitter;
pub use sink::Files;

/// The longest line, in bytes; the rest goes on in another line, and the first is marked as partial. PostgreSQL can print
/// a statement of a gigabyte; no reader wants it in one piece.
pub const LONGEST_LINE: usize = 16 * 1024;
/// How much may wait for the writer: some seconds of a chatty server, and little against the memory limit.
const RING_BYTES: usize = 4 * 1024 * 1024;
/// How long the end of the process waits for the last lines: the platform's stop budget is short.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// The writer's stack: it formats nothing.
const WRITER_STACK: usize = 64 * 1024;
/// The label of our own lines.
const OURSELVES: &str = "pgherd";
/// The target of an error that Patroni calls critical: this process cannot go on, and a person must see to it.
pub const CRITICAL: &str = "pgherd::critical";

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `2026-01-02T03:04:05.678Z postgres| line`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// `2026-01-02 03:04:05,678 INFO: line` (UTC), or as [`Layout`] says, and what children print as it is: Patroni's form.
    Patroni,
}

/// Where a child's line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Whether a line is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wholeness {
    Whole,
    /// The line was too long, or had no end yet: it goes on in the next one.
    Partial,
}

/// What the log is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `LOG_FORMAT`.
    pub format: Format,
    /// `LOG_LEVEL`: `info`, or `warn,pgherd::ha=debug`.
    pub level: String,
    /// What our own lines look like in Patroni's form.
    pub layout: Layout,
    /// In the place of standard output.
    pub files: Option<Files>,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{text:?} is not a log level such as info, or warn,pgherd::ha=debug")]
    ParseLevel {
        text: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("the log is already installed")]
    Installed,
    #[error("could not open a file of the log in {dir}")]
    Open {
        dir: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not start the log's thread")]
    StartWriter {
        #[source]
        source: io::Error,
    },
}

/// Flushes the log when it is dropped, for at most a second.
#[derive(Debug)]
pub struct Guard {
    ring: Arc<Ring>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.ring.flush(FLUSH_LIMIT);
    }
}

/// The one log of this process. A static, as `tracing`'s own dispatcher is one: a line must be loggable from anywhere.
static LOG: OnceLock<(Arc<Ring>, Format)> = OnceLock::new();

/// Starts the writer and makes this the destination of `tracing`'s events. Once per process.
///
/// # Errors
/// The level cannot be read, the log is already installed, or the thread could not be started.
pub fn install(config: &Config) -> Result<Guard, Error> {
    let filter: Targets =
        config.level.parse().map_err(|source| Error::ParseLevel { text: config.level.clone(), source })?;
    let open = |files: &Files| {
        let failed = |source| Error::Open { dir: files.dir.clone(), source };
        Rotating::open(files.clone()).map_err(failed)
    };
    let files = config.files.as_ref().map(open).transpose()?;
    let ring = Arc::new(Ring::new(RING_BYTES, config.format));
    tell_of_panics(config.format);
    LOG.set((Arc::clone(&ring), config.format)).map_err(|_ours| Error::Installed)?;
    let events = Events { ring: Arc::clone(&ring), format: config.format, layout: config.layout.clone() };
    let subscriber = tracing_subscriber::registry().with(events.with_filter(filter));
    tracing::subscriber::set_global_default(subscriber).map_err(|_theirs| Error::Installed)?;
    let writer = Arc::clone(&ring);
    let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(WRITER_STACK);
    let started = match files {
        None => thread.spawn(move || write_out(&writer, Descriptor(io::stdout()))),
        Some(files) => thread.spawn(move || write_out(&writer, files)),
    };
    started.map_err(|source| Error::StartWriter { source })?;
    Ok(Guard { ring })
}

/// Logs one line of a child. Never blocks; before [`install`] the line goes nowhere.
pub fn line(service: &str, stream: Stream, bytes: &[u8]) {
    child_line(service, stream, bytes, Wholeness::Whole);
}

/// Logs one line of a child which may go on in the next.
pub fn child_line(service: &str, stream: Stream, bytes: &[u8], wholeness: Wholeness) {
    if let Some((ring, format)) = LOG.get() {
        let from = Origin { service, stream: Some(stream), wholeness };
        ring.push(Chunk::line(render(*format, &from, bytes)));
    }
}

/// Lines that were dropped since the start because nobody took them in time.
pub fn n_dropped() -> u64 {
    LOG.get().map_or(0, |(ring, _)| ring.n_dropped())
}

/// One stream of a child on its way into the log: what is read at once costs one rendering buffer, one look at the clock
/// and one lock, however many lines it has.
#[derive(Debug)]
pub struct Lines {
    service: String,
    stream: Stream,
    splitter: Splitter,
    stamp: Stamp,
}

impl Lines {
    /// A stream of this service.
    pub fn new(service: &str, stream: Stream) -> Self {
        Self { service: service.to_owned(), stream, splitter: Splitter::default(), stamp: Stamp::default() }
    }

    /// Takes what was read; its whole lines are logged. Never blocks.
    pub fn push(&mut self, bytes: &[u8]) {
        self.log(bytes.len(), |splitter, each| splitter.push(bytes, each));
    }

    /// Logs what has no end yet.
    pub fn flush(&mut self) {
        self.log(0, |splitter, each| splitter.flush(each));
    }

    /// Whether a line without an end is waiting.
    pub fn is_waiting(&self) -> bool {
        self.splitter.is_waiting()
    }

    fn log(&mut self, size: usize, cut: impl FnOnce(&mut Splitter, &mut dyn FnMut(&[u8], Wholeness))) {
        let Some((ring, format)) = LOG.get() else { return };
        let stamp = self.stamp.now();
        let mut chunk = Chunk { bytes: ring.buffer(size + size / 2), lines: 0 };
        let (service, stream) = (self.service.as_str(), Some(self.stream));
        cut(&mut self.splitter, &mut |line, wholeness| {
            append(&mut chunk.bytes, (*format, stamp), &Origin { service, stream, wholeness }, line);
            chunk.lines += 1;
        });
        if chunk.lines > 0 {
            ring.push(chunk);
        }
    }
}

/// A line from where there is no writer's thread, as in `init`: rendered as the log would, for the caller to write.
pub fn loose_line(service: &str, format: Format, text: &str) -> Vec<u8> {
    render(format, &Origin { service, stream: None, wholeness: Wholeness::Whole }, text.as_bytes())
}

/// A panic ends this process, and its words are a line like any other. Past the ring, which may be what has panicked.
fn tell_of_panics(format: Format) {
    match format {
        Format::Json => std::panic::set_hook(Box::new(move |panic| {
            drop(io::stderr().write_all(&loose_line(OURSELVES, format, &panic.to_string())));
        })),
        // People know how a panic looks.
        Format::Text | Format::Patroni => {}
    }
}

fn json_line(object: Map<String, Value>) -> Vec<u8> {
    let mut line = Value::Object(object).to_string();
    line.push('\n');
    line.into_bytes()
}

/// `tracing`'s events and spans, as lines.
#[derive(Debug)]
struct Events {
    ring: Arc<Ring>,
    format: Format,
    layout: Layout,
}

/// The fields of a span, kept with it.
struct SpanFields(Fields);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Events {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(SpanFields(fields)) = span.extensions_mut().get_mut()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut spans = Vec::new();
        for span in
            context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            if let Some(SpanFields(outer)) = span.extensions().get() {
                fields.rest.extend(outer.rest.iter().cloned());
            }
            spans.push(span.name());
        }
        self.ring.push_ours(Chunk::line(match self.format {
            Format::Text => event_text(event.metadata(), &spans, &fields),
            Format::Json => event_json(event.metadata(), &spans, fields),
            Format::Patroni => event_patroni(&self.layout, event.metadata(), &spans, &fields),
        }));
    }
}

fn event_text(metadata: &tracing::Metadata<'_>, spans: &[&str], fields: &Fields) -> Vec<u8> {
    let text = format!("{:5} {}", metadata.level().as_str(), event_message(spans, fields));
    let from = Origin { service: OURSELVES, stream: None, wholeness: Wholeness::Whole };
    render(Format::Text, &from, bounded(&text).as_bytes())
}

fn event_patroni(
    layout: &Layout,
    metadata: &tracing::Metadata<'_>,
    spans: &[&str],
    fields: &Fields,
) -> Vec<u8> {
    let message = event_message(spans, fields);
    let mut line = layout.line(crate::clock::wall(), metadata, &printable(bounded(&message)));
    line.push('\n');
    line.into_bytes()
}

fn event_message(spans: &[&str], fields: &Fields) -> String {
    let mut text = String::new();
    for span in spans {
        text.push_str(span);
        text.push_str(": ");
    }
    text.push_str(&fields.message);
    for (name, value) in &fields.rest {
        // A string is shown without quotes. Writing to a String cannot fail.
        match value.as_str() {
            Some(plain) => write!(text, " {name}={plain}").ok(),
            None => write!(text, " {name}={value}").ok(),
        };
    }
    text
}

fn event_json(metadata: &tracing::Metadata<'_>, spans: &[&str], fields: Fields) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("ts".to_owned(), Stamp::default().now().into());
    object.insert("service".to_owned(), OURSELVES.into());
    object.insert("level".to_owned(), metadata.level().as_str().to_lowercase().into());
    object.insert("target".to_owned(), metadata.target().into());
    if !spans.is_empty() {
        object.insert("span".to_owned(), spans.join(": ").into());
    }
    object.insert("message".to_owned(), bounded(&fields.message).into());
    for (name, value) in fields.rest {
        object.entry(name).or_insert(value);
    }
    json_line(object)
}

fn bounded(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST_LINE)).unwrap_or(text)
}

/// The fields of one event or span.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    rest: Vec<(String, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.rest.push((field.name().to_owned(), value.into()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.put(field, bounded(&text)) }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message)
        } else {
            self.put(field, bounded(value))
        }
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Chain(value).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_fields_and_the_span_they_happened_in() {
        let ring = Arc::new(Ring::new(RING_BYTES, Format::Text));
        let (ring_of_layer, layout) = (Arc::clone(&ring), Layout::default());
        let layer = Events { ring: ring_of_layer, format: Format::Text, layout };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::info_span!("ha", node = "n1").entered();
            tracing::warn!(lag = 7, text = "a\nb", "behind");
        });
        let mut batch = Vec::new();
        ring.take(&mut batch);
        let line = String::from_utf8(batch).unwrap();
        assert!(line.ends_with("pgherd| WARN  ha: behind lag=7 text=a\\nb node=n1\n"), "{line}");
    }
}
