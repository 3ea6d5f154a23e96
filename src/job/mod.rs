//! The types that jobs, workers and devices exchange: requests, events, reports, commands.
//!
//! The queue, the supervisor and the worker process all use them, so they depend on nothing but units. Text is always token
//! ids here: only the parent process tokenizes.

mod adapters;
mod cache_salt;
mod commands;
mod event;
mod failure;
mod group;
mod ids;
mod memory;
mod report;
mod request;
mod sampling;

pub use crate::device_spec::Pooling;
pub use adapters::{AdapterKey, CacheScope, JobAdapter, PromptScope};
pub use cache_salt::CacheSalt;
pub use commands::{Command, CommandOutcome, CommandReport, PromptToRestore};
pub use event::{DraftCounts, EndReason, Event, Finish, Step, Timings, Usage};
pub use failure::Failure;
pub use group::GroupedJob;
pub use ids::{JobId, ModelId};
pub use memory::{DeviceMemory, DevicePeak, Memory, MemoryReport};
pub use report::{GpuReport, ModelReport, Placement, Readiness, RuntimeReport, SlotReport};
pub use request::{Constraint, Job, KeepAlive, Priority, SaveAs, TraceLink};
pub use sampling::{Dry, LogprobOptions, Sampling, SamplingDefaults, TokenLogprobs};
