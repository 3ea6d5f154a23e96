//! Bodies of answers, as the document describes them; a test validates real ones against it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{http::handlers::slot::Peak, job::Memory};

/// Why a request was not answered, in OpenAI's shape.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetails,
}

/// Why a request was not answered.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorDetails {
    /// For people; may change.
    message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    kind: String,
    /// For programs; does not change.
    #[schema(examples("queue_full", "invalid_value", "context_length_exceeded"))]
    code: String,
    /// The field that is at fault, with its path.
    #[schema(required)]
    param: Option<String>,
}

/// Tokens that were read and made.
#[derive(Serialize, ToSchema)]
pub(super) struct Usage {
    /// Counted once, however many choices were made of it.
    prompt_tokens: usize,
    prompt_tokens_details: InputDetails,
    completion_tokens: usize,
    total_tokens: usize,
}

/// Where the time went, of all choices together.
#[derive(Serialize, ToSchema)]
pub(super) struct Timings {
    queue_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    /// From the request to the end of its answer.
    total_ms: f64,
    /// How many workers were lost on the way.
    resumed: u32,
    /// Of the prompt, counted with each choice: tokens that were kept from earlier requests, and took no time.
    cached_tokens: usize,
    /// Tokens that were guessed and computed along with others.
    draft_n: usize,
    /// Of these, the ones that the answer then had.
    draft_n_accepted: usize,
    /// Of those that were guessed, the ones that a draft model did; the text at hand did the others.
    draft_model_n: usize,
    /// Of these, the ones that the answer then had.
    draft_model_n_accepted: usize,
    #[schema(required)]
    prefill_tokens_per_second: Option<f64>,
    /// Null for a single token, which needs no decode step.
    #[schema(required)]
    decode_tokens_per_second: Option<f64>,
}

/// The worker's memory before, during and after a request.
#[derive(Serialize, ToSchema)]
pub(super) struct MemoryOfRequest {
    before: Memory,
    peak: Peak,
    after: Memory,
}

/// Why an answer ended: an end token or stop string; its tokens ran out; or it calls functions.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

/// An answer of `/generate-lite`; in a stream, its last event.
#[derive(Serialize, ToSchema)]
pub(super) struct Generated {
    id: String,
    model: String,
    text: String,
    finish_reason: FinishReason,
    /// Sent again, it gives the same answer.
    seed: u64,
    usage: Usage,
    timings: Timings,
    memory: MemoryOfRequest,
}

/// An event of `/generate-lite`'s stream, before the last one.
#[derive(Serialize, ToSchema)]
pub(super) struct GeneratedDelta {
    text: String,
}

/// An answer of `/v1/completions`; in a stream, one of its events.
#[derive(Serialize, ToSchema)]
pub(super) struct Completion {
    id: String,
    /// Always `text_completion`.
    object: String,
    /// In seconds since 1970.
    created: u64,
    model: String,
    /// Changes with the model and with the program.
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    /// In a stream, there with `include_usage` alone, and null before the last event.
    usage: Option<Usage>,
    /// In a stream, with the end of each choice.
    timings: Option<Timings>,
}

/// One of the answers to a prompt.
#[derive(Serialize, ToSchema)]
pub(super) struct CompletionChoice {
    index: usize,
    text: String,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    /// In a stream, null before the end.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
}

/// Log-probabilities, one entry for a token.
#[derive(Serialize, ToSchema)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// Null for the first token of an echoed prompt.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Characters of the text before the token.
    text_offset: Vec<usize>,
}

/// An answer of `/v1/chat/completions`.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatCompletion {
    id: String,
    /// Always `chat.completion`.
    object: String,
    /// In seconds since 1970.
    created: u64,
    model: String,
    /// Changes with the model and with the program.
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    timings: Timings,
}

/// One of the answers to a conversation.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatChoice {
    index: usize,
    message: Answered,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
}

/// What the assistant says.
#[derive(Serialize, ToSchema)]
pub(super) struct Answered {
    /// Always `assistant`.
    role: String,
    /// Null where there are calls alone.
    #[schema(required)]
    content: Option<String>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
    tool_calls: Option<Vec<Called>>,
}

/// A call of a function.
#[derive(Serialize, ToSchema)]
pub(super) struct Called {
    id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    kind: String,
    function: CalledWith,
}

/// What is called, and with which arguments.
#[derive(Serialize, ToSchema)]
pub(super) struct CalledWith {
    name: String,
    /// The text of a JSON object.
    arguments: String,
}

/// Log-probabilities of an answer's tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatLogprobs {
    content: Vec<ScoredToken>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
}

