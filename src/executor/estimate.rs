//! Estimates how long jobs will run, from the times of earlier jobs.
//!
//! Four ratios of decayed sums are kept: seconds per prompt token, seconds per generated token, generated tokens per allowed
//! token of jobs whose client set a limit, and generated tokens per job of the others, whose limit is the whole context. Sums are better than a mean of each job's rate, because a prompt of five tokens, whose time is all overhead, must not
//! count like one of five thousand.

use std::time::Duration;

use crate::units::Tokens;

/// Decay of a sum per job: about the last ten jobs count.
const KEEP: f64 = 0.9;

/// Shortest `Retry-After`.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Longest `Retry-After`; also the limit for absurd estimates.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Measured speed of the slots.
#[derive(Clone, Debug)]
pub(super) struct SpeedEstimate {
    prefill_seconds_per_token: DecayedRatio,
    decode_seconds_per_token: DecayedRatio,
    share_of_max_new: DecayedRatio,
    tokens_without_limit: DecayedRatio,
}

/// Size of a job, and its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Unread prompt tokens.
    pub(super) prompt: Tokens,
    /// Maximum number of tokens to generate.
    pub(super) max_new: Tokens,
    /// Tokens generated so far.
    pub(super) generated: Tokens,
    /// Its time limit in the slot.
    pub(super) max_time: Option<Duration>,
    /// Whether the client set `max_new`.
    pub(super) is_limited: bool,
}

/// Times of a finished job.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotUsage {
    /// Its size, and the tokens it generated.
    pub(super) work: Work,
    /// From its start to the first token.
    pub(super) to_first_token: Duration,
    /// From there to its end.
    pub(super) rest: Duration,
}

impl Default for SpeedEstimate {
    /// Before the first measurement: 200 prompt tokens and 10 generated tokens per second, like a small model on a laptop's CPU, and
    /// half of the allowed tokens, or 128 without a limit.
    fn default() -> Self {
        Self {
            prefill_seconds_per_token: DecayedRatio::unknown(1.0 / 200.0),
            decode_seconds_per_token: DecayedRatio::unknown(1.0 / 10.0),
            share_of_max_new: DecayedRatio::unknown(0.5),
            tokens_without_limit: DecayedRatio::unknown(128.0),
        }
    }
}

impl SpeedEstimate {
    /// Learns from a finished job, unless it generated nothing.
    pub(super) fn learn(&mut self, taken: SlotUsage) {
        let generated = count(taken.work.generated);
        if generated < 1.0 {
            return;
        }
        self.prefill_seconds_per_token.add(taken.to_first_token.as_secs_f64(), count(taken.work.prompt));
        self.decode_seconds_per_token.add(taken.rest.as_secs_f64(), generated - 1.0);
        if taken.work.is_limited {
            self.share_of_max_new.add(generated, count(taken.work.max_new));
        } else {
            self.tokens_without_limit.add(generated, 1.0);
        }
    }

    /// `Retry-After` for a rejected client: the time until all jobs `ahead` are expected to be done.
    pub(super) fn retry_after(&self, ahead: impl IntoIterator<Item = Work>, slots: usize) -> Duration {
        ahead
            .into_iter()
            .map(|work| self.share_of(work, slots))
            .sum::<Duration>()
            .clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)
    }

    /// How long a job delays those behind it, with this many slots.
    pub(super) fn share_of(&self, work: Work, slots: usize) -> Duration {
        let seconds = self.seconds_for(work) / count(Tokens(slots)).max(1.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(MAX_RETRY_AFTER).min(MAX_RETRY_AFTER)
    }

    fn seconds_for(&self, work: Work) -> f64 {
        let max_new = count(work.max_new);
        let expected = if work.is_limited {
            self.share_of_max_new.value() * max_new
        } else {
            self.tokens_without_limit.value().min(max_new)
        };
        let expected = expected - count(work.generated);
        let seconds = self.prefill_seconds_per_token.value() * count(work.prompt)
            + self.decode_seconds_per_token.value() * expected.max(0.0);
        work.max_time.map_or(seconds, |max| seconds.min(max.as_secs_f64()))
    }
}

/// The ratio of two decayed sums, or `prior` before the first measurement.
#[derive(Clone, Debug)]
struct DecayedRatio {
    over: f64,
    under: f64,
    prior: f64,
}

impl DecayedRatio {
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
        Work { prompt, max_new, generated, max_time: None, is_limited: true }
    }

    const fn taken(work: Work, to_first_token: u64, rest: u64) -> SlotUsage {
        SlotUsage {
            work,
            to_first_token: Duration::from_millis(to_first_token),
            rest: Duration::from_millis(rest),
        }
    }

    #[test]
    fn before_the_first_measurement_the_prior_is_used() {
        let wait = SpeedEstimate::default().retry_after([work(400, 80, 0)], 1);
        assert_eq!(wait, Duration::from_secs(2 + 4));
    }

    #[test]
    fn the_first_measurement_replaces_the_prior() {
        let mut speed = SpeedEstimate::default();
        speed.learn(taken(work(100, 100, 51), 1_000, 5_000));
        // 10 ms a prompt token, 100 ms a generated one, 51 % used.
        let wait = speed.retry_after([work(100, 100, 0), work(100, 100, 0)], 1);
        assert_eq!(wait.as_millis(), 2 * (1_000 + 5_100));
    }

    #[test]
    fn tokens_already_generated_are_not_counted() {
        let speed = SpeedEstimate::default();
        assert_eq!(speed.retry_after([work(0, 200, 60)], 1), Duration::from_secs(4));
        assert_eq!(
            speed.retry_after([work(0, 200, 190)], 1),
            MIN_RETRY_AFTER,
            "more tokens than expected leave nothing to wait for"
        );
    }

    #[test]
    fn a_tiny_prompt_does_not_distort_the_estimate_for_long_ones() {
        let mut speed = SpeedEstimate::default();
        speed.learn(taken(work(5_000, 10, 10), 5_000, 90));
        speed.learn(taken(work(5, 10, 10), 500, 90));
        let wait = speed.retry_after([work(5_000, 0, 0)], 1);
        assert!(wait < Duration::from_secs(6), "{wait:?}");
    }

    #[test]
    fn newer_jobs_outweigh_older_ones() {
        let mut speed = SpeedEstimate::default();
        speed.learn(taken(work(1, 10, 11), 1, 10_000));
        for _ in 0..50 {
            speed.learn(taken(work(1, 10, 11), 1, 100));
        }
        let wait = speed.retry_after([work(0, 1_000, 0)], 1);
        assert!(wait < Duration::from_secs(30), "{wait:?}");
    }

    #[test]
    fn a_time_limit_bounds_the_estimate() {
        let cut = Work { max_time: Some(Duration::from_secs(3)), ..work(400, 8_000, 0) };
        assert_eq!(
            SpeedEstimate::default().retry_after([cut, work(0, 20, 0)], 1),
            Duration::from_secs(3 + 1)
        );
    }

    #[test]
    fn extreme_numbers_stay_between_a_second_and_an_hour() {
        let mut speed = SpeedEstimate::default();
        assert_eq!(speed.retry_after([], 1), MIN_RETRY_AFTER);
        speed.learn(taken(work(0, 0, 0), 0, 0));
        speed.learn(taken(work(0, 0, 1), 0, 0));
        assert_eq!(speed.retry_after([work(usize::MAX, usize::MAX, 0); 9], 1), MAX_RETRY_AFTER);
    }
}
