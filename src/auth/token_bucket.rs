//! A token bucket: a rate limit that refills evenly and holds at most one minute's worth, so a client that paused may
//! send a burst.
//!
//! The time is a parameter, so tests do not wait.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// The state of one rate limit.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    per_minute: NonZeroU32,
    /// Negative after an answer that used more tokens than were left.
    left: f64,
    refilled_at: Instant,
}

/// A rate limit as the `x-ratelimit-*` headers report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitStatus {
    /// Units per minute.
    pub limit: u32,
    /// Units left now.
    pub remaining: u32,
    /// Time until the bucket is full again.
    pub reset: Duration,
}

impl TokenBucket {
    /// A full bucket of `per_minute` units.
    #[must_use]
    pub fn full(per_minute: NonZeroU32, now: Instant) -> Self {
        Self { per_minute, left: f64::from(per_minute.get()), refilled_at: now }
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// When the bucket is empty; the value is the time until one unit is available.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.check(now)?;
        self.left -= 1.0;
        Ok(())
    }

    /// Checks that one unit is available, without taking it.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn check(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        // The tolerance absorbs rounding errors of the refills.
        if self.left > 1.0 - 1e-6 { Ok(()) } else { Err(self.time_for(1.0 - self.left)) }
    }

    /// Takes `used` units, even if fewer are left.
    pub fn spend(&mut self, used: u32, now: Instant) {
        self.refill(now);
        self.left -= f64::from(used);
    }

    /// Whether both have the same limit.
    pub(super) fn has_same_limit(&self, other: &Self) -> bool {
        self.per_minute == other.per_minute
    }

    /// Limit, remaining units and reset time, for response headers.
    #[must_use]
    pub fn status(&mut self, now: Instant) -> RateLimitStatus {
        self.refill(now);
        let limit = self.per_minute.get();
        let reset = self.time_for(f64::from(limit) - self.left);
        RateLimitStatus { limit, remaining: whole(self.left), reset }
    }

    fn refill(&mut self, now: Instant) {
        let max = f64::from(self.per_minute.get());
        let since = now.saturating_duration_since(self.refilled_at);
        self.left = (self.left + max * since.as_secs_f64() / MINUTE.as_secs_f64()).min(max);
        self.refilled_at = now;
    }

    fn time_for(&self, missing: f64) -> Duration {
        MINUTE.mul_f64(missing.max(0.0) / f64::from(self.per_minute.get()))
    }
}

/// Whole units of `left`, which never exceeds the `u32` limit.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what a u32 holds")]
fn whole(left: f64) -> u32 {
    (left + 1e-6).clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_minute(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn a_full_bucket_allows_a_burst_and_then_an_even_rate() {
        let begun = Instant::now();
        let mut bucket = TokenBucket::full(per_minute(6), begun);
        for _ in 0..6 {
            bucket.take(begun).unwrap();
        }
        let wait = bucket.take(begun).unwrap_err();
        assert!((9.9..=10.1).contains(&wait.as_secs_f64()), "{wait:?}");
        bucket.take(begun + Duration::from_secs(10)).unwrap();
        bucket.take(begun + Duration::from_secs(11)).unwrap_err();
        let status = bucket.status(begun + Duration::from_secs(600));
        assert_eq!(status, RateLimitStatus { limit: 6, remaining: 6, reset: Duration::ZERO });
    }

    #[test]
    fn overspending_delays_the_next_request() {
        let begun = Instant::now();
        let mut bucket = TokenBucket::full(per_minute(60), begun);
        bucket.spend(120, begun);
        assert_eq!(bucket.status(begun).remaining, 0);
        bucket.check(begun + Duration::from_secs(60)).unwrap_err();
        bucket.check(begun + Duration::from_secs(61)).unwrap();
    }
}
