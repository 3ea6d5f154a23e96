//! Writing to stderr without ever waiting for its reader.
//!
//! A pipe holds 64 KiB. When its reader stops reading, the next write blocks, and with it the thread that logs: in a
//! server that is the thread that answers every request. So lines go into a bounded queue, and one thread writes them.
//!
//! ```text
//! any thread ──line──► pending lines, at most 1 MiB ──► writer thread ──► stderr
//! ```
//!
//! - A line that finds the queue full is dropped and counted (`eka_log_lines_dropped_total`). No other line is accepted
//!   until the writer has taken those that wait, so the notice with the number of dropped lines is at the right place.
//! - The writer has a separate descriptor. [`std::io::Stderr`] has a lock, which would be held while the pipe is full, and
//!   would block every thread that prints in any other way.
//! - A process that ends calls [`flush`], which waits for a limited time. Lines in a pipe that is not read are lost then.
//!
//! `tracing-appender` has a queue as well. It is bounded by lines and not by bytes, counts drops without a notice, and
//! a shutdown with a full pipe prints to stdout, where eka's answers are.
//!
//! Until [`start`] is called lines are written at once: a command that prints a result and exits blocks nothing else.

use std::{
    io::{self, ErrorKind, Write},
    mem,
    panic::PanicHookInfo,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

/// Maximum bytes of lines that wait. One longer line is accepted when nothing else waits.
const CAPACITY: usize = 1 << 20;

/// Pause after a write that a non-blocking descriptor rejects.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

static QUEUE: OnceLock<Queue> = OnceLock::new();

static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Lines that were dropped since the process started.
#[must_use]
pub fn dropped() -> Counter {
    DROPPED.clone()
}

/// Starts the writer thread. From then on, writing through this module never blocks the caller, panic messages included. A second
/// call has no effect.
///
/// # Errors
/// When the thread cannot be started. Lines are written at once then, as before.
pub fn start() -> io::Result<()> {
    if QUEUE.get().is_some() {
        return Ok(());
    }
    let mut stderr = own_stderr();
    thread::Builder::new().name("log".into()).spawn(move || {
        let queue = QUEUE.get_or_init(|| Queue::new(CAPACITY));
        loop {
            queue.write_batch(&mut stderr, notify_dropped);
        }
    })?;
    QUEUE.get_or_init(|| Queue::new(CAPACITY));
    std::panic::set_hook(Box::new(|panic| write(panic_message(panic).as_bytes())));
    Ok(())
}

/// Writes `lines` to stderr without a line in between. They must be complete and end with a newline.
pub fn write(lines: &[u8]) {
    match QUEUE.get() {
        Some(queue) => {
            if !queue.push(lines) {
                DROPPED.inc();
            }
        }
        // A closed pipe is not an error.
        None => drop(io::stderr().lock().write_all(lines)),
    }
}

/// Waits until everything is written, for at most `patience`. Returns whether it was.
pub fn flush(patience: Duration) -> bool {
    QUEUE.get().is_none_or(|queue| queue.flush(patience))
}

/// A writer for `tracing-subscriber`, which writes each event with one call.
#[derive(Clone, Copy, Debug)]
pub struct LineWriter;

impl Write for LineWriter {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        write(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Stderr without the standard library's lock.
fn own_stderr() -> Box<dyn Write + Send> {
    #[cfg(unix)]
    if let Ok(descriptor) = std::os::fd::AsFd::as_fd(&io::stderr()).try_clone_to_owned() {
        return Box::new(std::fs::File::from(descriptor));
    }
    Box::new(io::stderr())
}

fn notify_dropped(lines: u64) {
    tracing::warn!(
        event = "log_lines_dropped",
        lines,
        "log lines were dropped here, as stderr was not read; see eka_log_lines_dropped_total"
    );
}

/// A panic message in the format of the standard library's hook.
fn panic_message(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("stack backtrace:\n{backtrace}\n"),
        _ => String::new(),
    };
    format!("thread '{}' {panic}\n{backtrace}", thread.name().unwrap_or("<unnamed>"))
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// Lines dropped since the writer last took those that wait.
    dropped: u64,
    /// The writer has lines that are not written yet.
    is_writing: bool,
}

#[derive(Debug)]
struct Queue {
    capacity: usize,
    state: Mutex<State>,
    /// Lines have arrived, or all are written.
    changed: Condvar,
}

impl Queue {
    fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room.
    fn push(&self, lines: &[u8]) -> bool {
        let mut state = self.state();
        let has_room = state.pending.is_empty() || state.pending.len() + lines.len() <= self.capacity;
        if state.dropped > 0 || !has_room {
            state.dropped += 1;
            return false;
        }
        state.pending.extend_from_slice(lines);
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Waits for lines and writes all of them; then calls `notify` with the number of lines dropped after them.
    fn write_batch(&self, sink: &mut impl Write, notify: impl FnOnce(u64)) {
        let waiting = self.state();
        let mut state = self
            .changed
            .wait_while(waiting, |state| state.pending.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let (batch, dropped) = (mem::take(&mut state.pending), mem::take(&mut state.dropped));
        state.is_writing = true;
        drop(state);
        write_all(sink, &batch);
        if dropped > 0 {
            notify(dropped);
        }
        self.state().is_writing = false;
        self.changed.notify_all();
    }

    fn flush(&self, patience: Duration) -> bool {
        let is_busy = |state: &mut State| state.is_writing || !state.pending.is_empty();
        let waited = self.changed.wait_timeout_while(self.state(), patience, is_busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// Writes all of `bytes`, unless the reader has left.
fn write_all(sink: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(written @ 1..) => bytes = &bytes[written..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Another process may have made the shared descriptor non-blocking.
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A pipe whose reader takes a write only when it is allowed to.
    struct Stuck {
        allowed: mpsc::Receiver<()>,
        written: mpsc::Sender<String>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.allowed.recv().map_err(|_| ErrorKind::BrokenPipe)?;
            self.written.send(String::from_utf8(bytes.to_vec()).unwrap()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue of 10 bytes with a writer thread that puts `(n)` where n lines are missing.
    fn queue() -> (Arc<Queue>, mpsc::Sender<()>, mpsc::Receiver<String>) {
        let queue = Arc::new(Queue::new(10));
        let (allow, allowed) = mpsc::channel();
        let (written, read) = mpsc::channel();
        let writer = Arc::clone(&queue);
        thread::spawn(move || {
            let mut sink = Stuck { allowed, written };
            loop {
                let notify = |lines| assert!(writer.push(format!("({lines})").as_bytes()));
                writer.write_batch(&mut sink, notify);
            }
        });
        (queue, allow, read)
    }

    fn wait_until_writing(queue: &Queue) {
        while !queue.state().is_writing {
            thread::yield_now();
        }
    }

    #[test]
    fn a_full_queue_drops_lines_and_reports_the_number_in_their_place() {
        let (queue, allow, read) = queue();
        assert!(queue.push(b"first"));
        wait_until_writing(&queue);
        assert!(queue.push(b"123456") && !queue.push(b"78901"), "the second does not fit");
        assert!(!queue.push(b"7"), "nothing overtakes a line that was dropped");
        for expected in ["first", "123456", "(2)"] {
            allow.send(()).unwrap();
            assert_eq!(read.recv().unwrap(), expected);
        }
        assert!(queue.flush(Duration::from_secs(60)));
        assert!(queue.push(b"7"));
        allow.send(()).unwrap();
        assert_eq!(read.recv().unwrap(), "7");
    }

    #[test]
    fn a_line_that_is_longer_than_the_queue_is_written_when_nothing_else_waits() {
        let (queue, allow, read) = queue();
        assert!(queue.push(b"a line of more than ten bytes"));
        allow.send(()).unwrap();
        assert_eq!(read.recv().unwrap(), "a line of more than ten bytes");
    }

    #[test]
    fn a_flush_waits_for_the_last_line_and_not_for_a_reader_that_never_comes() {
        let (queue, allow, read) = queue();
        assert!(queue.flush(Duration::ZERO), "there is nothing to wait for");
        queue.push(b"last");
        assert!(!queue.flush(Duration::from_millis(20)));
        allow.send(()).unwrap();
        assert!(queue.flush(Duration::from_secs(60)));
        assert_eq!(read.recv().unwrap(), "last");
    }

    #[test]
    fn a_closed_pipe_blocks_no_caller() {
        let (queue, allow, _read) = queue();
        drop(allow);
        for _ in 0..100 {
            queue.push(b"123456789");
            assert!(queue.flush(Duration::from_secs(60)));
        }
    }

    #[test]
    fn a_descriptor_that_would_block_is_tried_again() {
        struct Busy(u32, Vec<u8>);
        impl Write for Busy {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(ErrorKind::WouldBlock.into()),
                    2 => Err(ErrorKind::Interrupted.into()),
                    _ => self.1.write(&bytes[..1]),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut sink = Busy(0, Vec::new());
        write_all(&mut sink, b"abc");
        assert_eq!(sink.1, b"abc");
    }
}
