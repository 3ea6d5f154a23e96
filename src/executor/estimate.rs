//! How long the jobs ahead will hold the slot, learned from those that held it before.
//!
//! What is learned are three quotients of decayed sums: seconds over prompt tokens, seconds over generated tokens, and
//! generated tokens over those asked for. Sums rather than a mean of each job's rate, because a prompt of five tokens,
//! whose time is all overhead, must not speak for one of five thousand.

use std::time::Duration;

use crate::units::Tokens;

/// What a sum keeps of itself when a job is added: some ten jobs make the picture.
const KEEP: f64 = 0.9;

/// No client is told to come back sooner.
const SHORTEST: Duration = Duration::from_secs(1);

/// No client is told to come back later; also what a nonsensical figure becomes.
const LONGEST: Duration = Duration::from_secs(3600);

/// The speed of this slot, as measured.
#[derive(Clone, Debug)]
pub(super) struct SpeedEstimate {
    prefill_seconds_per_token: Quotient,
    decode_seconds_per_token: Quotient,
    share_of_max_new: Quotient,
}

/// What a job asks of the slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Prompt tokens not read yet.
    pub(super) prompt: Tokens,
    /// Most tokens to generate.
    pub(super) max_new: Tokens,
    /// How many of them were generated already.
    pub(super) generated: Tokens,
    /// It is cut after so long.
    pub(super) max_time: Option<Duration>,
}

/// What a job that is over took of the slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotUsage {
    /// What it had asked for, and generated.
    pub(super) work: Work,
    /// From having the slot to the first token.
    pub(super) to_first_token: Duration,
    /// From there until the slot was free again.
    pub(super) rest: Duration,
}

impl Default for SpeedEstimate {
    /// Before the first measurement: 200 prompt tokens and 10 generated ones a second, as a small model on a laptop's
    /// processor does, and half of the tokens asked for.
    fn default() -> Self {
        Self {
            prefill_seconds_per_token: Quotient::unknown(1.0 / 200.0),
            decode_seconds_per_token: Quotient::unknown(1.0 / 10.0),
            share_of_max_new: Quotient::unknown(0.5),
        }
    }
}

impl SpeedEstimate {
    /// Learns from a job that has left the slot. One that generated nothing says nothing about speed.
    pub(super) fn learn(&mut self, taken: SlotUsage) {
        let generated = count(taken.work.generated);
        if generated < 1.0 {
            return;
        }
        self.prefill_seconds_per_token.add(taken.to_first_token.as_secs_f64(), count(taken.work.prompt));
        self.decode_seconds_per_token.add(taken.rest.as_secs_f64(), generated - 1.0);
        self.share_of_max_new.add(generated, count(taken.work.max_new));
    }

    /// When a client that was refused should come back: when all that is ahead of it is likely to be done.
    pub(super) fn retry_after(&self, ahead: impl IntoIterator<Item = Work>, slots: usize) -> Duration {
        ahead.into_iter().map(|work| self.share_of(work, slots)).sum::<Duration>().clamp(SHORTEST, LONGEST)
    }

    /// By how much a job makes those behind it wait, when they wait for the first of so many slots.
    pub(super) fn share_of(&self, work: Work, slots: usize) -> Duration {
        let seconds = self.seconds_for(work) / count(Tokens(slots)).max(1.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST)
    }

    fn seconds_for(&self, work: Work) -> f64 {
        let expected = self.share_of_max_new.value() * count(work.max_new) - count(work.generated);
        let seconds = self.prefill_seconds_per_token.value() * count(work.prompt)
            + self.decode_seconds_per_token.value() * expected.max(0.0);
        work.max_time.map_or(seconds, |most| seconds.min(most.as_secs_f64()))
    }
}

/// A quotient of two decayed sums, or a prior while there is nothing to divide by.
#[derive(Clone, Debug)]
struct Quotient {
    over: f64,
    under: f64,
    prior: f64,
}

