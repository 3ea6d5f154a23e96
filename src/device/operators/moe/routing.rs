//! Which experts a token goes to, and with which weights, from the router's logits.
//!
//! Everything about a token depends on its own logits alone, and sums have a fixed order, so the choice does not depend on the
//! tokens that are computed with it. Of equal scores the first expert's wins, as in ONNX's `TopK`.

/// How experts are scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scores {
    /// Softmax over all experts.
    Softmax,
    /// Each expert by itself.
    Sigmoid,
    /// Softmax over the chosen experts.
    SoftmaxOfChosen,
    /// SparseMixer (<https://arxiv.org/abs/2409.12136>) of two experts: each is weighed against those whose logits are within
    /// `tolerance` of it, relative to their size.
    SparseMixer {
        /// Twice the jitter of training.
        tolerance: f32,
    },
}

/// The settings of a router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Number of experts.
    pub experts: usize,
    /// Experts of a token.
    pub chosen: usize,
    /// How they are scored.
    pub scores: Scores,
    /// The weights of a token are divided by their sum, or by this where the sum is less.
    pub least_sum: Option<f32>,
    /// Multiplies weights.
    pub scale: f32,
    /// Groups of neighbouring experts; experts come from a few of them only.
    pub groups: usize,
    /// How many.
    pub chosen_groups: usize,
    /// The score of a group is the sum of this many of its best experts.
    pub group_best: usize,
}

impl Routing {
    /// Whether the numbers belong together.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let Self { experts, chosen, groups, chosen_groups, group_best, scores, .. } = *self;
        let is_pair = !matches!(scores, Scores::SparseMixer { .. }) || (chosen == 2 && groups == 1);
        let of_group = experts.checked_div(groups).unwrap_or(0);
        (1..=experts).contains(&chosen)
            && groups > 0
            && experts.is_multiple_of(groups)
            && (1..=groups).contains(&chosen_groups)
            && (1..=of_group).contains(&group_best)
            && chosen <= chosen_groups * of_group
            && is_pair
    }

    /// Chooses experts by `logits`, one an expert: fills `chosen` with their numbers in rising order, and their weights.
    /// `correction` is added to scores for the choice only; empty without one.
    pub(super) fn choose(&self, logits: &[f32], correction: &[f32], chosen: &mut [Choice]) {
        if let Scores::SparseMixer { tolerance } = self.scores {
            sparse_mixer(logits, tolerance, chosen);
        } else {
            let scores = self.scores_of(logits);
            let mut ranks = scores.clone();
            ranks.iter_mut().zip(correction).for_each(|(rank, correction)| *rank += correction);
            if self.groups > 1 {
                self.keep_groups(&mut ranks);
            }
            let mut taken = vec![false; ranks.len()];
            for choice in chosen.iter_mut() {
                let expert = take_greatest(&ranks, &mut taken);
                *choice = Choice { expert, weight: scores[expert] };
            }
        }
        self.weigh(chosen);
        chosen.sort_unstable_by_key(|choice| choice.expert);
    }

    fn scores_of(&self, logits: &[f32]) -> Vec<f32> {
        match self.scores {
            Scores::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
            Scores::Softmax => softmax(logits),
            Scores::SoftmaxOfChosen | Scores::SparseMixer { .. } => logits.to_vec(),
        }
    }

    /// Leaves only the experts of the best groups.
    fn keep_groups(&self, ranks: &mut [f32]) {
        let of_group = self.experts / self.groups;
        let best = |group: &[f32]| {
            let mut taken = vec![false; of_group];
            (0..self.group_best).map(|_| group[take_greatest(group, &mut taken)]).sum()
        };
        let scores: Vec<f32> = ranks.chunks_exact(of_group).map(best).collect();
        let mut is_kept = vec![false; self.groups];
        for _ in 0..self.chosen_groups {
            take_greatest(&scores, &mut is_kept);
        }
        for (group, is_kept) in ranks.chunks_exact_mut(of_group).zip(is_kept) {
            if !is_kept {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }

    /// Turns scores into weights.
    fn weigh(&self, chosen: &mut [Choice]) {
        if self.scores == Scores::SoftmaxOfChosen {
            let logits: Vec<f32> = chosen.iter().map(|choice| choice.weight).collect();
            chosen.iter_mut().zip(softmax(&logits)).for_each(|(choice, weight)| choice.weight = weight);
        }
        if let Some(least) = self.least_sum {
            let sum = chosen.iter().map(|choice| choice.weight).sum::<f32>().max(least);
            chosen.iter_mut().for_each(|choice| choice.weight /= sum);
        }
        chosen.iter_mut().for_each(|choice| choice.weight *= self.scale);
    }
}

/// An expert of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Choice {
    pub(super) expert: usize,
    pub(super) weight: f32,
}

