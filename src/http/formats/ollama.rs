//! `POST /api/chat` and `/api/generate` in Ollama's wire format: streams are lines of JSON.

use std::{marker::PhantomData, time::Duration};

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    format::{ApiFormat, ResponseMeta, to_json},
    sse::SseEvents,
    update::{Delta, FinishReason, FinishedChoice, Progress},
};
use crate::{
    http::{
        error::ErrorBody,
        error_shape::ErrorShape,
        request::{GenerateRequest, OllamaChatRequest, OllamaGenerateRequest},
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
pub(crate) struct OllamaHead<'a> {
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
pub(crate) struct OllamaEnd {
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

/// A route of Ollama's API that generates.
pub(crate) trait OllamaRoute: Send + 'static {
    /// Its requests.
    type Request: GenerateRequest;

    /// The path of the route.
    const ROUTE: &'static str;

    /// Prefix of its answers' ids.
    const ID_PREFIX: &'static str;

    /// `gen_ai.operation.name` in traces.
    const OPERATION: &'static str;

    /// A whole answer, or a line of a stream.
    fn answer<'a>(head: OllamaHead<'a>, part: Part<'a>, end: OllamaEnd) -> impl Serialize + 'a;
}

/// The text of an answer, or a part of it.
#[derive(Default)]
pub(crate) struct Part<'a> {
    text: &'a str,
    reasoning: &'a str,
    calls: &'a [Call],
}

/// `/api/chat`.
pub(crate) struct ChatRoute;

impl OllamaRoute for ChatRoute {
    type Request = OllamaChatRequest;

    const ROUTE: &'static str = "/api/chat";
    const ID_PREFIX: &'static str = "chat-";
    const OPERATION: &'static str = "chat";

    fn answer<'a>(head: OllamaHead<'a>, part: Part<'a>, end: OllamaEnd) -> impl Serialize + 'a {
        let Part { text: content, reasoning: thinking, calls } = part;
        let tool_calls = calls.iter().map(called).collect();
        let message = OllamaMessage { role: "assistant", content, thinking, tool_calls };
        OllamaChatAnswer { head, message, end }
    }
}

/// `/api/generate`.
pub(crate) struct GenerateRoute;

impl OllamaRoute for GenerateRoute {
    type Request = OllamaGenerateRequest;

    const ROUTE: &'static str = "/api/generate";
    const ID_PREFIX: &'static str = "gen-";
    const OPERATION: &'static str = "text_completion";

    fn answer<'a>(head: OllamaHead<'a>, part: Part<'a>, end: OllamaEnd) -> impl Serialize + 'a {
        OllamaGenerated { head, response: part.text, thinking: part.reasoning, end }
    }
}

/// The format of a route of Ollama's API.
pub(crate) struct OllamaFormat<R>(ResponseMeta, PhantomData<R>);

/// The format of `/api/chat`.
pub(crate) type OllamaChat = OllamaFormat<ChatRoute>;

/// The format of `/api/generate`.
pub(crate) type OllamaGenerate = OllamaFormat<GenerateRoute>;

impl<R: OllamaRoute> OllamaFormat<R> {
    fn answer<'a>(&'a self, part: Part<'a>, end: OllamaEnd) -> impl Serialize + 'a {
        R::answer(head(&self.0), part, end)
    }
}

fn head(meta: &ResponseMeta) -> OllamaHead<'_> {
    OllamaHead { model: &meta.model, created_at: rfc3339(meta.created) }
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

impl<R: OllamaRoute> ApiFormat for OllamaFormat<R> {
    type Request = R::Request;

    const ROUTE: &'static str = R::ROUTE;
    const ID_PREFIX: &'static str = R::ID_PREFIX;
    const OPERATION: &'static str = R::OPERATION;
    const STREAM_TYPE: &'static str = "application/x-ndjson";
    const HAS_EVENTS: bool = false;
    const HEARTBEATS: [&'static str; 2] = [""; 2];

    fn new(meta: ResponseMeta) -> Self {
        Self(meta, PhantomData)
    }

    fn whole(&mut self, choices: &[FinishedChoice]) -> String {
        choices.first().map_or_else(String::new, |finished| {
            let FinishedChoice { text, reasoning, calls, .. } = finished;
            to_json(&self.answer(Part { text, reasoning, calls }, finished.into()))
        })
    }

    fn loaded(&mut self) -> String {
        to_json(&self.answer(Part::default(), OllamaEnd::loaded()))
    }

    fn progress(&mut self, _: Progress, _: &mut SseEvents) {}

    fn delta(&mut self, _: usize, delta: &Delta, out: &mut SseEvents) {
        let part = Part { text: &delta.text, reasoning: &delta.reasoning, calls: &[] };
        // Calls are sent when they are complete.
        if !part.text.is_empty() || !part.reasoning.is_empty() {
            out.push_line(&self.answer(part, OllamaEnd::default()));
        }
    }

    fn closing(&mut self, _: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        if !finished.calls.is_empty() {
            let part = Part { calls: &finished.calls, ..Part::default() };
            out.push_line(&self.answer(part, OllamaEnd::default()));
        }
        out.push_line(&self.answer(Part::default(), finished.into()));
    }

    /// The last line says that it is the last.
    fn end(&mut self, _: &[FinishedChoice], _: &mut SseEvents) {}

    fn failure(&mut self, error: &ErrorBody, out: &mut SseEvents) {
        if let Some(body) = ErrorShape::Ollama.body(error) {
            out.push_raw_line(&body);
        }
    }
}
