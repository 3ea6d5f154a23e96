//! Rejects texts that are too long for a context before they are tokenized.
//!
//! Tokenizing four megabytes takes seconds and a gigabyte of memory, and nearly every text of that length has too many tokens. Two
//! checks reject most of them sooner:
//!
//! 1. The length of the text, divided by the length of the vocabulary's longest token. This needs no tokenizing.
//! 2. The text is tokenized piece by piece, until there are too many tokens. The end of a piece may have other tokens than the same
//!    place in the whole text, so this check has a tolerance.
//!
//! A text that passes both is tokenized as a whole, and its exact length is checked.

use super::{Text, TextError};

/// Bytes per piece. Texts of up to two pieces skip the second check.
const PIECE: usize = 64 << 10;

/// Normalizers make text shorter: a syllable of three characters of Hangul becomes one.
const NORMALIZED: usize = 4;

impl Text {
    /// Checks that `text` may have `max` tokens or fewer. A text that passes may still have more.
    ///
    /// # Errors
    /// [`TextError::TooLong`] when it has more for certain, and [`TextError::Encode`] when it cannot be tokenized.
    pub fn check_length(&self, text: &str, max: usize) -> Result<(), TextError> {
        let too_long = || TextError::TooLong { bytes: text.len(), max };
        let longest = self.longest_token.unwrap_or(usize::MAX);
        if text.len() > max.saturating_mul(longest).saturating_mul(NORMALIZED) {
            return Err(too_long());
        }
        if text.len() <= 2 * PIECE {
            return Ok(());
        }
        let enough = max.saturating_add(max / 4).saturating_add(64);
        let mut tokens = 0;
        for piece in pieces(text) {
            tokens += self.encode_bare(piece)?.len();
            if tokens > enough {
                return Err(too_long());
            }
        }
        Ok(())
    }
}

/// Splits a text into pieces of whole characters.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(text.floor_char_boundary(PIECE));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_characters_and_together_the_text() {
        for text in ["", "a", &"क".repeat(PIECE), &"ab".repeat(PIECE)] {
            let all: Vec<&str> = pieces(text).collect();
            assert_eq!(all.concat(), text);
            assert!(all.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
        }
    }
}
