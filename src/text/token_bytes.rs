//! The bytes of each token, computed from a tokenizer's decoder.
//!
//! Nearly every language model decodes a token the same way at every position, except for a space at the very beginning. For
//! these the bytes are computed once, when the tokenizer is opened, and an answer is a series of table lookups. The rules
//! below reproduce the `tokenizers` crate, quirks included; a decoder that they do not cover is left to that crate, token by
//! token ([`super::detokenizer`]).

use serde::Deserialize;
use tokenizers::{ModelWrapper, Tokenizer};

/// The bytes of every token, and the rule for the beginning of a text.
pub(super) struct TokenBytes {
    rule: Rule,
    /// The character that is stripped from the beginning of a text, and how many of them at most.
    strip: Option<(char, usize)>,
    bytes: Vec<u8>,
    /// End of each token in `bytes`; the next token begins there.
    ends: Vec<usize>,
}

impl TokenBytes {
    /// The bytes of the tokens below `vocabulary`; `None` if the tokenizer's decoder is not supported.
    pub(super) fn of(tokenizer: &Tokenizer, vocabulary: usize) -> Option<Self> {
        let (rule, strip) = read_steps(tokenizer)?;
        let mut token_bytes = Self { rule, strip, bytes: Vec::new(), ends: Vec::with_capacity(vocabulary) };
        for id in (0_u32..).take(vocabulary) {
            token_bytes.bytes.extend(token_bytes.of_token(tokenizer, id, false).unwrap_or_default());
            token_bytes.ends.push(token_bytes.bytes.len());
        }
        Some(token_bytes)
    }

    /// The bytes of a token that is not the first; none for special tokens and for ids that do not exist.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    /// The bytes of a text's first token; `None` for a token without text, after which the next token counts as the first.
    pub(super) fn first_bytes(&self, tokenizer: &Tokenizer, id: u32) -> Option<Vec<u8>> {
        self.of_token(tokenizer, id, true)
    }

    fn of_token(&self, tokenizer: &Tokenizer, id: u32, is_first: bool) -> Option<Vec<u8>> {
        let token = visible(tokenizer, id)?;
        // Users add tokens as the text that they stand for, which may look like encoded bytes.
        let is_text = matches!(self.rule, Rule::ByteLevel(_))
            && tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        Some(if is_text { token.into_bytes() } else { self.rule.bytes_of(&token, is_first) })
    }

    /// The character that is stripped from the beginning of a text, and how many of them at most.
    pub(super) const fn strip(&self) -> Option<(char, usize)> {
        self.strip
    }
}

/// The token with this id; `None` if it is special or does not exist.
pub(super) fn visible(tokenizer: &Tokenizer, id: u32) -> Option<String> {
    let token = tokenizer.id_to_token(id)?;
    (!tokenizer.get_added_vocabulary().is_special_token(&token)).then_some(token)
}

/// How one token becomes bytes.
enum Rule {
    /// Each character encodes a byte (GPT-2's alphabet).
    ByteLevel(Alphabet),
    /// Strings are replaced (▁ by a space), and with `byte_fallback` `<0x41>` encodes a byte.
    Pieces { replace: Vec<(String, String)>, byte_fallback: bool },
    /// A mark encodes a space, or nothing in the first token.
    Metaspace { mark: char, first: Option<char> },
}

impl Rule {
    fn bytes_of(&self, token: &str, is_first: bool) -> Vec<u8> {
        match self {
            Self::ByteLevel(alphabet) => alphabet.bytes(token),
            Self::Pieces { replace, byte_fallback } => {
                let token =
                    replace.iter().fold(token.to_owned(), |token, (from, to)| token.replace(from, to));
                let byte = if *byte_fallback { fallback_byte(&token) } else { None };
                byte.map_or_else(|| token.into_bytes(), |byte| vec![byte])
            }
            Self::Metaspace { mark, first } => {
                let space = if is_first { *first } else { Some(' ') };
                let characters = token.chars().filter_map(|c| if c == *mark { space } else { Some(c) });
                characters.collect::<String>().into_bytes()
            }
        }
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's alphabet: printable bytes map to themselves, the others to the characters from U+0100 on.
struct Alphabet(Box<[Option<u8>; 0x144]>);

impl Alphabet {
    fn new() -> Self {
        let mut bytes = Box::new([None; 0x144]);
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let at = if printable { usize::from(byte) } else { next };
            next += usize::from(!printable);
            bytes[at] = Some(byte);
        }
        Self(bytes)
    }

    /// The token's bytes; a token with a character outside the alphabet keeps its text.
    fn bytes(&self, token: &str) -> Vec<u8> {
        let byte = |c: char| self.0.get(c as usize).copied().flatten();
        token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
    }
}

/// A decoder as `tokenizer.json` writes it.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    ByteLevel,
    Replace {
        pattern: Pattern,
        content: String,
    },
    ByteFallback,
    Fuse,
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Metaspace {
        replacement: char,
        prepend_scheme: String,
    },
    Sequence {
        decoders: Vec<Step>,
    },
    #[serde(other)]
    Other,
}

/// `Regex`, the other kind, is missing on purpose: a decoder with one cannot be a table.
#[derive(Deserialize)]
enum Pattern {
    String(String),
}

fn read_steps(tokenizer: &Tokenizer) -> Option<(Rule, Option<(char, usize)>)> {
    // Through JSON, because the crate does not expose the fields of `Replace`.
    let decoder = serde_json::to_value(tokenizer.get_decoder()?).ok()?;
    let steps = match serde_json::from_value(decoder).ok()? {
        Step::Sequence { decoders } => decoders,
        step => vec![step],
    };
    match &steps[..] {
        [Step::ByteLevel] | [Step::ByteLevel, Step::Fuse] => Some((Rule::ByteLevel(Alphabet::new()), None)),
        [Step::Metaspace { replacement, prepend_scheme }] => {
            let first = (prepend_scheme == "never").then_some(' ');
            Some((Rule::Metaspace { mark: *replacement, first }, None))
        }
        steps => read_pieces(steps),
    }
}

/// `Replace`s, then perhaps `ByteFallback`, then `Fuse`, then perhaps a `Strip` at the start. In another order they
/// would see text across tokens, which a table cannot.
fn read_pieces(mut steps: &[Step]) -> Option<(Rule, Option<(char, usize)>)> {
    let mut replace = Vec::new();
    while let [Step::Replace { pattern: Pattern::String(from), content }, rest @ ..] = steps {
        if from.is_empty() {
            return None;
        }
        replace.push((from.clone(), content.clone()));
        steps = rest;
    }
    let byte_fallback = matches!(steps, [Step::ByteFallback, ..]);
    let rule = Rule::Pieces { replace, byte_fallback };
    match &steps[usize::from(byte_fallback)..] {
        [] | [Step::Fuse] => Some((rule, None)),
        [Step::Fuse, Step::Strip { content, start, stop: 0 }] => Some((rule, Some((*content, *start)))),
        _ => None,
    }
}

/// Maximum bytes of text per token; `None` without a limit, because the token for unknown words stands for text of any length.
pub(super) fn longest_token(tokenizer: &Tokenizer, vocabulary: usize) -> Option<usize> {
    let knows_all = match tokenizer.get_model() {
        ModelWrapper::BPE(model) => model.byte_fallback || model.get_unk_token().is_none(),
        ModelWrapper::Unigram(model) => model.byte_fallback(),
        ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => false,
    };
    if !knows_all {
        return None;
    }
    let longest =
        (0_u32..).take(vocabulary).filter_map(|id| tokenizer.id_to_token(id).map(|token| token.len()));
    longest.max()
}
