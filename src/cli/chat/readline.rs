//! Line editing for `eka generate`: whole characters of any script, a history file, and prompts of several lines.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Context, Editor, Event, EventContext, EventHandler, Helper,
    KeyCode, KeyEvent, Modifiers, Movement, RepeatCount,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use super::command::COMMANDS;
use crate::{cli::private_dir, config::USER_STATE};

/// Delimits a prompt of several lines.
const QUOTES: &str = r#"""""#;

/// Maximum number of prompts in the history.
const MAX_HISTORY: usize = 1000;

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A line, or several joined lines.
    Text(String),
    /// Text between quotes: always a prompt, never a command.
    Quoted(String),
    /// Ctrl-C with nothing typed.
    Interrupt,
    /// Ctrl-D, or the terminal was closed.
    End,
}

/// Reads lines from the terminal.
pub(super) struct LineReader {
    // Moved to another thread while it waits for keys.
    editor: Option<Editor<Typing, FileHistory>>,
    /// The history file; `None` saves nothing.
    history: Option<PathBuf>,
}

impl LineReader {
    /// Opens the terminal with the history of earlier sessions.
    ///
    /// # Errors
    /// When there is no terminal. An unreadable history is only a warning.
    pub(super) fn open(history: Option<PathBuf>) -> anyhow::Result<Self> {
        let config = Config::builder().max_history_size(MAX_HISTORY)?.history_ignore_space(true).build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Typing));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(Discard)));
        let mut lines = Self { editor: Some(editor), history: None };
        if let Some(path) = history {
            match lines.load(&path) {
                Ok(()) => lines.history = Some(path),
                Err(e) => tracing::warn!("{e:#}; prompts are not saved"),
            }
        }
        Ok(lines)
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            private_dir::ensure(dir, "use --no-history")?;
        }
        let editor = self.editor.as_mut().context("the terminal is in use")?;
        match editor.load_history(path) {
            Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            loaded => loaded.with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Waits for the next line.
    ///
    /// # Errors
    /// When the terminal fails.
    pub(super) async fn next(&mut self) -> anyhow::Result<Input> {
        let mut editor = self.editor.take().context("the terminal is in use")?;
        // Supervision of the worker continues meanwhile.
        let (editor, read) = tokio::task::spawn_blocking(move || {
            let read = editor.readline(">>> ");
            (editor, read)
        })
        .await?;
        self.editor = Some(editor);
        match read {
            Ok(typed) => {
                self.keep(&typed);
                Ok(parse_input(&typed))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupt),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(e) => Err(anyhow!(e).context("cannot read from the terminal")),
        }
    }

    /// Saves the line immediately, in case the process is killed.
    fn keep(&mut self, typed: &str) {
        let (Some(editor), Some(path)) = (&mut self.editor, &self.history) else { return };
        let kept = editor
            .add_history_entry(typed)
            .and_then(|is_new| if is_new { editor.append_history(path) } else { Ok(()) });
        if let Err(e) = kept {
            tracing::warn!("{}: {e}; prompts are not saved", path.display());
            self.history = None;
        }
    }
}

/// The history file, unless the user has no home directory.
pub(super) fn history_file() -> Option<PathBuf> {
    USER_STATE.find(|name| env::var_os(name).map(PathBuf::from)).map(|dir| dir.join("history"))
}

/// Whether the input continues on the next line.
fn is_open(typed: &str) -> bool {
    let trimmed = typed.trim();
    match trimmed.strip_prefix(QUOTES) {
        Some(rest) => !rest.ends_with(QUOTES),
        None => trimmed.ends_with('\\'),
    }
}

/// The input without quotes and backslashes of several lines.
fn parse_input(typed: &str) -> Input {
    let quoted = typed.trim().strip_prefix(QUOTES).and_then(|rest| rest.strip_suffix(QUOTES));
    match quoted {
        Some(quoted) => {
            let inside = quoted.strip_prefix('\n').unwrap_or(quoted);
            Input::Quoted(inside.strip_suffix('\n').unwrap_or(inside).to_owned())
        }
        None => Input::Text(typed.replace("\\\n", "\n")),
    }
}

/// Ctrl-C discards the typed text; on an empty line it is an interrupt.
struct Discard;

impl ConditionalEventHandler for Discard {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, typed: &EventContext<'_>) -> Option<Cmd> {
        (!typed.line().is_empty()).then_some(Cmd::Kill(Movement::WholeBuffer))
    }
}

/// Detects complete input and completes command names.
struct Typing;

impl Validator for Typing {
    fn validate(&self, typed: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let is_open = is_open(typed.input());
        Ok(if is_open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Typing {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..at];
        let begun = COMMANDS.iter().filter(|(name, _, _)| !typed.is_empty() && name.starts_with(typed));
        Ok((0, begun.map(|(name, _, _)| (*name).to_owned()).collect()))
    }
}

impl Hinter for Typing {
    type Hint = String;
}

impl Highlighter for Typing {}

impl Helper for Typing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_lines_are_one_prompt() {
        let (text, quoted) = (|text: &str| Input::Text(text.into()), |text: &str| Input::Quoted(text.into()));
        for (typed, line) in [
            ("a", text("a")),
            ("a\\\nb", text("a\nb")),
            ("\"\"\"a\nb\"\"\"", quoted("a\nb")),
            ("\"\"\"\n/a\n\nb\n\"\"\"", quoted("/a\n\nb")),
            ("\"\"\"\"\"\"", quoted("")),
            ("say \"\"\"", text("say \"\"\"")),
        ] {
            assert!(!is_open(typed), "{typed}");
            assert_eq!(parse_input(typed), line);
        }
        for open in ["\"\"\"", "\"\"\"a\n", "\"\"\"\"\"", "a\\", "a\\\nb\\"] {
            assert!(is_open(open), "{open}");
        }
    }
}
