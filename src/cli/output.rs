//! Output: results on stdout, everything else on stderr. A closed pipe, as after `head`, is not an error.

use std::{
    error::Error,
    fmt,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::json;

use super::exit::Exit;
use crate::log_queue;

/// Flags that every command has for its output.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct OutputFlags {
    /// Print the result as one JSON document on stdout, and an error as one on stderr
    #[arg(long)]
    pub(super) json: bool,

    /// Print only warnings and errors on stderr
    #[arg(long, short)]
    pub(super) quiet: bool,
}

pub(super) const ERROR: Style = AnsiColor::Red.on_default().bold();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const FAINT: Style = Style::new().dimmed();

// Global like the streams themselves: an export shows progress from deep inside.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Applies `--quiet`.
pub(super) fn apply(flags: OutputFlags) {
    QUIET.store(flags.quiet, Ordering::Relaxed);
}

/// Whether notes and progress are suppressed.
pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a note on stderr, unless `--quiet`.
pub(super) fn note(text: impl fmt::Display) {
    if !is_quiet() {
        write_stderr(format_args!("{FAINT}{}{FAINT:#}", printable(&text.to_string())));
    }
}

/// Writes a result to stdout, with colours on a terminal.
///
/// # Errors
/// When stdout cannot be written to, except when the pipe is closed.
pub(super) fn result(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Writes a result as a JSON document.
///
/// # Errors
/// As [`result`].
pub(super) fn document(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    result(|out| writeln!(out, "{text}"))
}

/// Prints an error with its causes on stderr.
pub(super) fn error(error: &anyhow::Error, exit: Exit, as_json: bool) {
    let message = reasons(error);
    if as_json {
        return error_document(&message, exit);
    }
    problem(message);
}

/// Prints a message as an error on stderr.
pub(super) fn problem(message: impl fmt::Display) {
    let message = printable(&message.to_string());
    write_stderr(format_args!("{ERROR}error:{ERROR:#} {message}"));
}

/// Prints an error as one line of JSON on stderr.
pub(super) fn error_document(message: &str, exit: Exit) {
    let error = json!({"error": {"code": exit.name(), "exit_code": exit.code(), "message": message}});
    write_stderr(format_args!("{error}"));
}

/// Writes a line to stderr, with colours on a terminal. It goes through the log's queue, because stderr may be a pipe that is
/// not read.
fn write_stderr(line: fmt::Arguments<'_>) {
    let mut shown = anstream::AutoStream::new(Vec::new(), anstream::AutoStream::choice(&io::stderr()));
    // Writing to memory cannot fail.
    let _ = writeln!(shown, "{line}");
    log_queue::write(&shown.into_inner());
}

/// The error and its causes, without those that an earlier message already contains.
pub(super) fn reasons(error: &anyhow::Error) -> String {
    let add = |text: String, cause: &(dyn Error + 'static)| match (text.as_str(), cause.to_string()) {
        ("", cause) => cause,
        (before, cause) if before.contains(&cause) => text,
        (before, cause) => format!("{before}: {cause}"),
    };
    error.chain().fold(String::new(), add)
}

/// Escapes control characters of names and answers, which a terminal would interpret.
pub(super) fn printable(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    let shown = |c: char| if is_harmless(c) { c.into() } else { c.escape_default().to_string() };
    text.chars().map(shown).collect()
}

/// Whether both stdin and stdout are a terminal.
pub(super) fn is_on_a_terminal() -> bool {
    stdin_is_a_terminal() && stdout_is_a_terminal()
}

/// Whether stdin is a terminal.
pub(super) fn stdin_is_a_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Whether stdout is a terminal.
pub(super) fn stdout_is_a_terminal() -> bool {
    io::stdout().is_terminal()
}

/// The width of the terminal that stdout is.
#[cfg(unix)]
pub(super) fn columns() -> Option<usize> {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).ok()?.ws_col;
    (columns > 0).then(|| columns.into())
}

/// The width of the terminal that stdout is; not known here.
#[cfg(not(unix))]
pub(super) fn columns() -> Option<usize> {
    None
}

/// Whether stderr shows colours; `NO_COLOR` and similar variables are respected.
pub(super) fn stderr_has_colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_printed_once() {
        let error =
            anyhow::anyhow!("no such file").context("a.json: no such file; download it").context("export");
        assert_eq!(reasons(&error), "export: a.json: no such file; download it");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("\u{1b}[2Jé\n\t\0\u{9b}"), "\\u{1b}[2Jé\n\t\\u{0}\\u{9b}");
    }
}