impl Quotient {
    const fn unknown(prior: f64) -> Self {
        Self { over: 0.0, under: 0.0, prior }
    }

    fn add(&mut self, over: f64, under: f64) {
        if under > 0.0 {
            self.over = self.over * KEEP + over;
            self.under = self.under * KEEP + under;
        }
    }

    fn value(&self) -> f64 {
        if self.under > 0.0 { self.over / self.under } else { self.prior }
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate; exact up to 2^53 tokens")]
const fn count(tokens: Tokens) -> f64 {
    tokens.0 as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn work(prompt: usize, max_new: usize, generated: usize) -> Work {
        let (prompt, max_new, generated) = (Tokens(prompt), Tokens(max_new), Tokens(generated));
        Work { prompt, max_new, generated, max_time: None }
    }

    const fn taken(work: Work, to_first_token: u64, rest: u64) -> SlotUsage {
        SlotUsage {
            work,
            to_first_token: Duration::from_millis(to_first_token),
            rest: Duration::from_millis(rest),
        }
    }

    #[test]
    fn before_the_first_measurement_the_prior_speaks() {
        let wait = SpeedEstimate::default().retry_after([work(400, 80, 0)], 1);
        assert_eq!(wait, Duration::from_secs(2 + 4));
    }

    #[test]
    fn the_first_measurement_replaces_the_prior() {
        let mut pace = SpeedEstimate::default();
        pace.learn(taken(work(100, 100, 51), 1_000, 5_000));
        // 10 ms a prompt token, 100 ms a generated one, 51 % used.
        let wait = pace.retry_after([work(100, 100, 0), work(100, 100, 0)], 1);
        assert_eq!(wait.as_millis(), 2 * (1_000 + 5_100));
    }

    #[test]
    fn what_the_running_job_has_behind_it_is_not_waited_for() {
        let pace = SpeedEstimate::default();
        assert_eq!(pace.retry_after([work(0, 200, 60)], 1), Duration::from_secs(4));
        assert_eq!(
            pace.retry_after([work(0, 200, 190)], 1),
            SHORTEST,
            "more than expected is not less than nothing"
        );
    }

    #[test]
    fn a_tiny_prompt_does_not_speak_for_long_ones() {
        let mut pace = SpeedEstimate::default();
        pace.learn(taken(work(5_000, 10, 10), 5_000, 90));
        pace.learn(taken(work(5, 10, 10), 500, 90));
        let wait = pace.retry_after([work(5_000, 0, 0)], 1);
        assert!(wait < Duration::from_secs(6), "{wait:?}");
    }

    #[test]
    fn newer_jobs_outweigh_older_ones() {
        let mut pace = SpeedEstimate::default();
        pace.learn(taken(work(1, 10, 11), 1, 10_000));
        for _ in 0..50 {
            pace.learn(taken(work(1, 10, 11), 1, 100));
        }
        let wait = pace.retry_after([work(0, 1_000, 0)], 1);
        assert!(wait < Duration::from_secs(30), "{wait:?}");
    }

    #[test]
    fn a_job_that_will_be_cut_is_not_waited_for_any_longer() {
        let cut = Work { max_time: Some(Duration::from_secs(3)), ..work(400, 8_000, 0) };
        assert_eq!(
            SpeedEstimate::default().retry_after([cut, work(0, 20, 0)], 1),
            Duration::from_secs(3 + 1)
        );
    }

    #[test]
    fn nasty_numbers_stay_between_a_second_and_an_hour() {
        let mut pace = SpeedEstimate::default();
        assert_eq!(pace.retry_after([], 1), SHORTEST);
        pace.learn(taken(work(0, 0, 0), 0, 0));
        pace.learn(taken(work(0, 0, 1), 0, 0));
        assert_eq!(pace.retry_after([work(usize::MAX, usize::MAX, 0); 9], 1), LONGEST);
    }
}
