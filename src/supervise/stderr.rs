//! Forwards a worker's stderr line by line, within limits, and keeps the last lines.
//!
//! Native libraries write to stderr why they abort; no other channel reports it. They may also write a million lines, or one
//! line that never ends. That must not block the worker, grow this process or flood its log. So the pipe is always read, a
//! limited number of lines per period is forwarded, and for the rest the log says how much was dropped.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{log_queue, units::Bytes};

/// Period to which the limits below apply.
const PERIOD: Duration = Duration::from_secs(10);

/// Lines forwarded per period: room for a few backtraces.
const MAX_LINES: u32 = 400;

/// Bytes forwarded per period.
const MAX_BYTES: usize = 64 << 10;

/// Longest forwarded line; the rest is dropped.
const MAX_LINE_LENGTH: usize = 8 << 10;

/// Lines that are kept, and bytes of each.
const KEPT: (usize, usize) = (4, 300);

/// How long the last line of a worker that has ended may take to arrive.
const LAST_LINE_TIMEOUT: Duration = Duration::from_millis(250);

/// The standard library's advice after a panic, which does not say what went wrong.
const BACKTRACE_ADVICE: &str = "note: run with `RUST_BACKTRACE";

/// What a [`LineLimiter`] lets through.
#[derive(Debug, PartialEq, Eq)]
enum Output<'a> {
    /// Forward this line.
    Line(&'a [u8]),
    /// Report this much as dropped.
    Omitted(Omitted),
}

/// How much was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Omitted {
    /// Lines, including shortened ones.
    lines: u64,
    bytes: u64,
}

/// Splits bytes into lines and limits how many are forwarded per period. Pure: callers pass the time.
#[derive(Debug)]
struct LineLimiter {
    /// The line that has not ended yet, up to its maximum length.
    line: Vec<u8>,
    /// The current line was too long: its beginning has been forwarded, its rest is dropped.
    is_truncated: bool,
    /// Start of the period that `lines` and `bytes` count; `None` before the first line.
    since: Option<Instant>,
    lines: u32,
    bytes: usize,
    omitted: Omitted,
    last: VecDeque<Vec<u8>>,
}

impl LineLimiter {
    fn new() -> Self {
        Self {
            line: Vec::new(),
            is_truncated: false,
            since: None,
            lines: 0,
            bytes: 0,
            omitted: Omitted::default(),
            last: VecDeque::new(),
        }
    }

