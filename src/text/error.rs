//! Why a model's text side cannot be opened, or a text cannot be encoded.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::manifest::ManifestError;

/// Why a model's text side could not be opened, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The directory's manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file is not there, or cannot be read.
    #[error("{}: {source}; copy the file from the base model, or export the model again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{}: {source}; copy the file from the base model, or export the model again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The tokenizer cannot be used.
    #[error("{}: {message}; eka reads the format of Hugging Face's tokenizers 0.23", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// The chat template cannot be compiled.
    #[error("{}: the chat template is not valid: {message}; correct it, or remove it to serve only prompts", path.display())]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A conversation was sent to a model that has no chat template. The client's.
    #[error(
        "model {id} has no chat template; send a plain prompt, or add chat_template.jinja to the model's directory"
    )]
    NoTemplate {
        /// The model.
        id: String,
    },
    /// Tools, calls or their results were sent to a model whose chat template passes none of them on. The client's.
    #[error(
        "the chat template of model {id} does not support tools; leave out tools, calls and their results, or use a model that was \
         trained on them"
    )]
    NoTools {
        /// The model.
        id: String,
    },
    /// The chat template refused the messages. The client's.
    #[error("the model's chat template refuses these messages: {message}")]
    Messages {
        /// The template's own words.
        message: String,
    },
    /// The chat template failed on messages that it did not refuse. With others it may not.
    #[error(
        "the model's chat template failed on these messages: {message}; send messages of the kind that it expects, or a plain \
         prompt"
    )]
    Template {
        /// What failed, and the line.
        message: String,
    },
    /// The chat template uses something that eka does not have.
    #[error(
        "this server cannot run the model's chat template: {message}; send a plain prompt, simplify the template, or report it"
    )]
    TemplateUnsupported {
        /// The construct, and the line.
        message: String,
    },
    /// The chat template took more steps than any conversation should need.
    #[error(
        "the model's chat template did not finish within {most} steps; send fewer or shorter messages, or a plain prompt"
    )]
    TemplateSteps {
        /// Steps that it may take.
        most: u64,
    },
    /// The chat template needed more time, memory or nesting than one rendering may use, and its process was killed.
    #[error(
        "the model's chat template {what} for these messages; send fewer or shorter messages, or a plain `prompt`"
    )]
    TemplateLimit {
        /// The limit that it passed.
        what: String,
    },
    /// The tokenizer's decoder is of a kind that has no table, and a constraint needs one.
    #[error(
        "the model's tokenizer has no fixed bytes for each token, so answers cannot be constrained; leave \
         the constraint out"
    )]
    NoTable,
    /// A text has more tokens than it may have. The client's.
    #[error(
        "this model's maximum context length is {most} tokens, and this text of {bytes} bytes has more; shorten it"
    )]
    TooLong {
        /// Its length.
        bytes: usize,
        /// Tokens that it may have.
        most: usize,
    },
    /// The tokenizer failed on a text.
    #[error("the model's tokenizer cannot encode this text: {message}; send another text, or token ids")]
    Encode {
        /// Why.
        message: String,
    },
}

impl TextError {
    /// Whether the client's input is the cause, and not the files of the model directory.
    #[must_use]
    pub const fn is_the_clients(&self) -> bool {
        match self {
            Self::NoTemplate { .. }
            | Self::NoTools { .. }
            | Self::Messages { .. }
            | Self::Template { .. }
            | Self::TemplateSteps { .. }
            | Self::TemplateLimit { .. }
            | Self::Encode { .. }
            | Self::NoTable
            | Self::TooLong { .. } => true,
            Self::TemplateUnsupported { .. }
            | Self::Manifest(_)
            | Self::Read { .. }
            | Self::Json { .. }
            | Self::Tokenizer { .. }
            | Self::TemplateFile { .. } => false,
        }
    }

    /// The file that it is about, if it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Manifest(error) => Some(error.path()),
            Self::Read { path, .. }
            | Self::Json { path, .. }
            | Self::Tokenizer { path, .. }
            | Self::TemplateFile { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Whether its message contains paths of the model's files, which belong in the log only.
    #[must_use]
    pub const fn names_a_file(&self) -> bool {
        match self {
            Self::Manifest(_)
            | Self::Read { .. }
            | Self::Json { .. }
            | Self::Tokenizer { .. }
            | Self::TemplateFile { .. } => true,
            Self::NoTemplate { .. }
            | Self::NoTools { .. }
            | Self::Messages { .. }
            | Self::Template { .. }
            | Self::TemplateUnsupported { .. }
            | Self::TemplateSteps { .. }
            | Self::TemplateLimit { .. }
            | Self::NoTable
            | Self::TooLong { .. }
            | Self::Encode { .. } => false,
        }
    }
}
