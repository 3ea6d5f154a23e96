//! API keys: reading them, and finding the one that a request shows.
//!
//! Only digests are kept. A shown key is digested and the digest looked up: how long that takes says something about
//! digests at most, and a digest opens nothing.

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

use super::bucket::{Bucket, Standing};
use crate::{files, units::Bytes};

/// A hundred thousand keys are smaller.
const MOST_FILE: Bytes = Bytes::mib(16);

/// Shorter ones can be guessed.
const LEAST_CHARACTERS: usize = 16;

/// One key: who it is for, and what it opens.
pub struct Key {
    name: String,
    digest: [u8; 32],
    admin: bool,
    /// `None` is all of them.
    models: Option<Vec<String>>,
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.name)
    }
}

/// Which allowance of a key is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
}

impl Key {
    /// Whose it is, for the log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it opens what is for whoever runs the server.
    #[must_use]
    pub const fn is_admin(&self) -> bool {
        self.admin
    }

    /// The models it opens; `None` is all of them.
    #[must_use]
    pub fn models(&self) -> Option<&[String]> {
        self.models.as_deref()
    }

    /// Whether it opens this model.
    #[must_use]
    pub fn opens(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|one| one == model))
    }

    /// Takes one request from its allowance. Tokens are taken when it is known how many there were.
    ///
    /// # Errors
    /// When an allowance is used up: which, and how long until something is left of it.
    pub fn enter(&self, now: Instant) -> Result<(), (Spent, Duration)> {
        if let Some(tokens) = &self.tokens {
            lock(tokens).check(now).map_err(|wait| (Spent::Tokens, wait))?;
        }
        match &self.requests {
            Some(requests) => lock(requests).take(now).map_err(|wait| (Spent::Requests, wait)),
            None => Ok(()),
        }
    }

    /// Takes the tokens of prompt and answer from its allowance, which may leave it in debt.
    pub fn spend_tokens(&self, tokens: u32, now: Instant) {
        if let Some(bucket) = &self.tokens {
            lock(bucket).spend(tokens, now);
        }
    }

    /// How its allowances stand: requests, tokens.
    #[must_use]
    pub fn standing(&self, now: Instant) -> [Option<Standing>; 2] {
        let standing = |bucket: &Option<Mutex<Bucket>>| Some(lock(bucket.as_ref()?).standing(now));
        [standing(&self.requests), standing(&self.tokens)]
    }
}

/// A bucket is whole whenever its lock is released.
fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All keys.
#[derive(Debug, Default)]
pub struct Keys {
    by_digest: HashMap<[u8; 32], Arc<Key>>,
}

/// Why keys cannot be used. Says where and what, and nothing of any key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("auth.keys_file {}: {source}; name a file that eka may read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML, or has fields that keys have not.
    #[error("auth.keys_file {}, line {line}: {message}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The file has no keys, which would shut everybody out.
    #[error("auth.keys_file {} has no [[key]]; add one, or unset auth.keys_file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// One key cannot be used.
    #[error("{place}: {problem}")]
    Key {
        /// Which one.
        place: String,
        /// What is wrong with it, and what would do.
        problem: &'static str,
    },
}

impl Keys {
    /// Reads the keys of the file and those of `listed`, which is `name:key` or `key`, separated by commas.
    ///
    /// # Errors
    /// [`KeysError`] for the first that cannot be used.
    pub fn read(file: Option<&Path>, listed: Option<&str>) -> Result<Self, KeysError> {
        let mut keys = Self::default();
        if let Some(path) = file {
            for (number, entry) in entries(path)?.into_iter().enumerate() {
                let place = format!("auth.keys_file {}, key {}", path.display(), number + 1);
                keys.add(entry.prove(), place)?;
            }
        }
        let listed = listed.unwrap_or_default().split(',').map(str::trim).filter(|one| !one.is_empty());
        for (number, one) in listed.enumerate() {
            keys.add(Entry::listed(one, number + 1).prove(), format!("auth.keys, key {}", number + 1))?;
        }
        Ok(keys)
    }

