//! Tokens, their ids, and the pairs that a BPE merges.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// Most bytes of a token: several times the longest runs of spaces and dashes that vocabularies have.
pub(super) const MAX_TOKEN: usize = 512;

/// Most tokens: several times the largest vocabulary.
pub(super) const MAX_TOKENS: usize = 1 << 21;

/// Two tokens that are a third one together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub left: &'a str,
    pub right: &'a str,
    /// Ids of the two, and of the one that they make.
    pub ids: [usize; 3],
}

/// All pairs of `tokens` that are a token together, in the order of that token's id.
pub(super) fn pairs<'a>(tokens: &[(&'a str, usize)]) -> Vec<Pair<'a>> {
    let ids: HashMap<&str, usize> = tokens.iter().copied().collect();
    let mut pairs = Vec::new();
    for (token, whole) in tokens {
        let start = pairs.len();
        for (left, right) in token.char_indices().skip(1).map(|(at, _)| token.split_at(at)) {
            if let (Some(one), Some(other)) = (ids.get(left), ids.get(right)) {
                pairs.push(Pair { left, right, ids: [*one, *other, *whole] });
            }
        }
        pairs[start..].sort_by_key(|pair| pair.ids);
    }
    pairs.sort_by_key(|pair| pair.ids[2]);
    pairs
}

/// Ids by tokens, as a BPE has them; an error names a token that is there twice, too long or one too many.
pub(super) fn ids<'a>(tokens: impl Iterator<Item = (&'a str, usize)>) -> Result<Map<String, Value>, String> {
    let mut ids = Map::new();
    for (token, id) in tokens {
        if token.len() > MAX_TOKEN {
            return Err(format!("token {id} has {} bytes, and at most {MAX_TOKEN} are read", token.len()));
        }
        if ids.len() >= MAX_TOKENS {
            return Err(format!("it has more than {MAX_TOKENS} tokens"));
        }
        if ids.insert(token.to_owned(), json!(id)).is_some() {
            return Err(format!("the token {token:?} is there twice"));
        }
    }
    Ok(ids)
}

/// The letters that stand for bytes in a byte-level BPE.
pub(super) fn byte_letters() -> [char; 256] {
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256u32;
    std::array::from_fn(|byte| {
        let byte = u8::try_from(byte).unwrap_or(0);
        if is_printable(byte) {
            return char::from(byte);
        }
        let letter = char::from_u32(next).unwrap_or_default();
        next += 1;
        letter
    })
}
