//! The words that travel: what is asked of the slot and what it says while it works.
//!
//! Both sides of the queue and both processes import these; they import nothing but units. Everything here is token
//! ids: text stays on the parent's side of the pipe.

mod cache_salt;
mod memory;
mod orders;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use cache_salt::CacheSalt;
pub use memory::{DeviceMemory, DevicePeak, Memory, MemoryReport};
pub use orders::{Order, OrderOutcome, OrderReport};

use crate::units::{Bytes, Tokens};

/// Numbers a job within one parent process; never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// Names a model within one server: its directory's name under `models/`. Empty where there is but one and nobody asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(pub String);

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for ModelId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

/// One generation, ready to run: everything that the device side needs, and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What runs it.
    pub model: ModelId,
    /// Workers that were lost while they had it.
    pub lost: u32,
    /// How long its model stays loaded afterwards, where the settings are not meant to decide.
    pub keep_alive: Option<KeepAlive>,
    /// The prompt's token ids, at least one.
    pub prompt: Vec<u32>,
    /// What a worker that is no more has generated of the answer; it goes on after that.
    pub answer: Vec<u32>,
    /// How a token is picked from the logits.
    pub sampling: Sampling,
    /// Most tokens to generate, those of `answer` among them; at least one, and with the prompt within the context length.
    pub max_new_tokens: usize,
    /// What the answer's text must be. A worker that cannot go on without breaking it fails the job.
    pub constraint: Option<Constraint>,
    /// Which log-probabilities to say as well.
    pub scores: Option<ScoresAsked>,
    /// Where its part of a trace hangs, if its request is traced.
    pub trace: Option<TraceLink>,
    /// Whether it may begin with what is kept of earlier prompts, and may be kept itself.
    pub cache_prompt: bool,
    /// Which of the kept prompts it may begin with, and which jobs may begin with it.
    pub cache_salt: CacheSalt,
    /// Its prompt is read and put into a file, and nothing is generated.
    pub save: Option<SaveAs>,
    /// Ids that end the generation. The one that does is counted, but not reported as a token: it has no text.
    pub end_tokens: Vec<u32>,
}

impl Job {
    /// The most probable `max_new_tokens` tokens after `prompt`, whatever they are.
    #[must_use]
    pub fn new(id: JobId, prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Self {
            id,
            model: ModelId::default(),
            lost: 0,
            keep_alive: None,
            prompt,
            answer: Vec::new(),
            sampling: Sampling::greedy(),
            max_new_tokens,
            constraint: None,
            scores: None,
            trace: None,
            cache_prompt: true,
            cache_salt: CacheSalt::default(),
            save: None,
            end_tokens: Vec::new(),
        }
    }
}

/// Where a prompt that was read is put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveAs {
    /// What it is called.
    pub name: String,
    /// The directory of saved prompts.
    pub dir: PathBuf,
}

/// The span of a trace, by the names of W3C Trace Context; one that is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceLink {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span within it.
    pub span_id: [u8; 8],
    /// What the tracing systems on the way say of it, as the header `tracestate` has it.
    pub state: String,
}

/// Who waits for an answer, and so which jobs go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody who looks on.
    #[default]
    Interactive,
    /// Nobody: it is enough that it comes.
    Batch,
}

impl Priority {
    /// Its name in requests and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

/// How long a model stays loaded when nobody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeepAlive {
    /// Until another one needs its memory.
    Forever,
    /// For so long after its last job.
    For(Duration),
}

/// What an answer's text must be, from its first byte to its last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Constraint {
    /// JSON that this JSON schema, an object as text, describes.
    Schema(String),
    /// What this grammar in Lark's syntax produces from `start`.
    Lark(String),
    /// What this regular expression matches as a whole.
    Regex(String),
}

/// Which log-probabilities to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoresAsked {
    /// So many of the most probable tokens at each position, besides the one that stands there.
    pub top: usize,
    /// Also of the prompt's tokens but the first. The prompt is then read token by token.
    pub prompt: bool,
}

