//! The HTTP side: routes, request and answer types, server-sent events, and the one table from error to status.
//!
//! `listen` accepts connections and `connection` stands between them and actix-web. A request goes down this list: `gate` lets
//! it in, `body` reads it, `fields` takes it apart, `dialect` and `ask` prove it (`compat` has the fields of other servers,
//! `ignored` those that were left out), `rendering` has the sandbox make a prompt of its messages, `admission` makes it a
//! job, `answer` makes text of what comes back, and `generate` sends it. `error` is
//! where each of them says no.
//!
//! # What runs where
//!
//! What may take more than a millisecond, whatever a client sends, is not done on the HTTP thread. `offload` bounds how
//! much of it is done at once.
//!
//! | work | most of it | where |
//! |---|---|---|
//! | heads, hosts, origins, keys, allowances | 128 KiB | HTTP thread |
//! | reading a body | `server.body_limit_bytes` each, `server.body_memory_bytes` in all | HTTP thread, copied once |
//! | gzip, JSON, fields, their errors | `server.body_limit_bytes` | offload, above 16 KiB |
//! | chat templates (generating, `/tokenize`, `/apply-template`, `/admin/cache`) | steps, time and memory are limited | `sandbox`, a process of its own |
//! | tokenizing, prompts and `/tokenize` | what the context holds, and a little more | offload, above 1 KiB |
//! | `/detokenize` | as many ids as a body holds | offload, above 1,024 |
//! | schemas, grammars, regular expressions | time and memory are limited | `sandbox`, a process of its own |
//! | `dry_sequence_breakers`: a search through the vocabulary | 16 strings of 64 bytes | offload, always |
//! | logging prompts (`log.prompts`) | a prompt | offload, with the fields |
//! | a token on its way to a stream: stop strings, calls | 16 stop strings; tokens are short | HTTP thread |
//! | whole answers as JSON | choices × tokens × alternatives | offload, above 16 KiB |
//! | `/v1/slot`, `/v1/models`, `/metrics` | bounded by the queue, 64 past requests, and labels that are fixed | HTTP thread |
//! | `/openapi.json`, `/docs`, `/` | made once, when the server starts | HTTP thread, a copy of 100 KiB |
//! | files of saved prompts | disks may be slow | a thread of their own |
//!
//! A client that leaves is noticed because everything made for it is dropped: its handler or stream, the answer within,
//! and the ticket within that. Nothing polls for it.

mod body_memory;
mod connections;
mod documents;
mod error;
mod field_error;
mod formats;
pub mod fuzzing;
mod handlers;
mod middleware;
mod model_registry;
mod offload;
mod openapi;
mod request;
mod route;
mod route_info;
mod routes;
mod server;
mod state;

pub(crate) use self::connections::SPARE as SPARE_CONNECTIONS;
pub use self::{
    error::Unavailable,
    model_registry::ModelRegistry,
    server::{
        serve::{Life, serve},
        tls::{Tls, TlsError},
    },
    state::{AppState, Orders, SetLogLevel, Settings},
};
