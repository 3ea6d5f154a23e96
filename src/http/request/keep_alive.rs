//! `keep_alive`: how long a model stays loaded after a request, in the format of Ollama.

use std::time::Duration;

use serde_json::{Value, json};

use super::schema::{FieldType, Location, Modify, Schemas, custom};
use crate::{http::field_error::FieldError, job::KeepAlive};

/// Longest time, about 30 years; -1 means unlimited.
const MAX_SECONDS: f64 = 1e9;

/// Units of a duration, in seconds. A number without a unit is seconds.
const UNITS: [(&str, f64); 5] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];

/// A duration as text, such as `10m` or `1.5h`.
const PATTERN: &str = "^-?[0-9]{1,9}([.][0-9]{1,9})?(ms|s|m|h)?$";

/// Seconds, or a duration such as `10m`; below 0 means unlimited.
pub(crate) fn keep_alive() -> impl FieldType<Value = KeepAlive> {
    let about = "Seconds, at most 1000000000, or a number with a unit (`ms`, `s`, `m`, `h`). A negative number keeps the \
                 model loaded without a limit.";
    custom(read, schema).named("KeepAlive", about)
}

fn read(value: Value, at: &Location) -> Result<KeepAlive, FieldError> {
    let seconds = match &value {
        Value::Number(seconds) => seconds.as_f64(),
        Value::String(text) => seconds(text),
        other => return Err(at.wrong_type("a number of seconds or a duration", other)),
    };
    seconds.and_then(keep_alive_of).ok_or_else(|| {
        at.invalid(
            "not a duration of at most 1000000000 seconds; send seconds, \"90s\", \"10m\", \"24h\", or -1 for no limit",
        )
    })
}

fn schema(_: &mut Schemas) -> Value {
    let duration = json!({ "type": "string", "pattern": PATTERN, "examples": ["10m"] });
    json!({ "oneOf": [{ "type": "number" }, duration] })
}

fn keep_alive_of(seconds: f64) -> Option<KeepAlive> {
    if seconds < 0.0 {
        return Some(KeepAlive::Forever);
    }
    let is_short = seconds <= MAX_SECONDS;
    Duration::try_from_secs_f64(seconds).ok().filter(|_| is_short).map(KeepAlive::For)
}

fn seconds(text: &str) -> Option<f64> {
    let (number, unit) =
        UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |text: &str| (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let is_decimal = is_digits(whole.strip_prefix('-').unwrap_or(whole)) && is_digits(fraction);
    number.parse().ok().filter(|_| is_decimal).map(|number: f64| number * unit)
}
