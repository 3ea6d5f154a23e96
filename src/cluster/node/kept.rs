//! What the prefix cache of a node probably has, and how fast the node reads prompts.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Sequences that are reported: the last ones, which a cache drops last.
const SEQUENCES: usize = 8;

/// Shorter prompts say little about the speed.
const MEASURED: usize = 32;

/// Weight of the latest prompt in the average speed.
const WEIGHT: f64 = 0.2;

/// What a node has read.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Hashes of each sequence, the latest last.
    sequences: VecDeque<Vec<u64>>,
    tokens_per_second: Option<f64>,
}

impl Kept {
    /// Notes a sequence that has ended. It replaces an earlier part of it.
    pub(super) fn add(&self, sequence: Vec<u64>) {
        if sequence.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.sequences.retain(|other| other.last().is_none_or(|last| !sequence.contains(last)));
        state.sequences.push_back(sequence);
        if state.sequences.len() > SEQUENCES {
            state.sequences.pop_front();
        }
    }

    /// Records the time in which this number of tokens was read.
    pub(super) fn measure(&self, tokens: usize, took: Duration) {
        if tokens < MEASURED || took.is_zero() {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a speed needs three digits")]
        let latest = tokens as f64 / took.as_secs_f64();
        let mut state = self.lock();
        let average = state.tokens_per_second.map_or(latest, |average| average + WEIGHT * (latest - average));
        state.tokens_per_second = Some(average);
    }

    /// The worker has ended, and its cache with it.
    pub(super) fn clear(&self) {
        self.lock().sequences.clear();
    }

    /// All sequences, and the speed in tokens per second.
    pub(super) fn report(&self) -> (Vec<Vec<u64>>, Option<f64>) {
        let state = self.lock();
        (state.sequences.iter().cloned().collect(), state.tokens_per_second)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_sequences_are_kept_and_a_turn_replaces_the_one_before() {
        let kept = Kept::default();
        kept.add(vec![1, 2]);
        kept.add(vec![1, 2, 3]);
        kept.add(vec![]);
        assert_eq!(kept.report().0, [[1, 2, 3]]);
        (10..20).for_each(|sequence| kept.add(vec![sequence]));
        let sequences = kept.report().0;
        assert_eq!((sequences.len(), &sequences[0]), (SEQUENCES, &vec![12]));
        kept.clear();
        assert!(kept.report().0.is_empty());
    }

    #[test]
    fn the_speed_follows_the_latest_prompts() {
        let kept = Kept::default();
        kept.measure(8, Duration::from_secs(1));
        assert_eq!(kept.report().1, None, "too short");
        kept.measure(1000, Duration::from_secs(1));
        kept.measure(2000, Duration::from_secs(1));
        let speed = kept.report().1.unwrap();
        assert!((speed - 1200.0).abs() < 1e-6, "{speed}");
    }
}
