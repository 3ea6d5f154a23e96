//! What people and programs read: results on stdout, everything else on stderr.
//!
//! A reader who leaves, as `head` does, is no error: whatever is left to say is said to nobody.

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

/// How a command says what it has to say.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct OutputFlags {
    /// Print one JSON document on stdout; an error is one as well, on stderr
    #[arg(long)]
    pub(super) json: bool,

    /// Say nothing on stderr but warnings and errors
    #[arg(long, short)]
    pub(super) quiet: bool,
}

pub(super) const ERROR: Style = AnsiColor::Red.on_default().bold();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const FAINT: Style = Style::new().dimmed();

// Of the whole program, like the streams themselves: progress is shown from deep within an export.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Says no notes from here on, if told so.
pub(super) fn keep_to(output: OutputFlags) {
    QUIET.store(output.quiet, Ordering::Relaxed);
}

/// Whether notes and progress are wanted.
pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Says something on stderr that is neither result nor error, unless it should not be said.
pub(super) fn note(text: impl fmt::Display) {
    if !is_quiet() {
        write_stderr(format_args!("{FAINT}{text}{FAINT:#}"));
    }
}

/// Writes a result to stdout, in colours where it is a terminal that shows them.
///
/// # Errors
/// When stdout cannot be written to, unless because its reader left.
pub(super) fn result(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Writes a result as a JSON document on lines of its own.
///
/// # Errors
/// As [`result`].
pub(super) fn document(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    result(|out| writeln!(out, "{text}"))
}

/// Says on stderr why the program ends.
pub(super) fn error(error: &anyhow::Error, exit: Exit, as_json: bool) {
    let message = reasons(error);
    if as_json {
        return error_document(&message, exit);
    }
    problem(message);
}

/// Says on stderr what went wrong.
pub(super) fn problem(message: impl fmt::Display) {
    let message = printable(&message.to_string());
    write_stderr(format_args!("{ERROR}error:{ERROR:#} {message}"));
}

/// An error as one line of JSON on stderr.
pub(super) fn error_document(message: &str, exit: Exit) {
    let error = json!({"error": {"code": exit.name(), "exit_code": exit.code(), "message": message}});
    write_stderr(format_args!("{error}"));
}

/// Writes a line to stderr, in colours where it is a terminal that shows them. While the server runs that goes through the
/// log's queue, as stderr may be a pipe that is not read.
fn write_stderr(line: fmt::Arguments<'_>) {
    let mut shown = anstream::AutoStream::new(Vec::new(), anstream::AutoStream::choice(&io::stderr()));
    // Memory takes whatever is written.
    let _ = writeln!(shown, "{line}");
    log_queue::write(&shown.into_inner());
}

/// The error and its causes, except for those that a message before them has said already.
pub(super) fn reasons(error: &anyhow::Error) -> String {
    let add = |said: String, cause: &(dyn Error + 'static)| match (said.as_str(), cause.to_string()) {
        ("", cause) => cause,
        (before, cause) if before.contains(&cause) => said,
        (before, cause) => format!("{before}: {cause}"),
    };
    error.chain().fold(String::new(), add)
}

/// Names that come from a file, and answers, could tell a terminal what to do.
pub(super) fn printable(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    let shown = |c: char| if is_harmless(c) { c.into() } else { c.escape_default().to_string() };
    text.chars().map(shown).collect()
}

/// Whether both ends of a conversation are a person's.
pub(super) fn is_on_a_terminal() -> bool {
    stdin_is_a_terminal() && stdout_is_a_terminal()
}

/// Whether someone types, or could.
pub(super) fn stdin_is_a_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Whether results would be obeyed by a terminal.
pub(super) fn stdout_is_a_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal that shows colours: `NO_COLOR` and its kin are heard.
pub(super) fn stderr_has_colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error =
            anyhow::anyhow!("no such file").context("a.json: no such file; download it").context("export");
        assert_eq!(reasons(&error), "export: a.json: no such file; download it");
    }

    #[test]
    fn a_name_cannot_tell_the_terminal_what_to_do() {
        assert_eq!(printable("\u{1b}[2Jé\n\t\0\u{9b}"), "\\u{1b}[2Jé\n\t\\u{0}\\u{9b}");
    }
}
