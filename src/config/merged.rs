//! The values that the layers leave, each with its origin.

use config::{Value, ValueKind};

use super::error::Problem;

/// Merged values, and the problems of those that were left out.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) root: Value,
    pub(super) problems: Vec<Problem>,
}

impl Merged {
    /// The value of a setting; `None` if it is unset and has no default.
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.root, |value, name| match &value.kind {
            ValueKind::Table(table) => table.get(name),
            _ => None,
        })
    }

    /// Where a setting's value comes from.
    pub(super) fn origin(&self, path: &str) -> &str {
        self.get(path).and_then(Value::origin).unwrap_or("default")
    }
}
