//! From bytes to a checked request.

mod adapters;
mod admin;
mod anthropic;
mod anthropic_messages;
pub(super) mod body;
pub(super) mod cache_salt;
mod chat;
mod closed_objects;
mod compat;
mod completions;
mod echoed_fields;
mod embeddings;
mod fill_in_middle;
mod gbnf;
mod generate_lite;
mod generation;
mod infill;
mod input_items;
mod keep_alive;
mod llama_cpp;
mod llama_cpp_echo;
mod logit_bias;
mod messages;
mod ollama;
pub(super) mod prompt;
mod prompt_tokens;
mod response_format;
mod responses;
mod sampling;
mod sampling_texts;
pub(super) mod schema;
mod structural_tag;
mod thinking;
mod token_details;
pub(super) mod tokenize;
mod tool_definitions;
mod tools;

pub(super) use self::{
    adapters::AdapterChoice,
    admin::{CacheRequest, LoadRequest, LogRequest, RestorePrompt, SavePrompt},
    anthropic::MessagesRequest,
    body::{ApiRequest, Taken},
    chat::ChatRequest,
    completions::CompletionRequest,
    echoed_fields::EchoedFields,
    embeddings::{
        EmbeddingFormat, EmbeddingRequest, EmbeddingTerms, OllamaEmbedRequest, OllamaEmbeddingsRequest,
        RerankRequest,
    },
    fill_in_middle::FillInMiddle,
    generate_lite::GenerateLiteRequest,
    generation::{Delivery, GenerateParams, GenerateRequest, RequestContext, TruncationSide},
    llama_cpp::{InfillRequest, LlamaCompletionRequest},
    llama_cpp_echo::{GenerationSettings, LlamaCppEcho},
    ollama::{OllamaChatRequest, OllamaGenerateRequest, ShowRequest},
    prompt::Prompt,
    prompt_tokens::{EncodeOptions, ServedModel, Special},
    response_format::OutputConstraint,
    responses::ResponseCall,
    sampling_texts::SamplingTexts,
    schema::{Fields, Ignored, ReadObject, Schemas},
    token_details::TokenDetails,
    tokenize::{ApplyTemplateRequest, DetokenizeRequest, Source, TokenizeRequest},
    tools::ToolContext,
};
