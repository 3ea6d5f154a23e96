//! Operators with Python's behaviour, which minijinja lacks.
//!
//! `syntax` rewrites an expression that uses one into a call of a function below, whose name begins with `eka_`. Templates have
//! no reason to call these names themselves.

use std::cmp::Ordering;

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    value::{ObjectRepr, ValueKind},
};

use super::{
    arguments::integer,
    call_arguments::{refuse, undefined},
    methods,
    objects::{Collector, Method, Range},
    percent,
    register::add_function,
    repr::{as_float, charge_text, is_builtin, to_text, type_name},
};

/// Adds the functions that rewritten expressions call.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_operator(environment, "eka_mod", 2, modulo);
    add_operator(environment, "eka_concat", 1, concat);
    add_operator(environment, "eka_slice", 1, slice);
    add_operator(environment, "eka_item", 2, item);
    add_operator(environment, "eka_attribute", 2, attribute);
    add_operator(environment, "eka_in", 2, |_, a| contains(&a[1], &a[0]).map(Value::from));
    add_operator(environment, "eka_lt", 2, |_, a| ordered(&a[0], "<", &a[1]).map(Value::from));
    add_operator(environment, "eka_le", 2, |_, a| ordered(&a[0], "<=", &a[1]).map(Value::from));
    add_operator(environment, "eka_gt", 2, |_, a| ordered(&a[0], ">", &a[1]).map(Value::from));
    add_operator(environment, "eka_ge", 2, |_, a| ordered(&a[0], ">=", &a[1]).map(Value::from));
    add_operator(environment, "eka_plus", 1, |_, a| signed(&a[0], 1));
    add_operator(environment, "eka_minus", 1, |_, a| signed(&a[0], -1));
    add_operator(environment, "eka_iter", 1, |_, a| iterable(&a[0]));
    add_operator(environment, "eka_collect", 4, |_, a| Collector::value(a));
}

/// Adds a function and checks its number of operands, because a template may call it by name as well.
fn add_operator(
    environment: &mut Environment<'_>,
    name: &'static str,
    min: usize,
    operator: fn(&mut State<'_, '_>, &[Value]) -> Result<Value, Error>,
) {
    add_function(environment, name, move |state, operands| {
        if operands.len() < min {
            return Err(Error::from(ErrorKind::MissingArgument));
        }
        operator(state, operands)
    });
}

/// `a % b`, which formats if `a` is a string.
fn modulo(state: &mut State<'_, '_>, operands: &[Value]) -> Result<Value, Error> {
    match operands[0].as_str() {
        Some(format) => percent::format(state, format, &operands[1]).map(Value::from),
        None => remainder(&operands[0], &operands[1]),
    }
}

/// The remainder of a division that rounds down, with the divisor's sign.
pub(super) fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if left.is_undefined() || right.is_undefined() {
        return Err(undefined());
    }
    if !is_number(left) || !is_number(right) {
        return Err(refuse(format!(
            "'%' is not supported between {} and {}",
            type_name(left),
            type_name(right)
        )));
    }
    if as_float(left).is_none()
        && as_float(right).is_none()
        && let (Ok(left), Ok(right)) = (i128::try_from(left.clone()), i128::try_from(right.clone()))
        && right != 0
    {
        let rest = left.checked_rem(right).unwrap_or(0);
        let rest = if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest };
        return Ok(Value::from(rest));
    }
    let (left, right) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if right == 0.0 {
        return Err(refuse("modulo by zero"));
    }
    let rest = left % right;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (right < 0.0) {
        rest + right
    } else {
        rest.copysign(right)
    }))
}

/// `a ~ b ~ c`.
fn concat(state: &mut State<'_, '_>, operands: &[Value]) -> Result<Value, Error> {
    let mut text = String::new();
    let mut is_safe = true;
    for operand in operands {
        let more = to_text(operand);
        charge_text(state, operand, &more)?;
        text.push_str(&more);
        is_safe &= operand.is_safe();
    }
    Ok(if is_safe { Value::from_safe_string(text) } else { Value::from(text) })
}

