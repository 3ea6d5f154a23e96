//! The metadata of a setting: its name, documentation, default and valid values.

use std::ops::RangeInclusive;

use config::ValueKind;

/// One row of the table of settings.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// `section.name`, as in `--set` and in messages.
    pub(super) path: &'static str,
    pub(super) section_doc: &'static str,
    pub(super) doc: &'static str,
    pub(super) kind: Kind,
    /// The default, as typed on the command line.
    pub(super) default: Option<&'static str>,
    /// What happens without a value, for settings without a default.
    pub(super) unset: Option<&'static str>,
    /// The range of an integer.
    pub(super) range: Option<RangeInclusive<i64>>,
    /// Description of valid text in error messages.
    pub(super) expect: Option<&'static str>,
    /// Validates text before it is parsed.
    pub(super) check: Option<fn(&str) -> bool>,
    pub(super) flag: Option<Flag>,
}

/// A command-line flag that sets one setting.
#[derive(Debug)]
pub(super) struct Flag {
    /// Without the dashes.
    pub(super) name: &'static str,
    pub(super) value_name: &'static str,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    /// A whole number, or a word that the setting describes.
    IntegerOrWord,
    Number,
    Boolean,
    Text,
    /// Text that is never shown.
    Secret,
}

impl Setting {
    /// Its environment variable: `EKA_SERVER_PORT` for `server.port`.
    pub(super) fn variable(&self) -> String {
        format!("EKA_{}", self.path.replace('.', "_").to_uppercase())
    }

    /// Parses a value typed as plain text. Text that is not of the setting's kind stays text, which
    /// [`Self::has_kind`] rejects.
    pub(super) fn parse(&self, typed: &str) -> ValueKind {
        let parsed = match self.kind {
            Kind::Integer | Kind::IntegerOrWord => typed.trim().parse().ok().map(ValueKind::I64),
            Kind::Number => typed.trim().parse().ok().map(ValueKind::Float),
            Kind::Boolean => typed.trim().parse().ok().map(ValueKind::Boolean),
            Kind::Text | Kind::Secret => None,
        };
        parsed.unwrap_or_else(|| ValueKind::String(typed.to_owned()))
    }

    /// Whether `value` is of the setting's kind.
    pub(super) const fn has_kind(&self, value: &ValueKind) -> bool {
        matches!(
            (self.kind, value),
            (Kind::Integer | Kind::IntegerOrWord, ValueKind::I64(_))
                | (Kind::IntegerOrWord, ValueKind::String(_))
                | (Kind::Number, ValueKind::Float(_) | ValueKind::I64(_))
                | (Kind::Boolean, ValueKind::Boolean(_))
                | (Kind::Text | Kind::Secret, ValueKind::String(_))
        )
    }

    /// Whether a value of the right kind is in range and passes the check.
    pub(super) fn accepts(&self, value: &ValueKind) -> bool {
        match value {
            ValueKind::I64(n) => self.range.as_ref().is_none_or(|range| range.contains(n)),
            ValueKind::String(text) => self.check.is_none_or(|is_valid| is_valid(text)),
            _ => true,
        }
    }

    /// A value as the file would contain it; secrets are redacted.
    pub(super) fn show(&self, value: &ValueKind) -> String {
        if self.kind == Kind::Secret { "a secret".into() } else { show(value) }
    }

    /// Description of valid values, for error messages and documentation.
    pub(super) fn expected(&self) -> String {
        match (self.kind, &self.range) {
            (Kind::Integer, Some(range)) => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            (Kind::Integer, None) => "a whole number".into(),
            (Kind::Number, _) => "a number from 0 to 1".into(),
            (Kind::Boolean, _) => "true or false".into(),
            (Kind::IntegerOrWord | Kind::Text | Kind::Secret, _) => self.expect.unwrap_or("text").into(),
        }
    }

    /// The documentation in one line.
    pub(super) fn summary(&self) -> String {
        self.doc.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// A value as the file would contain it.
pub(super) fn show(value: &ValueKind) -> String {
    match value {
        // JSON's escapes are valid TOML, which requires DEL to be escaped as well.
        ValueKind::String(text) => {
            serde_json::Value::from(text.as_str()).to_string().replace('\u{7f}', "\\u007f")
        }
        other => other.to_string(),
    }
}
