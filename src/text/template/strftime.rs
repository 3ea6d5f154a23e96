//! `strftime_now` of chat templates, in UTC.
//!
//! `transformers` uses the local time of the machine. A server's local time is an accident; the day, which is what
//! templates ask for, is better the same everywhere.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats `now` as C's `strftime` would in the C locale; what it does not know stays as it stands.
pub(super) fn format(now: SystemTime, format: &str) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let moment = Moment { date: Date::from_days(days), days, second_of_day };
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        match (c, rest.clone().next()) {
            ('%', Some(directive)) => {
                rest.next();
                moment.push(directive, &mut rest, &mut text);
            }
            _ => text.push(c),
        }
    }
    text
}

struct Moment {
    date: Date,
    /// Since 1970-01-01, a Thursday.
    days: u64,
    second_of_day: u64,
}

impl Moment {
    fn push(&self, directive: char, rest: &mut std::str::Chars<'_>, text: &mut String) {
        // glibc's `%-d`: the number without its leading zeros.
        if directive == '-'
            && let Some(directive) = rest.next()
        {
            let number = self.directive(directive);
            let bare = number.trim_start_matches(['0', ' ']);
            text.push_str(if bare.is_empty() { "0" } else { bare });
        } else {
            text.push_str(&self.directive(directive));
        }
    }

    fn directive(&self, directive: char) -> String {
        let Date { year, month, day } = self.date;
        let (hour, minute, second) =
            (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let month_name = name(&MONTHS, month - 1);
        let day_name = name(&DAYS, (self.days + 3) % 7);
        match directive {
            'Y' => format!("{year}"),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            '%' => "%".to_owned(),
            unknown => format!("%{unknown}"),
        }
    }
}

fn name(names: &[&'static str], n: u64) -> &'static str {
    usize::try_from(n).map_or("", |n| names[n])
}

/// A day of the Gregorian calendar, month and day from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    /// The day that many days after 1970-01-01, counting years from March so that the leap day comes last
    /// (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    fn from_days(days: u64) -> Self {
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        Self { year: year_of_era + era * 400 + u64::from(month <= 2), month, day }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn numbers_lose_their_zeros_on_request_and_the_unknown_stays() {
        assert_eq!(at(0, "%-d.%-m.%y %-H|%Q|100%"), "1.1.70 0|%Q|100%");
    }
}
