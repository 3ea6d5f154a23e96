//! Jinja2's filters.
//!
//! All filters of Jinja2, although minijinja has most of them: minijinja's print floats differently, compare values that Python
//! does not compare, and return lists instead of generators, which are always true and can be iterated once.

mod markup;
mod numbers;
mod select;
mod sequences;
mod text;
mod values;

pub(super) use self::markup::escape_text;

use minijinja::Environment;

use super::{register::add_filter, tojson::tojson};

/// Adds every filter.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_filter(environment, "tojson", tojson);
    for add in [text::add, numbers::add, sequences::add, select::add, markup::add] {
        add(environment);
    }
}
