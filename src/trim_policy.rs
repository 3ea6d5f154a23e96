//! When unused device memory is freed, and how much of it is kept.
//!
//! Freeing memory costs little, but allocating it again costs a request some milliseconds. On a shared device it should be freed
//! after every request; on a dedicated device never. The policy is a setting, and a pure function of the memory held and of the
//! idle time. The owner of the pool applies it.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Millis};

/// When to trim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrimWhen {
    /// After every request.
    Always,
    /// After a request, if more than this is held.
    Above(Bytes),
    /// After this time without a request.
    Idle(Millis),
    /// Never after a request; only when memory runs short, or on `POST /admin/trim`.
    Never,
}

/// When to trim, and how much to keep. Written as `always`, `above=<bytes>`, `idle=<ms>` or `never`, optionally followed by
/// `,keep=<bytes>`; `always` is the default.
///
/// ```
/// # use eka::{trim_policy::TrimPolicy, units::Bytes};
/// # use std::time::Duration;
/// let policy: TrimPolicy = "above=2GiB,keep=512MiB".parse().unwrap();
/// assert_eq!(policy.due(Bytes::mib(1000), Duration::ZERO), None);
/// assert_eq!(policy.due(Bytes::mib(3000), Duration::ZERO), Some(Bytes::mib(512)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrimPolicy {
    /// When to trim.
    pub when: TrimWhen,
    /// Memory that the pool keeps, including memory in use.
    pub keep: Bytes,
}

impl Default for TrimPolicy {
    fn default() -> Self {
        Self { when: TrimWhen::Always, keep: Bytes(0) }
    }
}

impl TrimPolicy {
    /// The size to trim the pool to now, after `idle` without a request and with `held` bytes in the pool; `None` if no trim is
    /// due.
    #[must_use]
    pub fn due(&self, held: Bytes, idle: Duration) -> Option<Bytes> {
        let is_due = match self.when {
            TrimWhen::Always => true,
            TrimWhen::Above(max) => held > max,
            TrimWhen::Idle(min) => idle >= Duration::from(min),
            TrimWhen::Never => false,
        };
        (is_due && held > self.keep).then_some(self.keep)
    }

    /// Idle time after which a trim becomes due; `None` if idle time does not matter.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        match self.when {
            TrimWhen::Idle(min) => Some(min.into()),
            TrimWhen::Always | TrimWhen::Above(_) | TrimWhen::Never => None,
        }
    }
}

impl fmt::Display for TrimPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.when {
            TrimWhen::Always => write!(f, "always")?,
            TrimWhen::Above(max) => write!(f, "above={}", max.0)?,
            TrimWhen::Idle(min) => write!(f, "idle={}", min.0)?,
            TrimWhen::Never => write!(f, "never")?,
        }
        if self.keep == Bytes(0) { Ok(()) } else { write!(f, ",keep={}", self.keep.0) }
    }
}

/// Why a text is not a trim policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrimPolicyError {
    /// An unknown word.
    #[error(
        "invalid trim policy {word:?}; expected always, above=<bytes>, idle=<milliseconds> or never, optionally \
         followed by ,keep=<bytes>"
    )]
    Word {
        /// The word.
        word: String,
    },
    /// Two conflicting words.
    #[error("{first:?} and {second:?} cannot be combined; give one of always, above, idle and never")]
    Twice {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// An invalid size.
    #[error(
        "invalid size {value:?} in {word:?}; expected bytes, or a number with KiB, MiB or GiB, as in keep=512MiB"
    )]
    Size {
        /// The value.
        value: String,
        /// The word with the value.
        word: String,
    },
    /// An invalid time.
    #[error("invalid duration {value:?} in {word:?}; expected whole milliseconds, as in idle=5000")]
    Time {
        /// The value.
        value: String,
        /// The word with the value.
        word: String,
    },
}

impl FromStr for TrimPolicy {
    type Err = TrimPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut when, mut keep) = (None, None);
        for word in text.split(',').map(str::trim) {
            let parsed = match word.split_once('=') {
                None if word == "always" => TrimWhen::Always,
                None if word == "never" => TrimWhen::Never,
                Some(("above", value)) => TrimWhen::Above(size(value, word)?),
                Some(("idle", value)) => TrimWhen::Idle(time(value, word)?),
                Some(("keep", value)) if keep.is_none() => {
                    keep = Some(size(value, word)?);
                    continue;
                }
                _ => return Err(TrimPolicyError::Word { word: word.into() }),
            };
            if let Some((first, _)) = when.replace((word, parsed)) {
                return Err(TrimPolicyError::Twice { first: first.into(), second: word.into() });
            }
        }
        let (_, when) = when.ok_or_else(|| TrimPolicyError::Word { word: text.into() })?;
        Ok(Self { when, keep: keep.unwrap_or(Bytes(0)) })
    }
}

