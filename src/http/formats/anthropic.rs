//! `POST /v1/messages` in Anthropic's wire format: blocks of reasoning, text and tool calls.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    format::{ApiFormat, ResponseMeta, to_json},
    sse::SseEvents,
    update::{Delta, FinishReason, FinishedChoice, Progress},
};
use crate::{
    http::{error::ErrorBody, error_shape::ErrorShape, request::MessagesRequest},
    text::Call,
};

/// An answer of `/v1/messages`.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicAnswer)]
pub(crate) struct AnthropicMessage<'a> {
    id: &'a str,
    /// Always `message`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Always `assistant`.
    role: &'static str,
    model: &'a str,
    content: Vec<ContentBlock<'a>>,
    /// Null before the end of a stream.
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// The stop string that ended the answer.
    #[schema(required)]
    stop_sequence: Option<&'a str>,
    usage: MessageUsage,
}

/// A block of an answer.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicContentBlock)]
pub(crate) enum ContentBlock<'a> {
    Thinking {
        thinking: &'a str,
        /// Always empty: the reasoning is not signed.
        signature: &'static str,
    },
    Text {
        text: &'a str,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        #[schema(value_type = Object)]
        input: Value,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = AnthropicStopReason)]
pub(crate) enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
}

/// Tokens in Anthropic's shape.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(crate) struct MessageUsage {
    /// Prompt tokens that were computed.
    input_tokens: usize,
    /// Always 0: the cache has no price.
    cache_creation_input_tokens: usize,
    /// Prompt tokens from the prefix cache.
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

