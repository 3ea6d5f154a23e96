//! Chat templates: messages to the text that the model was trained on.
//!
//! Templates come with models and are written for Python's Jinja2 as `transformers` configures it. This module provides the same
//! on top of minijinja: `syntax` rewrites syntax that minijinja lacks, and `environment` adds filters, tests, functions and
//! methods with Python's behaviour. `tests/fixtures/jinja/table.json` has Jinja2's output for more than a thousand templates.
//! Templates are untrusted programs: their steps and sizes are limited, and no template can cause a panic.

mod arguments;
mod braces;
mod call_arguments;
mod case;
mod environment;
mod filters;
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
use super::{Arguments, Message, PromptEnding, TextError, ToolCall};

/// Names of a message's reasoning in templates, beside `reasoning_content`.
const REASONING_NAMES: [&str; 2] = ["reasoning", "thinking"];

/// What a template renders.
#[derive(Clone, Copy, Debug)]
pub(super) struct TemplateInput<'a> {
    pub(super) messages: &'a [Message],
    pub(super) tools: &'a [serde_json::Value],
    /// Further variables, if there are any.
    pub(super) variables: Option<&'a Map<String, serde_json::Value>>,
    pub(super) ending: PromptEnding,
}

impl<'a> TemplateInput<'a> {
    /// Messages before the assistant's next one.
    pub(super) fn of(messages: &'a [Message], tools: &'a [serde_json::Value]) -> Self {
        Self { messages, tools, variables: None, ending: PromptEnding::NextMessage }
    }
}

/// OpenAI's newer name for the system role.
const DEVELOPER: &str = "developer";

const NAME: &str = "chat";

/// Marks the end of the last message's content while a prompt that ends there is rendered. The space at its end shows whether
/// the template strips contents.
const END_OF_LAST: &str = "EKA_END_OF_LAST_MESSAGE ";

/// A chat template, ready to render.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens by name, such as `bos_token`.
    tokens: BTreeMap<String, String>,
    /// Whether it distinguishes the developer role from the system role.
    knows_developer: bool,
    /// The names of a message's reasoning that it reads.
    reasoning_names: Vec<&'static str>,
    /// The content of a message that only has calls; determined when the first one is rendered.
    content_of_calls: OnceLock<Option<String>>,
}

impl ChatTemplate {
    /// Compiles `source`; `tokens` are the special tokens by name.
    pub(super) fn compile(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, Error> {
        let mut environment = environment::new()?;
        environment.add_template_owned(NAME, syntax::translate(source)?)?;
        let knows_developer = source.contains(DEVELOPER);
        let is_read = |name: &&str| {
            [format!(".{name}"), format!("'{name}'"), format!("\"{name}\"")]
                .iter()
                .any(|read| source.contains(read))
        };
        let reasoning_names = REASONING_NAMES.into_iter().filter(is_read).collect();
        Ok(Self { environment, tokens, knows_developer, reasoning_names, content_of_calls: OnceLock::new() })
    }

    /// The text of a conversation.
    pub(super) fn render(&self, given: TemplateInput<'_>) -> Result<String, TextError> {
        let mut messages = given.messages.to_vec();
        self.rename_developers(&mut messages);
        self.fill_empty_contents(&mut messages);
        self.add_reasoning_names(&mut messages);
        let continues = given.ending == PromptEnding::ContinueLast;
        if let Some(content) = messages.last_mut().filter(|_| continues).and_then(|m| m.content.as_mut()) {
            content.push_str(END_OF_LAST);
        }
        let given = TemplateInput { messages: &messages, ..given };
        let text = match self.render_exactly(given) {
            Err(error @ TextError::TemplateFailed { .. }) => self.render_leniently(given).ok_or(error),
            rendered => rendered,
        }?;
        if continues { up_to_last(text) } else { Ok(text) }
    }

    /// Renders messages as they are.
    fn render_exactly(&self, given: TemplateInput<'_>) -> Result<String, TextError> {
        // `apply_chat_template` passes None for absent tools and documents, and templates expect that: some test `tools is none`,
        // some `tools is defined and tools`.
        let tools = if given.tools.is_empty() { Value::from(()) } else { Value::from(Serde(given.tools)) };
        self.render_values(Value::from(Serde(given.messages)), tools, given)
    }

    /// Renders a template that fails with the values of `transformers` with those of llama-server.
    fn render_leniently(&self, given: TemplateInput<'_>) -> Option<String> {
        let tools = lenient::tools(given.tools);
        let exact = self.render_values(Value::from(Serde(given.messages)), tools.clone(), given);
        exact.ok().or_else(|| {
            let has_calls = given.messages.iter().any(|message| !message.tool_calls.is_empty());
            let messages = has_calls.then(|| lenient::with_text_arguments(given.messages)).flatten()?;
            self.render_values(messages, tools, given).ok()
        })
    }

    fn render_values(
        &self,
        messages: Value,
        tools: Value,
        given: TemplateInput<'_>,
    ) -> Result<String, TextError> {
        let conversation = context! {
            messages => messages, add_generation_prompt => given.ending == PromptEnding::NextMessage, tools => tools,
            documents => Value::from(()),
        };
        let variables =
            given.variables.map_or_else(|| context! {}, |variables| Value::from(Serde(variables)));
        // Of two values with the same name the first counts, so no variable of a request replaces the conversation.
        let context = context! {
            ..conversation, ..variables, ..Value::from(Serde(&self.tokens))
        };
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

    /// Repeats a message's reasoning under the further names that the template reads.
    fn add_reasoning_names(&self, messages: &mut [Message]) {
        for message in messages.iter_mut() {
            let Some(reasoning) = message.reasoning.clone() else { continue };
            let aliases =
                self.reasoning_names.iter().map(|name| ((*name).to_owned(), reasoning.clone().into()));
            message.reasoning_aliases.extend(aliases);
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
            let messages = [Message::new("user", "a"), calls];
            let given = TemplateInput::of(&messages, &[]);
            let text = self.render_exactly(given);
            text.is_ok_and(|text| text.contains(PROBE))
        };
        let empty = Some(String::new());
        if !writes_the_call(empty.clone()) && writes_the_call(None) { None } else { empty }
    }
}

/// The text up to the end of the last message's content, as `transformers` does for `continue_final_message`. A search for the
/// content itself could find it in the template's text after it.
fn up_to_last(mut text: String) -> Result<String, TextError> {
    let mark = END_OF_LAST.trim_end();
    let Some(end) = text.rfind(mark) else {
        let message = "the last message, which the answer continues, is missing in the rendered text";
        return Err(TextError::TemplateFailed { message: message.into() });
    };
    let keeps_space = text[end..].starts_with(END_OF_LAST);
    text.truncate(end);
    if !keeps_space {
        // The template strips the content's end.
        text.truncate(text.trim_end().len());
    }
    Ok(text)
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
