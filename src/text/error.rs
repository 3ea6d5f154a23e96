//! Errors of tokenizers, chat templates and tokenization.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::manifest::ManifestError;

/// Why a model's tokenizer or chat template cannot be loaded, or a text cannot be tokenized.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The directory's manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file does not exist or cannot be read.
    #[error("{}: {source}; copy the file from the base model, or export the model again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not valid JSON, or not of the expected form.
    #[error("{}: {source}; copy the file from the base model, or export the model again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// The tokenizer cannot be used.
    #[error("{}: {message}; expected a tokenizer.json as Hugging Face's tokenizers 0.23 reads it; convert it with transformers", path.display())]
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
        /// The error, with its position.
        message: String,
    },
    /// Client error: messages were sent to a model that has no chat template.
    #[error(
        "model {id} has no chat template; send a plain prompt, or add chat_template.jinja to the model's directory"
    )]
    NoTemplate {
        /// The model.
        id: String,
    },
    /// Client error: the chat template called `raise_exception`.
    #[error("the model's chat template rejects these messages: {message}")]
    TemplateRefused {
        /// The template's message.
        message: String,
    },
    /// Rendering the chat template failed, without `raise_exception`; other messages may work.
    #[error(
        "the model's chat template failed on these messages: {message}; send messages of the kind that it expects, or a plain \
         prompt"
    )]
    TemplateFailed {
        /// What failed, and the line.
        message: String,
    },
    /// The chat template uses a feature that eka does not support.
    #[error(
        "this server cannot run the model's chat template: {message}; send a plain prompt, simplify the template, or report it"
    )]
    TemplateUnsupported {
        /// The construct, and the line.
        message: String,
    },
    /// The chat template took more steps than any conversation should need.
    #[error(
        "the model's chat template did not finish within {max} steps; send fewer or shorter messages, or a plain prompt"
    )]
    TemplateSteps {
        /// Steps that it may take.
        max: u64,
    },
    /// The chat template needed more time, memory or nesting than one rendering may use, and its process was killed.
    #[error(
        "the model's chat template {what} for these messages; send fewer or shorter messages, or a plain prompt"
    )]
    TemplateLimit {
        /// A verb phrase for the message, such as "took more than 5 s".
        what: String,
    },
    /// A constraint was sent, but the tokenizer's decoder does not map each token to fixed bytes, so there is no table of token
    /// bytes.
    #[error(
        "constraints are not supported for this model, because its tokenizer's decoder does not map each token to fixed bytes; leave \
         the constraint out"
    )]
    ConstraintUnsupported,
    /// Client error: a text has more tokens than the context length.
    #[error(
        "this model's maximum context length is {max} tokens, but this text of {bytes} bytes has more; shorten the text"
    )]
    TooLong {
        /// Its length.
        bytes: usize,
        /// Tokens that it may have.
        max: usize,
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
    pub const fn is_client_error(&self) -> bool {
        match self {
            Self::NoTemplate { .. }
            | Self::TemplateRefused { .. }
            | Self::TemplateFailed { .. }
            | Self::TemplateSteps { .. }
            | Self::TemplateLimit { .. }
            | Self::Encode { .. }
            | Self::ConstraintUnsupported
            | Self::TooLong { .. } => true,
            Self::TemplateUnsupported { .. }
            | Self::Manifest(_)
            | Self::Read { .. }
            | Self::Json { .. }
            | Self::Tokenizer { .. }
            | Self::TemplateFile { .. } => false,
        }
    }

    /// The file that caused the error, if one did.
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
    pub fn names_a_file(&self) -> bool {
        self.path().is_some()
    }
}
