//! Limits how much longer a tokenizer's replacements can make a text.
//!
//! `tokenizer.json` is a program: each of its replacements may write a thousand bytes for one byte, and its input is the output of
//! the previous one. Four of them turn a word into a terabyte. The library that runs them has no limit, and runs them in
//! this process, so their growth is computed before they are used.

use serde_json::Value;

/// Maximum factor by which a text may grow. Published tokenizers have at most 20.
const MAX_GROWTH: u64 = 64;

/// Maximum bytes that may be prepended to a text. Published tokenizers prepend one character.
const MAX_PREFIX: usize = 1024;

/// Checks a normalizer or decoder of `tokenizer.json`; the error is a message.
pub(super) fn check(steps: &Value) -> Result<(), String> {
    let growth = growth(steps)?;
    if growth > MAX_GROWTH {
        return Err(format!(
            "its replacements can make a text {growth} times as long, and at most {MAX_GROWTH} times are allowed"
        ));
    }
    Ok(())
}

fn growth(step: &Value) -> Result<u64, String> {
    let parts = ["normalizers", "decoders"].iter().find_map(|field| step[*field].as_array());
    if let Some(parts) = parts {
        return parts.iter().try_fold(1_u64, |product, part| Ok(product.saturating_mul(growth(part)?)));
    }
    let length = |text: &Value| text.as_str().map_or(0, str::len);
    if length(&step["prepend"]) > MAX_PREFIX {
        return Err(format!("it puts more than {MAX_PREFIX} bytes before every text"));
    }
    let content = u64::try_from(length(&step["content"])).unwrap_or(u64::MAX);
    Ok(match &step["pattern"] {
        Value::Null => 1,
        // A regular expression may match the empty string before every byte.
        pattern => match length(&pattern["String"]) {
            0 => content.saturating_add(1),
            found => content.div_ceil(u64::try_from(found).unwrap_or(1)).max(1),
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(times: usize, pattern: &Value) -> Value {
        json!({ "type": "Replace", "pattern": pattern, "content": "a".repeat(times) })
    }

    #[test]
    fn replacements_that_multiply_a_text_are_refused_and_those_of_published_tokenizers_are_not() {
        let letter = json!({ "String": "a" });
        check(&json!({ "type": "Sequence", "normalizers": vec![replace(1000, &letter); 4] })).unwrap_err();
        check(&json!({ "type": "Sequence", "decoders": vec![replace(9, &letter); 2] })).unwrap_err();
        check(&replace(64, &json!({ "Regex": "." }))).unwrap_err();
        check(&json!({ "type": "Prepend", "prepend": "x".repeat(1025) })).unwrap_err();
        let llama = json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] });
        check(&llama).unwrap();
        check(&replace(1, &json!({ "Regex": " {2,}" }))).unwrap();
        check(&Value::Null).unwrap();
    }
}
