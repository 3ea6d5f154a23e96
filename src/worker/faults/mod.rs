//! Fault injection: tests use it to check that the server survives failing devices and drivers.
//!
//! Debug builds have it, release builds only with the feature `fault-injection`; other builds reject every plan. A hidden flag of
//! `eka serve` and `eka generate` sets a [`FaultPlan`]; no request, setting or environment variable can. The parent passes the
//! plan to each worker, and the worker injects the faults where real ones would occur: before a pass through the model. So the
//! parent only sees a broken worker.
//!
//! ```text
//! crash@decode:3,every=5        every fifth job kills its worker before its third decode step, at its first attempt
//! hang@load,once=/tmp/marker    the first worker hangs while loading, and creates the file so that later ones do not
//! random:7/3                    every third job: kind and point from a hash of 7 and the job's number
//! ```
//!
//! A worker does not know how many workers ran before it. So a fault of a job depends on the number of workers that the job has
//! lost, and a fault outside of a job strikes each worker unless `once` names a file.

#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
mod disabled;
#[cfg(any(debug_assertions, feature = "fault-injection"))]
mod inject;
#[cfg(any(debug_assertions, feature = "fault-injection"))]
mod kind;
#[cfg(any(debug_assertions, feature = "fault-injection"))]
mod plan;

#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
pub(super) use disabled::{FaultInjector, FaultPoint};
#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
pub use disabled::{FaultPlan, FaultsDisabled};

#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub(super) use inject::FaultInjector;
#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub use kind::{FaultKind, FaultKindError, FaultPoint, FaultPointError};
#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub use plan::{Fault, FaultPlan, FaultPlanError};
