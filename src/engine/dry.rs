//! DRY ("don't repeat yourself"): penalizes tokens that continue a repetition, more for longer ones.
//!
//! As in llama.cpp: if the last `n` tokens occur earlier, and `n` is at least `allowed_length`, the token that followed there loses
//! `multiplier · base^(n − allowed_length)`. A breaker ends a repetition, so that the special tokens around each turn of a
//! conversation do not count. The cost is one pass over the tokens so far.

use crate::job::Dry;

/// The tokens so far, and the lengths of repetitions in them.
#[derive(Debug)]
pub(super) struct Repetition<'a> {
    dry: &'a Dry,
    tokens: Vec<u32>,
    /// For each distance from the end, how many tokens before it equal the last ones.
    lengths: Vec<usize>,
}

impl<'a> Repetition<'a> {
    /// Starts with `prompt` and `answer`.
    pub(super) fn new(dry: &'a Dry, prompt: &[u32], answer: &[u32]) -> Self {
        Self { dry, tokens: [prompt, answer].concat(), lengths: Vec::new() }
    }

    pub(super) fn take(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Penalizes tokens that would continue a repetition.
    pub(super) fn adjust(&mut self, logits: &mut [f32]) {
        let Dry { multiplier, base, allowed_length, breakers } = self.dry;
        let max = self.tokens.iter().rev().take_while(|token| breakers.binary_search(token).is_err()).count();
        if max < *allowed_length {
            return;
        }
        self.measure();
        let mut longest: Vec<(u32, usize)> = Vec::new();
        for (distance, length) in self.lengths.iter().enumerate().skip(1) {
            let length = (*length).min(max);
            if length >= *allowed_length {
                // The token that followed there.
                longest.push((self.tokens[self.tokens.len() - distance], length));
            }
        }
        longest.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        longest.dedup_by_key(|(token, _)| *token);
        for (token, length) in longest {
            if let Some(logit) = logits.get_mut(token as usize) {
                let over = i32::try_from(length - allowed_length).unwrap_or(i32::MAX);
                // Infinity would make the token impossible, and two infinities give NaN.
                *logit -= (multiplier * base.powi(over)).min(f32::MAX / 4.0);
            }
        }
    }

    /// The Z-function of the reversed tokens: `lengths[d]` tokens before the last `d` equal the last ones.
    fn measure(&mut self) {
        let n = self.tokens.len();
        let at = |back: usize| self.tokens[n - 1 - back];
        self.lengths.clear();
        self.lengths.resize(n, 0);
        let (mut start, mut end) = (0, 0);
        for i in 1..n {
            let mut length = if i < end { self.lengths[i - start].min(end - i) } else { 0 };
            while i + length < n && at(length) == at(i + length) {
                length += 1;
            }
            if i + length > end {
                (start, end) = (i, i + length);
            }
            self.lengths[i] = length;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dry(allowed_length: usize, breakers: &[u32]) -> Dry {
        Dry { multiplier: 1.0, base: 2.0, allowed_length, breakers: breakers.to_vec() }
    }

    fn penalties(dry: &Dry, tokens: &[u32]) -> Vec<f32> {
        let mut logits = vec![0.0; 10];
        Repetition::new(dry, tokens, &[]).adjust(&mut logits);
        logits.iter().map(|logit| -logit).collect()
    }

    #[test]
    fn a_token_that_continues_a_repetition_is_penalized_by_its_length() {
        let after = penalties(&dry(2, &[]), &[1, 2, 3, 4, 5, 1, 2, 3]);
        assert_eq!(
            after,
            [0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            "three are repeated, two allowed"
        );
        assert_eq!(penalties(&dry(4, &[]), &[1, 2, 3, 4, 5, 1, 2, 3]), [0.0; 10]);
        assert_eq!(penalties(&dry(1, &[]), &[7, 7, 7])[7], 2.0, "a repetition may overlap itself");
    }

    #[test]
    fn a_breaker_ends_a_repetition() {
        assert_eq!(penalties(&dry(2, &[2]), &[1, 2, 3, 4, 5, 1, 2, 3]), [0.0; 10]);
        assert_eq!(penalties(&dry(1, &[2]), &[1, 2, 3, 4, 5, 1, 2, 3])[4], 1.0);
        assert_eq!(penalties(&dry(1, &[3]), &[1, 2, 3, 4, 5, 1, 2, 3]), [0.0; 10]);
    }

    #[test]
    fn an_extremely_long_repetition_gives_a_finite_penalty() {
        let after = penalties(&Dry { base: 100.0, ..dry(1, &[]) }, &[7; 400]);
        assert!(after[7] > 1e30 && after[7].is_finite());
        assert_eq!(penalties(&dry(0, &[]), &[]), [0.0; 10]);
    }

    proptest! {
        #[test]
        fn lengths_are_those_that_comparing_every_place_gives(tokens in prop::collection::vec(0_u32..3, 0..40)) {
            let dry = dry(1, &[]);
            let mut repetition = Repetition::new(&dry, &tokens, &[]);
            repetition.measure();
            for distance in 1..tokens.len() {
                let (earlier, all) = (&tokens[..tokens.len() - distance], &tokens[..]);
                let same = earlier.iter().rev().zip(all.iter().rev()).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(repetition.lengths[distance], same);
            }
        }
    }
}
