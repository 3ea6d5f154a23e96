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
pub(super) struct Pace {
    /// Seconds of a pass of one token.
    step: Option<f64>,
    /// Seconds more for each further one.
    further: Option<f64>,
    kinds: [Kind; KINDS.len()],
    /// Whether it pays is not asked.
    is_eager: bool,
}

/// Guesses of one kind, older ones counted less.
#[derive(Clone, Copy, Debug)]
struct Kind {
    made: f64,
    right: f64,
}

impl Default for Pace {
    fn default() -> Self {
        let kinds = KINDS.map(|(_, believed)| Kind { made: FIRST, right: FIRST * believed });
        Self { step: None, further: None, kinds, is_eager: false }
    }
}

impl Pace {
    /// One that takes every guess to pay.
    pub(super) fn eager() -> Self {
        Self { is_eager: true, ..Self::default() }
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

    /// Notes whether a guess that followed `length` alike tokens was right.
    pub(super) fn judge(&mut self, length: usize, was_right: bool) {
        let kind = &mut self.kinds[kind(length)];
        let keeps = 1.0 - 1.0 / GUESSES;
        kind.made = kind.made * keeps + 1.0;
        kind.right = kind.right * keeps + f64::from(u8::from(was_right));
    }

    /// How many tokens to guess behind `due` others, at most `most`, after `length` alike ones; 0 where none pays.
    pub(super) fn best(&self, due: usize, length: usize, most: usize) -> usize {
        if self.is_eager {
            return most;
        }
        // Before the first step was seen there is nothing to compare to.
        let Some(step) = self.step else { return 0 };
        let further = self.further.unwrap_or(step * UNKNOWN);
        let time = |tokens: usize| step + further * number(tokens - 1);
        let due = due.max(1);
        let alone = 1.0 / time(due);
        let (mut best, mut fastest) = (0, alone * MARGIN);
        let (mut reached, mut said) = (1.0, 1.0);
        for guessed in 1..=most {
            reached *= self.right(length + guessed - 1);
            said += reached;
            let speed = said / time(due + guessed);
            if speed > fastest {
                (best, fastest) = (guessed, speed);
            }
        }
        best
    }

    fn right(&self, length: usize) -> f64 {
        let Kind { made, right } = self.kinds[kind(length)];
        right / made
    }
}

/// The place in [`KINDS`].
fn kind(length: usize) -> usize {
    KINDS.iter().rposition(|(least, _)| *least <= length).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "tokens of one pass")]
fn number(tokens: usize) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(40);

    /// A machine whose passes take a step, and so many milliseconds for each further token.
    fn pace(further: u64) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..50 {
            pace.took(1, STEP);
            pace.took(9, STEP + Duration::from_millis(8 * further));
        }
        pace
    }

    fn judged(mut pace: Pace, right: usize, of: usize) -> Pace {
        for length in KINDS.map(|(least, _)| least) {
            (0..of * 40).for_each(|i| pace.judge(length, i % of < right));
        }
        pace
    }

    #[test]
    fn nothing_is_guessed_before_a_step_was_seen() {
        assert_eq!(Pace::default().best(1, 20, 15), 0);
    }

    #[test]
    fn guesses_that_are_right_are_long_and_ones_that_are_wrong_are_not_made() {
        assert_eq!(judged(pace(4), 1, 1).best(1, 3, 15), 15);
        assert_eq!(judged(pace(4), 0, 1).best(1, 20, 15), 0);
        let half = judged(pace(4), 1, 2).best(1, 3, 15);
        assert!((1..5).contains(&half), "{half}");
    }

    #[test]
    fn what_passes_take_decides_as_well() {
        assert!(judged(pace(0), 1, 10).best(1, 3, 15) > 0, "for nothing, anything is worth a try");
        assert_eq!(
            judged(pace(40), 1, 1).best(1, 20, 15),
            0,
            "as long as steps of their own: nothing is gained"
        );
    }

    #[test]
    fn a_pass_that_was_interrupted_does_not_end_them_for_good() {
        let mut pace = judged(pace(4), 9, 10);
        (0..8).for_each(|_| pace.took(9, Duration::from_secs(3)));
        assert_eq!(pace.best(1, 3, 15), 0);
        (0..4000).for_each(|_| pace.took(1, STEP));
        assert!(pace.best(1, 3, 15) > 0);
    }

    #[test]
    fn never_more_than_asked_for() {
        for most in 0..9 {
            assert!(judged(pace(0), 1, 1).best(1, 9, most) <= most);
        }
    }
}
