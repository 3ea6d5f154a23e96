//! `eka bench`: tokens per second of the engine, without queue, pipe or HTTP; with `--url`, a load test of a server (`load`).
//!
//! Every round measures every length once, so a machine that becomes slower during the run shows up as spread. With `--bare`
//! each decode is followed by the same steps in a bare loop, which only calls ONNX Runtime over the same binding; the ratio is
//! the overhead of the engine.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use serde::Serialize;

use super::{
    bench_adapters::AdapterRounds,
    engine_args::EngineArgs,
    exit::{Exit, WithExit},
    load,
    output::{self, OutputFlags},
};
use crate::{
    device::Pool,
    engine::{self, Forward, SequenceEvent, Speculation, Timeline},
    job::{DeviceMemory, DevicePeak, Job, JobId},
    loadgen::{LengthCost, lengths_svg},
    units::Bytes,
    wire::{self, FromWorker},
    worker,
};

/// Measure a model's prefill and decode speed, or a server under load
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model directory written by `eka export`
    #[arg(value_name = "MODEL_DIR", required_unless_present_any = ["url", "compare"], conflicts_with_all = load::FLAGS)]
    model: Option<PathBuf>,

    /// Prompt lengths
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128,512")]
    prompt: Vec<usize>,

    /// Numbers of sequences to compute together, each with a prompt of its own
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    sequences: Vec<usize>,

    /// Tokens to generate after each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    generate: usize,

    /// Number of measurements per length
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Also run the same decode steps as a bare loop, and print the ratio
    #[arg(long)]
    bare: bool,

    /// Also load the first N adapters of the model, and measure with and without them in turns
    #[arg(long, value_name = "N")]
    adapters: Option<usize>,

    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    load: load::LoadArgs,
}

/// Size of a copy that measures memory bandwidth: larger than any cache, small enough to be available.
const COPIED: Bytes = Bytes::mib(256);
const COPIES: u32 = 20;

/// Most sequences of a pass, as of `engine.max_sequences`.
const MAX_SEQUENCES: usize = 128;

/// All measurements.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    /// Nodes of the graph by execution provider.
    nodes: BTreeMap<String, usize>,
    threads: usize,
    /// Threads for single-token passes, if measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_threads: Option<usize>,
    /// Threads for longer passes, if measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_threads: Option<usize>,
    load_seconds: f64,
    /// Bytes of weights that every step reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_bytes_per_step: Option<u64>,
    /// Bandwidth of the device's memory, if it has a pool: bytes read and written by copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes_per_second: Option<f64>,
    /// Device memory, if it has a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    results: Vec<Lengths>,
    /// Only with `--adapters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapters: Option<Adapters>,
}

/// Measurements with adapters beside the model.
#[derive(Debug, Serialize)]
struct Adapters {
    loaded: usize,
    /// Their size in memory.
    bytes: u64,
    load_seconds: Spread,
    /// From one adapter to another that is loaded.
    switch_seconds: Spread,
    /// Speed with an adapter, as a share of that without.
    prefill_over_base: Spread,
    decode_over_base: Spread,
}

impl From<AdapterRounds> for Adapters {
    fn from(rounds: AdapterRounds) -> Self {
        Self {
            loaded: rounds.count(),
            bytes: rounds.bytes().0,
            load_seconds: Spread::of(rounds.load),
            switch_seconds: Spread::of(rounds.switch),
            prefill_over_base: Spread::of(rounds.prefill),
            decode_over_base: Spread::of(rounds.decode),
        }
    }
}

/// Memory of a pool, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    /// With the model loaded and idle.
    before: DeviceMemory,
    /// Peak in use, and peak reserved from the device, during the measurement.
    peak_used: Bytes,
    peak_reserved: Bytes,
    /// At the end, after a trim.
    after: DeviceMemory,
    /// Duration of that trim.
    trim_seconds: f64,
}

/// Measurements of one prompt length and number of sequences.
#[derive(Debug, Serialize)]
struct Lengths {
    prompt_tokens: usize,
    generated_tokens: usize,
    /// Sequences that were computed together.
    sequences: usize,
    /// Of all sequences together, as the next.
    prefill_tokens_per_second: Spread,
    decode_tokens_per_second: Spread,
    /// Share of the memory bandwidth that reading the weights uses, at the median speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_share_of_bandwidth: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bare_decode_tokens_per_second: Option<Spread>,
    /// Ratio of the engine's decode speed to the bare loop's, per round.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_over_bare: Option<Spread>,
}

/// Median and range of several measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Needs at least one value.
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let median = f64::midpoint(middle((values.len().max(1) - 1) / 2), middle(values.len() / 2));
        Self { median, min: middle(0), max: middle(values.len().max(1) - 1) }
    }
}