/// `value[start:stop:step]`.
fn slice(_: &mut State<'_, '_>, operands: &[Value]) -> Result<Value, Error> {
    let [value, bounds @ ..] = operands else { return Err(undefined()) };
    if value.is_undefined() {
        return Err(undefined());
    }
    let sliceable =
        value.kind() == ValueKind::String || value.is_tuple() || matches!(type_name(value), "list" | "range");
    if !sliceable {
        return Err(refuse(format!("{} cannot be sliced", type_name(value))));
    }
    let bound = |place: usize| match bounds.get(place) {
        None => Ok(None),
        Some(bound) if bound.is_none() => Ok(None),
        Some(bound) => {
            integer(bound).map(Some).ok_or_else(|| refuse("slice indices must be integers or None"))
        }
    };
    let step = bound(2)?.unwrap_or(1);
    if step == 0 {
        return Err(refuse("slice step cannot be zero"));
    }
    if let Some(range) = value.downcast_object_ref::<Range>() {
        let (first, last) = clamp(bound(0)?, bound(1)?, step, range.length());
        return Ok(Value::from_object(range.slice(first, last, step)?));
    }
    if let Some(text) = value.as_str() {
        let characters: Vec<char> = text.chars().collect();
        let places = places(bound(0)?, bound(1)?, step, characters.len());
        return Ok(Value::from(places.map(|place| characters[place]).collect::<String>()));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let cut: Vec<Value> =
        places(bound(0)?, bound(1)?, step, items.len()).map(|place| items[place].clone()).collect();
    Ok(if value.is_tuple() { minijinja::value::Tuple::from(cut).into() } else { Value::from(cut) })
}

/// Start and end of a slice in a sequence of `length`, as by Python's `slice.indices`.
fn clamp(start: Option<i64>, stop: Option<i64>, step: i64, length: i64) -> (i64, i64) {
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |bound: i64| {
        let bound = if bound < 0 { bound.saturating_add(length) } else { bound };
        bound.clamp(low, high)
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    (start.map_or(first, place), stop.map_or(last, place))
}

fn places(start: Option<i64>, stop: Option<i64>, step: i64, length: usize) -> impl Iterator<Item = usize> {
    let (first, last) = clamp(start, stop, step, i64::try_from(length).unwrap_or(i64::MAX));
    let goes_on = move |&place: &i64| if step > 0 { place < last } else { place > last };
    std::iter::successors(Some(first), move |place| place.checked_add(step))
        .take_while(goes_on)
        .filter_map(|place| usize::try_from(place).ok())
}

/// `value[key]` with a key that is not a literal string: a float is not an index, and a view has no items.
fn item(_: &mut State<'_, '_>, operands: &[Value]) -> Result<Value, Error> {
    let [value, key] = operands else { return Err(undefined()) };
    let is_map = value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Map);
    if is_map || value.is_undefined() {
        return value.get_item(key);
    }
    let has_items =
        value.kind() == ValueKind::String || value.is_tuple() || matches!(type_name(value), "list" | "range");
    match integer(key) {
        Some(place) if has_items => Ok(item_at(value, place)),
        Some(_) => Ok(Value::UNDEFINED),
        None => value.get_item(key).map(|found| if has_items { Value::UNDEFINED } else { found }),
    }
}

fn item_at(value: &Value, place: i64) -> Value {
    if let Some(text) = value.as_str() {
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        let place = if place < 0 { place + length } else { place };
        let found = usize::try_from(place).ok().and_then(|place| text.chars().nth(place));
        return found.map_or(Value::UNDEFINED, Value::from);
    }
    value.get_item(&Value::from(place)).unwrap_or_default()
}

/// `value.name` where `name` is a method of strings, lists or dictionaries, which hides a key of that name.
fn attribute(_: &mut State<'_, '_>, operands: &[Value]) -> Result<Value, Error> {
    let [value, name] = operands else { return Err(undefined()) };
    let name = name.as_str().unwrap_or_default();
    if methods::exists(value, name) {
        return Ok(Method::value(value.clone(), name));
    }
    let found = value.get_attr(name)?;
    // A macro's parameters.
    if name == "arguments" && is_builtin(value, "Macro") {
        return Ok(minijinja::value::Tuple::from(found.try_iter()?.collect::<Vec<_>>()).into());
    }
    Ok(found)
}

/// `item in container`.
///
/// # Errors
/// When the container is none, or is a string and the item is not.
pub(super) fn contains(container: &Value, item: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        return match item.as_str() {
            Some(part) => Ok(text.contains(part)),
            None if item.is_undefined() => Err(undefined()),
            None => Err(refuse(format!("'in <string>' requires a string, not {}", type_name(item)))),
        };
    }
    if container.is_undefined() {
        return Ok(false);
    }
    let Some(object) = container.as_object() else {
        return Err(refuse(format!("{} is not iterable", type_name(container))));
    };
    if object.repr() == ObjectRepr::Map {
        return Ok(object.get_value(item).is_some());
    }
    Ok(object.try_iter().into_iter().flatten().any(|other| other == *item))
}

