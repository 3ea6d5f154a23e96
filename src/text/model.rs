//! Tokenizer, chat templates and description of a model.

use std::{borrow::Cow, fs, path::Path, time::UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::{
    Conversation, ReasoningFormat, RenderRequest, Renderer, TemplateFault, TemplateFile, TextError,
    ToolSupport,
    files::{self, GenerationConfig, TokenizerConfig},
    special_tokens::{self, SpecialTokens},
    templates::Templates,
    token_bytes::{TokenBytes, longest_token},
    tools,
};
use crate::{
    job::SamplingDefaults,
    manifest::{self, Manifest},
};

/// A model's tokenizer, chat templates and description; read once and shared.
pub struct Text {
    pub(super) card: ModelCard,
    pub(super) tokenizer: Tokenizer,
    /// `None` if the tokenizer's decoder does not map each token to fixed bytes.
    pub(super) token_bytes: Option<TokenBytes>,
    /// Maximum bytes of text per token; `None` without a limit.
    pub(super) longest_token: Option<usize>,
    pub(super) templates: Templates,
    bos: Option<SpecialToken>,
}

/// The description of a model in HTTP answers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    /// Its name in requests.
    pub id: String,
    /// Maximum number of tokens, prompt and answer together.
    pub context_length: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Ids that end an answer.
    pub end_tokens: Vec<u32>,
    /// When it was exported, in seconds since 1970.
    pub created: u64,
    /// Changes with the model and with the program that serves it.
    pub fingerprint: String,
    /// Whether it can answer a conversation, or only continue a prompt.
    pub has_chat_template: bool,
    /// Its architecture, such as `llama`.
    pub architecture: String,
    /// Number of parameters; 0 if unknown.
    pub parameters: u64,
    /// The type of its weights, such as `int4`.
    pub weights: String,
    /// Bytes of its files; 0 if the manifest does not list them.
    pub file_bytes: u64,
    /// Sampling parameters of its `generation_config.json`.
    pub sampling: SamplingDefaults,
}

/// A special token, as text and as id.
struct SpecialToken {
    text: String,
    id: u32,
}

impl Text {
    /// Reads tokenizer, chat templates and manifest of the model in `model_dir`. `id` is its name in requests.
    ///
    /// # Errors
    /// [`TextError`] when the manifest or the tokenizer is missing, or any of the files is malformed. A missing chat
    /// template is an error of the requests that need it. This does not check whether a template compiles, because a
    /// compiler that overflows its stack takes its process with it: `Sandbox::check_templates` and
    /// [`Text::check_templates`] do that.
    pub fn open(model_dir: &Path, id: &str) -> Result<Self, TextError> {
        let manifest = Manifest::read(model_dir)?;
        let tokenizer = files::read_tokenizer(model_dir)?;
        let config = TokenizerConfig::read(model_dir)?;
        let map = files::read_special_tokens_map(model_dir)?;
        let tokens = special_tokens::special_tokens(&config, &map, &manifest.architecture, &tokenizer);
        let templates = Templates::read(model_dir, &config, &tokens)?;
        let fingerprint = fingerprint(&manifest);
        let generation = GenerationConfig::read(model_dir)?;
        let card = ModelCard {
            fingerprint,
            id: id.to_owned(),
            context_length: manifest.context_length,
            vocabulary: manifest.dims.vocab,
            end_tokens: end_tokens(&manifest, &tokenizer, &tokens),
            created: modified(&manifest::path(model_dir))?,
            has_chat_template: !templates.is_empty(),
            sampling: generation.sampling(),
            architecture: manifest.architecture.clone(),
            parameters: manifest.parameters,
            weights: weights(&manifest),
            file_bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        };
        let token_bytes = TokenBytes::of(&tokenizer, card.vocabulary);
        let longest_token = token_bytes.as_ref().and_then(|_| longest_token(&tokenizer, card.vocabulary));
        let bos = find_bos(&tokenizer, &tokens, &generation);
        Ok(Self { card, tokenizer, token_bytes, longest_token, templates, bos })
    }

