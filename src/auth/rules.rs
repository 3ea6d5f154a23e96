//! Who may send requests: API keys, allowed origins and hosts, rate limits.

use std::num::NonZeroU32;

use super::api_keys::{Keys, KeysError};
use crate::config::{Config, Hosts, Origins};

/// The access rules of one configuration.
#[derive(Debug, Default)]
pub struct Rules {
    /// API keys; with none, no request needs a key.
    pub keys: Keys,
    /// Whether `/metrics` is open without a key.
    pub open_metrics: bool,
    /// Origins that CORS allows.
    pub origins: Origins,
    /// Allowed `Host` names, in addition to those of private networks.
    pub hosts: Hosts,
    /// Rate limit per client address; `None` means unlimited.
    pub requests_per_minute_per_ip: Option<NonZeroU32>,
}

impl Rules {
    /// Reads the rules from the settings and the file of API keys.
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

    /// Whether CORS allows this origin.
    #[must_use]
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins == Origins::Any || self.lists_origin(origin)
    }

    /// Whether this origin is listed explicitly, not by `*`.
    #[must_use]
    pub fn lists_origin(&self, origin: &str) -> bool {
        match &self.origins {
            Origins::Any => false,
            Origins::List(these) => these.iter().any(|one| one.eq_ignore_ascii_case(origin)),
        }
    }
}
