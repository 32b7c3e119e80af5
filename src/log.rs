//! One stream of lines on standard output: our own events and everything that the children print.
//!
//! Invariant: nobody who logs ever waits for the reader of standard output. A line goes into a ring of bounded size; one
//! thread writes the ring out and is the only one that may block. When the ring is full, new lines are dropped and
//! counted, and the exact count is reported at the place where they are missing.
//! The writer writes to standard output as it was inherited: a private non-blocking description is not needed when only
//! this thread can wait, and could not be had for a socket or another account's pipe.
//! Absent on purpose: rotation, files, rate limits, colours. The container's runtime keeps the stream.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::clock;
use crate::types::Chain;

/// The longest line, in bytes; the rest goes on in another line, and the first is marked as partial. PostgreSQL can print
/// a statement of a gigabyte; no reader wants it in one piece.
pub const LONGEST_LINE: usize = 16 * 1024;
/// How much may wait for the writer: some seconds of a chatty server, and little against the memory limit.
const RING_BYTES: usize = 4 * 1024 * 1024;
/// How much the writer takes at once: one write for many lines.
const BATCH_BYTES: usize = 64 * 1024;
/// How long the end of the process waits for the last lines: the platform's stop budget is short.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// The writer's stack: it formats nothing.
const WRITER_STACK: usize = 64 * 1024;
/// The label of our own lines.
const OURSELVES: &str = "pgherd";

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `2026-01-02T03:04:05.678Z postgres| line`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
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
    let ring = Arc::new(Ring::new(RING_BYTES, config.format));
    LOG.set((Arc::clone(&ring), config.format)).map_err(|_ours| Error::Installed)?;
    let events = Events { ring: Arc::clone(&ring), format: config.format };
    let subscriber = tracing_subscriber::registry().with(events.with_filter(filter));
    tracing::subscriber::set_global_default(subscriber).map_err(|_theirs| Error::Installed)?;
    let writer = Arc::clone(&ring);
    std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(WRITER_STACK)
        .spawn(move || write_out(&writer, io::stdout().as_fd()))
        .map_err(|source| Error::StartWriter { source })?;
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
        ring.push(render(*format, &from, bytes));
    }
}

/// Who said a line.
struct Origin<'a> {
    service: &'a str,
    stream: Option<Stream>,
    wholeness: Wholeness,
}

/// One line of `init`, which has no writer thread: rendered as the log would, for the caller to write.
pub fn init_line(format: Format, text: &str) -> Vec<u8> {
    render(format, &Origin { service: "init", stream: None, wholeness: Wholeness::Whole }, text.as_bytes())
}

fn render(format: Format, from: &Origin<'_>, bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    match format {
        Format::Text => {
            let mark = match from.wholeness {
                Wholeness::Whole => "",
                Wholeness::Partial => " [partial]",
            };
            format!("{} {}| {}{mark}\n", timestamp(), from.service, printable(&text)).into_bytes()
        }
        Format::Json => {
            let mut object = Map::new();
            object.insert("ts".to_owned(), timestamp().into());
            object.insert("service".to_owned(), from.service.into());
            if let Some(stream) = from.stream {
                object.insert("stream".to_owned(), stream.as_str().into());
            }
            if from.wholeness == Wholeness::Partial {
                object.insert("partial".to_owned(), true.into());
            }
            object.insert("message".to_owned(), text.into_owned().into());
            json_line(object)
        }
    }
}

fn json_line(object: Map<String, Value>) -> Vec<u8> {
    let mut line = Value::Object(object).to_string();
    line.push('\n');
    line.into_bytes()
}

fn timestamp() -> String {
    clock::wall().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Control characters would let a line pretend to be another one, or command a terminal.
fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\t';
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmless(c) { clean.push(c) } else { clean.extend(c.escape_default()) }
    }
    Cow::Owned(clean)
}

/// Lines that wait for the writer.
#[derive(Debug)]
struct Ring {
    queue: Mutex<Queue>,
    /// Told when there is something to write.
    filled: Condvar,
    /// Told when everything has been written.
    emptied: Condvar,
    capacity: usize,
    format: Format,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: Dropped,
    /// The writer holds lines that are no longer in the queue.
    writing: bool,
}

/// What could not be kept since the last report.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

impl Ring {
    fn new(capacity: usize, format: Format) -> Self {
        let (queue, filled, emptied) = (Mutex::default(), Condvar::new(), Condvar::new());
        Self { queue, filled, emptied, capacity, format }
    }

