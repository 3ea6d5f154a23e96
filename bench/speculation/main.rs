//! What guessing gains where an answer repeats its prompt, and what it costs where nothing repeats.
//!
//! `BENCH_MODEL=models/NAME cargo bench --bench speculation`; without it, a small model of random weights. The texts are
//! `texts.json`: prompts and answers in the ids of Llama 2's vocabulary, which the model must have room for. Whatever the
//! model itself would say, each answer is what the text says: the time is that of real passes, and the text is one that
//! people ask for. With guesses and without, in turns; only ratios mean anything on a machine that does other things.

use std::{env, fs, ops::ControlFlow, path::PathBuf};

use eka::{
    choice::CacheChoice,
    device::{Runtime, SessionOptions, host},
    engine::{self, EngineError, Forward, Outcome, Speculation, Timeline, TimelineOptions},
    export::{self, Options, Source},
    job::{Job, JobId},
    model::Model,
};
use serde::Deserialize;
use serde_json::json;

/// As `engine.draft_tokens` has it.
const DRAFTS: usize = 15;

#[derive(Deserialize)]
struct Text {
    name: String,
    kind: String,
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// A model that says what it is told, at the price of what it would have said.
struct Told<'a> {
    timeline: &'a mut Timeline,
    sequence: Vec<u32>,
    fed: usize,
    rows: usize,
}

impl Forward for Told<'_> {
    fn rewind(&mut self, length: usize) {
        self.fed = length;
        self.timeline.rewind(length);
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        self.timeline.reserve(more)
    }

    fn forward(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.forward_rows(tokens, 1)
    }

    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
        let vocabulary = self.vocabulary();
        self.fed += tokens.len();
        let said = &self.sequence[self.fed + 1 - rows..];
        let logits = self.timeline.forward_rows(tokens, rows)?;
        for (logits, token) in logits.chunks_mut(vocabulary).zip(said) {
            logits[*token as usize] = f32::MAX;
        }
        Ok(logits)
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn chunk(&self) -> usize {
        self.timeline.chunk()
    }

    fn capacity(&self) -> usize {
        self.timeline.capacity()
    }

    fn vocabulary(&self) -> usize {
        self.timeline.vocabulary()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    eka::device::refuse_telemetry();
    // `cargo bench` says --bench; a test run of the benches does not, and runs everything once.
    let rounds = if env::args().any(|argument| argument == "--bench") { 5 } else { 1 };
    let texts: Vec<Text> = serde_json::from_str(include_str!("texts.json"))?;
    let temporary = tempfile::tempdir()?;
    let dir = match env::var_os("BENCH_MODEL") {
        Some(dir) => PathBuf::from(dir),
        None => small(&temporary.path().join("model"))?,
    };
    let session = SessionOptions {
        threads: host::physical_cores(),
        own_operators: true,
        captures: false,
        cache: CacheChoice::Auto,
    };
    let model = Model::open(&Runtime::load(None)?, &dir, session)?;
    let vocabulary = model.manifest().dims.vocab;
    if vocabulary < 32_000 {
        return Err(format!("{} has {vocabulary} tokens; the texts need 32000", dir.display()).into());
    }
    let options = TimelineOptions { drafts: DRAFTS, ..TimelineOptions::default() };
    let mut timeline = Timeline::new(model, options)?;
    timeline.warm_up()?;
    println!("{}: tokens per second without and with guesses, medians; ratios by round", dir.display());
    let mut learned = Speculation::new();
    for text in &texts {
        let (mut plain, mut guessing, mut accepted) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..rounds {
            plain.push(speed(&run(&mut timeline, text, 1, &mut Speculation::new())?));
            let outcome = run(&mut timeline, text, DRAFTS + 1, &mut learned)?;
            accepted = format!("{} of {}", outcome.timings.drafted.right, outcome.timings.drafted.tokens);
            guessing.push(speed(&outcome));
        }
        let ratios: Vec<String> =
            guessing.iter().zip(&plain).map(|(with, without)| format!("{:.2}", with / without)).collect();
        println!(
            "{:<22} {:<6} {:>6.1} {:>6.1}  ratios {}  guessed right {accepted}, {} said",
            text.name,
            text.kind,
            median(plain),
            median(guessing),
            ratios.join(" "),
            text.answer.len()
        );
    }
    Ok(())
}

fn run(
    timeline: &mut Timeline,
    text: &Text,
    rows: usize,
    speculation: &mut Speculation,
) -> Result<Outcome, Box<dyn std::error::Error>> {
    let job = Job::new(JobId(0), text.prompt.clone(), text.answer.len());
    let sequence = [&*text.prompt, &text.answer].concat();
    let mut told = Told { timeline, sequence, fed: 0, rows };
    let mut said = Vec::new();
    let outcome = engine::generate(&mut told, &job, None, speculation, |step| {
        if let engine::Step::Token(token) = step {
            said.push(token);
        }
        ControlFlow::Continue(())
    })?;
    if said != text.answer {
        return Err(format!("{}: something else was said", text.name).into());
    }
    Ok(outcome)
}

#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn speed(outcome: &Outcome) -> f64 {
    (outcome.usage.completion_tokens - 1) as f64 / outcome.timings.decode.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A model in which a pass is over in a moment.
fn small(dir: &std::path::Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let config = dir.with_extension("json");
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(&config, llama.to_string())?;
    export::export(&Options::new(Source::Random { config, seed: 5 }, dir.to_path_buf()), &())?;
    Ok(dir.to_path_buf())
}
