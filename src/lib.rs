//! eka serves one fine-tuned language model, one answer at a time.
//!
//! A request comes down the left, its tokens go back up the right. Nothing points upward.
//!
//! ```text
//! client ──HTTP──► http ──Job──► executor ──► supervise ═══pipe═══► worker ──► engine ──► model ──► device
//! client ◄──SSE─── http ◄─Event─ executor ◄── supervise ◄══pipe════ worker ◄── token ids
//! ```
//!
//! The parent process (`eka serve`) does text, queueing and supervision. It never loads ONNX Runtime and never touches
//! the device. The child (`eka worker`) does ids in, ids out; it may die at any moment. Other children (`eka sandbox`) compile
//! schemas and render chat templates for the parent, under limits.
//!
//! The modules below are in layer order: each imports only from those above it, as `tests/architecture` lists.

pub mod units;

pub mod files;

pub mod trim_policy;

pub mod device_spec;

pub mod log_queue;

pub mod metrics;

pub mod job;

pub mod config;

pub mod auth;

pub mod manifest;

pub mod prompt_store;

pub mod text;

pub mod constraint;

pub mod wire;

pub mod child_process;

pub mod sandbox;

#[expect(unsafe_code, reason = "the one folder where it is allowed")]
pub mod device;

mod onnx;

pub mod export;

pub mod calibration;

pub mod model;

pub mod engine;

pub mod worker;

pub mod otel;

pub mod supervise;

pub mod executor;

pub mod cluster;

pub mod http;

pub mod client;

pub mod smoke;

pub mod loadgen;

pub mod cli;
