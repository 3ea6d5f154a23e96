//! `tools`, `tool_choice` and `parallel_tool_calls`, as OpenAI has them.
//!
//! | `tool_choice` | what the answer is | what arguments are |
//! |---|---|---|
//! | `none` | text; the model is not told of the tools | |
//! | `auto` | text or calls | those of tools with `strict` keep their schema |
//! | `required`, or a function by its name | calls and nothing else | all keep their schema |
//!
//! A schema is kept by a grammar, and so what cannot be kept to the letter is refused: keywords that the grammar does not
//! know, and `strict` where calls begin with a special token, which no grammar over text can allow. Without a grammar a
//! call is what the model wrote, and may be wrong.

use serde_json::{Map, Value, json};

use super::{
    compat,
    fields::{Fields, wrong_type},
    generation::{Ask, Rules},
    messages::check_kind,
    response_format::Form,
};
use crate::{
    constraint,
    http::field_error::FieldError,
    job::Constraint,
    text::{Calls, Conversation, Reading, Text, ToolFormat, ToolSupport},
};

/// Most tools of one request.
const MOST_TOOLS: usize = 128;

/// Longest name of a tool, in bytes.
const LONGEST_NAME: usize = 64;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// What the model is told of it: all but `strict`, which is about the answer.
    pub(crate) told: Value,
    /// The JSON schema of its arguments.
    pub(crate) schema: Value,
    /// Whether arguments must keep the schema, even where the model may choose not to call.
    pub(crate) strict: bool,
    /// Where its function stands in the request.
    path: String,
}

/// Where a tool's function stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Within `function`, as in chat completions.
    Nested,
    /// Beside `type`, as in responses.
    Flat,
}

