//! `'%s is %5.2f' % (name, value)`.

use std::{iter::Peekable, str::Chars};

use minijinja::{Error, State, Value, value::ValueKind};

use super::{
    arguments::integer,
    call_arguments::refuse,
    repr::{escape_non_ascii, repr, to_text},
    spec::{Spec, truncated},
};

/// The operands: one value, a tuple of values, or a dictionary by name.
struct Operands<'a> {
    whole: &'a Value,
    values: std::vec::IntoIter<Value>,
}

/// `format % operand`.
///
/// # Errors
/// When the format is invalid, operands do not match it, or a width exceeds the limit.
pub(super) fn format(state: &State<'_, '_>, format: &str, operand: &Value) -> Result<String, Error> {
    let values = if operand.is_tuple() { operand.try_iter()?.collect() } else { vec![operand.clone()] };
    let mut operands = Operands { whole: operand, values: values.into_iter() };
    let mut by_name = false;
    let mut text = String::new();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '%' {
            text.push_str(&conversion(state, &mut rest, &mut operands, &mut by_name)?);
        } else {
            text.push(c);
        }
    }
    let unused_is_fine =
        by_name || matches!(operand.kind(), ValueKind::Map | ValueKind::Seq) && !operand.is_tuple();
    if operands.values.next().is_some() && !unused_is_fine {
        return Err(refuse("not all arguments converted during string formatting"));
    }
    Ok(text)
}

/// Formats the field after a percent sign.
fn conversion(
    state: &State<'_, '_>,
    rest: &mut Peekable<Chars<'_>>,
    operands: &mut Operands<'_>,
    by_name: &mut bool,
) -> Result<String, Error> {
    let mut named = None;
    if rest.next_if_eq(&'(').is_some() {
        let name = take_until_closed(rest, '(', ')').ok_or_else(|| refuse("incomplete format key"))?;
        *by_name = true;
        named = Some(
            operands
                .whole
                .get_item(&Value::from(name.as_str()))
                .ok()
                .filter(|found| !found.is_undefined())
                .ok_or_else(|| refuse(format!("format: no key {name:?}")))?,
        );
    }
    let mut spec = flags(rest);
    spec.width = size(rest, operands, &mut spec.align)?.unwrap_or_default();
    if rest.next_if_eq(&'.').is_some() {
        spec.precision = Some(size(rest, operands, &mut None)?.unwrap_or_default());
    }
    while rest.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
    let letter = rest.next().ok_or_else(|| refuse("incomplete format"))?;
    if letter == '%' {
        return Ok("%".into());
    }
    spec.charge(state)?;
    let value = match named {
        Some(value) => value,
        None => operands.values.next().ok_or_else(|| refuse("not enough arguments for format string"))?,
    };
    converted(spec, letter, &value)
}

/// The text up to the bracket that closes the one before it, which may contain nested pairs. `None` if it is not closed.
pub(super) fn take_until_closed(rest: &mut Peekable<Chars<'_>>, open: char, close: char) -> Option<String> {
    let mut depth = 1;
    let mut inside = String::new();
    for c in rest.by_ref() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth -= 1;
        }
        if depth == 0 {
            return Some(inside);
        }
        inside.push(c);
    }
    None
}

fn flags(rest: &mut Peekable<Chars<'_>>) -> Spec {
    let mut spec = Spec::default();
    while let Some(flag) = rest.next_if(|c| matches!(c, '-' | '+' | ' ' | '#' | '0')) {
        match flag {
            '-' => spec.align = Some('<'),
            '+' => spec.sign = '+',
            ' ' if spec.sign != '+' => spec.sign = ' ',
            '#' => spec.alternate = true,
            '0' => spec.fill = '0',
            _ => {}
        }
    }
    spec
}

/// A width or precision: digits, or `*` for an operand.
fn size(
    rest: &mut Peekable<Chars<'_>>,
    operands: &mut Operands<'_>,
    align: &mut Option<char>,
) -> Result<Option<usize>, Error> {
    if rest.next_if_eq(&'*').is_some() {
        let size = operands
            .values
            .next()
            .as_ref()
            .and_then(integer)
            .ok_or_else(|| refuse("* requires an integer"))?;
        if size < 0 {
            *align = Some('<');
        }
        return Ok(usize::try_from(size.unsigned_abs()).ok());
    }
    digits(rest)
}

/// A number that is written out.
pub(super) fn digits(rest: &mut Peekable<Chars<'_>>) -> Result<Option<usize>, Error> {
    let mut number = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        rest.next();
        let longer = number.unwrap_or(0_usize).checked_mul(10).and_then(|n| n.checked_add(digit as usize));
        number = Some(longer.ok_or_else(|| refuse("too many decimal digits in format string"))?);
    }
    Ok(number)
}

fn converted(mut spec: Spec, letter: char, value: &Value) -> Result<String, Error> {
    // Zeros follow the sign; text is never padded with zeros.
    let fill = std::mem::replace(&mut spec.fill, ' ');
    match letter {
        's' | 'r' | 'a' => {
            let text = match letter {
                's' => to_text(value),
                'r' => repr(value),
                _ => escape_non_ascii(&repr(value)),
            };
            spec.align = spec.align.or(Some('>'));
            Ok(spec.string(&text))
        }
        'c' if value.as_str().is_some_and(|text| text.chars().count() == 1) => {
            spec.align = spec.align.or(Some('>'));
            Ok(spec.string(&to_text(value)))
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'c' | 'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
            if fill == '0' && spec.align.is_none() {
                (spec.fill, spec.align) = ('0', Some('='));
            }
            spec.kind = Some(letter);
            if matches!(letter, 'd' | 'i' | 'u') {
                spec.number(&truncated(value))
            } else {
                spec.number(value)
            }
        }
        other => Err(refuse(format!("unsupported format character {other:?}"))),
    }
}
