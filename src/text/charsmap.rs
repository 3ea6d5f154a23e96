//! Checks the table with which SentencePiece normalizes text.
//!
//! `tokenizer.json` holds it as bytes: a trie, and the strings that replace what the trie finds. The library that runs it believes
//! every position in it, and would end the process at a wrong one.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

/// The field that holds a table.
const FIELD: &str = "precompiled_charsmap";

/// Most bytes that replace a character. Unicode's longest compatibility form has 33.
const MAX_REPLACEMENT: usize = 64;

/// Checks every table in the `tokenizer.json` that `json` is; the error is a message.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    // Few tokenizers have one, and parsing a large vocabulary takes a second.
    if !json.windows(FIELD.len()).any(|window| window == FIELD.as_bytes()) {
        return Ok(());
    }
    let tokenizer: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    check_within(&tokenizer["normalizer"])
}

fn check_within(step: &Value) -> Result<(), String> {
    if let Some(steps) = step["normalizers"].as_array() {
        return steps.iter().try_for_each(check_within);
    }
    let Some(table) = step[FIELD].as_str() else { return Ok(()) };
    let table = BASE64_STANDARD.decode(table).map_err(|error| format!("{FIELD}: {error}"))?;
    check_table(&table).ok_or_else(|| format!("{FIELD} is damaged: a position in it lies outside of it"))
}

/// `[bytes of the trie: u32][trie: u32, …][strings, each with a zero after it]`
fn check_table(table: &[u8]) -> Option<()> {
    let (bytes, rest) = table.split_first_chunk::<4>()?;
    let bytes = usize::try_from(u32::from_le_bytes(*bytes)).ok()?;
    let (trie, strings) = rest.split_at_checked(bytes / 4 * 4)?;
    let units: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
    let strings = std::str::from_utf8(strings).ok()?;
    if units.is_empty() {
        return None;
    }
    // Units with the highest bit are values, and no step leads on from them.
    let inner = units.iter().enumerate().filter(|(_, unit)| *unit >> 31 == 0);
    for (place, unit) in inner {
        let next = place ^ usize::try_from((unit >> 10) << ((unit & (1 << 9)) >> 6)).ok()?;
        // A step changes the lowest eight bits only.
        if next | 0xFF >= units.len() {
            return None;
        }
        if unit >> 8 & 1 == 1 {
            let value = usize::try_from(units[next] & (u32::MAX >> 1)).ok()?;
            let replacement = strings.get(value..)?.as_bytes();
            let length = replacement.iter().take(MAX_REPLACEMENT + 1).take_while(|byte| **byte != 0).count();
            if length > MAX_REPLACEMENT {
                return None;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A trie of 256 units that replaces the letter `a` by the string at `value`, after a step of `offset`.
    fn table(offset: u32, value: u32, strings: &str) -> Vec<u8> {
        let mut units = [0u32; 256];
        // From the root to unit 1 ^ a, whose own step leads to a value.
        units[0] = 1 << 10;
        units[1 ^ usize::from(b'a')] = offset << 10 | 1 << 8 | u32::from(b'a');
        if let Some(leaf) = units.get_mut((1 ^ usize::from(b'a')) ^ offset as usize) {
            *leaf = value | 1 << 31;
        }
        let units = units.iter().flat_map(|unit| unit.to_le_bytes());
        1024u32.to_le_bytes().into_iter().chain(units).chain(strings.bytes()).collect()
    }

    #[test]
    fn a_sound_table_passes_and_positions_outside_of_it_do_not() {
        assert!(check_table(&table(2, 0, "b\0é\0")).is_some());
        assert!(check_table(&table(2, 2, "b\0é\0")).is_some());
        for (wrong, why) in [
            (table(300, 0, "b\0"), "a step beyond the trie"),
            (table(2, 9, "b\0"), "a value beyond the strings"),
            (table(2, 3, "b\0é\0"), "a value within a character"),
            (table(2, 0, &"b".repeat(65)), "a long replacement"),
            (u32::MAX.to_le_bytes().to_vec(), "a trie beyond the table"),
            (0u32.to_le_bytes().to_vec(), "no trie"),
            (Vec::new(), "no table"),
        ] {
            assert!(check_table(&wrong).is_none(), "{why}");
        }
    }

    #[test]
    fn tables_are_found_within_sequences() {
        let step = |table: &[u8]| json!({ "type": "Precompiled", FIELD: BASE64_STANDARD.encode(table) });
        let json = |table: &[u8]| {
            let steps = json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, step(table)] });
            json!({ "normalizer": steps }).to_string()
        };
        check(json(&table(2, 0, "b\0")).as_bytes()).unwrap();
        let message = check(json(&table(300, 0, "b\0")).as_bytes()).unwrap_err();
        assert!(message.contains("damaged"), "{message}");
        check(b"{}").unwrap();
    }
}
