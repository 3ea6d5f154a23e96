//! Incremental UTF-8 decoding.

/// Decodes UTF-8 that arrives in pieces; returns whole characters only.
///
/// Invalid bytes are dropped, and reading continues after them, so a model that writes nonsense never blocks the stream. The
/// dropped bytes are those that `String::from_utf8_lossy` replaces, and U+FFFD itself: a reader could not distinguish a
/// written one from a replacement.
#[derive(Debug, Default)]
pub(super) struct Utf8Decoder {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Decoder {
    /// Appends to `text` the characters that `bytes` complete.
    pub(super) fn push(&mut self, bytes: &[u8], text: &mut String) {
        let mut unread = std::mem::take(&mut self.pending);
        unread.extend_from_slice(bytes);
        for chunk in unread.utf8_chunks() {
            push_without_replacement(chunk.valid(), text);
            // Only the last chunk can end in an incomplete character; the loop overwrites what earlier chunks set.
            self.pending = if is_incomplete(chunk.invalid()) { chunk.invalid().to_vec() } else { Vec::new() };
        }
    }
}

/// Appends `fresh` without U+FFFD.
pub(super) fn push_without_replacement(fresh: &str, text: &mut String) {
    text.extend(fresh.split(char::REPLACEMENT_CHARACTER));
}

fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> String {
        let (mut utf8, mut text) = (Utf8Decoder::default(), String::new());
        for piece in pieces {
            utf8.push(piece, &mut text);
        }
        text
    }

    #[test]
    fn a_character_leaves_with_its_last_byte() {
        let (mut utf8, mut text) = (Utf8Decoder::default(), String::new());
        for (byte, expected) in "क".bytes().zip(["", "", "क"]) {
            utf8.push(&[byte], &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn invalid_bytes_are_dropped_and_the_next_character_is_whole() {
        assert_eq!(read(&[b"\xff\xff", "é".as_bytes()]), "é");
        assert_eq!(read(&[b"\xe0\xa4", b"a"]), "a", "a character cut short by another");
        assert_eq!(read(&[b"\xe0\xa4", "क".as_bytes()]), "क");
        assert_eq!(read(&[b"\xed\xa0\x80b"]), "b", "a surrogate is not a character");
        assert_eq!(read(&["a\u{fffd}b".as_bytes()]), "ab");
    }

    proptest! {
        #[test]
        fn any_cut_equals_lossy_decoding_without_replacement_characters(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0x80_u8..0xc0, 0xe0_u8..0xe4], 0..64),
            size in 1_usize..5,
        ) {
            let whole = String::from_utf8_lossy(&bytes).replace('\u{fffd}', "");
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(read(&pieces), whole);
        }
    }
}
