//! Bodies of requests, as the document describes them.
//!
//! Nothing is read into these types: requests are taken apart field by field, so that an error can name the field, and these
//! describe what is taken. Tests hold the two together, in both directions.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    items::{FlatTool, FlatToolChoice, Input, TextOptions},
    messages::{Message, Tool, ToolChoice},
};

/// Fields that all generating routes share.
#[derive(Serialize, ToSchema)]
pub(crate) struct Generation {
    /// Id of one of the models of `GET /v1/models`; the first of them where it is absent.
    model: Option<String>,
    /// 0 always takes the most probable token. The default is 1, and 0 on `/generate-lite`.
    #[schema(minimum = 0.0, maximum = 2.0)]
    temperature: Option<f32>,
    /// Keeps the most probable tokens that together have this probability.
    #[schema(minimum = 0.0, maximum = 1.0, default = 1.0)]
    top_p: Option<f32>,
    /// Number of most probable tokens to sample from; 0 and -1 keep all.
    #[schema(minimum = -1, default = 0)]
    top_k: Option<i64>,
    /// Keeps tokens at least this fraction as probable as the most probable one.
    #[schema(minimum = 0.0, maximum = 1.0, default = 0.0)]
    min_p: Option<f32>,
    /// Locally typical sampling; 1 is off.
    #[schema(minimum = 0.0, maximum = 1.0, default = 1.0)]
    typical_p: Option<f32>,
    /// Divides the logits of tokens that were there already, in prompt or answer; 1 is off.
    #[schema(minimum = 0.1, maximum = 10.0, default = 1.0)]
    repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that the answer has already.
    #[schema(minimum = -2.0, maximum = 2.0, default = 0.0)]
    presence_penalty: Option<f32>,
    /// Subtracted for every time that the answer has the token already.
    #[schema(minimum = -2.0, maximum = 2.0, default = 0.0)]
    frequency_penalty: Option<f32>,
    /// Strength of the DRY penalty on repeated sequences; 0 is off.
    #[schema(minimum = 0.0, maximum = 100.0, default = 0.0)]
    dry_multiplier: Option<f32>,
    /// How fast the DRY penalty grows with the length of the repetition.
    #[schema(minimum = 1.0, maximum = 100.0, default = 1.75)]
    dry_base: Option<f32>,
    /// Longest repetition in tokens that DRY lets pass.
    #[schema(minimum = 1, default = 2)]
    dry_allowed_length: Option<u32>,
    /// Strings that a repetition does not reach across; none may be empty.
    #[schema(max_items = 16, default = json!(["\n", ":", "\"", "*"]))]
    dry_sequence_breakers: Option<Vec<NonEmpty>>,
    /// Added to the logits of tokens, by their ids: -100 to 100.
    #[schema(value_type = Option<BTreeMap<String, Bias>>)]
    logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed gives the same answer, as long as model and program are the same. Random where it is absent or -1.
    #[schema(value_type = Option<i64>)]
    seed: Option<i64>,
    /// The answer ends before any of these; at most 16, none of them empty.
    stop: Option<Stop>,
    /// The answer ends before any of these tokens.
    stop_token_ids: Option<Vec<u32>>,
    /// End tokens of the model do not end the answer.
    #[schema(default = false)]
    ignore_eos: Option<bool>,
    /// The answer is sent as server-sent events while it is made.
    #[schema(default = false)]
    stream: Option<bool>,
    /// For streams alone.
    stream_options: Option<StreamOptions>,
    /// For streams alone: events say how much of a long prompt is read.
    #[schema(default = false)]
    return_progress: Option<bool>,
    /// The prompt may begin with what is kept of earlier ones, and be kept for later ones; `false` keeps them apart.
    #[schema(default = true)]
    cache_prompt: Option<bool>,
    /// The prompt may begin with prompts of the same salt alone. It should be a random text that others cannot guess.
    #[schema(min_length = 1, max_length = 256)]
    cache_salt: Option<String>,
    /// Longest wait in the queue, in milliseconds; at most what the server is set to.
    #[schema(minimum = 1)]
    queue_timeout_ms: Option<u64>,
    /// Longest time from the request to the end of its answer, in milliseconds; at most what the server is set to.
    #[schema(minimum = 1)]
    timeout_ms: Option<u64>,
    /// Ends the answer when it has had the slot for so long, in milliseconds: what there is by then is the answer.
    #[schema(minimum = 1)]
    max_time_ms: Option<u64>,
    /// Interactive requests, which all are that say nothing, go before batch ones, within a limit.
    priority: Option<Priority>,
    /// OpenAI's word for a priority: `flex` is batch, all others are interactive.
    service_tier: Option<ServiceTier>,
    /// How long the model stays loaded afterwards: seconds, or a duration such as `10m`; less than 0 is for ever.
    keep_alive: Option<KeepAlive>,
    /// The form that the answer must have. It, `json_schema`, `regex` and `grammar` exclude each other.
    response_format: Option<ResponseFormat>,
    /// A JSON schema that the answer must match.
    #[schema(value_type = Option<Object>)]
    json_schema: Option<Value>,
    /// A regular expression that must match the whole answer.
    regex: Option<String>,
    /// A grammar in Lark's syntax that the answer must match, from `start`.
    grammar: Option<String>,
}

