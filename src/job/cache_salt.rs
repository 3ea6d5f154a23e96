//! Whose kept prompts a job may begin with.

use serde::{Deserialize, Serialize};

/// Sets kept prompts apart: a job begins with those of its own salt alone. It is a digest of the API key's name and of the
/// request's `cache_salt`, so that neither is in a worker's memory. The default means neither a key nor a salt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheSalt(pub [u8; 32]);
