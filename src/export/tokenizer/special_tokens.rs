//! Special and added tokens, which are in settings beside the vocabulary: `tokenizer_config.json`, and in older checkpoints
//! `special_tokens_map.json` and `added_tokens.json`.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde_json::{Value, json};

use super::{error::TokenizerError, parts::template, vocabulary::MAX_TOKENS};
use crate::{
    export::json_config::JsonConfig,
    files,
    manifest::layout::{SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG},
};

/// Tokens with an id, where older versions kept them.
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";

/// Fields with a special token, in the order in which transformers adds them.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Lists of further special tokens.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// A token that is found in a text before anything else.
#[derive(Clone, Debug)]
pub(super) struct AddedToken {
    pub content: String,
    pub is_special: bool,
    pub is_normalized: bool,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
}

impl AddedToken {
    pub(super) fn new(content: &str, is_special: bool) -> Self {
        Self {
            content: content.into(),
            is_special,
            is_normalized: false,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }

    /// A token as a string, which is special, or as an object that may say whether it is.
    fn read(value: &Value, is_special: bool) -> Option<Self> {
        if let Some(text) = value.as_str() {
            return Some(Self::new(text, true));
        }
        let flag = |field: &str, default| value.get(field).and_then(Value::as_bool).unwrap_or(default);
        let is_special = flag("special", is_special);
        Some(Self {
            content: value.get("content")?.as_str()?.into(),
            is_special,
            is_normalized: flag("normalized", !is_special),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
            single_word: flag("single_word", false),
        })
    }

    fn json(&self, id: usize) -> Value {
        json!({
            "id": id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip,
            "rstrip": self.rstrip, "normalized": self.is_normalized, "special": self.is_special,
        })
    }
}

/// The settings of a directory's tokenizer.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub config: Option<JsonConfig>,
    /// Special tokens by their names; null for one that there is not.
    named: BTreeMap<&'static str, Option<AddedToken>>,
    /// Tokens with ids.
    pub by_id: BTreeMap<usize, AddedToken>,
    listed: Vec<AddedToken>,
}

impl Settings {
    /// Reads the settings in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let read = |name: &str| -> Result<Option<JsonConfig>, TokenizerError> {
            let path = dir.join(name);
            Ok(files::exists(&path).then(|| JsonConfig::read(&path)).transpose()?)
        };
        let (config, map, added) = (read(TOKENIZER_CONFIG)?, read(SPECIAL_TOKENS_MAP)?, read(ADDED_TOKENS)?);
        let mut settings = Self { config, ..Self::default() };
        let decoder = settings.config.as_ref().map(|config| config.section("added_tokens_decoder"));
        let decoder = decoder.transpose()?.flatten();
        // With it the older files are not read.
        let maps = if decoder.is_some() { None } else { map };
        for source in settings.config.clone().iter().chain(&maps) {
            settings.read_special(source)?;
        }
        if let Some(decoder) = decoder {
            for (id, token) in decoder.fields() {
                let token = id.parse().ok().zip(AddedToken::read(token, false));
                let (id, token) =
                    token.ok_or_else(|| decoder.wrong(id, "a token with its id as the name"))?;
                settings.by_id.insert(id, token);
            }
        } else if let Some(added) = added {
            settings.read_older(&added)?;
        }
        match settings.by_id.keys().next_back() {
            Some(last) if *last >= MAX_TOKENS => Err(TokenizerError::Damaged {
                path: dir.join(TOKENIZER_CONFIG),
                problem: format!("an added token has the id {last}"),
            }),
            _ => Ok(settings),
        }
    }

    fn read_special(&mut self, source: &JsonConfig) -> Result<(), TokenizerError> {
        for name in NAMED {
            match source.fields().find(|(field, _)| *field == name) {
                Some((_, value)) => {
                    let token = AddedToken::read(value, true).ok_or_else(|| source.wrong(name, "a token"))?;
                    self.named.insert(name, Some(AddedToken { is_special: true, ..token }));
                }
                None if source.is_null(name) => drop(self.named.insert(name, None)),
                None => {}
            }
        }
        for tokens in LISTS.iter().filter_map(|list| source.get(list)?.as_array()) {
            self.listed.extend(tokens.iter().filter_map(|token| AddedToken::read(token, true)));
        }
        Ok(())
    }

    /// `added_tokens.json` has ids by tokens.
    fn read_older(&mut self, added: &JsonConfig) -> Result<(), TokenizerError> {
        for (token, id) in added.fields() {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
            let id = id.ok_or_else(|| added.wrong(token, "a token id"))?;
            let named = self.named.values().flatten().chain(&self.listed);
            let is_special = named.into_iter().any(|named| named.content == token);
            let token = AddedToken { is_normalized: !is_special, ..AddedToken::new(token, is_special) };
            self.by_id.insert(id, token);
        }
        Ok(())
    }

    /// The special token called `name`.
    pub(super) fn named(&self, name: &str) -> Option<&AddedToken> {
        self.named.get(name)?.as_ref()
    }

    /// Uses `token` where no setting names another, or that there is none.
    pub(super) fn default_named(&mut self, name: &'static str, token: &str) {
        self.named.entry(name).or_insert_with(|| Some(AddedToken::new(token, true)));
    }

    /// A further token.
    pub(super) fn list(&mut self, token: AddedToken) {
        self.listed.push(token);
    }

    fn adds(&self, field: &str) -> Result<bool, TokenizerError> {
        Ok(self.config.as_ref().map_or(Ok(false), |config| config.flag(field, false))?)
    }

    /// Completes `tokenizer`, whose vocabulary has ids by `tokens`: tokens that it finds first, and those that it puts before
    /// and after a text.
    pub(super) fn complete(
        &self,
        tokenizer: &mut Value,
        tokens: &HashMap<&str, usize>,
    ) -> Result<(), TokenizerError> {
        let mut added: BTreeMap<usize, AddedToken> = BTreeMap::new();
        let mut ids: HashMap<String, usize> = HashMap::new();
        let mut next = tokens.values().max().map_or(0, |last| last + 1);
        let named = NAMED.iter().filter_map(|name| self.named(name));
        let is_named = |token: &str| named.clone().any(|named| named.content == token);
        let with_ids = self.by_id.iter().map(|(id, token)| (Some(*id), token));
        for (stated, token) in with_ids.chain(named.clone().chain(&self.listed).map(|token| (None, token))) {
            if token.content.is_empty() || ids.contains_key(&token.content) {
                continue;
            }
            let id = tokens.get(token.content.as_str()).copied();
            let id = id.unwrap_or_else(|| stated.filter(|id| *id >= next).unwrap_or(next));
            // The library gives ids one after the other.
            for skipped in next..id {
                added.insert(skipped, AddedToken::new(&format!("<|reserved_token_{skipped}|>"), true));
            }
            next = next.max(id + 1);
            ids.insert(token.content.clone(), id);
            let is_special = token.is_special || is_named(&token.content);
            added.insert(id, AddedToken { is_special, ..token.clone() });
        }
        tokenizer["version"] = json!("1.0");
        tokenizer["added_tokens"] = added.iter().map(|(id, token)| token.json(*id)).collect();
        let around = |name: &str, is_added: bool| {
            let token = self.named(name).filter(|_| is_added)?;
            Some((*ids.get(&token.content)?, token.content.as_str()))
        };
        let around = [
            around("bos_token", self.adds("add_bos_token")?),
            around("eos_token", self.adds("add_eos_token")?),
        ];
        tokenizer["post_processor"] = template(around);
        Ok(())
    }
}
