//! Streaming an answer to stdout.

use std::io::{self, Write};

use super::output;

/// Streams text to stdout.
pub(super) struct StdoutStream {
    is_wanted: bool,
    is_terminal: bool,
    /// The pipe is closed.
    pub(super) is_closed: bool,
}

impl StdoutStream {
    pub(super) fn new(is_wanted: bool) -> Self {
        Self { is_wanted, is_terminal: output::stdout_is_a_terminal(), is_closed: false }
    }

    /// Writes and flushes. Control characters are escaped on a terminal.
    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        if !self.is_wanted {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let shown = if self.is_terminal { output::printable(text) } else { text.to_owned() };
        let written = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
        self.is_closed |= matches!(&written, Err(e) if e.kind() == io::ErrorKind::BrokenPipe);
        written
    }
}
