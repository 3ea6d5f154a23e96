//! Streaming an answer to stdout.

use std::io::{self, Write};

use super::{line_breaks::LineBreaks, output};

/// Streams text to stdout.
pub(super) struct StdoutStream {
    is_wanted: bool,
    is_terminal: bool,
    /// In a chat on a terminal.
    lines: Option<LineBreaks>,
    /// The pipe is closed.
    pub(super) is_closed: bool,
}

impl StdoutStream {
    pub(super) fn new(is_wanted: bool) -> Self {
        Self { is_wanted, is_terminal: output::stdout_is_a_terminal(), lines: None, is_closed: false }
    }

    /// A stream whose lines break between words on a terminal.
    pub(super) fn for_reading() -> Self {
        Self { lines: output::columns().map(LineBreaks::new), ..Self::new(true) }
    }

    /// Writes and flushes. Control characters are escaped on a terminal.
    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        if !self.is_wanted {
            return Ok(());
        }
        let shown = if self.is_terminal { output::printable(text) } else { text.to_owned() };
        let shown = self.lines.as_mut().map_or_else(|| shown.clone(), |lines| lines.push(&shown));
        self.print(&shown)
    }

    /// Writes what a line break may have held back.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let rest = self.lines.as_mut().map(LineBreaks::finish).unwrap_or_default();
        self.print(&rest)
    }

    fn print(&mut self, shown: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let written = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
        self.is_closed |= matches!(&written, Err(e) if e.kind() == io::ErrorKind::BrokenPipe);
        written
    }
}