/// What is measured.
#[derive(Clone, Copy)]
struct Case {
    prompt: usize,
    sequences: usize,
}

/// One round of one case.
struct Round {
    prefill: Duration,
    decode: Duration,
    bare: Option<Duration>,
}

/// Measures and prints.
///
/// # Errors
/// When the model cannot be loaded or run, or the lengths do not fit it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.load.is_wanted() {
        return load::run(&args.load, args.output);
    }
    let model = args.model.as_deref().context("no model directory; pass MODEL_DIR or --url")?;
    let started = Instant::now();
    let device = args.engine.device()?;
    let mut timeline = args.engine.open_on(&device, model)?;
    let load_seconds = started.elapsed().as_secs_f64();
    check(args, &timeline).with_exit(Exit::Usage)?;
    let before = device.pool().map(|pool| idle(pool, &mut timeline));
    let mut cases: Vec<(Case, Vec<Round>)> = Vec::new();
    for &prompt in &args.prompt {
        cases.extend(args.sequences.iter().map(|&sequences| (Case { prompt, sequences }, Vec::new())));
    }
    for _ in 0..args.rounds {
        for (case, rounds) in &mut cases {
            rounds.push(round(&mut timeline, *case, args)?);
        }
    }
    let adapters =
        args.adapters.map(|count| with_adapters(&mut timeline, (model, count), args)).transpose()?;
    let memory = device.pool().zip(before).map(|(pool, (before, _))| {
        let DevicePeak { used: peak_used, reserved: peak_reserved } = worker::device_peak(pool);
        let (after, trim) = idle(pool, &mut timeline);
        Memory { before, peak_used, peak_reserved, after, trim_seconds: trim.as_secs_f64() }
    });
    let weights = timeline.model().weights_read(model);
    let bandwidth = device.pool().map(|pool| pool.bandwidth(COPIED, COPIES)).transpose()?;
    #[expect(clippy::cast_precision_loss, reason = "sizes of weights are far below 2^52")]
    let max = bandwidth.zip(weights).map(|(bandwidth, weights)| bandwidth / weights.0 as f64);
    let results = cases.iter().map(|(case, rounds)| {
        let mut lengths = summarize(*case, args.generate, rounds);
        // A pass reads the weights once for all sequences.
        let passes = lengths.decode_tokens_per_second.median / count(case.sequences);
        lengths.decode_share_of_bandwidth = max.map(|max| passes / max);
        lengths
    });
    let learned = timeline.model().session().threads();
    let report = Report {
        model: model.display().to_string(),
        device: device.to_string(),
        nodes: nodes(&timeline)?,
        threads: args.engine.threads(),
        decode_threads: learned.map(|threads| threads.decode),
        prefill_threads: learned.map(|threads| threads.prefill),
        load_seconds,
        weight_bytes_per_step: weights.map(|weights| weights.0),
        memory_bytes_per_second: bandwidth,
        memory,
        results: results.collect(),
        adapters,
    };
    if args.output.json {
        output::document(&report)?;
    } else {
        output::result(|out| print(out, &report))?;
    }
    args.load.plot.iter().try_for_each(|file| draw(file, &report.results))
}

/// Draws speed over length.
#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn draw(file: &Path, results: &[Lengths]) -> anyhow::Result<()> {
    let costs: Vec<_> = results
        .iter()
        .map(|lengths| {
            let Spread { median, min, max } = lengths.prefill_tokens_per_second;
            let ttft_ms = [max, median, min].map(|speed| lengths.prompt_tokens as f64 / speed * 1e3);
            let Spread { median, min, max } = lengths.decode_tokens_per_second;
            LengthCost { tokens: lengths.prompt_tokens, ttft_ms, decode: [min, median, max] }
        })
        .collect();
    load::write(file, &lengths_svg(&costs).map_err(|why| anyhow!("--plot: {why}"))?)
}

/// Trims the memory as the server does between requests and resets the peaks. Returns the memory in use and the duration.
fn idle(pool: &Pool, timeline: &mut Timeline) -> (DeviceMemory, Duration) {
    timeline.clear_to(Bytes(0));
    let started = Instant::now();
    timeline.trim(Bytes(0));
    let took = started.elapsed();
    pool.reset_peaks();
    (worker::device_memory(pool), took)
}

fn nodes(timeline: &Timeline) -> anyhow::Result<BTreeMap<String, usize>> {
    let placement = timeline.model().session().placement()?;
    Ok(placement.into_iter().map(|(provider, operators)| (provider, operators.values().sum())).collect())
}

