//! The shapes of requests and answers on the generating routes.

mod chat;
mod completion_stream;
mod completions;
mod format;
mod generate_lite;
mod logprobs;
mod response_id;
mod responses;
mod sse;
mod usage;

pub(super) use self::{
    chat::{Chat, ChatCompletion, ChatCompletionChunk},
    completion_stream::{AnswerOptions, CompletionStream, FinishedChoice, Update},
    completions::{Completion, Completions},
    format::{ApiFormat, ResponseMeta, to_json},
    generate_lite::{GenerateLite, Generated, GeneratedDelta},
    responses::{Response, ResponseEvent, Responses},
    sse::SseEvents,
    usage::{RequestMemory, milliseconds, rate},
};
