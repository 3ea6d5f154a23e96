//! `POST /v1/responses` in OpenAI's wire format, for text and calls of functions.
//!
//! A complete response is stored where the server [stores responses](crate::http::stored_responses). A stream has typed, numbered events and ends with `response.completed`, or with
//! `response.incomplete` at the token limit.

use std::slice;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    format::{ApiFormat, ResponseMeta, to_json},
    sse::SseEvents,
    update::{Delta, FinishReason, FinishedChoice, Progress},
    usage::{PromptProgress, PromptTokensDetails, Timings},
};
use crate::{
    http::{
        error::{ErrorBody, ErrorDetails},
        random_id,
        request::{EchoedFields, ResponseCall},
    },
    text::{Arguments, Call, Message, ToolCall},
};

/// An answer of `/v1/responses`.
#[derive(Serialize, ToSchema)]
pub(crate) struct Response<'a> {
    id: &'a str,
    /// Always `response`.
    object: &'static str,
    /// In seconds since 1970.
    created_at: u64,
    status: Status,
    /// Always null: a failed request is answered with an error.
    #[schema(required, value_type = Option<Object>)]
    error: Option<Value>,
    #[schema(required)]
    incomplete_details: Option<IncompleteDetails>,
    model: &'a str,
    output: &'a [OutputItem],
    /// The stored response that this one continues.
    #[schema(required)]
    previous_response_id: Option<&'a str>,
    /// Whether it is stored.
    store: bool,
    /// Always `disabled`.
    truncation: &'static str,
    #[schema(required)]
    usage: Option<ResponseUsage>,
    #[serde(flatten)]
    echoed: &'a EchoedFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

/// The state of a response or of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResponseStatus)]
enum Status {
    InProgress,
    Completed,
    Incomplete,
}

/// Why a response is incomplete.
#[derive(Serialize, ToSchema)]
struct IncompleteDetails {
    /// Always `max_output_tokens`.
    reason: &'static str,
}

/// Reasoning, a message or a function call.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputItem {
    Reasoning {
        id: String,
        status: Status,
        /// Always empty: the reasoning itself is the content.
        #[schema(value_type = Vec<Object>)]
        summary: [(); 0],
        content: Vec<ReasoningText>,
    },
    Message {
        id: String,
        status: Status,
        role: &'static str,
        content: Vec<OutputText>,
    },
    FunctionCall {
        id: String,
        status: Status,
        call_id: String,
        name: String,
        arguments: String,
    },
}

/// Text of reasoning.
#[derive(Serialize, ToSchema)]
struct ReasoningText {
    /// Always `reasoning_text`.
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
}

/// Text of a message.
#[derive(Serialize, ToSchema)]
struct OutputText {
    /// Always `output_text`.
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    annotations: [(); 0],
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    logprobs: [(); 0],
}

/// Tokens in the shape of responses.
#[derive(Serialize, ToSchema)]
struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: PromptTokensDetails,
    output_tokens: usize,
    output_tokens_details: OutputTokensDetails,
    total_tokens: usize,
}

/// Details of the output tokens.
#[derive(Serialize, ToSchema)]
struct OutputTokensDetails {
    reasoning_tokens: usize,
}

/// An event of the stream of `/v1/responses`.
#[derive(Serialize, ToSchema)]
pub(crate) struct ResponseEvent<'a> {
    /// OpenAI's name of the event, such as `response.output_text.delta`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Counted from 0.
    sequence_number: usize,
    #[serde(flatten)]
    data: EventData<'a>,
}