/// What the model thought of a token before it was told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Where the token stands, counted from the beginning of the prompt.
    pub position: usize,
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens there with theirs, the most probable first.
    pub top: Vec<(u32, f32)>,
}

/// How a token is picked from the logits. Fields are applied in the order they are declared in, the seed last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Added to the logits of these ids (OpenAI's `logit_bias`).
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive and multiplies negative logits of ids seen in prompt or output (CTRL's penalty). 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of ids that the output already holds. 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a logit once for each time the output holds its id. 0 is off.
    pub frequency_penalty: f32,
    /// Penalizes what would go on with a repetition. `None` is off.
    pub dry: Option<Dry>,
    /// Divides the logits. 0 is greedy: the greatest logit, the lowest id among equals.
    pub temperature: f32,
    /// Only the `top_k` greatest stay. 0 is off.
    pub top_k: usize,
    /// Only those stay whose information is nearest to the average, as many as first sum to `typical_p`. 1 is off.
    pub typical_p: f32,
    /// Only the most probable whose probabilities first sum to `top_p` stay. 1 is off.
    pub top_p: f32,
    /// Only those at least `min_p` times as probable as the most probable stay. 0 is off.
    pub min_p: f32,
    /// Same seed, same job, same model: same tokens.
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable token, nothing applied.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            temperature: 0.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

/// "Don't repeat yourself": how what would go on with a repetition is penalized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dry {
    /// What is subtracted from a logit where the repetition is just long enough.
    pub multiplier: f32,
    /// How many times as much with each token more.
    pub base: f32,
    /// Shortest repetition that counts, in tokens.
    pub allowed_length: usize,
    /// Tokens that a repetition does not reach across, in the order of their ids.
    pub breakers: Vec<u32>,
}

/// What the slot says about a job; the last one is always `Done` or `Failed`.
#[expect(clippy::large_enum_variant, reason = "it is moved a few times a token, which costs less than a box")]
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The job has the slot, after waiting this long in the queue.
    Started {
        /// From being accepted to being taken off the queue.
        queue_wait: Duration,
    },
    /// Its model is not loaded, and is now.
    Loading,
    /// It is; only after [`Event::Loading`].
    Loaded,
    /// A chunk of the prompt has been read.
    Progress {
        /// Prompt tokens read so far.
        done: usize,
        /// Prompt tokens in all.
        total: usize,
        /// Of those read, how many are kept from an earlier job.
        cached: usize,
    },
    /// What the model thought of a token: one of the prompt, or the one that [`Event::Token`] says next. Said twice when a
    /// worker is lost in between.
    Score(Score),
    /// The next token of the answer.
    Token(u32),
    /// Nothing follows.
    Done(Finish),
    /// Nothing follows; tokens said before stand.
    Failed(Failure),
}

/// How a job ended, and what it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Why no further token came.
    pub reason: FinishReason,
    /// What was read and written.
    pub usage: Usage,
    /// What it took, on the device's side.
    pub timings: Timings,
    /// The worker's memory around the job.
    pub memory: MemoryReport,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// An end token was picked, or the constraint lets nothing follow.
    EndToken,
    /// `max_new_tokens` was reached, or the time it was given.
    Length,
    /// It was cancelled; the tokens so far stand.
    Cancelled,
}

/// Tokens read and written by a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, an end token included.
    pub completion_tokens: usize,
    /// Tokens of the prompt that were kept from an earlier job, and not computed again.
    pub cached_tokens: usize,
}

/// Time spent in the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From the first prompt token to the logits of the last one.
    pub prefill: Duration,
    /// From those to the last token; the first token needs no decode step of its own.
    pub decode: Duration,
    /// How often the job was taken up again after its worker was lost. Both times then include the interruption.
    pub resumed: u32,
    /// Tokens that were guessed.
    pub drafted: Drafted,
    /// Of these, the ones that a draft model guessed.
    pub drafted_by_model: Drafted,
    /// To put a prompt into a file, where that was asked for.
    pub saving: Duration,
}

