//! Which cached prompts a request may reuse: those of its API key and of vLLM's `cache_salt`.
//!
//! An answer contains the number of its prompt's tokens that were cached. From that number, a client that guesses prompts
//! could read other clients' prompts token by token. So only requests with the same key reuse a cached prompt, unless
//! `engine.prefix_cache_shared` is set because the keys trust each other; and only requests with the same salt.
//!
//! | keys | `prefix_cache_shared` | `cache_salt` | reuses prompts of |
//! |---|---|---|---|
//! | none | either | none | all requests without a salt |
//! | some | `false` | none | the same key without a salt |
//! | some | `true` | none | all keys without a salt |
//! | as above | as above | sent | the requests of the line above that sent the same salt |
//!
//! The worker receives a digest of both, so its memory holds neither names nor salts.

use sha2::{Digest, Sha256};

use super::schema::{FieldType, string};
use crate::{http::state::AppState, job::CacheSalt};

/// Longest salt in bytes: vLLM recommends 43 characters.
const MAX_BYTES: usize = 256;

/// The type of the field: a short string that is not empty.
pub(crate) fn cache_salt() -> impl FieldType<Value = String> {
    string().bytes(1..=MAX_BYTES)
}

/// The digest of a key and a salt.
pub(crate) fn digest(state: &AppState, key: Option<&str>, salt: Option<&str>) -> CacheSalt {
    digest_of(key.filter(|_| !state.settings.prefix_cache_shared), salt)
}

fn digest_of(key: Option<&str>, salt: Option<&str>) -> CacheSalt {
    if key.is_none() && salt.is_none() {
        return CacheSalt::default();
    }
    let mut digest = Sha256::new();
    for part in [key, salt] {
        // The length comes first, so that different pairs never give the same bytes.
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
    fn every_key_and_every_salt_has_a_different_digest() {
        let texts = [None, Some("a"), Some("b"), Some("ab"), Some("")];
        let pairs = texts.iter().flat_map(|key| texts.map(|salt| (*key, salt)));
        let digests: HashSet<_> = pairs.map(|(key, salt)| digest_of(key, salt)).collect();
        assert_eq!(digests.len(), texts.len() * texts.len());
        assert!(digests.contains(&CacheSalt::default()), "no key and no salt");
    }
}
