//! Log-probabilities from the model's logits, before bias, penalties, temperature and constraint.
//!
//! They do not depend on sampling options, so they can be compared between requests. OpenAI reports the same, and vLLM does by
//! default. With [`LogprobOptions::after_sampling`] they are those of the tokens that the sampler draws from, as llama-server
//! reports them with `post_sampling_probs`; a token that a constraint forces has the probability 1.

use crate::job::{LogprobOptions, TokenLogprobs};

/// The logits of one position, kept while the sampler changes its copy.
#[derive(Debug)]
pub(super) struct LogprobScorer {
    asked: LogprobOptions,
    logits: Vec<f32>,
    /// Logarithm of the sum of the exponentials of all logits.
    total: f64,
    /// Whether the next tokens are certain.
    is_forced: bool,
    order: Vec<u32>,
}

impl LogprobScorer {
    pub(super) fn new(asked: LogprobOptions) -> Self {
        Self { asked, logits: Vec::new(), total: 0.0, is_forced: false, order: Vec::new() }
    }

    /// Takes the logits of a position, `[vocab]`.
    pub(super) fn read(&mut self, logits: &[f32]) {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        let numbers = || logits.iter().copied().filter(|logit| !logit.is_nan());
        let max = f64::from(numbers().fold(f32::NEG_INFINITY, f32::max));
        self.total = max + numbers().map(|logit| (f64::from(logit) - max).exp()).sum::<f64>().ln();
        self.is_forced = false;
    }

    /// Takes the tokens that a token was picked from, with their weights, in a vocabulary of this size.
    pub(super) fn read_candidates(&mut self, candidates: &[(u32, f32)], vocabulary: usize) {
        self.logits.clear();
        self.logits.resize(vocabulary, f32::NEG_INFINITY);
        for (id, weight) in candidates {
            if let Some(logit) = self.logits.get_mut(*id as usize) {
                *logit = weight.ln();
            }
        }
        self.total = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>().ln();
        self.is_forced = false;
    }

    /// Notes that no other tokens were possible than those that follow.
    pub(super) const fn read_forced(&mut self) {
        self.is_forced = true;
    }

    /// Log-probability of `token` at `position`, and of the most probable tokens.
    pub(super) fn score(&mut self, token: u32, position: usize) -> TokenLogprobs {
        if self.is_forced {
            let top = if self.asked.top > 0 { vec![(token, 0.0)] } else { Vec::new() };
            return TokenLogprobs { position, token, logprob: 0.0, rank: 1, top };
        }
        let top = self.most_probable().into_iter().map(|id| (id, self.logprob(id))).collect();
        TokenLogprobs { position, token, logprob: self.logprob(token), rank: self.rank(token), top }
    }

    /// The token's place in the order of probability; tokens of equal probability come in the order of their ids.
    fn rank(&self, token: u32) -> usize {
        let Some(own) = self.logits.get(token as usize).copied() else { return self.logits.len() + 1 };
        let precedes = |(id, logit): (u32, &f32)| *logit > own || (*logit == own && id < token);
        1 + (0_u32..).zip(&self.logits).filter(|one| precedes(*one)).count()
    }

    fn logprob(&self, token: u32) -> f32 {
        /// Reported for impossible tokens, because JSON has no infinity.
        const MIN_LOGPROB: f64 = -9999.0;
        let logit = self.logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let logprob = f64::from(logit) - self.total;
        let logprob = if logprob.is_nan() { MIN_LOGPROB } else { logprob.clamp(MIN_LOGPROB, 0.0) };
        #[expect(clippy::cast_possible_truncation, reason = "rounded, as the logits are")]
        let logprob = logprob as f32;
        logprob
    }

    /// The requested number of most probable tokens, the greatest first, lower ids first among equals.
    fn most_probable(&mut self) -> Vec<u32> {
        let Self { asked, logits, order, .. } = self;
        let top = asked.top.min(logits.len());
        if top == 0 {
            return Vec::new();
        }
        order.clear();
        let is_listed =
            |logit: f32| if asked.after_sampling { logit > f32::NEG_INFINITY } else { !logit.is_nan() };
        order.extend((0_u32..).zip(logits.iter()).filter(|(_, logit)| is_listed(**logit)).map(|(id, _)| id));
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let top = top.min(order.len());
        if top > 0 && top < order.len() {
            order.select_nth_unstable_by(top - 1, by_logit);
        }
        order[..top].sort_unstable_by(by_logit);
        order[..top].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(logits: &[f32], top: usize, token: u32) -> TokenLogprobs {
        let mut scorer = LogprobScorer::new(LogprobOptions { top, ..LogprobOptions::default() });
        scorer.read(logits);
        scorer.score(token, 3)
    }

    #[test]
    fn log_probabilities_are_those_of_a_softmax() {
        let logits = [0.5_f32.ln() + 70.0, 0.3_f32.ln() + 70.0, 0.2_f32.ln() + 70.0];
        let TokenLogprobs { position, token, logprob, rank, top } = score(&logits, 2, 2);
        assert_eq!((position, token, rank), (3, 2, 3));
        assert!((logprob - 0.2_f32.ln()).abs() < 1e-5);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
        assert!((top[0].1 - 0.5_f32.ln()).abs() < 1e-5 && (top[1].1 - 0.3_f32.ln()).abs() < 1e-5);
    }

    #[test]
    fn impossible_tokens_and_nan_get_a_finite_number() {
        for (logits, token) in [([f32::NEG_INFINITY, 1.0], 0), ([1.0, f32::NAN], 1), ([1.0, 2.0], 9)] {
            let score = score(&logits, 5, token);
            assert!((score.logprob - -9999.0).abs() < 1e-3, "{score:?}");
            assert!(score.top.iter().all(|(_, logprob)| logprob.is_finite()), "{score:?}");
        }
        assert!(score(&[f32::NAN; 2], 2, 0).top.is_empty());
        assert!(score(&[1e30, 1.0], 1, 0).logprob.abs() < 1e-6, "no overflow");
    }

    #[test]
    fn after_sampling_only_candidates_are_listed_and_forced_tokens_are_certain() {
        let mut scorer = LogprobScorer::new(LogprobOptions { top: 3, after_sampling: true, prompt: false });
        scorer.read_candidates(&[(1, 0.5), (4, 1.0)], 6);
        let score = scorer.score(1, 0);
        assert!((score.logprob.exp() - 1.0 / 3.0).abs() < 1e-6 && score.rank == 2, "{score:?}");
        assert_eq!(score.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [4, 1]);
        assert!((score.top[0].1.exp() - 2.0 / 3.0).abs() < 1e-6, "{score:?}");
        scorer.read_forced();
        let forced = TokenLogprobs { position: 5, token: 3, logprob: 0.0, rank: 1, top: vec![(3, 0.0)] };
        assert_eq!(scorer.score(3, 5), forced);
    }

    #[test]
    fn equals_come_in_the_order_of_their_ids() {
        let top = score(&[1.0; 40], 3, 0).top;
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
