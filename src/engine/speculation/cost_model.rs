//! Whether drafting pays, from the times of passes and the hit rate of drafts. Pure: callers pass the times.

use std::time::Duration;

/// Smoothing window of the decode-step time, in steps.
const STEP_WINDOW: f64 = 16.0;

/// Smoothing window of the time per further token of a pass, in passes.
const PASS_WINDOW: f64 = 8.0;

/// Assumed time per further token before the first measurement, relative to a step. That of a CPU; a GPU needs less.
const DEFAULT_FURTHER: f64 = 1.0 / 8.0;

/// Decay of the time per further token towards the default, in steps, so that a pass that was interrupted does not end drafting.
const DECAY: f64 = 512.0;

/// Smoothing window of a hit rate, in drafted tokens.
const HIT_WINDOW: f64 = 64.0;

/// Required speedup, because estimates are not exact.
const MARGIN: f64 = 1.05;

/// Classes of matches: the least number of matching tokens, and the initial hit rate, weighted like [`PRIOR`] drafted tokens.
const MATCH_CLASSES: [(usize, f64); 4] = [(3, 0.4), (5, 0.6), (8, 0.8), (16, 0.9)];

const PRIOR: f64 = 4.0;

/// Times of passes, and hit rates of prompt lookup by class of match.
#[derive(Clone, Debug)]
pub(super) struct CostModel {
    pub(super) passes: PassTimes,
    hit_rates: [HitRate; MATCH_CLASSES.len()],
    /// Always drafts, whether that pays or not; only tests set it.
    pub(super) is_eager: bool,
}

/// How many tokens to draft, and the expected speed in tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DraftPlan {
    pub(super) tokens: usize,
    pub(super) speed: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        let hit_rates = MATCH_CLASSES.map(|(_, believed)| HitRate::new(believed));
        Self { passes: PassTimes::default(), hit_rates, is_eager: false }
    }
}

impl CostModel {
    /// A model that always drafts.
    #[cfg(any(debug_assertions, feature = "fault-injection"))]
    pub(super) fn eager() -> Self {
        Self { is_eager: true, ..Self::default() }
    }

    /// Notes whether a token drafted after `length` matching tokens was right.
    pub(super) fn judge(&mut self, length: usize, was_right: bool) {
        self.hit_rates[match_class(length)].note(was_right);
    }

    /// How many tokens to draft after `due` others, at most `max`, with `length` matching tokens; `None` if drafting does not pay.
    pub(super) fn best(&self, due: usize, length: usize, max: usize) -> Option<DraftPlan> {
        let right = |drafted| self.hit_rates[match_class(length + drafted - 1)].share();
        self.passes.best(due, max, right, |_| 0.0)
    }
}

/// Times of passes, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PassTimes {
    /// Pass of one token.
    step: Option<f64>,
    /// Additional time per further token.
    further: Option<f64>,
}

impl PassTimes {
    /// From measured passes of one token and of `tokens` tokens.
    pub(super) fn measured(step: Duration, tokens: usize, wide: Duration) -> Self {
        let further = wide.saturating_sub(step).as_secs_f64() / number(tokens.saturating_sub(1).max(1));
        Self { step: Some(step.as_secs_f64()), further: Some(further) }
    }

    /// Notes the time of a pass of `tokens` tokens.
    pub(super) fn took(&mut self, tokens: usize, time: Duration) {
        let time = time.as_secs_f64();
        match (self.step, self.further) {
            (None, _) if tokens == 1 => self.step = Some(time),
            (Some(step), further) if tokens == 1 => {
                self.step = Some(step + (time - step) / STEP_WINDOW);
                self.further = further.map(|further| further + (step * DEFAULT_FURTHER - further) / DECAY);
            }
            (Some(step), further) if tokens > 1 => {
                let each = ((time - step) / number(tokens - 1)).max(0.0);
                let known = further.unwrap_or(step * DEFAULT_FURTHER);
                self.further = Some(known + (each - known) / PASS_WINDOW);
            }
            _ => {}
        }
    }

    /// Time of a pass of one token; `None` before the first one.
    pub(super) const fn step(&self) -> Option<f64> {
        self.step
    }

    /// Expected time of a pass of `tokens` tokens; 0 before the first step.
    pub(super) fn time(&self, tokens: usize) -> f64 {
        let step = self.step.unwrap_or(0.0);
        step + self.further.unwrap_or(step * DEFAULT_FURTHER) * number(tokens.saturating_sub(1))
    }