/// A token and those it was picked from.
#[derive(Serialize, ToSchema)]
pub(super) struct ScoredToken {
    token: String,
    #[schema(required)]
    logprob: Option<f32>,
    /// Null for tokens that have no bytes, such as special ones.
    #[schema(required)]
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<OtherToken>,
}

/// A token and its log-probability.
#[derive(Serialize, ToSchema)]
pub(super) struct OtherToken {
    token: String,
    #[schema(required)]
    logprob: Option<f32>,
    #[schema(required)]
    bytes: Option<Vec<u8>>,
}

/// An event of `/v1/chat/completions`' stream.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatCompletionChunk {
    id: String,
    /// Always `chat.completion.chunk`.
    object: String,
    /// In seconds since 1970.
    created: u64,
    model: String,
    system_fingerprint: String,
    /// Empty in the event that has the usage, and in those about progress.
    choices: Vec<ChatChoiceDelta>,
    /// There with `include_usage` alone, and null before the last event.
    usage: Option<Usage>,
    /// With the end of each choice.
    timings: Option<Timings>,
    prompt_progress: Option<PromptProgress>,
}

/// What a choice goes on with.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatChoiceDelta {
    index: usize,
    delta: Delta,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    /// Null before the end.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
}

/// What to append.
#[derive(Serialize, ToSchema)]
pub(super) struct Delta {
    role: Option<String>,
    content: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

/// A call that begins, with `id`, or more of its arguments.
#[derive(Serialize, ToSchema)]
pub(super) struct CallDelta {
    index: usize,
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: FunctionDelta,
}

/// More of a call.
#[derive(Serialize, ToSchema)]
pub(super) struct FunctionDelta {
    name: Option<String>,
    /// To append.
    arguments: String,
}

/// What is read of a prompt.
#[derive(Serialize, ToSchema)]
pub(super) struct PromptProgress {
    total: usize,
    /// Tokens that were known already.
    cache: usize,
    processed: usize,
    time_ms: f64,
}

/// An answer of `/v1/responses`. Fields of the request that OpenAI repeats are repeated as well.
#[derive(Serialize, ToSchema)]
pub(super) struct Response {
    id: String,
    /// Always `response`.
    object: String,
    /// In seconds since 1970.
    created_at: u64,
    status: ResponseStatus,
    #[schema(required, value_type = Option<Object>)]
    error: Option<Value>,
    #[schema(required)]
    incomplete_details: Option<IncompleteDetails>,
    model: String,
    output: Vec<OutputItem>,
    /// Always null: nothing is kept.
    #[schema(required)]
    previous_response_id: Option<String>,
    /// Always false.
    store: bool,
    /// Always `disabled`.
    truncation: String,
    #[schema(required)]
    usage: Option<ResponseUsage>,
    timings: Option<Timings>,
    #[serde(flatten)]
    echoed: Echoed,
}

/// Fields of the request, with OpenAI's values where it has none.
#[derive(Serialize, ToSchema)]
pub(super) struct Echoed {
    #[schema(required)]
    instructions: Option<String>,
    #[schema(required)]
    max_output_tokens: Option<u32>,
    #[schema(value_type = Object)]
    metadata: Value,
    parallel_tool_calls: bool,
    temperature: f32,
    #[schema(value_type = Object)]
    text: Value,
    tool_choice: Value,
    tools: Vec<Value>,
    top_p: f32,
    #[schema(value_type = Object)]
    reasoning: Value,
    #[schema(required)]
    user: Option<String>,
}

/// How far a response has come.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseStatus {
    InProgress,
    Completed,
    Incomplete,
}

/// Why a response is incomplete.
#[derive(Serialize, ToSchema)]
pub(super) struct IncompleteDetails {
    /// Always `max_output_tokens`.
    reason: String,
}

/// A message, or a call of a function.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum OutputItem {
    Message { id: String, status: ResponseStatus, role: String, content: Vec<OutputText> },
    FunctionCall { id: String, status: ResponseStatus, call_id: String, name: String, arguments: String },
}

/// A text of a message.
#[derive(Serialize, ToSchema)]
pub(super) struct OutputText {
    /// Always `output_text`.
    #[serde(rename = "type")]
    kind: String,
    text: String,
    #[schema(value_type = Vec<Object>)]
    annotations: Vec<Value>,
    #[schema(value_type = Vec<Object>)]
    logprobs: Vec<Value>,
}

/// Tokens that were read and made, in the words of responses.
#[derive(Serialize, ToSchema)]
pub(super) struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

/// Of the tokens that were read.
#[derive(Serialize, ToSchema)]
pub(super) struct InputDetails {
    /// Kept from earlier requests, and not computed again.
    cached_tokens: usize,
}

/// Of the tokens that were made.
#[derive(Serialize, ToSchema)]
pub(super) struct OutputDetails {
    reasoning_tokens: usize,
}
