//! `POST /v1/chat/completions` in OpenAI's wire format.

use std::slice;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    format::{ApiFormat, CompletionHead, ResponseMeta, to_json},
    logprobs::{ChatLogprobs, PromptLogprob, PromptLogprobs},
    sse::SseEvents,
    update::{Delta, FinishReason, FinishedChoice, Progress},
    usage::{CompletionTail, Timings, Usage},
};
use crate::{http::request::ChatRequest, job, text::Call};

/// An answer of `/v1/chat/completions`.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletion<'a> {
    #[serde(flatten)]
    head: CompletionHead<'a>,
    choices: Vec<ChatChoice<'a>>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    /// With `prompt_logprobs`: log-probabilities by token id, for each token of the prompt; null for the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<std::collections::BTreeMap<String, PromptLogprob>>>>)]
    prompt_logprobs: Option<&'a [Option<PromptLogprobs>]>,
    usage: Usage,
    timings: Timings,
}

/// One of the answers to a conversation.
#[derive(Serialize, ToSchema)]
struct ChatChoice<'a> {
    index: usize,
    message: AssistantMessage<'a>,
    #[schema(required)]
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: FinishReason,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

/// The message that the assistant answers with.
#[derive(Serialize, ToSchema)]
struct AssistantMessage<'a> {
    /// Always `assistant`.
    role: &'static str,
    /// Null where there are tool calls and no text.
    #[schema(required)]
    content: Option<&'a str>,
    /// The model's reasoning before its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    /// Always null.
    #[schema(required)]
    refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<AnsweredCall<'a>>>,
}

/// A tool call.
#[derive(Serialize, ToSchema)]
struct AnsweredCall<'a> {
    id: &'a str,
    /// Always `function`.
    #[serde(rename = "type")]
    kind: &'static str,
    function: AnsweredFunction<'a>,
}

/// The function that is called.
#[derive(Serialize, ToSchema)]
struct AnsweredFunction<'a> {
    name: &'a str,
    /// A JSON object as text.
    arguments: &'a str,
}

/// An event of the stream of `/v1/chat/completions`.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletionChunk<'a> {
    #[serde(flatten)]
    head: CompletionHead<'a>,
    /// Empty in the events with usage or progress.
    choices: Vec<ChatChoiceDelta<'a>>,
    /// With `return_token_ids`, in the first event of each choice with tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(flatten)]
    tail: CompletionTail,
}

/// What is added to a choice.
#[derive(Serialize, ToSchema)]
struct ChatChoiceDelta<'a> {
    index: usize,
    delta: MessageDelta<'a>,
    #[schema(required)]
    logprobs: Option<ChatLogprobs<'a>>,
    /// Null before the end.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

/// What is added to the message.
#[derive(Default, Serialize, ToSchema)]
struct MessageDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    /// Reasoning to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<CallDelta<'a>>>,
}

/// A new call, with its `id`, or further arguments of one.
#[derive(Serialize, ToSchema)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta<'a>,
}

/// What is added to the call of a function.
#[derive(Serialize, ToSchema)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// To append.
    arguments: &'a str,
}

impl<'a> From<&'a FinishedChoice> for AssistantMessage<'a> {
    fn from(FinishedChoice { reasoning, text, calls, .. }: &'a FinishedChoice) -> Self {
        let call = |call: &'a Call| AnsweredCall {
            id: call.id.as_deref().unwrap_or_default(),
            kind: "function",
            function: AnsweredFunction {
                name: call.name.as_deref().unwrap_or_default(),
                arguments: &call.arguments,
            },
        };
        let has_calls = !calls.is_empty();
        Self {
            role: "assistant",
            content: Some(text.as_str()).filter(|text| !has_calls || !text.is_empty()),
            reasoning_content: not_empty(reasoning),
            reasoning: not_empty(reasoning),
            refusal: None,
            tool_calls: has_calls.then(|| calls.iter().map(call).collect()),
        }
    }
}

impl<'a> From<&'a Delta> for MessageDelta<'a> {
    fn from(Delta { reasoning, text, calls, .. }: &'a Delta) -> Self {
        let has_calls = !calls.is_empty();
        let has_other = has_calls || !reasoning.is_empty();
        Self {
            role: None,
            content: Some(text.as_str()).filter(|text| !has_other || !text.is_empty()),
            reasoning_content: not_empty(reasoning),
            reasoning: not_empty(reasoning),
            tool_calls: has_calls.then(|| calls.iter().map(CallDelta::from).collect()),
        }
    }
}

