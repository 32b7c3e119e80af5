//! Lines: cut out of a stream of bytes, bounded, and put into the log's form.
//!
//! Invariant: whatever a child prints (no line end for megabytes, invalid UTF-8, NUL, escape sequences), what comes out is
//! whole lines of bounded length which are valid text, or valid JSON.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{Format, LONGEST_LINE, Stream, Wholeness};
use crate::clock;

/// Who said a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) service: &'a str,
    pub(super) stream: Option<Stream>,
    pub(super) wholeness: Wholeness,
}

/// The time of a line, as text: made anew only when the millisecond is another.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    millisecond: i64,
    text: String,
}

impl Stamp {
    pub(super) fn now(&mut self) -> &str {
        let now = clock::wall();
        if self.text.is_empty() || self.millisecond != now.as_millisecond() {
            self.millisecond = now.as_millisecond();
            self.text = now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        }
        &self.text
    }
}

/// One line in the log's form.
pub(super) fn render(format: Format, from: &Origin<'_>, bytes: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(bytes.len() + 64);
    append(&mut line, (format, Stamp::default().now()), from, bytes);
    line
}

/// The same, at the end of others.
pub(super) fn append(out: &mut Vec<u8>, (format, stamp): (Format, &str), from: &Origin<'_>, bytes: &[u8]) {
    match format {
        Format::Text => append_text(out, stamp, from, bytes),
        Format::Json => append_json(out, stamp, from, bytes),
        Format::Patroni => append_patroni(out, stamp, from, bytes),
    }
    out.push(b'\n');
}

/// `2026-01-02T03:04:05.678Z` as Python writes it. What a child prints has a time of its own, or needs none.
fn append_patroni(out: &mut Vec<u8>, stamp: &str, from: &Origin<'_>, bytes: &[u8]) {
    if from.stream.is_none() {
        let (date, time) = stamp.trim_end_matches('Z').split_once('T').unwrap_or((stamp, ""));
        let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
        out.extend_from_slice(format!("{date} {time},{fraction} ").as_bytes());
    }
    append_clean(out, from, bytes);
}

fn append_text(out: &mut Vec<u8>, stamp: &str, from: &Origin<'_>, bytes: &[u8]) {
    out.extend_from_slice(stamp.as_bytes());
    out.push(b' ');
    out.extend_from_slice(from.service.as_bytes());
    out.extend_from_slice(b"| ");
    append_clean(out, from, bytes);
}

fn append_clean(out: &mut Vec<u8>, from: &Origin<'_>, bytes: &[u8]) {
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        out.extend_from_slice(printable(&String::from_utf8_lossy(bytes)).as_bytes());
    }
    match from.wholeness {
        Wholeness::Whole => {}
        Wholeness::Partial => out.extend_from_slice(b" [partial]"),
    }
}

/// Printable ASCII, which is nearly every line; eight bytes at a time.
fn is_plain(bytes: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (words, rest) = bytes.as_chunks::<8>();
    // The highest bit of a byte of `low` or `high` says that this byte, or one beneath it, is not.
    let plain = |word: &[u8; 8]| {
        let word = u64::from_ne_bytes(*word);
        let low = word.wrapping_sub(0x20 * ONES) & !word;
        let high = word | word.wrapping_add(ONES);
        (low | high) & (0x80 * ONES) == 0
    };
    words.iter().all(plain) && rest.iter().all(|byte| (0x20..0x7f).contains(byte))
}

/// Control characters would let a line pretend to be another one, or command a terminal.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
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

fn append_json(out: &mut Vec<u8>, stamp: &str, from: &Origin<'_>, bytes: &[u8]) {
    out.extend_from_slice(b"{\"ts\":\"");
    out.extend_from_slice(stamp.as_bytes());
    out.push(b'"');
    member(out, "service", from.service);
    if let Some(stream) = from.stream {
        member(out, "stream", stream.as_str());
    }
    match (from.wholeness, own_object(bytes)) {
        (Wholeness::Whole, Some(object)) => append_own(out, object),
        (Wholeness::Whole, None) => append_message(out, from, bytes),
        (Wholeness::Partial, _) => {
            out.extend_from_slice(b",\"partial\":true");
            append_message(out, from, bytes);
        }
    }
    out.push(b'}');
}

fn append_message(out: &mut Vec<u8>, from: &Origin<'_>, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if from.stream.is_some()
        && let Some(level) = level_of(&text)
    {
        member(out, "level", level);
    }
    member(out, "message", &text);
}

/// A line that is an object already (etcd's) is not wrapped again: its fields become the line's.
fn own_object(bytes: &[u8]) -> Option<Map<String, Value>> {
    let looks_like_it = bytes.first() == Some(&b'{') && bytes.last() == Some(&b'}');
    if looks_like_it { serde_json::from_slice(bytes).ok() } else { None }
}

/// What we say about a line comes first; a child's field of the same name gets another.
fn append_own(out: &mut Vec<u8>, object: Map<String, Value>) {
    for (name, value) in object {
        let name = match name.as_str() {
            "ts" | "service" | "stream" | "partial" => format!("own_{name}"),
            _ => name,
        };
        out.push(b',');
        out.extend_from_slice(Value::from(name).to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.to_string().as_bytes());
    }
}

