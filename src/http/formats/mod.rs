//! The shapes of requests and answers on the generating routes.

mod anthropic;
mod chat;
mod completion_stream;
mod completions;
mod format;
mod generate_lite;
mod llama_cpp;
mod logprobs;
mod ollama;
mod responses;
mod sse;
mod token_ids;
mod update;
mod usage;

pub(super) use self::{
    anthropic::{AnthropicMessage, CountedTokens, MessageEvent, Messages},
    chat::{Chat, ChatCompletion, ChatCompletionChunk},
    completion_stream::{AnswerOptions, CompletionStream, Resume},
    completions::{Completion, Completions},
    format::{ApiFormat, ResponseMeta, to_json},
    generate_lite::{GenerateLite, Generated, GeneratedDelta},
    llama_cpp::{CompletionRoute, InfillRoute, LlamaCompletions, LlamaFormat, ReducedCompletion},
    ollama::{OllamaChat, OllamaChatAnswer, OllamaGenerate, OllamaGenerated},
    responses::{Response, ResponseEvent, Responses},
    sse::SseEvents,
    update::{FinishedChoice, Update},
    usage::{RequestMemory, milliseconds, rate},
};