impl<'a> From<&'a Call> for CallDelta<'a> {
    fn from(Call { index, id, name, arguments }: &'a Call) -> Self {
        let name = name.as_deref().filter(|_| id.is_some());
        Self {
            index: *index,
            id: id.as_deref(),
            kind: id.as_ref().map(|_| "function"),
            function: FunctionDelta { name, arguments },
        }
    }
}

fn not_empty(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

const CHUNK: &str = "chat.completion.chunk";

/// The format of OpenAI's chat completions.
pub(crate) struct Chat(ResponseMeta);

impl Chat {
    fn choice<'a>(&self, (index, finished): (usize, &'a FinishedChoice)) -> ChatChoice<'a> {
        let logprobs = self.0.logprobs_of(&finished.scored);
        let token_ids = finished.ids.answer.as_deref();
        ChatChoice { index, message: finished.into(), logprobs, finish_reason: finished.reason, token_ids }
    }

    fn chunk<'a>(&'a self, choice: ChatChoiceDelta<'a>, tail: CompletionTail) -> ChatCompletionChunk<'a> {
        ChatCompletionChunk { head: self.0.head(CHUNK), choices: vec![choice], prompt_token_ids: None, tail }
    }

    fn chunk_without_choice(&self, tail: CompletionTail) -> ChatCompletionChunk<'_> {
        ChatCompletionChunk { head: self.0.head(CHUNK), choices: Vec::new(), prompt_token_ids: None, tail }
    }
}

impl ApiFormat for Chat {
    type Request = ChatRequest;

    const ROUTE: &'static str = "/v1/chat/completions";
    const ALIASES: &'static [&'static str] = &["/chat/completions"];
    const ID_PREFIX: &'static str = "chatcmpl-";
    const OPERATION: &'static str = "chat";

    fn new(meta: ResponseMeta) -> Self {
        Self(meta)
    }

    fn whole(&mut self, choices: &[FinishedChoice]) -> String {
        to_json(&ChatCompletion {
            head: self.0.head("chat.completion"),
            choices: choices.iter().enumerate().map(|one| self.choice(one)).collect(),
            prompt_token_ids: choices.first().and_then(|choice| choice.ids.prompt.as_deref()),
            prompt_logprobs: choices.first().and_then(|choice| choice.prompt_logprobs.as_deref()),
            usage: Usage::of(choices),
            timings: Timings::of(choices),
        })
    }

    fn progress(&mut self, progress: Progress, out: &mut SseEvents) {
        out.push(&self.chunk_without_choice(progress.into()));
    }

    fn opening(&mut self, choice: usize, out: &mut SseEvents) {
        let delta = MessageDelta { role: Some("assistant"), content: Some(""), ..MessageDelta::default() };
        let choice =
            ChatChoiceDelta { index: choice, delta, logprobs: None, finish_reason: None, token_ids: None };
        let usage = job::Usage { prompt_tokens: self.0.prompt_tokens, ..job::Usage::default() };
        out.push(&self.chunk(choice, self.0.tail_of_event(None, usage)));
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut SseEvents) {
        let logprobs = self.0.logprobs_of(&delta.scored);
        let token_ids = delta.ids.answer.as_deref();
        let piece =
            ChatChoiceDelta { index: choice, delta: delta.into(), logprobs, finish_reason: None, token_ids };
        let chunk = self.chunk(piece, self.0.tail_of_event(None, delta.usage));
        out.push(&ChatCompletionChunk { prompt_token_ids: delta.ids.prompt.as_deref(), ..chunk });
    }

    fn closing(&mut self, choice: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        let (delta, finish_reason) = (MessageDelta::default(), Some(finished.reason));
        let last = ChatChoiceDelta { index: choice, delta, logprobs: None, finish_reason, token_ids: None };
        let timings = Some(Timings::of(slice::from_ref(finished)));
        out.push(&self.chunk(last, self.0.tail_of_event(timings, finished.usage)));
    }

    fn end(&mut self, choices: &[FinishedChoice], out: &mut SseEvents) {
        if self.0.include_usage {
            out.push(&self.chunk_without_choice(CompletionTail::of(choices)));
        }
        out.push_done();
    }
}
