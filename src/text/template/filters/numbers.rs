//! Filters that return numbers.

use minijinja::{Environment, Error, State, Value, value::ValueKind};

use super::{
    super::{
        arguments::Arguments,
        call_arguments::refuse,
        methods::is_space,
        register::add_filter,
        repr::{as_float, type_name},
        spec::{Spec, truncated},
    },
    values::defined,
};

/// Adds the filters of this module.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_filter(environment, "abs", abs);
    add_filter(environment, "int", int);
    add_filter(environment, "float", float);
    add_filter(environment, "round", round);
    add_filter(environment, "filesizeformat", file_size);
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

fn abs(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let value = defined(&given[0])?;
    if let Some(float) = as_float(value) {
        return Ok(Value::from(float.abs()));
    }
    if !is_number(value) {
        return Err(refuse(format!("abs: bad operand type {}", type_name(value))));
    }
    let size = i128::try_from(value.clone())?.checked_abs();
    size.map(Value::from).ok_or_else(|| refuse("abs: an integer is too large: eka has 128 bits"))
}

fn int(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("int", &["value", "default", "base"], 1, given)?;
    let value = arguments.value(0);
    let default = arguments.get(1).cloned().unwrap_or_else(|| Value::from(0));
    defined(&value)?;
    if let Some(float) = as_float(&value) {
        // Python's integers are not limited to 128 bits.
        return if float.abs() < 1e38 {
            Ok(truncated(&value))
        } else {
            Err(refuse("int: the float is too large"))
        };
    }
    if is_number(&value) {
        return Ok(Value::from(i128::try_from(value)?));
    }
    let Some(text) = value.as_str() else { return Ok(default) };
    let base = arguments.integer(2)?.and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    if let Some(number) = parse_integer(text, base)? {
        return Ok(Value::from(number));
    }
    // Jinja2's second try: the text may be a float.
    Ok(parse_float(text)
        .filter(|float| float.abs() < 1e38)
        .map_or(default, |float| truncated(&Value::from(float))))
}

/// `int(text, base)`: signs, white space around, underscores between digits, prefixes that fit the base.
fn parse_integer(text: &str, base: u32) -> Result<Option<i128>, Error> {
    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let (base, digits) = match (prefix.as_deref(), base) {
        (Some("0x"), 16 | 0) => (16, &digits[2..]),
        (Some("0o"), 8 | 0) => (8, &digits[2..]),
        (Some("0b"), 2 | 0) => (2, &digits[2..]),
        (_, 0) => (10, digits),
        _ => (base, digits),
    };
    let Some(digits) = without_underscores(digits) else { return Ok(None) };
    if !(2..=36).contains(&base) || !digits.chars().all(|c| c.is_digit(base)) {
        return Ok(None);
    }
    let number = i128::from_str_radix(&format!("{sign}{digits}"), base);
    number.map(Some).map_err(|_| refuse("int: an integer is too large: eka has 128 bits"))
}

/// Digits without the underscores between them.
fn without_underscores(digits: &str) -> Option<String> {
    let is_odd =
        digits.is_empty() || digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    (!is_odd).then(|| digits.replace('_', ""))
}

/// `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let digits = without_underscores(text.trim_matches(is_space))?;
    let bare = digits.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let is_word = matches!(bare.as_str(), "nan" | "inf" | "infinity");
    let is_number = bare.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (is_word || is_number).then(|| digits.parse().ok()).flatten()
}

fn float(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("float", &["value", "default"], 1, given)?;
    let value = arguments.value(0);
    defined(&value)?;
    let default = || arguments.get(1).cloned().unwrap_or_else(|| Value::from(0.0));
    if is_number(&value) {
        let float = if value.kind() == ValueKind::Bool {
            f64::from(u8::from(value.is_true()))
        } else {
            f64::try_from(value)?
        };
        return Ok(Value::from(float));
    }
    Ok(value.as_str().and_then(parse_float).map_or_else(default, Value::from))
}

fn round(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("round", &["value", "precision", "method"], 1, given)?;
    let value = arguments.value(0);
    defined(&value)?;
    if !is_number(&value) {
        return Err(refuse(format!("round: {} is not a number", type_name(&value))));
    }
    let precision = arguments.integer(1)?.unwrap_or(0).clamp(-400, 400);
    let digits = i32::try_from(precision).unwrap_or_default();
    let scaled = |rounded: fn(f64) -> f64| {
        let power = 10_f64.powi(digits);
        f64::try_from(value.clone()).map(|float| Value::from(rounded(float * power) / power))
    };
    match arguments.text(2)?.unwrap_or("common") {
        "ceil" => scaled(f64::ceil),
        "floor" => scaled(f64::floor),
        "common" => match as_float(&value) {
            Some(float) => Ok(Value::from(round_float(float, digits))),
            None => Ok(Value::from(round_integer(i128::try_from(value)?, digits))),
        },
        _ => Err(refuse("round: method must be common, ceil or floor")),
    }
}

/// Half to even, on the number as it is written in the decimal system, as CPython does it.
fn round_float(float: f64, digits: i32) -> f64 {
    match usize::try_from(digits) {
        _ if !float.is_finite() => float,
        Ok(digits) => format!("{float:.digits$}").parse().unwrap_or(float),
        Err(_) => {
            let power = 10_f64.powi(-digits);
            (float / power).round_ties_even() * power
        }
    }
}

fn round_integer(number: i128, digits: i32) -> i128 {
    let Some(power) = u32::try_from(-digits).ok().and_then(|digits| 10_i128.checked_pow(digits)) else {
        return if digits < 0 { 0 } else { number };
    };
    let (quotient, rest) = (number.div_euclid(power), number.rem_euclid(power));
    let up = rest * 2 > power || rest * 2 == power && quotient % 2 != 0;
    (quotient + i128::from(up)).saturating_mul(power)
}

fn file_size(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    const DECIMAL: [&str; 8] = ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    const BINARY: [&str; 8] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];
    let arguments = Arguments::bind("filesizeformat", &["value", "binary"], 1, given)?;
    let value = arguments.value(0);
    let bytes = match value.as_str() {
        Some(text) => parse_float(text),
        None if is_number(&value) => f64::try_from(value).ok(),
        None => None,
    };
    let bytes = bytes.ok_or_else(|| refuse("filesizeformat: expected a number"))?;
    let (base, units) = if arguments.flag(1) { (1024.0, BINARY) } else { (1000.0, DECIMAL) };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes.trunc())));
    }
    let mut size = bytes / base;
    let mut unit = 0;
    while size >= base && unit < units.len() - 1 {
        size /= base;
        unit += 1;
    }
    let one_digit = Spec { precision: Some(1), kind: Some('f'), ..Spec::default() };
    Ok(Value::from(format!("{} {}", one_digit.number(&Value::from(size))?, units[unit])))
}
