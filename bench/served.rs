//! Overhead of HTTP, queue and pipe: the same job through `eka serve` and in this process, in turns.
//!
//! `BENCH_MODEL=models/NAME cargo bench --bench served`; without it, the demo. A model of random weights has no
//! tokenizer: one of as many made-up words is put beside it for the time of the bench. Figures are medians of rounds,
//! and only their ratios and differences mean anything on a machine that does other things as well.

mod server;

use std::{
    env, fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use eka::{
    device::{
        Runtime, SessionOptions, affinity,
        scheduling::{SchedulingHint, set_scheduling_hint},
    },
    device_spec::{CacheChoice, PackedFileChoice},
    engine::{self, Speculation, Step, Timeline, TimelineOptions},
    job::{Job, JobId},
    manifest::Manifest,
    model::Model,
};
use serde_json::{Value, json};
use server::Server;

type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

/// One answer as its client sees it.
#[derive(Clone, Copy)]
struct Sight {
    /// From asking to the first token.
    first: Duration,
    /// From the first token to the last.
    rest: Duration,
    /// The prefill time that the engine reports.
    prefill: Duration,
}

fn main() -> BenchResult<()> {
    eka::device::refuse_telemetry();
    // `cargo bench` passes --bench; a test run of the benches does not, and runs everything once.
    let has = |wanted: &str| env::args().any(|argument| argument == wanted);
    let once = has("--test") || !has("--bench");
    let (rounds, prompt, steps) = if once { (1, 16, 8) } else { (9, 128, 64) };
    let (dir, _temporary) = model()?;
    let manifest = Manifest::read(&dir)?;
    let (prompt, steps) = fit(prompt, steps, manifest.context_length);
    let ids: Vec<u32> = (0..prompt)
        .map(|i| u32::try_from((i * 7919 + 13) % manifest.dims.vocab))
        .collect::<Result<_, _>>()?;
    let mut serve = Command::new(env!("CARGO_BIN_EXE_eka"));
    serve.args(["serve", "--port", "0", "--model-id", "bench", "--model"]).arg(&dir);
    let server = Server::start(&mut serve)?;
    let mut timeline = load(&dir)?;
    let (mut served, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        settle();
        alone.push(in_process(&mut timeline, &ids, steps)?);
        settle();
        served.push(ask(&server, &ids, steps)?);
    }
    report(&served, &alone, prompt, steps);
    Ok(())
}

/// Idle time between turns: threads that have just computed spin for a while and would disturb the other side.
fn settle() {
    std::thread::sleep(Duration::from_millis(500));
}

fn fit(prompt: usize, steps: usize, context: usize) -> (usize, usize) {
    let prompt = prompt.min(context / 2);
    (prompt, steps.min(context - prompt))
}

#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn report(served: &[Sight], alone: &[Sight], prompt: usize, steps: usize) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let added = median(served.iter().map(|s| ms(s.first) - ms(s.prefill)).collect());
    let ratio =
        median(served.iter().zip(alone).map(|(s, a)| s.rest.as_secs_f64() / a.rest.as_secs_f64()).collect());
    let speed =
        |sights: &[Sight]| median(sights.iter().map(|s| (steps - 1) as f64 / s.rest.as_secs_f64()).collect());
    println!("prompt {prompt}, answer {steps}, {} rounds in turns, medians", served.len());
    println!("  decode in this process    {:8.1} tokens per second", speed(alone));
    println!("  decode over HTTP          {:8.1} tokens per second", speed(served));
    println!("  HTTP adds to decode       {:8.2} %", (ratio - 1.0) * 100.0);
    println!("  HTTP adds to first token  {added:8.3} ms beyond the engine's prefill");
}

