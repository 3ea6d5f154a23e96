//! The suite of a smoke test: prompts and expected answers, from a TOML file.

use std::{collections::BTreeSet, num::NonZeroU64, path::Path};

use fancy_regex::Regex;
use serde::Deserialize;
use unicode_script::Script;

/// Suite of the demonstration model.
const DEMO: &str = include_str!("demo.toml");

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The file cannot be read.
    #[error("{path}: {source}; name a suite with --suite")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a valid suite.
    #[error("{path}: {message}")]
    Form {
        /// The file.
        path: String,
        /// The position and the reason.
        message: String,
    },
    /// A prompt has an invalid field.
    #[error("{path}: prompt {name:?}: {message}")]
    Prompt {
        /// The file.
        path: String,
        /// The prompt.
        name: String,
        /// What is wrong.
        message: String,
    },
}

/// Prompts and what is expected of the answers.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Name of the suite.
    pub name: String,
    /// At least one case, with unique names.
    pub cases: Vec<Case>,
}

/// One prompt.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name, usually a language.
    pub name: String,
    /// System message.
    pub system: Option<String>,
    /// User message.
    pub prompt: String,
    /// Maximum number of tokens of the answer; `None` leaves it to the server.
    pub max_new_tokens: Option<NonZeroU64>,
    /// What is expected of the answer.
    pub expected: Expected,
}

/// What is expected of an answer, in addition to text without U+FFFD.
#[derive(Clone, Debug)]
pub struct Expected {
    /// A script, and the least share of letters in it.
    pub script: Option<(Script, f64)>,
    /// The whole answer.
    pub text: Option<String>,
    /// A pattern that must match somewhere.
    pub regex: Option<Regex>,
    /// Longest response time.
    pub max_ms: Option<f64>,
    /// Minimum number of tokens of the answer.
    pub min_tokens: Option<u64>,
    /// Maximum number of tokens of the answer.
    pub max_tokens: Option<u64>,
    /// Must be in Unicode normal form C.
    pub is_nfc: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSuite {
    name: Option<String>,
    max_new_tokens: Option<NonZeroU64>,
    prompt: Vec<RawCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: String,
    prompt: String,
    system: Option<String>,
    max_new_tokens: Option<NonZeroU64>,
    script: Option<String>,
    script_share: Option<f64>,
    text: Option<String>,
    regex: Option<String>,
    max_ms: Option<f64>,
    min_tokens: Option<u64>,
    max_tokens: Option<u64>,
    #[serde(default = "yes")]
    nfc: bool,
}

const fn yes() -> bool {
    true
}

impl Suite {
    /// The ten languages of the demonstration model.
    ///
    /// # Errors
    /// Never in practice: the suite is part of the program.
    pub fn demo() -> Result<Self, SuiteError> {
        Self::parse(DEMO, "the suite of the demonstration model", "demo")
    }

    /// Reads a suite from a file.
    ///
    /// # Errors
    /// When the file cannot be read or is not a valid suite.
    pub fn read(path: &Path) -> Result<Self, SuiteError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| SuiteError::Read { path: shown.clone(), source })?;
        let name = path.file_stem().map_or_else(|| shown.clone(), |stem| stem.to_string_lossy().into_owned());
        Self::parse(&text, &shown, &name)
    }

    fn parse(text: &str, path: &str, name: &str) -> Result<Self, SuiteError> {
        let wrong = |message: String| SuiteError::Form { path: path.to_owned(), message };
        let raw: RawSuite =
            toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        if raw.prompt.is_empty() {
            return Err(wrong("no [[prompt]]; add at least one".into()));
        }
        let mut names = BTreeSet::new();
        let (default, mut cases) = (raw.max_new_tokens, Vec::new());
        for case in raw.prompt {
            let name = case.name.clone();
            if !names.insert(name.clone()) {
                return Err(wrong(format!("two prompts have the name {name:?}; names must be unique")));
            }
            let prompt = |message| SuiteError::Prompt { path: path.to_owned(), name, message };
            cases.push(case.validate(default).map_err(prompt)?);
        }
        Ok(Self { name: raw.name.unwrap_or_else(|| name.to_owned()), cases })
    }
}

