//! Cost of constrained answers: the time for the next token mask, and how often the engine waits for it.
//!
//! `cargo bench --bench forms -- [SCHEMAS]`, a JSON schema a line; `python3 tests/clients/schema_check.py generate 500 1` makes 500.
//! Without a file, a handful of usual ones. The vocabulary has 32,000 entries: bytes, then pieces of words in Latin and Indian
//! letters, numbers, and punctuation as JSON has it. Tokens are drawn at random among those allowed, which is harder than a
//! model's choice, as it leads into every corner of a schema. Each schema twice: asking for the next mask at once, which
//! shows the time for a mask; and after 5 ms, a fast decode step, which shows the remaining wait.

use std::{
    env, fs,
    path::Path,
    time::{Duration, Instant},
};

use eka::{
    constraint::{Choice, Guides},
    engine::Sampler,
    export::{self, Options, Source},
    job::{Constraint, Job, JobId, Sampling},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

const VOCABULARY: usize = 32_000;

/// The end token; the first entry that is not a byte.
const END: u32 = 256;

const STEP: Duration = Duration::from_millis(5);

/// A shorter wait than this means that the mask was ready and only had to be handed over.
const AT_ONCE: Duration = Duration::from_micros(50);

const USUAL: [&str; 4] = [
    r#"{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0},"tags":{"type":"array","items":{"enum":["red","green","blue"]},"maxItems":4}},"required":["name","age"],"additionalProperties":false}"#,
    r#"{"type":"array","items":{"type":"object","properties":{"date":{"type":"string","format":"date"},"total":{"type":"number"}},"required":["date","total"],"additionalProperties":false},"minItems":2,"maxItems":6}"#,
    r#"{"type":"object","properties":{"text":{"type":"string","minLength":20,"maxLength":80},"ok":{"type":"boolean"}},"required":["text","ok"],"additionalProperties":false}"#,
    r#"{"type":"object","additionalProperties":{"anyOf":[{"type":"string","pattern":"^[a-z]{2,8}$"},{"type":"null"}]},"minProperties":0}"#,
];

fn main() -> BenchResult<()> {
    let given = env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let schemas: Vec<String> = match given {
        Some(file) => fs::read_to_string(file)?.lines().map(str::to_owned).collect(),
        None => USUAL.map(str::to_owned).to_vec(),
    };
    // `cargo bench` passes --bench; a test run of the benches does not, and runs everything short.
    let max = if env::args().any(|argument| argument == "--bench") { 300 } else { 20 };
    let folder = tempfile::tempdir()?;
    let guides = Guides::new(model(folder.path())?, VOCABULARY);
    let (mut at_once, mut later, mut refused) = (Vec::new(), Vec::new(), 0);
    for (seed, schema) in (0..).zip(&schemas) {
        match walk(&guides, schema, seed, max, Duration::ZERO) {
            Ok(waits) => at_once.extend(waits),
            Err(_) => refused += 1,
        }
        later.extend(walk(&guides, schema, seed, max, STEP).unwrap_or_default());
    }
    println!("{} schemas, {refused} refused; {} steps that pick", schemas.len(), at_once.len());
    print("asked at once", at_once);
    let waited = later.iter().filter(|wait| **wait > AT_ONCE).count();
    println!("after {STEP:?}: {waited} of {} steps wait longer than {AT_ONCE:?}", later.len());
    print("after 5 ms", later);
    Ok(())
}

fn print(name: &str, mut waits: Vec<Duration>) {
    waits.sort_unstable();
    let at = |hundredths: usize| waits.get(waits.len() * hundredths / 100).copied().unwrap_or_default();
    println!(
        "{name}: median {:?}, p99 {:?}, most {:?}",
        at(50),
        at(99),
        waits.last().copied().unwrap_or_default()
    );
}

/// Answers under a schema; how long each pick but the first, which waits for the grammar, had to wait for its mask.
fn walk(guides: &Guides, schema: &str, seed: u64, max: usize, step: Duration) -> BenchResult<Vec<Duration>> {
    let job = Job {
        constraint: Some(Constraint::Schema(schema.to_owned())),
        end_tokens: vec![END],
        ..Job::new(JobId(seed), vec![1], max)
    };
    let mut guide = guides.begin(&job)?.ok_or("a constraint has a guide")?;
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::greedy() };
    let (mut sampler, mut random) = (Sampler::new(&sampling, &[]), StdRng::seed_from_u64(seed));
    let (mut waits, mut logits) = (Vec::new(), vec![0.0; VOCABULARY]);
    for number in 0..max {
        std::thread::sleep(step);
        let began = Instant::now();
        let choice = guide.choice()?;
        let waited = began.elapsed();
        match choice {
            Choice::Nothing => break,
            Choice::Forced(_) => {}
            Choice::Among(allowed) => {
                if number > 0 {
                    waits.push(waited);
                }
                logits.iter_mut().for_each(|logit| *logit = random.random_range(0.0..4.0));
                allowed.mask(&mut logits, &job.end_tokens);
                let picked = sampler.pick(&mut logits).ok_or("nothing is allowed")?;
                if picked == END {
                    break;
                }
                guide.picked(picked);
            }
        }
    }
    Ok(waits)
}