/// `left < right` and the other comparisons.
pub(super) fn ordered(left: &Value, operator: &str, right: &Value) -> Result<bool, Error> {
    let order = compare(left, right, operator)?;
    Ok(match operator {
        "<" => order.is_some_and(Ordering::is_lt),
        "<=" => order.is_some_and(Ordering::is_le),
        ">" => order.is_some_and(Ordering::is_gt),
        _ => order.is_some_and(Ordering::is_ge),
    })
}

/// Compares two values of one kind; NaN is not ordered.
///
/// # Errors
/// When the types differ, or have no order.
pub(super) fn compare(left: &Value, right: &Value, operator: &str) -> Result<Option<Ordering>, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    let is_sequence = |value: &Value| value.is_tuple() || type_name(value) == "list";
    if left.is_undefined() || right.is_undefined() {
        return Err(undefined());
    }
    if is_number(left) && is_number(right) {
        let is_nan = |value: &Value| as_float(value).is_some_and(f64::is_nan);
        return Ok(if is_nan(left) || is_nan(right) { None } else { Some(left.cmp(right)) });
    }
    match (left.as_str(), right.as_str()) {
        (Some(left), Some(right)) => return Ok(Some(left.cmp(right))),
        (None, None) if is_sequence(left) && is_sequence(right) && left.is_tuple() == right.is_tuple() => {
            return compare_items(left, right, operator);
        }
        _ => {}
    }
    let (left, right) = (type_name(left), type_name(right));
    Err(refuse(format!("'{operator}' is not supported between {left} and {right}")))
}

fn compare_items(left: &Value, right: &Value, operator: &str) -> Result<Option<Ordering>, Error> {
    let (mut left, mut right) = (left.try_iter()?, right.try_iter()?);
    loop {
        match (left.next(), right.next()) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => return compare(&a, &b, operator),
            (a, b) => return Ok(Some(a.is_some().cmp(&b.is_some()))),
        }
    }
}

/// `+value` and `-value`.
fn signed(value: &Value, sign: i64) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    if !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Err(refuse(format!("bad operand type for a sign: {}", type_name(value))));
    }
    if let Some(float) = as_float(value) {
        return Ok(Value::from(if sign < 0 { -float } else { float }));
    }
    let number =
        i128::try_from(value.clone()).map_err(|_| refuse("an integer is too large: eka has 128 bits"))?;
    number
        .checked_mul(i128::from(sign))
        .map(Value::from)
        .ok_or_else(|| refuse("an integer is too large: eka has 128 bits"))
}

/// The iterable of a `for` loop: none is rejected, and a string becomes a list of characters, so that `loop.last` works.
fn iterable(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None => Err(refuse("NoneType is not iterable")),
        ValueKind::String => Ok(value.try_iter()?.collect()),
        _ => Ok(value.clone()),
    }
}
