//! Decides when a run is captured as a CUDA graph, and when the graph may be replayed.
//!
//! A captured run is one submission instead of hundreds, and a small model spends most of a step on submissions. It contains the
//! addresses of all its memory, including scratch memory. So it is valid as long as
//!
//! - the bindings do not change: a cache that grows or is freed invalidates it;
//! - its scratch memory stays scratch memory: a block that gets another purpose or is returned to the device invalidates it. The
//!   pool counts such events ([epoch](super::Pool)). Other runs may use the blocks in between, because all work is on one stream.
//!
//! eka records the graph. ONNX Runtime can as well (`enable_cuda_graph`), but keeps a graph until the session ends: its
//! `SessionReleaseCapturedGraph` does nothing for CUDA in 1.31.1, and the old graph runs instead of the new bindings. With
//! eka's stream, allocator and inputs on the device, and no wait in between, a run of ONNX Runtime consists only of work on
//! that stream, and can be recorded there.
//!
//! Before it is recorded, a run is done once in the same way as a rehearsal, so that all its scratch memory is in the pool: a
//! recording cannot allocate. For an answer of one or two tokens a capture does not pay off.

/// Runs over the same memory before the capture; the last one is the rehearsal.
pub(super) const RUNS_BEFORE: u32 = 2;

/// The mode of the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunMode {
    /// Operator by operator.
    Eager,
    /// Operator by operator, but otherwise like the capture.
    Rehearsal,
    /// As a captured graph, which is captured first if necessary.
    Captured,
}

/// State of the captures of one binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaptureState {
    /// Not captured, or not any more.
    Refused,
    /// Number of runs over the same memory.
    Counting(u32),
    /// Captured at this epoch of the pool.
    Captured(u64),
}

impl CaptureState {
    pub(super) const fn new(may_capture: bool) -> Self {
        if may_capture { Self::Counting(0) } else { Self::Refused }
    }

    /// The mode of the next run, with the pool at `epoch`.
    pub(super) fn next(&mut self, epoch: u64) -> RunMode {
        match *self {
            Self::Refused => return RunMode::Eager,
            Self::Captured(then) if then == epoch => return RunMode::Captured,
            // Its scratch memory has been reused.
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

    /// Notes that a run was captured or replayed; the pool was at `epoch` before.
    pub(super) fn ran(&mut self, epoch: u64) {
        *self = Self::Captured(epoch);
    }

    /// Notes that the bindings have changed.
    pub(super) fn end(&mut self) {
        if *self != Self::Refused {
            *self = Self::Counting(0);
        }
    }

    /// Stops capturing, because a capture failed.
    pub(super) fn refuse(&mut self) {
        *self = Self::Refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The modes of the next runs until one is captured.
    fn until_captured(capture: &mut CaptureState, epoch: u64) -> Vec<RunMode> {
        let mut modes = Vec::new();
        while modes.last() != Some(&RunMode::Captured) {
            modes.push(capture.next(epoch));
        }
        capture.ran(epoch);
        modes
    }

    #[test]
    fn a_run_is_rehearsed_captured_and_then_run_again() {
        let mut capture = CaptureState::new(true);
        assert_eq!(until_captured(&mut capture, 7), [RunMode::Eager, RunMode::Rehearsal, RunMode::Captured]);
        assert_eq!([capture.next(7), capture.next(7)], [RunMode::Captured; 2]);
    }

    #[test]
    fn a_capture_ends_when_its_scratch_or_its_bindings_change() {
        let mut capture = CaptureState::new(true);
        until_captured(&mut capture, 7);
        assert_eq!(until_captured(&mut capture, 8), [RunMode::Eager, RunMode::Rehearsal, RunMode::Captured]);
        capture.end();
        assert_eq!(capture.next(8), RunMode::Eager);
    }

    #[test]
    fn a_refused_capture_stays_refused() {
        let mut capture = CaptureState::new(true);
        until_captured(&mut capture, 1);
        capture.refuse();
        capture.end();
        assert_eq!(capture.next(1), RunMode::Eager);
        assert_eq!(CaptureState::new(false), CaptureState::Refused);
    }
}