/// Tokens that were guessed and computed along with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drafted {
    /// All of them.
    pub tokens: usize,
    /// Those that the answer then had.
    pub right: usize,
}

impl Drafted {
    /// Counts a guess of so many tokens, of which so many were right.
    pub fn add(&mut self, tokens: usize, right: usize) {
        self.tokens += tokens;
        self.right += right;
    }
}

/// Why a job could not be finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Prompt and answer do not fit the model's context.
    // OpenAI's words, by which client libraries know it.
    #[error(
        "This model's maximum context length is {capacity}. However, you requested {} ({} in the messages, {} in the \
         completion). Please reduce the length of the messages or completion.",
        Tokens(prompt.0.saturating_add(max_new.0)), prompt.0, max_new.0
    )]
    Context {
        /// Length of the prompt.
        prompt: Tokens,
        /// Most tokens asked for.
        max_new: Tokens,
        /// What the model can hold.
        capacity: Tokens,
    },
    /// A token id that the model does not have.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Ids run from 0 to one less than this.
        vocabulary: usize,
    },
    /// The job's model could not be loaded; others may run.
    #[error("model {model} cannot be loaded: {message}")]
    Model {
        /// The model.
        model: ModelId,
        /// Why, and the way out.
        message: String,
    },
    /// The model computes no numbers: its weights are damaged, or were never right. The worker goes on.
    #[error(
        "after {after} the model computed no number that a token could be picked from, so its weights are damaged; check \
         them with `eka inspect --verify`, or export the model again"
    )]
    NoNumber {
        /// How many tokens it had been fed.
        after: Tokens,
    },
    /// No token goes on with the answer as its constraint wants it; the worker goes on.
    #[error("the answer's constraint cannot be kept: {message}; simplify it or leave it out")]
    Constraint {
        /// Why not.
        message: String,
    },
    /// The device could not compute a step; the worker goes on.
    #[error("the device failed: {message}")]
    Device {
        /// What the runtime said.
        message: String,
    },
    /// The device has no memory for what the job needs; the worker goes on, and so does whoever needs less.
    #[error("the device has no room for this request: {message}")]
    OutOfMemory {
        /// How much was asked for and what there is, and the way out.
        message: String,
    },
    /// A saved prompt cannot be used as it is.
    #[error("saved prompt {name:?} cannot be used: {message}")]
    SavedPrompt {
        /// What it is called.
        name: String,
        /// Why not, and the way out.
        message: String,
    },
    /// A saved prompt's file could not be written or read.
    #[error("saved prompt {name:?}: {message}")]
    SavedFile {
        /// What it is called.
        name: String,
        /// What the system said.
        message: String,
    },
    /// The worker process ended while it ran the job.
    #[error("the worker process was lost: {message}")]
    WorkerLost {
        /// How it ended.
        message: String,
    },
    /// No worker could be started.
    #[error("no worker is running: {message}")]
    NoWorker {
        /// Why not.
        message: String,
        /// When the next one is tried; `None` where none will be.
        retry_in: Option<Duration>,
    },
    /// It waited in the queue for longer than it was willing to.
    #[error("waited {} ms in the queue, the limit of this request", waited.as_millis())]
    QueueTimeout {
        /// How long it waited.
        waited: Duration,
    },
    /// It took longer, waiting included, than it was given.
    #[error("not finished after {} ms, the limit of this request", elapsed.as_millis())]
    Deadline {
        /// Since it was accepted.
        elapsed: Duration,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// What a worker says about the library that computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuntimeReport {
    /// ONNX Runtime's version.
    pub runtime: String,
    /// ONNX Runtime's library; for the log, and for no client.
    pub library: PathBuf,
    /// What computes, for people: `the CPU`, or which GPU.
    pub device: String,
    /// What a GPU computes in; `None` where the CPU computes.
    pub gpu: Option<GpuReport>,
    /// Why the CPU computes where a GPU would have been taken; for the log.
    pub fell_back: Option<String>,
    /// Threads that compute.
    pub threads: usize,
    /// Memory held without any model.
    pub memory: Memory,
}

