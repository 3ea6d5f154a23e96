//! From logits to a token.
//!
//! Each step has its own position in the random stream (`seed`, step number), independent of earlier draws. So a generation that is
//! resumed after `n` tokens continues exactly as it would have.
//!
//! The cost is linear in the vocabulary: only candidates are sorted. `top_p` sorts the 64 most probable tokens first, and more only
//! if their sum is too small, because a full sort of 128 Ki logits can take longer than a decode step.

use std::{cmp::Ordering, collections::HashMap};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{dry::Repetition, restriction::Restriction};
use crate::job::Sampling;

/// Picks the tokens of a job.
#[derive(Debug)]
pub struct Sampler<'a> {
    sampling: &'a Sampling,
    /// Occurrences of an id in the output; 0 for ids that only the prompt contains.
    seen: HashMap<u32, u32>,
    /// The tokens so far, if DRY is on.
    repetition: Option<Repetition<'a>>,
    /// Tokens that the answer may have, if not all.
    restriction: Option<Restriction<'a>>,
    random: ChaCha8Rng,
    step: u64,
    /// What the last token was picked from.
    candidates: Vec<Candidate>,
}

/// A token with its logit, later with its weight.
type Candidate = (u32, f32);

impl<'a> Sampler<'a> {
    /// A sampler for an answer to `prompt`.
    #[must_use]
    pub fn new(sampling: &'a Sampling, prompt: &[u32]) -> Self {
        let penalized = sampling.repetition_penalty != 1.0;
        let seen = prompt.iter().filter(|_| penalized).map(|id| (*id, 0)).collect();
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        let repetition = sampling.dry.as_ref().map(|dry| Repetition::new(dry, prompt, &[]));
        let restriction = Restriction::new(sampling);
        Self { sampling, seen, repetition, restriction, random, step: 0, candidates: Vec::new() }
    }

    /// A sampler that continues after `answer`, as if it had picked those tokens.
    #[must_use]
    pub fn resume(sampling: &'a Sampling, prompt: &[u32], answer: &[u32]) -> Self {
        let mut sampler = Self::new(sampling, prompt);
        sampler.step = answer.len() as u64;
        if let Some(repetition) = &mut sampler.repetition {
            answer.iter().for_each(|token| repetition.take(*token));
        }
        if let Some(restriction) = &mut sampler.restriction {
            answer.iter().for_each(|token| restriction.take(*token));
        }
        if sampler.keeps_count() {
            for id in answer {
                *sampler.seen.entry(*id).or_insert(0) += 1;
            }
        }
        sampler
    }

    /// Picks from `logits`, `[vocab]`, and changes them; `None` if all are NaN.
    pub fn pick(&mut self, logits: &mut [f32]) -> Option<u32> {
        if let Some(restriction) = &mut self.restriction {
            restriction.apply(logits);
        }
        self.adjust(logits);
        let greedy = greatest(logits)?;
        let picked = if self.sampling.temperature > 0.0 {
            self.draw(logits, greedy)
        } else {
            self.candidates.clear();
            self.candidates.push((greedy.0, 1.0));
            greedy.0
        };
        self.take(picked);
        Some(picked)
    }

    /// The tokens that the last one was picked from, with weights that are proportional to their probabilities.
    #[must_use]
    pub fn candidates(&self) -> &[(u32, f32)] {
        &self.candidates
    }

    /// Notes a token that the constraint forced.
    pub fn take(&mut self, token: u32) {
        self.step += 1;
        if let Some(restriction) = &mut self.restriction {
            restriction.take(token);
        }
        if self.keeps_count() {
            *self.seen.entry(token).or_insert(0) += 1;
        }
        if let Some(repetition) = &mut self.repetition {
            repetition.take(token);
        }
    }

    fn keeps_count(&self) -> bool {
        let s = self.sampling;
        s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0
    }

    #[expect(clippy::cast_precision_loss, reason = "an id that comes up 2^24 times is penalized enough")]
    fn adjust(&mut self, logits: &mut [f32]) {
        let s = self.sampling;
        for (id, bias) in &s.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for (id, count) in &self.seen {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
            if *count > 0 {
                *logit -= s.presence_penalty + s.frequency_penalty * *count as f32;
            }
        }
        if let Some(repetition) = &mut self.repetition {
            repetition.adjust(logits);
        }
    }