/// Takes `tools`.
pub(crate) fn take_tools(fields: &mut Fields, shape: Shape) -> Result<Vec<Tool>, FieldError> {
    let path = fields.path("tools");
    let items: Vec<Value> = fields.take("tools")?.unwrap_or_default();
    if items.len() > MOST_TOOLS {
        return Err(FieldError::value(path, format!("{} tools, at most {MOST_TOOLS}", items.len())));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
    for (place, item) in items.into_iter().enumerate() {
        let item = fields.nested(item, &format!("{path}[{place}]"))?;
        let tool = match shape {
            Shape::Nested => tool_of(item)?,
            Shape::Flat => flat_tool_of(item)?,
        };
        if tools.iter().any(|other| other.name == tool.name) {
            let said = format!("{:?} is the name of another tool as well; give each its own", tool.name);
            return Err(FieldError::value(format!("{}.name", tool.path), said));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn tool_of(mut tool: Fields) -> Result<Tool, FieldError> {
    check_kind(&tool.require::<String>("type")?, &tool.path("type"))?;
    let mut function = tool.require_nested("function")?;
    tool.finish(&[compat::TOOL])?;
    let tool = function_of(&mut function)?;
    function.finish(&[])?;
    Ok(tool)
}

fn flat_tool_of(mut function: Fields) -> Result<Tool, FieldError> {
    check_kind(&function.require::<String>("type")?, &function.path("type"))?;
    let tool = function_of(&mut function)?;
    function.finish(&[compat::TOOL])?;
    Ok(tool)
}

/// Takes a function's name, description, parameters and whether they are strict.
fn function_of(function: &mut Fields) -> Result<Tool, FieldError> {
    let name: String = function.require("name")?;
    check_name(&name, &function.path("name"))?;
    let path = function.path("parameters");
    let parameters = function.take::<Value>("parameters")?;
    if let Some(other) = parameters.as_ref().filter(|parameters| !parameters.is_object()) {
        return Err(wrong_type(&path, "a JSON schema, which is an object", other));
    }
    let strict = function.take("strict")?.unwrap_or(false);
    let mut told = Map::new();
    told.insert("name".into(), name.clone().into());
    let description: Option<String> = function.take("description")?;
    told.extend(description.map(|description| ("description".to_owned(), description.into())));
    told.extend(parameters.clone().map(|parameters| ("parameters".to_owned(), parameters)));
    let nothing = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
    let schema = parameters.unwrap_or_else(nothing);
    let path = function.path("").trim_end_matches('.').to_owned();
    Ok(Tool { name, told: json!({ "type": "function", "function": told }), schema, strict, path })
}

/// Names stand within quotation marks in every format, and in grammars.
fn check_name(name: &str, path: &str) -> Result<(), FieldError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(allowed) {
        return Ok(());
    }
    let said = format!(
        "{name:?} is no name for a tool; use 1 to {LONGEST_NAME} of a to z, A to Z, 0 to 9, _, - and ."
    );
    Err(FieldError::value(path, said))
}

/// How a model calls tools, as far as requests are checked against it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToolRules {
    pub(crate) support: ToolSupport,
    /// Calls begin with a special token.
    pub(crate) is_marker_special: bool,
}

impl From<&Text> for ToolRules {
    fn from(text: &Text) -> Self {
        let support = text.tools();
        let marker = if let ToolSupport::Read(format) = support { format.marker() } else { "" };
        Self { support, is_marker_special: text.is_special(marker) }
    }
}

/// What the answer may call.
#[derive(Debug)]
pub(crate) struct Toolbox {
    tools: Vec<Tool>,
    choice: Choice,
    single: bool,
}

/// `tool_choice`.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Auto,
    Required,
    Named(String),
}

impl Toolbox {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls`; `None` where nothing may be called.
    pub(crate) fn take(fields: &mut Fields, shape: Shape) -> Result<Option<Self>, FieldError> {
        let tools = take_tools(fields, shape)?;
        let choice = take_choice(fields, &tools)?;
        let single = !fields.take("parallel_tool_calls")?.unwrap_or(true);
        Ok(choice.filter(|_| !tools.is_empty()).map(|choice| Self { tools, choice, single }))
    }

    /// Tells the model of the tools.
    pub(crate) fn tell(&self, conversation: Conversation, rules: &ToolRules) -> Conversation {
        let tools = self.tools.iter().map(|tool| tool.told.clone()).collect();
        let opening = match rules.support {
            ToolSupport::Read(format) if self.is_required() => format.opening(),
            _ => "",
        };
        Conversation { tools, opening, ..conversation }
    }

    /// Lets the answer call them.
    pub(crate) fn equip(self, ask: Ask, rules: &Rules, fields: &Fields) -> Result<Ask, FieldError> {
        let format = match rules.tools.support {
            // The model's text side refuses the conversation, and names the model.
            ToolSupport::None => return Ok(ask),
            ToolSupport::Read(format) => format,
            ToolSupport::Unread => return Err(unread(fields)),
        };
        if let Some(form) = &ask.form {
            let said = "is given together with tools, whose calls have a form of their own; send one of them";
            return Err(FieldError::value(form.param.clone(), said));
        }
        let form = self.form(format, rules, fields)?;
        if let Some(form) = &form {
            form.check_ends(fields, ask.ends())?;
        }
        let names = self.allowed().map(|tool| tool.name.clone()).collect();
        let reading = Reading { format, names, single: self.single, opened: self.is_required() };
        Ok(Ask { form, reading: Some(reading), ..ask })
    }

    fn is_required(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// Those that may be called.
    fn allowed(&self) -> impl Iterator<Item = &Tool> {
        let is_allowed = |tool: &&Tool| !matches!(&self.choice, Choice::Named(name) if *name != tool.name);
        self.tools.iter().filter(is_allowed)
    }

    /// Whether a call of this tool must keep its schema.
    fn keeps(&self, tool: &Tool) -> bool {
        tool.strict || self.is_required()
    }

    /// The form of the answer, if any of its calls must keep a schema.
    fn form(&self, format: &ToolFormat, rules: &Rules, fields: &Fields) -> Result<Option<Form>, FieldError> {
        let Some(first) = self.allowed().find(|tool| self.keeps(tool)) else { return Ok(None) };
        if !self.is_required() && rules.tools.is_marker_special {
            let said = "cannot be kept with tool_choice \"auto\": calls of this model begin with a special token; send \
                        tool_choice \"required\" or a function's name, or leave strict out";
            return Err(FieldError::value(format!("{}.strict", first.path), said));
        }
        let (mut parts, mut embedded) = (Vec::new(), Vec::new());
        for tool in self.allowed() {
            let mut schema = json!({ "type": "object" });
            if self.keeps(tool) {
                let path = format!("{}.parameters", tool.path);
                schema = object_schema(&tool.schema, &path)?;
                parts.push((path, Constraint::Schema(schema.to_string())));
            }
            embedded.push((tool.name.as_str(), constraint::embedded(schema).to_string()));
        }
        let calls = Calls { required: self.is_required(), single: self.single };
        let constraint = Constraint::Lark(format.grammar(calls, embedded.into_iter()));
        Ok(Some(Form { constraint, param: fields.path("tools"), parts }))
    }
}

fn unread(fields: &Fields) -> FieldError {
    let said = "this model writes calls in a way that eka cannot read; it reads those of Hermes and Qwen, Llama 3 and \
                Mistral. Leave the tools out, or send tool_choice \"none\"";
    FieldError::value(fields.path("tools"), said)
}

/// Arguments are always an object.
fn object_schema(schema: &Value, path: &str) -> Result<Value, FieldError> {
    let mut schema = schema.clone();
    match schema.get("type") {
        None => schema["type"] = "object".into(),
        Some(kind) if kind == "object" => {}
        Some(kind) => {
            let said = format!("is {kind}, and arguments are an object; send \"object\"");
            return Err(FieldError::value(format!("{path}.type"), said));
        }
    }
    Ok(schema)
}

/// Takes `tool_choice`; `None` for none.
fn take_choice(fields: &mut Fields, tools: &[Tool]) -> Result<Option<Choice>, FieldError> {
    let path = fields.path("tool_choice");
    let wrong = |found: &str| {
        let said = format!(
            "invalid tool_choice {found:?}; expected \"none\", \"auto\", \"required\" or \
             {{\"type\": \"function\", \"function\": {{\"name\": …}}}}"
        );
        FieldError::value(&path, said)
    };
    let choice = match fields.take::<Value>("tool_choice")? {
        None => Choice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => return Ok(None),
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            other => return Err(wrong(other)),
        },
        Some(choice) => Choice::Named(name_of(fields.nested(choice, &path)?, tools)?),
    };
    if choice != Choice::Auto && tools.is_empty() {
        return Err(FieldError::value(path, "asks for a call, and there are no tools; send tools with it"));
    }
    Ok(Some(choice))
}

/// The function that `tool_choice` names: within `function` in chat completions, beside `type` in responses.
fn name_of(mut choice: Fields, tools: &[Tool]) -> Result<String, FieldError> {
    check_kind(&choice.require::<String>("type")?, &choice.path("type"))?;
    let (name, path): (String, _) = if choice.has("function") {
        let mut function = choice.require_nested("function")?;
        let taken = (function.require("name")?, function.path("name"));
        function.finish(&[])?;
        taken
    } else {
        (choice.require("name")?, choice.path("name"))
    };
    choice.finish(&[])?;
    if tools.iter().any(|tool| tool.name == name) {
        return Ok(name);
    }
    Err(FieldError::value(path, format!("tool_choice names an unknown tool {name:?}; name one of tools")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{executor::Deadlines, http::request::generation::Prompt};

    fn take(body: &Value) -> Result<Option<Toolbox>, FieldError> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        let toolbox = Toolbox::take(&mut fields, Shape::Nested)?;
        fields.finish(&[])?;
        Ok(toolbox)
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
    fn the_model_is_told_all_but_strict() {
        let function =
            json!({ "strict": true, "parameters": { "b": 1, "a": 2 }, "description": "d", "name": "n" });
        let toolbox = take(&with(&function)).unwrap().unwrap();
        let told =
            r#"{"type":"function","function":{"name":"n","description":"d","parameters":{"b":1,"a":2}}}"#;
        assert_eq!((toolbox.tools[0].told.to_string().as_str(), toolbox.tools[0].strict), (told, true));
    }

    #[test]
    fn strict_is_refused_where_a_model_chooses_and_calls_begin_with_a_special_token() {
        let equip = |choice: &str| {
            let rules = Rules {
                vocabulary: 9,
                deadlines: Deadlines { queue: Duration::ZERO, total: Duration::ZERO },
                temperature: 1.0,
                tools: ToolRules {
                    support: ToolSupport::of("{{ tools }}[TOOL_CALLS]"),
                    is_marker_special: true,
                },
            };
            let body = with(&json!({ "name": "a", "strict": true }));
            let body = json!({ "tools": body["tools"], "tool_choice": choice });
            let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
            let toolbox = Toolbox::take(&mut fields, Shape::Nested).unwrap().unwrap();
            let ask = Ask::take(&mut fields, &rules, Prompt::Text("a".into()), None).unwrap();
            toolbox.equip(ask, &rules, &fields)
        };
        let error = equip("auto").unwrap_err();
        assert_eq!((error.param(), error.code()), ("tools[0].function.strict", "invalid_value"));
        assert!(equip("required").unwrap().form.is_some());
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
