//! Starts the worker processes that own the devices, runs jobs on them, and replaces workers that end or hang.
//!
//! ```text
//! executor ──run(job)──► WorkerPool ──► Supervisor task ──stdin──► eka worker
//!                                         ▲ ▲──── frames ◄─── reader task ◄─stdout─┤
//!                                         │         own stderr ◄─ LineLimiter ◄─stderr─┘
//!                                         └ policy: a pure function that decides what follows a loss
//! ```
//!
//! Each device has one worker, and each worker has one `Supervisor`: a task that owns the worker and runs at most one job on
//! it. A job that arrives while no worker is ready waits in the supervisor and not in the worker's pipe, so it survives the
//! worker. [`WorkerPool`] is the handle to all of them. When a device loses its worker, the pool can move its job to another
//! device.
//!
//! A lost worker does not lose its job. The supervisor has every generated token, and the sampler's state follows from their
//! number, so the next worker reads prompt and answer and continues. A job that has lost two workers fails with
//! [`Failure::WorkerLost`](crate::job::Failure::WorkerLost), so that it cannot block the queue.
//!
//! A worker holds as many models as its memory budget allows. The supervisor loads the model that a job needs and unloads the
//! least recently used ones to make room. The settings can also have a healthy worker replaced from time to time. Where memory
//! allows two workers, the replacement starts beside the old one, so no job waits for it.
//!
//! A worker sends a frame for each prompt chunk and each token, and the `watchdog` knows how long each may take on this
//! machine. An idle worker is pinged. A worker that stays silent too long counts as hung: it is killed and replaced.

mod handle;
mod job_run;
mod learned_speed;
mod loaded_models;
mod policy;
mod process;
mod restored_prompts;
mod rpc;
mod startup;
mod stderr;
mod supervisor;
mod watchdog;
mod worker_config;
mod worker_loss;
mod worker_metrics;
mod worker_pool;

pub use startup::probe_device;
pub use watchdog::Budgets;
pub use worker_config::{ModelSource, Recycle, WorkerConfig};
pub use worker_pool::WorkerPool;
