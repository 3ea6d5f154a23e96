//! Token ids in, text out, one token at a time.
//!
//! A byte-level token is often a third of a character, and a stop string may begin in one token and end in another. So token
//! ids pass three stages: the bytes of each token ([`super::token_bytes`]), whole characters ([`super::utf8`]) and stop
//! strings ([`super::stop_strings`]). Text is never held back beyond the end of a character or of a stop string.

use std::sync::Arc;

use tokenizers::Tokenizer;

use super::{
    Text,
    stop_strings::{Chunk, StopStrings},
    token_bytes::{TokenBytes, visible},
    utf8::{Utf8Decoder, push_without_replacement},
};

/// Turns the token ids of one answer into text.
pub struct Detokenizer {
    text: Arc<Text>,
    source: Source,
    stops: StopStrings,
    /// Special tokens that are shown as text.
    shown: Shown,
}

/// Which special tokens are shown by their names.
enum Shown {
    All,
    These(Vec<u32>),
}

impl Text {
    /// Starts the text of one answer, which ends before any of `stops`; empty ones never match.
    #[must_use]
    pub fn detokenizer(self: &Arc<Self>, stops: Vec<String>) -> Detokenizer {
        Detokenizer::new(Arc::clone(self), stops)
    }
}

impl Detokenizer {
    fn new(text: Arc<Text>, stops: Vec<String>) -> Self {
        let source =
            text.token_bytes.as_ref().map_or_else(|| Source::Stream(Stream::default()), Source::table);
        Self { text, source, stops: StopStrings::new(stops), shown: Shown::These(Vec::new()) }
    }

    /// Keeps a leading space, so that the text is exactly the bytes of the tokens, as a constraint matches them.
    #[must_use]
    pub fn verbatim(mut self) -> Self {
        if let Source::Table { at_start, strip, .. } = &mut self.source {
            (*at_start, *strip) = (false, 0);
        }
        self
    }

    /// Shows special tokens by their names, as a chat template writes them.
    #[must_use]
    pub fn with_all_special(mut self) -> Self {
        self.shown = Shown::All;
        self
    }

    /// Shows the special token called `name` by that name, if it exists.
    #[must_use]
    pub fn with_special(mut self, name: &str) -> Self {
        if let (Shown::These(ids), Some(id)) = (&mut self.shown, self.text.tokenizer.token_to_id(name))
            && !ids.contains(&id)
        {
            ids.push(id);
        }
        self
    }

    /// Takes the next token and returns the text that is complete. Ids without text (special tokens, ids that the tokenizer
    /// does not have) add nothing.
    pub fn push(&mut self, token: u32) -> Chunk {
        let fresh = match self.special(token) {
            // The text before a special token is complete; an incomplete character is dropped.
            Some(name) => self.source.finish(&self.text) + &name,
            None => self.source.push(&self.text, token),
        };
        self.stops.push(&fresh)
    }

    /// The name of a special token that is shown.
    fn special(&self, token: u32) -> Option<String> {
        let is_shown = match &self.shown {
            Shown::All => true,
            Shown::These(ids) => ids.contains(&token),
        };
        let tokenizer = &self.text.tokenizer;
        (is_shown && visible(tokenizer, token).is_none()).then(|| tokenizer.id_to_token(token))?
    }

    /// Returns text that was held back as a possible stop string; an incomplete character is dropped.
    pub fn finish(&mut self) -> String {
        let fresh = self.source.finish(&self.text);
        let mut text = self.stops.push(&fresh).text;
        text += &self.stops.finish();
        text
    }
}

/// The source of the text.
enum Source {
    /// The table of the tokens' bytes.
    Table {
        utf8: Utf8Decoder,
        /// The next token with text is the first.
        at_start: bool,
        /// Leading characters that may still be stripped.
        strip: usize,
    },
    /// The `tokenizers` crate, for decoders without a table.
    Stream(Stream),
}

impl Source {
    fn table(token_bytes: &TokenBytes) -> Self {
        let strip = token_bytes.strip().map_or(0, |(_, max)| max);
        Self::Table { utf8: Utf8Decoder::default(), at_start: true, strip }
    }

    fn push(&mut self, text: &Text, token: u32) -> String {
        match (self, &text.token_bytes) {
            (Self::Stream(stream), _) => stream.push(&text.tokenizer, token),
            (Self::Table { .. }, None) => String::new(),
            (Self::Table { utf8, at_start, strip }, Some(token_bytes)) => {
                let mut fresh = String::new();
                if *at_start {
                    let first = token_bytes.first_bytes(&text.tokenizer, token);
                    *at_start = first.is_none();
                    utf8.push(&first.unwrap_or_default(), &mut fresh);
                } else {
                    utf8.push(token_bytes.bytes(token), &mut fresh);
                }
                if let Some((stripped, _)) = token_bytes.strip() {
                    strip_start(&mut fresh, stripped, strip);
                }
                fresh
            }
        }
    }

    fn finish(&mut self, text: &Text) -> String {
        match self {
            Self::Table { utf8, .. } => {
                *utf8 = Utf8Decoder::default();
                String::new()
            }
            Self::Stream(stream) => stream.flush(&text.tokenizer),
        }
    }
}

/// Removes up to `left` leading `stripped` characters from the beginning of a text; another character ends the stripping.
fn strip_start(fresh: &mut String, stripped: char, left: &mut usize) {
    while *left > 0 && !fresh.is_empty() {
        if fresh.starts_with(stripped) {
            fresh.remove(0);
            *left -= 1;
        } else {
            *left = 0;
        }
    }
}

/// The state of `tokenizers`' incremental decoding, which keeps it in a type that borrows the tokenizer.
#[derive(Default)]
struct Stream {
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl Stream {
    /// A character has at most four bytes. Incremental decoding that holds back more tokens than that waits for a
    /// character that will never be complete.
    const MAX_HELD: usize = 4;

    fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        // A token without text would count as one that is held back.
        if visible(tokenizer, token).is_none() {
            return String::new();
        }
        let step = tokenizers::step_decode_stream(
            tokenizer,
            vec![token],
            true,
            &mut self.ids,
            &mut self.prefix,
            &mut self.prefix_index,
        );
        match step {
            Ok(Some(fresh)) => without_replacements(&fresh),
            Ok(None) if self.ids.len() - self.prefix_index.min(self.ids.len()) < Self::MAX_HELD => {
                String::new()
            }
            Ok(None) | Err(_) => self.flush(tokenizer),
        }
    }

    /// Returns the text held back and resets the state; bytes that are not text are dropped.
    fn flush(&mut self, tokenizer: &Tokenizer) -> String {
        let held = std::mem::take(self);
        let text = tokenizer.decode(&held.ids, true).unwrap_or_default();
        without_replacements(text.strip_prefix(&held.prefix).unwrap_or_default())
    }
}

fn without_replacements(fresh: &str) -> String {
    let mut text = String::with_capacity(fresh.len());
    push_without_replacement(fresh, &mut text);
    text
}
