//! Whether guessing pays, from what passes take and how often guesses are right. Pure: it is told times and never looks at
//! a clock.

use std::time::Duration;

/// A step's time that is remembered is mostly that of the last so many.
const STEPS: f64 = 16.0;

/// The same of what each further token of a pass takes.
const PASSES: f64 = 8.0;

/// What a further token takes while nothing is known, as a share of a step: a CPU's, as a GPU's is less.
const UNKNOWN: f64 = 1.0 / 8.0;

/// After about so many steps what was learned of passes has half faded: a pass that was interrupted must not end them.
const FADES: f64 = 512.0;

/// Guesses that are remembered, of each kind.
const GUESSES: f64 = 64.0;

/// Expected to be so much faster, or it is left: estimates are not exact.
const MARGIN: f64 = 1.05;

/// How often guesses are right that follow so many tokens that were alike, by the least of them; and what is believed at
/// first, as strongly as [`FIRST`] guesses would teach.
const KINDS: [(usize, f64); 4] = [(3, 0.4), (5, 0.6), (8, 0.8), (16, 0.9)];

const FIRST: f64 = 4.0;

/// What is known of a model's passes and of guesses.
#[derive(Clone, Debug)]
pub(super) struct CostModel {
    pub(super) passes: PassTimes,
    kinds: [HitRate; KINDS.len()],
    /// Whether it pays is not asked.
    pub(super) is_eager: bool,
}

/// How many tokens to guess, and how fast the answer is expected to be then, in tokens a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DraftPlan {
    pub(super) tokens: usize,
    pub(super) speed: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        let kinds = KINDS.map(|(_, believed)| HitRate::new(believed));
        Self { passes: PassTimes::default(), kinds, is_eager: false }
    }
}

impl CostModel {
    /// One that takes every guess to pay.
    pub(super) fn eager() -> Self {
        Self { is_eager: true, ..Self::default() }
    }

    /// Notes whether a guess that followed `length` alike tokens was right.
    pub(super) fn judge(&mut self, length: usize, was_right: bool) {
        self.kinds[kind(length)].note(was_right);
    }

    /// How many tokens to guess behind `due` others, at most `most`, after `length` alike ones; `None` where none pays.
    pub(super) fn best(&self, due: usize, length: usize, most: usize) -> Option<DraftPlan> {
        let right = |guessed| self.kinds[kind(length + guessed - 1)].share();
        self.passes.best(due, most, right, |_| 0.0)
    }
}

/// What passes of a model take, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PassTimes {
    /// One of one token.
    step: Option<f64>,
    /// More for each further one.
    further: Option<f64>,
}

impl PassTimes {
    /// Those of a model of which a pass of one token and one of `tokens` were measured.
    pub(super) fn measured(step: Duration, tokens: usize, wide: Duration) -> Self {
        let further = wide.saturating_sub(step).as_secs_f64() / number(tokens.saturating_sub(1).max(1));
        Self { step: Some(step.as_secs_f64()), further: Some(further) }
    }

    /// Notes what a pass of so many tokens took.
    pub(super) fn took(&mut self, tokens: usize, time: Duration) {
        let time = time.as_secs_f64();
        match (self.step, self.further) {
            (None, _) if tokens == 1 => self.step = Some(time),
            (Some(step), further) if tokens == 1 => {
                self.step = Some(step + (time - step) / STEPS);
                self.further = further.map(|further| further + (step * UNKNOWN - further) / FADES);
            }
            (Some(step), further) if tokens > 1 => {
                let each = ((time - step) / number(tokens - 1)).max(0.0);
                let known = further.unwrap_or(step * UNKNOWN);
                self.further = Some(known + (each - known) / PASSES);
            }
            _ => {}
        }
    }

    /// A pass of one token; `None` before one was seen.
    pub(super) const fn step(&self) -> Option<f64> {
        self.step
    }

    /// One of so many tokens; 0 before a step was seen.
    pub(super) fn time(&self, tokens: usize) -> f64 {
        let step = self.step.unwrap_or(0.0);
        step + self.further.unwrap_or(step * UNKNOWN) * number(tokens.saturating_sub(1))
    }

