//! Whose prompts a request may begin with: vLLM's `cache_salt`, and the key that the request came with.
//!
//! An answer says how many tokens of its prompt were cached. From that number, a client that tries out prompts could read
//! other clients' prompts token by token, so a prompt is kept for its own key alone, unless `engine.prefix_cache_shared`
//! says that the keys trust one another. Within that, prompts with a salt are shared only with requests that have the same
//! salt.
//!
//! | keys | `prefix_cache_shared` | `cache_salt` | begins with prompts of |
//! |---|---|---|---|
//! | none | either | none | everybody without a salt |
//! | some | `false` | none | the same key without a salt |
//! | some | `true` | none | all keys without a salt |
//! | as above | as above | given | those of the line above that gave the same salt |
//!
//! What travels is a digest of both, so that a worker's memory holds neither names nor salts.

use sha2::{Digest, Sha256};

use super::field_types::{StringType, string};
use crate::{http::state::AppState, job::CacheSalt};

/// Longest salt in bytes: vLLM recommends 43 characters.
const MAX_BYTES: usize = 256;

/// The type of the field: a short string that is not empty.
pub(crate) const fn cache_salt() -> StringType {
    string().bytes(1..=MAX_BYTES)
}

/// What sets the prompts of a key and a salt apart.
pub(crate) fn digest(state: &AppState, key: Option<&str>, salt: Option<&str>) -> CacheSalt {
    digest_of(key.filter(|_| !state.settings.prefix_cache_shared), salt)
}

fn digest_of(key: Option<&str>, salt: Option<&str>) -> CacheSalt {
    if key.is_none() && salt.is_none() {
        return CacheSalt::default();
    }
    let mut digest = Sha256::new();
    for part in [key, salt] {
        // With its length before it, so that no other two parts give the same bytes.
        digest.update([u8::from(part.is_some())]);
        digest.update(part.map_or(0, str::len).to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    CacheSalt(digest.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_key_and_every_salt_has_a_digest_of_its_own() {
        let texts = [None, Some("a"), Some("b"), Some("ab"), Some("")];
        let pairs = texts.iter().flat_map(|key| texts.map(|salt| (*key, salt)));
        let digests: HashSet<_> = pairs.map(|(key, salt)| digest_of(key, salt)).collect();
        assert_eq!(digests.len(), texts.len() * texts.len());
        assert!(digests.contains(&CacheSalt::default()), "that of no key and no salt");
    }
}
