//! What an answer cost: tokens, time and memory, as the generating routes report them.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::update::{FinishedChoice, Progress};
use crate::{
    job::{self, DevicePeak, Memory, MemoryReport},
    units::Bytes,
};

/// Prompt tokens and generated tokens.
#[derive(Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Counted once for each prompt, however many choices were generated.
    prompt_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
    completion_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionTokensDetails>,
    total_tokens: usize,
}

/// Details of the generated tokens, if the model has reasoned.
#[derive(Serialize, ToSchema)]
struct CompletionTokensDetails {
    reasoning_tokens: usize,
}

/// Details of the prompt tokens.
#[derive(Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens taken from the prefix cache instead of being computed.
    pub(crate) cached_tokens: usize,
}

impl Usage {
    /// The usage of one request with these choices.
    pub(crate) fn of(choices: &[FinishedChoice]) -> Self {
        let counted = choices.iter().filter(|choice| choice.counts_prompt);
        let prompt_tokens = counted.clone().map(|choice| choice.usage.prompt_tokens).sum();
        let cached_tokens = counted.map(|choice| choice.usage.cached_tokens).sum();
        let completion_tokens = choices.iter().map(|choice| choice.usage.completion_tokens).sum();
        let reasoning_tokens = choices.iter().map(|choice| choice.reasoning_tokens).sum();
        Self {
            prompt_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens,
            completion_tokens_details: (reasoning_tokens > 0)
                .then_some(CompletionTokensDetails { reasoning_tokens }),
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

impl From<job::Usage> for Usage {
    fn from(job::Usage { prompt_tokens, completion_tokens, cached_tokens }: job::Usage) -> Self {
        Self {
            prompt_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens,
            completion_tokens_details: None,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// Where the time went, summed over all choices. Choices that are computed together share the time.
#[derive(Serialize, ToSchema)]
pub(crate) struct Timings {
    queue_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    /// From the arrival of the request to the end of its answer.
    total_ms: f64,
    /// How many workers were lost while the request ran.
    resumed: u32,
    /// Prompt tokens taken from the prefix cache, counted once per choice.
    cached_tokens: usize,
    /// Draft tokens that were verified.
    draft_n: usize,
    /// Draft tokens that were accepted.
    draft_n_accepted: usize,
    /// Draft tokens that came from the draft model; the others came from prompt lookup.
    draft_model_n: usize,
    /// Draft tokens of the draft model that were accepted.
    draft_model_n_accepted: usize,
    /// Null where no token was computed.
    #[schema(required)]
    prefill_tokens_per_second: Option<f64>,
    /// Null for a single token, which needs no decode step.
    #[schema(required)]
    decode_tokens_per_second: Option<f64>,
    #[serde(flatten)]
    llama_cpp: LlamaCppTimings,
}

/// The same under llama.cpp's names, which its clients show.
#[derive(Serialize, ToSchema)]
pub(crate) struct LlamaCppTimings {
    /// Prompt tokens taken from the prefix cache.
    cache_n: usize,
    /// Prompt tokens that were computed.
    prompt_n: usize,
    prompt_ms: f64,
    /// 0 where no token was computed.
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    /// 0 for a single token, which needs no decode step.
    predicted_per_second: f64,
}

impl Timings {
    /// The timings of one request with these choices.
    pub(crate) fn of(choices: &[FinishedChoice]) -> Self {
        let time = |time: fn(&FinishedChoice) -> Duration| choices.iter().map(time).sum::<Duration>();
        let tokens = |tokens: fn(&FinishedChoice) -> usize| choices.iter().map(tokens).sum::<usize>();
        let (prefill, decode) = (time(|choice| choice.timings.prefill), time(|choice| choice.timings.decode));
        let cached_tokens = tokens(|choice| choice.usage.cached_tokens);
        let computed = tokens(|choice| choice.usage.prompt_tokens).saturating_sub(cached_tokens);
        let prefill_rate = rate(computed, prefill);
        let decode_rate = rate(tokens(|choice| choice.generated.saturating_sub(1)), decode);
        Self {
            queue_ms: choices.first().map_or(0.0, |choice| milliseconds(choice.queue_wait)),
            prefill_ms: milliseconds(prefill),
            decode_ms: milliseconds(decode),
            total_ms: milliseconds(choices.iter().map(|choice| choice.total).max().unwrap_or_default()),
            resumed: choices.iter().map(|choice| choice.timings.resumed).max().unwrap_or_default(),
            cached_tokens,
            draft_n: tokens(|choice| choice.timings.drafted.tokens),
            draft_n_accepted: tokens(|choice| choice.timings.drafted.accepted),
            draft_model_n: tokens(|choice| choice.timings.drafted_by_model.tokens),
            draft_model_n_accepted: tokens(|choice| choice.timings.drafted_by_model.accepted),
            prefill_tokens_per_second: prefill_rate,
            decode_tokens_per_second: decode_rate,
            llama_cpp: LlamaCppTimings {
                cache_n: cached_tokens,
                prompt_n: computed,
                prompt_ms: milliseconds(prefill),
                prompt_per_second: prefill_rate.unwrap_or_default(),
                predicted_n: tokens(|choice| choice.generated),
                predicted_ms: milliseconds(decode),
                predicted_per_second: decode_rate.unwrap_or_default(),
            },
        }
    }
}

/// Prefill progress, in llama.cpp's shape.
#[derive(Serialize, ToSchema)]
pub(crate) struct PromptProgress {
    total: usize,
    /// Tokens taken from the prefix cache.
    cache: usize,
    processed: usize,
    time_ms: f64,
}

impl From<Progress> for PromptProgress {
    fn from(Progress { done, total, cached, since }: Progress) -> Self {
        Self { total, cache: cached, processed: done, time_ms: milliseconds(since) }
    }
}

/// The last fields of OpenAI's completion objects, which a stream spreads over its events.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct CompletionTail {
    /// In a stream, sent with `include_usage` only; null before the last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub(crate) usage: Option<Option<Usage>>,
    /// In a stream, sent with the end of each choice, and with the usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timings: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_progress: Option<PromptProgress>,
}

impl CompletionTail {
    /// The fields of a complete answer, and of the last event of a stream with usage.
    pub(crate) fn of(choices: &[FinishedChoice]) -> Self {
        let usage = Some(Some(Usage::of(choices)));
        Self { timings: Some(Timings::of(choices)), usage, ..Self::default() }
    }
}

impl From<Progress> for CompletionTail {
    fn from(progress: Progress) -> Self {
        Self { prompt_progress: Some(progress.into()), ..Self::default() }
    }
}

/// The worker's memory before, during and after a request, in bytes; null where the operating system does not report it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RequestMemory {
    before: Memory,
    /// The peak while the request ran.
    peak: PeakMemory,
    /// After the request. A device's memory is then back in its pool, but not yet trimmed.
    after: Memory,
}

/// The worker's peak memory during a request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PeakMemory {
    resident: Option<Bytes>,
    /// Null without a device pool.
    device: Option<DevicePeak>,
}

impl From<MemoryReport> for RequestMemory {
    fn from(report: MemoryReport) -> Self {
        let peak = PeakMemory { resident: report.peak_resident, device: report.device_peak };
        Self { before: report.before, peak, after: report.after }
    }
}

/// To the microsecond; more digits would be noise.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Tokens per second; `None` where nothing was measured.
#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
pub(crate) fn rate(tokens: usize, time: Duration) -> Option<f64> {
    let rate = tokens as f64 / time.as_secs_f64();
    (tokens > 0 && rate.is_finite()).then(|| (rate * 1e3).round() / 1e3)
}
