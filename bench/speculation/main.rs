//! Gain of speculative decoding where an answer repeats its prompt, and cost where nothing repeats.
//!
//! `BENCH_MODEL=models/NAME cargo bench --bench speculation`; without it, a small model of random weights. The texts are
//! `texts.json`: prompts and answers in the ids of Llama 2's vocabulary, which the model must have room for. Each
//! answer is the given text, whatever the model would generate: the time is that of real passes, on realistic text. With and
//! without drafts, in turns; compare ratios only, unless the machine is idle.
//!
//! Then the same with a draft model (`BENCH_DRAFT=models/NAME`; without it, a smaller one of random weights) that drafts the
//! given text with every n-th token wrong: any acceptance rate, at the cost of real passes.

use std::{env, fs, ops::ControlFlow, path::PathBuf};

use eka::{
    device::{Runtime, SessionOptions, affinity},
    device_spec::{CacheChoice, PackedFileChoice},
    engine::{self, EngineError, Forward, GenerationSummary, Speculation, Timeline, TimelineOptions},
    export::{self, Options, Source},
    job::{Job, JobId},
    model::Model,
};
use serde::Deserialize;
use serde_json::json;

mod draft;

/// As `engine.draft_tokens` has it.
const DRAFTS: usize = 15;

#[derive(Deserialize)]
struct Text {
    name: String,
    kind: String,
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// A model that generates the given text at the cost of real passes.
struct Told<'a> {
    timeline: &'a mut Timeline,
    sequence: Vec<u32>,
    fed: usize,
    rows: usize,
    passes: usize,
    /// Every n-th token is wrong; 0 for none.
    wrong: usize,
}

impl<'a> Told<'a> {
    fn new(timeline: &'a mut Timeline, text: &Text, rows: usize, wrong: usize) -> Self {
        let sequence = [&*text.prompt, &text.answer].concat();
        Self { timeline, sequence, fed: 0, rows, passes: 0, wrong }
    }
}

impl Forward for Told<'_> {
    fn rewind(&mut self, length: usize) {
        self.fed = length;
        self.timeline.rewind(length);
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        self.timeline.reserve(more)
    }

    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
        let vocabulary = self.vocabulary();
        self.fed += tokens.len();
        self.passes += 1;
        let first = self.fed + 1 - rows;
        let logits = self.timeline.forward_rows(tokens, rows)?;
        for (place, logits) in (first..self.sequence.len()).zip(logits.chunks_mut(vocabulary)) {
            let is_wrong = self.wrong > 0 && place.is_multiple_of(self.wrong);
            logits[(self.sequence[place] as usize + usize::from(is_wrong)) % vocabulary] = f32::MAX;
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
    // `cargo bench` passes --bench; a test run of the benches does not, and runs everything once.
    let rounds = if env::args().any(|argument| argument == "--bench") { 5 } else { 1 };
    let texts: Vec<Text> = serde_json::from_str(include_str!("texts.json"))?;
    let temporary = tempfile::tempdir()?;
    let dir = match env::var_os("BENCH_MODEL") {
        Some(dir) => PathBuf::from(dir),
        None => small(&temporary.path().join("model"), 2)?,
    };
    let session = SessionOptions {
        threads: affinity::physical_cores(),
        own_operators: true,
        captures: false,
        cache: CacheChoice::Auto,
        packed_file: PackedFileChoice::Auto,
    };
    let runtime = Runtime::load(None)?;
    let model = Model::open(&runtime, &dir, session)?;
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
            plain.push(speed(&run(&mut timeline, text, 1, &mut Speculation::new())?.0));
            let (outcome, _) = run(&mut timeline, text, DRAFTS + 1, &mut learned)?;
            accepted = format!("{} of {}", outcome.timings.drafted.accepted, outcome.timings.drafted.tokens);
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
    let dir = match env::var_os("BENCH_DRAFT") {
        Some(dir) => PathBuf::from(dir),
        None => small(&temporary.path().join("draft"), 1)?,
    };
    let mut draft = Timeline::new(Model::open(&runtime, &dir, session)?, TimelineOptions::default())?;
    draft.warm_up()?;
    println!("with {} as its draft model", dir.display());
    draft::measure((&mut timeline, &mut draft), &texts, rounds)
}

/// The result of a text, with the number of passes.
fn run<D: Forward>(
    timeline: &mut Timeline,
    text: &Text,
    rows: usize,
    speculation: &mut Speculation<D>,
) -> Result<(GenerationSummary, usize), Box<dyn std::error::Error>> {
    let job = Job::new(JobId(0), text.prompt.clone(), text.answer.len());
    let mut told = Told::new(timeline, text, rows, 0);
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
    Ok((outcome, told.passes))
}

#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn speed(outcome: &GenerationSummary) -> f64 {
    (outcome.usage.completion_tokens - 1) as f64 / outcome.timings.decode.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A model in which a pass is over in a moment.
fn small(dir: &std::path::Path, layers: usize) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let config = dir.with_extension("json");
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(&config, llama.to_string())?;
    export::export(&Options::new(Source::Random { config, seed: 5 }, dir.to_path_buf()), &())?;
    Ok(dir.to_path_buf())
}
