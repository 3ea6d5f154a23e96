//! Numbers and strings laid out in a field: what `%5.2f` and `{:>5}` have in common.
//!
//! Widths come from untrusted templates, so they are limited before text is created.

use minijinja::{Error, State, Value, value::ValueKind};

use super::{
    arguments::integer,
    call_arguments::{refuse, undefined},
    repr::{as_float, type_name},
};

/// Maximum width of a field in characters, and maximum digits after a decimal point.
pub(super) const MAX_WIDTH: usize = 65_535;
const MAX_PRECISION: usize = 1_000;

/// The format specification of a field.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) fill: char,
    /// `<`, `>`, `^` or `=`.
    pub(super) align: Option<char>,
    /// `+`, `-` or a space.
    pub(super) sign: char,
    /// `#`: prefixes as `0x`, and points that always show.
    pub(super) alternate: bool,
    pub(super) width: usize,
    /// The separator of thousands.
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    /// The letter.
    pub(super) kind: Option<char>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            fill: ' ',
            align: None,
            sign: '-',
            alternate: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        }
    }
}

impl Spec {
    /// Charges fuel for the field before it is created.
    ///
    /// # Errors
    /// When a width or precision exceeds the limit, or no fuel is left.
    pub(super) fn charge(&self, state: &State<'_, '_>) -> Result<(), Error> {
        if self.width > MAX_WIDTH || self.precision.is_some_and(|precision| precision > MAX_WIDTH) {
            return Err(refuse(format!("a field can have at most {MAX_WIDTH} characters")));
        }
        let size = self.width + self.precision.unwrap_or_default().min(MAX_PRECISION);
        state.consume_fuel((size / 64 + 1) as u64)
    }

    /// A string in the field.
    pub(super) fn string(&self, text: &str) -> String {
        let cut: String = match self.precision {
            Some(max) => text.chars().take(max).collect(),
            None => text.to_owned(),
        };
        self.pad(&cut, "", self.align.unwrap_or('<'))
    }

    /// A number in the field.
    ///
    /// # Errors
    /// When the value is not a number, or the letter does not apply to it.
    pub(super) fn number(&self, value: &Value) -> Result<String, Error> {
        if value.is_undefined() {
            return Err(undefined());
        }
        let wrong =
            || refuse(format!("format code {:?} is not for {}", self.kind.unwrap_or('s'), type_name(value)));
        match self.kind {
            Some('d' | 'i' | 'u' | 'x' | 'X' | 'o' | 'b' | 'n') => {
                self.integer(to_integer(value).ok_or_else(wrong)?)
            }
            Some('c') => self.character(value),
            Some('f' | 'F' | 'e' | 'E' | 'g' | 'G' | '%') => self.float(to_float(value).ok_or_else(wrong)?),
            None if as_float(value).is_some() => self.float(to_float(value).ok_or_else(wrong)?),
            None => self.integer(to_integer(value).ok_or_else(wrong)?),
            Some(_) => Err(wrong()),
        }
    }