    /// Takes bytes that have arrived.
    fn push(&mut self, mut came: &[u8], now: Instant, emit: &mut impl FnMut(Output<'_>)) {
        self.start_period(now, emit);
        while let Some(end) = came.iter().position(|byte| *byte == b'\n') {
            self.extend(&came[..end], now, emit);
            self.end_line(now, emit);
            came = &came[end + 1..];
        }
        self.extend(came, now, emit);
    }

    /// Ends the stream.
    fn finish(&mut self, now: Instant, emit: &mut impl FnMut(Output<'_>)) {
        if !self.line.is_empty() {
            self.end_line(now, emit);
        }
        self.report_omitted(emit);
    }

    /// When [`start_period`](Self::start_period) has something to report.
    fn due(&self) -> Option<Instant> {
        self.since.filter(|_| self.omitted != Omitted::default()).map(|since| since + PERIOD)
    }

    /// Starts a new period if the last one is over.
    fn start_period(&mut self, now: Instant, emit: &mut impl FnMut(Output<'_>)) {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            self.report_omitted(emit);
            (self.since, self.lines, self.bytes) = (Some(now), 0, 0);
        }
    }

    fn report_omitted(&mut self, emit: &mut impl FnMut(Output<'_>)) {
        let omitted = mem::take(&mut self.omitted);
        if omitted != Omitted::default() {
            emit(Output::Omitted(omitted));
        }
    }

    /// Appends to the current line. A line that gets too long is forwarded up to here, and its rest is dropped.
    fn extend(&mut self, part: &[u8], now: Instant, emit: &mut impl FnMut(Output<'_>)) {
        let room = if self.is_truncated { 0 } else { MAX_LINE_LENGTH - self.line.len() };
        let (fits, rest) = part.split_at(room.min(part.len()));
        self.line.extend_from_slice(fits);
        if !rest.is_empty() {
            if !self.is_truncated {
                self.end_line(now, emit);
                (self.is_truncated, self.omitted.lines) = (true, self.omitted.lines + 1);
            }
            self.omitted.bytes += rest.len() as u64;
        }
    }

    fn end_line(&mut self, now: Instant, emit: &mut impl FnMut(Output<'_>)) {
        if mem::take(&mut self.is_truncated) {
            return;
        }
        let line = mem::take(&mut self.line);
        self.keep(&line);
        self.start_period(now, emit);
        if self.lines < MAX_LINES && self.bytes + line.len() <= MAX_BYTES {
            (self.lines, self.bytes) = (self.lines + 1, self.bytes + line.len());
            emit(Output::Line(&line));
        } else {
            self.omitted.lines += 1;
            self.omitted.bytes += line.len() as u64;
        }
        self.line = line;
        self.line.clear();
    }

    fn keep(&mut self, line: &[u8]) {
        let (lines, bytes) = KEPT;
        if line.trim_ascii().is_empty() {
            return;
        }
        let mut kept = if self.last.len() < lines { None } else { self.last.pop_front() }.unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(&line[..line.len().min(bytes)]);
        self.last.push_back(kept);
    }

    /// The last line that helps a reader.
    fn last_line(&self) -> Option<String> {
        let lines = self.last.iter().rev().map(|line| printable(line));
        lines.into_iter().find(|line| !line.starts_with(BACKTRACE_ADVICE))
    }
}

/// Without control characters, which could change the reader's terminal, and valid UTF-8.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A worker's stderr, forwarded to that of this process.
#[derive(Debug)]
pub(super) struct Stderr {
    limiter: Arc<Mutex<LineLimiter>>,
    task: JoinHandle<()>,
}

impl Stderr {
    /// Forwards everything from `pipe` until it ends.
    pub(super) fn forward(pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let limiter = Arc::new(Mutex::new(LineLimiter::new()));
        let task = tokio::spawn(forward(pipe, Arc::clone(&limiter)));
        Self { limiter, task }
    }

    /// The last line of a worker that has ended. A child of the worker may keep the pipe open; then the last line so far.
    pub(super) async fn last_line(&mut self) -> Option<String> {
        let _ = timeout(LAST_LINE_TIMEOUT, &mut self.task).await;
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).last_line()
    }
}

async fn forward(mut pipe: impl AsyncRead + Unpin, limiter: Arc<Mutex<LineLimiter>>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let due = limiter.lock().unwrap_or_else(PoisonError::into_inner).due();
        let read = match due {
            Some(due) => timeout_at(due, pipe.read(&mut buffer)).await,
            None => Ok(pipe.read(&mut buffer).await),
        };
        let (now, mut limiter) = (Instant::now(), limiter.lock().unwrap_or_else(PoisonError::into_inner));
        match read {
            Ok(Ok(length @ 1..)) => limiter.push(&buffer[..length], now, &mut log),
            Ok(_) => return limiter.finish(now, &mut log),
            Err(_) => limiter.start_period(now, &mut log),
        }
    }
}

fn log(output: Output<'_>) {
    match output {
        Output::Line(line) => {
            // Queued, because this thread also reads the frames of the worker's answers.
            log_queue::write(&[line, b"\n"].concat());
        }
        Output::Omitted(Omitted { lines, bytes }) => {
            let size = Bytes(bytes);
            tracing::warn!(
                event = "worker_stderr_dropped",
                "the worker wrote too much to stderr: dropped {lines} lines, {size}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects a limiter's output as text, and dropped amounts as a line of numbers.
    struct Collected {
        limiter: LineLimiter,
        now: Instant,
        lines: Vec<String>,
    }

    impl Collected {
        fn new() -> Self {
            Self { limiter: LineLimiter::new(), now: Instant::now(), lines: Vec::new() }
        }

        fn with(
            &mut self,
            f: impl FnOnce(&mut LineLimiter, Instant, &mut dyn FnMut(Output<'_>)),
        ) -> &mut Self {
            let Self { limiter, now, lines } = self;
            f(limiter, *now, &mut |what| {
                lines.push(match what {
                    Output::Line(line) => String::from_utf8(line.to_vec()).unwrap(),
                    Output::Omitted(Omitted { lines, bytes }) => format!("-{lines} -{bytes}"),
                });
            });
            self
        }

        fn push(&mut self, came: &[u8]) -> &mut Self {
            self.with(|limiter, now, mut emit| limiter.push(came, now, &mut emit))
        }

        fn finish(&mut self) -> &mut Self {
            self.with(|limiter, now, mut emit| limiter.finish(now, &mut emit))
        }

        fn start_period(&mut self) -> &mut Self {
            self.with(|limiter, now, mut emit| limiter.start_period(now, &mut emit))
        }

        fn wait(&mut self, time: Duration) -> &mut Self {
            self.now += time;
            self
        }
    }

    #[test]
    fn lines_are_forwarded_unchanged_in_whatever_pieces_they_arrive() {
        let text = "first\n\nthird é\nno end";
        for size in [1, 2, 7, 100] {
            let mut collected = Collected::new();
            for part in text.as_bytes().chunks(size) {
                collected.push(part);
            }
            assert_eq!(collected.finish().lines, ["first", "", "third é", "no end"]);
        }
    }

    #[test]
    fn excess_lines_are_counted_and_reported_when_the_period_is_over() {
        let mut collected = Collected::new();
        assert_eq!(collected.limiter.due(), None);
        for _ in 0..MAX_LINES + 50 {
            collected.push(b"abc\n");
        }
        assert_eq!(collected.lines.len(), MAX_LINES as usize);
        let due = collected.limiter.due().unwrap();
        assert_eq!(due, collected.now + PERIOD);
        collected.lines.clear();
        assert_eq!(collected.wait(PERIOD).start_period().lines, ["-50 -150"]);
        assert_eq!(collected.push(b"abc\n").lines, ["-50 -150", "abc"]);
        assert_eq!(collected.limiter.due(), None);
    }

    #[test]
    fn a_few_long_lines_can_exceed_the_byte_limit() {
        let mut collected = Collected::new();
        let line = [&[b'x'; MAX_LINE_LENGTH - 1][..], b"\n"].concat();
        for _ in 0..10 {
            collected.push(&line);
        }
        let (passed, left) = (collected.lines.len(), collected.limiter.omitted);
        assert_eq!((passed, left.lines), (MAX_BYTES / (MAX_LINE_LENGTH - 1), 2));
    }

    #[test]
    fn a_line_without_end_is_cut_and_takes_no_memory() {
        let mut collected = Collected::new();
        for _ in 0..10_000 {
            collected.push(&[b'y'; 1_000]);
        }
        collected.push(b"\nafter\n");
        assert_eq!(collected.lines, ["y".repeat(MAX_LINE_LENGTH).as_str(), "after"]);
        assert!(collected.limiter.line.capacity() <= 2 * MAX_LINE_LENGTH);
        collected.lines.clear();
        assert_eq!(collected.finish().lines, [format!("-1 -{}", 10_000_000 - MAX_LINE_LENGTH)]);
    }

    #[test]
    fn the_last_line_is_kept_even_if_it_was_dropped() {
        let mut collected = Collected::new();
        assert_eq!(collected.limiter.last_line(), None);
        for i in 0..10_000 {
            collected.push(format!("line {i}\n").as_bytes());
        }
        collected.push(b"core.cc:7 Assertion \x1b[31m`p != nullptr' failed.\n\n  \n").finish();
        assert_eq!(collected.limiter.last_line().unwrap(), "core.cc:7 Assertion  [31m`p != nullptr' failed.");
        assert_eq!(collected.limiter.last.len(), KEPT.0);
    }

    #[test]
    fn advice_on_backtraces_is_not_the_last_line() {
        let mut collected = Collected::new();
        collected.push(b"thread 'main' panicked at x.rs:1:1:\nit broke\n");
        collected.push(b"note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n");
        assert_eq!(collected.limiter.last_line().unwrap(), "it broke");
    }

    #[tokio::test]
    async fn a_flood_is_read_to_its_end() {
        let (mut pipe, reading) = tokio::io::duplex(4 << 10);
        let mut stderr = Stderr::forward(reading);
        // The limit is used up, so that the test prints nothing.
        stderr.limiter.lock().unwrap().bytes = MAX_BYTES;
        stderr.limiter.lock().unwrap().since = Some(Instant::now());
        for _ in 0..1_000 {
            tokio::io::AsyncWriteExt::write_all(&mut pipe, &[b'z'; 10_000]).await.unwrap();
        }
        tokio::io::AsyncWriteExt::write_all(&mut pipe, b"\nthe end").await.unwrap();
        drop(pipe);
        assert_eq!(stderr.last_line().await.unwrap(), "the end");
    }
}
