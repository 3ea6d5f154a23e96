//! The rules in force. They can be replaced while requests arrive; requests that were admitted before are not affected.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::{per_ip_limiter::PerIpLimiter, rules::Rules, token_bucket::RateLimitStatus};

/// The current [`Rules`], replaceable at run time, and the per-address limiter.
#[derive(Debug)]
pub struct AccessControl {
    rules: RwLock<Arc<Rules>>,
    per_ip: Mutex<PerIpLimiter>,
}

impl Default for AccessControl {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl AccessControl {
    /// Access control by `rules`.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules: RwLock::new(Arc::new(rules)), per_ip: Mutex::new(PerIpLimiter::new(Instant::now())) }
    }

    /// The current rules.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the rules. Keys that remain keep the state of their rate limits.
    pub fn replace(&self, mut rules: Rules) {
        rules.keys.inherit_limits(&self.rules().keys);
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Counts one request from `address`.
    ///
    /// # Errors
    /// When the address exceeds its rate limit; the value is the time to wait.
    pub fn admit(&self, rules: &Rules, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some(per_minute) = rules.requests_per_minute_per_ip else { return Ok(()) };
        self.per_ip().take(address, per_minute, now)
    }

    /// The rate limit of `address`; `None` without a limit or recent requests.
    #[must_use]
    pub fn rate_limit_status(&self, rules: &Rules, address: IpAddr, now: Instant) -> Option<RateLimitStatus> {
        rules.requests_per_minute_per_ip?;
        self.per_ip().status(address, now)
    }

    fn per_ip(&self) -> MutexGuard<'_, PerIpLimiter> {
        self.per_ip.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
