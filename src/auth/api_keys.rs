//! API keys: parsing them and looking up the key of a request.
//!
//! Only SHA-256 digests are kept. A key is looked up by its digest, so the timing of a lookup reveals nothing that would
//! help to guess a key.

use std::{
    collections::HashMap,
    fmt, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, de};
use sha2::{Digest, Sha256};

use super::token_bucket::{RateLimitStatus, TokenBucket};
use crate::files;

/// Shorter keys could be guessed.
const MIN_KEY_LENGTH: usize = 16;

/// One API key: its name, rights and rate limits.
pub struct Key {
    name: String,
    digest: [u8; 32],
    admin: bool,
    /// `None` allows every model.
    models: Option<Vec<String>>,
    requests: Option<Mutex<TokenBucket>>,
    tokens: Option<Mutex<TokenBucket>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.name)
    }
}

/// The rate limit of a key that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExhaustedLimit {
    /// Requests per minute.
    Requests,
    /// Tokens per minute.
    Tokens,
}

impl Key {
    /// The key's name, as it appears in the log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the key may use the admin endpoints.
    #[must_use]
    pub const fn is_admin(&self) -> bool {
        self.admin
    }

    /// The models that the key may use; `None` allows every model.
    #[must_use]
    pub fn models(&self) -> Option<&[String]> {
        self.models.as_deref()
    }

    /// Whether the key may use `model`.
    #[must_use]
    pub fn allows_model(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|one| one == model))
    }

    /// Counts one request. Tokens are counted by [`Self::spend_tokens`] when the answer is finished.
    ///
    /// # Errors
    /// When a rate limit is used up: which one, and the time to wait.
    pub fn admit(&self, now: Instant) -> Result<(), (ExhaustedLimit, Duration)> {
        if let Some(tokens) = &self.tokens {
            lock(tokens).check(now).map_err(|wait| (ExhaustedLimit::Tokens, wait))?;
        }
        match &self.requests {
            Some(requests) => lock(requests).take(now).map_err(|wait| (ExhaustedLimit::Requests, wait)),
            None => Ok(()),
        }
    }

    /// Counts the tokens of prompt and answer, which may exceed what is left.
    pub fn spend_tokens(&self, tokens: u32, now: Instant) {
        if let Some(bucket) = &self.tokens {
            lock(bucket).spend(tokens, now);
        }
    }

    /// The key's rate limits: requests, tokens.
    #[must_use]
    pub fn rate_limit_status(&self, now: Instant) -> [Option<RateLimitStatus>; 2] {
        let status = |bucket: &Option<Mutex<TokenBucket>>| Some(lock(bucket.as_ref()?).status(now));
        [status(&self.requests), status(&self.tokens)]
    }
}

/// Poisoning is ignored: no code panics with a half-updated bucket.
fn lock(bucket: &Mutex<TokenBucket>) -> MutexGuard<'_, TokenBucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All configured keys.
#[derive(Debug, Default)]
pub struct Keys {
    by_digest: HashMap<[u8; 32], Arc<Key>>,
}

/// Why the keys cannot be used. Messages never contain a key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("auth.keys_file {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown field.
    #[error("auth.keys_file {}, line {line}: {message}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The file has no keys, so every request would be rejected.
    #[error("auth.keys_file {} has no [[key]]; add one, or unset auth.keys_file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// One key cannot be used.
    #[error("{place}: {problem}")]
    Key {
        /// Where the key is.
        place: String,
        /// What is wrong, and how to fix it.
        problem: &'static str,
    },
}

impl Keys {
    /// Reads the keys of `file` and those of `listed`: `name:key` or `key`, separated by commas.
    ///
    /// # Errors
    /// [`KeysError`] for the first that cannot be used.
    pub fn read(file: Option<&Path>, listed: Option<&str>) -> Result<Self, KeysError> {
        let mut keys = Self::default();
        if let Some(path) = file {
            for (number, entry) in entries(path)?.into_iter().enumerate() {
                let place = format!("auth.keys_file {}, key {}", path.display(), number + 1);
                keys.add(entry.validate(), place)?;
            }
        }
        let listed = listed.unwrap_or_default().split(',').map(str::trim).filter(|one| !one.is_empty());
        for (number, one) in listed.enumerate() {
            keys.add(Entry::listed(one, number + 1).validate(), format!("auth.keys, key {}", number + 1))?;
        }
        Ok(keys)
    }

    /// Whether no keys are configured, so that requests need none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }

    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// The key that a request sent, if it is known.
    #[must_use]
    pub fn find(&self, shown: &[u8]) -> Option<&Arc<Key>> {
        self.by_digest.get(&digest(shown))
    }

