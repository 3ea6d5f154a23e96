//! Whose kept prompts a job may begin with.

use serde::{Deserialize, Serialize};

/// Sets kept prompts apart: a job begins with those of its own salt alone. It is a digest of whoever asks and of what the request
/// calls a salt, so that neither is in a worker's memory. The default is that of a server without keys and a request without a
/// salt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheSalt(pub [u8; 32]);
