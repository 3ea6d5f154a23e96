//! `strftime_now` of chat templates, in UTC.
//!
//! `transformers` uses the local time of the machine. A server's local time is arbitrary, and templates ask for the day,
//! which should be the same on every server.

use std::time::SystemTime;

use jiff::{
    Timestamp,
    fmt::strtime::{BrokenDownTime, Config},
    tz::TimeZone,
};

/// Formats `now` like C's `strftime` in the C locale; unknown directives stay.
pub(super) fn format(now: SystemTime, format: &str) -> String {
    let now = Timestamp::try_from(now).unwrap_or_default().to_zoned_datetime(TimeZone::UTC);
    let lenient = Config::new().lenient(true);
    BrokenDownTime::from(&now).to_string_with_config(&lenient, literal_q(format)).unwrap_or_default()
}

/// Escapes `%Q`, a directive of jiff but not of C.
fn literal_q(format: &str) -> String {
    let (mut text, mut rest) = (String::with_capacity(format.len()), format.chars());
    while let Some(c) = rest.next() {
        text.push(c);
        if c == '%'
            && let Some(directive) = rest.next()
        {
            text.push_str(if directive == 'Q' { "%" } else { "" });
            text.push(directive);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(seconds: u64, directives: &str) -> String {
        format(UNIX_EPOCH + Duration::from_secs(seconds), directives)
    }

    #[test]
    fn known_moments_come_out_right() {
        assert_eq!(at(0, "%A, %d %B %Y %H:%M:%S"), "Thursday, 01 January 1970 00:00:00");
        assert_eq!(at(951_827_696, "%a %d %b %Y %T"), "Tue 29 Feb 2000 12:34:56");
        assert_eq!(at(1_735_689_599, "%F %I:%M %p"), "2024-12-31 11:59 PM");
        assert_eq!(at(4_107_542_400, "%F"), "2100-03-01", "2100 has no leap day");
    }

    #[test]
    fn the_minus_flag_strips_zeros_and_unknown_directives_stay() {
        assert_eq!(at(0, "%-d.%-m.%y %-H|%Q|100%"), "1.1.70 0|%Q|100%");
    }
}
