//! A generation request as the worker receives it.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    adapters::{AdapterKey, CacheScope, JobAdapter},
    cache_salt::CacheSalt,
    ids::{JobId, ModelId},
    sampling::{LogprobOptions, Sampling},
};
use crate::device_spec::Pooling;

/// One generation, ready to run: everything that a worker needs, and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// The model to run.
    pub model: ModelId,
    /// Workers that were lost while they ran it.
    pub lost: u32,
    /// How long the model stays loaded afterwards; `None` uses the settings.
    pub keep_alive: Option<KeepAlive>,
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// Tokens generated so far by a lost worker. Generation resumes after them.
    pub answer: Vec<u32>,
    /// How tokens are picked from the logits.
    pub sampling: Sampling,
    /// Maximum number of tokens to generate, those in `answer` included; at least one. Together with the prompt it must fit the
    /// context length.
    pub max_new_tokens: usize,
    /// Fewest tokens of the answer: no end token is picked before.
    pub min_new_tokens: usize,
    /// The format of the answer's text. The job fails if the worker cannot keep to it.
    pub constraint: Option<Constraint>,
    /// Log-probabilities to report.
    pub logprobs: Option<LogprobOptions>,
    /// Parent span, if the request is traced.
    pub trace: Option<TraceLink>,
    /// Whether it may use the prefix cache, and may be kept in it.
    pub cache_prompt: bool,
    /// Which entries of the prefix cache it may use, and which jobs may use its own.
    pub cache_salt: CacheSalt,
    /// Adapters that change the model for this job, in the order in which they are added.
    #[serde(default)]
    pub adapters: Vec<JobAdapter>,
    /// Gives the prompt's embedding instead of an answer.
    pub embedding: Option<Pooling>,
    /// Writes the prompt's cache to a file instead of generating an answer.
    pub save: Option<SaveAs>,
    /// Ids that end the generation. The one that does is counted but not reported, because it has no text.
    pub end_tokens: Vec<u32>,
}

impl Job {
    /// A greedy generation of `max_new_tokens` tokens without any options.
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
            min_new_tokens: 0,
            constraint: None,
            logprobs: None,
            trace: None,
            cache_prompt: true,
            cache_salt: CacheSalt::default(),
            adapters: Vec::new(),
            embedding: None,
            save: None,
            end_tokens: Vec::new(),
        }
    }

    /// What another job must have in common with this one to share a prefix cache entry.
    #[must_use]
    pub fn cache_scope(&self) -> CacheScope {
        CacheScope { salt: self.cache_salt, adapters: AdapterKey::of(&self.adapters) }
    }
}

/// Where to save a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveAs {
    /// Name of the saved prompt.
    pub name: String,
    /// Directory of saved prompts.
    pub dir: PathBuf,
}

/// A recorded span, as W3C Trace Context identifies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceLink {
    /// Id of the trace.
    pub trace_id: [u8; 16],
    /// Id of the span.
    pub span_id: [u8; 8],
    /// Content of the header `tracestate`.
    pub state: String,
}

/// Which jobs go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A user is waiting.
    #[default]
    Interactive,
    /// Throughput matters, latency does not.
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

/// How long an unused model stays loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeepAlive {
    /// Until another model needs its memory.
    Forever,
    /// This long after its last job.
    For(Duration),
}

/// The format of a whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Constraint {
    /// JSON that matches this JSON schema, given as text.
    Schema(String),
    /// Text that this Lark grammar produces from `start`.
    Lark(String),
    /// Text that this regular expression matches.
    Regex(String),
}
