//! Ids of answers, their parts and streams in OpenAI's format: a prefix, then random letters and digits.
//!
//! Clients store answers by id, so ids are unique across processes and servers, and cannot be guessed.

use rand::distr::{Alphanumeric, SampleString};

/// 62^24 is 143 bits.
const LENGTH: usize = 24;

/// A new id.
pub(crate) fn new(prefix: &str) -> String {
    let mut id = prefix.to_owned();
    Alphanumeric.append_string(&mut rand::rng(), &mut id, LENGTH);
    id
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_have_a_prefix_and_random_letters_and_digits_and_are_unique() {
        let ids: HashSet<String> = (0..10_000).map(|_| new("resp_")).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            let random = id.strip_prefix("resp_").unwrap();
            assert!(
                random.len() == LENGTH && random.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{id}"
            );
        }
    }
}
