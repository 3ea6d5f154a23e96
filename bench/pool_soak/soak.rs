//! Requests of all lengths, one after the other, over one pool, with the memory held after each.

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use eka::{
    device::{Pool, SessionOptions, affinity, process_memory},
    device_spec::{CacheChoice, PackedFileChoice},
    engine::{self, Forward, Speculation, Timeline, TimelineOptions},
    export::{self, Options, Source},
    job::{Job, JobId},
    model::Model,
    units::Bytes,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use serde_json::json;

pub(crate) type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Context length of the model with random weights.
const CONTEXT: usize = 2048;
/// Longest prompt.
pub(crate) const MAX_PROMPT: usize = 1900;
/// Longest answer.
const MAX_ANSWER: usize = 40;

/// The options of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoakOptions {
    pub(crate) requests: usize,
    /// Same seed, same requests.
    pub(crate) seed: u64,
    /// Bytes that the cache may keep.
    pub(crate) kv_keep: Bytes,
    /// Whether steps are captured, where the pool is a GPU's.
    pub(crate) captures: bool,
}

/// The results of a run; in bytes unless stated otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) requests: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) answer_tokens: usize,
    pub(crate) weights: u64,
    pub(crate) kv_keep: u64,
    /// Maximum held after a trim, and how often that exceeded the weights and `kv_keep`.
    pub(crate) max_after_trim: u64,
    pub(crate) times_above: usize,
    /// Number of requests after which the cache was kept.
    pub(crate) times_kept: usize,
    /// Maximum held during a request, and maximum in use during and after a request.
    pub(crate) peak: u64,
    pub(crate) max_in_use: u64,
    pub(crate) in_use_after: u64,
    pub(crate) allocations: u64,
    pub(crate) spills: u64,
    pub(crate) writes_after_free: u64,
    pub(crate) trim_median_us: u64,
    pub(crate) trim_p99_us: u64,
    pub(crate) trim_max_us: u64,
    /// Bytes in use and held by the pool after model and cache are dropped.
    pub(crate) in_use_at_end: u64,
    pub(crate) held_at_end: u64,
    /// Minimum anonymous memory of the process between requests, in their second tenth and in their last tenth.
    pub(crate) anonymous_early: u64,
    pub(crate) anonymous_late: u64,
    /// Minimum and maximum free memory of the device after a trim, without the first tenth of the requests; `None` if unknown.
    pub(crate) min_free: Option<u64>,
    pub(crate) max_free: Option<u64>,
}

impl Report {
    /// Problems found; empty if there are none.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let bars = [
            (self.times_above == 0, "after a trim, the pool held more than the weights and kv_keep"),
            (self.in_use_at_end == 0 && self.held_at_end == 0, "the pool is not empty at the end"),
            (self.spills == 0, "blocks were spilled"),
            (self.writes_after_free == 0, "freed blocks were written to"),
            (self.max_in_use > self.in_use_after, "no request used more memory than remains after it"),
        ];
        bars.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what.to_owned()).collect()
    }
}

/// Writes a small model with random weights to `dir`, which must not exist.
pub(crate) fn model(dir: &Path, options: impl FnOnce(Options) -> Options) -> BenchResult<()> {
    let config = dir.with_extension("json");
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 1024, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(&config, llama.to_string())?;
    export::export(&options(Options::new(Source::Random { config, seed: 5 }, dir.to_path_buf())), &())?;
    Ok(())
}

/// A prompt of `length` tokens.
pub(crate) fn prompt(random: &mut StdRng, length: usize) -> Vec<u32> {
    (0..length).map(|_| random.random_range(3..1024)).collect()
}

