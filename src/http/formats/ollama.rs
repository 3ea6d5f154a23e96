//! `POST /api/chat` and `/api/generate` in Ollama's wire format: streams are lines of JSON.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    completion_stream::{Delta, FinishReason, FinishedChoice, Progress},
    format::{ApiFormat, ResponseMeta, to_json},
    sse::SseEvents,
};
use crate::{
    http::{
        error::ErrorBody,
        error_shape::ErrorShape,
        request::{OllamaChatRequest, OllamaGenerateRequest},
        rfc3339::rfc3339,
    },
    text::Call,
};

/// An answer of `/api/chat`; in a stream, one of its lines.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaChatAnswer<'a> {
    #[serde(flatten)]
    head: OllamaHead<'a>,
    message: OllamaMessage<'a>,
    #[serde(flatten)]
    end: OllamaEnd,
}

/// An answer of `/api/generate`; in a stream, one of its lines.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaGenerated<'a> {
    #[serde(flatten)]
    head: OllamaHead<'a>,
    response: &'a str,
    /// The model's reasoning.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[schema(required = false)]
    thinking: &'a str,
    #[serde(flatten)]
    end: OllamaEnd,
}

/// The fields that all answers begin with.
#[derive(Serialize, ToSchema)]
struct OllamaHead<'a> {
    model: &'a str,
    created_at: String,
}

/// A message of the assistant, or a part of one.
#[derive(Serialize, ToSchema)]
struct OllamaMessage<'a> {
    /// Always `assistant`.
    role: &'static str,
    content: &'a str,
    /// The model's reasoning.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[schema(required = false)]
    thinking: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    tool_calls: Vec<OllamaCall<'a>>,
}

/// A tool call.
#[derive(Serialize, ToSchema)]
struct OllamaCall<'a> {
    id: &'a str,
    function: OllamaFunction<'a>,
}

/// The function that is called.
#[derive(Serialize, ToSchema)]
struct OllamaFunction<'a> {
    index: usize,
    name: &'a str,
    #[schema(value_type = Object)]
    arguments: Map<String, Value>,
}

/// The last fields. Token counts and times are in the last line of a stream; times are in nanoseconds.
#[derive(Default, Serialize, ToSchema)]
struct OllamaEnd {
    done: bool,
    /// `stop` or `length`; `load` where the model was only loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_eval_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_eval_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_duration: Option<u64>,
}

impl From<&FinishedChoice> for OllamaEnd {
    fn from(finished: &FinishedChoice) -> Self {
        let reason = if finished.reason == FinishReason::Length { "length" } else { "stop" };
        Self {
            done: true,
            done_reason: Some(reason),
            total_duration: Some(nanoseconds(finished.total)),
            // A model that is loaded for a request is loaded while it waits.
            load_duration: Some(nanoseconds(finished.queue_wait)),
            prompt_eval_count: Some(finished.usage.prompt_tokens),
            prompt_eval_duration: Some(nanoseconds(finished.timings.prefill)),
            eval_count: Some(finished.usage.completion_tokens),
            eval_duration: Some(nanoseconds(finished.timings.decode)),
        }
    }
}

impl OllamaEnd {
    /// The end of an answer without text, because the model was only loaded.
    fn loaded() -> Self {
        Self { done: true, done_reason: Some("load"), ..Self::default() }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The format of `/api/chat`.
pub(crate) struct OllamaChat(ResponseMeta);

/// The format of `/api/generate`.
pub(crate) struct OllamaGenerate(ResponseMeta);

fn head(meta: &ResponseMeta) -> OllamaHead<'_> {
    OllamaHead { model: &meta.model, created_at: rfc3339(meta.created) }
}

fn message<'a>(content: &'a str, thinking: &'a str, calls: &'a [Call]) -> OllamaMessage<'a> {
    OllamaMessage { role: "assistant", content, thinking, tool_calls: calls.iter().map(called).collect() }
}

/// A call. Arguments that are not an object, as an answer that was cut has, are sent as an empty one.
fn called(call: &Call) -> OllamaCall<'_> {
    OllamaCall {
        id: call.id.as_deref().unwrap_or_default(),
        function: OllamaFunction {
            index: call.index,
            name: call.name.as_deref().unwrap_or_default(),
            arguments: serde_json::from_str(&call.arguments).unwrap_or_default(),
        },
    }
}

