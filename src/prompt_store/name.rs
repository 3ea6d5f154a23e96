//! Names of saved prompts.

use std::fmt;

/// Maximum length of a name.
const MAX_LENGTH: usize = 64;

/// The name of a saved prompt, which is part of a file's: letters, digits, `.`, `_` and `-`, the first one a letter or
/// digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PromptName(String);

/// An invalid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid name for a saved prompt {found:?}: use 1 to {MAX_LENGTH} letters (a to z), digits, `.`, `_` and `-`, and start with a \
     letter or digit"
)]
pub struct PromptNameError {
    found: String,
}

impl PromptName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PromptName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<&str> for PromptName {
    type Error = PromptNameError;

    fn try_from(text: &str) -> Result<Self, PromptNameError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        let is_name = text.len() <= MAX_LENGTH
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(is_plain);
        // The message shows the name, but not megabytes of it.
        let shown = || text.chars().take(MAX_LENGTH + 1).collect();
        if is_name { Ok(Self(text.to_owned())) } else { Err(PromptNameError { found: shown() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_its_directory_or_hide() {
        for name in ["a", "support-v2", "2026.11", "A_b", &"x".repeat(64)] {
            assert_eq!(PromptName::try_from(name).unwrap().as_str(), name);
        }
        for text in
            ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a b", "a\0", "C:a", "नमस्ते", "a\n", &"x".repeat(65)]
        {
            assert!(PromptName::try_from(text).is_err(), "{text:?}");
        }
        assert!(PromptName::try_from("/".repeat(1 << 20).as_str()).unwrap_err().to_string().len() < 400);
    }
}
