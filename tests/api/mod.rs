//! The HTTP API: what each route accepts, refuses and answers.

mod cache_salt;
mod compatibility;
mod errors;
mod logprobs;
mod openapi;
mod overload;
mod priorities;
mod responses;
mod routes;
mod several_answers;
mod structured_output;
mod tokenize;
mod tools;