fn check(args: &Args, timeline: &Timeline) -> anyhow::Result<()> {
    let capacity = timeline.capacity();
    let is_in_range = |sequences: &usize| (1..=MAX_SEQUENCES).contains(sequences);
    ensure!(args.sequences.iter().all(is_in_range), "--sequences takes numbers from 1 to {MAX_SEQUENCES}");
    ensure!(
        timeline.takes_sequences() || args.sequences.iter().all(|sequences| *sequences == 1),
        "this model runs sequences one after another here; leave --sequences out"
    );
    ensure!(args.rounds > 0, "--rounds is 0; use 1 or more");
    ensure!(
        args.generate > 1,
        "--generate is {}, but the first token belongs to the prefill; use 2 or more",
        args.generate
    );
    for prompt in &args.prompt {
        ensure!(
            *prompt > 0 && prompt + args.generate <= capacity,
            "a prompt of {prompt} tokens and {} generated tokens exceed the context length of {capacity}",
            args.generate
        );
    }
    Ok(())
}

fn round(timeline: &mut Timeline, case: Case, args: &Args) -> anyhow::Result<Round> {
    let vocabulary = timeline.vocabulary();
    if case.sequences > 1 {
        return together(timeline, case, args);
    }
    let job = job(case.prompt, args.generate, vocabulary);
    let mut pipe = io::sink();
    let outcome =
        engine::generate(timeline, &job, None, &mut Speculation::new(), |step| {
            match wire::write(&FromWorker::Step { job: job.id, step }, &mut pipe) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
    let bare = args.bare.then(|| bare(timeline, &job.prompt, args.generate - 1)).transpose()?;
    Ok(Round { prefill: outcome.timings.prefill, decode: outcome.timings.decode, bare })
}

/// Measures every case without and with adapters, in turns.
fn with_adapters(
    timeline: &mut Timeline,
    (model, count): (&Path, usize),
    args: &Args,
) -> anyhow::Result<Adapters> {
    let mut rounds = AdapterRounds::load(timeline, model, count)?;
    for _ in 0..args.rounds {
        for &prompt in &args.prompt {
            rounds.round(timeline, |timeline| {
                let Round { prefill, decode, .. } = round(timeline, Case { prompt, sequences: 1 }, args)?;
                Ok([prefill, decode])
            })?;
        }
    }
    Ok(rounds.into())
}

/// A round with several sequences, whose prompts begin with different tokens.
fn together(timeline: &mut Timeline, case: Case, args: &Args) -> anyhow::Result<Round> {
    let vocabulary = timeline.vocabulary();
    let mut jobs: Vec<Job> =
        (0..case.sequences).map(|_| job(case.prompt, args.generate, vocabulary)).collect();
    for (number, job) in jobs.iter_mut().enumerate() {
        job.prompt.rotate_left(number % case.prompt);
        job.prompt[0] = u32::try_from(number % vocabulary)?;
    }
    let mut round = Round { prefill: Duration::ZERO, decode: Duration::ZERO, bare: None };
    let mut pipe = io::sink();
    engine::generate_together(
        timeline,
        jobs.iter().map(|job| (job, Ok(None))).collect(),
        |number, event| {
            match event {
                SequenceEvent::Step(step) => {
                    let written = wire::write(&FromWorker::Step { job: jobs[number].id, step }, &mut pipe);
                    return if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
                }
                SequenceEvent::Ended(Ok(summary)) => {
                    round.prefill += summary.timings.prefill;
                    round.decode += summary.timings.decode;
                }
                SequenceEvent::Ended(Err(_)) => {}
            }
            ControlFlow::Continue(())
        },
    )?;
    timeline.settle(false);
    Ok(round)
}

/// A job with a prompt without repetitions and without end tokens.
fn job(prompt: usize, max_new_tokens: usize, vocabulary: usize) -> Job {
    let id = |i: usize| u32::try_from((i * 7919 + 13) % vocabulary).unwrap_or(0);
    Job::new(JobId(0), (0..prompt).map(id).collect(), max_new_tokens)
}

/// The same steps at the same positions in a bare loop. The prompt is read again first, so that the processor's caches have
/// the same content as in the engine's run.
fn bare(timeline: &mut Timeline, prompt: &[u32], steps: usize) -> anyhow::Result<Duration> {
    timeline.rewind(0);
    for chunk in prompt.chunks(timeline.chunk()) {
        timeline.forward(chunk)?;
    }
    let started = Instant::now();
    for _ in 0..steps {
        timeline.forward(&[13])?;
    }
    Ok(started.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn count(n: usize) -> f64 {
    n as f64
}

fn summarize(Case { prompt, sequences }: Case, generated: usize, rounds: &[Round]) -> Lengths {
    let steps = (generated - 1) * sequences;
    let speed = |tokens: usize, time: Duration| count(tokens) / time.as_secs_f64();
    let bare = |round: &Round| round.bare.map(|time| speed(steps, time));
    let all_bare: Vec<_> = rounds.iter().filter_map(bare).collect();
    let ratios = rounds.iter().filter_map(|r| Some(speed(steps, r.decode) / bare(r)?));
    let measured_bare = !all_bare.is_empty();
    Lengths {
        prompt_tokens: prompt,
        generated_tokens: generated,
        sequences,
        prefill_tokens_per_second: Spread::of(rounds.iter().map(|r| speed(prompt * sequences, r.prefill))),
        decode_tokens_per_second: Spread::of(rounds.iter().map(|r| speed(steps, r.decode))),
        decode_share_of_bandwidth: None,
        decode_over_bare: measured_bare.then(|| Spread::of(ratios)),
        bare_decode_tokens_per_second: measured_bare.then(|| Spread::of(all_bare)),
    }
}

fn print(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let Report { model, device, threads, load_seconds, .. } = report;
    let fewer = match (report.decode_threads, report.prefill_threads) {
        (Some(decode), Some(prefill)) if decode.min(prefill) < *threads => {
            format!(" ({decode} of them for decode, {prefill} for prefill)")
        }
        _ => String::new(),
    };
    writeln!(out, "{model} on {device}, {threads} threads{fewer}, loaded in {load_seconds:.2} s")?;
    if let (Some(bandwidth), Some(weights)) = (report.memory_bytes_per_second, report.weight_bytes_per_step) {
        let weights = Bytes(weights);
        writeln!(out, "memory bandwidth {:.0} GB/s; a step reads {weights} of weights", bandwidth / 1e9)?;
    }
    if let Some(Memory { before, peak_used, peak_reserved, after, trim_seconds }) = report.memory {
        writeln!(
            out,
            "memory in use, reserved: {}, {} before; {}, {} peak; {}, {} after a trim of {:.2} ms",
            before.used,
            before.reserved,
            peak_used,
            peak_reserved,
            after.used,
            after.reserved,
            trim_seconds * 1e3
        )?;
        if let (Some(first), Some(last), Some(other)) = (before.free, after.free, after.other) {
            writeln!(
                out,
                "free on the device: {} before, {} after; used outside the pool: {}",
                first, last, other
            )?;
        }
    }
    writeln!(out, "tokens per second: median (min to max)")?;
    let several = report.results.iter().any(|lengths| lengths.sequences > 1);
    let column = |text: &str| if several { format!("{text:>9}  ") } else { String::new() };
    let head = column("sequences");
    writeln!(out, "{head}{:>8} {:>9}  {:>26}  {:>26}", "prompt", "generated", "prefill", "decode")?;
    for r in &report.results {
        let (prefill, decode) = (text(r.prefill_tokens_per_second, 1), text(r.decode_tokens_per_second, 1));
        let sequences = column(&r.sequences.to_string());
        write!(
            out,
            "{sequences}{:>8} {:>9}  {prefill:>26}  {decode:>26}",
            r.prompt_tokens, r.generated_tokens
        )?;
        if let (Some(bare), Some(ratio)) = (r.bare_decode_tokens_per_second, r.decode_over_bare) {
            write!(out, "  bare {}, ratio {}", text(bare, 1), text(ratio, 3))?;
        }
        if let Some(share) = r.decode_share_of_bandwidth {
            write!(out, "  {:.0} % of bandwidth", share * 100.0)?;
        }
        writeln!(out)?;
    }
    report.adapters.iter().try_for_each(|adapters| print_adapters(out, adapters))
}

fn print_adapters(out: &mut dyn Write, adapters: &Adapters) -> io::Result<()> {
    let milliseconds = |Spread { median, min, max }| {
        text(Spread { median: median * 1e3, min: min * 1e3, max: max * 1e3 }, 2)
    };
    let (load, switch) = (milliseconds(adapters.load_seconds), milliseconds(adapters.switch_seconds));
    writeln!(
        out,
        "{} adapters in {}: loaded in {load} ms each, switched in {switch} ms",
        adapters.loaded,
        Bytes(adapters.bytes)
    )?;
    let (prefill, decode) = (text(adapters.prefill_over_base, 3), text(adapters.decode_over_base, 3));
    writeln!(out, "speed with an adapter over that without: prefill {prefill}, decode {decode}")
}

fn text(spread: Spread, digits: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([3.0]), Spread { median: 3.0, min: 3.0, max: 3.0 });
    }

    #[test]
    fn the_prompts_ids_are_in_the_vocabulary() {
        assert!(job(2000, 2, 320).prompt.iter().all(|id| *id < 320));
    }
}
