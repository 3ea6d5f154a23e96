//! `input` of `/v1/responses`: a text, or items that are flatter than the messages of chat completions.

use super::{
    compat,
    messages::{arguments, content, no_arguments},
    schema::{FieldType, Modify, array, either, object, one_of, shape, string, tagged_shape},
};
use crate::text::{Arguments, Message, ToolCall};

tagged_shape! {
    /// A message, a call that the assistant made, or its result.
    pub(crate) enum InputItem by "type" or "message" {
        "message" => Message(InputMessage),
        "function_call" => Call(InputCall),
        "function_call_output" | "custom_tool_call_output" => Output(InputCallOutput),
        "custom_tool_call" => Custom(InputCustomCall),
        "reasoning" => Reasoning(InputReasoning),
    }
}

shape! {
    /// A message of the conversation.
    pub(crate) struct InputMessage {
        /// `system`, `developer`, `user`, `assistant`, or another role that the chat template knows.
        role: String = string();
        content: String = content();
    }
    accepts compat::ITEM;
}

shape! {
    /// A call that the assistant made.
    pub(crate) struct InputCall {
        call_id: String = string();
        name: String = string();
        /// As the model wrote them, usually the text of a JSON object; an object may be sent as well.
        arguments: Option<Arguments> = arguments().optional();
    }
    accepts compat::ITEM;
}

shape! {
    /// A call of a tool that takes any text.
    pub(crate) struct InputCustomCall {
        call_id: String = string();
        name: String = string();
        input: String = string();
    }
    accepts compat::ITEM;
}

shape! {
    /// The assistant's reasoning before its next message or call.
    pub(crate) struct InputReasoning {
        content: Option<String> = reasoning_texts().optional();
        summary: Option<String> = reasoning_texts().optional();
    }
    accepts compat::ITEM, compat::REASONING_ITEM;
}

shape! {
    /// A text of reasoning.
    pub(crate) struct ReasoningPart {
        _kind as "type": () = one_of(&[("reasoning_text", ()), ("summary_text", ()), ("text", ())]);
        text: String = string();
    }
}

fn reasoning_texts() -> impl FieldType<Value = String> {
    array(object::<ReasoningPart>())
        .map(|parts| parts.into_iter().map(|part| part.text).collect::<Vec<_>>().join("\n"))
}

shape! {
    /// The result of a call.
    pub(crate) struct InputCallOutput {
        call_id: String = string();
        output: String = content();
    }
    accepts compat::ITEM;
}

/// A text, or the conversation so far.
#[derive(Debug)]
pub(crate) enum Input {
    Text(String),
    Items(Vec<InputItem>),
}

pub(crate) fn input() -> impl FieldType<Value = Input> {
    let items = array(object::<InputItem>()).items(1..=usize::MAX);
    either(string().map(Input::Text), items.map(Input::Items))
        .named("Input", "A text, or the conversation so far.")
}

impl Input {
    /// The messages, after those `before`.
    pub(crate) fn messages(self, before: Vec<Message>) -> Vec<Message> {
        let mut messages = before;
        match self {
            Self::Text(text) => messages.push(Message::new("user", text)),
            Self::Items(items) => {
                let mut reasoning = None;
                for item in items {
                    let before = messages.len();
                    item.add_to(&mut messages, &mut reasoning);
                    let next = messages.get_mut(before).filter(|message| message.role == "assistant");
                    if let Some(message) = next {
                        message.reasoning = reasoning.take();
                    }
                }
            }
        }
        messages
    }
}

impl InputItem {
    /// Adds the item to the conversation, or keeps reasoning for the assistant's next message.
    fn add_to(self, messages: &mut Vec<Message>, reasoning: &mut Option<String>) {
        match self {
            Self::Reasoning(InputReasoning { content, summary }) => {
                *reasoning = content.or(summary).filter(|text| !text.is_empty());
            }
            Self::Custom(InputCustomCall { call_id, name, input }) => {
                let arguments = [("input".to_owned(), input.into())].into_iter().collect();
                add_call(messages, ToolCall::new(Some(call_id), name, Arguments::Object(arguments)));
            }
            Self::Message(InputMessage { role, content }) => messages.push(Message::new(role, content)),
            Self::Call(InputCall { call_id, name, arguments }) => {
                let arguments = arguments.unwrap_or_else(no_arguments);
                add_call(messages, ToolCall::new(Some(call_id), name, arguments));
            }
            Self::Output(InputCallOutput { call_id, output }) => {
                let result = Message::new("tool", output);
                messages.push(Message { tool_call_id: Some(call_id), ..result });
            }
        }
    }
}

/// Adds a call to the assistant's message before it.
fn add_call(messages: &mut Vec<Message>, call: ToolCall) {
    match messages.last_mut() {
        Some(last) if last.role == "assistant" => last.tool_calls.push(call),
        _ => {
            messages.push(Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() })
        }
    }
}
