//! What a worker says on stderr: passed on line by line, but bounded, and the last of it kept.
//!
//! Native libraries say there why they end a process, and nothing else does. They may also say a million lines, or one
//! that never ends: none of it may hold the worker up, grow this process or drown its log. So the pipe is always read,
//! lines are passed on up to so many in a while, and of the rest only the amount is said.

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

/// How long a limit holds before it starts anew.
const WHILE: Duration = Duration::from_secs(10);

/// Lines passed on in a [`WHILE`]: room for a few backtraces.
const MOST_LINES: u32 = 400;

/// Bytes passed on in a [`WHILE`].
const MOST_BYTES: usize = 64 << 10;

/// Longest line that is passed on; the rest of it is left out.
const LONGEST_LINE: usize = 8 << 10;

/// Lines that are kept, and bytes of each.
const KEPT: (usize, usize) = (4, 300);

/// How long the last words of a worker that has ended may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Standard library's advice after a panic, which says nothing about it.
const ADVICE: &str = "note: run with `RUST_BACKTRACE";

/// What to do with what was said.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    /// Pass this line on.
    Line(&'a [u8]),
    /// Say that so much was not passed on.
    LeftOut(LeftOut),
}

/// What was not passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LeftOut {
    /// Lines, those that were cut short among them.
    lines: u64,
    bytes: u64,
}

/// Makes lines of bytes and passes on so many of them in a while. Pure: it is told what came and when.
#[derive(Debug)]
struct Sieve {
    /// The line that has not ended, as far as it can be passed on.
    line: Vec<u8>,
    /// Whether that much of it has been passed on already.
    is_cut: bool,
    /// When the while began of which the following are.
    since: Option<Instant>,
    lines: u32,
    bytes: usize,
    left_out: LeftOut,
    last: VecDeque<Vec<u8>>,
}

impl Sieve {
    fn new() -> Self {
        Self {
            line: Vec::new(),
            is_cut: false,
            since: None,
            lines: 0,
            bytes: 0,
            left_out: LeftOut::default(),
            last: VecDeque::new(),
        }
    }

