//! Entry point of `tests/fuzz` into the checks of schemas before they are compiled.

use super::{grammar::check_size, schema};
use crate::job::Constraint;

/// Checks the size of `text` and prepares it as a JSON schema: cuts bounds and rejects exponential cost. Returns the
/// constraint that would then be compiled in a process that can be killed.
#[must_use]
pub fn schema(text: &[u8]) -> Option<Constraint> {
    let constraint = Constraint::Schema(String::from_utf8(text.to_vec()).ok()?);
    check_size(&constraint).ok()?;
    let Constraint::Schema(text) = &constraint else { return None };
    schema::prepare(text).is_ok().then_some(constraint)
}