    /// Whether a key has this name.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        self.by_digest.values().any(|key| key.name == name)
    }

    /// Copies the rate-limit state of `before` to keys that are unchanged.
    pub(super) fn inherit_limits(&mut self, before: &Self) {
        for (digest, key) in &mut self.by_digest {
            let Some(old) = before.by_digest.get(digest) else { continue };
            let Some(key) = Arc::get_mut(key) else { continue };
            inherit(&mut key.requests, &old.requests);
            inherit(&mut key.tokens, &old.tokens);
        }
    }

    fn add(&mut self, key: Result<Key, &'static str>, place: String) -> Result<(), KeysError> {
        let refuse = |problem| KeysError::Key { place, problem };
        let key = match key {
            Ok(key) => key,
            Err(problem) => return Err(refuse(problem)),
        };
        if self.by_digest.values().any(|other| other.name == key.name) {
            return Err(refuse("its name is already used by another key; names must be unique"));
        }
        if self.by_digest.contains_key(&key.digest) {
            return Err(refuse("it duplicates another key; remove it, or generate a new one"));
        }
        self.by_digest.insert(key.digest, Arc::new(key));
        Ok(())
    }
}

fn inherit(bucket: &mut Option<Mutex<TokenBucket>>, old: &Option<Mutex<TokenBucket>>) {
    if let (Some(bucket), Some(old)) = (bucket, old) {
        let old = *lock(old);
        let bucket = bucket.get_mut().unwrap_or_else(PoisonError::into_inner);
        if bucket.has_same_limit(&old) {
            *bucket = old;
        }
    }
}

fn digest(shown: &[u8]) -> [u8; 32] {
    Sha256::digest(shown).into()
}

fn entries(path: &Path) -> Result<Vec<Entry>, KeysError> {
    let text = files::read_text(path, files::MAX_JSON)
        .map_err(|source| KeysError::Read { path: path.into(), source })?;
    let file: File = toml::from_str(&text).map_err(|error| {
        // The error's own text quotes the line, which may hold a key.
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        KeysError::Shape { path: path.into(), line, message: without_keys(error.message()) }
    })?;
    if file.key.is_empty() { Err(KeysError::Empty { path: path.into() }) } else { Ok(file.key) }
}

/// `message` with quoted text replaced where it could be a key.
fn without_keys(message: &str) -> String {
    const FIELDS: [&str; 2] = ["requests_per_minute", "tokens_per_minute"];
    let quoted = message.split('`').enumerate().map(|(at, part)| match at % 2 {
        1 if part.len() >= MIN_KEY_LENGTH && !FIELDS.contains(&part) => "…",
        _ => part,
    });
    quoted.collect::<Vec<_>>().join("`")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

/// A `[[key]]` table before validation.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "text")]
    key: Option<String>,
    #[serde(default, deserialize_with = "text")]
    sha256: Option<String>,
    #[serde(default)]
    admin: bool,
    models: Option<Vec<String>>,
    requests_per_minute: Option<NonZeroU32>,
    tokens_per_minute: Option<NonZeroU32>,
}

/// A string. The error for another type does not quote the value, which may be a key.
fn text<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    match toml::Value::deserialize(value)? {
        toml::Value::String(text) => Ok(Some(text)),
        _ => Err(de::Error::custom("expected text in quotes")),
    }
}

impl Entry {
    fn listed(typed: &str, number: usize) -> Self {
        let (name, key) = typed.split_once(':').unwrap_or(("", typed));
        let name = if name.is_empty() { format!("key-{number}") } else { name.trim().to_owned() };
        Self { name, key: Some(key.trim().to_owned()), ..Self::default() }
    }

    fn validate(self) -> Result<Key, &'static str> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err("it has no name; add `name`, which the log shows");
        }
        let digest = match (&self.key, &self.sha256) {
            (Some(key), None) => digest(plain(key)?),
            (None, Some(hex)) => from_hex(hex).ok_or("sha256 is not 64 hexadecimal digits")?,
            _ => return Err("it needs either `key` or `sha256`"),
        };
        let now = Instant::now();
        let bucket = |per_minute: NonZeroU32| Mutex::new(TokenBucket::full(per_minute, now));
        Ok(Key {
            name: self.name,
            digest,
            admin: self.admin,
            models: self.models,
            requests: self.requests_per_minute.map(bucket),
            tokens: self.tokens_per_minute.map(bucket),
        })
    }
}

