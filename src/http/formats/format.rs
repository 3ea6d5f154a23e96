//! What the generating routes have in common, and the small part in which they differ.
//!
//! A dialect knows which fields give the prompt and how an answer is spelt. It sees complete answers and pieces of
//! text, never events or tokens.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    completion_stream::{Ending, Progress, Said},
    response_id,
};
use crate::{http::request::generation::GenerateRequest, job::JobId};

/// One spelling of requests and answers.
pub(crate) trait ApiFormat: From<ResponseMeta> + Send + 'static {
    /// Its requests.
    type Request: GenerateRequest;

    /// Where it is spoken.
    const ROUTE: &'static str;

    /// What its ids begin with.
    const ID_PREFIX: &'static str;

    /// The id of the answer to this job.
    fn id(_: JobId) -> String {
        response_id::new(Self::ID_PREFIX)
    }

    /// What it does, as traces call it.
    const OPERATION: &'static str = "text_completion";

    /// The events of a stream have their type on a line of its own as well, and the last of them says that it is.
    const TYPED_EVENTS: bool = false;

    /// The whole answer as one document, all of its choices in their order.
    fn whole(&self, endings: &[Ending]) -> Value;

    /// What a stream says about a prompt of which more is read, if that was asked for.
    fn progress(&mut self, progress: &Progress) -> Value;

    /// What a stream says before the first text of a choice.
    fn opening(&mut self, choice: usize) -> Vec<Value>;

    /// What a stream says for a piece of text or of calls.
    fn delta(&mut self, choice: usize, said: &Said) -> Vec<Value>;

    /// What a stream says when a choice is complete.
    fn closing(&mut self, choice: usize, ending: &Ending) -> Vec<Value>;

    /// What a stream says at its end about all choices, if that was asked for.
    fn summary(&mut self, endings: &[Ending]) -> Vec<Value>;

    /// What a stream says when it fails, given what the body of an error would be.
    fn failure(&mut self, error: Value) -> Value {
        error
    }
}

/// What an answer says besides its text.
#[derive(Clone, Debug)]
pub(crate) struct ResponseMeta {
    pub(crate) id: String,
    /// In seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) seed: u64,
    /// Changes with the model and with the program.
    pub(crate) fingerprint: String,
    /// The tokens' scores were asked for.
    pub(crate) scored: bool,
    /// A stream was asked for OpenAI's chunk of usage.
    pub(crate) include_usage: bool,
    /// What it repeats of the request.
    pub(crate) echoed: Map<String, Value>,
}

/// OpenAI's `usage`: the prompt once, however many choices were made of it.
pub(crate) fn usage(endings: &[Ending]) -> Value {
    let prompt = endings.first().map_or(0, |ending| ending.usage.prompt_tokens);
    let cached = endings.first().map_or(0, |ending| ending.usage.cached_tokens);
    let completion: usize = endings.iter().map(|ending| ending.usage.completion_tokens).sum();
    json!({
        "prompt_tokens": prompt,
        "prompt_tokens_details": { "cached_tokens": cached },
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}

/// Where the time went, of all choices together: they are made one after another. Rates are null where nothing was
/// measured; a first token needs no decode step.
pub(crate) fn timings(endings: &[Ending]) -> Value {
    let sum = |time: fn(&Ending) -> Duration| endings.iter().map(time).sum::<Duration>();
    let (prefill, decode) = (sum(|ending| ending.timings.prefill), sum(|ending| ending.timings.decode));
    let queue = endings.first().map_or(Duration::ZERO, |ending| ending.queue_wait);
    let total = endings.iter().map(|ending| ending.total).max().unwrap_or_default();
    let prompt: usize = endings.iter().map(|ending| ending.usage.prompt_tokens).sum();
    let cached: usize = endings.iter().map(|ending| ending.usage.cached_tokens).sum();
    let stepped = endings.iter().map(|ending| ending.generated.saturating_sub(1)).sum();
    json!({
        "queue_ms": milliseconds(queue),
        "prefill_ms": milliseconds(prefill),
        "decode_ms": milliseconds(decode),
        "total_ms": milliseconds(total),
        "resumed": endings.iter().map(|ending| ending.timings.resumed).sum::<u32>(),
        "cached_tokens": cached,
        "draft_n": endings.iter().map(|ending| ending.timings.drafted.tokens).sum::<usize>(),
        "draft_n_accepted": endings.iter().map(|ending| ending.timings.drafted.right).sum::<usize>(),
        "draft_model_n": endings.iter().map(|ending| ending.timings.drafted_by_model.tokens).sum::<usize>(),
        "draft_model_n_accepted":
            endings.iter().map(|ending| ending.timings.drafted_by_model.right).sum::<usize>(),
        "prefill_tokens_per_second": rate(prompt.saturating_sub(cached), prefill),
        "decode_tokens_per_second": rate(stepped, decode),
    })
}

/// llama.cpp's `prompt_progress`.
pub(crate) fn prompt_progress(progress: &Progress) -> Value {
    let Progress { done, total, cached, since } = progress;
    json!({ "total": total, "cache": cached, "processed": done, "time_ms": milliseconds(*since) })
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