    /// The model's description.
    #[must_use]
    pub const fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Encodes a prompt to be continued, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// [`TextError::Encode`] when the tokenizer cannot.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.ids(prompt, true)?;
        if let Some(bos) = &self.bos
            && prompt.starts_with(&bos.text)
            && ids.starts_with(&[bos.id, bos.id])
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Encodes a text without the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// [`TextError::Encode`] when the tokenizer cannot.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, false)
    }

    /// Encodes a conversation whose next message is the model's. Renders in this process, as [`Text::render`] does.
    ///
    /// # Errors
    /// Those of [`Text::render`], and [`TextError::Encode`].
    pub fn encode_chat(&self, conversation: &Conversation) -> Result<Vec<u32>, TextError> {
        self.encode_bare(&self.render(conversation)?)
    }

    /// The text of a conversation whose next message is the model's, rendered in this process. A server renders in a child
    /// process instead (see [`Text::render_request`]); commands whose process serves no other clients use this.
    ///
    /// # Errors
    /// Those of [`Text::render_request`], and what the template makes of the messages: [`TextError::TemplateRefused`],
    /// [`TextError::TemplateFailed`], [`TextError::TemplateUnsupported`] and [`TextError::TemplateSteps`].
    pub fn render(&self, conversation: &Conversation) -> Result<String, TextError> {
        let template = self.template(conversation)?;
        let text = Renderer::default().render(&self.render_request(conversation)?);
        let text = text.map_err(|fault| template.fault(fault))?;
        Ok(self.with_answer_prefix(text, &conversation.answer_prefix))
    }

    /// The request to render a conversation in another process.
    ///
    /// # Errors
    /// [`TextError::NoTemplate`].
    pub fn render_request(&self, conversation: &Conversation) -> Result<RenderRequest, TextError> {
        let template = self.template(conversation)?;
        let conversation = if template.tools() == ToolSupport::Generic && conversation.is_about_tools() {
            Cow::Owned(tools::without_tools(conversation, template.has_system()))
        } else {
            Cow::Borrowed(conversation)
        };
        Ok(RenderRequest::new(template.source(), &conversation))
    }

    /// Appends the text that the answer must begin with to a rendered conversation. If the template has opened a reasoning block, the
    /// block is closed first.
    #[must_use]
    pub fn with_answer_prefix(&self, mut text: String, prefix: &str) -> String {
        if let Some(reasoning) = self.reasoning().filter(|format| !prefix.is_empty() && format.is_open(&text))
        {
            text.push_str(reasoning.end());
        }
        text.push_str(prefix);
        text
    }

    /// The template of a conversation.
    fn template(&self, conversation: &Conversation) -> Result<&TemplateFile, TextError> {
        let missing = || TextError::NoTemplate { id: self.card.id.clone() };
        self.templates.of(conversation).ok_or_else(missing)
    }

    /// The chat templates that may be used, to compile them in another process.
    pub fn templates(&self) -> impl Iterator<Item = &TemplateFile> {
        self.templates.all()
    }

    /// Checks in this process that the chat templates compile. A server uses `Sandbox::check_templates`.
    ///
    /// # Errors
    /// [`TextError::TemplateFile`] when one does not compile.
    pub fn check_templates(&self) -> Result<(), TextError> {
        let mut renderer = Renderer::default();
        self.templates()
            .try_for_each(|template| renderer.check(template.source()).map_err(|fault| template.fault(fault)))
    }

    /// Converts a renderer's error into one of this model.
    #[must_use]
    pub fn fault(&self, fault: TemplateFault) -> TextError {
        match self.templates().next() {
            Some(template) => template.fault(fault),
            None => TextError::NoTemplate { id: self.card.id.clone() },
        }
    }

    /// The text of the token that prompts begin with, if there is one.
    #[must_use]
    pub fn bos(&self) -> Option<&str> {
        self.bos.as_ref().map(|bos| bos.text.as_str())
    }

    /// The chat template's support for tools.
    #[must_use]
    pub fn tools(&self) -> ToolSupport {
        self.templates.tools()
    }

    /// How the model writes its reasoning; `None` if its chat template does not mention it.
    #[must_use]
    pub fn reasoning(&self) -> Option<&'static ReasoningFormat> {
        self.templates.reasoning()
    }

    /// Whether this is the name of a special token, which has no text.
    #[must_use]
    pub fn is_special(&self, name: &str) -> bool {
        self.tokenizer.get_added_vocabulary().is_special_token(name)
    }

    /// The id of an added token of the model; `None` if it has none with this text.
    #[must_use]
    pub fn added_token(&self, token: &str) -> Option<u32> {
        let id = self.tokenizer.get_added_vocabulary().token_to_id(token, self.tokenizer.get_model());
        id.filter(|id| (*id as usize) < self.card.vocabulary)
    }

    /// Whether answers can be constrained.
    ///
    /// # Errors
    /// [`TextError::ConstraintUnsupported`] when they cannot.
    pub fn check_constraints_supported(&self) -> Result<(), TextError> {
        self.token_bytes.as_ref().map(|_| ()).ok_or(TextError::ConstraintUnsupported)
    }

    pub(super) fn ids(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|e| TextError::Encode { message: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The manifest's end tokens, and the tokenizer's `eos_token`: configurations may name one without the other, and a chat
/// template ends turns with the tokenizer's.
fn end_tokens(manifest: &Manifest, tokenizer: &Tokenizer, tokens: &SpecialTokens) -> Vec<u32> {
    let mut ids = manifest.end_tokens.clone();
    let own = tokens.get("eos_token").and_then(|token| tokenizer.token_to_id(token));
    ids.extend(own.filter(|id| (*id as usize) < manifest.dims.vocab && !manifest.end_tokens.contains(id)));
    ids
}

/// The type of the weights.
fn weights(manifest: &Manifest) -> String {
    match &manifest.quantization {
        Some(quantization) => format!("int{}", quantization.bits),
        None => manifest.dtype.to_string(),
    }
}

fn find_bos(
    tokenizer: &Tokenizer,
    tokens: &SpecialTokens,
    generation: &GenerationConfig,
) -> Option<SpecialToken> {
    let named = tokens.get("bos_token").cloned();
    let text = named.or_else(|| tokenizer.id_to_token(generation.bos_token_id?))?;
    let id = tokenizer.token_to_id(&text)?;
    Some(SpecialToken { text, id })
}

fn fingerprint(manifest: &Manifest) -> String {
    let digest =
        Sha256::new().chain_update(manifest.to_json()).chain_update(env!("CARGO_PKG_VERSION")).finalize();
    let digits: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("fp_{digits}")
}

fn modified(path: &Path) -> Result<u64, TextError> {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    let modified = modified.map_err(|source| TextError::Read { path: path.into(), source })?;
    Ok(modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
