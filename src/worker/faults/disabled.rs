//! Stands in for fault injection in builds without it. Does nothing, and rejects every plan.

use std::{fmt, io::Write, str::FromStr};

use crate::{engine::EngineError, job::Job};

/// The empty plan, the only one in this build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan;

impl FaultPlan {
    /// Whether it has no faults.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        true
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// A plan was given to a build that cannot inject faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this build cannot inject faults; build eka with --features fault-injection")]
pub struct FaultsDisabled;

impl FromStr for FaultPlan {
    type Err = FaultsDisabled;

    fn from_str(_: &str) -> Result<Self, FaultsDisabled> {
        Err(FaultsDisabled)
    }
}

/// Where faults could be injected outside of a job.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) enum FaultPoint {
    Load,
    WarmUp,
}

/// Injects nothing.
#[derive(Debug)]
pub(in crate::worker) struct FaultInjector;

impl FaultInjector {
    /// An injector, and the writer to use for all frames to `pipe`.
    pub(in crate::worker) fn new<W: Write>(_: FaultPlan, pipe: W) -> (Self, W) {
        (Self, pipe)
    }

    /// Does nothing.
    ///
    /// # Errors
    /// None.
    pub(in crate::worker) const fn at(&mut self, _: FaultPoint) -> Result<(), EngineError> {
        Ok(())
    }

    /// Calls `run` with `model`.
    pub(in crate::worker) fn run<M, T>(
        &mut self,
        model: &mut M,
        _: &[Job],
        run: impl FnOnce(&mut M) -> T,
    ) -> T {
        run(model)
    }
}
