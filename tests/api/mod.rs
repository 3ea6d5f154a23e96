//! The HTTP API: what each route accepts, refuses and answers.

mod allowed_tokens;
mod anthropic;
mod cache_salt;
mod compatibility;
mod defaults;
mod embeddings;
mod errors;
mod http2;
mod llama_server;
mod logprobs;
mod ollama;
mod openapi;
mod overload;
mod priorities;
mod responses;
mod resumable_streams;
mod routes;
mod several_answers;
mod structured_output;
mod thinking;
mod token_details;
mod tokenize;
mod tools;
