//! The request of `POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic's clients send it.

use serde_json::{Map, Value};

use super::{
    anthropic_messages::{AnthropicMessage, conversation, system_text},
    compat,
    generation::{GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams, max_tokens},
    prompt::Prompt,
    response_format::TextFormat,
    schema::{
        FieldType, Fields, JsonType, Location, Modify, Schemas, Shape, array, boolean, integer_from,
        json_object, number, object, one_of, shape, string, string_list, tagged_shape,
    },
    thinking::{Effort, Thinking, ThinkingOptions, ThinkingRequest, effort},
    tool_definitions::{FunctionDefinition, MAX_TOOLS, Tool, ToolChoice, with_unique_names},
    tools::ToolSet,
};
use crate::{http::field_error::FieldError, text::Conversation, units::Tokens};

/// Most stop strings of one request, and their longest in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

shape! {
    /// A request of `/v1/messages`.
    pub(crate) struct MessagesRequest {
        /// Id of a model of `GET /v1/models`; by default the first of them.
        _model as "model": Option<String> = string().optional();
        /// The conversation so far.
        messages: Vec<AnthropicMessage> = array(object::<AnthropicMessage>()).items(1..=usize::MAX);
        /// The system message, a text or a list of texts.
        system: Option<String> = system_text().optional();
        /// Most tokens of the answer; by default `engine.default_max_new_tokens` or what the context has room for.
        max_tokens: Option<Tokens> = max_tokens();
        /// The answer ends before any of these strings.
        stop_sequences: Vec<String> =
            string_list(MAX_STOPS, MAX_STOP_BYTES, "an empty stop string would match before anything").or_empty();
        /// Sends the answer as server-sent events while it is generated.
        stream: bool = boolean().or(false);
        temperature: Option<f32> = number(0.0..=2.0).optional();
        top_p: Option<f32> = number(0.0..=1.0).optional();
        top_k: Option<usize> = integer_from(0).optional();
        /// Tools that the model may call. Tools that Anthropic's servers run are ignored, with a warning in the header
        /// `x-eka-ignored-fields`.
        tools: Vec<Option<Tool>> = array(AnthropicTools).items(0..=MAX_TOOLS).or_empty();
        tool_choice: Option<AnthropicChoice> = object().optional();
        /// Whether the model reasons before it answers.
        thinking: Option<ThinkingOptions> = object().optional();
        output_config: Option<OutputConfig> = object().optional();
        /// The form of the answer.
        output_format: Option<TextFormat> = object().optional();
    }
    accepts compat::ANTHROPIC;
}

shape! {
    /// How much the model reasons, and the form of the answer.
    pub(crate) struct OutputConfig {
        effort: Option<Effort> = effort().optional();
        format: Option<TextFormat> = object().optional();
    }
}

tagged_shape! {
    /// Whether tools are called.
    pub(crate) enum AnthropicChoice by "type" {
        "auto" => Auto(AnyTool),
        "any" => Any(AnyTool),
        "tool" => Tool(OneTool),
        "none" => None(NoTool),
    }
}

shape! {
    /// Any tool.
    pub(crate) struct AnyTool {
        /// At most one call.
        disable_parallel_tool_use: bool = boolean().or(false);
    }
}

shape! {
    /// The tool to call.
    pub(crate) struct OneTool {
        name: String = string();
        _parallel as "disable_parallel_tool_use": bool = boolean().or(false);
    }
}

shape! {
    /// No tool.
    pub(crate) struct NoTool {}
}

shape! {
    /// A tool that the model may call.
    pub(crate) struct AnthropicTool {
        name: String = string().pattern("^[a-zA-Z0-9_.-]{1,64}$");
        description: Option<String> = string().optional();
        /// The JSON schema of its arguments, which are an object.
        input_schema: Option<Map<String, Value>> = json_object().optional();
        _kind as "type": () = one_of(&[("custom", ())]).or(());
        /// Arguments match the schema even where the model may choose not to call.
        strict: bool = boolean().or(false);
    }
    accepts compat::TOOL, compat::ANTHROPIC_TOOL;
}

