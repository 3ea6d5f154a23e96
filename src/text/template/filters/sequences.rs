//! Filters that create, sort and split lists.

use std::cmp::Ordering;

use minijinja::{
    Environment, Error, State, Value,
    value::{Tuple, ValueKind},
};

use super::{
    super::{
        arguments::Arguments,
        call_arguments::{refuse, undefined},
        methods::charge,
        objects::{Generator, Group},
        operators::compare,
        register::add_filter,
        repr::{as_float, to_text, type_name},
    },
    select::attribute_of,
    values::{defined, items_of},
};

/// Adds the filters of this module.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_filter(environment, "list", |_, a| items_of(&a[0]).map(Value::from));
    add_filter(environment, "first", first);
    add_filter(environment, "last", last);
    add_filter(environment, "join", join);
    add_filter(environment, "items", items);
    add_filter(environment, "sort", sort);
    add_filter(environment, "dictsort", dict_sort);
    add_filter(environment, "unique", unique);
    add_filter(environment, "groupby", group_by);
    add_filter(environment, "batch", batch);
    add_filter(environment, "slice", slice);
    add_filter(environment, "min", |_, a| extreme(a, Ordering::Less));
    add_filter(environment, "max", |_, a| extreme(a, Ordering::Greater));
    add_filter(environment, "sum", sum);
}

fn first(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let value = &given[0];
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        return Ok(generator.take_next().unwrap_or_default());
    }
    if value.is_none() {
        return items_of(value).map(Value::from);
    }
    Ok(value.try_iter()?.next().unwrap_or_default())
}

fn last(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    if given[0].downcast_object_ref::<Generator>().is_some() {
        return Err(refuse("last: a generator cannot be reversed; make a list of it"));
    }
    Ok(items_of(&given[0])?.pop().unwrap_or_default())
}

fn join(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("join", &["value", "d", "attribute"], 1, given)?;
    let separator = arguments.get(1).map(to_text).unwrap_or_default();
    let mut joined = String::new();
    for (place, item) in items_of(&arguments.value(0))?.into_iter().enumerate() {
        let item = match arguments.get(2).filter(|attribute| !attribute.is_none()) {
            Some(attribute) => attribute_of(&item, attribute, None)?,
            None => item,
        };
        let text = to_text(&item);
        charge(state, separator.len() + text.len())?;
        if place > 0 {
            joined.push_str(&separator);
        }
        joined.push_str(&text);
    }
    Ok(Value::from(joined))
}

/// The pairs of a dictionary.
fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let object = value.as_object().filter(|_| value.kind() == ValueKind::Map);
    let pairs = object.and_then(|object| object.try_iter_pairs());
    pairs.map(Iterator::collect).ok_or_else(|| refuse("only a mapping has pairs of items"))
}

fn items(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    if given[0].is_undefined() {
        return Ok(Generator::value(Vec::new()));
    }
    Ok(Generator::value(pairs(&given[0])?.into_iter().map(pair).collect()))
}

fn pair((key, value): (Value, Value)) -> Value {
    Tuple::from([key, value]).into()
}

/// The key of a text for a comparison that ignores case.
fn without_case(value: Value) -> Value {
    match value.as_str() {
        Some(text) => Value::from(text.to_lowercase()),
        None => value,
    }
}

