//! Requests to render a chat template in another process, and the renderer in that process.
//!
//! A template is a program from a model's folder, compiled and run by a library that bounds its steps, but neither its memory nor
//! its stack. A server therefore compiles and renders in a child process (`sandbox`), which can be killed. That process keeps
//! only compiled templates: every [`RenderRequest`] contains its template's text, a few kilobytes, so a process that was just
//! started can render it.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Conversation, Message, PromptEnding, TextError,
    template::{ChatTemplate, TemplateInput},
};
use crate::units::Bytes;

/// Compiled templates that are kept: as many as a server is likely to have models in use.
const MAX_COMPILED: usize = 8;

/// Maximum length of a rendered text: tens of times the longest context, and short enough for a frame.
const MAX_TEXT: Bytes = Bytes::mib(12);

/// A chat template's text, and the names under which it finds special tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSource {
    pub(super) text: String,
    pub(super) tokens: BTreeMap<String, String>,
}

impl TemplateSource {
    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of its text.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.text.len()
    }
}

/// A conversation to render. Messages, tools and variables are JSON, because the encoding of frames has no values of unknown type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderRequest {
    template: TemplateSource,
    messages: String,
    tools: String,
    variables: String,
    ending: PromptEnding,
}

impl RenderRequest {
    pub(super) fn new(template: &TemplateSource, conversation: &Conversation) -> Self {
        Self {
            template: template.clone(),
            messages: serde_json::json!(conversation.messages).to_string(),
            tools: serde_json::json!(conversation.tools).to_string(),
            variables: serde_json::json!(conversation.variables).to_string(),
            ending: conversation.ending,
        }
    }

    /// Bytes of template, messages, tools and variables.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.template.length() + self.messages.len() + self.tools.len() + self.variables.len()
    }
}

/// Why a template could not be compiled or rendered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TemplateFault {
    /// It does not compile.
    Compile {
        /// The error, with its position.
        message: String,
    },
    /// It rejected the messages.
    Refused {
        /// The template's message.
        message: String,
    },
    /// It failed on messages that it did not reject.
    Failed {
        /// The error, with its position.
        message: String,
    },
    /// It uses a feature that eka does not support.
    Unsupported {
        /// The construct, and where.
        message: String,
    },
    /// It took too many steps.
    Steps {
        /// Steps that it may take.
        max: u64,
    },
    /// Its text is too long for a prompt.
    TooLong {
        /// Length of its text.
        found: Bytes,
        /// Longest text that is read.
        max: Bytes,
    },
}

impl From<TextError> for TemplateFault {
    fn from(error: TextError) -> Self {
        match error {
            TextError::TemplateRefused { message } => Self::Refused { message },
            TextError::TemplateFailed { message } => Self::Failed { message },
            TextError::TemplateUnsupported { message } => Self::Unsupported { message },
            TextError::TemplateSteps { max } => Self::Steps { max },
            other => Self::Failed { message: other.to_string() },
        }
    }
}

/// Compiles and renders templates, with a cache of compiled ones.
#[derive(Default)]
pub struct Renderer {
    /// The most recently used first.
    compiled: VecDeque<(TemplateSource, ChatTemplate)>,
}

impl Renderer {
    /// Compiles `template`, and keeps it for later requests.
    ///
    /// # Errors
    /// [`TemplateFault::Compile`] when it does not compile.
    pub fn check(&mut self, template: &TemplateSource) -> Result<(), TemplateFault> {
        self.compile(template).map(|_| ())
    }

    /// The text that asks the model for the next answer.
    ///
    /// # Errors
    /// [`TemplateFault`] when the template does not compile, rejects the messages, fails, takes too many steps or makes
    /// too long a text.
    pub fn render(&mut self, request: &RenderRequest) -> Result<String, TemplateFault> {
        let messages: Vec<Message> = parse(&request.messages)?;
        let tools: Vec<Value> = parse(&request.tools)?;
        let variables: Map<String, Value> = parse(&request.variables)?;
        let given = TemplateInput {
            messages: &messages,
            tools: &tools,
            variables: Some(&variables),
            ending: request.ending,
        };
        let text = self.compile(&request.template)?.render(given)?;
        let found = Bytes::from(text.len());
        if found > MAX_TEXT {
            return Err(TemplateFault::TooLong { found, max: MAX_TEXT });
        }
        Ok(text)
    }

    fn compile(&mut self, source: &TemplateSource) -> Result<&ChatTemplate, TemplateFault> {
        if let Some(known) = self.compiled.iter().position(|(known, _)| known == source) {
            self.compiled.swap(0, known);
        } else {
            let template = ChatTemplate::compile(&source.text, source.tokens.clone());
            let template = template.map_err(|e| TemplateFault::Compile { message: e.to_string() })?;
            self.compiled.truncate(MAX_COMPILED - 1);
            self.compiled.push_front((source.clone(), template));
        }
        let first = self.compiled.front().map(|(_, template)| template);
        first.ok_or_else(|| TemplateFault::Failed { message: "no template is compiled".into() })
    }
}

/// Reads what [`RenderRequest::new`] wrote.
fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, TemplateFault> {
    serde_json::from_str(json).map_err(|e| TemplateFault::Failed { message: e.to_string() })
}