/// What a GPU can do, as far as an export for it has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReport {
    /// It computes in bfloat16 as well as in float16.
    pub has_bfloat16: bool,
}

/// Nodes of a graph by execution provider and operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement(pub BTreeMap<String, BTreeMap<String, usize>>);

impl Placement {
    /// Nodes by execution provider.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(provider, operators)| (provider.as_str(), operators.values().sum()))
    }
}

/// Providers and their nodes; operators are for those who look closer.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (provider, nodes)) in self.nodes().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{provider}: {nodes}")?;
        }
        Ok(())
    }
}

/// What loading a model came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Where the nodes of the loaded graph run, as the session placed them.
    pub placement: Placement,
    /// Most positions, prompt and answer together.
    pub capacity: usize,
    /// Threads that compute passes of one token, where they can be told.
    pub decode_threads: Option<usize>,
    /// The same for passes of more.
    pub prefill_threads: Option<usize>,
    /// The draft model that is loaded with it.
    pub draft: Option<ModelId>,
    /// Time from being told to load to being warm.
    pub load_time: Duration,
    /// Memory held before.
    pub before: Memory,
    /// Memory held with the model loaded and warm, and its draft model.
    pub after: Memory,
}

impl ModelReport {
    /// What the model added to the worker's memory.
    #[must_use]
    pub fn took(&self) -> Memory {
        let grown =
            |before: Option<Bytes>, after: Option<Bytes>| Some(Bytes(after?.0.saturating_sub(before?.0)));
        let on_device = |before: DeviceMemory, after: DeviceMemory| DeviceMemory {
            used: Bytes(after.used.0.saturating_sub(before.used.0)),
            reserved: Bytes(after.reserved.0.saturating_sub(before.reserved.0)),
            ..DeviceMemory::default()
        };
        Memory {
            resident: grown(self.before.resident, self.after.resident),
            anonymous: grown(self.before.anonymous, self.after.anonymous),
            prefix_cache: Bytes(0),
            device: self.before.device.zip(self.after.device).map(|(before, after)| on_device(before, after)),
        }
    }
}

/// A worker that is up, and the models that it has loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotReport {
    /// What computes.
    pub runtime: RuntimeReport,
    /// What is loaded, in the order of loading.
    pub models: Vec<(ModelId, ModelReport)>,
    /// Memory held after the last trim.
    pub memory: Memory,
}

impl SlotReport {
    /// What is known of a model that is loaded.
    #[must_use]
    pub fn model(&self, id: &ModelId) -> Option<&ModelReport> {
        self.models.iter().find(|(loaded, _)| loaded == id).map(|(_, report)| report)
    }
}

/// Whether the slot can run jobs, as supervision last saw it.
#[expect(clippy::large_enum_variant, reason = "there is one of it, and it is read in place")]
#[derive(Clone, Debug, PartialEq)]
pub enum Readiness {
    /// The first worker is loading the model; new requests are refused until it has.
    Starting,
    /// A worker is up; what is not loaded is when it is asked for.
    Ready(SlotReport),
    /// A worker that was ready ended and is being replaced; the queue goes on accepting.
    Restarting {
        /// Why the last one ended.
        reason: String,
    },
    /// Workers keep failing; new requests are refused, queued ones wait until their deadlines.
    Down {
        /// Why the last one failed.
        reason: String,
        /// When the next attempt is made; `None` when none will be.
        retry_in: Option<Duration>,
    },
    /// The server is shutting down.
    Stopping,
}

impl Readiness {
    /// In one word, for programs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready(_) => "ready",
            Self::Restarting { .. } => "restarting",
            Self::Down { .. } => "down",
            Self::Stopping => "stopping",
        }
    }
}
