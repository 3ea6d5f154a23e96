//! All integration tests, in one binary; a folder for each part of eka.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop, also in its helpers")]

mod api;
mod architecture;
mod cli;
#[cfg(unix)]
mod cluster;
#[cfg(unix)]
mod documentation;
mod engine;
mod export;
mod layout;
#[cfg(unix)]
mod model_folders;
mod operations;
mod security;
#[path = "../bench/cluster_simulation/simulation/mod.rs"]
mod simulation;
#[path = "../bench/pool_soak/soak.rs"]
mod soak;
mod support;
mod workers;