/// Sorts by keys, stably, and stops at two that cannot be compared.
fn sort_by_key(mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>, Error> {
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        match compare(a, b, "<") {
            Ok(order) => order.unwrap_or(Ordering::Equal),
            Err(error) => {
                failed.get_or_insert(error);
                Ordering::Equal
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn sort(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let parameters = ["value", "reverse", "case_sensitive", "attribute"];
    let arguments = Arguments::bind("sort", &parameters, 1, given)?;
    let items = items_of(&arguments.value(0))?;
    charge_sorting(state, items.len())?;
    let keep_case = arguments.flag(2);
    let key = |item: &Value| key_of(item, arguments.get(3), keep_case);
    let keyed = items.into_iter().map(|item| Ok((key(&item)?, item))).collect::<Result<_, Error>>()?;
    sort_by_key(keyed, arguments.flag(1)).map(Value::from)
}

/// The key of an item: the item itself, an attribute, or several attributes, separated by commas.
fn key_of(item: &Value, attribute: Option<&Value>, keep_case: bool) -> Result<Value, Error> {
    let folded = |value: Value| if keep_case { value } else { without_case(value) };
    match attribute.filter(|attribute| !attribute.is_none()) {
        None => Ok(folded(item.clone())),
        Some(names) if names.as_str().is_some_and(|names| names.contains(',')) => {
            let names = names.as_str().unwrap_or_default().split(',');
            let parts = names.map(|name| attribute_of(item, &Value::from(name), None).map(folded));
            Ok(Value::from(parts.collect::<Result<Vec<_>, Error>>()?))
        }
        Some(name) => attribute_of(item, name, None).map(folded),
    }
}

fn charge_sorting(state: &State<'_, '_>, items: usize) -> Result<(), Error> {
    state.consume_fuel((items as u64).saturating_mul(u64::from(usize::BITS - items.leading_zeros())))
}

fn dict_sort(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let parameters = ["value", "case_sensitive", "by", "reverse"];
    let arguments = Arguments::bind("dictsort", &parameters, 1, given)?;
    let by_value = match arguments.text(2)?.unwrap_or("key") {
        "key" => false,
        "value" => true,
        other => return Err(refuse(format!("dictsort: you can only sort by key or value, not {other:?}"))),
    };
    let value = arguments.value(0);
    defined(&value)?;
    let pairs = pairs(&value)?;
    charge_sorting(state, pairs.len())?;
    let keep_case = arguments.flag(1);
    let keyed = pairs.into_iter().map(|(key, value)| {
        let by = if by_value { value.clone() } else { key.clone() };
        (if keep_case { by } else { without_case(by) }, pair((key, value)))
    });
    sort_by_key(keyed.collect(), arguments.flag(3)).map(Value::from)
}

fn unique(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("unique", &["value", "case_sensitive", "attribute"], 1, given)?;
    let mut seen = std::collections::BTreeSet::new();
    let mut kept = Vec::new();
    let items = items_of(&arguments.value(0))?;
    charge_sorting(state, items.len())?;
    for item in items {
        if seen.insert(key_of(&item, arguments.get(2), arguments.flag(1))?) {
            kept.push(item);
        }
    }
    Ok(Generator::value(kept))
}

/// Groups are tuples that also have names: `grouper` and `list`.
fn group_by(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let parameters = ["value", "attribute", "default", "case_sensitive"];
    let arguments = Arguments::bind("groupby", &parameters, 2, given)?;
    let items = items_of(&arguments.value(0))?;
    charge_sorting(state, items.len())?;
    let attribute = arguments.value(1);
    let keep_case = arguments.flag(3);
    let mut keyed = Vec::new();
    for item in items {
        let shown = attribute_of(&item, &attribute, arguments.get(2))?;
        let key = if keep_case { shown.clone() } else { without_case(shown.clone()) };
        keyed.push((key.clone(), Tuple::from([key, shown, item]).into()));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for entry in sort_by_key(keyed, false)? {
        let [key, shown, item] = [0, 1, 2].map(|place| entry.get_item_by_index(place).unwrap_or_default());
        match groups.last_mut() {
            Some((last, _, items)) if *last == key => items.push(item),
            _ => groups.push((key, shown, vec![item])),
        }
    }
    Ok(groups.into_iter().map(|(_, grouper, list)| Group::value(grouper, list)).collect())
}

fn batch(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("batch", &["value", "linecount", "fill_with"], 2, given)?;
    let size = usize::try_from(arguments.integer(1)?.unwrap_or_default()).unwrap_or_default();
    if size == 0 {
        return Err(refuse("batch: linecount must be greater than 0"));
    }
    let fill = arguments.get(2).filter(|fill| !fill.is_none());
    let items = items_of(&arguments.value(0))?;
    let rows = items.chunks(size).map(|row| {
        let mut row = row.to_vec();
        if let Some(fill) = fill {
            row.resize(size.min(MAX_ROW), fill.clone());
        }
        Value::from(row)
    });
    Ok(Generator::value(rows.collect()))
}

/// Maximum items of a padded row, and maximum rows of a split list.
const MAX_ROW: usize = 100_000;

fn slice(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("slice", &["value", "slices", "fill_with"], 2, given)?;
    let count = usize::try_from(arguments.integer(1)?.unwrap_or_default()).unwrap_or_default();
    if count == 0 || count > MAX_ROW {
        return Err(refuse(format!("slice: a list is cut into 1 to {MAX_ROW} slices")));
    }
    let items = items_of(&arguments.value(0))?;
    let (size, longer) = (items.len() / count, items.len() % count);
    let fill = arguments.get(2).filter(|fill| !fill.is_none());
    let mut rest = items.into_iter();
    let slices = (0..count).map(|place| {
        let mut slice: Vec<Value> = rest.by_ref().take(size + usize::from(place < longer)).collect();
        if place >= longer
            && let Some(fill) = fill
        {
            slice.push(fill.clone());
        }
        Value::from(slice)
    });
    Ok(Generator::value(slices.collect()))
}

fn extreme(given: &[Value], wanted: Ordering) -> Result<Value, Error> {
    let arguments = Arguments::bind("min", &["value", "case_sensitive", "attribute"], 1, given)?;
    let mut best: Option<(Value, Value)> = None;
    for item in items_of(&arguments.value(0))? {
        let key = key_of(&item, arguments.get(2), arguments.flag(1))?;
        let is_better = match &best {
            None => true,
            Some((max, _)) => compare(&key, max, "<")? == Some(wanted),
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

fn sum(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("sum", &["iterable", "attribute", "start"], 1, given)?;
    let attribute = arguments.get(1).filter(|attribute| !attribute.is_none());
    let mut total = arguments.get(2).cloned().unwrap_or_else(|| Value::from(0));
    for item in items_of(&arguments.value(0))? {
        let item = match attribute {
            Some(attribute) => attribute_of(&item, attribute, None)?,
            None => item,
        };
        total = added(&total, &item)?;
    }
    Ok(total)
}

fn added(left: &Value, right: &Value) -> Result<Value, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if left.is_undefined() || right.is_undefined() {
        return Err(undefined());
    }
    if is_number(left) && is_number(right) {
        if as_float(left).is_some() || as_float(right).is_some() {
            return Ok(Value::from(f64::try_from(left.clone())? + f64::try_from(right.clone())?));
        }
        let total = i128::try_from(left.clone())?.checked_add(i128::try_from(right.clone())?);
        return total
            .map(Value::from)
            .ok_or_else(|| refuse("sum: an integer is too large: eka has 128 bits"));
    }
    if type_name(left) == "list" && type_name(right) == "list" {
        return Ok(left.try_iter()?.chain(right.try_iter()?).collect());
    }
    Err(refuse(format!("'+' is not supported between {} and {}", type_name(left), type_name(right))))
}