    /// A panic while the lock was held cannot leave the queue half-changed: every change is a push or a pop.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once lines have been dropped, more are dropped until half of the ring is free: one long gap says more than many
    /// short ones.
    fn push(&self, line: Vec<u8>) {
        let mut queue = self.lock();
        let dropping = queue.dropped != Dropped::default();
        let limit = if dropping { self.capacity / 2 } else { self.capacity };
        if queue.bytes + line.len() > limit {
            queue.dropped.lines += 1;
            queue.dropped.bytes += line.len() as u64;
            return;
        }
        if dropping {
            self.report_gap(&mut queue);
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        if queue.lines.len() == 1 {
            self.filled.notify_one();
        }
    }

    fn report_gap(&self, queue: &mut Queue) {
        let Dropped { lines, bytes } = std::mem::take(&mut queue.dropped);
        let text = format!("log reader was too slow: dropped={lines} lines, {bytes} bytes");
        let from = Origin { service: OURSELVES, stream: None, wholeness: Wholeness::Whole };
        let line = render(self.format, &from, text.as_bytes());
        queue.bytes += line.len();
        queue.lines.push_back(line);
    }

    /// Waits for lines and takes a batch of them.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut queue = self.lock();
        queue.writing = false;
        loop {
            if queue.lines.is_empty() && queue.dropped != Dropped::default() {
                self.report_gap(&mut queue);
            }
            if !queue.lines.is_empty() {
                break;
            }
            // What a burst has needed is given back.
            queue.lines.shrink_to(64);
            self.emptied.notify_all();
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        while batch.len() < BATCH_BYTES
            && let Some(line) = queue.lines.pop_front()
        {
            queue.bytes -= line.len();
            batch.extend_from_slice(&line);
        }
        queue.writing = true;
    }

    fn lost(&self, bytes: &[u8]) {
        let mut queue = self.lock();
        queue.dropped.lines += bytes.iter().filter(|b| **b == b'\n').count() as u64;
        queue.dropped.bytes += bytes.len() as u64;
    }

    fn flush(&self, limit: Duration) {
        let busy = |queue: &mut Queue| !queue.lines.is_empty() || queue.writing;
        // Either outcome ends the wait; what is left is lost with the process.
        drop(self.emptied.wait_timeout_while(self.lock(), limit, busy));
    }
}

/// The writer's life. Only this thread ever waits for the reader.
fn write_out(ring: &Ring, out: impl AsFd) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    loop {
        batch.clear();
        ring.take(&mut batch);
        if let Err(rest) = write_all(&out, &batch) {
            // Nobody reads any more (EPIPE, EIO): the services go on. The count is reported if somebody reads again.
            ring.lost(&rest);
            pause_after_failure();
        }
    }
}

/// A reader that is gone fails each write at once: without a pause that would be a busy loop.
#[expect(
    clippy::disallowed_methods,
    reason = "the writer is a thread of its own, not a worker of the runtime"
)]
fn pause_after_failure() {
    std::thread::sleep(Duration::from_millis(100));
}

/// Writes everything, or tells what could not be written.
fn write_all(out: &impl AsFd, mut rest: &[u8]) -> Result<(), Vec<u8>> {
    while !rest.is_empty() {
        match nix::unistd::write(out, rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            // Somebody else who holds this terminal or pipe has made it non-blocking.
            Err(nix::errno::Errno::EAGAIN) => {
                let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::NONE).map_err(|_failed| rest.to_vec())?;
            }
            Err(_gone) => return Err(rest.to_vec()),
        }
    }
    Ok(())
}

/// `tracing`'s events and spans, as lines.
#[derive(Debug)]
struct Events {
    ring: Arc<Ring>,
    format: Format,
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
        self.ring.push(match self.format {
            Format::Text => event_text(event.metadata(), &spans, &fields),
            Format::Json => event_json(event.metadata(), &spans, fields),
        });
    }
}

fn event_text(metadata: &tracing::Metadata<'_>, spans: &[&str], fields: &Fields) -> Vec<u8> {
    let mut text = format!("{:5} ", metadata.level().as_str());
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
    let from = Origin { service: OURSELVES, stream: None, wholeness: Wholeness::Whole };
    render(Format::Text, &from, bounded(&text).as_bytes())
}

