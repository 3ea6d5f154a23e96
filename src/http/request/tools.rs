//! How an answer may call tools: the grammar that its calls follow, and how they are read.
//!
//! | `tool_choice` | the answer | arguments |
//! |---|---|---|
//! | `none` | text; the model does not see the tools | |
//! | `auto` | text or calls | match the schema for tools with `strict` |
//! | `required` | only calls, at most 32 | match the schema |
//! | a function by its name | one call of it | match the schema |
//!
//! A grammar enforces the schemas. It refuses keywords that it does not know. With `auto` it cannot enforce `strict` where calls
//! begin with a special token, which a grammar over text cannot allow. Without a grammar a call is what the model wrote, and
//! may be invalid.

use serde_json::{Value, json};

use super::{
    closed_objects::closed,
    response_format::OutputConstraint,
    tool_definitions::{Tool, ToolChoice},
};
use crate::{
    constraint,
    http::field_error::FieldError,
    job::Constraint,
    text::{Calls, Conversation, Text, ToolCallParserOptions, ToolFormat, ToolSignature},
};

/// How a model supports tools.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToolContext {
    pub(crate) format: &'static ToolFormat,
    /// Calls begin with a special token.
    pub(crate) is_marker_special: bool,
}

impl From<&Text> for ToolContext {
    fn from(text: &Text) -> Self {
        let format = text.tools().format();
        Self { format, is_marker_special: text.is_special(format.marker()) }
    }
}

/// The tools that an answer may call.
#[derive(Debug)]
pub(crate) struct ToolSet {
    tools: Vec<Tool>,
    choice: ToolChoice,
    /// At most one call.
    single: bool,
}

impl ToolSet {
    /// The tools of a request; `None` where no tool may be called.
    pub(crate) fn new(
        tools: Vec<Tool>,
        choice: ToolChoice,
        parallel: bool,
    ) -> Result<Option<Self>, FieldError> {
        match &choice {
            ToolChoice::None => return Ok(None),
            ToolChoice::Auto if tools.is_empty() => return Ok(None),
            _ if tools.is_empty() => return Err(FieldError::requires("tool_choice", "tools")),
            ToolChoice::Named { name, path } if tools.iter().all(|tool| tool.name != *name) => {
                let message = format!("unknown tool {name:?}; expected the name of one of tools");
                return Err(FieldError::value(path, message));
            }
            _ => {}
        }
        let single = !parallel || matches!(choice, ToolChoice::Named { .. });
        Ok(Some(Self { tools, choice, single }))
    }

    /// Adds the tools to what the chat template sees.
    pub(crate) fn add_to(&self, conversation: Conversation, context: &ToolContext) -> Conversation {
        let tools = self.tools.iter().map(|tool| tool.definition.clone()).collect();
        let answer_prefix = if self.is_required() { context.format.answer_prefix() } else { "" };
        Conversation { tools, answer_prefix: answer_prefix.into(), ..conversation }
    }

    /// How calls are read, and the constraint on the answer if any call must match a schema.
    pub(crate) fn calls(
        &self,
        context: &ToolContext,
    ) -> Result<(ToolCallParserOptions, Option<OutputConstraint>), FieldError> {
        let (format, single, opened) = (context.format, self.single, self.is_required());
        let constraint = self.constraint(context)?;
        let tools = self.allowed().map(|tool| ToolSignature::new(tool.name.as_str(), &tool.schema)).collect();
        Ok((ToolCallParserOptions { format, tools, single, opened }, constraint))
    }

    fn is_required(&self) -> bool {
        self.choice != ToolChoice::Auto
    }

    /// The tools that may be called.
    fn allowed(&self) -> impl Iterator<Item = &Tool> {
        let is_allowed = |tool: &&Tool| match &self.choice {
            ToolChoice::Named { name, .. } => *name == tool.name,
            _ => true,
        };
        self.tools.iter().filter(is_allowed)
    }

    /// Whether the arguments of this tool must match its schema.
    fn is_enforced(&self, tool: &Tool) -> bool {
        tool.strict || self.is_required()
    }

    fn constraint(&self, context: &ToolContext) -> Result<Option<OutputConstraint>, FieldError> {
        let is_possible = self.is_required() || !context.is_marker_special;
        if !is_possible || !self.allowed().any(|tool| self.is_enforced(tool)) {
            return Ok(None);
        }
        let (mut parts, mut embedded) = (Vec::new(), Vec::new());
        for tool in self.allowed() {
            let mut schema = json!({ "type": "object" });
            if self.is_enforced(tool) {
                let path = format!("{}.parameters", tool.path);
                schema = object_schema(&tool.schema, &path)?;
                if context.format.has_separate_arguments() {
                    refuse_keywords_of_the_object(&schema, &path)?;
                }
                parts.push((path, Constraint::Schema(schema.to_string())));
            }
            embedded.push((tool.name.as_str(), schema));
        }
        let calls = Calls { required: self.is_required(), single: self.single };
        let tools = embedded.iter().map(|(name, schema)| (*name, schema));
        let constraint = Constraint::Lark(context.format.grammar(calls, tools, constraint::SCHEMA_SYNTAX));
        Ok(Some(OutputConstraint { constraint, param: "tools".into(), parts }))
    }
}

