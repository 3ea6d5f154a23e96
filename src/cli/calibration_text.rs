//! The text of `eka export --calibrate`: a file of text, conversations, or the built-in text.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use anyhow::{Context, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    calibration::{BUILT_IN_TEXT, CalibrationText},
    files,
    manifest::CalibrationRecord,
    text::{Conversation, Message, PromptEnding, Text},
    units::Bytes,
};

/// Tokens of a window. Longer ones would need more memory; shorter ones would have fewer positions with a long past.
const WINDOW: usize = 512;

/// Largest calibration file: hundreds of times as much text as a calibration processes.
const MAX_FILE: Bytes = Bytes::mib(64);

/// Where the calibration text comes from.
#[derive(Clone, Debug)]
pub(super) enum CalibrationSource {
    /// The built-in text.
    BuiltIn,
    /// A file with text, or with one conversation in each line.
    File(PathBuf),
}

impl FromStr for CalibrationSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "auto" { Self::BuiltIn } else { Self::File(text.into()) })
    }
}

/// A line of a file with conversations; other fields are ignored.
#[derive(Debug, Deserialize)]
struct Line {
    messages: Vec<LineMessage>,
}

#[derive(Debug, Deserialize)]
struct LineMessage {
    role: String,
    content: Option<String>,
}

/// The content of a calibration source, read before anything else is done.
#[derive(Debug)]
pub(super) struct CalibrationInput {
    name: String,
    content: String,
    conversations: Option<Vec<Line>>,
}

impl CalibrationInput {
    /// Reads `source`.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or has a line that is not a conversation.
    pub(super) fn read(source: &CalibrationSource) -> anyhow::Result<Self> {
        let CalibrationSource::File(path) = source else {
            return Ok(Self { name: "auto".into(), content: BUILT_IN_TEXT.into(), conversations: None });
        };
        let content = files::read_text(path, MAX_FILE).with_context(|| {
            format!(
                "cannot read {} as UTF-8 text for --calibrate; use a text file, a .jsonl file or auto",
                path.display()
            )
        })?;
        ensure!(!content.trim().is_empty(), "{} is empty; --calibrate needs a text", path.display());
        let is_lines = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
        let line = |(number, line): (usize, &str)| {
            serde_json::from_str(line).with_context(|| {
                format!(
                    "{}, line {}: expected a conversation such as {{\"messages\": [{{\"role\": \"user\", \"content\": \"…\"}}]}}",
                    path.display(),
                    number + 1
                )
            })
        };
        let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let conversations =
            is_lines.then(|| lines.map(line).collect::<anyhow::Result<Vec<Line>>>()).transpose()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, content, conversations })
    }

    /// About `tokens` tokens in windows, spread evenly over the text. Each window of a plain text begins with the special tokens that
    /// the tokenizer puts before a text; of a long conversation, only the first.
    ///
    /// # Errors
    /// When the text cannot be tokenized, or the chat template rejects a conversation.
    pub(super) fn tokenize(
        &self,
        text: &Text,
        (tokens, context_length): (usize, usize),
    ) -> anyhow::Result<CalibrationText> {
        let size = WINDOW.min(context_length);
        let all = match &self.conversations {
            Some(lines) => chat_windows(text, lines, size)?,
            None => windows(text, &self.content, size)?,
        };
        let total: usize = all.iter().map(Vec::len).sum();
        let count = (tokens * all.len()).div_ceil(total.max(1)).clamp(1, all.len().max(1));
        let windows: Vec<Vec<u32>> =
            (0..count).filter_map(|i| all.get(i * all.len() / count).cloned()).collect();
        let mut hash = Sha256::new();
        hash.update(&self.content);
        let tokens = windows.iter().map(Vec::len).sum();
        let record = CalibrationRecord { text: self.name.clone(), sha256: files::hexadecimal(hash), tokens };
        Ok(CalibrationText { windows, record })
    }
}

/// `content` in windows of at most `max` tokens, each with the special tokens that the tokenizer puts before a text.
pub(super) fn windows(text: &Text, content: &str, max: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let start = start(text)?;
    let ids = text.encode_bare(content)?;
    let max = max.saturating_sub(start.len()).max(1);
    Ok(ids.chunks(max).map(|ids| [&start[..], ids].concat()).collect())
}

/// The special tokens that the tokenizer puts before a text. It may put others after one.
fn start(text: &Text) -> anyhow::Result<Vec<u32>> {
    const WORD: &str = "a";
    let (mut ids, bare) = (text.encode(WORD)?, text.encode_bare(WORD)?);
    let length = ids.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    ids.truncate(length);
    Ok(ids)
}

/// A window for each conversation; longer ones in several.
fn chat_windows(text: &Text, lines: &[Line], size: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut windows = Vec::new();
    for Line { messages } in lines {
        let messages = messages
            .iter()
            .map(|message| Message::new(&message.role, message.content.as_deref().unwrap_or_default()))
            .collect();
        let ending = PromptEnding::LastMessage;
        let ids = text.encode_chat(&Conversation { messages, ending, ..Conversation::default() })?;
        windows.extend(ids.chunks(size).map(<[u32]>::to_vec));
    }
    Ok(windows)
}
