//! The adapters that a job uses, and what keeps its caches apart.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cache_salt::CacheSalt;

/// An adapter of a job's model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobAdapter {
    /// Its name: that of its directory beside the model.
    pub name: String,
    /// SHA-256 of its manifest. A worker refuses an adapter with another one, so that no adapter is used in place of one that
    /// was replaced.
    pub hash: [u8; 32],
    /// Factor of what it adds; 1 as it was trained.
    pub weight: f32,
}

/// Identifies a choice of adapters with their weights. The default means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdapterKey([u8; 32]);

impl AdapterKey {
    /// No adapters.
    pub const NONE: Self = Self([0; 32]);

    /// The key of `adapters`.
    #[must_use]
    pub fn of(adapters: &[JobAdapter]) -> Self {
        if adapters.is_empty() {
            return Self::default();
        }
        let mut sum = Sha256::new();
        for JobAdapter { hash, weight, .. } in adapters {
            sum.update(hash);
            sum.update(weight.to_le_bytes());
        }
        Self(sum.finalize().into())
    }

    /// The identity of a model with these adapters, whose own is `model`.
    #[must_use]
    pub fn identity(self, model: &str) -> String {
        if self == Self::default() {
            return model.to_owned();
        }
        let digest = Sha256::new().chain_update(model).chain_update(self.0).finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What two jobs must have in common to share a prefix cache entry. Keys and values depend on the adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CacheScope {
    /// Separates clients.
    pub salt: CacheSalt,
    /// Separates adapters.
    pub adapters: AdapterKey,
}

/// Which jobs may use a restored prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptScope {
    /// Jobs with this salt; `None` means any.
    pub salt: Option<CacheSalt>,
    /// Jobs with these adapters.
    pub adapters: AdapterKey,
}

impl PromptScope {
    /// Whether jobs of `scope` may use it.
    #[must_use]
    pub fn includes(self, scope: CacheScope) -> bool {
        self.adapters == scope.adapters && self.salt.is_none_or(|salt| salt == scope.salt)
    }
}

impl From<CacheSalt> for CacheScope {
    /// Of jobs without adapters.
    fn from(salt: CacheSalt) -> Self {
        Self { salt, adapters: AdapterKey::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_content_weight_and_order_and_not_on_names() {
        let adapter =
            |name: &str, hash: u8, weight| JobAdapter { name: name.into(), hash: [hash; 32], weight };
        let key = |adapters: &[JobAdapter]| AdapterKey::of(adapters);
        let one = key(&[adapter("a", 1, 1.0)]);
        assert_eq!(one, key(&[adapter("b", 1, 1.0)]));
        assert_ne!(one, key(&[adapter("a", 2, 1.0)]));
        assert_ne!(one, key(&[adapter("a", 1, 0.5)]));
        assert_ne!(one, key(&[]));
        assert_eq!(key(&[]).identity("ab"), "ab");
        assert_eq!(one.identity("ab").len(), 64);
    }
}