/// Keywords about the whole object of arguments.
const ABOUT_THE_OBJECT: [&str; 12] = [
    "minProperties",
    "maxProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "not",
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
    "unevaluatedProperties",
];

/// Refuses what cannot be enforced where each argument is written as a text of its own.
fn refuse_keywords_of_the_object(schema: &Value, path: &str) -> Result<(), FieldError> {
    let Some(keyword) = ABOUT_THE_OBJECT.into_iter().find(|name| schema.get(name).is_some()) else {
        return Ok(());
    };
    let message = "cannot be enforced in this model's format of calls, which writes each argument apart; describe the arguments in `properties` and `required`";
    Err(FieldError::value(format!("{path}.{keyword}"), message))
}

/// The schema of arguments, which are always an object.
fn object_schema(schema: &Value, path: &str) -> Result<Value, FieldError> {
    let mut schema = closed(schema.clone());
    match schema.get("type") {
        None => schema["type"] = "object".into(),
        Some(kind) if kind == "object" => {}
        Some(kind) => {
            let message = format!("unsupported type {kind}; arguments are an \"object\"");
            return Err(FieldError::value(format!("{path}.type"), message));
        }
    }
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::{
        schema::{Fields, Modify, boolean},
        tool_definitions::{chat_tools, tool_choice},
    };
    use crate::text::ToolSupport;

    fn take(body: &Value) -> Result<Option<ToolSet>, FieldError> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        let tools = fields.take("tools", chat_tools().or_empty())?;
        let choice = fields.take("tool_choice", tool_choice().optional())?;
        let parallel = fields.take("parallel_tool_calls", boolean().or(true))?;
        fields.finish(&[])?;
        ToolSet::new(tools, choice.unwrap_or(ToolChoice::Auto), parallel)
    }

    fn with(function: &Value) -> Value {
        json!({ "tools": [{ "type": "function", "function": function }] })
    }

    #[test]
    fn nothing_may_be_called_without_tools_or_with_none() {
        let none = json!({ "tools": with(&json!({ "name": "a" }))["tools"], "tool_choice": "none" });
        for body in [json!({}), json!({ "tools": [] }), json!({ "tools": null, "tool_choice": "auto" }), none]
        {
            assert!(take(&body).unwrap().is_none(), "{body}");
        }
    }

    #[test]
    fn the_model_sees_all_but_strict() {
        let function =
            json!({ "strict": true, "parameters": { "b": 1, "a": 2 }, "description": "d", "name": "n" });
        let tools = take(&with(&function)).unwrap().unwrap();
        let definition =
            r#"{"type":"function","function":{"name":"n","description":"d","parameters":{"b":1,"a":2}}}"#;
        assert_eq!(
            (tools.tools[0].definition.to_string().as_str(), tools.tools[0].strict),
            (definition, true)
        );
    }

    #[test]
    fn strict_is_not_enforced_where_a_model_chooses_and_calls_begin_with_a_special_token() {
        let calls = |choice: &str| {
            let format = ToolSupport::of("{{ tools }}[TOOL_CALLS]").format();
            let context = ToolContext { format, is_marker_special: true };
            let body = with(&json!({ "name": "a", "strict": true }));
            let body = json!({ "tools": body["tools"], "tool_choice": choice });
            take(&body).unwrap().unwrap().calls(&context)
        };
        assert!(calls("auto").unwrap().1.is_none());
        assert!(calls("required").unwrap().1.is_some());
    }

    #[test]
    fn mistakes_name_the_field_within_the_tools() {
        let two = json!({ "type": "function", "function": { "name": "a" } });
        let choice = |choice: Value| json!({ "tools": [two], "tool_choice": choice });
        for (body, param, code) in [
            (json!({ "tools": {} }), "tools", "invalid_type"),
            (json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type", "invalid_value"),
            (json!({ "tools": [{ "type": "function" }] }), "tools[0].function", "missing_field"),
            (with(&json!({})), "tools[0].function.name", "missing_field"),
            (with(&json!({ "name": "a b" })), "tools[0].function.name", "invalid_value"),
            (with(&json!({ "name": "a".repeat(65) })), "tools[0].function.name", "invalid_value"),
            (with(&json!({ "name": "a", "parameters": [] })), "tools[0].function.parameters", "invalid_type"),
            (with(&json!({ "name": "a", "parameter": {} })), "tools[0].function.parameter", "unknown_field"),
            (json!({ "tools": [two, two] }), "tools[1].function.name", "invalid_value"),
            (json!({ "tools": vec![two.clone(); 129] }), "tools", "invalid_value"),
            (json!({ "tool_choice": "required" }), "tool_choice", "invalid_value"),
            (choice(json!("any")), "tool_choice", "invalid_value"),
            (choice(json!({ "type": "allowed_tools" })), "tool_choice.type", "invalid_value"),
            (choice(json!({ "type": "function" })), "tool_choice.name", "missing_field"),
            (
                choice(json!({ "type": "function", "function": { "name": "b" } })),
                "tool_choice.function.name",
                "invalid_value",
            ),
            (choice(json!({ "type": "function", "name": "b" })), "tool_choice.name", "invalid_value"),
        ] {
            let error = take(&body).unwrap_err();
            assert_eq!((error.param(), error.code()), (param, code), "{error}");
        }
    }
}