/// Writing into memory cannot fail, and a string is always valid JSON.
fn member(out: &mut Vec<u8>, name: &str, text: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    serde_json::to_writer(out, text).ok();
}

/// PostgreSQL's severity, `WARNING:  text` after whatever prefix, in the words of other logs.
fn level_of(text: &str) -> Option<&'static str> {
    let (before, _) = text.split_once(":  ")?;
    let word = before.rsplit(' ').next()?;
    Some(match word {
        "LOG" | "INFO" | "NOTICE" | "DETAIL" | "HINT" | "STATEMENT" | "CONTEXT" | "QUERY" => "info",
        "WARNING" => "warn",
        "ERROR" => "error",
        "FATAL" => "fatal",
        "PANIC" => "panic",
        "DEBUG" | "DEBUG1" | "DEBUG2" | "DEBUG3" | "DEBUG4" | "DEBUG5" => "debug",
        _ => return None,
    })
}

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Debug, Default)]
pub struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// Takes what was read; calls `each` for every line that it completes. A line that lies whole in what was read is not
    /// copied.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8], Wholeness)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, tail) = bytes.split_at(end);
            if self.pending.is_empty() && head.len() <= LONGEST_LINE {
                each(without_return(head), Wholeness::Whole);
            } else {
                self.fill(head, &mut each);
                self.end(Wholeness::Whole, &mut each);
            }
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
            // A character that does not fit goes on in the next part.
            let cut = self.pending.len() - unfinished(&self.pending);
            let rest = self.pending.split_off(cut);
            self.end(Wholeness::Partial, each);
            self.pending = rest;
            bytes = tail;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn end(&mut self, wholeness: Wholeness, each: &mut impl FnMut(&[u8], Wholeness)) {
        each(without_return(&self.pending), wholeness);
        self.pending.clear();
    }
}

/// How many bytes at the end are the beginning of a character whose others are still to come.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = bytes.get(bytes.len().saturating_sub(3)..).unwrap_or_default();
    let Some(start) = tail.iter().rposition(|byte| byte & 0b1100_0000 != 0b1000_0000) else { return 0 };
    let size = match tail.get(start) {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        Some(_) | None => 1,
    };
    let there = tail.len() - start;
    if there < size { there } else { 0 }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
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
    fn a_character_is_never_cut_in_two() {
        let text: String = "aé€😀".chars().cycle().take(LONGEST_LINE).collect();
        for shift in 0..10 {
            let text = "x".repeat(shift) + &text;
            let lines = split(&[text.as_bytes(), b"\n"]);
            assert!(lines.len() > 2 && lines.iter().all(|(line, _)| std::str::from_utf8(line).is_ok()));
            assert_eq!(lines.iter().flat_map(|(line, _)| line.clone()).collect::<Vec<_>>(), text.as_bytes());
        }
        // What is no character is no beginning of one either.
        for bytes in [&b"\x80\x80\x80"[..], b"", b"a", b"\xff", "é".as_bytes(), b"\xf0\x9f\x98\x80"] {
            assert_eq!(unfinished(bytes), 0, "{bytes:?}");
        }
        assert_eq!((unfinished(b"a\xc3"), unfinished(b"\xf0\x9f\x98")), (1, 3));
    }

    #[test]
    fn plain_is_what_is_printable() {
        for byte in 0..=255_u8 {
            for at in 0..9 {
                let mut line = *b"plain ~ l";
                line[at] = byte;
                assert_eq!(is_plain(&line), (0x20..0x7f).contains(&byte), "{byte} at {at}");
            }
        }
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

    fn json(line: &str) -> Value {
        let from = Origin { service: "s", stream: Some(Stream::Stderr), wholeness: Wholeness::Whole };
        serde_json::from_slice(&render(Format::Json, &from, line.as_bytes())).unwrap()
    }

    #[test]
    fn an_object_is_passed_through_and_not_wrapped() {
        let line = json(r#"{"level":"warn","ts":"2026-01-01","msg":"slow \"fdatasync\"","n":{"a":[1]}}"#);
        assert_eq!(
            (&line["service"], &line["stream"], &line["level"]),
            (&"s".into(), &"stderr".into(), &"warn".into())
        );
        assert_eq!(
            (&line["own_ts"], &line["msg"], &line["n"]["a"][0]),
            (&"2026-01-01".into(), &"slow \"fdatasync\"".into(), &1.into())
        );
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
        for text in [r#"{"no json"}"#, "{", "[1]", r#"{"a":1"#] {
            assert_eq!(json(text)["message"], text);
        }
    }

    #[test]
    fn the_servers_severity_is_the_lines_level() {
        assert_eq!(json("2026-01-01 UTC [7] WARNING:  disk")["level"], "warn");
        assert_eq!(json("2026-01-01 UTC [7] FATAL:  no")["level"], "fatal");
        assert_eq!(json("2026-01-01 UTC [7] LOG:  a: b")["level"], "info");
        for text in ["plain", "some:  thing", ":  x"] {
            assert_eq!(json(text).get("level"), None, "{text}");
        }
    }
}
