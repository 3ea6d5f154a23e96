//! Requests of all lengths, one after the other, over one pool, with the memory held after each.

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use eka::{
    device::{Pool, SessionOptions, affinity, process_memory},
    device_spec::CacheChoice,
    engine::{self, Forward, Speculation, Timeline, TimelineOptions},
    export::{self, Options, Source},
    job::{Job, JobId},
    model::Model,
    units::Bytes,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use serde_json::json;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Positions of the made-up model.
const CONTEXT: usize = 2048;
/// Longest prompt.
pub(crate) const MAX_PROMPT: usize = 1900;
/// Longest answer.
const MAX_ANSWER: usize = 40;

/// The options of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
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
    /// Most that was held after a trim, and how often that was more than weights and what may be kept.
    pub(crate) most_after_trim: u64,
    pub(crate) times_above: usize,
    /// After how many requests the cache stayed.
    pub(crate) times_kept: usize,
    /// Most that was held in a request, and most that was in use in one and after one.
    pub(crate) peak: u64,
    pub(crate) most_in_use: u64,
    pub(crate) in_use_after: u64,
    pub(crate) allocations: u64,
    pub(crate) spills: u64,
    pub(crate) writes_after_free: u64,
    pub(crate) trim_median_us: u64,
    pub(crate) trim_p99_us: u64,
    pub(crate) trim_most_us: u64,
    /// Bytes in use and held by the pool after model and cache are dropped.
    pub(crate) books_out: u64,
    pub(crate) books_held: u64,
    /// The least anonymous memory that the system saw between requests, in the second tenth of them and in the last.
    pub(crate) anonymous_early: u64,
    pub(crate) anonymous_late: u64,
    /// What the device had free after a trim, at least and at most, the first tenth of the requests left out; `None` where
    /// it does not say.
    pub(crate) free_least: Option<u64>,
    pub(crate) free_most: Option<u64>,
}

impl Report {
    /// Problems found; empty if there are none.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let bars = [
            (self.times_above == 0, "more than weights and what is kept was held after a trim"),
            (self.books_out == 0 && self.books_held == 0, "the pool's books are not empty at the end"),
            (self.spills == 0, "blocks were spilled"),
            (self.writes_after_free == 0, "freed blocks were written to"),
            (self.most_in_use > self.in_use_after, "no request took more than stays"),
        ];
        bars.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what.to_owned()).collect()
    }
}

/// Writes a small model of random weights to `dir`, which must not be there.
pub(crate) fn model(dir: &Path, options: impl FnOnce(Options) -> Options) -> Outcome<()> {
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
pub(crate) fn run(pool: &Pool, dir: &Path, asked: Asked) -> Outcome<Report> {
    let mut report = Report { requests: asked.requests, kv_keep: asked.kv_keep.0, ..Report::default() };
    let mut timeline = open(pool, dir, asked)?;
    timeline.clear_to(Bytes(0));
    timeline.trim(Bytes(0));
    // As the device counts them, which gives memory out in larger pieces.
    report.weights = pool.stats().reserved.0;
    let mut random = StdRng::seed_from_u64(asked.seed);
    let (mut trims, mut anonymous) = (Vec::new(), Vec::new());
    for number in 0..asked.requests {
        pool.reset_peaks();
        request(&mut timeline, &mut random, number as u64, &mut report)?;
        let in_it = pool.stats();
        report.peak = report.peak.max(in_it.reserved_peak.0);
        report.most_in_use = report.most_in_use.max(in_it.in_use_peak.0);
        let began = Instant::now();
        timeline.trim(Bytes(0));
        trims.push(began.elapsed());
        let after = pool.stats();
        report.times_above += usize::from(after.reserved.0 > report.weights + asked.kv_keep.0);
        report.times_kept += usize::from(after.reserved.0 > report.weights);
        if number >= asked.requests / 10
            && let Some(Bytes(free)) = after.device_free
        {
            report.free_least = Some(report.free_least.map_or(free, |min| min.min(free)));
            report.free_most = Some(report.free_most.map_or(free, |max| max.max(free)));
        }
        report.most_after_trim = report.most_after_trim.max(after.reserved.0);
        report.in_use_after = report.in_use_after.max(after.in_use().0);
        anonymous.push(process_memory::memory().anonymous.unwrap_or_default().0);
    }
    drop(timeline);
    pool.trim(Bytes(0));
    let closed = pool.stats();
    (report.books_out, report.books_held) = (closed.in_use().0, closed.reserved.0);
    (report.allocations, report.spills) = (closed.allocations, closed.spills);
    report.writes_after_free = closed.writes_after_free;
    report.note_trims(trims);
    report.note_anonymous(&anonymous);
    Ok(report)
}

fn open(pool: &Pool, dir: &Path, asked: Asked) -> Outcome<Timeline> {
    let Asked { kv_keep: keep, captures, .. } = asked;
    let session = SessionOptions {
        threads: affinity::physical_cores(),
        own_operators: true,
        captures,
        cache: CacheChoice::Auto,
    };
    let model = Model::open_in(pool, dir, session)?;
    let mut timeline = Timeline::new(model, TimelineOptions { keep, ..TimelineOptions::default() })?;
    timeline.warm_up()?;
    Ok(timeline)
}

/// As a worker runs it: the loop, then the cache is cleared.
fn request(timeline: &mut Timeline, random: &mut StdRng, id: u64, report: &mut Report) -> Outcome<()> {
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
        [self.trim_median_us, self.trim_p99_us, self.trim_most_us] = [at(50), at(99), at(100)];
    }

    fn note_anonymous(&mut self, anonymous: &[u64]) {
        let tenth = anonymous.len().div_ceil(10);
        let min = |part: &[u64]| part.iter().min().copied().unwrap_or_default();
        self.anonymous_early = min(&anonymous[tenth.min(anonymous.len() / 2)..][..tenth]);
        self.anonymous_late = min(&anonymous[anonymous.len() - tenth..]);
    }
}