/// What an event reports.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum EventData<'a> {
    Response {
        response: Box<Response<'a>>,
    },
    Item {
        output_index: usize,
        item: &'a OutputItem,
    },
    Part {
        #[serde(flatten)]
        position: ContentPosition<'a>,
        part: &'a OutputText,
    },
    TextDelta {
        #[serde(flatten)]
        position: ContentPosition<'a>,
        delta: &'a str,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        logprobs: [(); 0],
    },
    Text {
        #[serde(flatten)]
        position: ContentPosition<'a>,
        text: &'a str,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        logprobs: [(); 0],
    },
    ReasoningDelta {
        #[serde(flatten)]
        position: ContentPosition<'a>,
        delta: &'a str,
    },
    Reasoning {
        #[serde(flatten)]
        position: ContentPosition<'a>,
        text: &'a str,
    },
    ArgumentsDelta {
        item_id: &'a str,
        output_index: usize,
        delta: &'a str,
    },
    Arguments {
        item_id: &'a str,
        output_index: usize,
        name: &'a str,
        arguments: &'a str,
    },
    Progress {
        prompt_progress: PromptProgress,
    },
    Error {
        code: &'a str,
        message: &'a str,
        #[schema(required)]
        param: Option<&'a str>,
    },
}

/// Which content of which item an event is about.
#[derive(Serialize, ToSchema)]
struct ContentPosition<'a> {
    item_id: &'a str,
    output_index: usize,
    /// Always 0: a message has one content.
    content_index: usize,
}

/// The format of OpenAI's responses.
pub(crate) struct Responses {
    meta: ResponseMeta,
    sent_events: usize,
    /// Items of the output so far; the last one may still be open.
    items: Vec<OutputItem>,
    is_open: bool,
}

impl OutputItem {
    /// Reasoning without content.
    fn reasoning() -> Self {
        let (id, status) = (random_id::new("rs_"), Status::InProgress);
        Self::Reasoning { id, status, summary: [], content: Vec::new() }
    }

    /// A message without content.
    fn message() -> Self {
        let (id, status) = (random_id::new("msg_"), Status::InProgress);
        Self::Message { id, status, role: "assistant", content: Vec::new() }
    }

    /// The beginning of a call, without its arguments.
    fn call(Call { id: call_id, name, .. }: &Call) -> Self {
        Self::FunctionCall {
            id: random_id::new("fc_"),
            status: Status::InProgress,
            call_id: call_id.clone().unwrap_or_default(),
            name: name.clone().unwrap_or_default(),
            arguments: String::new(),
        }
    }

    const fn id(&self) -> &str {
        let (Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::FunctionCall { id, .. }) = self;
        id.as_str()
    }

    fn position(&self, output_index: usize) -> ContentPosition<'_> {
        ContentPosition { item_id: self.id(), output_index, content_index: 0 }
    }

    const fn set_status(&mut self, to: Status) {
        let (Self::Reasoning { status, .. }
        | Self::Message { status, .. }
        | Self::FunctionCall { status, .. }) = self;
        *status = to;
    }

    /// Appends text to reasoning or to a message, or arguments to a call.
    fn append(&mut self, fresh: &str) {
        match self {
            Self::Reasoning { content, .. } => match content.first_mut() {
                Some(part) => part.text.push_str(fresh),
                None => content.push(ReasoningText { kind: "reasoning_text", text: fresh.to_owned() }),
            },
            Self::Message { content, .. } => match content.first_mut() {
                Some(part) => part.text.push_str(fresh),
                None => content.push(fresh.into()),
            },
            Self::FunctionCall { arguments, .. } => arguments.push_str(fresh),
        }
    }
}

impl From<&str> for OutputText {
    fn from(text: &str) -> Self {
        Self { kind: "output_text", text: text.to_owned(), annotations: [], logprobs: [] }
    }
}

impl ApiFormat for Responses {
    type Request = ResponseCall;

