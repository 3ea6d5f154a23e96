//! The HTTP server: routes, requests, answers, server-sent events, and the table from errors to statuses.
//!
//! ```text
//! server      accepts connections, explains malformed HTTP
//! routes      the table of all routes; openapi documents it
//! middleware  access rules, CORS, headers, access log
//! handlers    one file per route or group of routes
//! formats     wire formats of the generating routes
//! request     from bytes to a checked request
//! state       what handlers share; error, offload and body_memory beside it
//! ```
//!
//! Each line uses the lines below it. A request for an answer is read by `request::body`, parsed by its `formats` module,
//! submitted as a job by `handlers::submit`, and answered from a `formats::completion_stream` by `handlers::generate`.
//!
//! # What runs where
//!
//! Work that may take more than a millisecond does not run on the HTTP thread. `offload` bounds how much of it runs at once.
//!
//! | work | bound | where |
//! |---|---|---|
//! | request heads, hosts, origins, keys, rate limits | 128 KiB | HTTP thread |
//! | reading a body | `server.body_limit_bytes` each, `server.body_memory_bytes` in all | HTTP thread, copied once |
//! | gzip, JSON, fields, their errors | `server.body_limit_bytes` | offload, above 16 KiB |
//! | chat templates (generating, `/tokenize`, `/apply-template`, `/admin/cache`) | limits on steps, time and memory | `sandbox`, a process of its own |
//! | tokenizing prompts, `/tokenize` | a little more than the context length | offload, above 1 KiB |
//! | `/detokenize` | as many ids as a body holds | offload, above 1,024 |
//! | schemas, grammars, regular expressions | limits on time and memory | `sandbox`, a process of its own |
//! | `dry_sequence_breakers`, `bad_words` and texts in `logit_bias` | 16 strings of 64 bytes, which are searched in the vocabulary; 256 and 1,024 of 256 bytes | offload, always |
//! | logging prompts (`log.prompts`) | a prompt | offload, with the fields |
//! | stop strings and tool calls of a streamed token | 16 stop strings; tokens are short | HTTP thread |
//! | complete answers as JSON | choices × tokens × alternatives | offload, above 16 KiB |
//! | `/v1/slot`, `/v1/models`, `/metrics` | the queue, 64 finished requests, fixed labels | HTTP thread |
//! | `/openapi.json`, `/docs`, `/` | made once at startup; 100 KiB are copied | HTTP thread |
//! | files of saved prompts, manifests of adapters | the speed of the disk | blocking thread pool |
//!
//! When a client disconnects, actix-web drops its handler or stream, and with it the completion stream and the executor's
//! ticket, which cancels the job. A stream that can be resumed (`server.resume_ms`) waits for its client first.

mod adapter_registry;
mod body_memory;
mod connections;
mod documents;
mod error;
mod error_shape;
mod field_error;
mod formats;
pub mod fuzzing;
mod handlers;
mod metric_names;
mod middleware;
mod model_registry;
mod offload;
mod openapi;
mod prometheus_text;
mod random_id;
mod request;
mod resumable;
mod rfc3339;
mod route;
mod route_errors;
mod route_info;
mod routes;
mod server;
mod state;
mod stored_responses;
mod tls;

pub(crate) use self::connections::SPARE as SPARE_CONNECTIONS;
pub use self::{
    adapter_registry::AdapterRegistry,
    error::Unavailable,
    model_registry::{AliasError, ModelRegistry},
    server::{
        listener::Listener,
        serve::{Life, serve},
    },
    state::{AppState, Commands, DeviceStates, DrainNode, ServesModel, SetLogLevel, Settings},
    tls::{Tls, TlsError},
};