fn fail(error: &ErrorBody, out: &mut SseEvents) {
    if let Some(body) = ErrorShape::Ollama.body(error) {
        out.push_raw_line(&body);
    }
}

impl ApiFormat for OllamaChat {
    type Request = OllamaChatRequest;

    const ROUTE: &'static str = "/api/chat";
    const ID_PREFIX: &'static str = "chat-";
    const OPERATION: &'static str = "chat";
    const STREAM_TYPE: &'static str = "application/x-ndjson";
    const HEARTBEATS: [&'static str; 2] = [""; 2];

    fn new(meta: ResponseMeta) -> Self {
        Self(meta)
    }

    fn whole(&self, choices: &[FinishedChoice]) -> String {
        choices.first().map_or_else(String::new, |finished| {
            let message = message(&finished.text, &finished.reasoning, &finished.calls);
            to_json(&OllamaChatAnswer { head: head(&self.0), message, end: finished.into() })
        })
    }

    fn loaded(&self) -> String {
        let end = OllamaEnd::loaded();
        to_json(&OllamaChatAnswer { head: head(&self.0), message: message("", "", &[]), end })
    }

    fn progress(&mut self, _: Progress, _: &mut SseEvents) {}

    fn delta(&mut self, _: usize, delta: &Delta, out: &mut SseEvents) {
        // Calls are sent when they are complete.
        if delta.text.is_empty() && delta.reasoning.is_empty() {
            return;
        }
        let message = message(&delta.text, &delta.reasoning, &[]);
        out.push_line(&OllamaChatAnswer { head: head(&self.0), message, end: OllamaEnd::default() });
    }

    fn closing(&mut self, _: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        if !finished.calls.is_empty() {
            let message = message("", "", &finished.calls);
            out.push_line(&OllamaChatAnswer { head: head(&self.0), message, end: OllamaEnd::default() });
        }
        let message = message("", "", &[]);
        out.push_line(&OllamaChatAnswer { head: head(&self.0), message, end: finished.into() });
    }

    /// The last line says that it is the last.
    fn end(&mut self, _: &[FinishedChoice], _: &mut SseEvents) {}

    fn failure(&mut self, error: &ErrorBody, out: &mut SseEvents) {
        fail(error, out);
    }
}

impl ApiFormat for OllamaGenerate {
    type Request = OllamaGenerateRequest;

    const ROUTE: &'static str = "/api/generate";
    const ID_PREFIX: &'static str = "gen-";
    const STREAM_TYPE: &'static str = "application/x-ndjson";
    const HEARTBEATS: [&'static str; 2] = [""; 2];

    fn new(meta: ResponseMeta) -> Self {
        Self(meta)
    }

    fn whole(&self, choices: &[FinishedChoice]) -> String {
        choices.first().map_or_else(String::new, |finished| {
            let FinishedChoice { text, reasoning, .. } = finished;
            to_json(&OllamaGenerated {
                head: head(&self.0),
                response: text,
                thinking: reasoning,
                end: finished.into(),
            })
        })
    }

    fn loaded(&self) -> String {
        to_json(&OllamaGenerated {
            head: head(&self.0),
            response: "",
            thinking: "",
            end: OllamaEnd::loaded(),
        })
    }

    fn progress(&mut self, _: Progress, _: &mut SseEvents) {}

    fn delta(&mut self, _: usize, delta: &Delta, out: &mut SseEvents) {
        let (response, thinking) = (delta.text.as_str(), delta.reasoning.as_str());
        out.push_line(&OllamaGenerated {
            head: head(&self.0),
            response,
            thinking,
            end: OllamaEnd::default(),
        });
    }

    fn closing(&mut self, _: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        out.push_line(&OllamaGenerated {
            head: head(&self.0),
            response: "",
            thinking: "",
            end: finished.into(),
        });
    }

    /// The last line says that it is the last.
    fn end(&mut self, _: &[FinishedChoice], _: &mut SseEvents) {}

    fn failure(&mut self, error: &ErrorBody, out: &mut SseEvents) {
        fail(error, out);
    }
}
