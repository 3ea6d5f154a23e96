//! From bytes to a checked request.

pub(super) mod body;
pub(super) mod cache_salt;
pub(super) mod compat;
pub(super) mod echoed_fields;
pub(super) mod fields;
pub(super) mod generation;
pub(super) mod ignored_fields;
pub(super) mod input_items;
pub(super) mod messages;
pub(super) mod prompt_rendering;
pub(super) mod prompt_tokens;
pub(super) mod response_format;
pub(super) mod sampling;
pub(super) mod tools;
pub(super) mod unique_keys;