    fn character(&self, value: &Value) -> Result<String, Error> {
        let code = integer(value).and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32);
        let c = code.ok_or_else(|| refuse("%c requires the number of a character"))?;
        Ok(self.pad(&c.to_string(), "", self.align.unwrap_or('>')))
    }

    fn integer(&self, number: i128) -> Result<String, Error> {
        let size = number.unsigned_abs();
        let (prefix, digits) = match self.kind {
            Some('x') => ("0x", format!("{size:x}")),
            Some('X') => ("0X", format!("{size:X}")),
            Some('o') => ("0o", format!("{size:o}")),
            Some('b') => ("0b", format!("{size:b}")),
            _ => ("", size.to_string()),
        };
        let min = self.precision.unwrap_or_default();
        if min > MAX_PRECISION {
            return Err(refuse(format!("a number can have at most {MAX_PRECISION} digits")));
        }
        let digits = format!("{}{digits}", "0".repeat(min.saturating_sub(digits.len())));
        let head = self.sign_of(number < 0).to_owned() + if self.alternate { prefix } else { "" };
        Ok(self.pad(&self.grouped(&digits), &head, self.align.unwrap_or('>')))
    }

    fn float(&self, number: f64) -> Result<String, Error> {
        let precision = self.precision.unwrap_or(6);
        if precision > MAX_PRECISION {
            return Err(refuse(format!("a number can have at most {MAX_PRECISION} decimal places")));
        }
        let size = number.abs();
        let digits = match self.kind {
            _ if !number.is_finite() => {
                if number.is_nan() {
                    "nan".into()
                } else {
                    "inf".into()
                }
            }
            Some('e' | 'E') => scientific(size, precision),
            Some('g' | 'G') => self.shortest(size, precision),
            Some('%') => format!("{:.precision$}%", size * 100.0),
            None => self.plain_float(size),
            _ => format!("{size:.precision$}"),
        };
        let digits = if matches!(self.kind, Some('E' | 'G' | 'F')) { digits.to_uppercase() } else { digits };
        let head = self.sign_of(number.is_sign_negative() && !number.is_nan());
        Ok(self.pad(&self.grouped(&digits), head, self.align.unwrap_or('>')))
    }

    /// Without a letter: `repr`, or significant digits with at least one after the point.
    fn plain_float(&self, size: f64) -> String {
        let Some(precision) = self.precision else { return super::repr::float(size) };
        let text = self.shortest(size, precision);
        if text.contains(['.', 'e']) { text } else { text + ".0" }
    }

    /// `%g`: the requested number of significant digits, without trailing zeros.
    fn shortest(&self, size: f64, precision: usize) -> String {
        let precision = precision.max(1);
        let scientific = scientific(size, precision - 1);
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let power: i64 = exponent.parse().unwrap_or_default();
        let digits = i64::try_from(precision).unwrap_or(i64::MAX);
        let trim = |text: &str| {
            if self.alternate || !text.contains('.') {
                return text.to_owned();
            }
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        if power < -4 || power >= digits {
            return format!("{}e{exponent}", trim(mantissa));
        }
        let behind = usize::try_from(digits - 1 - power).unwrap_or_default();
        trim(&format!("{size:.behind$}"))
    }

    const fn sign_of(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            _ => "",
        }
    }

    fn grouped(&self, digits: &str) -> String {
        let Some(separator) = self.grouping else { return digits.to_owned() };
        let end = digits.find(['.', 'e', '%']).unwrap_or(digits.len());
        let (whole, rest) = digits.split_at(end);
        let every = if matches!(self.kind, Some('x' | 'X' | 'o' | 'b')) { 4 } else { 3 };
        let mut text = String::new();
        for (place, c) in whole.chars().enumerate() {
            if place > 0 && (whole.len() - place) % every == 0 {
                text.push(separator);
            }
            text.push(c);
        }
        text + rest
    }

    /// With `=`, the padding follows `head`.
    fn pad(&self, text: &str, head: &str, align: char) -> String {
        let fill = |count: usize| self.fill.to_string().repeat(count);
        let missing = self.width.saturating_sub(text.chars().count() + head.chars().count());
        match align {
            '<' => format!("{head}{text}{}", fill(missing)),
            '^' => format!("{}{head}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => format!("{head}{}{text}", fill(missing)),
            _ => format!("{}{head}{text}", fill(missing)),
        }
    }

    /// Whether the letter is for strings, or there is none.
    pub(super) fn is_for_text(&self) -> bool {
        matches!(self.kind, None | Some('s'))
            && self.sign == '-'
            && self.grouping.is_none()
            && self.align != Some('=')
    }
}

/// With an exponent of at least two digits, as C writes it.
fn scientific(size: f64, precision: usize) -> String {
    let text = format!("{size:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

fn to_integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn to_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// The value as a whole number for `%d`: a float is truncated.
pub(super) fn truncated(value: &Value) -> Value {
    match as_float(value) {
        #[expect(clippy::cast_possible_truncation, reason = "a float beyond the range stays at its end")]
        Some(float) if float.is_finite() => Value::from(float.trunc() as i128),
        _ => value.clone(),
    }
}