    const ROUTE: &'static str = "/v1/responses";
    const ALIASES: &'static [&'static str] = &["/responses"];
    const ID_PREFIX: &'static str = "resp_";
    const OPERATION: &'static str = "chat";

    fn new(meta: ResponseMeta) -> Self {
        Self { meta, sent_events: 0, items: Vec::new(), is_open: false }
    }

    fn whole(&mut self, choices: &[FinishedChoice]) -> String {
        let Some(finished) = choices.first() else { return String::new() };
        let done = |mut item: OutputItem, text: &str| {
            item.append(text);
            item.set_status(Status::Completed);
            item
        };
        let has_message = !finished.text.is_empty() || finished.calls.is_empty();
        let message = has_message.then(|| done(OutputItem::message(), &finished.text));
        let calls = finished.calls.iter().map(|call| done(OutputItem::call(call), &call.arguments));
        let reasoning = Some(finished.reasoning.as_str()).filter(|text| !text.is_empty());
        let reasoning = reasoning.map(|text| done(OutputItem::reasoning(), text));
        let mut items: Vec<_> = reasoning.into_iter().chain(message).chain(calls).collect();
        if let Some(last) = items.last_mut() {
            last.set_status(last_status(finished));
        }
        let document = to_json(&complete(&self.meta, &items, finished));
        self.store(&document, finished);
        document
    }

    fn progress(&mut self, progress: Progress, out: &mut SseEvents) {
        let data = EventData::Progress { prompt_progress: progress.into() };
        push(out, &mut self.sent_events, "response.prompt_progress", data);
    }

    fn opening(&mut self, _: usize, out: &mut SseEvents) {
        for kind in ["response.created", "response.in_progress"] {
            let response = Box::new(response(&self.meta, Status::InProgress));
            push(out, &mut self.sent_events, kind, EventData::Response { response });
        }
    }

    fn delta(&mut self, _: usize, delta: &Delta, out: &mut SseEvents) {
        if !delta.reasoning.is_empty() {
            self.push_reasoning(&delta.reasoning, out);
        }
        if !delta.text.is_empty() {
            self.push_text(&delta.text, out);
        }
        for call in &delta.calls {
            self.push_call(call, out);
        }
    }

    fn closing(&mut self, _: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        if self.items.is_empty() {
            self.push_text("", out);
        }
        self.close(last_status(finished), out);
        let is_incomplete = finished.reason == FinishReason::Length;
        let kind = if is_incomplete { "response.incomplete" } else { "response.completed" };
        let response = complete(&self.meta, &self.items, finished);
        let document = self.meta.stored.as_ref().map(|_| to_json(&response));
        push(out, &mut self.sent_events, kind, EventData::Response { response: Box::new(response) });
        if let Some(document) = document {
            self.store(&document, finished);
        }
    }

    /// The last event says that it is the last.
    fn end(&mut self, _: &[FinishedChoice], _: &mut SseEvents) {}

    fn failure(&mut self, body: &ErrorBody, out: &mut SseEvents) {
        let ErrorDetails { code, message, param, .. } = &body.error;
        let data = EventData::Error { code, message, param: param.as_deref() };
        push(out, &mut self.sent_events, "error", data);
    }
}

impl Responses {
    /// Stores the complete response, if it is to be stored.
    fn store(&mut self, document: &str, finished: &FinishedChoice) {
        let Some(stored) = &mut self.meta.stored else { return };
        let call = |call: &Call| {
            let arguments = Arguments::Written(call.arguments.clone());
            ToolCall::new(call.id.clone(), call.name.clone().unwrap_or_default(), arguments)
        };
        let answer = Message {
            content: Some(finished.text.clone()).filter(|text| finished.calls.is_empty() || !text.is_empty()),
            reasoning: Some(finished.reasoning.clone()).filter(|text| !text.is_empty()),
            tool_calls: finished.calls.iter().map(call).collect(),
            ..Message::new("assistant", "")
        };
        stored.store(&self.meta.id, document, answer);
    }

    fn push_reasoning(&mut self, text: &str, out: &mut SseEvents) {
        if !self.is_open || !matches!(self.items.last(), Some(OutputItem::Reasoning { .. })) {
            self.open(OutputItem::reasoning(), out);
        }
        let Some((index, item)) = last(&mut self.items) else { return };
        item.append(text);
        let data = EventData::ReasoningDelta { position: item.position(index), delta: text };
        push(out, &mut self.sent_events, "response.reasoning_text.delta", data);
    }

    fn push_text(&mut self, text: &str, out: &mut SseEvents) {
        if !self.is_open || !matches!(self.items.last(), Some(OutputItem::Message { .. })) {
            self.open(OutputItem::message(), out);
            let Some((index, item)) = last(&mut self.items) else { return };
            let data = EventData::Part { position: item.position(index), part: &"".into() };
            push(out, &mut self.sent_events, "response.content_part.added", data);
        }
        let Some((index, item)) = last(&mut self.items) else { return };
        item.append(text);
        if !text.is_empty() {
            let data = EventData::TextDelta { position: item.position(index), delta: text, logprobs: [] };
            push(out, &mut self.sent_events, "response.output_text.delta", data);
        }
    }

