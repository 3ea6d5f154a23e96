//! The worker process: it reads frames, runs the engine and writes frames.
//!
//! ```text
//! stdin ──► reader thread ──frames──► compute thread: start, then one frame at a time ──► stdout
//!                └── cancel, shutdown: noted at once, checked between two steps
//! ```
//!
//! A job can be one of a group: the choices of one prompt, or several prompts of a request. They run together where the model
//! can compute several sequences in a pass.
//!
//! The compute thread does not wait for input while it runs a job, and the reader thread does not compute. So a cancellation takes
//! effect after the current step, however many frames are queued. When stdin ends, the parent has ended and no one reads the
//! answers: the process exits at once, even in the middle of a step.
//!
//! The worker loads and unloads models as the parent asks. The parent decides, because it knows how much memory each model took
//! before, also in an earlier worker.

mod adapters;
mod error;
pub mod faults;
mod jobs;
mod loaded_model;
mod memory;
mod run;
mod saved_prompts;
mod server;
mod stop_signals;

pub use error::WorkerError;
pub use memory::{device_memory, device_peak};
pub use run::run;
