//! One file per route or group of routes.

pub(super) mod adapters;
pub(super) mod admin;
pub(super) mod embeddings;
mod event_stream;
pub(super) mod generate;
pub(super) mod health;
pub(super) mod llama_cpp;
pub(super) mod models;
pub(super) mod ollama;
pub(super) mod pages;
pub(super) mod prompt_cache;
pub(super) mod resume;
pub(super) mod slot;
pub(super) mod stored_responses;
pub(super) mod submit;
pub(super) mod tokenize;