    /// The length of a draft after `due` tokens, at most `max`, that gives the fastest answer. `right(n)` is the probability that
    /// the `n`th drafted token is right if those before it are, and `making(n)` the time to draft `n` tokens in seconds. `None` if
    /// drafting does not pay, or before the first step.
    pub(super) fn best(
        &self,
        due: usize,
        max: usize,
        right: impl Fn(usize) -> f64,
        making: impl Fn(usize) -> f64,
    ) -> Option<DraftPlan> {
        // Without a step time there is nothing to compare with.
        self.step?;
        let due = due.max(1);
        let (mut best, mut fastest) = (None, MARGIN / self.time(due));
        let (mut reached, mut said) = (1.0, 1.0);
        for tokens in 1..=max {
            reached *= right(tokens);
            said += reached;
            let speed = said / (self.time(due + tokens) + making(tokens));
            if speed > fastest {
                (best, fastest) = (Some(DraftPlan { tokens, speed }), speed);
            }
        }
        best
    }
}

/// Hit rate of drafted tokens; older ones count less.
#[derive(Clone, Copy, Debug)]
pub(super) struct HitRate {
    made: f64,
    right: f64,
}

impl HitRate {
    /// No drafts yet, and this initial rate.
    pub(super) const fn new(believed: f64) -> Self {
        Self { made: PRIOR, right: PRIOR * believed }
    }

    /// Notes one drafted token.
    pub(super) fn note(&mut self, was_right: bool) {
        let keeps = 1.0 - 1.0 / HIT_WINDOW;
        self.made = self.made * keeps + 1.0;
        self.right = self.right * keeps + f64::from(u8::from(was_right));
    }

    /// The hit rate, 0 to 1.
    pub(super) const fn share(&self) -> f64 {
        self.right / self.made
    }
}

/// Index into [`MATCH_CLASSES`].
fn match_class(length: usize) -> usize {
    MATCH_CLASSES.iter().rposition(|(min, _)| *min <= length).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "tokens of one pass")]
pub(super) fn number(tokens: usize) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(40);

    /// A machine with a fixed step time, and this many milliseconds per further token.
    fn machine(further: u64) -> CostModel {
        let mut model = CostModel::default();
        for _ in 0..50 {
            model.passes.took(1, STEP);
            model.passes.took(9, STEP + Duration::from_millis(8 * further));
        }
        model
    }

    /// How many tokens are drafted.
    fn best(model: &CostModel, due: usize, length: usize, max: usize) -> usize {
        model.best(due, length, max).map_or(0, |plan| plan.tokens)
    }

    fn judged(mut model: CostModel, right: usize, of: usize) -> CostModel {
        for length in MATCH_CLASSES.map(|(min, _)| min) {
            (0..of * 40).for_each(|i| model.judge(length, i % of < right));
        }
        model
    }

    #[test]
    fn nothing_is_drafted_before_the_first_step() {
        assert_eq!(best(&CostModel::default(), 1, 20, 15), 0);
    }

    #[test]
    fn right_drafts_get_long_and_wrong_ones_stop() {
        assert_eq!(best(&judged(machine(4), 1, 1), 1, 3, 15), 15);
        assert_eq!(best(&judged(machine(4), 0, 1), 1, 20, 15), 0);
        let half = best(&judged(machine(4), 1, 2), 1, 3, 15);
        assert!((1..5).contains(&half), "{half}");
    }

    #[test]
    fn pass_times_decide_as_well() {
        assert!(best(&judged(machine(0), 1, 10), 1, 3, 15) > 0, "for nothing, anything is worth a try");
        assert_eq!(
            best(&judged(machine(40), 1, 1), 1, 20, 15),
            0,
            "a further token takes as long as a step: no gain"
        );
    }

    #[test]
    fn a_pass_that_was_interrupted_does_not_end_drafting_for_good() {
        let mut model = judged(machine(4), 9, 10);
        (0..8).for_each(|_| model.passes.took(9, Duration::from_secs(3)));
        assert_eq!(best(&model, 1, 3, 15), 0);
        (0..4000).for_each(|_| model.passes.took(1, STEP));
        assert!(best(&model, 1, 3, 15) > 0);
    }

    #[test]
    fn a_draft_is_never_longer_than_allowed() {
        for max in 0..9 {
            assert!(best(&judged(machine(0), 1, 1), 1, 9, max) <= max);
        }
    }
}
