//! The prompt of a request: a text, token ids or a conversation.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::{
    compat,
    messages::content,
    schema::{
        FieldType, JsonType, Location, Modify, Schemas, check_count, counted, custom, object, shape, string,
        whole,
    },
};
use crate::{http::field_error::FieldError, text::Conversation};

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    /// Texts and token ids that follow each other.
    Mixed(Vec<PromptPiece>),
    Conversation(Conversation),
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PromptPiece {
    Text(String),
    Ids(Vec<u32>),
}

impl Prompt {
    /// The prompt as it was sent, if it was sent as text.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Ids(_) | Self::Mixed(_) | Self::Conversation(_) => None,
        }
    }

    /// Chooses between `prompt` and `messages`, of which exactly one must be sent.
    pub(crate) fn choose(prompt: Option<Self>, messages: Option<Conversation>) -> Result<Self, FieldError> {
        match (prompt, messages) {
            (Some(prompt), None) => Ok(prompt),
            (None, Some(conversation)) => Ok(Self::Conversation(conversation)),
            (Some(_), Some(_)) => Err(FieldError::conflict("messages", "prompt")),
            (None, None) => Err(FieldError::Missing { param: "prompt or messages".into() }),
        }
    }

    /// Checks that the model has the tokens of `prompt`.
    pub(crate) fn check(&self, path: &str, vocabulary: usize) -> Result<(), FieldError> {
        match self {
            Self::Ids(ids) => check_ids(ids, path, vocabulary),
            Self::Mixed(pieces) => pieces.iter().try_for_each(|piece| match piece {
                PromptPiece::Text(_) => Ok(()),
                PromptPiece::Ids(ids) => check_ids(ids, path, vocabulary),
            }),
            Self::Text(_) | Self::Conversation(_) => Ok(()),
        }
    }
}

/// Most prompts of one request.
const MAX_PROMPTS: usize = 64;

/// Checks the number of answers of a request: `choices`, from `field`, for each of its prompts.
pub(super) fn check_answers(field: &str, prompts: usize, choices: usize) -> Result<(), FieldError> {
    let answers = prompts * choices;
    if answers <= MAX_PROMPTS {
        return Ok(());
    }
    let message = format!(
        "is {choices}, with {prompts} prompts: {answers} answers, at most {MAX_PROMPTS}; send fewer prompts in a request"
    );
    Err(FieldError::value(field, message))
}

/// OpenAI's `prompt` of completions: one prompt, or an array of them.
pub(crate) fn prompts() -> impl FieldType<Value = Vec<Prompt>> {
    custom(read_prompts::<MAX_PROMPTS>, prompts_schema::<MAX_PROMPTS>).named(
        "Prompts",
        "A text, the ids of its tokens, or an array of either: a prompt each. A text may be an object.",
    )
}

/// Most texts between the token ids of a prompt: each is tokenized by itself.
const MAX_PIECES: usize = 64;

/// Most texts of one request for embeddings, as in OpenAI's API.
const MAX_TEXTS: usize = 2048;

/// OpenAI's `input` of embeddings: one text, or an array of them.
pub(crate) fn texts() -> impl FieldType<Value = Vec<Prompt>> {
    custom(read_prompts::<MAX_TEXTS>, prompts_schema::<MAX_TEXTS>).named(
        "Texts",
        "A text, the ids of its tokens, or an array of either: a text each. A text may be an object.",
    )
}

shape! {
    /// A text as an object, as llama-server has it: one of the two fields.
    pub(crate) struct TextObject {
        prompt_string: Option<String> = string().optional();
        content: Option<String> = content().optional();
    }
    accepts compat::TEXT_OBJECT;
}

fn text_object() -> impl FieldType<Value = String> {
    object::<TextObject>().try_map(|object, at| match (object.prompt_string, object.content) {
        (Some(text), None) | (None, Some(text)) => Ok(text),
        (Some(_), Some(_)) => {
            Err(FieldError::conflict(at.field("content").path(), at.field("prompt_string").path()))
        }
        (None, None) => Err(at.field("prompt_string").missing()),
    })
}

fn read_prompts<const MAX: usize>(value: Value, at: &Location) -> Result<Vec<Prompt>, FieldError> {
    match value {
        Value::Array(items) if items.first().is_some_and(|first| !first.is_number()) => {
            check_count(items.len(), &(1..=MAX), at)?;
            let items = items.into_iter().enumerate();
            items.map(|(index, item)| read_one(item, &at.item(index))).collect()
        }
        one => read_one(one, at).map(|prompt| vec![prompt]),
    }
}

fn prompts_schema<const MAX: usize>(schemas: &mut Schemas) -> Value {
    let text = string().bytes(1..=usize::MAX).schema(schemas);
    let ids = token_ids().items(1..=usize::MAX).schema(schemas);
    let object = text_object().schema(schemas);
    let each = json!({ "oneOf": [text, ids, mixed_schema(), object] });
    json!({ "oneOf": [text, ids, mixed_schema(), object, counted(each, &(1..=MAX))] })
}

