//! Rate limiting by client address, in bounded memory.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::token_bucket::{MINUTE, RateLimitStatus, TokenBucket};

/// Maximum number of addresses in each of the two generations; both together take about 8 MB.
const MAX_ADDRESSES: usize = 1 << 15;

/// One [`TokenBucket`] per client address.
///
/// The map has two generations. An address that sent nothing for a minute has a full bucket again, so the older generation
/// is dropped whole. If more than [`MAX_ADDRESSES`] addresses arrive within a minute it is dropped early: some clients then
/// get more requests than the limit, never fewer.
#[derive(Debug)]
pub(super) struct PerIpLimiter {
    recent: HashMap<IpAddr, TokenBucket>,
    older: HashMap<IpAddr, TokenBucket>,
    started_at: Instant,
}

impl PerIpLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { recent: HashMap::new(), older: HashMap::new(), started_at: now }
    }

    /// Takes one request from the bucket of `address`.
    ///
    /// # Errors
    /// As [`TokenBucket::take`].
    pub(super) fn take(
        &mut self,
        address: IpAddr,
        per_minute: NonZeroU32,
        now: Instant,
    ) -> Result<(), Duration> {
        if self.recent.len() >= MAX_ADDRESSES || now.saturating_duration_since(self.started_at) >= MINUTE {
            self.older = std::mem::take(&mut self.recent);
            self.started_at = now;
        }
        let address = network(address);
        let known = self.older.get(&address).copied();
        let full = TokenBucket::full(per_minute, now);
        let bucket = self.recent.entry(address).or_insert_with(|| known.unwrap_or(full));
        if !bucket.has_same_limit(&full) {
            *bucket = full;
        }
        bucket.take(now)
    }

    /// The limit's state, or `None` for an address that sent nothing recently.
    pub(super) fn status(&mut self, address: IpAddr, now: Instant) -> Option<RateLimitStatus> {
        let network = network(address);
        let bucket = self.recent.get_mut(&network).or_else(|| self.older.get_mut(&network));
        bucket.map(|bucket| bucket.status(now))
    }
}

/// The network that counts as one client: an IPv6 client usually owns a whole /64.
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
    fn memory_is_bounded_for_any_number_of_addresses() {
        let begun = Instant::now();
        let mut limiter = PerIpLimiter::new(begun);
        for n in 0..300_000 {
            limiter.take(Ipv4Addr::from_bits(n).into(), per_minute(1), begun).unwrap();
        }
        assert!(limiter.recent.len() <= MAX_ADDRESSES && limiter.older.len() <= MAX_ADDRESSES);
        limiter.take(Ipv4Addr::from_bits(299_999).into(), per_minute(1), begun).unwrap_err();
    }

    #[test]
    fn addresses_of_one_network_share_a_limit() {
        let now = Instant::now();
        let mut limiter = PerIpLimiter::new(now);
        let mut take = |address: &str| limiter.take(address.parse().unwrap(), per_minute(1), now);
        take("2001:db8::1").unwrap();
        take("2001:db8::2").unwrap_err();
        take("2001:db8:0:1::1").unwrap();
        take("192.0.2.1").unwrap();
        take("::ffff:192.0.2.1").unwrap_err();
        take("192.0.2.2").unwrap();
    }

    #[test]
    fn a_forgotten_address_had_a_full_bucket() {
        let begun = Instant::now();
        let mut limiter = PerIpLimiter::new(begun);
        let address = Ipv4Addr::LOCALHOST.into();
        for second in 0..300 {
            let now = begun + Duration::from_secs(second);
            let is_due = second % 30 == 0;
            assert_eq!(limiter.take(address, per_minute(2), now).is_ok(), is_due || second == 1, "{second}");
        }
    }
}
