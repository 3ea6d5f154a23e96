//! What every request passes before its handler, and every answer after it.

pub(super) mod access_log;
pub(super) mod auth;
pub(super) mod cors;
pub(super) mod headers;
pub(super) mod host;
pub(super) mod pipeline;
pub(super) mod request_id;
