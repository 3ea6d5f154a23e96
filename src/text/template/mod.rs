//! Chat templates: messages to the text that the model was trained on.
//!
//! Templates come with models and are written for Python's Jinja2 as `transformers` configures it. This module provides the same
//! on top of minijinja: `syntax` rewrites syntax that minijinja lacks, and `environment` adds filters, tests, functions and
//! methods with Python's behaviour. `tests/fixtures/jinja/table.json` has Jinja2's output for more than a thousand templates.
//! Templates are untrusted programs: their steps and sizes are limited, and no template can cause a panic.

mod arguments;
mod braces;
mod case;
mod environment;
mod filters;
mod given;
mod globals;
mod lenient;
mod methods;
mod objects;
mod operators;
mod percent;
mod predicates;
mod register;
mod repr;
mod spec;
mod strftime;
mod syntax;
#[cfg(test)]
mod tests;
mod tojson;

use std::{collections::BTreeMap, sync::OnceLock};

use minijinja::{Environment, Error, ErrorKind, Value, context, value::Serde};
use serde_json::Map;

use self::{environment::FUEL, globals::Raised};
use super::{Arguments, Message, TextError, ToolCall};

/// OpenAI's newer name for the system role.
const DEVELOPER: &str = "developer";

const NAME: &str = "chat";

/// A chat template, ready to render.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens by name, such as `bos_token`.
    tokens: BTreeMap<String, String>,
    /// Whether it distinguishes the developer role from the system role.
    knows_developer: bool,
    /// The content of a message that only has calls; determined when the first one is rendered.
    content_of_calls: OnceLock<Option<String>>,
}

impl ChatTemplate {
    /// Compiles `source`; `tokens` are the special tokens by name.
    pub(super) fn compile(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, Error> {
        let mut environment = environment::new()?;
        environment.add_template_owned(NAME, syntax::translate(source)?)?;
        let knows_developer = source.contains(DEVELOPER);
        Ok(Self { environment, tokens, knows_developer, content_of_calls: OnceLock::new() })
    }

    /// The text that asks the model for the next answer.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<String, TextError> {
        let mut messages = messages.to_vec();
        self.rename_developers(&mut messages);
        self.fill_empty_contents(&mut messages);
        match self.render_exactly(&messages, tools) {
            Err(error @ TextError::TemplateFailed { .. }) => {
                self.render_leniently(&messages, tools).ok_or(error)
            }
            rendered => rendered,
        }
    }

    /// Renders messages as they are.
    fn render_exactly(&self, messages: &[Message], tools: &[serde_json::Value]) -> Result<String, TextError> {
        // `apply_chat_template` passes None for absent tools and documents, and templates expect that: some test `tools is none`,
        // some `tools is defined and tools`.
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) };
        self.render_values(Value::from(Serde(messages)), tools)
    }

    /// Renders a template that fails with the values of `transformers` with those of llama-server.
    fn render_leniently(&self, messages: &[Message], tools: &[serde_json::Value]) -> Option<String> {
        let tools = lenient::tools(tools);
        let exact = self.render_values(Value::from(Serde(messages)), tools.clone());
        exact.ok().or_else(|| {
            let has_calls = messages.iter().any(|message| !message.tool_calls.is_empty());
            let messages = has_calls.then(|| lenient::with_text_arguments(messages)).flatten()?;
            self.render_values(messages, tools).ok()
        })
    }

    fn render_values(&self, messages: Value, tools: Value) -> Result<String, TextError> {
        let conversation = context! {
            messages => messages, add_generation_prompt => true, tools => tools, documents => Value::from(()),
        };
        let context = context! { ..conversation, ..Value::from(Serde(&self.tokens)) };
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(context)).map_err(to_text_error)
    }

    /// If the template does not mention the developer role, OpenAI's newer name for the system role, it becomes the system role:
    /// most templates accept any role, and the model was not trained on this one.
    fn rename_developers(&self, messages: &mut [Message]) {
        for message in
            messages.iter_mut().filter(|message| !self.knows_developer && message.role == DEVELOPER)
        {
            message.role = "system".into();
        }
    }

    /// Null and absent contents become empty strings, as in vLLM and llama-server, because templates search and split contents
    /// (`'</think>' in message.content`).
    fn fill_empty_contents(&self, messages: &mut [Message]) {
        for message in messages.iter_mut().filter(|message| message.content.is_none()) {
            message.content = if message.tool_calls.is_empty() {
                Some(String::new())
            } else {
                self.content_of_calls.get_or_init(|| self.find_content_of_calls()).clone()
            };
        }
    }

    /// The exception: DeepSeek's templates write calls only if `message['content'] is none`. A small test conversation shows
    /// it, as in llama.cpp.
    fn find_content_of_calls(&self) -> Option<String> {
        const PROBE: &str = "eka_probe";
        let call = ToolCall::new(Some(PROBE.into()), PROBE, Arguments::Object(Map::new()));
        let writes_the_call = |content: Option<String>| {
            let calls = Message { content, tool_calls: vec![call.clone()], ..Message::new("assistant", "") };
            let text = self.render_exactly(&[Message::new("user", "a"), calls], &[]);
            text.is_ok_and(|text| text.contains(PROBE))
        };
        let empty = Some(String::new());
        if !writes_the_call(empty.clone()) && writes_the_call(None) { None } else { empty }
    }
}

fn to_text_error(error: Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateSteps { max: FUEL };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return TextError::TemplateRefused { message: message.clone() };
        }
        cause = e.source();
    }
    let message = error.to_string();
    match error.kind() {
        // Functions and methods may be missing because a value is not what the template expects.
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest => TextError::TemplateUnsupported { message },
        _ => TextError::TemplateFailed { message },
    }
}
