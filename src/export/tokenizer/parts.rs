//! Parts of a `tokenizer.json` that several kinds of tokenizers have.

use serde_json::{Map, Value, json};

/// How Llama 3 and GPT-4 split a text into words.
pub(in crate::export) const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The same, every digit by itself.
pub(in crate::export) const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How Mistral's Tekken does.
pub(in crate::export) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How GPT-4o does.
pub(in crate::export) const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Unicode's composed form.
pub(in crate::export) fn nfc() -> Value {
    json!({ "type": "NFC" })
}

/// Every digit is a word.
pub(in crate::export) fn digits() -> Value {
    json!({ "type": "Digits", "individual_digits": true })
}

/// Bytes become letters; words are split by GPT-2's pattern if `use_regex`.
pub(in crate::export) fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

/// Letters become bytes.
pub(in crate::export) fn byte_level_decoder() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true })
}

/// What `pattern` matches is a word.
pub(in crate::export) fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

/// Pre-tokenizers, one after the other.
pub(in crate::export) fn sequence(steps: &[Value]) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// `from` becomes `to`.
pub(in crate::export) fn replace(from: &str, to: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": from }, "content": to })
}

/// The text of tokens that SentencePiece has made, with bytes for unknown characters and a space before the text if it adds them.
pub(in crate::export) fn sentence_piece_decoder(has_bytes: bool, adds_space: bool) -> Value {
    let mut decoders = vec![replace("▁", " ")];
    if has_bytes {
        decoders.push(json!({ "type": "ByteFallback" }));
    }
    if has_bytes || adds_space {
        decoders.push(json!({ "type": "Fuse" }));
    }
    if adds_space {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": decoders })
}

/// A BPE of `vocab` and `merges`, best first, with `other` settings than the usual ones.
pub(in crate::export) fn bpe(vocab: Map<String, Value>, merges: &[(&str, &str)], other: Value) -> Value {
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    });
    if let (Value::Object(model), Value::Object(other)) = (&mut model, other) {
        model.extend(other);
    }
    model
}

/// Adds tokens before and after a text; each with its id.
pub(in crate::export) fn template([before, after]: [Option<(usize, &str)>; 2]) -> Value {
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(usize, &str)>| {
        token.map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": 0 } }))
    };
    let sequence = |id: &str| Some(json!({ "Sequence": { "id": id, "type_id": 0 } }));
    let all = |parts: Vec<Option<Value>>| parts.into_iter().flatten().collect::<Vec<_>>();
    let tokens: Map<_, _> = [before, after]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": all(vec![special(before), sequence("A"), special(after)]),
        "pair": all(vec![special(before), sequence("A"), special(after), special(before), sequence("B"), special(after)]),
        "special_tokens": tokens,
    })
}
