//! Tokens that an answer may have: a list of allowed tokens, and sequences that it must not have (vLLM's `allowed_token_ids`
//! and `bad_words`).
//!
//! A sequence is banned by its last token, wherever the answer ends with the tokens before it.

use crate::job::Sampling;

/// What a job's answer may have, and its tokens so far.
#[derive(Debug)]
pub(super) struct Restriction<'a> {
    allowed: &'a [u32],
    banned: &'a [Vec<u32>],
    /// The answer so far, if a banned sequence has several tokens.
    answer: Vec<u32>,
    keeps_answer: bool,
    /// Tokens with their logits, while a step is restricted.
    kept: Vec<(u32, f32)>,
}

impl<'a> Restriction<'a> {
    /// The restriction of answers with this sampling; `None` if they may have all tokens.
    pub(super) fn new(sampling: &'a Sampling) -> Option<Self> {
        let Sampling { allowed_tokens: allowed, banned, .. } = sampling;
        if allowed.is_empty() && banned.is_empty() {
            return None;
        }
        let keeps_answer = banned.iter().any(|sequence| sequence.len() > 1);
        Some(Self { allowed, banned, answer: Vec::new(), keeps_answer, kept: Vec::new() })
    }

    pub(super) fn take(&mut self, token: u32) {
        if self.keeps_answer {
            self.answer.push(token);
        }
    }

    /// Makes all other tokens impossible. Where nothing would be left, because a constraint leaves only banned tokens, the step
    /// is not restricted.
    pub(super) fn apply(&mut self, logits: &mut [f32]) {
        if !self.allowed.is_empty() {
            self.allow(logits);
        }
        if !self.banned.is_empty() {
            self.ban(logits);
        }
    }

    fn allow(&mut self, logits: &mut [f32]) {
        let logit = |id: &u32| Some((*id, *logits.get(*id as usize)?));
        self.kept.clear();
        self.kept.extend(self.allowed.iter().filter_map(logit).filter(|(_, logit)| is_possible(*logit)));
        if !self.kept.is_empty() {
            logits.fill(f32::NEG_INFINITY);
            self.restore(logits);
        }
    }

    fn ban(&mut self, logits: &mut [f32]) {
        self.kept.clear();
        for sequence in self.banned {
            let Some((last, before)) = sequence.split_last() else { continue };
            if let Some(logit) = logits.get_mut(*last as usize)
                && self.answer.ends_with(before)
            {
                self.kept.push((*last, *logit));
                *logit = f32::NEG_INFINITY;
            }
        }
        if !self.kept.is_empty() && !logits.iter().any(|logit| is_possible(*logit)) {
            // In reverse: a token that two sequences ban had its logit at the first of them.
            self.kept.reverse();
            self.restore(logits);
        }
    }

    fn restore(&self, logits: &mut [f32]) {
        for (id, logit) in &self.kept {
            logits[*id as usize] = *logit;
        }
    }
}

fn is_possible(logit: f32) -> bool {
    logit > f32::NEG_INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [5.0, 4.0, 3.0, 2.0, 1.0];

    /// The tokens that remain possible after `answer`.
    fn possible(sampling: &Sampling, answer: &[u32], logits: &[f32]) -> Vec<usize> {
        let mut restriction = Restriction::new(sampling).unwrap();
        answer.iter().for_each(|token| restriction.take(*token));
        let mut restricted = logits.to_vec();
        restriction.apply(&mut restricted);
        (0..logits.len()).filter(|id| is_possible(restricted[*id])).collect()
    }

    #[test]
    fn only_allowed_tokens_remain_and_ids_beyond_the_vocabulary_are_ignored() {
        let sampling = Sampling { allowed_tokens: vec![1, 3, 99], ..Sampling::greedy() };
        assert_eq!(possible(&sampling, &[], &LOGITS), [1, 3]);
        assert!(Restriction::new(&Sampling::greedy()).is_none());
    }

    #[test]
    fn the_last_token_of_a_banned_sequence_is_impossible_after_the_others() {
        let sampling = Sampling { banned: vec![vec![4], vec![1, 2], vec![2, 1, 0]], ..Sampling::greedy() };
        assert_eq!(possible(&sampling, &[], &LOGITS), [0, 1, 2, 3]);
        assert_eq!(possible(&sampling, &[3, 1], &LOGITS), [0, 1, 3]);
        assert_eq!(possible(&sampling, &[1, 2], &LOGITS), [0, 1, 2, 3]);
        assert_eq!(possible(&sampling, &[2, 1], &LOGITS), [1, 3]);
    }

    #[test]
    fn a_step_in_which_nothing_would_be_left_is_not_restricted() {
        let masked = [f32::NEG_INFINITY, 4.0, f32::NEG_INFINITY, f32::NEG_INFINITY, 1.0];
        let sampling = Sampling { banned: vec![vec![4], vec![1], vec![1]], ..Sampling::greedy() };
        assert_eq!(possible(&sampling, &[], &masked), [1, 4]);
        let sampling = Sampling { allowed_tokens: vec![0, 2], ..Sampling::greedy() };
        assert_eq!(possible(&sampling, &[], &masked), [1, 4]);
    }
}
