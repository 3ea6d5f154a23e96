//! Who may come in, and how often: API keys, allowances, origins of pages.
//!
//! Nothing here knows HTTP. The rules are plain data that can be replaced while requests come in; what was let in by
//! the old ones stays in.

mod bucket;
mod keys;

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

pub use self::{
    bucket::{Bucket, Standing},
    keys::{Key, Keys, KeysError, Spent},
};
use crate::config::{Config, Hosts, Origins};

/// What decides who may come in.
#[derive(Debug, Default)]
pub struct Rules {
    /// Without any, everybody may.
    pub keys: Keys,
    /// `/metrics` needs no key.
    pub open_metrics: bool,
    /// Pages that may ask.
    pub origins: Origins,
    /// Names that the server may be called by, besides those of private networks.
    pub hosts: Hosts,
    /// From one address.
    pub requests_per_minute_per_ip: Option<NonZeroU32>,
}

impl Rules {
    /// The rules of the settings, with the keys of their file.
    ///
    /// # Errors
    /// [`KeysError`] when the keys cannot be used.
    pub fn read(config: &Config) -> Result<Self, KeysError> {
        let Config { server, auth, cors, limits, .. } = config;
        let listed = auth.keys.as_ref().map(|secret| secret.0.as_str());
        Ok(Self {
            keys: Keys::read(auth.keys_file.as_deref(), listed)?,
            open_metrics: auth.open_metrics,
            origins: cors.origins.clone(),
            hosts: server.hosts.clone(),
            requests_per_minute_per_ip: limits.requests_per_minute_per_ip,
        })
    }

    /// Whether a page of this origin may ask.
    #[must_use]
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins == Origins::Any || self.lists_origin(origin)
    }

    /// Whether this origin is listed by its name.
    #[must_use]
    pub fn lists_origin(&self, origin: &str) -> bool {
        match &self.origins {
            Origins::Any => false,
            Origins::These(these) => these.iter().any(|one| one.eq_ignore_ascii_case(origin)),
        }
    }
}

/// The rules as they are now.
#[derive(Debug)]
pub struct Door {
    rules: RwLock<Arc<Rules>>,
    crowd: Mutex<bucket::Crowd>,
}

impl Default for Door {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl Door {
    /// A door that is kept by `rules`.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules: RwLock::new(Arc::new(rules)), crowd: Mutex::new(bucket::Crowd::new(Instant::now())) }
    }

    /// The rules as they are now.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps to `rules` from now on. Keys that stay go on with what is left of their allowances.
    pub fn replace(&self, mut rules: Rules) {
        rules.keys.take_over(&self.rules().keys);
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Takes one request from the allowance of an address.
    ///
    /// # Errors
    /// When nothing is left of it: how long until something is.
    pub fn enter(&self, rules: &Rules, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some(per_minute) = rules.requests_per_minute_per_ip else { return Ok(()) };
        self.crowd().take(address, per_minute, now)
    }

    /// How the allowance of an address stands, where there is one and it was used.
    #[must_use]
    pub fn standing(&self, rules: &Rules, address: IpAddr, now: Instant) -> Option<Standing> {
        rules.requests_per_minute_per_ip?;
        self.crowd().standing(address, now)
    }

    fn crowd(&self) -> MutexGuard<'_, bucket::Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