/// The model to measure, with a tokenizer; and the directory to delete afterwards.
fn model() -> BenchResult<(PathBuf, tempfile::TempDir)> {
    let temporary = tempfile::tempdir()?;
    let dir = temporary.path().join("model");
    match env::var_os("BENCH_MODEL") {
        Some(given) => borrow(Path::new(&given), &dir)?,
        None => export_demo(&dir)?,
    }
    if !dir.join("tokenizer.json").is_file() {
        fs::write(dir.join("tokenizer.json"), words(Manifest::read(&dir)?.dims.vocab).to_string())?;
    }
    Ok((dir, temporary))
}

/// A directory of links to another's files, to which some may be added.
fn borrow(given: &Path, dir: &Path) -> BenchResult<()> {
    fs::create_dir(dir)?;
    for entry in fs::read_dir(given)? {
        let entry = entry?;
        let target = dir.join(entry.file_name());
        // ONNX Runtime rejects weights that are links out of the model's directory; a second name of the file is none.
        if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn export_demo(dir: &Path) -> BenchResult<()> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let adapter = eka::export::AdapterSource { dir: demo.join("adapter"), weight: 1.0 };
    let source = eka::export::Source::Checkpoint { base: demo.join("base"), adapters: vec![adapter] };
    let options = eka::export::Options::new(source, dir.to_path_buf());
    eka::export::export(&options, &())?;
    Ok(())
}

/// A tokenizer of `n` words, each a token.
fn words(n: usize) -> Value {
    let vocabulary: serde_json::Map<_, _> = (0..n).map(|id| (format!("w{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    })
}

fn load(dir: &Path) -> BenchResult<Timeline> {
    let runtime = Runtime::load(None)?;
    let model = Model::open(
        &runtime,
        dir,
        SessionOptions {
            threads: affinity::physical_cores(),
            own_operators: true,
            captures: false,
            cache: CacheChoice::Auto,
            packed_file: PackedFileChoice::Auto,
        },
    )?;
    let mut timeline = Timeline::new(model, TimelineOptions::default())?;
    timeline.warm_up()?;
    Ok(timeline)
}

fn in_process(timeline: &mut Timeline, prompt: &[u32], max_new_tokens: usize) -> BenchResult<Sight> {
    let job = Job::new(JobId(0), prompt.to_vec(), max_new_tokens);
    let started = Instant::now();
    let mut first = None;
    let outcome = engine::generate(timeline, &job, None, &mut Speculation::new(), |step| {
        if matches!(step, Step::Token(_)) {
            first.get_or_insert_with(|| started.elapsed());
        }
        ControlFlow::Continue(())
    })?;
    let total = started.elapsed();
    let first = first.ok_or("no token came")?;
    Ok(Sight { first, rest: total - first, prefill: outcome.timings.prefill })
}

/// Asks `server`; what came when.
fn ask(server: &Server, prompt: &[u32], max_tokens: usize) -> BenchResult<Sight> {
    // A real client has another machine; this one must not compete with the server for cores.
    set_scheduling_hint(SchedulingHint::LowLatency);
    let sight = ask_in_a_hurry(server, prompt, max_tokens);
    set_scheduling_hint(SchedulingHint::Throughput);
    sight
}

fn ask_in_a_hurry(server: &Server, prompt: &[u32], max_tokens: usize) -> BenchResult<Sight> {
    let body = json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": true,
    });
    let started = Instant::now();
    let (mut first, mut last, mut prefill) = (None, started, None);
    for line in server.post("/v1/completions", &body)? {
        let line = line?;
        let Some(event) = line.strip_prefix("data: {").map(|rest| format!("{{{rest}")) else { continue };
        let event: Value = serde_json::from_str(&event)?;
        if let Some(ms) = event["timings"]["prefill_ms"].as_f64() {
            prefill = Some(Duration::from_secs_f64(ms / 1e3));
        } else if event["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
            last = Instant::now();
            first.get_or_insert(last);
        }
    }
    let first = first.ok_or("no text came")?;
    let prefill = prefill.ok_or("no timings came")?;
    Ok(Sight { first: first - started, rest: last - first, prefill })
}
