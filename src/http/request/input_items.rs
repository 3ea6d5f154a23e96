//! `input` of `/v1/responses`: a text, or items that are flatter than the messages of chat completions.

use super::{
    compat,
    messages::{arguments, content, no_arguments},
    schema::{FieldType, Modify, array, either, object, shape, string, tagged_shape},
};
use crate::text::{Arguments, Conversation, Message, ToolCall};

tagged_shape! {
    /// A message, a call that the assistant made, or its result.
    pub(crate) enum InputItem by "type" or "message" {
        "message" => Message(InputMessage),
        "function_call" => Call(InputCall),
        "function_call_output" => Output(InputCallOutput),
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
    /// The conversation, with `instructions` as its first message.
    pub(crate) fn conversation(self, instructions: Option<String>) -> Conversation {
        let mut messages: Vec<Message> =
            instructions.into_iter().map(|text| Message::new("system", text)).collect();
        match self {
            Self::Text(text) => messages.push(Message::new("user", text)),
            Self::Items(items) => items.into_iter().for_each(|item| item.add_to(&mut messages)),
        }
        messages.into()
    }
}

impl InputItem {
    fn add_to(self, messages: &mut Vec<Message>) {
        match self {
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
