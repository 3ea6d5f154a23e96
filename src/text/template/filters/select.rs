//! Filters that read attributes, or call other filters and tests.

use minijinja::{Environment, Error, ErrorKind, State, Value, value::ObjectRepr};

use super::{
    super::{
        arguments::Arguments,
        call_arguments::{CallArguments, refuse, split, undefined},
        methods,
        objects::{Generator, Method},
        register::add_filter,
        repr::{is_builtin, type_name},
    },
    values::items_of,
};

/// Adds the filters of this module.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_filter(environment, "attr", attr);
    add_filter(environment, "default", default);
    add_filter(environment, "d", default);
    add_filter(environment, "map", map);
    add_filter(environment, "select", |state, a| {
        choose(state, a, Choice { by_attribute: false, keep: true })
    });
    add_filter(environment, "reject", |state, a| {
        choose(state, a, Choice { by_attribute: false, keep: false })
    });
    add_filter(environment, "selectattr", |state, a| {
        choose(state, a, Choice { by_attribute: true, keep: true })
    });
    add_filter(environment, "rejectattr", |state, a| {
        choose(state, a, Choice { by_attribute: true, keep: false })
    });
}

/// An attribute by its path (`city.name`, `0`), or the default if it does not exist.
///
/// # Errors
/// When a part of the path is undefined.
pub(super) fn attribute_of(item: &Value, path: &Value, default: Option<&Value>) -> Result<Value, Error> {
    let mut value = item.clone();
    let parts: Vec<Value> = match path.as_str() {
        Some(path) => path
            .split('.')
            .map(|part| part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from))
            .collect(),
        None => vec![path.clone()],
    };
    for part in parts {
        if value.is_undefined() {
            return Err(undefined());
        }
        value = value.get_item(&part)?;
        if let (true, Some(default)) = (value.is_undefined(), default) {
            value = default.clone();
        }
    }
    Ok(value)
}

/// Jinja2's filter `attr`: an attribute or a method of a value, never an item of a dictionary.
fn attr(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("attr", &["obj", "name"], 2, given)?;
    let (value, name) = (arguments.value(0), arguments.required_text(1)?);
    if value.is_undefined() {
        return Err(undefined());
    }
    if methods::exists(&value, name) {
        return Ok(Method::value(value.clone(), name));
    }
    let is_dictionary = value
        .as_object()
        .is_some_and(|object| object.repr() == ObjectRepr::Map && type_name(&value) == "dict");
    if is_dictionary && !is_builtin(&value, "Namespace") {
        return Ok(Value::UNDEFINED);
    }
    value.get_attr(name)
}

fn default(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("default", &["value", "default_value", "boolean"], 1, given)?;
    let value = arguments.value(0);
    if value.is_undefined() || arguments.flag(2) && !value.is_true() {
        return Ok(arguments.get(1).cloned().unwrap_or_else(|| Value::from("")));
    }
    Ok(value)
}

/// The items of a value. As in Jinja2, a false value (`none`, `false`, `0`) has no items and is not an error.
fn items_if_true(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_true() { items_of(value) } else { Ok(Vec::new()) }
}

fn map(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let CallArguments { positional, named } = split(given)?;
    let [value, rest @ ..] = positional else { return Err(refuse("map requires items")) };
    let items = items_if_true(value)?;
    let find = |name: &str| named.iter().find(|(other, _)| other == name).map(|(_, value)| value);
    if rest.is_empty() {
        let attribute = find("attribute").ok_or_else(|| refuse("map requires a filter argument"))?;
        let mapped = items.iter().map(|item| attribute_of(item, attribute, find("default")));
        return Ok(Generator::value(mapped.collect::<Result<_, Error>>()?));
    }
    let name = rest[0].as_str().ok_or_else(|| refuse("map: the name of a filter is a string"))?.to_owned();
    // minijinja passes all named arguments as one last value, which goes to the filter as it is.
    let others = &given[2..];
    let mapped = items.into_iter().map(|item| {
        let arguments: Vec<Value> = std::iter::once(item).chain(others.iter().cloned()).collect();
        state.apply_filter(&name, &arguments)
    });
    Ok(Generator::value(mapped.collect::<Result<_, Error>>()?))
}

/// Which of the four filters it is.
#[derive(Clone, Copy)]
struct Choice {
    /// Test an attribute of each item instead of the item.
    by_attribute: bool,
    /// Keep the items for which the test is true, or those for which it is false.
    keep: bool,
}

fn choose(state: &mut State<'_, '_>, given: &[Value], choice: Choice) -> Result<Value, Error> {
    let [value, rest @ ..] = given else { return Err(refuse("select requires items")) };
    let (attribute, rest) = match (choice.by_attribute, rest) {
        (false, rest) => (None, rest),
        (true, [attribute, rest @ ..]) => (Some(attribute), rest),
        (true, []) => return Err(refuse("selectattr: missing parameter for attribute name")),
    };
    let mut kept = Vec::new();
    for item in items_if_true(value)? {
        state.consume_fuel(1)?;
        let tested = attribute.map_or_else(|| Ok(item.clone()), |name| attribute_of(&item, name, None))?;
        if test(state, tested, rest)? == choice.keep {
            kept.push(item);
        }
    }
    Ok(Generator::value(kept))
}

/// The result of a test for a value. `test` is the test's name and its arguments; without a name, the value itself is the result.
fn test(state: &mut State<'_, '_>, value: Value, test: &[Value]) -> Result<bool, Error> {
    let [name, rest @ ..] = test else { return Ok(value.is_true()) };
    let name =
        name.as_str().ok_or_else(|| Error::new(ErrorKind::UnknownTest, "the name of a test is a string"))?;
    let arguments: Vec<Value> = std::iter::once(value).chain(rest.iter().cloned()).collect();
    state.perform_test(name, &arguments)
}