impl RawCase {
    fn validate(self, default: Option<NonZeroU64>) -> Result<Case, String> {
        let script = self.script()?;
        if let (Some(min), Some(max)) = (self.min_tokens, self.max_tokens)
            && min > max
        {
            return Err(format!("min_tokens {min} is more than max_tokens {max}"));
        }
        if self.max_ms.is_some_and(|ms| ms.is_nan() || ms <= 0.0) {
            return Err("max_ms must be more than 0".into());
        }
        let regex = self.regex.as_deref().map(Regex::new).transpose().map_err(|e| format!("regex: {e}"))?;
        let expected = Expected {
            script,
            text: self.text,
            regex,
            max_ms: self.max_ms,
            min_tokens: self.min_tokens,
            max_tokens: self.max_tokens,
            is_nfc: self.nfc,
        };
        let max_new_tokens = self.max_new_tokens.or(default);
        Ok(Case { name: self.name, system: self.system, prompt: self.prompt, max_new_tokens, expected })
    }

    fn script(&self) -> Result<Option<(Script, f64)>, String> {
        let share = self.script_share.unwrap_or(1.0);
        let Some(name) = &self.script else {
            return if self.script_share.is_some() {
                Err("script_share needs a script".into())
            } else {
                Ok(None)
            };
        };
        // Unicode's spelling: "Latin", "Ol_Chiki", "Deva".
        let known = Script::from_full_name(name).or_else(|| Script::from_short_name(name));
        let script = known.filter(|script| !matches!(script, Script::Common | Script::Inherited));
        let script = script.ok_or_else(|| {
            format!("unknown script {name:?}; expected a Unicode script such as \"Devanagari\", \"Latin\" or \"Deva\"")
        })?;
        if !(share > 0.0 && share <= 1.0) {
            return Err(format!("script_share is {share}; expected more than 0 and at most 1"));
        }
        Ok(Some((script, share)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Suite::parse(text, "s.toml", "s").unwrap_err().to_string()
    }

    #[test]
    fn an_invalid_field_is_refused_by_name() {
        let prompt = |line: &str| format!("[[prompt]]\nname = \"a\"\nprompt = \"b\"\n{line}\n");
        for (line, phrase) in [
            ("script = \"Klingon\"", "\"Klingon\""),
            ("script = \"Common\"", "\"Common\""),
            ("script_share = 0.5", "needs a script"),
            ("script = \"Latin\"\nscript_share = 1.5", "1.5"),
            ("script = \"Latin\"\nscript_share = nan", "NaN"),
            ("min_tokens = 3\nmax_tokens = 2", "min_tokens 3"),
            ("max_ms = 0.0", "max_ms"),
            ("max_ms = nan", "max_ms"),
            ("regex = \"(\"", "regex"),
            ("max_new_tokens = 0", "max_new_tokens"),
            ("txt = \"c\"", "txt"),
        ] {
            let message = refused(&prompt(line));
            assert!(message.contains(phrase) && message.starts_with("s.toml"), "{line}: {message}");
        }
        assert!(refused("prompt = []").contains("no [[prompt]]"));
        assert!(refused(&[prompt(""), prompt("")].concat()).contains("two prompts"));
    }

    #[test]
    fn a_script_has_two_names() {
        let script = |name: &str| {
            let text = format!("[[prompt]]\nname = \"a\"\nprompt = \"b\"\nscript = \"{name}\"");
            Suite::parse(&text, "s", "s").unwrap().cases[0].expected.script
        };
        assert_eq!(script("Devanagari"), script("Deva"));
        assert_eq!(script("Ol_Chiki"), Some((Script::Ol_Chiki, 1.0)));
    }

    #[test]
    fn the_demos_suite_is_what_transformers_and_peft_computed() {
        let computed: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/demo/expected.json")).unwrap();
        let suite = Suite::demo().unwrap();
        assert_eq!(suite.cases.len(), 10);
        for (case, computed) in suite.cases.iter().zip(computed["prompts"].as_array().unwrap()) {
            assert_eq!(computed["prompt"], case.prompt.as_str());
            assert_eq!(computed["merged"]["text"], case.expected.text.as_deref().unwrap());
            assert!(case.expected.script.is_some());
        }
    }
}