fn event_json(metadata: &tracing::Metadata<'_>, spans: &[&str], fields: Fields) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("ts".to_owned(), timestamp().into());
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

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Debug, Default)]
pub struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// Takes what was read; calls `each` for every line that it completes.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8], Wholeness)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (head, tail) = bytes.split_at(end);
            self.fill(head, &mut each);
            self.end(Wholeness::Whole, &mut each);
            bytes = tail.get(1..).unwrap_or_default();
        }
        self.fill(bytes, &mut each);
    }

    /// Gives out a line that has no end yet.
    pub fn flush(&mut self, mut each: impl FnMut(&[u8], Wholeness)) {
        if !self.pending.is_empty() {
            self.end(Wholeness::Partial, &mut each);
        }
    }

    /// Whether a line without an end is waiting.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    fn fill(&mut self, bytes: &[u8], each: &mut impl FnMut(&[u8], Wholeness)) {
        let mut bytes = bytes;
        while self.pending.len() + bytes.len() > LONGEST_LINE {
            let (head, tail) = bytes.split_at(LONGEST_LINE - self.pending.len());
            self.pending.extend_from_slice(head);
            self.end(Wholeness::Partial, each);
            bytes = tail;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn end(&mut self, wholeness: Wholeness, each: &mut impl FnMut(&[u8], Wholeness)) {
        each(self.pending.strip_suffix(b"\r").unwrap_or(&self.pending), wholeness);
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<(Vec<u8>, Wholeness)> {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        for chunk in chunks {
            splitter.push(chunk, |line, whole| lines.push((line.to_vec(), whole)));
        }
        splitter.flush(|line, whole| lines.push((line.to_vec(), whole)));
        lines
    }

    #[test]
    fn lines_are_cut_wherever_the_reads_were() {
        use Wholeness::{Partial, Whole};
        let lines = split(&[b"on", b"e\ntwo\r\n\n", b"rest"]);
        let expected = [(&b"one"[..], Whole), (b"two", Whole), (b"", Whole), (b"rest", Partial)];
        assert_eq!(lines, expected.map(|(line, whole)| (line.to_vec(), whole)));
    }

    #[test]
    fn a_line_of_ten_megabytes_becomes_bounded_parts() {
        let huge = vec![b'x'; 10 * 1024 * 1024];
        let lines = split(&[&huge, b"\n"]);
        assert!(lines.iter().all(|(line, _)| line.len() <= LONGEST_LINE));
        assert_eq!(lines.iter().map(|(line, _)| line.len()).sum::<usize>(), huge.len());
        assert_eq!(lines.iter().filter(|(_, whole)| *whole == Wholeness::Whole).count(), 1);
    }

    #[test]
    fn hostile_bytes_stay_one_valid_line() {
        let from = Origin { service: "s", stream: Some(Stream::Stderr), wholeness: Wholeness::Partial };
        let nasty = b"a\0b\xffc\x1b[31md\re";
        let text = String::from_utf8(render(Format::Text, &from, nasty)).unwrap();
        assert!(text.ends_with("s| a\\u{0}b\u{fffd}c\\u{1b}[31md\\re [partial]\n"), "{text}");
        let json: Value = serde_json::from_slice(&render(Format::Json, &from, nasty)).unwrap();
        assert_eq!(json["partial"], true);
        assert_eq!(json["message"], "a\0b\u{fffd}c\u{1b}[31md\re");
    }

    #[test]
    fn a_stalled_reader_costs_lines_but_never_blocks_and_the_count_is_exact() {
        let (mut reader, writer) = io::pipe().unwrap();
        let ring = Arc::new(Ring::new(256 * 1024, Format::Text));
        let thread = Arc::clone(&ring);
        std::thread::spawn(move || write_out(&thread, writer));
        let total = 20_000_u64;
        for n in 0..total {
            ring.push(format!("line {n} {}\n", "x".repeat(100)).into_bytes());
        }
        // Only now does the reader read, until the report has come and nothing is missing.
        let (mut text, mut buffer) = (String::new(), [0; 65536]);
        let (mut seen, mut dropped) = (0, 0);
        while seen + dropped < total {
            let n = reader.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
            seen =
                text.lines().filter(|line| line.starts_with("line ") && line.ends_with('x')).count() as u64;
            let gaps = text.lines().filter_map(|line| line.split_once("dropped=")?.1.split_once(" lines,"));
            dropped = gaps.map(|(count, _)| count.parse::<u64>().unwrap()).sum();
        }
        assert_eq!(seen + dropped, total);
        assert!(dropped > 0);
        // It recovers.
        ring.push(b"after\n".to_vec());
        while !text.ends_with("after\n") {
            let n = reader.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
    }

    #[test]
    fn events_carry_fields_and_the_span_they_happened_in() {
        let ring = Arc::new(Ring::new(RING_BYTES, Format::Text));
        let layer = Events { ring: Arc::clone(&ring), format: Format::Text };
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
