//! Faults on purpose, to see that the server lives through what devices and drivers do by accident.
//!
//! Off unless a hidden flag of `eka serve` or `eka generate` names a [`Plan`]; no request, setting or environment
//! variable can. The parent hands the plan on to each worker it starts, and the worker does the damage to itself, at the
//! very place where a real fault would: before a pass through the model, so that the parent sees nothing but a worker
//! that is broken.
//!
//! ```text
//! crash@decode:3,every=5        every fifth job kills its worker before its third decode step, in its first attempt
//! hang@load,once=/tmp/marker    the first worker never loads, and leaves the file as a mark for those after it
//! random:7/3                    every third job: a kind and a point by a hash of 7 and its number
//! ```
//!
//! A worker does not know how many came before it. So a fault of a job looks at what the job itself says, how many
//! workers were lost with it, and one that has no job strikes always unless a file, `once`, remembers it.

mod inject;
mod kind;
mod plan;

pub(super) use inject::{Faults, Outlet};
pub use kind::{Kind, Point};
pub use plan::{Fault, Plan, PlanError};