/// An event of the stream of `/v1/messages`.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicEvent)]
pub(crate) enum MessageEvent<'a> {
    MessageStart { message: Box<AnthropicMessage<'a>> },
    ContentBlockStart { index: usize, content_block: ContentBlock<'a> },
    ContentBlockDelta { index: usize, delta: BlockDelta<'a> },
    ContentBlockStop { index: usize },
    MessageDelta { delta: EndOfMessage<'a>, usage: MessageUsage },
    MessageStop,
}

/// What is added to a block.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type")]
#[schema(as = AnthropicBlockDelta)]
pub(crate) enum BlockDelta<'a> {
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'static str },
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

/// The end of an answer.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicEndOfMessage)]
pub(crate) struct EndOfMessage<'a> {
    stop_reason: StopReason,
    #[schema(required)]
    stop_sequence: Option<&'a str>,
}

/// The kind of the block that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    Thinking,
    Text,
    /// A call, by its number.
    Call(usize),
}

/// The format of Anthropic's messages.
pub(crate) struct Messages {
    meta: ResponseMeta,
    open: Option<BlockKind>,
    /// Blocks that are closed.
    blocks: usize,
}

impl ApiFormat for Messages {
    type Request = MessagesRequest;

    const ROUTE: &'static str = "/v1/messages";
    const ID_PREFIX: &'static str = "msg_";
    const OPERATION: &'static str = "chat";
    const HEARTBEATS: [&'static str; 2] = ["event: ping\ndata: {\"type\": \"ping\"}\n\n"; 2];

    fn new(meta: ResponseMeta) -> Self {
        Self { meta, open: None, blocks: 0 }
    }

    fn whole(&mut self, choices: &[FinishedChoice]) -> String {
        // No field of this format asks for more than one choice.
        choices.first().map_or_else(String::new, |finished| {
            let mut content = Vec::new();
            if !finished.reasoning.is_empty() {
                content.push(ContentBlock::Thinking { thinking: &finished.reasoning, signature: "" });
            }
            if !finished.text.is_empty() {
                content.push(ContentBlock::Text { text: &finished.text });
            }
            content.extend(finished.calls.iter().map(call_block));
            to_json(&AnthropicMessage {
                content,
                stop_reason: Some(stop_reason(finished)),
                stop_sequence: finished.stop_string.as_deref(),
                usage: finished.into(),
                ..self.message()
            })
        })
    }

    fn progress(&mut self, _: Progress, _: &mut SseEvents) {}

    fn opening(&mut self, _: usize, out: &mut SseEvents) {
        push(out, "message_start", &MessageEvent::MessageStart { message: Box::new(self.message()) });
    }

    fn delta(&mut self, _: usize, delta: &Delta, out: &mut SseEvents) {
        if !delta.reasoning.is_empty() {
            self.open(BlockKind::Thinking, ContentBlock::Thinking { thinking: "", signature: "" }, out);
            self.push_delta(BlockDelta::Thinking { thinking: &delta.reasoning }, out);
        }
        if !delta.text.is_empty() {
            self.open(BlockKind::Text, ContentBlock::Text { text: "" }, out);
            self.push_delta(BlockDelta::Text { text: &delta.text }, out);
        }
        for call in &delta.calls {
            let block = ContentBlock::ToolUse {
                id: call.id.as_deref().unwrap_or_default(),
                name: call.name.as_deref().unwrap_or_default(),
                input: Value::Object(Map::new()),
            };
            self.open(BlockKind::Call(call.index), block, out);
            if !call.arguments.is_empty() {
                self.push_delta(BlockDelta::InputJson { partial_json: &call.arguments }, out);
            }
        }
    }

    fn closing(&mut self, _: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        self.close(out);
        let delta = EndOfMessage {
            stop_reason: stop_reason(finished),
            stop_sequence: finished.stop_string.as_deref(),
        };
        push(out, "message_delta", &MessageEvent::MessageDelta { delta, usage: finished.into() });
    }

    fn end(&mut self, _: &[FinishedChoice], out: &mut SseEvents) {
        push(out, "message_stop", &MessageEvent::MessageStop);
    }

    fn failure(&mut self, error: &ErrorBody, out: &mut SseEvents) {
        if let Some(body) = ErrorShape::Anthropic.body(error) {
            out.push_raw("error", &body);
        }
    }
}

impl Messages {
    /// A message without content.
    fn message(&self) -> AnthropicMessage<'_> {
        AnthropicMessage {
            id: &self.meta.id,
            kind: "message",
            role: "assistant",
            model: &self.meta.model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage {
                input_tokens: self.meta.prompt_tokens,
                cache_creation_input_tokens: 0,
                cache_read_input_tokens: 0,
                output_tokens: 0,
            },
        }
    }

    /// Opens a block, unless it is open.
    fn open(&mut self, kind: BlockKind, content_block: ContentBlock<'_>, out: &mut SseEvents) {
        if self.open == Some(kind) {
            return;
        }
        self.close(out);
        self.open = Some(kind);
        let event = MessageEvent::ContentBlockStart { index: self.blocks, content_block };
        push(out, "content_block_start", &event);
    }

    /// Closes the open block, if there is one.
    fn close(&mut self, out: &mut SseEvents) {
        let Some(kind) = self.open.take() else { return };
        if kind == BlockKind::Thinking {
            self.push_delta(BlockDelta::Signature { signature: "" }, out);
        }
        push(out, "content_block_stop", &MessageEvent::ContentBlockStop { index: self.blocks });
        self.blocks += 1;
    }

    fn push_delta(&self, delta: BlockDelta<'_>, out: &mut SseEvents) {
        push(out, "content_block_delta", &MessageEvent::ContentBlockDelta { index: self.blocks, delta });
    }
}

fn push(out: &mut SseEvents, kind: &'static str, event: &MessageEvent<'_>) {
    out.push_typed(kind, event);
}

/// A call. Arguments that are not an object, as an answer that was cut has, are sent as an empty one.
fn call_block(call: &Call) -> ContentBlock<'_> {
    let input: Option<Map<String, Value>> = serde_json::from_str(&call.arguments).ok();
    ContentBlock::ToolUse {
        id: call.id.as_deref().unwrap_or_default(),
        name: call.name.as_deref().unwrap_or_default(),
        input: Value::Object(input.unwrap_or_default()),
    }
}

const fn stop_reason(finished: &FinishedChoice) -> StopReason {
    match finished.reason {
        FinishReason::Length => StopReason::MaxTokens,
        FinishReason::ToolCalls => StopReason::ToolUse,
        FinishReason::Stop if finished.stop_string.is_some() => StopReason::StopSequence,
        FinishReason::Stop => StopReason::EndTurn,
    }
}

impl From<&FinishedChoice> for MessageUsage {
    fn from(FinishedChoice { usage, .. }: &FinishedChoice) -> Self {
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
        }
    }
}

/// The answer of `/v1/messages/count_tokens` and `/v1/responses/input_tokens`.
#[derive(Serialize, ToSchema)]
pub(crate) struct CountedTokens {
    pub(crate) input_tokens: usize,
}
