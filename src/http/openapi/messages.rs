//! Messages, tools and calls, as chat completions have them.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A message of a conversation.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool`, or what else the chat template knows.
    role: String,
    /// May be absent where there are calls.
    content: Option<Content>,
    /// Calls that the assistant made.
    tool_calls: Option<Vec<ToolCall>>,
    /// Of a message with the role `tool`: which call it is the result of.
    tool_call_id: Option<String>,
    /// Of a message with the role `tool`: the function's name.
    name: Option<String>,
}

/// A text, or parts of one.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a content. Texts alone: there are no images here.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Part {
    Text { text: String },
    InputText { text: String },
    OutputText { text: String },
    Refusal { refusal: String },
}

/// A call that the assistant made.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolCall {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<Function>,
    function: CalledFunction,
}

/// There is no other kind.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Function {
    Function,
}

/// What was called, and with which arguments.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CalledFunction {
    name: String,
    /// As the model wrote them, mostly the text of a JSON object; an object may be sent as well.
    arguments: Option<CalledArguments>,
}

/// Arguments of a call: their text, or an object.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum CalledArguments {
    #[schema(examples("{\"city\": \"Pune\"}"))]
    Written(String),
    #[schema(value_type = Object)]
    Object(Value),
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tool {
    #[serde(rename = "type")]
    kind: Function,
    function: ToolFunction,
}

/// A function: what the model is told of it.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolFunction {
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
pub(crate) enum ToolChoice {
    Mode(ToolMode),
    Named(NamedTool),
}

/// `auto` leaves it to the model; `required` makes every answer a call.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolMode {
    None,
    Auto,
    Required,
}

/// This function is called.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedTool {
    #[serde(rename = "type")]
    kind: Function,
    function: FunctionName,
}

/// One of `tools`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionName {
    name: String,
}
