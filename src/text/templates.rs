//! The chat templates of a model, and which of them a conversation gets.
//!
//! A model may have several by name. As in `transformers`, `tool_use` is for conversations with tools and `default` for the
//! others; further ones have no use here and are not compiled. Where `transformers` looks at the list of tools alone, a
//! conversation whose messages hold calls or results gets `tool_use` as well: `default` may leave them out without a word.
//!
//! | found in | wins over |
//! |---|---|
//! | `chat_template.jinja`, `additional_chat_templates/tool_use.jinja` | both below |
//! | `chat_template` of `tokenizer_config.json`, a string or a list of named ones | the one below |
//! | `chat_template` of `chat_template.json`, which came with processors | |

use std::path::{Path, PathBuf};

use super::{
    Conversation, TextError, ToolSupport,
    files::{self, Templates as Written, TokenizerConfig},
    special_tokens::SpecialTokens,
    template::ChatTemplate,
};
use crate::manifest::layout::{PROCESSOR_TEMPLATE, TEMPLATE, TOKENIZER_CONFIG, TOOL_TEMPLATE};

/// The templates that conversations get.
#[derive(Default)]
pub(super) struct Templates {
    default: Option<ChatTemplate>,
    /// For conversations with tools.
    tool_use: Option<ChatTemplate>,
}

/// A template's text, and the file that it was found in.
struct Source {
    path: PathBuf,
    text: String,
}

impl Templates {
    /// Reads and compiles the templates in `model_dir`.
    pub(super) fn read(
        model_dir: &Path,
        config: &TokenizerConfig,
        tokens: &SpecialTokens,
    ) -> Result<Self, TextError> {
        let [default, tool_use] = find(model_dir, config)?;
        let compile = |source: Option<Source>| source.map(|source| compile(source, tokens)).transpose();
        Ok(Self { default: compile(default)?, tool_use: compile(tool_use)? })
    }

    /// The template for `conversation`, if there is one.
    pub(super) fn of(&self, conversation: &Conversation) -> Option<&ChatTemplate> {
        if conversation.has_tools() { self.with_tools() } else { self.default.as_ref() }
    }

    /// What conversations with tools can have.
    pub(super) fn tools(&self) -> ToolSupport {
        self.with_tools().map_or(ToolSupport::None, ChatTemplate::tools)
    }

    /// Whether there is one for any conversation.
    pub(super) const fn is_empty(&self) -> bool {
        self.default.is_none() && self.tool_use.is_none()
    }

    fn with_tools(&self) -> Option<&ChatTemplate> {
        self.tool_use.as_ref().or(self.default.as_ref())
    }
}

fn compile(Source { path, text }: Source, tokens: &SpecialTokens) -> Result<ChatTemplate, TextError> {
    ChatTemplate::compile(&text, tokens.clone())
        .map_err(|e| TextError::TemplateFile { path, message: e.to_string() })
}

/// `default` and `tool_use`.
fn find(model_dir: &Path, config: &TokenizerConfig) -> Result<[Option<Source>; 2], TextError> {
    let of_files = [TEMPLATE, TOOL_TEMPLATE].map(|name| {
        let path = model_dir.join(name);
        let text = files::read_template(&path)?;
        Ok::<_, TextError>(text.map(|text| Source { path, text }))
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
fn within(written: &Written, path: &Path) -> [Option<Source>; 2] {
    ["default", "tool_use"].map(|name| {
        let text = written.named(name)?.to_owned();
        Some(Source { path: path.into(), text })
    })
}