/// Runs all requests and reads the final accounting.
pub(crate) fn run(pool: &Pool, dir: &Path, options: SoakOptions) -> BenchResult<Report> {
    let mut report = Report { requests: options.requests, kv_keep: options.kv_keep.0, ..Report::default() };
    let mut timeline = open(pool, dir, options)?;
    timeline.clear_to(Bytes(0));
    timeline.trim(Bytes(0));
    // As the device counts them, which allocates larger pieces.
    report.weights = pool.stats().reserved.0;
    let mut random = StdRng::seed_from_u64(options.seed);
    let (mut trims, mut anonymous) = (Vec::new(), Vec::new());
    for number in 0..options.requests {
        pool.reset_peaks();
        request(&mut timeline, &mut random, number as u64, &mut report)?;
        let during = pool.stats();
        report.peak = report.peak.max(during.reserved_peak.0);
        report.max_in_use = report.max_in_use.max(during.in_use_peak.0);
        let began = Instant::now();
        timeline.trim(Bytes(0));
        trims.push(began.elapsed());
        let after = pool.stats();
        report.times_above += usize::from(after.reserved.0 > report.weights + options.kv_keep.0);
        report.times_kept += usize::from(after.reserved.0 > report.weights);
        if number >= options.requests / 10
            && let Some(Bytes(free)) = after.device_free
        {
            report.min_free = Some(report.min_free.map_or(free, |min| min.min(free)));
            report.max_free = Some(report.max_free.map_or(free, |max| max.max(free)));
        }
        report.max_after_trim = report.max_after_trim.max(after.reserved.0);
        report.in_use_after = report.in_use_after.max(after.in_use().0);
        anonymous.push(process_memory::memory().anonymous.unwrap_or_default().0);
    }
    drop(timeline);
    pool.trim(Bytes(0));
    let closed = pool.stats();
    (report.in_use_at_end, report.held_at_end) = (closed.in_use().0, closed.reserved.0);
    (report.allocations, report.spills) = (closed.allocations, closed.spills);
    report.writes_after_free = closed.writes_after_free;
    report.note_trims(trims);
    report.note_anonymous(&anonymous);
    Ok(report)
}

fn open(pool: &Pool, dir: &Path, options: SoakOptions) -> BenchResult<Timeline> {
    let SoakOptions { kv_keep: keep, captures, .. } = options;
    let session = SessionOptions {
        threads: affinity::physical_cores(),
        own_operators: true,
        captures,
        cache: CacheChoice::Auto,
        packed_file: PackedFileChoice::Auto,
    };
    let model = Model::open_in(pool, dir, session)?;
    let mut timeline = Timeline::new(model, TimelineOptions { keep, ..TimelineOptions::default() })?;
    timeline.warm_up()?;
    Ok(timeline)
}

/// Runs a request as a worker does, and then clears the cache.
fn request(timeline: &mut Timeline, random: &mut StdRng, id: u64, report: &mut Report) -> BenchResult<()> {
    let length = random.random_range(1..=MAX_PROMPT);
    let answer = random.random_range(1..=MAX_ANSWER).min(timeline.capacity() - length);
    let job = Job::new(JobId(id), prompt(random, length), answer);
    let done =
        engine::generate(timeline, &job, None, &mut Speculation::new(), |_| ControlFlow::Continue(()))?;
    timeline.clear();
    report.prompt_tokens += done.usage.prompt_tokens;
    report.answer_tokens += done.usage.completion_tokens;
    Ok(())
}

impl Report {
    fn note_trims(&mut self, mut trims: Vec<Duration>) {
        trims.sort_unstable();
        let at = |part: usize| {
            let trim = trims.get((trims.len() * part / 100).min(trims.len().saturating_sub(1)));
            trim.map_or(0, |trim| u64::try_from(trim.as_micros()).unwrap_or(u64::MAX))
        };
        [self.trim_median_us, self.trim_p99_us, self.trim_max_us] = [at(50), at(99), at(100)];
    }

    fn note_anonymous(&mut self, anonymous: &[u64]) {
        let tenth = anonymous.len().div_ceil(10);
        let min = |part: &[u64]| part.iter().min().copied().unwrap_or_default();
        self.anonymous_early = min(&anonymous[tenth.min(anonymous.len() / 2)..][..tenth]);
        self.anonymous_late = min(&anonymous[anonymous.len() - tenth..]);
    }
}
