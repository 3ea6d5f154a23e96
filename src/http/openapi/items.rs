//! Input, tools and form of an answer, as responses have them.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::messages::{CalledArguments, Function, ToolMode};

/// A text, or the conversation so far.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Input {
    Text(String),
    Items(Items),
}

/// At least one item.
#[derive(Serialize, ToSchema)]
#[schema(min_items = 1)]
pub(crate) struct Items(Vec<Item>);

/// A message, a call that the assistant made, or the result of one.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Item {
    Message(InputMessage),
    Call(InputCall),
    Result(InputResult),
}

/// A message of the conversation.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputMessage {
    #[serde(rename = "type")]
    kind: Option<MessageKind>,
    /// `system`, `developer`, `user`, `assistant`, or what else the chat template knows.
    role: String,
    content: InputContent,
    /// Of a message that is sent back; says nothing to a model.
    id: Option<String>,
    /// Likewise.
    status: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MessageKind {
    Message,
}

/// A text, or parts of one.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum InputContent {
    Text(String),
    Parts(Vec<InputPart>),
}

/// A part of a content: texts alone.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputPart {
    #[serde(rename = "type")]
    kind: InputPartKind,
    /// Of all parts but a refusal.
    text: Option<String>,
    refusal: Option<String>,
    /// Of a part that is sent back; says nothing to a model.
    annotations: Option<Vec<Value>>,
    /// Likewise.
    logprobs: Option<Vec<Value>>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InputPartKind {
    InputText,
    OutputText,
    Text,
    Refusal,
}

/// A call that the assistant made.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputCall {
    #[serde(rename = "type")]
    kind: CallKind,
    call_id: String,
    name: String,
    /// As the model wrote them, mostly the text of a JSON object; an object may be sent as well.
    arguments: Option<CalledArguments>,
    /// Of a call that is sent back; says nothing to a model.
    id: Option<String>,
    /// Likewise.
    status: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CallKind {
    FunctionCall,
}

/// The result of a call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputResult {
    #[serde(rename = "type")]
    kind: ResultKind,
    call_id: String,
    output: InputContent,
    /// Of a result that is sent back; says nothing to a model.
    id: Option<String>,
    /// Likewise.
    status: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResultKind {
    FunctionCallOutput,
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlatTool {
    #[serde(rename = "type")]
    kind: Function,
    #[schema(pattern = "^[a-zA-Z0-9_.-]{1,64}$")]
    name: String,
    description: Option<String>,
    /// The JSON schema of its arguments, which are an object.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// Calls keep the schema even where the model may choose not to call.
    #[schema(default = false)]
    strict: Option<bool>,
}

/// Whether functions are called.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum FlatToolChoice {
    Mode(ToolMode),
    Named(FlatNamedTool),
}

/// This function is called.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlatNamedTool {
    #[serde(rename = "type")]
    kind: Function,
    /// One of `tools`.
    name: String,
}

/// The form of the answer.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextOptions {
    format: Option<TextFormat>,
}

/// OpenAI's `text.format`.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum TextFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that matches a schema.
    JsonSchema {
        name: Option<String>,
        description: Option<String>,
        /// A schema is always kept to the letter.
        strict: Option<bool>,
        #[schema(value_type = Object)]
        schema: Value,
    },
}
