//! Jinja2's tests, which follow `is`.

use minijinja::{
    Environment, Error, Value,
    value::{ObjectRepr, ValueKind},
};

use super::{
    call_arguments::refuse,
    methods,
    objects::{DictView, Range},
    operators::{contains, ordered, remainder},
    register::add_test,
    repr::{as_float, is_builtin, to_text, type_name},
};
use crate::text::tool_call::WrittenArguments;

/// Adds all tests except those in which minijinja equals Jinja2.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_kinds(environment);
    add_test(environment, "odd", |_, a| parity(&a[0], 1));
    add_test(environment, "even", |_, a| parity(&a[0], 0));
    add_test(environment, "divisibleby", |_, a| Ok(remainder(&a[0], &argument(a)?)? == Value::from(0)));
    add_test(environment, "in", |_, a| contains(&argument(a)?, &a[0]));
    add_test(environment, "sameas", |_, a| Ok(is_same(&a[0], &argument(a)?)));
    add_test(environment, "lower", |_, a| Ok(has_case(&a[0], "islower")));
    add_test(environment, "upper", |_, a| Ok(has_case(&a[0], "isupper")));
    for (names, operator) in [
        (["lt", "lessthan", "<"], "<"),
        (["gt", "greaterthan", ">"], ">"),
        (["le", "<=", "<="], "<="),
        (["ge", ">=", ">="], ">="),
    ] {
        for name in names {
            add_test(environment, name, move |_, a| ordered(&a[0], operator, &argument(a)?));
        }
    }
}

fn add_kinds(environment: &mut Environment<'_>) {
    add_test(environment, "iterable", |_, a| Ok(is_iterable(&a[0])));
    add_test(environment, "sequence", |_, a| Ok(is_sequence(&a[0])));
    add_test(environment, "mapping", |_, a| Ok(is_mapping(&a[0])));
    add_test(environment, "callable", |_, a| Ok(methods::is_callable(&a[0])));
    add_test(environment, "number", |_, a| Ok(matches!(a[0].kind(), ValueKind::Number | ValueKind::Bool)));
    add_test(environment, "integer", |_, a| Ok(type_name(&a[0]) == "int"));
    add_test(environment, "float", |_, a| Ok(as_float(&a[0]).is_some()));
    add_test(environment, "string", |_, a| {
        Ok(a[0].kind() == ValueKind::String || WrittenArguments::is_text(&a[0]))
    });
}

fn argument(given: &[Value]) -> Result<Value, Error> {
    given.get(1).cloned().ok_or_else(|| refuse("the test requires an argument"))
}

/// None is not iterable, and an undefined value is.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && !is_builtin(value, "Namespace") && value.try_iter().is_ok()
}

/// Whether the value has a length and items by number or name, as a string has.
fn is_sequence(value: &Value) -> bool {
    let Some(object) = value.as_object() else {
        return matches!(value.kind(), ValueKind::String | ValueKind::Undefined);
    };
    match object.repr() {
        ObjectRepr::Seq => true,
        ObjectRepr::Map => is_mapping(value),
        _ => {
            value.downcast_object_ref::<Range>().is_some()
                || type_name(value) == "list" && value.downcast_object_ref::<DictView>().is_none()
        }
    }
}

fn is_mapping(value: &Value) -> bool {
    value.kind() == ValueKind::Map
        && !["Namespace", "Macro", "Loop"].iter().any(|hidden| is_builtin(value, hidden))
}

fn parity(value: &Value, wanted: i64) -> Result<bool, Error> {
    if value.kind() == ValueKind::String {
        return Err(refuse("a string is neither odd nor even"));
    }
    Ok(remainder(value, &Value::from(2))? == Value::from(wanted))
}

/// An approximation of Python's `is`: an equal value of the same type.
fn is_same(left: &Value, right: &Value) -> bool {
    type_name(left) == type_name(right) && left == right
}

fn has_case(value: &Value, method: &str) -> bool {
    methods::has_kind(&to_text(value), method)
}
