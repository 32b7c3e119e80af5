//! The ring: what waits for the writer, and the one thread that may wait for the reader.
//!
//! Invariant: [`Ring::push`] never waits for anything but the lock, which nobody holds for longer than a few moves of
//! memory. What does not fit is dropped and counted exactly.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::line::{Origin, render};
use super::sink::Sink;
use super::{Format, OURSELVES, Wholeness};

/// How much the writer takes at once: one write for many lines.
const BATCH_BYTES: usize = 64 * 1024;
/// A chunk of this size is written as it is; smaller ones are gathered.
const WRITTEN_ALONE: usize = 16 * 1024;

/// So many buffers of big chunks are used again. New memory for each costs a busy service's log as much as all else that is done
/// with its lines: the kernel clears every page of it.
const SPARE_BUFFERS: usize = 2;

/// What is kept free for our own lines: thousands of decisions.
const RESERVE: usize = 256 * 1024;

/// Whole lines.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

impl Chunk {
    /// A chunk of one line.
    pub(super) fn line(bytes: Vec<u8>) -> Self {
        Self { bytes, lines: 1 }
    }
}

/// Lines that wait for the writer.
#[derive(Debug)]
pub(super) struct Ring {
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
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Buffers of chunks that have been written.
    spare: Vec<Vec<u8>>,
    dropped: Dropped,
    /// Lines that were dropped since the start.
    n_dropped: u64,
    /// The writer holds lines that are no longer in the queue.
    writing: bool,
}

/// What could not be kept since the last report.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

impl Queue {
    fn drop_lines(&mut self, lines: u64, bytes: usize) {
        self.n_dropped += lines;
        self.dropped.lines += lines;
        self.dropped.bytes += bytes as u64;
    }

    fn put(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        self.chunks.push_back(chunk);
    }
}

impl Ring {
    pub(super) fn new(capacity: usize, format: Format) -> Self {
        let (queue, filled, emptied) = (Mutex::default(), Condvar::new(), Condvar::new());
        Self { queue, filled, emptied, capacity, format }
    }

    /// A panic while the lock was held cannot leave the queue half-changed: every change is a push or a pop.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer for a chunk of about this size.
    pub(super) fn buffer(&self, size: usize) -> Vec<u8> {
        let spare = if size >= WRITTEN_ALONE { self.lock().spare.pop() } else { None };
        let mut buffer = spare.unwrap_or_default();
        buffer.reserve(size);
        buffer
    }

    /// Once lines have been dropped, more are dropped until half of the ring is free: one long gap says more than many
    /// short ones.
    pub(super) fn push(&self, chunk: Chunk) {
        self.push_within(0, chunk);
    }

    /// A line of our own: what a service prints does not crowd it out.
    pub(super) fn push_ours(&self, chunk: Chunk) {
        self.push_within(RESERVE, chunk);
    }

    fn push_within(&self, reserve: usize, chunk: Chunk) {
        let mut queue = self.lock();
        let dropping = queue.dropped != Dropped::default();
        let size = queue.bytes + chunk.bytes.len();
        let limit = if dropping && reserve == 0 { self.capacity / 2 } else { self.capacity + reserve };
        if size > limit {
            queue.drop_lines(chunk.lines, chunk.bytes.len());
            return;
        }
        if dropping && size <= self.capacity / 2 {
            self.report_gap(&mut queue);
        }
        queue.put(chunk);
        if queue.chunks.len() == 1 {
            self.filled.notify_one();
        }
    }

    fn report_gap(&self, queue: &mut Queue) {
        let Dropped { lines, bytes } = std::mem::take(&mut queue.dropped);
        let text = format!("log reader was too slow: dropped={lines} lines, {bytes} bytes");
        let from = Origin { service: OURSELVES, stream: None, wholeness: Wholeness::Whole };
        queue.put(Chunk::line(render(self.format, &from, text.as_bytes())));
    }

