//! The shapes of requests and answers on the generating routes.

pub(super) mod chat;
pub(super) mod completion_stream;
pub(super) mod completions;
pub(super) mod format;
pub(super) mod generate_lite;
pub(super) mod logprobs;
pub(super) mod response_id;
pub(super) mod responses;
pub(super) mod sse;
pub(super) mod usage;