/// One of `tools`; `None` for a tool that Anthropic's servers run.
struct AnthropicTools;

impl FieldType for AnthropicTools {
    type Value = Option<Tool>;
    const JSON: JsonType = JsonType::Object;

    fn read(&self, value: Value, at: &Location) -> Result<Option<Tool>, FieldError> {
        let kind = value.get("type").and_then(Value::as_str);
        if kind.is_some_and(|kind| kind != "custom") {
            at.ignore();
            return Ok(None);
        }
        let AnthropicTool { name, description, input_schema, strict, .. } =
            object::<AnthropicTool>().read(value, at)?;
        FunctionDefinition::tool(name, description, input_schema, strict, at).map(Some)
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        let own = object::<AnthropicTool>().schema(schemas);
        let other = serde_json::json!({
            "type": "object", "properties": { "type": { "type": "string", "not": { "enum": ["custom"] } } }, "required": ["type"],
        });
        serde_json::json!({ "oneOf": [own, other] })
    }
}

impl GenerateRequest for MessagesRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        let (choice, parallel) = self.choice();
        let tools = self.tools.into_iter().flatten().collect::<Vec<_>>();
        let tools = with_unique_names(tools, &Location::default())?;
        // With tools that are all ignored, a choice has no effect.
        let choice = if tools.is_empty() { ToolChoice::None } else { choice };
        let tools = ToolSet::new(tools, choice, parallel)?;
        let request = thinking(self.thinking, self.output_config.as_ref());
        let thinking = request.thinking;
        let conversation = conversation(self.messages, self.system)?;
        let mut conversation = Conversation { variables: request.variables(), ..conversation };
        if let Some(tools) = &tools {
            conversation = tools.add_to(conversation, &context.tools);
        }
        let text_format = self.output_format.map(|format| ("output_format", format));
        let config_format = self.output_config.and_then(|config| config.format);
        let text_format = text_format.or(config_format.map(|format| ("output_config.format", format)));
        let route = RouteParams::new(Prompt::Conversation(conversation), self.max_tokens);
        let mut generation = Generation::take(&mut Fields::default())?;
        (generation.stream, generation.stop) = (self.stream, self.stop_sequences);
        generation.sampling.temperature = self.temperature;
        generation.sampling.top_p = self.top_p;
        generation.sampling.top_k = self.top_k.map(|top_k| top_k as i128);
        let params = generation.resolve(RouteParams { text_format, tools, ..route }, context)?;
        Ok(params.with_thinking(thinking))
    }
}

impl MessagesRequest {
    /// `tool_choice`, and whether an answer may have several calls.
    fn choice(&self) -> (ToolChoice, bool) {
        match &self.tool_choice {
            None => (ToolChoice::Auto, true),
            Some(AnthropicChoice::Auto(any)) => (ToolChoice::Auto, !any.disable_parallel_tool_use),
            Some(AnthropicChoice::Any(any)) => (ToolChoice::Required, !any.disable_parallel_tool_use),
            Some(AnthropicChoice::Tool(one)) => {
                (ToolChoice::Named { name: one.name.clone(), path: "tool_choice.name".into() }, false)
            }
            Some(AnthropicChoice::None(NoTool {})) => (ToolChoice::None, true),
        }
    }
}

/// Reasoning is always told apart from the answer. A budget only counts where reasoning is on.
fn thinking(options: Option<ThinkingOptions>, config: Option<&OutputConfig>) -> ThinkingRequest {
    let is_on = options.as_ref().map(|options| options.kind);
    let budget = options.filter(|options| options.kind).and_then(|options| options.budget_tokens);
    let effort = config.and_then(|config| config.effort);
    let thinking = Thinking { is_parsed: true, is_hidden: is_on == Some(false), budget };
    ThinkingRequest { is_on, effort, thinking, ..ThinkingRequest::default() }
}