    /// Whether there are none, so that everybody may come in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// The key that was shown.
    #[must_use]
    pub fn find(&self, shown: &[u8]) -> Option<&Arc<Key>> {
        self.by_digest.get(&digest(shown))
    }

    /// Whether one of them has this name.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        self.by_digest.values().any(|key| key.name == name)
    }

    /// Lets keys that were there before, with the same limits, go on with what is left of their allowances.
    pub(super) fn take_over(&mut self, before: &Self) {
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
            return Err(refuse("its name is that of another key; the log would not tell them apart"));
        }
        if self.by_digest.contains_key(&key.digest) {
            return Err(refuse("it is the same key as another one; make a new one, or remove it"));
        }
        self.by_digest.insert(key.digest, Arc::new(key));
        Ok(())
    }
}

fn inherit(bucket: &mut Option<Mutex<Bucket>>, old: &Option<Mutex<Bucket>>) {
    if let (Some(bucket), Some(old)) = (bucket, old) {
        let old = *lock(old);
        let bucket = bucket.get_mut().unwrap_or_else(PoisonError::into_inner);
        if bucket.has_limit_of(&old) {
            *bucket = old;
        }
    }
}

fn digest(shown: &[u8]) -> [u8; 32] {
    Sha256::digest(shown).into()
}

fn entries(path: &Path) -> Result<Vec<Entry>, KeysError> {
    let text =
        files::read_text(path, MOST_FILE).map_err(|source| KeysError::Read { path: path.into(), source })?;
    let file: File = toml::from_str(&text).map_err(|error| {
        // The error's own text quotes the line, which may hold a key.
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        KeysError::Shape { path: path.into(), line, message: without_keys(error.message()) }
    })?;
    if file.key.is_empty() { Err(KeysError::Empty { path: path.into() }) } else { Ok(file.key) }
}

/// `message` without what it quotes, where that is long enough to be a key and no name of a field.
fn without_keys(message: &str) -> String {
    const FIELDS: [&str; 2] = ["requests_per_minute", "tokens_per_minute"];
    let quoted = message.split('`').enumerate().map(|(at, part)| match at % 2 {
        1 if part.len() >= LEAST_CHARACTERS && !FIELDS.contains(&part) => "…",
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

/// A key as typed.
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

/// Text, or an error that does not quote what is there instead.
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

    fn prove(self) -> Result<Key, &'static str> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err("it needs a name, for the log");
        }
        let digest = match (&self.key, &self.sha256) {
            (Some(key), None) => digest(plain(key)?),
            (None, Some(hex)) => from_hex(hex).ok_or("sha256 is not 64 hexadecimal digits")?,
            _ => return Err("it needs either key or sha256"),
        };
        let now = Instant::now();
        let bucket = |per_minute: NonZeroU32| Mutex::new(Bucket::full(per_minute, now));
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
    if key.len() < LEAST_CHARACTERS {
        Err("it has fewer than 16 characters and could be guessed; `openssl rand -hex 24` makes a good one")
    } else if key.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(key.as_bytes())
    } else {
        Err("it has characters that no HTTP header can carry; use letters, digits and signs of ASCII")
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
        assert!(a.is_admin() && a.opens("anything") && a.name() == "a");
        let b = keys.find(b"other-0123456789abcdef").unwrap();
        assert!(!b.is_admin() && b.opens("demo") && !b.opens("else"));
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
    fn mistakes_are_named_with_their_place() {
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
    fn keys_that_are_read_again_keep_what_is_left_of_their_allowances() {
        let text = format!("[[key]]\nname = \"a\"\nkey = \"{SECRET}\"\nrequests_per_minute = 1\n");
        let before = read(&text).unwrap();
        let now = Instant::now();
        before.find(SECRET.as_bytes()).unwrap().enter(now).unwrap();
        let mut after = read(&text).unwrap();
        after.take_over(&before);
        after.find(SECRET.as_bytes()).unwrap().enter(now).unwrap_err();
        let mut raised = read(&text.replace("= 1\n", "= 2\n")).unwrap();
        raised.take_over(&before);
        raised.find(SECRET.as_bytes()).unwrap().enter(now).unwrap();
    }
}