/// A prompt: a string, an array of token ids, or an array of one of either; not empty.
pub(crate) fn prompt() -> impl FieldType<Value = Prompt> {
    custom(read_prompt, prompt_schema)
        .named("Prompt", "A text, the ids of its tokens, or an array of one of either.")
}

fn read_prompt(value: Value, at: &Location) -> Result<Prompt, FieldError> {
    match value {
        Value::Array(mut items) if items.first().is_some_and(|first| !first.is_number()) => {
            if items.len() > 1 {
                let prompts = items.len();
                return Err(at.invalid(format!(
                    "{prompts} prompts in one request; only one is supported, send them one by one"
                )));
            }
            read_one(items.remove(0), &at.item(0))
        }
        one => read_one(one, at),
    }
}

fn read_one(value: Value, at: &Location) -> Result<Prompt, FieldError> {
    let empty = || FieldError::EmptyPrompt { param: at.path().to_owned() };
    match value {
        // Some tokenizers add a beginning-of-text token even to empty text.
        Value::String(text) if text.is_empty() => Err(empty()),
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) if items.is_empty() => Err(empty()),
        Value::Array(items) if items[0].is_number() && items.iter().any(Value::is_string) => {
            read_mixed(items, at)
        }
        ids @ Value::Array(_) => token_ids().read(ids, at).map(Prompt::Ids),
        value @ Value::Object(_) => read_one(Value::String(text_object().read(value, at)?), at),
        other => Err(at.wrong_type("a string or an array of token ids", &other)),
    }
}

/// Token ids with texts among them, as llama-server has it.
fn read_mixed(items: Vec<Value>, at: &Location) -> Result<Prompt, FieldError> {
    let texts = items.iter().filter(|item| item.is_string()).count();
    check_count(texts, &(1..=MAX_PIECES), at)?;
    let mut pieces = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Value::String(text) => pieces.push(PromptPiece::Text(text)),
            other => {
                let id = read_id(&other, &at.item(index))?;
                match pieces.last_mut() {
                    Some(PromptPiece::Ids(ids)) => ids.push(id),
                    _ => pieces.push(PromptPiece::Ids(vec![id])),
                }
            }
        }
    }
    Ok(Prompt::Mixed(pieces))
}

/// The schema of token ids that begin with an id and have texts among them.
fn mixed_schema() -> Value {
    let id = json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    let item = json!({ "oneOf": [id, { "type": "string" }] });
    json!({
        "type": "array", "prefixItems": [id], "items": item, "minItems": 2, "contains": { "type": "string" },
        "maxContains": MAX_PIECES,
    })
}

fn prompt_schema(schemas: &mut Schemas) -> Value {
    let text = string().bytes(1..=usize::MAX).schema(schemas);
    let ids = token_ids().items(1..=usize::MAX).schema(schemas);
    let object = text_object().schema(schemas);
    let one_text = counted(json!({ "oneOf": [text, object] }), &(1..=1));
    let one_of_ids = counted(json!({ "oneOf": [ids, mixed_schema()] }), &(1..=1));
    json!({ "oneOf": [text, ids, mixed_schema(), object, one_text, one_of_ids] })
}

/// An array of token ids.
pub(crate) const fn token_ids() -> TokenIds {
    TokenIds(0..=usize::MAX)
}

/// The type of [`token_ids`], with how many there may be.
pub(crate) struct TokenIds(RangeInclusive<usize>);

impl TokenIds {
    /// Limits the number of ids.
    pub(crate) const fn items(self, items: RangeInclusive<usize>) -> Self {
        Self(items)
    }
}

impl FieldType for TokenIds {
    type Value = Vec<u32>;
    const JSON: JsonType = JsonType::Array;

    fn read(&self, value: Value, at: &Location) -> Result<Vec<u32>, FieldError> {
        let Value::Array(items) = value else { return Err(at.wrong_type("an array of token ids", &value)) };
        check_count(items.len(), &self.0, at)?;
        items.into_iter().enumerate().map(|(index, item)| read_id(&item, &at.item(index))).collect()
    }

    fn schema(&self, _: &mut Schemas) -> Value {
        counted(json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }), &self.0)
    }
}

fn read_id(item: &Value, at: &Location) -> Result<u32, FieldError> {
    let id = item.as_number().and_then(whole).and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| FieldError::Type {
        param: at.path().to_owned(),
        message: format!("expected a token id, found {item}"),
    })
}

/// Checks that the model has these tokens.
pub(crate) fn check_ids(ids: &[u32], path: &str, vocabulary: usize) -> Result<(), FieldError> {
    ids.iter()
        .enumerate()
        .try_for_each(|(index, id)| check_id(*id, &format_args!("{path}[{index}]"), vocabulary))
}

/// Checks that the model has this token.
pub(crate) fn check_id(id: u32, path: &dyn std::fmt::Display, vocabulary: usize) -> Result<(), FieldError> {
    if (id as usize) < vocabulary {
        return Ok(());
    }
    let range = format!("0 to {}, the model's token ids", vocabulary.saturating_sub(1));
    Err(FieldError::Range { param: path.to_string(), found: id.to_string(), range })
}
