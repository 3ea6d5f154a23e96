//! The requests of `POST /api/chat` and `/api/generate`, as Ollama's clients send them.

use serde_json::{Map, Value};

use super::{
    compat,
    generation::{GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams},
    keep_alive::keep_alive,
    prompt::Prompt,
    response_format::TextFormat,
    schema::{
        FieldType, Fields, Modify, Shape, array, boolean, either, integer, integer_from, json_object, number,
        object, one_of, shape, string, string_list,
    },
    thinking::{Effort, Thinking, ThinkingRequest},
    tool_definitions::{Tool, ToolChoice, chat_tools},
    tools::ToolSet,
};
use crate::{
    http::field_error::FieldError,
    job::KeepAlive,
    text::{Arguments, Conversation, Message, ToolCall},
    units::Tokens,
};

/// Most stop strings of one request, and their longest in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

shape! {
    /// Fields that Ollama's generating routes share.
    pub(crate) struct OllamaFields {
        /// Id of a model of `GET /v1/models`, also with `:latest` after it; by default the first of them.
        _model as "model": Option<String> = string().optional();
        /// Sends the answer as lines of JSON while it is generated.
        stream: bool = boolean().or(true);
        /// The form of the answer: `json`, or a JSON schema.
        format: Option<TextFormat> = format().optional().unset_at("\"\"");
        options: Option<OllamaOptions> = object().optional();
        /// Whether the model reasons before it answers, and how much.
        think: Option<Think> = think().optional();
        /// How long the model stays loaded afterwards.
        keep_alive: Option<KeepAlive> = keep_alive().optional();
    }
}

shape! {
    /// A request of `/api/chat`.
    pub(crate) struct OllamaChatRequest {
        ..fields: OllamaFields;
        /// The conversation so far. Without messages, the model is loaded.
        messages: Vec<OllamaInputMessage> = array(object::<OllamaInputMessage>()).or_empty();
        /// Functions that the model may call.
        tools: Vec<Tool> = chat_tools().or_empty();
    }
    accepts compat::OLLAMA;
}

shape! {
    /// A request of `/api/generate`.
    pub(crate) struct OllamaGenerateRequest {
        ..fields: OllamaFields;
        /// The prompt. Without one, the model is loaded.
        prompt: Option<String> = string().optional().unset_at("\"\"");
        /// The system message before it.
        system: Option<String> = string().optional().unset_at("\"\"");
        /// The prompt is continued as it is, without the chat template.
        raw: bool = boolean().or(false);
    }
    accepts compat::OLLAMA, compat::OLLAMA_GENERATE;
}

shape! {
    /// How the answer is generated.
    pub(crate) struct OllamaOptions {
        temperature: Option<f32> = number(0.0..=2.0).optional();
        top_k: Option<usize> = integer_from(0).optional().unset_at("-1");
        top_p: Option<f32> = number(0.0..=1.0).optional();
        min_p: Option<f32> = number(0.0..=1.0).optional();
        typical_p: Option<f32> = number(0.0..=1.0).optional();
        repeat_penalty: Option<f32> = number(0.1..=10.0).optional();
        presence_penalty: Option<f32> = number(-2.0..=2.0).optional();
        frequency_penalty: Option<f32> = number(-2.0..=2.0).optional();
        seed: Option<i128> = integer(i128::from(i64::MIN)..=i128::from(u64::MAX)).optional().unset_at("-1");
        /// Most tokens of the answer; a negative number means without a limit.
        num_predict: Option<i64> = integer(-2..=i64::from(u32::MAX)).optional();
        stop: Vec<String> =
            string_list(MAX_STOPS, MAX_STOP_BYTES, "an empty stop string would match before anything").or_one().or_empty();
    }
    accepts compat::OLLAMA_OPTIONS;
}

shape! {
    /// A message of a conversation.
    pub(crate) struct OllamaInputMessage {
        role: String = string();
        content: Option<String> = string().optional();
        /// The assistant's reasoning before its answer.
        thinking: Option<String> = string().optional();
        /// Calls that the assistant made.
        tool_calls: Vec<OllamaInputCall> = array(object::<OllamaInputCall>()).or_empty();
        /// In a message of the role `tool`: the function whose result it is.
        tool_name: Option<String> = string().optional();
        tool_call_id: Option<String> = string().optional();
    }
    accepts compat::OLLAMA_MESSAGE;
}

shape! {
    /// A call that the assistant made.
    pub(crate) struct OllamaInputCall {
        id: Option<String> = string().optional();
        function: OllamaInputFunction = object();
    }
    accepts compat::OLLAMA_CALL;
}

shape! {
    /// The function that was called, and its arguments.
    pub(crate) struct OllamaInputFunction {
        name: String = string();
        arguments: Map<String, Value> = json_object().or_empty();
    }
    accepts compat::OLLAMA_CALL;
}

/// Whether a model reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Think {
    Switch(bool),
    Effort(Effort),
}

