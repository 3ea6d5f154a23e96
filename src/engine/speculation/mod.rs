//! Guessing what comes next, and computing several tokens in one pass where the guess is good.
//!
//! A decode step reads every weight for one token. A pass of a few tokens reads them once as well, and on most machines
//! takes little longer. So where the text at hand has said the same before (an edited paragraph, a quoted field, code),
//! what followed then is fed along with the token that is due, and the logits after each of them tell how far the guess was
//! right ([prompt lookup decoding](https://github.com/apoorvumang/prompt-lookup-decoding)).
//!
//! # Why the answer stays what it was
//! A guess decides nothing. At each position the job's own sampler picks from the model's logits, with the chance that
//! belongs to that step; where it picks what was guessed, the logits of the next position are there already, and
//! where it does not, what was fed behind it is forgotten. Hence the same text, for greedy and for sampled answers, with
//! penalties and constraints. What is left are the last bits of the logits, which with some kernels depend on how many
//! tokens a pass has, as they do between a prompt that is read at once and one that is read in chunks.
//!
//! # When it is done
//! Only where it is expected to pay ([`Pace`]): from what the passes of this model took on this machine, and from how
//! often guesses were right. The latter costs nothing to learn, as every token that is said confirms or refutes a guess,
//! whether that was fed or not; so there is nothing to try out, and text that repeats nothing costs nothing.

mod lookup;
mod pace;

use std::time::Duration;

use lookup::Lookup;
use pace::Pace;

/// What one model's jobs teach about guessing; kept from job to job.
#[derive(Clone, Debug, Default)]
pub struct Speculation {
    pace: Pace,
}

impl Speculation {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Guesses as much as it may wherever it can, whether that pays or not: to see that answers stay what they are.
    #[must_use]
    pub fn eager() -> Self {
        Self { pace: Pace::eager() }
    }
}

/// Guesses the tokens of one job.
#[derive(Debug)]
pub(super) struct Drafter<'a> {
    pace: &'a mut Pace,
    lookup: Lookup,
    /// Most tokens that one pass gives logits of.
    rows: usize,
}

impl<'a> Drafter<'a> {
    /// A drafter for passes of up to `rows` tokens with logits of each; with 1 it never guesses.
    pub(super) fn new(learned: &'a mut Speculation, rows: usize) -> Self {
        Self { pace: &mut learned.pace, lookup: Lookup::default(), rows }
    }

    /// Takes what the job begins with.
    pub(super) fn read(&mut self, tokens: &[u32]) {
        if self.rows > 1 {
            for token in tokens {
                self.lookup.push(*token);
            }
        }
    }

    /// Takes a token that was said.
    pub(super) fn take(&mut self, token: u32) {
        if self.rows > 1
            && let Some(guess) = self.lookup.push(token)
        {
            self.pace.judge(guess.length, guess.was_right);
        }
    }

    /// What may follow the last token, as long as is expected to pay and at most `most`; `due` tokens are fed before it.
    pub(super) fn draft(&self, due: usize, most: usize) -> Vec<u32> {
        let most = most.min(self.rows.saturating_sub(due));
        match self.lookup.match_length() {
            Some(length) if most > 0 => self.lookup.draft(self.pace.best(due, length, most)),
            _ => Vec::new(),
        }
    }

    /// Notes what a pass of so many tokens took.
    pub(super) fn took(&mut self, tokens: usize, time: Duration) {
        if self.rows > 1 {
            self.pace.took(tokens, time);
        }
    }
}