    fn draw(&mut self, logits: &[f32], greatest: Candidate) -> u32 {
        let chance = self.chance();
        let s = self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates
            .extend((0u32..).zip(logits.iter().copied()).filter(|(_, logit)| *logit > f32::NEG_INFINITY));
        keep_top_k(candidates, s.top_k);
        weigh(candidates, greatest.1, s.temperature);
        keep_typical(candidates, s.typical_p);
        keep_top_p(candidates, s.top_p);
        // The most probable token has weight 1, whichever tokens were removed.
        if s.min_p > 0.0 {
            candidates.retain(|(_, weight)| *weight >= s.min_p);
        }
        // In the order of ids, so that the draw does not depend on how equally probable tokens were selected.
        candidates.sort_unstable_by_key(|(id, _)| *id);
        select(candidates, chance).unwrap_or(greatest.0)
    }

    /// The random number of this step, in [0, 1).
    fn chance(&mut self) -> f64 {
        // A block of the stream holds 16 words of 32 bits; two make a number.
        self.random.set_word_pos(u128::from(self.step) * 2);
        let bits = self.random.next_u64() >> 11;
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let numerator = bits as f64;
        numerator / (1u64 << 53) as f64
    }
}

/// The greatest logit, without NaN, and the lowest id among equals.
///
/// Takes two passes, because the compiler vectorizes the first one. A single pass that remembers the index takes two to five times
/// as long, which is 0.2 ms per step with a vocabulary of 150,000.
fn greatest(logits: &[f32]) -> Option<Candidate> {
    // Comparisons with NaN are false.
    let greater = |max: f32, logit: f32| if logit > max { logit } else { max };
    let mut lanes = [f32::NEG_INFINITY; 32];
    let (blocks, rest) = logits.as_chunks::<32>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, logit)| *lane = greater(*lane, *logit));
    }
    let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, logit| greater(max, *logit));
    let id = logits.iter().position(|logit| *logit == max).filter(|_| max > f32::NEG_INFINITY)?;
    Some((u32::try_from(id).ok()?, max))
}

/// Greater weights first, lower ids first among equals.
fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_weight);
        candidates.truncate(k);
    }
}

/// Turns logits into weights relative to the greatest one, which becomes 1, so nothing overflows.
fn weigh(candidates: &mut [Candidate], greatest: f32, temperature: f32) {
    for (_, logit) in candidates {
        // Infinity minus infinity is NaN, so the greatest is handled separately.
        let below = if *logit == greatest { 0.0 } else { *logit - greatest };
        *logit = (below / temperature).exp();
    }
}

/// Keeps tokens whose information is nearest to the average (locally typical sampling).
fn keep_typical(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let total = total(candidates);
    let information = |weight: f32| total.ln() - f64::from(weight).ln();
    let likely = candidates.iter().filter(|(_, weight)| *weight > 0.0);
    let average: f64 = likely.map(|(_, weight)| f64::from(*weight) / total * information(*weight)).sum();
    let far = |candidate: &Candidate| ((information(candidate.1) - average).abs(), *candidate);
    let mut by_distance: Vec<(f64, Candidate)> = candidates.iter().map(far).collect();
    let nearer = |a: &(f64, Candidate), b: &(f64, Candidate)| a.0.total_cmp(&b.0).then(by_weight(&a.1, &b.1));
    keep_first(&mut by_distance, f64::from(p) * total, nearer, |(_, candidate)| candidate.1);
    candidates.clear();
    candidates.extend(by_distance.into_iter().map(|(_, candidate)| candidate));
}

fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p < 1.0 {
        let wanted = f64::from(p) * total(candidates);
        keep_first(candidates, wanted, by_weight, |(_, weight)| *weight);
    }
}

