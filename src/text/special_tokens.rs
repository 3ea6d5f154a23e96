//! The special tokens that chat templates know by name: `bos_token`, `eos_token` and so on.
//!
//! They come from up to three sources. As in `transformers`, the first source that has a token wins:
//!
//! 1. `special_tokens_map.json`, unless `tokenizer_config.json` has its successor, `added_tokens_decoder`;
//! 2. `tokenizer_config.json`, where `null` means that there is none;
//! 3. the defaults of the tokenizer's class, or of the architecture's class if the configuration names none.
//!
//! A default counts only if the tokenizer has the token. Otherwise a template would write text that is not one token.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::files::TokenizerConfig;

/// Tokens by name: `bos_token` → `<s>`.
pub(super) type SpecialTokens = BTreeMap<String, String>;

/// Pairs of a name such as `bos_token` and its default token.
type Defaults = &'static [(&'static str, &'static str)];

/// Tokenizer classes, without the suffix `Fast`, and their defaults in `transformers` 4 and 5.
const CLASSES: [(&str, Defaults); 7] = [
    ("BloomTokenizer", LLAMA),
    ("CodeLlamaTokenizer", LLAMA),
    (
        "CohereTokenizer",
        &[("bos_token", "<BOS_TOKEN>"), ("eos_token", "<|END_OF_TURN_TOKEN|>"), ("unk_token", "<UNK>")],
    ),
    ("GemmaTokenizer", GEMMA),
    ("GPT2Tokenizer", GPT2),
    ("LlamaTokenizer", LLAMA),
    ("Qwen2Tokenizer", QWEN2),
];

/// The defaults of an architecture, for tokenizers that name no class.
const ARCHITECTURES: [(&str, Defaults); 9] = [
    ("bloom", LLAMA),
    ("gemma2", GEMMA),
    ("gemma3_text", GEMMA),
    ("gpt2", GPT2),
    ("llama", LLAMA),
    ("mistral", LLAMA),
    ("phi3", LLAMA),
    ("qwen2", QWEN2),
    ("qwen3", QWEN2),
];

const LLAMA: Defaults = &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];

const GPT2: Defaults =
    &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];

const QWEN2: Defaults =
    &[("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];

const GEMMA: Defaults =
    &[("bos_token", "<bos>"), ("eos_token", "<eos>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];

/// The special tokens of a model of `architecture`, by name; `map` is the content of `special_tokens_map.json`.
pub(super) fn special_tokens(
    config: &TokenizerConfig,
    map: &Map<String, Value>,
    architecture: &str,
    tokenizer: &Tokenizer,
) -> SpecialTokens {
    let defaults = defaults(config.class(), architecture).iter();
    let known = defaults.filter(|(_, token)| tokenizer.token_to_id(token).is_some());
    // Lowest priority first: later insertions overwrite.
    let mut tokens: SpecialTokens = known.map(|&(name, token)| (name.into(), token.into())).collect();
    apply(&mut tokens, config.fields());
    if let Some(Value::Object(extra)) = config.fields().get("extra_special_tokens") {
        apply(&mut tokens, extra);
    }
    if !config.fields().contains_key("added_tokens_decoder") {
        apply(&mut tokens, map);
    }
    tokens
}

fn defaults(class: Option<&str>, architecture: &str) -> Defaults {
    let find = |table: &[(&str, Defaults)], name: &str| {
        table.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, defaults)| defaults)
    };
    match class {
        Some(class) => find(&CLASSES, class.strip_suffix("Fast").unwrap_or(class)),
        None => find(&ARCHITECTURES, architecture),
    }
}

/// Adds the fields that end in `_token`; `null` removes a token.
fn apply(tokens: &mut SpecialTokens, fields: &Map<String, Value>) {
    for (name, value) in fields.iter().filter(|(name, _)| name.ends_with("_token")) {
        match token_text(value) {
            Some(token) => drop(tokens.insert(name.clone(), token)),
            None if value.is_null() => drop(tokens.remove(name)),
            None => {}
        }
    }
}

/// A token is a string, or an object with further properties.
fn token_text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The expectations below are `special_tokens_map` of transformers 5.24 for the same files (4.57 for Llama's class).
    fn tokens(config: Value, map: Value, architecture: &str) -> Vec<(String, String)> {
        let tokenizer = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "unk_token": "<unk>",
                       "vocab": { "<|endoftext|>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<bos>": 4 } } });
        let tokenizer = Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
        let config: TokenizerConfig = serde_json::from_value(config).unwrap();
        special_tokens(&config, map.as_object().unwrap(), architecture, &tokenizer).into_iter().collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, token)| (name.to_owned(), token.to_owned())).collect()
    }

    const END: &str = "<|endoftext|>";

    #[test]
    fn the_defaults_of_a_tokenizers_class_fill_bos_and_eos() {
        let all = [("bos_token", END), ("eos_token", END), ("unk_token", END)];
        for class in ["GPT2Tokenizer", "GPT2TokenizerFast"] {
            assert_eq!(tokens(json!({ "tokenizer_class": class }), json!({}), "llama"), pairs(&all));
        }
        assert_eq!(tokens(json!({}), json!({}), "gpt2"), pairs(&all));
        let llama = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
        assert_eq!(tokens(json!({ "tokenizer_class": "LlamaTokenizer" }), json!({}), "gpt2"), pairs(&llama));
        let qwen = [("eos_token", END), ("pad_token", END), ("unk_token", END)];
        assert_eq!(tokens(json!({}), json!({}), "qwen3"), pairs(&qwen));
        for class in ["PreTrainedTokenizerFast", "TokenizersBackend"] {
            assert_eq!(tokens(json!({ "tokenizer_class": class }), json!({}), "gpt2"), []);
        }
        // This tokenizer has two of Gemma's special tokens.
        let gemma = [("bos_token", "<bos>"), ("unk_token", "<unk>")];
        assert_eq!(
            tokens(json!({ "tokenizer_class": "GemmaTokenizer" }), json!({}), "gemma2"),
            pairs(&gemma)
        );
    }

    #[test]
    fn null_in_the_configuration_takes_a_default_away() {
        let config = json!({ "tokenizer_class": "GPT2Tokenizer", "bos_token": null });
        assert_eq!(tokens(config, json!({}), "gpt2"), pairs(&[("eos_token", END), ("unk_token", END)]));
    }

    #[test]
    fn special_tokens_map_wins_unless_the_configuration_has_its_successor() {
        let mut config = json!({ "tokenizer_class": "GPT2Tokenizer", "bos_token": "<a>", "my_token": "<m>",
            "add_bos_token": true, "extra_special_tokens": { "image_token": "<img>" } });
        let map = json!({ "bos_token": "<b>", "eos_token": { "content": "<e>", "lstrip": false } });
        let all = [
            ("bos_token", "<b>"),
            ("eos_token", "<e>"),
            ("image_token", "<img>"),
            ("my_token", "<m>"),
            ("unk_token", END),
        ];
        assert_eq!(tokens(config.clone(), map.clone(), "gpt2"), pairs(&all));
        config["added_tokens_decoder"] = json!({});
        let own = tokens(config, map, "gpt2");
        assert!(own.contains(&("bos_token".into(), "<a>".into())), "{own:?}");
        assert!(own.contains(&("eos_token".into(), END.into())), "{own:?}");
    }
}
