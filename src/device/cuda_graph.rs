//! When a run is captured as a CUDA graph, and when the graph may be replayed.
//!
//! A captured run is one submission in place of hundreds, and a small model spends most of a step on submissions. It contains the
//! addresses of all its memory in it, scratch included. So it is right for as long as
//!
//! - the bindings stay: a cache that grows, or is returned, ends it;
//! - its scratch stays scratch: a block that is handed out for keeping, or returned to the device, ends it. The pool counts
//!   such events ([epoch](super::Pool)); other runs may use the blocks in between, as all work is on one stream.
//!
//! eka records the graph. ONNX Runtime can as well (`enable_cuda_graph`), but keeps a graph until the session ends: its
//! `SessionReleaseCapturedGraph` does nothing for CUDA in 1.31.1, and the old graph runs instead of the new bindings. With eka's
//! stream, allocator and inputs on the device, and no thread
//! waiting in between, a run of ONNX Runtime's is nothing but work on that stream, and can be recorded there.
//!
//! A run is rehearsed before it is recorded: done once as it will be recorded, so that all the scratch that it takes is in
//! the pool, from which nothing can be had while work is recorded. And an answer of a token or two does not pay for it.

/// Runs over the same memory before one is captured, the last of them its rehearsal.
pub(super) const RUNS_BEFORE: u32 = 2;

/// How to do the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunMode {
    /// Operator by operator.
    Eager,
    /// Operator by operator, and else as it will be captured.
    Rehearsal,
    /// By the graph that it is captured as, or was captured as before.
    Captured,
}

/// State of the captures of one binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaptureState {
    /// Not to be captured, or no more.
    Refused,
    /// Number of runs over the same memory.
    Counting(u32),
    /// Captured, when the pool was at this epoch.
    Captured(u64),
}

impl CaptureState {
    pub(super) const fn new(may_capture: bool) -> Self {
        if may_capture { Self::Counting(0) } else { Self::Refused }
    }

    /// How to do the next run, with the pool at `epoch`.
    pub(super) fn next(&mut self, epoch: u64) -> RunMode {
        match *self {
            Self::Refused => return RunMode::Eager,
            Self::Captured(then) if then == epoch => return RunMode::Captured,
            // Its scratch has been reused.
            Self::Captured(_) => *self = Self::Counting(0),
            Self::Counting(_) => {}
        }
        match *self {
            Self::Counting(runs) if runs < RUNS_BEFORE => {
                *self = Self::Counting(runs + 1);
                if runs + 1 == RUNS_BEFORE { RunMode::Rehearsal } else { RunMode::Eager }
            }
            _ => RunMode::Captured,
        }
    }

    /// A run has been captured or replayed; the pool was at `epoch` before.
    pub(super) fn ran(&mut self, epoch: u64) {
        *self = Self::Captured(epoch);
    }

    /// The bindings have changed.
    pub(super) fn end(&mut self) {
        if *self != Self::Refused {
            *self = Self::Counting(0);
        }
    }

    /// It does not work here.
    pub(super) fn refuse(&mut self) {
        *self = Self::Refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways of the next runs until one is captured.
    fn until_captured(capture: &mut CaptureState, epoch: u64) -> Vec<RunMode> {
        let mut ways = Vec::new();
        while ways.last() != Some(&RunMode::Captured) {
            ways.push(capture.next(epoch));
        }
        capture.ran(epoch);
        ways
    }

    #[test]
    fn a_run_is_rehearsed_captured_and_then_run_again() {
        let mut capture = CaptureState::new(true);
        assert_eq!(until_captured(&mut capture, 7), [RunMode::Eager, RunMode::Rehearsal, RunMode::Captured]);
        assert_eq!([capture.next(7), capture.next(7)], [RunMode::Captured; 2]);
    }

    #[test]
    fn scratch_that_has_gone_ends_it_and_so_does_other_memory() {
        let mut capture = CaptureState::new(true);
        until_captured(&mut capture, 7);
        assert_eq!(until_captured(&mut capture, 8), [RunMode::Eager, RunMode::Rehearsal, RunMode::Captured]);
        capture.end();
        assert_eq!(capture.next(8), RunMode::Eager);
    }

    #[test]
    fn what_is_refused_stays_so() {
        let mut capture = CaptureState::new(true);
        until_captured(&mut capture, 1);
        capture.refuse();
        capture.end();
        assert_eq!(capture.next(1), RunMode::Eager);
        assert_eq!(CaptureState::new(false), CaptureState::Refused);
    }
}
