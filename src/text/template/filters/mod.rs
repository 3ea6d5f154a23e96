//! Jinja2's filters.
//!
//! All of them are here, although minijinja has most: its own print floats in another way, compare what Python does not
//! compare, and give lists where Jinja2 gives generators, which are always true and end.

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