/// Keeps the first candidates in this order whose weights sum to `wanted`. Sorts a few first, and more only if necessary.
fn keep_first<T>(
    candidates: &mut Vec<T>,
    wanted: f64,
    order: impl Fn(&T, &T) -> Ordering,
    weight: impl Fn(&T) -> f32,
) {
    let mut sorted = 0;
    let mut sum = 0.0;
    while sorted < candidates.len() {
        let end = (sorted * 4).max(64).min(candidates.len());
        let rest = &mut candidates[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted - 1, &order);
        }
        candidates[sorted..end].sort_unstable_by(&order);
        for i in sorted..end {
            sum += f64::from(weight(&candidates[i]));
            if sum >= wanted {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted = end;
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|(_, weight)| f64::from(*weight)).sum()
}

/// The candidate at the fraction `chance` of the total weight.
fn select(candidates: &[Candidate], chance: f64) -> Option<u32> {
    let mut left = chance * total(candidates);
    for (id, weight) in candidates {
        left -= f64::from(*weight);
        if left < 0.0 {
            return Some(*id);
        }
    }
    // Rounding errors can leave a rest after the last one.
    candidates.iter().rev().find(|(_, weight)| *weight > 0.0).map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::Dry;

    fn sampling() -> Sampling {
        Sampling { temperature: 1.0, seed: 7, ..Sampling::greedy() }
    }

    fn picks(sampling: &Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, &[]);
        (0..n).map(|_| sampler.pick(&mut logits.to_vec()).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_greatest_and_the_lowest_id_among_equals() {
        assert_eq!(picks(&Sampling::greedy(), &[1.0, 3.0, f32::NAN, 3.0], 2), [1, 1]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_seed_does_not() {
        let logits: Vec<f32> = (0u8..50).map(|i| f32::from(i % 7)).collect();
        let other = Sampling { seed: 8, ..sampling() };
        assert_eq!(picks(&sampling(), &logits, 64), picks(&sampling(), &logits, 64));
        assert_ne!(picks(&sampling(), &logits, 64), picks(&other, &logits, 64));
    }

    #[test]
    fn a_draw_does_not_depend_on_earlier_draws() {
        let sampling = sampling();
        let flat = vec![0.0; 1000];
        let undisturbed = picks(&sampling, &flat, 10);
        let mut resumed = Sampler::resume(&sampling, &[], &undisturbed[..6]);
        let rest: Vec<u32> = (6..10).map(|_| resumed.pick(&mut flat.clone()).unwrap()).collect();
        assert_eq!(rest, undisturbed[6..]);
    }

    #[test]
    fn penalties_continue_after_a_resume() {
        let dry = Some(Dry { multiplier: 0.8, base: 1.75, allowed_length: 1, breakers: vec![4] });
        let sampling = Sampling {
            banned: vec![vec![1, 2], vec![0, 3, 0]],
            repetition_penalty: 1.3,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            typical_p: 0.9,
            dry,
            ..sampling()
        };
        let logits = [1.0, 0.9, 0.8, 0.7, 0.6];
        let mut whole = Sampler::new(&sampling, &[2]);
        let undisturbed: Vec<u32> = (0..20).map(|_| whole.pick(&mut logits.to_vec()).unwrap()).collect();
        for cut in 0..20 {
            let mut resumed = Sampler::resume(&sampling, &[2], &undisturbed[..cut]);
            let rest: Vec<u32> = (cut..20).map(|_| resumed.pick(&mut logits.to_vec()).unwrap()).collect();
            assert_eq!(rest, undisturbed[cut..], "from {cut}");
        }
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let mut counts = [0f64; 3];
        for id in picks(&sampling(), &logits, 20_000) {
            counts[id as usize] += 1.0;
        }
        for (count, p) in counts.iter().zip([0.5, 0.3, 0.2]) {
            // Four standard deviations of a share of 20,000 draws.
            assert!((count / 20_000.0 - p).abs() < 4.0 * (p * (1.0 - p) / 20_000.0f64).sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn filters_keep_exactly_what_their_definitions_say() {
        let logits = [0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
        let kept = |sampling: &Sampling| {
            let mut ids = picks(sampling, &logits, 500);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(kept(&Sampling { top_k: 2, ..sampling() }), [0, 1]);
        assert_eq!(kept(&Sampling { top_p: 0.69, ..sampling() }), [0, 1]);
        assert_eq!(kept(&Sampling { top_p: 0.71, ..sampling() }), [0, 1, 2]);
        assert_eq!(kept(&Sampling { min_p: 0.6, ..sampling() }), [0, 1]);
        assert_eq!(kept(&Sampling { top_p: 0.0, ..sampling() }), [0]);
        // 1.28 nats on average; the four have 0.92, 1.20, 1.61 and 2.30.
        assert_eq!(kept(&Sampling { typical_p: 0.25, ..sampling() }), [1]);
        assert_eq!(kept(&Sampling { typical_p: 0.45, ..sampling() }), [1, 2]);
        assert_eq!(kept(&Sampling { typical_p: 0.85, ..sampling() }), [0, 1, 2]);
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let logits = [2.0, 1.9, -1.0];
        let presence = Sampling { presence_penalty: 0.2, ..Sampling::greedy() };
        assert_eq!(
            picks(&presence, &logits, 3),
            [0, 1, 0],
            "both are penalized once, then the first leads again"
        );
        let frequency = Sampling { frequency_penalty: 0.15, ..Sampling::greedy() };
        assert_eq!(picks(&frequency, &logits, 4), [0, 1, 0, 1]);
        let bias = Sampling { logit_bias: vec![(2, 100.0), (99, 1.0)], ..Sampling::greedy() };
        assert_eq!(picks(&bias, &logits, 1), [2]);
        let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut sampler = Sampler::new(&repetition, &[0]);
        assert_eq!(
            sampler.pick(&mut logits.to_vec()),
            Some(1),
            "the prompt counts for the repetition penalty"
        );
    }

    #[test]
    fn candidates_are_what_the_token_was_picked_from() {
        let logits = [0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
        let sampling = Sampling { top_k: 2, ..sampling() };
        let mut sampler = Sampler::new(&sampling, &[]);
        let picked = sampler.pick(&mut logits.to_vec()).unwrap();
        assert!(sampler.candidates().iter().any(|(id, _)| *id == picked));
        let total: f32 = sampler.candidates().iter().map(|(_, weight)| weight).sum();
        let shares: Vec<f32> = sampler.candidates().iter().map(|(_, weight)| weight / total).collect();
        assert!((shares[0] - 4.0 / 7.0).abs() < 1e-6 && (shares[1] - 3.0 / 7.0).abs() < 1e-6, "{shares:?}");
        let greedy = Sampling::greedy();
        let mut sampler = Sampler::new(&greedy, &[]);
        sampler.pick(&mut logits.to_vec()).unwrap();
        assert_eq!(sampler.candidates(), [(0, 1.0)]);
    }

    #[test]
    fn extreme_logits_leave_something_to_pick() {
        for logits in [[f32::INFINITY, 1.0], [f32::MAX, f32::MIN], [-1e30, -1e30], [f32::NAN, -5.0]] {
            let picked = picks(&Sampling { top_p: 0.9, temperature: 1e-3, ..sampling() }, &logits, 1)[0];
            assert!(logits[picked as usize] >= logits[1].max(logits[0]) || logits[0].is_nan(), "{logits:?}");
        }
        for nothing in [&mut [f32::NAN, f32::NEG_INFINITY][..], &mut []] {
            assert_eq!(Sampler::new(&sampling(), &[]).pick(nothing), None);
        }
    }

    proptest! {
        #[test]
        fn the_picked_token_is_valid_and_top_p_agrees_with_a_full_sort(
            logits in proptest::collection::vec(-20f32..20.0, 1..400),
            top_p in 0f32..1.0,
            seed in any::<u64>(),
        ) {
            let sampling = Sampling { top_p, seed, ..sampling() };
            let picked = picks(&sampling, &logits, 1)[0] as usize;
            let weights: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
            let ahead: f64 = weights.iter().filter(|w| **w > weights[picked]).sum();
            // The more probable tokens do not reach top_p without it (within single-precision rounding).
            prop_assert!(ahead <= f64::from(top_p) * weights.iter().sum::<f64>() * (1.0 + 1e-4) + 1e-9);
        }
    }
}
