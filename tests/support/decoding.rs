//! Jobs whose answers are compared with and without drafts.

use std::path::Path;

use eka::{
    engine::{Step, Timeline, TimelineOptions},
    job::{Dry, Job, JobId, LogprobOptions, Sampling},
    model::Model,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::models::{OPTIONS, runtime};

pub(crate) fn options(drafts: usize) -> TimelineOptions {
    TimelineOptions { chunk: 48, drafts, ..TimelineOptions::default() }
}

pub(crate) fn timeline(dir: &Path, drafts: usize) -> Timeline {
    Timeline::new(Model::open(runtime(), dir, OPTIONS).unwrap(), options(drafts)).unwrap()
}

/// Prompts that repeat themselves, of a few tokens that the answer is made of as well: much is guessed, some of it right.
pub(crate) fn jobs() -> impl Iterator<Item = Job> {
    let mut random = StdRng::seed_from_u64(3);
    let sampled = |seed| Sampling { temperature: 0.8, top_k: 40, seed, ..Sampling::greedy() };
    (0..24).map(move |id: u64| {
        let few: Vec<u32> = (0..random.random_range(2..5)).map(|_| random.random_range(3..1024)).collect();
        let prompt =
            (0..random.random_range(1..90)).map(|_| few[random.random_range(0..few.len())]).collect();
        let mut sampling = if id.is_multiple_of(2) { Sampling::greedy() } else { sampled(id) };
        sampling.logit_bias = few.iter().map(|token| (*token, 100.0)).collect();
        match id % 6 {
            2 => sampling.repetition_penalty = 1.2,
            3 => sampling.frequency_penalty = 0.3,
            4 => {
                sampling.dry =
                    Some(Dry { multiplier: 0.8, base: 1.75, allowed_length: 2, breakers: vec![few[0]] });
            }
            _ => {}
        }
        let end_tokens = if id.is_multiple_of(3) { vec![few[1]] } else { Vec::new() };
        match id % 5 {
            2 => sampling.banned = vec![vec![few[0], few[1]], vec![few[1]]],
            3 => sampling.allowed_tokens = (3..900).collect(),
            _ => {}
        }
        let asked = LogprobOptions { top: 2, prompt: id % 8 == 1, after_sampling: id % 12 == 5 };
        let logprobs = (id % 4 == 1).then_some(asked);
        let max_new_tokens = random.random_range(1..80);
        Job { sampling, end_tokens, logprobs, ..Job::new(JobId(id), prompt, max_new_tokens) }
    })
}

/// The same tokens with log-probabilities of the same bits.
pub(crate) fn assert_same(guessed: &[Step], plain: &[Step], job: &Job) {
    assert_eq!(guessed, plain, "{job:?}");
}
