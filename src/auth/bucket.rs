//! Allowances that refill evenly: a minute's worth at most, so that a client that paused may catch up.
//!
//! Time is passed in, so that tests need not wait.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

const MINUTE: Duration = Duration::from_secs(60);

/// Addresses that are remembered at once, in each of two generations: about 4 MB for both.
const MOST_ADDRESSES: usize = 1 << 15;

/// One allowance.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_minute: NonZeroU32,
    /// Below zero after an answer that was longer than what was left.
    left: f64,
    seen: Instant,
}

/// How an allowance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// All of it, a minute's worth.
    pub limit: u32,
    /// What is left of it.
    pub remaining: u32,
    /// Until all of it is there again.
    pub reset: Duration,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn full(per_minute: NonZeroU32, now: Instant) -> Self {
        Self { per_minute, left: f64::from(per_minute.get()), seen: now }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When nothing is left: how long until there is.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.check(now)?;
        self.left -= 1.0;
        Ok(())
    }

    /// Whether one could be taken.
    ///
    /// # Errors
    /// When not: how long until it can.
    pub fn check(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        // A hair less than one is one: sums of fractions are not exact.
        if self.left > 1.0 - 1e-6 { Ok(()) } else { Err(self.time_for(1.0 - self.left)) }
    }

    /// Takes what was used, whether or not it was left.
    pub fn spend(&mut self, used: u32, now: Instant) {
        self.refill(now);
        self.left -= f64::from(used);
    }

    /// Whether both refill alike.
    pub(super) fn has_limit_of(&self, other: &Self) -> bool {
        self.per_minute == other.per_minute
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&mut self, now: Instant) -> Standing {
        self.refill(now);
        let limit = self.per_minute.get();
        let reset = self.time_for(f64::from(limit) - self.left);
        Standing { limit, remaining: whole(self.left), reset }
    }

    fn refill(&mut self, now: Instant) {
        let most = f64::from(self.per_minute.get());
        let since = now.saturating_duration_since(self.seen);
        self.left = (self.left + most * since.as_secs_f64() / MINUTE.as_secs_f64()).min(most);
        self.seen = now;
    }

    fn time_for(&self, missing: f64) -> Duration {
        MINUTE.mul_f64(missing.max(0.0) / f64::from(self.per_minute.get()))
    }
}

/// Whole units of `left`, which is at most the `u32` it was filled to.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what a u32 holds")]
fn whole(left: f64) -> u32 {
    (left + 1e-6).clamp(0.0, f64::from(u32::MAX)) as u32
}

/// An allowance for each address, in bounded memory.
///
/// Two generations: who was not seen for a minute has a full allowance again and can be forgotten, so the older one is
/// dropped whole. When more addresses come in a minute than are remembered, it is dropped early: some get more
/// than they should, and nobody less.
#[derive(Debug)]
pub(super) struct Crowd {
    recent: HashMap<IpAddr, Bucket>,
    older: HashMap<IpAddr, Bucket>,
    begun: Instant,
}

impl Crowd {
    pub(super) fn new(now: Instant) -> Self {
        Self { recent: HashMap::new(), older: HashMap::new(), begun: now }
    }

    /// Takes one from the allowance of `address`.
    pub(super) fn take(
        &mut self,
        address: IpAddr,
        per_minute: NonZeroU32,
        now: Instant,
    ) -> Result<(), Duration> {
        if self.recent.len() >= MOST_ADDRESSES || now.saturating_duration_since(self.begun) >= MINUTE {
            self.older = std::mem::take(&mut self.recent);
            self.begun = now;
        }
        let address = network(address);
        let known = self.older.get(&address).filter(|bucket| bucket.per_minute == per_minute).copied();
        let bucket =
            self.recent.entry(address).or_insert_with(|| known.unwrap_or(Bucket::full(per_minute, now)));
        if bucket.per_minute != per_minute {
            *bucket = Bucket::full(per_minute, now);
        }
        bucket.take(now)
    }

    pub(super) fn standing(&mut self, address: IpAddr, now: Instant) -> Option<Standing> {
        self.recent.get_mut(&network(address)).map(|bucket| bucket.standing(now))
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn per_minute(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn a_minutes_worth_can_be_taken_at_once_and_then_one_by_one() {
        let begun = Instant::now();
        let mut bucket = Bucket::full(per_minute(6), begun);
        for _ in 0..6 {
            bucket.take(begun).unwrap();
        }
        let wait = bucket.take(begun).unwrap_err();
        assert!((9.9..=10.1).contains(&wait.as_secs_f64()), "{wait:?}");
        bucket.take(begun + Duration::from_secs(10)).unwrap();
        bucket.take(begun + Duration::from_secs(11)).unwrap_err();
        let standing = bucket.standing(begun + Duration::from_secs(600));
        assert_eq!(standing, Standing { limit: 6, remaining: 6, reset: Duration::ZERO });
    }

    #[test]
    fn what_was_used_beyond_the_allowance_is_waited_for() {
        let begun = Instant::now();
        let mut bucket = Bucket::full(per_minute(60), begun);
        bucket.spend(120, begun);
        assert_eq!(bucket.standing(begun).remaining, 0);
        bucket.check(begun + Duration::from_secs(60)).unwrap_err();
        bucket.check(begun + Duration::from_secs(61)).unwrap();
    }

    #[test]
    fn a_crowd_of_any_size_is_remembered_in_bounded_memory() {
        let begun = Instant::now();
        let mut crowd = Crowd::new(begun);
        for n in 0..300_000 {
            crowd.take(Ipv4Addr::from_bits(n).into(), per_minute(1), begun).unwrap();
        }
        assert!(crowd.recent.len() <= MOST_ADDRESSES && crowd.older.len() <= MOST_ADDRESSES);
        crowd.take(Ipv4Addr::from_bits(299_999).into(), per_minute(1), begun).unwrap_err();
    }

    #[test]
    fn addresses_of_one_network_share_an_allowance_and_others_do_not() {
        let now = Instant::now();
        let mut crowd = Crowd::new(now);
        let mut take = |address: &str| crowd.take(address.parse().unwrap(), per_minute(1), now);
        take("2001:db8::1").unwrap();
        take("2001:db8::2").unwrap_err();
        take("2001:db8:0:1::1").unwrap();
        take("192.0.2.1").unwrap();
        take("::ffff:192.0.2.1").unwrap_err();
        take("192.0.2.2").unwrap();
    }

    #[test]
    fn who_is_forgotten_had_a_full_allowance() {
        let begun = Instant::now();
        let mut crowd = Crowd::new(begun);
        let address = Ipv4Addr::LOCALHOST.into();
        for second in 0..300 {
            let now = begun + Duration::from_secs(second);
            let is_due = second % 30 == 0;
            assert_eq!(crowd.take(address, per_minute(2), now).is_ok(), is_due || second == 1, "{second}");
        }
    }
}
