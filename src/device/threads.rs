//! The number of a session's threads that compute.
//!
//! More threads are not always faster: a decode step is bound by memory, and a few threads already read weights at full
//! bandwidth. Further threads only add synchronisation. The best number depends on the machine and its load, so it is
//! measured when a model is loaded, separately for passes of one token and of many.
//!
//! Only [eka's operators](super::operators) have this setting: ONNX Runtime's use all threads of the session. How work is
//! split into tasks stays the same where that could be seen in the last bit of a result (shares of attention), so an answer
//! does not depend on the measurement, and continues with the same result on another worker.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Threads that compute a node, the calling one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// In passes of one token.
    pub decode: usize,
    /// In passes of more.
    pub prefill: usize,
}

impl Threads {
    /// The same number in every pass.
    #[must_use]
    pub const fn all(threads: usize) -> Self {
        Self { decode: threads, prefill: threads }
    }
}

/// The threads of a session's operators.
#[derive(Clone, Debug)]
pub(super) struct ThreadLimits {
    all: usize,
    decode: Arc<AtomicUsize>,
    prefill: Arc<AtomicUsize>,
}

impl ThreadLimits {
    /// All of `all`.
    pub(super) fn new(all: usize) -> Self {
        let all = all.max(1);
        Self { all, decode: Arc::new(all.into()), prefill: Arc::new(all.into()) }
    }

    /// Number of threads.
    pub(super) fn all(&self) -> usize {
        self.all
    }

    /// Sets the number of threads that compute, from one to all.
    pub(super) fn set(&self, threads: Threads) {
        self.decode.store(threads.decode.clamp(1, self.all), Relaxed);
        self.prefill.store(threads.prefill.clamp(1, self.all), Relaxed);
    }

    /// Number of threads that compute.
    pub(super) fn threads(&self) -> Threads {
        Threads { decode: self.decode.load(Relaxed), prefill: self.prefill.load(Relaxed) }
    }

    /// Number of threads for a node whose input has `rows` rows.
    pub(super) fn of(&self, rows: usize) -> usize {
        let threads = self.threads();
        if rows == 1 { threads.decode } else { threads.prefill }
    }

    /// Number of batches into which ONNX Runtime divides the tasks of such a node, each for one thread; 0 to distribute single
    /// tasks to all threads.
    pub(super) fn batches(&self, rows: usize) -> usize {
        let threads = self.of(rows);
        if threads < self.all { threads } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_limits_stay_between_one_and_all_threads() {
        let limits = ThreadLimits::new(8);
        let operator = limits.clone();
        assert_eq!((operator.threads(), operator.of(1), operator.batches(1)), (Threads::all(8), 8, 0));
        limits.set(Threads { decode: 3, prefill: 99 });
        assert_eq!((operator.of(1), operator.batches(1)), (3, 3));
        assert_eq!((operator.of(2), operator.batches(2)), (8, 0));
        limits.set(Threads::all(0));
        assert_eq!(operator.threads(), Threads::all(1));
        assert_eq!(ThreadLimits::new(0).all(), 1);
    }
}