/// The first of the greatest numbers that are not taken yet, which is then taken. NaN comes after all others.
fn take_greatest(numbers: &[f32], taken: &mut [bool]) -> usize {
    let mut best: Option<usize> = None;
    for at in (0..numbers.len()).filter(|at| !taken[*at]) {
        let is_better =
            |best: usize| numbers[at] > numbers[best] || (numbers[best].is_nan() && !numbers[at].is_nan());
        if best.is_none_or(is_better) {
            best = Some(at);
        }
    }
    let best = best.unwrap_or_default();
    taken[best] = true;
    best
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}

fn sparse_mixer(logits: &[f32], tolerance: f32, chosen: &mut [Choice]) {
    let (mut rest, mut taken) = (logits.to_vec(), vec![false; logits.len()]);
    for choice in chosen {
        let expert = take_greatest(&rest, &mut taken);
        let most = rest[expert];
        let near = rest.iter().zip(logits).map(|(rest, logit)| {
            let is_far = (most - logit) / logit.abs().max(most) > tolerance;
            if is_far { f32::NEG_INFINITY } else { *rest }
        });
        let near: Vec<f32> = near.collect();
        *choice = Choice { expert, weight: softmax(&near)[expert] };
        rest[expert] = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Routing = Routing {
        experts: 6,
        chosen: 2,
        scores: Scores::Softmax,
        least_sum: None,
        scale: 1.0,
        groups: 1,
        chosen_groups: 1,
        group_best: 1,
    };

    fn choose(routing: Routing, logits: &[f32], correction: &[f32]) -> Vec<(usize, f32)> {
        assert!(routing.is_consistent());
        let mut chosen = vec![Choice::default(); routing.chosen];
        routing.choose(logits, correction, &mut chosen);
        chosen.iter().map(|choice| (choice.expert, choice.weight)).collect()
    }

    fn near(found: &[(usize, f32)], expected: &[(usize, f32)]) {
        let is_near = found.len() == expected.len()
            && found.iter().zip(expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5);
        assert!(is_near, "{found:?}, not {expected:?}");
    }

    // The probabilities are eighths: 1/8, 2/8, 1/8, 1/8, 2/8, 1/8.
    const EIGHTHS: [f32; 6] = [0.0, std::f32::consts::LN_2, 0.0, 0.0, std::f32::consts::LN_2, 0.0];

    #[test]
    fn the_best_experts_have_their_share_of_all_or_of_the_chosen() {
        near(&choose(PLAIN, &EIGHTHS, &[]), &[(1, 0.25), (4, 0.25)]);
        let normalised = Routing { least_sum: Some(1e-20), scale: 3.0, ..PLAIN };
        near(&choose(normalised, &EIGHTHS, &[]), &[(1, 1.5), (4, 1.5)]);
        let of_chosen = Routing { scores: Scores::SoftmaxOfChosen, chosen: 3, ..PLAIN };
        near(&choose(of_chosen, &EIGHTHS, &[]), &[(0, 0.2), (1, 0.4), (4, 0.4)]);
    }

    #[test]
    fn a_correction_changes_the_choice_and_not_the_weights() {
        near(&choose(PLAIN, &EIGHTHS, &[0.0, 0.0, 0.0, 1.0, 0.0, 1.0]), &[(3, 0.125), (5, 0.125)]);
    }

    #[test]
    fn experts_come_from_the_best_groups() {
        let routing = Routing { scores: Scores::Sigmoid, groups: 3, group_best: 2, ..PLAIN };
        // The best single expert is in the group with the worst sum.
        let chosen = choose(routing, &[3.0, -9.0, 1.0, 1.0, 2.0, -1.0], &[]);
        assert_eq!(chosen.iter().map(|choice| choice.0).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn sparse_mixer_weighs_against_logits_of_a_like_size() {
        let routing = Routing { scores: Scores::SparseMixer { tolerance: 0.02 }, ..PLAIN };
        // 1 is beyond the tolerance of 10; 9.9 is within it. The second is weighed without the first.
        near(&choose(routing, &[10.0, 9.9, 1.0, 1.0, 1.0, 1.0], &[]), &[(0, 0.52498), (1, 1.0)]);
    }

    #[test]
    fn logits_that_are_not_finite_choose_different_experts() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for scores in [Scores::Softmax, Scores::Sigmoid, Scores::SoftmaxOfChosen] {
                let chosen = choose(Routing { scores, chosen: 6, ..PLAIN }, &[bad; 6], &[]);
                assert_eq!(chosen.iter().map(|choice| choice.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
            }
        }
    }

    #[test]
    fn numbers_that_do_not_belong_together_are_inconsistent() {
        for wrong in [
            Routing { chosen: 7, ..PLAIN },
            Routing { chosen: 0, ..PLAIN },
            Routing { groups: 4, ..PLAIN },
            Routing { groups: 0, ..PLAIN },
            Routing { groups: 3, chosen_groups: 4, ..PLAIN },
            Routing { groups: 6, chosen_groups: 1, ..PLAIN },
            Routing { group_best: 7, ..PLAIN },
            Routing { scores: Scores::SparseMixer { tolerance: 0.1 }, chosen: 1, ..PLAIN },
        ] {
            assert!(!wrong.is_consistent(), "{wrong:?}");
        }
    }
}
