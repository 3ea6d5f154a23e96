//! How a byte-level BPE splits text into words, by the names that llama.cpp's converter gives to published tokenizers.
//!
//! The rules are those of the original `tokenizer.json` files, which the names stand for; llama.cpp itself uses equivalents that
//! its own engine can run.

use serde_json::Value;

use crate::export::tokenizer::parts::{
    GPT_4O, LLAMA_3, QWEN_2, TEKKEN, byte_level, digits, nfc, sequence, split,
};

/// The parts of a tokenizer that depend on its name.
pub(super) struct Splitting {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    /// A word that is a token is not cut, whatever the merges say.
    pub ignore_merges: bool,
    /// Texts begin with the bos token, unless the metadata differs.
    pub adds_bos: bool,
}

/// Names, and how they split.
const NAMES: [(&[&str], Rule); 9] = [
    (
        &["gpt-2", "phi-2", "mpt", "jais", "gigachat", "a.x-4.0", "mellum", "trillion", "granite-docling"],
        Rule::Gpt2,
    ),
    (&["olmo"], Rule::Gpt2Nfc),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        Rule::Gpt2Digits,
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        Rule::Regex { pattern: LLAMA_3, nfc: false, ignore_merges: true, adds_bos: true },
    ),
    (
        &["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"],
        Rule::Regex { pattern: LLAMA_3, nfc: false, ignore_merges: false, adds_bos: false },
    ),
    (&["qwen2", "megrez"], Rule::Regex { pattern: QWEN_2, nfc: true, ignore_merges: false, adds_bos: false }),
    (
        &["deepseek-r1-qwen", "stablelm2", "hunyuan"],
        Rule::Regex { pattern: QWEN_2, nfc: false, ignore_merges: false, adds_bos: false },
    ),
    (&["tekken"], Rule::Regex { pattern: TEKKEN, nfc: false, ignore_merges: true, adds_bos: false }),
    (
        &["gpt-4o", "llama4"],
        Rule::Regex { pattern: GPT_4O, nfc: false, ignore_merges: false, adds_bos: false },
    ),
];

#[derive(Clone, Copy)]
enum Rule {
    /// GPT-2's own pattern, which the byte-level step contains.
    Gpt2,
    /// The same after Unicode's NFC.
    Gpt2Nfc,
    /// The same after every digit has become a word.
    Gpt2Digits,
    /// Another pattern.
    Regex { pattern: &'static str, nfc: bool, ignore_merges: bool, adds_bos: bool },
}

/// How the tokenizer called `name` splits, if it is known.
pub(super) fn splitting(name: &str) -> Option<Splitting> {
    let rule = NAMES.iter().find(|(names, _)| names.contains(&name))?.1;
    let plain = |normalizer, pre_tokenizer| Splitting {
        normalizer,
        pre_tokenizer,
        ignore_merges: false,
        adds_bos: false,
    };
    Some(match rule {
        Rule::Gpt2 => plain(Value::Null, byte_level(true)),
        Rule::Gpt2Nfc => plain(nfc(), byte_level(true)),
        Rule::Gpt2Digits => plain(Value::Null, sequence(&[digits(), byte_level(true)])),
        Rule::Regex { pattern, nfc: is_nfc, ignore_merges, adds_bos } => {
            let normalizer = if is_nfc { nfc() } else { Value::Null };
            let pre_tokenizer = sequence(&[split(pattern), byte_level(false)]);
            Splitting { normalizer, pre_tokenizer, ignore_merges, adds_bos }
        }
    })
}

/// Every known name, for an error.
pub(super) fn known() -> String {
    let names: Vec<_> = NAMES.iter().flat_map(|(names, _)| *names).copied().collect();
    names.join(", ")
}
