//! Separates the prefix caches of different clients.

use serde::{Deserialize, Serialize};

/// A job uses only prefix cache entries of its own salt. It is a digest of the API key's name and of the request's `cache_salt`,
/// so that a worker holds neither in memory. The default means no key and no salt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheSalt(pub [u8; 32]);
