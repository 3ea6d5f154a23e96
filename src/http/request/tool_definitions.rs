//! `tools` and `tool_choice`: the functions that the model may call.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{
    compat,
    messages::function_kind,
    schema::{
        FieldType, JsonType, Location, Modify, Schemas, array, boolean, either, json_object, object, one_of,
        shape, string,
    },
};
use crate::http::field_error::FieldError;

/// Most tools of one request.
pub(super) const MAX_TOOLS: usize = 128;

/// Longest name of a tool, in bytes.
const MAX_NAME_BYTES: usize = 64;

shape! {
    /// A function that the model may call, as chat completions describe it.
    pub(crate) struct ChatTool {
        _kind as "type": () = function_kind();
        function: Tool = object::<ToolFunction>().try_map(ToolFunction::into_tool);
    }
    accepts compat::TOOL;
}

shape! {
    /// A function, as the model sees it.
    pub(crate) struct ToolFunction {
        ..definition: FunctionDefinition;
    }
}

shape! {
    /// A function that the model may call, as responses describe it.
    pub(crate) struct ResponseTool {
        ..definition: FunctionDefinition;
        _kind as "type": () = function_kind();
    }
    accepts compat::TOOL;
}

shape! {
    /// The fields of a function.
    pub(crate) struct FunctionDefinition {
        name: String = string().pattern("^[a-zA-Z0-9_.-]{1,64}$").try_map(tool_name);
        description: Option<String> = string().optional();
        /// The JSON schema of its arguments, which are an object.
        parameters: Option<Map<String, Value>> = json_object().optional();
        /// Arguments match the schema even where the model may choose not to call.
        strict: bool = boolean().or(false);
    }
}

shape! {
    /// The function to call. Its name is in `function`, or beside `type`.
    pub(crate) struct NamedTool {
        _kind as "type": () = function_kind();
        function: Option<FunctionName> = object().optional();
        name: Option<String> = string().optional();
    }
}

shape! {
    /// The name of one of `tools`.
    pub(crate) struct FunctionName {
        name: String = string();
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// What chat templates see: all but `strict`.
    pub(crate) definition: Value,
    /// The JSON schema of its arguments.
    pub(crate) schema: Value,
    /// Arguments must match the schema, even where the model may choose not to call.
    pub(crate) strict: bool,
    /// The path of the function in the request.
    pub(super) path: String,
}

/// `tools` of chat completions.
pub(crate) fn chat_tools() -> impl FieldType<Value = Vec<Tool>> {
    array(object::<ChatTool>().map(|tool| tool.function)).items(0..=MAX_TOOLS).try_map(with_unique_names)
}

/// `tools` of responses.
pub(crate) fn response_tools() -> impl FieldType<Value = Vec<Tool>> {
    let tools = array(ResponseTools).items(0..=MAX_TOOLS);
    tools.map(|tools| tools.into_iter().flatten().collect()).try_map(with_unique_names)
}

/// One of `tools` of responses; `None` for a tool that OpenAI's servers run, or that is not a function. Clients send them to any
/// server, so they are left out with a warning.
struct ResponseTools;

impl FieldType for ResponseTools {
    type Value = Option<Tool>;
    const JSON: JsonType = JsonType::Object;

    fn read(&self, value: Value, at: &Location) -> Result<Option<Tool>, FieldError> {
        let kind = value.get("type").and_then(Value::as_str);
        if kind.is_some_and(|kind| kind != "function") {
            at.ignore();
            return Ok(None);
        }
        let tool = object::<ResponseTool>().read(value, at)?;
        Ok(Some(tool.definition.into_tool(at)))
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        let own = object::<ResponseTool>().schema(schemas);
        let kind = json!({ "type": "string", "not": { "enum": ["function"] } });
        json!({ "oneOf": [own, { "type": "object", "properties": { "type": kind }, "required": ["type"] }] })
    }
}

/// `tool_choice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    Required,
    Named {
        name: String,
        /// The path of the name in the request.
        path: String,
    },
}

pub(crate) fn tool_choice() -> impl FieldType<Value = ToolChoice> {
    type Mode = fn() -> ToolChoice;
    const MODES: &[(&str, Mode)] = &[
        ("none", || ToolChoice::None),
        ("auto", || ToolChoice::Auto),
        ("required", || ToolChoice::Required),
    ];
    let about =
        "Whether functions are called: `auto` leaves it to the model, `required` makes every answer a call.";
    either(one_of(MODES).map(|mode| mode()), object::<NamedTool>().try_map(NamedTool::into_choice))
        .named("ToolChoice", about)
}

/// Names are quoted in the formats of all models, and in grammars.
fn tool_name(name: String, at: &Location) -> Result<String, FieldError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(allowed) {
        return Ok(name);
    }
    let message = format!(
        "{name:?} is not a tool name; use 1 to {MAX_NAME_BYTES} of a to z, A to Z, 0 to 9, _, - and ."
    );
    Err(at.invalid(message))
}

pub(super) fn with_unique_names(tools: Vec<Tool>, _: &Location) -> Result<Vec<Tool>, FieldError> {
    let mut names = HashSet::new();
    match tools.iter().find(|tool| !names.insert(tool.name.as_str())) {
        None => Ok(tools),
        Some(Tool { name, path, .. }) => {
            let message =
                format!("another tool has the name {name:?} already; use a different name for each");
            Err(FieldError::value(format!("{path}.name"), message))
        }
    }
}

impl ToolFunction {
    fn into_tool(self, at: &Location) -> Result<Tool, FieldError> {
        Ok(self.definition.into_tool(at))
    }
}

impl FunctionDefinition {
    fn into_tool(self, at: &Location) -> Tool {
        let Self { name, description, parameters, strict } = self;
        Self::definition_of(name, description, parameters, strict, at.path())
    }

    /// A tool of an API that has other names for the fields.
    pub(super) fn tool(
        name: String,
        description: Option<String>,
        parameters: Option<Map<String, Value>>,
        strict: bool,
        at: &Location,
    ) -> Result<Tool, FieldError> {
        let name = tool_name(name, &at.field("name"))?;
        Ok(Self::definition_of(name, description, parameters, strict, at.path()))
    }

    fn definition_of(
        name: String,
        description: Option<String>,
        parameters: Option<Map<String, Value>>,
        strict: bool,
        path: &str,
    ) -> Tool {
        let mut function = Map::new();
        function.insert("name".into(), name.clone().into());
        function.extend(description.map(|description| ("description".to_owned(), description.into())));
        function.extend(parameters.clone().map(|parameters| ("parameters".to_owned(), parameters.into())));
        let no_arguments = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
        let schema = parameters.map_or_else(no_arguments, Value::Object);
        let definition = json!({ "type": "function", "function": function });
        Tool { name, definition, schema, strict, path: path.to_owned() }
    }
}

impl NamedTool {
    fn into_choice(self, at: &Location) -> Result<ToolChoice, FieldError> {
        let (name, place) = match (self.function, self.name) {
            (Some(function), _) => (function.name, at.field("function").field("name")),
            (None, Some(name)) => (name, at.field("name")),
            (None, None) => return Err(at.field("name").missing()),
        };
        Ok(ToolChoice::Named { name, path: place.path().to_owned() })
    }
}
