//! Decode time after contexts of several lengths, measured in turns.
//!
//!   BENCH_MODEL=DIR [BENCH_KV_CACHE=float32|float16|int8] [BENCH_OWN_OPERATORS=false] cargo bench --bench contexts
//!
//! Each context is read once and kept; a round begins every one of them in turn and decodes a few tokens, so that a
//! machine that becomes busier does so for all of them. Without `BENCH_MODEL` a small model shows that it works.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use eka::{
    device::{Runtime, SessionOptions, affinity},
    device_spec::{CacheChoice, PackedFileChoice},
    engine::{Forward, Timeline, TimelineOptions},
    export::{self, Options, Source},
    job::CacheScope,
    model::Model,
    units::Bytes,
};
use serde_json::json;

const CONTEXTS: [usize; 5] = [0, 256, 512, 1024, 1536];

/// Tokens of a turn; the first is not counted, as it finds other things in the processor's caches.
const TURN: usize = 9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    eka::device::refuse_telemetry();
    // `cargo bench` passes --bench; a test run of the benches does not, and runs everything once.
    let rounds = if env::args().any(|argument| argument == "--bench") { 12 } else { 1 };
    let temporary = tempfile::tempdir()?;
    let dir = match env::var_os("BENCH_MODEL") {
        Some(dir) => PathBuf::from(dir),
        None => small(&temporary.path().join("model"))?,
    };
    let cache: CacheChoice = env::var("BENCH_KV_CACHE").unwrap_or_else(|_| "auto".into()).parse()?;
    let own_operators = env::var("BENCH_OWN_OPERATORS").map_or(Ok(true), |text| text.parse())?;
    let threads = affinity::physical_cores();
    let started = Instant::now();
    let model = Model::open(
        &Runtime::load(None)?,
        &dir,
        SessionOptions {
            threads,
            own_operators,
            captures: false,
            cache,
            packed_file: PackedFileChoice::Auto,
        },
    )?;
    let loaded = started.elapsed();
    let options = TimelineOptions { prefixes: Bytes(1 << 30), ..TimelineOptions::default() };
    let mut timeline = Timeline::new(model, options)?;
    timeline.warm_up()?;
    println!(
        "{}: {threads} threads, cache {cache}, own operators {own_operators}, {:.0} ms to load, {:.0} with warm-up",
        dir.display(),
        millis(loaded),
        millis(started.elapsed())
    );
    let mut taken = vec![Vec::new(); CONTEXTS.len()];
    for _ in 0..rounds {
        for (context, taken) in CONTEXTS.iter().zip(&mut taken) {
            taken.extend(turn(&mut timeline, *context)?);
        }
    }
    let min = |times: &[Duration]| quantile(times, 0.1);
    let (first, first_least) = (quantile(&taken[0], 0.5), min(&taken[0]));
    for (context, times) in CONTEXTS.iter().zip(&taken) {
        let (middle, low, high) = (quantile(times, 0.5), min(times), quantile(times, 0.9));
        println!(
            "context {context:>5}: {middle:.2} ms a token ({low:.2} to {high:.2}: 10 % to 90 %), {:.1} tokens/s, {:.2} of that \
             at context 0 ({:.2} by the fastest tenth)",
            1e3 / middle,
            first / middle,
            first_least / low
        );
    }
    Ok(())
}

/// Decodes a few tokens after `context`; what each took.
fn turn(timeline: &mut Timeline, context: usize) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let vocabulary = timeline.vocabulary();
    // One that no other context begins with.
    let token = |i: usize| u32::try_from((i * 7919 + context + 13) % vocabulary).unwrap_or(0);
    let prompt: Vec<u32> = (0..=context).map(token).collect();
    let known = timeline.begin(&prompt, prompt.len(), CacheScope::default());
    for chunk in prompt[known..].chunks(timeline.chunk()) {
        timeline.forward(chunk)?;
    }
    let mut taken = Vec::new();
    for _ in 0..TURN {
        let started = Instant::now();
        timeline.forward(&[13])?;
        taken.push(started.elapsed());
    }
    timeline.rewind(prompt.len());
    timeline.settle(true);
    Ok(taken.split_off(1))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// In milliseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a few hundred"
)]
fn quantile(times: &[Duration], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (share * (sorted.len().max(1) - 1) as f64).round() as usize;
    sorted.get(at).copied().map_or(f64::NAN, millis)
}

/// A model of random weights that takes no time.
fn small(dir: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let config = dir.with_extension("json");
    let sizes = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
    });
    fs::write(&config, sizes.to_string())?;
    export::export(&Options::new(Source::Random { config, seed: 1 }, dir.to_path_buf()), &())?;
    Ok(dir.to_path_buf())
}