fn think() -> impl FieldType<Value = Think> {
    let efforts = one_of(&[
        ("low", Think::Effort(Effort::Low)),
        ("medium", Think::Effort(Effort::Medium)),
        ("high", Think::Effort(Effort::High)),
    ]);
    either(boolean().map(Think::Switch), efforts).named("Think", "Whether the model reasons, or how much.")
}

/// Where the form of an answer is in the request, for errors.
const FORMAT: &str = "format";

fn format() -> impl FieldType<Value = TextFormat> {
    let word = one_of(&[("json", ())]).map(|()| TextFormat::any_object());
    either(word, json_object().map(TextFormat::of_schema)).named("OllamaFormat", "`json`, or a JSON schema.")
}

impl GenerateRequest for OllamaChatRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        let tools = ToolSet::new(self.tools, ToolChoice::Auto, true)?;
        let is_empty = self.messages.is_empty();
        let messages: Vec<_> = self.messages.into_iter().map(OllamaInputMessage::into_message).collect();
        self.fields.resolve((messages.into(), tools), is_empty, context)
    }
}

impl GenerateRequest for OllamaGenerateRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        let (is_empty, text) = (self.prompt.is_none(), self.prompt.unwrap_or_default());
        if self.raw || !context.has_chat_template {
            return self.fields.generate(Prompt::Text(text), None, is_empty, context);
        }
        let system = self.system.map(|system| Message::new("system", system));
        let messages: Vec<_> = system.into_iter().chain([Message::new("user", text)]).collect();
        self.fields.resolve((messages.into(), None), is_empty, context)
    }
}

impl OllamaFields {
    /// The parameters of an answer to a conversation with tools.
    fn resolve(
        self,
        (conversation, tools): (Conversation, Option<ToolSet>),
        is_empty: bool,
        context: &RequestContext<'_>,
    ) -> Result<GenerateParams, FieldError> {
        let request = ThinkingRequest {
            is_on: match self.think {
                Some(Think::Switch(is_on)) => Some(is_on),
                _ => None,
            },
            effort: match self.think {
                Some(Think::Effort(effort)) => Some(effort),
                _ => None,
            },
            ..ThinkingRequest::default()
        };
        let mut conversation = Conversation { variables: request.variables(), ..conversation };
        if let Some(tools) = &tools {
            conversation = tools.add_to(conversation, &context.tools);
        }
        let is_hidden = self.think == Some(Think::Switch(false));
        let params = self.generate(Prompt::Conversation(conversation), tools, is_empty, context)?;
        Ok(params.with_thinking(Thinking { is_parsed: true, is_hidden, budget: None }))
    }

    /// The parameters of an answer to a prompt; `is_empty` is whether there is none, so that the model is only loaded.
    fn generate(
        self,
        prompt: Prompt,
        tools: Option<ToolSet>,
        is_empty: bool,
        context: &RequestContext<'_>,
    ) -> Result<GenerateParams, FieldError> {
        let mut generation = Generation::take(&mut Fields::default())?;
        (generation.stream, generation.keep_alive) = (self.stream, self.keep_alive);
        let mut max_new = None;
        if let Some(options) = self.options {
            let predict = options.num_predict.filter(|most| *most >= 0);
            max_new = predict.and_then(|most| usize::try_from(most).ok()).map(|most| Tokens(most.max(1)));
            options.add_to(&mut generation);
        }
        let text_format = self.format.map(|format| (FORMAT, format));
        let route = RouteParams { text_format, tools, ..RouteParams::new(prompt, max_new) };
        let params = generation.resolve(route, context)?;
        Ok(GenerateParams { loads_only: is_empty, ..params })
    }
}

impl OllamaOptions {
    fn add_to(self, generation: &mut Generation) {
        generation.stop = self.stop;
        let sampling = &mut generation.sampling;
        sampling.temperature = self.temperature;
        sampling.top_k = self.top_k.map(|top_k| top_k as i128);
        sampling.top_p = self.top_p;
        sampling.min_p = self.min_p;
        sampling.repetition_penalty = self.repeat_penalty;
        sampling.seed = self.seed;
        sampling.typical_p = self.typical_p.unwrap_or(sampling.typical_p);
        sampling.presence_penalty = self.presence_penalty.unwrap_or(sampling.presence_penalty);
        sampling.frequency_penalty = self.frequency_penalty.unwrap_or(sampling.frequency_penalty);
    }
}

impl OllamaInputMessage {
    fn into_message(self) -> Message {
        let calls = self.tool_calls.into_iter().map(|OllamaInputCall { id, function }| {
            ToolCall::new(id, function.name, Arguments::Object(function.arguments))
        });
        Message {
            content: self.content,
            reasoning: self.thinking.filter(|text| !text.is_empty()),
            tool_calls: calls.collect(),
            tool_call_id: self.tool_call_id,
            name: self.tool_name,
            ..Message::new(self.role, "")
        }
    }
}

shape! {
    /// A request of `/api/show`.
    pub(crate) struct ShowRequest {
        model: Option<String> = string().optional();
        /// The older name of `model`.
        name: Option<String> = string().optional();
        _verbose as "verbose": bool = boolean().or(false);
    }
    accepts compat::OLLAMA_SHOW;
}