/// At least one character.
#[derive(Serialize, ToSchema)]
#[schema(min_length = 1)]
pub(crate) struct NonEmpty(String);

/// -100 all but forbids a token, 100 all but forces it.
#[derive(Serialize, ToSchema)]
#[schema(minimum = -100.0, maximum = 100.0)]
pub(crate) struct Bias(f32);

/// One string, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    One(NonEmpty),
    Several(Stops),
}

/// Several strings.
#[derive(Serialize, ToSchema)]
#[schema(max_items = 16)]
pub(crate) struct Stops(Vec<NonEmpty>);

/// Who waits for an answer: somebody who looks on, or nobody.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    Interactive,
    Batch,
}

/// OpenAI's tiers.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceTier {
    Auto,
    Default,
    Flex,
    Priority,
}

/// Options of a stream.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// A last event has the usage of all choices.
    #[schema(default = false)]
    include_usage: Option<bool>,
}

/// Seconds, or a number with a unit (`ms`, `s`, `m`, `h`).
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum KeepAlive {
    Seconds(Seconds),
    Duration(Duration),
}

/// Less than 0 is for ever; at most 1000000000.
#[derive(Serialize, ToSchema)]
pub(crate) struct Seconds(f64);

#[derive(Serialize, ToSchema)]
#[schema(pattern = "^[0-9]{1,9}(ms|s|m|h)?$", examples("10m"))]
pub(crate) struct Duration(String);

/// OpenAI's `response_format`.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that matches a schema.
    JsonSchema { json_schema: NamedSchema },
}

/// A JSON schema with a name.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedSchema {
    name: Option<String>,
    description: Option<String>,
    /// A schema is always kept to the letter.
    strict: Option<bool>,
    #[schema(value_type = Object)]
    schema: Value,
}

/// A prompt: a text, the ids of its tokens, or an array of one of either.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(NonEmpty),
    Tokens(Ids),
    OneText(OneText),
}

/// Ids of tokens, at least one.
#[derive(Serialize, ToSchema)]
#[schema(min_items = 1)]
pub(crate) struct Ids(Vec<u32>);

/// A single text.
#[derive(Serialize, ToSchema)]
#[schema(min_items = 1, max_items = 1)]
pub(crate) struct OneText(Vec<NonEmpty>);

/// A request of `/generate-lite`.
#[derive(Serialize, ToSchema)]
pub(crate) struct GenerateLiteRequest {
    #[serde(flatten)]
    generation: Generation,
    /// What to continue; either this or `messages`.
    prompt: Option<Prompt>,
    /// What to answer; either this or `prompt`.
    #[schema(min_items = 1)]
    messages: Option<Vec<Message>>,
    /// Most tokens of the answer; where it is absent, `engine.default_max_new` or what the context has room for.
    #[schema(minimum = 1)]
    max_new_tokens: Option<u32>,
}

/// A request of `/v1/completions`.
#[derive(Serialize, ToSchema)]
pub(crate) struct CompletionRequest {
    #[serde(flatten)]
    generation: Generation,
    prompt: Prompt,
    /// Most tokens of the answer; where it is absent, `engine.default_max_new` or what the context has room for.
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// Answers to make, one after another.
    #[schema(minimum = 1, maximum = 8, default = 1)]
    n: Option<u32>,
    /// As many as `n`: every answer that is made is sent.
    #[schema(minimum = 1, maximum = 8)]
    best_of: Option<u32>,
    /// The answer begins with the prompt.
    #[schema(default = false)]
    echo: Option<bool>,
    /// Log-probabilities of the answer's tokens and of so many others.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<u32>,
}

/// A request of `/v1/chat/completions`.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatRequest {
    #[serde(flatten)]
    generation: Generation,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Most tokens of the answer; where it is absent, `engine.default_max_new` or what the context has room for.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1, deprecated)]
    max_tokens: Option<u32>,
    /// Answers to make, one after another.
    #[schema(minimum = 1, maximum = 8, default = 1)]
    n: Option<u32>,
    /// The answer's tokens come with their log-probabilities.
    #[schema(default = false)]
    logprobs: Option<bool>,
    /// And those of so many others; wants `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    /// Functions that the model may call; their names differ.
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether one answer may have several calls.
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
}

/// A request of `/v1/responses`.
#[derive(Serialize, ToSchema)]
pub(crate) struct ResponseRequest {
    #[serde(flatten)]
    generation: Generation,
    /// A text, or the conversation so far.
    input: Input,
    /// What the model is told before all else.
    instructions: Option<String>,
    /// Most tokens of the answer; where it is absent, `engine.default_max_new` or what the context has room for.
    #[schema(minimum = 1)]
    max_output_tokens: Option<u32>,
    /// Functions that the model may call; their names differ.
    #[schema(max_items = 128)]
    tools: Option<Vec<FlatTool>>,
    tool_choice: Option<FlatToolChoice>,
    /// Whether one answer may have several calls.
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
    /// The form of the answer.
    text: Option<TextOptions>,
}
