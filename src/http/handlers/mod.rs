//! One file per route or group of routes.

pub(super) mod admin;
pub(super) mod docs;
pub(super) mod generate;
pub(super) mod health;
pub(super) mod index;
pub(super) mod models;
pub(super) mod prompt_cache;
pub(super) mod slot;
pub(super) mod submit;
pub(super) mod tokenize;
pub(super) mod ui;