    fn push_call(&mut self, call: &Call, out: &mut SseEvents) {
        if call.id.is_some() {
            self.open(OutputItem::call(call), out);
        }
        let Some((output_index, item)) = last(&mut self.items) else { return };
        item.append(&call.arguments);
        let data = EventData::ArgumentsDelta { item_id: item.id(), output_index, delta: &call.arguments };
        push(out, &mut self.sent_events, "response.function_call_arguments.delta", data);
    }

    /// Closes the open item and begins another.
    fn open(&mut self, item: OutputItem, out: &mut SseEvents) {
        self.close(Status::Completed, out);
        let data = EventData::Item { output_index: self.items.len(), item: &item };
        push(out, &mut self.sent_events, "response.output_item.added", data);
        self.items.push(item);
        self.is_open = true;
    }

    /// Closes the last item if it is open.
    fn close(&mut self, status: Status, out: &mut SseEvents) {
        if !std::mem::replace(&mut self.is_open, false) {
            return;
        }
        let Some((output_index, item)) = last(&mut self.items) else { return };
        item.set_status(status);
        let item = &*item;
        let mut push = |kind, data| push(out, &mut self.sent_events, kind, data);
        match item {
            OutputItem::Reasoning { content, .. } => {
                for part in content {
                    let done =
                        EventData::Reasoning { position: item.position(output_index), text: &part.text };
                    push("response.reasoning_text.done", done);
                }
            }
            OutputItem::Message { content, .. } => {
                for part in content {
                    let position = || item.position(output_index);
                    let done = EventData::Text { position: position(), text: &part.text, logprobs: [] };
                    push("response.output_text.done", done);
                    push("response.content_part.done", EventData::Part { position: position(), part });
                }
            }
            OutputItem::FunctionCall { name, arguments, .. } => {
                let done = EventData::Arguments { item_id: item.id(), output_index, name, arguments };
                push("response.function_call_arguments.done", done);
            }
        }
        push("response.output_item.done", EventData::Item { output_index, item });
    }
}

fn last(items: &mut [OutputItem]) -> Option<(usize, &mut OutputItem)> {
    items.iter_mut().enumerate().next_back()
}

/// The status of the last item of an answer.
fn last_status(finished: &FinishedChoice) -> Status {
    if finished.is_truncated() { Status::Incomplete } else { Status::Completed }
}

/// Writes an event with the next number.
fn push(out: &mut SseEvents, sent_events: &mut usize, kind: &'static str, data: EventData<'_>) {
    out.push_typed(kind, &ResponseEvent { kind, sequence_number: *sent_events, data });
    *sent_events += 1;
}

/// A response without output.
fn response(meta: &ResponseMeta, status: Status) -> Response<'_> {
    Response {
        id: &meta.id,
        object: "response",
        created_at: meta.created,
        status,
        error: None,
        incomplete_details: None,
        model: &meta.model,
        output: &[],
        previous_response_id: meta.stored.as_ref().and_then(|stored| stored.previous.as_deref()),
        store: meta.stored.is_some(),
        truncation: "disabled",
        usage: None,
        echoed: &meta.echoed,
        timings: None,
    }
}

/// The final response.
fn complete<'a>(meta: &'a ResponseMeta, items: &'a [OutputItem], finished: &FinishedChoice) -> Response<'a> {
    let is_incomplete = finished.reason == FinishReason::Length;
    Response {
        incomplete_details: is_incomplete.then_some(IncompleteDetails { reason: "max_output_tokens" }),
        output: items,
        usage: Some(finished.into()),
        timings: Some(Timings::of(slice::from_ref(finished))),
        ..response(meta, if is_incomplete { Status::Incomplete } else { Status::Completed })
    }
}

impl From<&FinishedChoice> for ResponseUsage {
    fn from(FinishedChoice { usage, reasoning_tokens, .. }: &FinishedChoice) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: PromptTokensDetails { cached_tokens: usage.cached_tokens },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: *reasoning_tokens },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}
