//! Cached verdicts on constraints, by content.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::{constraint::ConstraintError, job::Constraint};

/// Maximum number of cached verdicts, of about a hundred bytes each.
const MAX_VERDICTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// An exceeded limit may be due to a busy machine, so such a verdict expires.
const LIMIT_VERDICT_LIFETIME: Duration = Duration::from_secs(60);

/// Digest of a constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConstraintKey([u8; 32]);

impl ConstraintKey {
    pub(super) fn of(constraint: &Constraint) -> Self {
        let (kind, text) = match constraint {
            Constraint::Schema(text) => ("schema", text),
            Constraint::Lark(text) => ("lark", text),
            Constraint::Regex(text) => ("regex", text),
        };
        Self(Sha256::new().chain_update(kind).chain_update([0]).chain_update(text).finalize().into())
    }
}

/// A verdict, and when it expires.
#[derive(Debug)]
struct Cached {
    verdict: Result<(), ConstraintError>,
    until: Option<Instant>,
}

/// The most recently used verdicts.
#[derive(Debug)]
pub(super) struct Verdicts(Mutex<LruCache<ConstraintKey, Cached>>);

impl Default for Verdicts {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_VERDICTS)))
    }
}

impl Verdicts {
    pub(super) fn get(&self, key: &ConstraintKey) -> Option<Result<(), ConstraintError>> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Cached { verdict, until } = cache.get(key)?;
        until.is_none_or(|until| Instant::now() < until).then(|| verdict.clone())
    }

    pub(super) fn keep(&self, key: ConstraintKey, verdict: Result<(), ConstraintError>) {
        let is_limit = verdict.as_ref().is_err_and(ConstraintError::is_limit);
        let until = is_limit.then(|| Instant::now() + LIMIT_VERDICT_LIFETIME);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(key, Cached { verdict, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_cached_by_kind_and_content() {
        let verdicts = Verdicts::default();
        let key = |constraint| ConstraintKey::of(&constraint);
        verdicts.keep(key(Constraint::Regex("a".into())), Ok(()));
        assert_eq!(verdicts.get(&key(Constraint::Regex("a".into()))), Some(Ok(())));
        assert_eq!(verdicts.get(&key(Constraint::Lark("a".into()))), None);
        assert_eq!(verdicts.get(&key(Constraint::Regex("b".into()))), None);
    }

    #[test]
    fn the_number_of_cached_verdicts_is_limited() {
        let verdicts = Verdicts::default();
        let key = |n: usize| ConstraintKey::of(&Constraint::Regex(n.to_string()));
        (0..=MAX_VERDICTS.get()).for_each(|n| verdicts.keep(key(n), Ok(())));
        assert_eq!((verdicts.get(&key(0)), verdicts.get(&key(MAX_VERDICTS.get()))), (None, Some(Ok(()))));
    }
}
