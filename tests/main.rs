//! Everything that is tested from outside, in one binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop, also in its helpers")]

mod adapters;
mod answers;
mod architecture;
mod cache_salt;
mod commands;
mod compat;
mod deployment;
mod devices;
mod doors;
mod drafts;
mod export_safety;
mod faults;
mod flow;
mod forms;
mod growth;
mod holdings;
mod hostile;
mod http_api;
mod http_errors;
mod isolation;
mod load;
#[cfg(unix)]
mod logging;
#[cfg(unix)]
mod model_folders;
mod models;
mod openapi;
mod overload;
mod people;
mod pools;
mod prefixes;
mod program;
#[cfg(unix)]
mod readme;
mod rebinding;
mod responses;
mod sandbox;
mod saved;
mod scores;
mod serving;
mod several;
mod slot;
mod smoke;
#[path = "../bench/pool_soak/soak.rs"]
mod soak;
mod speculation;
#[cfg(unix)]
mod surroundings;
#[cfg(unix)]
mod telemetry;
mod terminal;
mod texts;
mod tls;
mod tools;
mod traces;
mod watching;
mod weights;
mod workers;