    /// The length of a guess behind `due` tokens, at most `most`, that is expected to make the answer fastest: the `n`th
    /// token of it is right with the chance `right(n)` if those before it are, and making `n` of them takes `making(n)`
    /// seconds. `None` where none pays, or nothing is known yet.
    pub(super) fn best(
        &self,
        due: usize,
        most: usize,
        right: impl Fn(usize) -> f64,
        making: impl Fn(usize) -> f64,
    ) -> Option<DraftPlan> {
        // Before the first step was seen there is nothing to compare to.
        self.step?;
        let due = due.max(1);
        let (mut best, mut fastest) = (None, MARGIN / self.time(due));
        let (mut reached, mut said) = (1.0, 1.0);
        for tokens in 1..=most {
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

/// How often guesses were right lately, older ones counted less.
#[derive(Clone, Copy, Debug)]
pub(super) struct HitRate {
    made: f64,
    right: f64,
}

impl HitRate {
    /// Nothing was made yet, and such a share is believed to be right.
    pub(super) const fn new(believed: f64) -> Self {
        Self { made: FIRST, right: FIRST * believed }
    }

    /// Notes one more.
    pub(super) fn note(&mut self, was_right: bool) {
        let keeps = 1.0 - 1.0 / GUESSES;
        self.made = self.made * keeps + 1.0;
        self.right = self.right * keeps + f64::from(u8::from(was_right));
    }

    /// The share that is right.
    pub(super) const fn share(&self) -> f64 {
        self.right / self.made
    }
}

/// The place in [`KINDS`].
fn kind(length: usize) -> usize {
    KINDS.iter().rposition(|(least, _)| *least <= length).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "tokens of one pass")]
pub(super) fn number(tokens: usize) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(40);

    /// A machine whose passes take a step, and so many milliseconds for each further token.
    fn pace(further: u64) -> CostModel {
        let mut pace = CostModel::default();
        for _ in 0..50 {
            pace.passes.took(1, STEP);
            pace.passes.took(9, STEP + Duration::from_millis(8 * further));
        }
        pace
    }

    /// How many tokens are guessed.
    fn best(pace: &CostModel, due: usize, length: usize, most: usize) -> usize {
        pace.best(due, length, most).map_or(0, |plan| plan.tokens)
    }

    fn judged(mut pace: CostModel, right: usize, of: usize) -> CostModel {
        for length in KINDS.map(|(least, _)| least) {
            (0..of * 40).for_each(|i| pace.judge(length, i % of < right));
        }
        pace
    }

    #[test]
    fn nothing_is_guessed_before_a_step_was_seen() {
        assert_eq!(best(&CostModel::default(), 1, 20, 15), 0);
    }

    #[test]
    fn guesses_that_are_right_are_long_and_ones_that_are_wrong_are_not_made() {
        assert_eq!(best(&judged(pace(4), 1, 1), 1, 3, 15), 15);
        assert_eq!(best(&judged(pace(4), 0, 1), 1, 20, 15), 0);
        let half = best(&judged(pace(4), 1, 2), 1, 3, 15);
        assert!((1..5).contains(&half), "{half}");
    }

    #[test]
    fn what_passes_take_decides_as_well() {
        assert!(best(&judged(pace(0), 1, 10), 1, 3, 15) > 0, "for nothing, anything is worth a try");
        assert_eq!(
            best(&judged(pace(40), 1, 1), 1, 20, 15),
            0,
            "as long as steps of their own: nothing is gained"
        );
    }

    #[test]
    fn a_pass_that_was_interrupted_does_not_end_them_for_good() {
        let mut pace = judged(pace(4), 9, 10);
        (0..8).for_each(|_| pace.passes.took(9, Duration::from_secs(3)));
        assert_eq!(best(&pace, 1, 3, 15), 0);
        (0..4000).for_each(|_| pace.passes.took(1, STEP));
        assert!(best(&pace, 1, 3, 15) > 0);
    }

    #[test]
    fn never_more_than_asked_for() {
        for most in 0..9 {
            assert!(best(&judged(pace(0), 1, 1), 1, 9, most) <= most);
        }
    }
}
