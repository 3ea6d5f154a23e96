//! The interface between the generating routes and their answer formats.
//!
//! A format has its own type of requests and writes its own answers. It sees completed choices and deltas, never events of a
//! job or tokens.

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    logprobs::ScoredToken,
    sse::SseEvents,
    update::{Delta, FinishedChoice, Progress},
    usage::{CompletionTail, Timings},
};
use crate::{
    http::{
        error::ErrorBody,
        random_id,
        request::{EchoedFields, GenerateRequest, LlamaCppEcho, TokenDetails},
        stored_responses::ToStore,
    },
    job::{self, JobId},
};

/// The wire format of one generating route.
pub(crate) trait ApiFormat: Send + 'static {
    /// Its requests.
    type Request: GenerateRequest;

    /// The path of the route.
    const ROUTE: &'static str;

    /// Other paths of the route.
    const ALIASES: &'static [&'static str] = &[];

    /// Prefix of its answers' ids.
    const ID_PREFIX: &'static str;

    /// The id of the answer. Only `/generate-lite` uses the job's id.
    fn id(_: JobId) -> String {
        random_id::new(Self::ID_PREFIX)
    }

    /// The content type of streams.
    const STREAM_TYPE: &'static str = "text/event-stream; charset=utf-8";

    /// Whether streams are server-sent events, which can have ids.
    const HAS_EVENTS: bool = true;

    /// Sent on a stream that has nothing to send, and while the model is loaded, which may take minutes. A write to a closed
    /// connection fails, and proxies keep an open one. Empty for formats whose clients read nothing else than answers.
    const HEARTBEATS: [&'static str; 2] = [": waiting\n\n", ": loading the model\n\n"];

    /// `gen_ai.operation.name` in traces.
    const OPERATION: &'static str = "text_completion";

    /// The format of one answer.
    fn new(meta: ResponseMeta) -> Self;

    /// The complete answer as JSON, with all choices in order.
    fn whole(&mut self, choices: &[FinishedChoice]) -> String;

    /// The answer to a request that only loads the model.
    fn loaded(&mut self) -> String {
        self.whole(&[])
    }

    /// Writes the prefill progress, which is sent on request only.
    fn progress(&mut self, progress: Progress, out: &mut SseEvents);

    /// Writes what precedes the first text of a choice.
    fn opening(&mut self, _: usize, _: &mut SseEvents) {}

    /// Writes a piece of text or of tool calls.
    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut SseEvents);

    /// Writes the end of a choice.
    fn closing(&mut self, choice: usize, finished: &FinishedChoice, out: &mut SseEvents);

    /// Writes the end of the stream, after all choices.
    fn end(&mut self, _: &[FinishedChoice], out: &mut SseEvents) {
        out.push_done();
    }

    /// Writes an error, which ends the stream.
    fn failure(&mut self, error: &ErrorBody, out: &mut SseEvents) {
        out.push(error);
    }
}

/// What every answer of a request has besides its choices.
#[derive(Debug)]
pub(crate) struct ResponseMeta {
    pub(crate) id: String,
    /// In seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) seed: u64,
    /// `system_fingerprint`: changes with the model and with eka's version.
    pub(crate) fingerprint: String,
    /// What the answer tells about tokens.
    pub(crate) details: TokenDetails,
    /// Whether a stream ends with OpenAI's usage chunk.
    pub(crate) include_usage: bool,
    /// Whether each event has the usage of its choice so far.
    pub(crate) continuous_usage: bool,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Fields of the request that the answer repeats.
    pub(crate) echoed: EchoedFields,
    /// What an answer in llama-server's format repeats of its request.
    pub(crate) llama_cpp: Option<Box<LlamaCppEcho>>,
    /// Where the answer is stored when it is complete, if it is.
    pub(crate) stored: Option<ToStore>,
}

impl ResponseMeta {
    /// The log-probabilities of these tokens, if they were requested.
    pub(super) fn logprobs_of<'a, L: From<&'a [ScoredToken]>>(&self, tokens: &'a [ScoredToken]) -> Option<L> {
        self.details.top.map(|_| tokens.into())
    }

    /// The last fields of an event of a choice, which has `usage` so far. Where usage follows at the end of the stream, it is null
    /// before, unless every event has it.
    pub(super) fn tail_of_event(&self, timings: Option<Timings>, usage: job::Usage) -> CompletionTail {
        let usage = self.continuous_usage.then(|| usage.into());
        CompletionTail { usage: self.include_usage.then_some(usage), timings, prompt_progress: None }
    }

    /// The fields that OpenAI's completion objects begin with.
    pub(crate) fn head(&self, object: &'static str) -> CompletionHead<'_> {
        CompletionHead {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
        }
    }
}

/// The fields that OpenAI's completion objects begin with.
#[derive(Serialize, ToSchema)]
pub(crate) struct CompletionHead<'a> {
    id: &'a str,
    /// `text_completion`, `chat.completion`, or `chat.completion.chunk` in a stream.
    object: &'static str,
    /// In seconds since 1970.
    created: u64,
    model: &'a str,
    /// Changes with the model and with the program.
    system_fingerprint: &'a str,
}

/// Serializes an answer.
pub(crate) fn to_json(answer: &impl Serialize) -> String {
    // Does not fail: every key is a string.
    serde_json::to_string(answer).unwrap_or_default()
}
