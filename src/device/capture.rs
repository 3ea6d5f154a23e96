//! When a run is captured as a CUDA graph, and when what was captured may be run again.
//!
//! A captured run is one submission in place of hundreds, which is what a small model's step spends its time on. It has the
//! addresses of all its memory in it, scratch included. So it is right for as long as
//!
//! - what is bound stays bound: a cache that grows, or is given back, ends it;
//! - its scratch stays scratch: a block that goes to somebody who keeps it, or back to the device, ends it. The pool counts
//!   such events ([epoch](super::Pool)); other runs may use the blocks in between, as all work is on one stream.
//!
//! To capture takes as long as several runs (ONNX Runtime runs twice before, and once after), so it is done when a few
//! runs in a row have had the same memory: an answer of a token or two does not pay for it.

/// Runs over the same memory after which the next one is captured.
const RUNS_BEFORE: u32 = 3;

/// How to do the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Operator by operator.
    Eager,
    /// As the graph that it is captured as, or was before.
    Captured,
}

/// What is known of the runs of one binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capture {
    /// Not to be captured, or no more.
    Refused,
    /// So many runs over the same memory.
    Counting(u32),
    /// Captured, when the pool was at this epoch.
    Captured(u64),
}

impl Capture {
    pub(super) const fn new(may_capture: bool) -> Self {
        if may_capture { Self::Counting(0) } else { Self::Refused }
    }

    /// How to do the next run, with the pool at `epoch`.
    pub(super) fn next(&mut self, epoch: u64) -> Way {
        match *self {
            Self::Refused => Way::Eager,
            Self::Captured(then) if then == epoch => Way::Captured,
            // Its scratch is somebody else's.
            Self::Captured(_) => {
                *self = Self::Counting(1);
                Way::Eager
            }
            Self::Counting(runs) if runs < RUNS_BEFORE => {
                *self = Self::Counting(runs + 1);
                Way::Eager
            }
            Self::Counting(_) => Way::Captured,
        }
    }

    /// A run has been captured, or what was captured has run again; the pool is at `epoch` now.
    pub(super) fn ran(&mut self, epoch: u64) {
        *self = Self::Captured(epoch);
    }

    /// What is bound is no longer what it was.
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

    /// A capture after as many runs as it takes.
    fn captured(epoch: u64) -> Capture {
        let mut capture = Capture::new(true);
        for _ in 0..RUNS_BEFORE {
            assert_eq!(capture.next(epoch), Way::Eager);
        }
        assert_eq!(capture.next(epoch), Way::Captured);
        capture.ran(epoch);
        capture
    }

    #[test]
    fn a_run_is_captured_after_a_few_over_the_same_memory_and_then_run_again() {
        let mut capture = captured(7);
        assert_eq!([capture.next(7), capture.next(7)], [Way::Captured; 2]);
    }

    #[test]
    fn scratch_that_has_gone_ends_it_and_so_does_other_memory() {
        let mut capture = captured(7);
        assert_eq!(capture.next(8), Way::Eager);
        for _ in 1..RUNS_BEFORE {
            assert_eq!(capture.next(8), Way::Eager);
        }
        assert_eq!(capture.next(8), Way::Captured);
        capture.ran(8);
        capture.end();
        assert_eq!(capture.next(8), Way::Eager);
    }

    #[test]
    fn what_is_refused_stays_so() {
        let mut capture = captured(1);
        capture.refuse();
        capture.end();
        assert_eq!(capture.next(1), Way::Eager);
        assert_eq!(Capture::new(false), Capture::Refused);
    }
}
