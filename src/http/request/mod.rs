//! From bytes to a checked request.

pub(super) mod admin;
pub(super) mod body;
pub(super) mod cache_salt;
pub(super) mod chat;
pub(super) mod compat;
pub(super) mod completions;
pub(super) mod echoed_fields;
pub(super) mod generate_lite;
pub(super) mod generation;
pub(super) mod input_items;
pub(super) mod keep_alive;
pub(super) mod messages;
pub(super) mod prompt;
pub(super) mod prompt_tokens;
pub(super) mod response_format;
pub(super) mod responses;
pub(super) mod sampling;
pub(super) mod schema;
pub(super) mod tokenize;
pub(super) mod tool_definitions;
pub(super) mod tools;
