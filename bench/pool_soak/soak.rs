//! Requests of all lengths, one after the other, over one pool; and what was held when each was done.

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use eka::{
    choice::CacheChoice,
    device::{Pool, Runtime, SessionOptions, host, pool::PoolOptions},
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
pub(crate) const LONGEST_PROMPT: usize = 1900;
/// Longest answer.
const LONGEST_ANSWER: usize = 40;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) requests: usize,
    /// Same seed, same requests.
    pub(crate) seed: u64,
    /// What the cache may keep.
    pub(crate) kv_keep: Bytes,
}

/// What came of it. Bytes, but where something else is said.
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
    /// Most that was held in a request.
    pub(crate) peak: u64,
    pub(crate) allocations: u64,
    pub(crate) spills: u64,
    pub(crate) writes_after_free: u64,
    pub(crate) trim_median_us: u64,
    pub(crate) trim_p99_us: u64,
    pub(crate) trim_most_us: u64,
    /// What the pool's books say is out, and held, when model and cache are gone.
    pub(crate) books_out: u64,
    pub(crate) books_held: u64,
    /// The least anonymous memory that the system saw between requests, in the second tenth of them and in the last.
    pub(crate) anonymous_early: u64,
    pub(crate) anonymous_late: u64,
}

impl Report {
    /// What is not as it should be.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let bars = [
            (self.times_above == 0, "more than weights and what is kept was held after a trim"),
            (self.books_out == 0 && self.books_held == 0, "the pool's books are not empty at the end"),
            (self.spills == 0, "blocks were spilled"),
            (self.writes_after_free == 0, "freed blocks were written to"),
            (self.peak > self.most_after_trim, "no request took more than stays"),
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

/// A prompt of so many tokens.
pub(crate) fn prompt(random: &mut StdRng, length: usize) -> Vec<u32> {
    (0..length).map(|_| random.random_range(3..1024)).collect()
}

/// Asks for everything, and closes the books. A process has one pool of the host's at a time.
pub(crate) fn run(runtime: &Runtime, dir: &Path, asked: Asked) -> Outcome<Report> {
    let pool = Pool::on_host(runtime, PoolOptions::default())?;
    let mut report = Report { requests: asked.requests, kv_keep: asked.kv_keep.0, ..Report::default() };
    let mut timeline = open(&pool, dir, asked.kv_keep)?;
    report.weights = pool.figures().weights.0;
    let mut random = StdRng::seed_from_u64(asked.seed);
    let (mut trims, mut anonymous) = (Vec::new(), Vec::new());
    for number in 0..asked.requests {
        pool.reset_peaks();
        request(&mut timeline, &mut random, number as u64, &mut report)?;
        report.peak = report.peak.max(pool.figures().reserved_peak.0);
        let began = Instant::now();
        pool.trim(Bytes(0));
        trims.push(began.elapsed());
        let after = pool.figures();
        report.times_above += usize::from(after.reserved > after.weights + asked.kv_keep);
        report.times_kept += usize::from(after.reserved > after.weights);
        report.most_after_trim = report.most_after_trim.max(after.reserved.0);
        anonymous.push(host::memory().anonymous.unwrap_or_default().0);
    }
    drop(timeline);
    pool.trim(Bytes(0));
    let closed = pool.figures();
    (report.books_out, report.books_held) = (closed.in_use().0, closed.reserved.0);
    (report.allocations, report.spills) = (closed.allocations, closed.spills);
    report.writes_after_free = closed.writes_after_free;
    report.note_trims(trims);
    report.note_anonymous(&anonymous);
    Ok(report)
}

fn open(pool: &Pool, dir: &Path, keep: Bytes) -> Outcome<Timeline> {
    let model = Model::open_in(
        pool,
        dir,
        SessionOptions { threads: host::physical_cores(), own_operators: true, cache: CacheChoice::Auto },
    )?;
    let mut timeline = Timeline::new(model, TimelineOptions { keep, ..TimelineOptions::default() })?;
    timeline.warm_up()?;
    Ok(timeline)
}

/// As a worker runs it: the loop, then the cache is cleared.
fn request(timeline: &mut Timeline, random: &mut StdRng, id: u64, report: &mut Report) -> Outcome<()> {
    let length = random.random_range(1..=LONGEST_PROMPT);
    let answer = random.random_range(1..=LONGEST_ANSWER).min(timeline.capacity() - length);
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
        let least = |part: &[u64]| part.iter().min().copied().unwrap_or_default();
        self.anonymous_early = least(&anonymous[tenth.min(anonymous.len() / 2)..][..tenth]);
        self.anonymous_late = least(&anonymous[anonymous.len() - tenth..]);
    }
}