/// A model directory whose tokenizer has 32,000 entries.
fn model(folder: &Path) -> BenchResult<std::path::PathBuf> {
    let (config, dir) = (folder.join("config.json"), folder.join("model"));
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": END, "eos_token_id": END,
    });
    fs::write(&config, llama.to_string())?;
    export::export(&Options::new(Source::Random { config, seed: 5 }, dir.clone()), &())?;
    fs::write(dir.join("tokenizer.json"), tokenizer().to_string())?;
    Ok(dir)
}

fn tokenizer() -> Value {
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let mut words: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    words.push("<|end|>".into());
    words.extend(pieces().map(|piece| piece.bytes().map(letter).collect()));
    let mut vocabulary = serde_json::Map::new();
    for word in words {
        let id = vocabulary.len();
        if id < VOCABULARY {
            vocabulary.entry(word).or_insert(json!(id));
        }
    }
    json!({
        "version": "1.0", "normalizer": null, "post_processor": null, "pre_tokenizer": level, "decoder": level,
        "added_tokens": [{
            "id": END, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "model": { "type": "BPE", "ignore_merges": true, "vocab": vocabulary, "merges": [] },
    })
}

/// A byte as byte-level BPE writes it: invisible ones map to U+0100 and above.
fn letter(byte: u8) -> char {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !is_visible(*byte)).count();
    u32::try_from(before).ok().and_then(|before| char::from_u32(256 + before)).unwrap_or('\u{100}')
}

/// Pieces of text as vocabularies have them, the usual ones first.
fn pieces() -> impl Iterator<Item = String> {
    let json = [
        "{\"", "\":", "\": \"", "\",", "\", \"", "\"}", "\"]", "},", "[{\"", "\":{\"", "null", "true",
        "false", "\\u", "\\n", "  ",
    ];
    let numbers = (10..1000).map(|number| number.to_string());
    let indian = ('\u{905}'..='\u{939}').chain('\u{B85}'..='\u{BB9}');
    let syllables = indian.flat_map(|letter| ["", "ा", "ி", "्"].map(|sign| format!("{letter}{sign}")));
    let syllables: Vec<String> = syllables.collect();
    let spaced = syllables.clone().into_iter().map(|syllable| format!(" {syllable}"));
    let starts = [
        "b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "w", "st", "tr", "pl", "ch",
        "th", "br", "cl", "dr", "fr", "gr",
    ];
    let vowels = ["a", "e", "i", "o", "u", "ea", "ou", "ai"];
    let ends = [
        "", "n", "r", "s", "t", "ng", "l", "m", "ck", "st", "rd", "ld", "ss", "ment", "ing", "er", "ly",
        "tion", "al", "ed",
    ];
    let latin = starts.into_iter().flat_map(move |start| {
        vowels
            .into_iter()
            .flat_map(move |vowel| ends.into_iter().map(move |end| format!("{start}{vowel}{end}")))
    });
    let latin: Vec<String> = latin.collect();
    let forms = latin.into_iter().flat_map(|word| {
        let mut capital = word.clone();
        capital[..1].make_ascii_uppercase();
        let (spaced, both, plural) = (format!(" {word}"), format!(" {capital}"), format!("{word}s"));
        let (past, quoted, dash) = (format!(" {word}y"), format!("\"{word}"), format!("-{word}"));
        [spaced, word, both, capital, plural, past, quoted, dash]
    });
    json.map(str::to_owned).into_iter().chain(numbers).chain(syllables).chain(spaced).chain(forms)
}
