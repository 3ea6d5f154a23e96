//! From merged values to typed ones: every limit is checked here. Validation continues after a problem, so that all
//! problems are reported at once.

use config::ValueKind;

use super::{
    environment::Environment,
    error::Problem,
    merged::Merged,
    setting::{Setting, show},
    value::SettingValue,
};

/// Computes the value of an unset setting.
pub(super) type Derive<T> = fn(&mut Validator<'_>) -> Option<T>;

/// Reads settings and collects their problems.
pub(super) struct Validator<'a> {
    pub(super) merged: &'a Merged,
    pub(super) environment: &'a Environment,
    pub(super) problems: Vec<Problem>,
}

impl Validator<'_> {
    /// The value of a setting, or `None` after a problem was recorded.
    pub(super) fn read<T: SettingValue>(
        &mut self,
        setting: &'static Setting,
        derive: Option<Derive<T>>,
    ) -> Option<T> {
        let Some(value) = self.merged.get(setting.path) else {
            return derive.map_or_else(T::unset, |derive| derive(self));
        };
        let converted = if setting.accepts(&value.kind) { T::from_value(&value.kind) } else { Err(None) };
        match converted {
            Ok(value) => Some(value),
            Err(expected) => {
                let shown = setting.show(&value.kind);
                self.record(setting.path, shown, expected.unwrap_or_else(|| setting.expected()));
                None
            }
        }
    }

    /// The raw text of a setting.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        match &self.merged.get(path)?.kind {
            ValueKind::String(text) => Some(text),
            _ => None,
        }
    }

    /// Records a problem of a setting that is not secret.
    pub(super) fn reject(&mut self, path: &'static str, expected: String) {
        let shown = self.merged.get(path).map(|value| show(&value.kind)).unwrap_or_default();
        self.record(path, shown, expected);
    }

    /// Checks that `path` is not below `min`, another integer setting.
    pub(super) fn require_at_least(&mut self, path: &'static str, min: &'static str) {
        if let (Some(value), Some(minimum)) = (self.valid_integer(path), self.valid_integer(min))
            && value < minimum
        {
            let origin = self.merged.origin(min);
            self.reject(path, format!("at least {min}, which is {minimum} ({origin})"));
        }
    }

    /// Checks that `path` is unset, or `other` is set as well.
    pub(super) fn require_both(&mut self, path: &'static str, other: &'static str) {
        if self.merged.get(path).is_some() && self.merged.get(other).is_none() {
            self.reject(path, format!("{other} to be set as well"));
        }
    }

    fn valid_integer(&self, path: &str) -> Option<i64> {
        let has_problem = |problem: &Problem| matches!(problem, Problem::Value { key, .. } if *key == path);
        match self.merged.get(path)?.kind {
            ValueKind::I64(n) if !self.problems.iter().any(has_problem) => Some(n),
            _ => None,
        }
    }

    fn record(&mut self, key: &'static str, value: String, expected: String) {
        let origin = self.merged.origin(key).to_owned();
        self.problems.push(Problem::Value { key, value, origin, expected });
    }
}
