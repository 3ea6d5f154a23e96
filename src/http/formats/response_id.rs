//! Ids of answers and of their parts, as OpenAI writes them: what it is of, then random letters and digits.
//!
//! Clients keep answers under their ids, so an id is never given twice, by another process or server neither.

use rand::distr::{Alphanumeric, SampleString};

/// 62^24 is 143 bits.
const LENGTH: usize = 24;

/// An id that nothing else has.
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
    fn ids_are_a_prefix_and_random_letters_and_digits_and_never_the_same() {
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
