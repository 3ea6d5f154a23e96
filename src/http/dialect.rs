//! What the three generating routes have in common, and the small part in which they differ.
//!
//! A dialect knows which fields give the prompt and how an answer is spelt. It sees complete answers and pieces of
//! text, never events or tokens.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    answer::Ending,
    ask::{Ask, Rules, is_empty_array},
    fields::{FieldError, Fields, Known},
};

/// One spelling of requests and answers.
pub(super) trait Dialect: From<Head> + 'static {
    /// Where it is spoken.
    const ROUTE: &'static str;

    /// What its ids begin with.
    const ID_PREFIX: &'static str;

    /// Temperature of requests that name none.
    const TEMPERATURE: f32;

    /// Fields that are refused unless they ask for nothing.
    const KNOWN: &'static [Known];

    /// Takes a request's fields, except `model`.
    fn ask(fields: &mut Fields, rules: &Rules) -> Result<Ask, FieldError>;

    /// The whole answer as one document.
    fn whole(&self, ending: &Ending) -> Value;

    /// What a stream says before the first text.
    fn opening(&self) -> Option<Value>;

    /// What a stream says for a piece of text.
    fn delta(&self, text: &str) -> Value;

    /// What a stream says when the answer is complete.
    fn closing(&self, ending: &Ending) -> Vec<Value>;
}

/// What an answer says besides its text.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    /// In seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) seed: u64,
    /// A stream was asked for OpenAI's chunk of usage.
    pub(super) include_usage: bool,
}

/// OpenAI's `usage`.
pub(super) fn usage(ending: &Ending) -> Value {
    let usage = ending.usage;
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// Where the time went. Rates are null where nothing was measured; a first token needs no decode step.
pub(super) fn timings(ending: &Ending) -> Value {
    let (prefill, decode) = (ending.timings.prefill, ending.timings.decode);
    json!({
        "queue_ms": milliseconds(ending.queue_wait),
        "prefill_ms": milliseconds(prefill),
        "decode_ms": milliseconds(decode),
        "total_ms": milliseconds(ending.total),
        "resumed": ending.timings.resumed,
        "prefill_tokens_per_second": rate(ending.usage.prompt_tokens, prefill),
        "decode_tokens_per_second": rate(ending.generated.saturating_sub(1), decode),
    })
}

/// To the microsecond; more digits would be noise.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
fn rate(tokens: usize, time: Duration) -> Option<f64> {
    let rate = tokens as f64 / time.as_secs_f64();
    (tokens > 0 && rate.is_finite()).then(|| (rate * 1e3).round() / 1e3)
}

const fn anything(_: &Value) -> bool {
    true
}

fn is_false(value: &Value) -> bool {
    value == false
}

fn is_one(value: &Value) -> bool {
    value == 1
}

fn is_zero(value: &Value) -> bool {
    value == 0
}

/// OpenAI's fields of both completion routes. Those about who asks, and how it is kept or billed, ask nothing of an
/// answer.
const fn harmless(name: &'static str) -> Known {
    Known { name, asks_for_nothing: anything, only: "" }
}

/// OpenAI's fields of `/v1/completions` that eka does not do.
pub(super) const OF_COMPLETIONS: &[Known] = &[
    harmless("user"),
    Known { name: "n", asks_for_nothing: is_one, only: "1" },
    Known { name: "best_of", asks_for_nothing: is_one, only: "1" },
    Known { name: "echo", asks_for_nothing: is_false, only: "false" },
    Known { name: "logprobs", asks_for_nothing: is_false, only: "null" },
    Known { name: "suffix", asks_for_nothing: |v| v == "", only: "null" },
];

/// OpenAI's fields of `/v1/chat/completions` that eka does not do.
pub(super) const OF_CHAT: &[Known] = &[
    harmless("user"),
    harmless("metadata"),
    harmless("safety_identifier"),
    harmless("prompt_cache_key"),
    harmless("parallel_tool_calls"),
    Known { name: "n", asks_for_nothing: is_one, only: "1" },
    Known { name: "store", asks_for_nothing: is_false, only: "false" },
    Known { name: "logprobs", asks_for_nothing: is_false, only: "false" },
    Known { name: "top_logprobs", asks_for_nothing: is_zero, only: "0" },
    Known { name: "tools", asks_for_nothing: is_empty_array, only: "[]" },
    Known { name: "tool_choice", asks_for_nothing: |v| v == "none" || v == "auto", only: "\"none\"" },
    Known { name: "functions", asks_for_nothing: is_empty_array, only: "[]" },
    Known { name: "function_call", asks_for_nothing: |v| v == "none" || v == "auto", only: "\"none\"" },
    Known { name: "modalities", asks_for_nothing: |v| *v == json!(["text"]), only: "[\"text\"]" },
    Known { name: "service_tier", asks_for_nothing: |v| v == "auto" || v == "default", only: "\"auto\"" },
    Known { name: "reasoning_effort", asks_for_nothing: |v| v == "none", only: "\"none\"" },
    Known { name: "audio", asks_for_nothing: Value::is_null, only: "" },
    Known { name: "prediction", asks_for_nothing: Value::is_null, only: "" },
    Known { name: "verbosity", asks_for_nothing: |v| v == "medium", only: "\"medium\"" },
    Known { name: "web_search_options", asks_for_nothing: Value::is_null, only: "" },
];