fn plain(key: &str) -> Result<&[u8], &'static str> {
    if key.len() < MIN_KEY_LENGTH {
        Err("it has fewer than 16 characters and could be guessed; generate one with `openssl rand -hex 24`")
    } else if key.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(key.as_bytes())
    } else {
        Err("it has characters that are not valid in an HTTP header; use visible ASCII only")
    }
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<_>>>()?;
    let bytes = digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok());
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SECRET: &str = "hush-0123456789abcdef";

    fn read(text: &str) -> Result<Keys, KeysError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        Keys::read(Some(file.path()), None)
    }

    fn refused(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn a_key_is_found_by_itself_or_by_its_digest() {
        let hex: String = digest(b"other-0123456789abcdef").iter().map(|b| format!("{b:02x}")).collect();
        let keys = read(&format!(
            "[[key]]\nname = \"a\"\nkey = \"{SECRET}\"\nadmin = true\n[[key]]\nname = \"b\"\nsha256 = \"{hex}\"\nmodels = [\"demo\"]\n"
        ))
        .unwrap();
        let a = keys.find(SECRET.as_bytes()).unwrap();
        assert!(a.is_admin() && a.allows_model("anything") && a.name() == "a");
        let b = keys.find(b"other-0123456789abcdef").unwrap();
        assert!(!b.is_admin() && b.allows_model("demo") && !b.allows_model("else"));
        assert!(keys.find(b"").is_none() && keys.find(&SECRET.as_bytes()[1..]).is_none());
    }

    #[test]
    fn no_error_quotes_a_key() {
        for text in [
            format!("[[key]]\nname = \"a\"\nkey = \"{SECRET}\n"),
            format!("[[key]]\nname = \"a\"\nkey = [\"{SECRET}\"]\n"),
            format!("[[key]]\nname = \"a\"\nkey = \"{SECRET}\"\nadmn = true\n"),
            format!("[[key]]\nname = \"a\"\nkey = \"{SECRET}\"\nsha256 = \"{SECRET}\"\n"),
            format!("[[key]]\nname = \"a\"\nsha256 = \"{SECRET}\"\n"),
            format!("[[key]]\nkey = \"{SECRET}\"\n"),
            format!("[[key]]\nname = \"a\"\n{SECRET} = true\n"),
            format!("{SECRET}\n"),
            format!("[[key]]\nname = \"a\"\nkey = \"{SECRET} \"\n"),
        ] {
            let message = refused(&text);
            assert!(!message.contains("hush"), "{message}");
            assert!(message.contains("line ") || message.contains("key 1"), "{message}");
        }
        assert!(
            !format!("{:?}", read(&format!("[[key]]\nname = \"a\"\nkey = \"{SECRET}\"\n"))).contains("hush")
        );
    }

    #[test]
    fn errors_name_the_line_or_the_key() {
        assert!(refused("").contains("has no [[key]]"));
        assert!(refused("[[key]]\nname = \"a\"\nkey = \"short\"\n").contains("key 1: it has fewer than 16"));
        let unknown = refused("[[key]]\nname = \"a\"\nadmn = true\n");
        assert!(unknown.contains("line 3") && unknown.contains("admn"), "{unknown}");
        let limit = refused("[[key]]\nname = \"a\"\nrequests_per_minute = 0\n");
        assert!(limit.contains("line 3"), "{limit}");
        let key = format!("[[key]]\nname = \"a\"\nkey = \"{SECRET}\"\n");
        assert!(refused(&format!("{key}{key}")).contains("key 2: its name"));
    }

    #[test]
    fn keys_can_be_listed_with_names_or_without() {
        let keys = Keys::read(None, Some("asha:hush-0123456789abcdef, 0123456789abcdef-hush")).unwrap();
        assert_eq!(keys.find(SECRET.as_bytes()).unwrap().name(), "asha");
        assert_eq!(keys.find(b"0123456789abcdef-hush").unwrap().name(), "key-2");
        assert!(Keys::read(None, None).unwrap().is_empty());
    }

    #[test]
    fn reloaded_keys_keep_their_rate_limit_state() {
        let text = format!("[[key]]\nname = \"a\"\nkey = \"{SECRET}\"\nrequests_per_minute = 1\n");
        let before = read(&text).unwrap();
        let now = Instant::now();
        before.find(SECRET.as_bytes()).unwrap().admit(now).unwrap();
        let mut after = read(&text).unwrap();
        after.inherit_limits(&before);
        after.find(SECRET.as_bytes()).unwrap().admit(now).unwrap_err();
        let mut raised = read(&text.replace("= 1\n", "= 2\n")).unwrap();
        raised.inherit_limits(&before);
        raised.find(SECRET.as_bytes()).unwrap().admit(now).unwrap();
    }
}
