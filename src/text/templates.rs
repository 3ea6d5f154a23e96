//! The chat templates of a model, and the choice of one for a conversation.
//!
//! A model may have several by name. As in `transformers`, `tool_use` is for conversations with tools and `default` for the
//! others; further ones are not used or compiled. `transformers` only looks at the list of tools. Here a conversation whose
//! messages hold calls or results gets `tool_use` as well, because `default` may silently drop them.
//!
//! | found in | wins over |
//! |---|---|
//! | `chat_template.jinja`, `additional_chat_templates/tool_use.jinja` | both below |
//! | `chat_template` of `tokenizer_config.json`, a string or a list of named ones | the one below |
//! | `chat_template` of `chat_template.json`, which came with processors | |

use std::path::{Path, PathBuf};

use super::{
    Conversation, ReasoningFormat, TemplateFault, TemplateSource, TextError, ToolSupport,
    files::{self, Templates as Written, TokenizerConfig},
    special_tokens::SpecialTokens,
};
use crate::manifest::layout::{PROCESSOR_TEMPLATE, TEMPLATE, TOKENIZER_CONFIG, TOOL_TEMPLATE};

/// The templates that conversations get.
#[derive(Default)]
pub(super) struct Templates {
    default: Option<TemplateFile>,
    /// The template for conversations with tools.
    tool_use: Option<TemplateFile>,
}

/// A chat template, and the file that it was found in.
pub struct TemplateFile {
    path: PathBuf,
    source: TemplateSource,
    tools: ToolSupport,
    reasoning: Option<&'static ReasoningFormat>,
    /// Whether conversations may have a system message.
    has_system: bool,
}

/// A template's text, and the file that it was found in.
struct Found {
    path: PathBuf,
    text: String,
}

impl Templates {
    /// Reads the templates in `model_dir`, without compiling them.
    pub(super) fn read(
        model_dir: &Path,
        config: &TokenizerConfig,
        tokens: &SpecialTokens,
    ) -> Result<Self, TextError> {
        let file = |Found { path, text }| TemplateFile {
            path,
            tools: ToolSupport::of(&text),
            reasoning: ReasoningFormat::of(&text),
            has_system: text.contains("system") && !text.contains("ystem role not supported"),
            source: TemplateSource { text, tokens: tokens.clone() },
        };
        let [default, tool_use] = find(model_dir, config)?;
        Ok(Self { default: default.map(file), tool_use: tool_use.map(file) })
    }

    /// The template for `conversation`, if there is one.
    pub(super) fn of(&self, conversation: &Conversation) -> Option<&TemplateFile> {
        if conversation.is_about_tools() { self.with_tools() } else { self.default.as_ref() }
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &TemplateFile> {
        self.default.iter().chain(&self.tool_use)
    }

    /// The support for tools in conversations with tools.
    pub(super) fn tools(&self) -> ToolSupport {
        self.with_tools().map_or(ToolSupport::Generic, TemplateFile::tools)
    }

    /// How the model writes its reasoning.
    pub(super) fn reasoning(&self) -> Option<&'static ReasoningFormat> {
        self.all().find_map(TemplateFile::reasoning)
    }

    /// Whether the model has no chat template.
    pub(super) const fn is_empty(&self) -> bool {
        self.default.is_none() && self.tool_use.is_none()
    }

    fn with_tools(&self) -> Option<&TemplateFile> {
        self.tool_use.as_ref().or(self.default.as_ref())
    }
}

impl TemplateFile {
    /// The template's source for a renderer.
    #[must_use]
    pub const fn source(&self) -> &TemplateSource {
        &self.source
    }

    /// Its support for tools.
    pub(super) const fn tools(&self) -> ToolSupport {
        self.tools
    }

    /// How the model writes its reasoning; `None` if the template does not mention it.
    pub(super) const fn reasoning(&self) -> Option<&'static ReasoningFormat> {
        self.reasoning
    }

    /// Whether conversations may have a system message.
    pub(super) const fn has_system(&self) -> bool {
        self.has_system
    }

    /// Converts a renderer's error into one of its model.
    #[must_use]
    pub fn fault(&self, fault: TemplateFault) -> TextError {
        match fault {
            TemplateFault::Compile { message } => {
                TextError::TemplateFile { path: self.path.clone(), message }
            }
            TemplateFault::Refused { message } => TextError::TemplateRefused { message },
            TemplateFault::Failed { message } => TextError::TemplateFailed { message },
            TemplateFault::Unsupported { message } => TextError::TemplateUnsupported { message },
            TemplateFault::Steps { max } => TextError::TemplateSteps { max },
            TemplateFault::TooLong { found, max } => {
                TextError::TemplateLimit { what: format!("made {found} of text, at most {max} are read,") }
            }
        }
    }
}

/// `default` and `tool_use`.
fn find(model_dir: &Path, config: &TokenizerConfig) -> Result<[Option<Found>; 2], TextError> {
    let of_files = [TEMPLATE, TOOL_TEMPLATE].map(|name| {
        let path = model_dir.join(name);
        let text = files::read_template(&path)?;
        Ok::<_, TextError>(text.map(|text| Found { path, text }))
    });
    let [default, tool_use] = of_files;
    let of_files = [default?, tool_use?];
    if of_files.iter().any(Option::is_some) {
        return Ok(of_files);
    }
    if let Some(written) = config.templates() {
        return Ok(within(written, &model_dir.join(TOKENIZER_CONFIG)));
    }
    let path = model_dir.join(PROCESSOR_TEMPLATE);
    let written = files::read_processor_templates(&path)?;
    Ok(written.map(|written| within(&written, &path)).unwrap_or_default())
}

/// The templates that are written in a JSON file at `path`.
fn within(written: &Written, path: &Path) -> [Option<Found>; 2] {
    ["default", "tool_use"].map(|name| {
        let text = written.named(name)?.to_owned();
        Some(Found { path: path.into(), text })
    })
}