    /// Waits for lines and takes a batch of them.
    pub(super) fn take(&self, batch: &mut Vec<u8>) {
        let mut queue = self.lock();
        queue.writing = false;
        loop {
            if queue.chunks.is_empty() && queue.dropped != Dropped::default() {
                self.report_gap(&mut queue);
            }
            if !queue.chunks.is_empty() {
                break;
            }
            // What a burst has needed is given back.
            queue.chunks.shrink_to(64);
            self.emptied.notify_all();
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.writing = true;
        while batch.len() < BATCH_BYTES
            && let Some(chunk) = queue.chunks.pop_front()
        {
            queue.bytes -= chunk.bytes.len();
            if batch.is_empty() && chunk.bytes.len() >= WRITTEN_ALONE {
                let mut written = std::mem::replace(batch, chunk.bytes);
                if written.capacity() >= WRITTEN_ALONE && queue.spare.len() < SPARE_BUFFERS {
                    written.clear();
                    queue.spare.push(written);
                }
                return;
            }
            batch.extend_from_slice(&chunk.bytes);
        }
    }

    fn lost(&self, bytes: &[u8]) {
        let mut queue = self.lock();
        queue.drop_lines(bytes.iter().filter(|b| **b == b'\n').count() as u64, bytes.len());
    }

    /// Lines that were dropped since the start.
    pub(super) fn n_dropped(&self) -> u64 {
        self.lock().n_dropped
    }

    pub(super) fn flush(&self, limit: Duration) {
        let busy = |queue: &mut Queue| !queue.chunks.is_empty() || queue.writing;
        // Either outcome ends the wait; what is left is lost with the process.
        drop(self.emptied.wait_timeout_while(self.lock(), limit, busy));
    }
}

/// The writer's life. Only this thread ever waits for the reader.
pub(super) fn write_out(ring: &Ring, mut out: impl Sink) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    let mut end = LineEnd::Written;
    loop {
        batch.clear();
        ring.take(&mut batch);
        if end == LineEnd::Missing && out.put(b"\n").is_ok() {
            end = LineEnd::Written;
        }
        let outcome = match end {
            LineEnd::Written => out.put(&batch),
            LineEnd::Missing => Err(batch.clone()),
        };
        if let Err(rest) = outcome {
            // Nobody reads any more (EPIPE, EIO), or the disk is full: the services go on. The count is reported if somebody reads again.
            ring.lost(&rest);
            let written = batch.len() - rest.len();
            match batch.get(..written).and_then(<[u8]>::last) {
                Some(b'\n') => end = LineEnd::Written,
                Some(_) => end = LineEnd::Missing,
                None => {}
            }
            pause_after_failure();
        }
    }
}

/// Of what was written last: a disk may have run full in the middle of a line, and the next one must not go on in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Written,
    Missing,
}

/// A reader that is gone fails each write at once: without a pause that would be a busy loop.
#[expect(
    clippy::disallowed_methods,
    reason = "the writer is a thread of its own, not a worker of the runtime"
)]
fn pause_after_failure() {
    std::thread::sleep(Duration::from_millis(100));
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read as _};
    use std::sync::Arc;

    use super::super::sink::Stream;
    use super::*;

    #[test]
    fn our_own_lines_are_kept_when_a_service_has_filled_the_ring() {
        let ring = Ring::new(10_000, Format::Text);
        for _ in 0..200 {
            ring.push(Chunk::line(vec![b'x'; 100]));
        }
        ring.push_ours(Chunk::line(b"promoted\n".to_vec()));
        ring.push(Chunk::line(b"crowded out\n".to_vec()));
        let mut batch = Vec::new();
        ring.take(&mut batch);
        let text = String::from_utf8(batch).unwrap();
        assert!(text.ends_with("promoted\n"), "{text}");
        let mut rest = Vec::new();
        ring.take(&mut rest);
        let report = String::from_utf8(rest).unwrap();
        assert!(report.contains("dropped=101 lines, 10012 bytes"), "{report}");
    }

    /// A disk with room for so many bytes, which gets more at the next attempt but one.
    struct Disk {
        room: usize,
        written: std::sync::mpsc::Sender<Vec<u8>>,
    }

    impl Sink for Disk {
        fn put(&mut self, bytes: &[u8]) -> Result<(), Vec<u8>> {
            let (fits, rest) = bytes.split_at(bytes.len().min(self.room));
            self.room -= fits.len();
            self.written.send(fits.to_vec()).unwrap();
            if rest.is_empty() {
                return Ok(());
            }
            self.room = if bytes == b"\n" { 1000 } else { 0 };
            Err(rest.to_vec())
        }
    }

    #[test]
    fn a_line_that_a_full_disk_has_cut_is_ended_before_the_next_one() {
        let ring = Arc::new(Ring::new(10_000, Format::Text));
        let (written, disk) = std::sync::mpsc::channel();
        let thread = Arc::clone(&ring);
        std::thread::spawn(move || write_out(&thread, Disk { room: 4, written }));
        let mut text = String::new();
        let mut expect = |line: &'static [u8], expected: &str| {
            ring.push(Chunk::line(line.to_vec()));
            while !text.contains(expected) {
                text.push_str(std::str::from_utf8(&disk.recv().unwrap()).unwrap());
            }
        };
        expect(b"cut here\n", "cut ");
        expect(b"lost\n", "cut ");
        expect(b"whole\n", "cut \n");
        expect(b"whole\n", "\nwhole\n");
        assert!(!text.contains("cut w"), "{text}");
        assert!(ring.n_dropped() >= 2);
    }

    #[test]
    fn a_stalled_reader_costs_lines_but_never_blocks_and_the_count_is_exact() {
        let (mut reader, writer) = io::pipe().unwrap();
        let ring = Arc::new(Ring::new(256 * 1024, Format::Text));
        let thread = Arc::clone(&ring);
        std::thread::spawn(move || write_out(&thread, Stream(writer)));
        let total = 20_000_u64;
        for n in 0..total {
            ring.push(Chunk::line(format!("line {n} {}\n", "x".repeat(100)).into_bytes()));
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
        assert_eq!(ring.n_dropped(), dropped);
        assert!(dropped > 0);
        // It recovers.
        ring.push(Chunk::line(b"after\n".to_vec()));
        while !text.ends_with("after\n") {
            let n = reader.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
    }
}
