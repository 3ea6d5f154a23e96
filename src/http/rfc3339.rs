//! Times as text.

use jiff::Timestamp;

/// Seconds since 1970 as RFC 3339 writes them.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or_default();
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_utc_and_any_number_has_one() {
        assert_eq!(rfc3339(1_764_500_000), "2025-11-30T10:53:20Z");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