    /// Takes what has come in.
    fn push(&mut self, mut came: &[u8], now: Instant, say: &mut impl FnMut(Said<'_>)) {
        self.turn(now, say);
        while let Some(end) = came.iter().position(|byte| *byte == b'\n') {
            self.extend(&came[..end], now, say);
            self.end_line(now, say);
            came = &came[end + 1..];
        }
        self.extend(came, now, say);
    }

    /// Nothing follows.
    fn finish(&mut self, now: Instant, say: &mut impl FnMut(Said<'_>)) {
        if !self.line.is_empty() {
            self.end_line(now, say);
        }
        self.say_left_out(say);
    }

    /// When [`turn`](Self::turn) has something to say.
    fn due(&self) -> Option<Instant> {
        self.since.filter(|_| self.left_out != LeftOut::default()).map(|since| since + WHILE)
    }

    /// Starts a new while when the last one is over.
    fn turn(&mut self, now: Instant, say: &mut impl FnMut(Said<'_>)) {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= WHILE) {
            self.say_left_out(say);
            (self.since, self.lines, self.bytes) = (Some(now), 0, 0);
        }
    }

    fn say_left_out(&mut self, say: &mut impl FnMut(Said<'_>)) {
        let left_out = mem::take(&mut self.left_out);
        if left_out != LeftOut::default() {
            say(Said::LeftOut(left_out));
        }
    }

    /// Adds to the line. One that gets too long is passed on as it is then, and what follows of it is left out.
    fn extend(&mut self, part: &[u8], now: Instant, say: &mut impl FnMut(Said<'_>)) {
        let room = if self.is_cut { 0 } else { LONGEST_LINE - self.line.len() };
        let (fits, rest) = part.split_at(room.min(part.len()));
        self.line.extend_from_slice(fits);
        if !rest.is_empty() {
            if !self.is_cut {
                self.end_line(now, say);
                (self.is_cut, self.left_out.lines) = (true, self.left_out.lines + 1);
            }
            self.left_out.bytes += rest.len() as u64;
        }
    }

    fn end_line(&mut self, now: Instant, say: &mut impl FnMut(Said<'_>)) {
        if mem::take(&mut self.is_cut) {
            return;
        }
        let line = mem::take(&mut self.line);
        self.keep(&line);
        self.turn(now, say);
        if self.lines < MOST_LINES && self.bytes + line.len() <= MOST_BYTES {
            (self.lines, self.bytes) = (self.lines + 1, self.bytes + line.len());
            say(Said::Line(&line));
        } else {
            self.left_out.lines += 1;
            self.left_out.bytes += line.len() as u64;
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

    /// The last line that says something, for people.
    fn last_words(&self) -> Option<String> {
        let lines = self.last.iter().rev().map(|line| printable(line));
        lines.into_iter().find(|line| !line.starts_with(ADVICE))
    }
}

/// A native library's words could tell a terminal what to do, or be no text at all.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A worker's stderr, passed on to this process' own.
#[derive(Debug)]
pub(super) struct Stderr {
    sieve: Arc<Mutex<Sieve>>,
    passing_on: JoinHandle<()>,
}

impl Stderr {
    /// Passes on what comes, until the pipe ends.
    pub(super) fn pass_on(pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let sieve = Arc::new(Mutex::new(Sieve::new()));
        let passing_on = tokio::spawn(pass_on(pipe, Arc::clone(&sieve)));
        Self { sieve, passing_on }
    }

    /// The last line of a worker that has ended. A process that it has started may keep the pipe open: then what has
    /// come so far.
    pub(super) async fn last_words(&mut self) -> Option<String> {
        let _ = timeout(LAST_WORDS, &mut self.passing_on).await;
        self.sieve.lock().unwrap_or_else(PoisonError::into_inner).last_words()
    }
}

async fn pass_on(mut pipe: impl AsyncRead + Unpin, sieve: Arc<Mutex<Sieve>>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let due = sieve.lock().unwrap_or_else(PoisonError::into_inner).due();
        let read = match due {
            Some(due) => timeout_at(due, pipe.read(&mut buffer)).await,
            None => Ok(pipe.read(&mut buffer).await),
        };
        let (now, mut sieve) = (Instant::now(), sieve.lock().unwrap_or_else(PoisonError::into_inner));
        match read {
            Ok(Ok(length @ 1..)) => sieve.push(&buffer[..length], now, &mut say),
            Ok(_) => return sieve.finish(now, &mut say),
            Err(_) => sieve.turn(now, &mut say),
        }
    }
}

fn say(said: Said<'_>) {
    match said {
        Said::Line(line) => {
            // Not written here: the frames of the worker's answers are read on this thread as well.
            log_queue::write(&[line, b"\n"].concat());
        }
        Said::LeftOut(LeftOut { lines, bytes }) => {
            tracing::warn!(
                "the worker said more on stderr than is passed on: {lines} lines, {} were left out",
                Bytes(bytes)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sieve says, as text; what is left out as a line of numbers.
    struct Heard {
        sieve: Sieve,
        now: Instant,
        said: Vec<String>,
    }

    impl Heard {
        fn new() -> Self {
            Self { sieve: Sieve::new(), now: Instant::now(), said: Vec::new() }
        }

        fn with(&mut self, f: impl FnOnce(&mut Sieve, Instant, &mut dyn FnMut(Said<'_>))) -> &mut Self {
            let Self { sieve, now, said } = self;
            f(sieve, *now, &mut |what| {
                said.push(match what {
                    Said::Line(line) => String::from_utf8(line.to_vec()).unwrap(),
                    Said::LeftOut(LeftOut { lines, bytes }) => format!("-{lines} -{bytes}"),
                });
            });
            self
        }

        fn push(&mut self, came: &[u8]) -> &mut Self {
            self.with(|sieve, now, mut say| sieve.push(came, now, &mut say))
        }

        fn finish(&mut self) -> &mut Self {
            self.with(|sieve, now, mut say| sieve.finish(now, &mut say))
        }

        fn turn(&mut self) -> &mut Self {
            self.with(|sieve, now, mut say| sieve.turn(now, &mut say))
        }

        fn wait(&mut self, time: Duration) -> &mut Self {
            self.now += time;
            self
        }
    }

    #[test]
    fn lines_are_passed_on_as_they_are_however_they_come() {
        let text = "first\n\nthird é\nno end";
        for size in [1, 2, 7, 100] {
            let mut heard = Heard::new();
            for part in text.as_bytes().chunks(size) {
                heard.push(part);
            }
            assert_eq!(heard.finish().said, ["first", "", "third é", "no end"]);
        }
    }

    #[test]
    fn of_too_many_lines_the_number_is_said_once_the_while_is_over() {
        let mut heard = Heard::new();
        assert_eq!(heard.sieve.due(), None);
        for _ in 0..MOST_LINES + 50 {
            heard.push(b"abc\n");
        }
        assert_eq!(heard.said.len(), MOST_LINES as usize);
        let due = heard.sieve.due().unwrap();
        assert_eq!(due, heard.now + WHILE);
        heard.said.clear();
        assert_eq!(heard.wait(WHILE).turn().said, ["-50 -150"]);
        assert_eq!(heard.push(b"abc\n").said, ["-50 -150", "abc"]);
        assert_eq!(heard.sieve.due(), None);
    }

    #[test]
    fn many_bytes_are_too_many_even_in_few_lines() {
        let mut heard = Heard::new();
        let line = [&[b'x'; LONGEST_LINE - 1][..], b"\n"].concat();
        for _ in 0..10 {
            heard.push(&line);
        }
        let (passed, left) = (heard.said.len(), heard.sieve.left_out);
        assert_eq!((passed, left.lines), (MOST_BYTES / (LONGEST_LINE - 1), 2));
    }

    #[test]
    fn a_line_without_end_is_cut_and_takes_no_memory() {
        let mut heard = Heard::new();
        for _ in 0..10_000 {
            heard.push(&[b'y'; 1_000]);
        }
        heard.push(b"\nafter\n");
        assert_eq!(heard.said, ["y".repeat(LONGEST_LINE).as_str(), "after"]);
        assert!(heard.sieve.line.capacity() <= 2 * LONGEST_LINE);
        heard.said.clear();
        assert_eq!(heard.finish().said, [format!("-1 -{}", 10_000_000 - LONGEST_LINE)]);
    }

    #[test]
    fn the_last_words_are_kept_though_the_line_was_left_out() {
        let mut heard = Heard::new();
        assert_eq!(heard.sieve.last_words(), None);
        for i in 0..10_000 {
            heard.push(format!("line {i}\n").as_bytes());
        }
        heard.push(b"core.cc:7 Assertion \x1b[31m`p != nullptr' failed.\n\n  \n").finish();
        assert_eq!(heard.sieve.last_words().unwrap(), "core.cc:7 Assertion  [31m`p != nullptr' failed.");
        assert_eq!(heard.sieve.last.len(), KEPT.0);
    }

    #[test]
    fn advice_on_backtraces_is_nobodys_last_word() {
        let mut heard = Heard::new();
        heard.push(b"thread 'main' panicked at x.rs:1:1:\nit broke\n");
        heard.push(b"note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n");
        assert_eq!(heard.sieve.last_words().unwrap(), "it broke");
    }

    #[tokio::test]
    async fn a_flood_is_read_to_its_end() {
        let (mut pipe, reading) = tokio::io::duplex(4 << 10);
        let mut stderr = Stderr::pass_on(reading);
        // Left out from the first byte on: a test's own output is nobody's to drown.
        stderr.sieve.lock().unwrap().bytes = MOST_BYTES;
        stderr.sieve.lock().unwrap().since = Some(Instant::now());
        for _ in 0..1_000 {
            tokio::io::AsyncWriteExt::write_all(&mut pipe, &[b'z'; 10_000]).await.unwrap();
        }
        tokio::io::AsyncWriteExt::write_all(&mut pipe, b"\nthe end").await.unwrap();
        drop(pipe);
        assert_eq!(stderr.last_words().await.unwrap(), "the end");
    }
}