fn size(value: &str, word: &str) -> Result<Bytes, TrimPolicyError> {
    let unreadable = || TrimPolicyError::Size { value: value.into(), word: word.into() };
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(unreadable()),
    };
    let number: u64 = number.parse().map_err(|_| unreadable())?;
    number.checked_mul(1 << shift).map(Bytes).ok_or_else(unreadable)
}

fn time(value: &str, word: &str) -> Result<Millis, TrimPolicyError> {
    let unreadable = |_| TrimPolicyError::Time { value: value.into(), word: word.into() };
    value.strip_suffix("ms").unwrap_or(value).trim_end().parse().map(Millis).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(text: &str) -> TrimPolicy {
        text.parse().unwrap()
    }

    #[test]
    fn every_spelling_of_a_policy_is_parsed() {
        let plain = |when| TrimPolicy { when, keep: Bytes(0) };
        assert_eq!(policy("always"), TrimPolicy::default());
        assert_eq!(policy("never"), plain(TrimWhen::Never));
        assert_eq!(policy("above=1048576"), plain(TrimWhen::Above(Bytes::mib(1))));
        assert_eq!(policy("idle=500"), plain(TrimWhen::Idle(Millis(500))));
        assert_eq!(policy("idle=500 ms"), policy("idle=500ms"));
        let kept = TrimPolicy { when: TrimWhen::Above(Bytes::mib(2048)), keep: Bytes::mib(64) };
        assert_eq!(policy("above=2GiB, keep=64 MiB"), kept);
        assert_eq!(policy("keep=65536KiB,above=2048MiB"), kept);
        assert_eq!(kept.to_string(), "above=2147483648,keep=67108864");
    }

    #[test]
    fn an_invalid_policy_is_refused_with_the_valid_ones() {
        let refused = |text: &str| text.parse::<TrimPolicy>().unwrap_err().to_string();
        for text in
            ["", "sometimes", "always=1", "above", "keep=1GiB", "never,,keep=1", "never,keep=1,keep=2"]
        {
            assert!(refused(text).contains("; expected always, above=<bytes>"), "{text}");
        }
        for text in ["above=", "above=x", "above=1GB", "always,keep=-1", "above=99999999999GiB"] {
            assert!(refused(text).contains("; expected bytes, or a number with KiB"), "{text}");
        }
        assert!(
            refused("idle=5s").contains(r#"invalid duration "5s" in "idle=5s"; expected whole milliseconds"#)
        );
        assert!(refused("always,never").contains(r#""always" and "never" cannot be combined"#));
    }

    #[test]
    fn a_trim_is_due_by_held_memory_or_idle_time() {
        let due = |text: &str, held, idle| policy(text).due(Bytes(held), Duration::from_millis(idle));
        assert_eq!(due("always", 1, 0), Some(Bytes(0)));
        assert_eq!(due("always", 0, 0), None, "there is nothing to give back");
        assert_eq!(due("always,keep=100", 100, 0), None);
        assert_eq!(due("always,keep=100", 101, 0), Some(Bytes(100)));
        assert_eq!(due("above=100", 100, u64::MAX), None);
        assert_eq!(due("above=100", 101, 0), Some(Bytes(0)));
        assert_eq!(due("idle=50", 1, 49), None);
        assert_eq!(due("idle=50", 1, 50), Some(Bytes(0)));
        assert_eq!(due("never", u64::MAX, u64::MAX), None);
        assert_eq!(policy("idle=50").wait(), Some(Duration::from_millis(50)));
        assert_eq!(policy("always").wait(), None);
    }

    proptest! {
        #[test]
        fn a_policy_survives_display_and_parse(which in 0u8..4, n in any::<u64>(), keep in any::<u64>()) {
            let when = match which {
                0 => TrimWhen::Always,
                1 => TrimWhen::Above(Bytes(n)),
                2 => TrimWhen::Idle(Millis(n)),
                _ => TrimWhen::Never,
            };
            let policy = TrimPolicy { when, keep: Bytes(keep) };
            prop_assert_eq!(policy.to_string().parse(), Ok(policy));
        }

        #[test]
        fn a_trim_never_asks_for_more_than_is_held(
            held in any::<u64>(), keep in any::<u64>(), max in any::<u64>(), idle in 0u64..100,
        ) {
            for when in [TrimWhen::Always, TrimWhen::Above(Bytes(max)), TrimWhen::Idle(Millis(50))] {
                let policy = TrimPolicy { when, keep: Bytes(keep) };
                if let Some(left) = policy.due(Bytes(held), Duration::from_millis(idle)) {
                    prop_assert!(left < Bytes(held));
                }
            }
        }
    }
}
