//! JSON schemas: options for the compiler, and the place of a keyword that it cannot enforce.

use serde_json::{Map, Value, json};

use super::{
    ConstraintError, bounds, caps,
    error::invalid,
    schema_walk::{each, each_inner},
};

/// White space between JSON's parts: a space, or a new line and some indentation. With no limit, small models write white
/// space until their tokens are used up.
const WHITE_SPACE: &str = r"( |\n[ \t]{0,20})";

/// The keyword with which a schema sets options of the compiler. Clients must not set them: one of them turns errors into warnings,
/// which no client would see.
const OPTIONS: &str = "x-guidance";

/// The schema with the compiler's options.
pub(super) fn prepare(schema: &str) -> Result<Value, ConstraintError> {
    let object: Map<String, Value> =
        serde_json::from_str(schema).map_err(|e| invalid(&format!("a schema must be an object: {e}")))?;
    if object.contains_key(OPTIONS) {
        return Err(ConstraintError::Keyword { keyword: OPTIONS.into(), place: "#".into() });
    }
    let schema = embedded(Value::Object(object));
    caps::check(&schema)?;
    Ok(schema)
}

/// A schema for use in a grammar after `%json`, with the same options as a schema that is the whole constraint.
#[must_use]
pub(super) fn embedded(mut schema: Value) -> Value {
    tighten(&mut schema);
    if let Value::Object(object) = &mut schema {
        object.insert(OPTIONS.into(), json!({ "whitespace_pattern": WHITE_SPACE }));
    }
    schema
}

/// Years from 0001, and 29 February only in leap years; the compiler checks the other months and days.
const DATE: &str = "(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-(?:(?:0[13-9]|1[0-2])-[0-9]{2}\
    |02-(?:[01][0-9]|2[0-8]))|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)";

/// Without leap seconds, and with at most nine digits of a second (nanoseconds).
const TIME: &str = r"[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})";

/// Cuts bounds to the compiler's range, and tightens dates and times: it excludes forms that RFC 3339 forbids but the
/// compiler accepts, and forms that many parsers reject (lower-case letters, leap seconds, the year 0).
fn tighten(schema: &mut Value) {
    each_inner(schema, &mut tighten);
    let Value::Object(object) = schema else { return };
    bounds::tighten(object);
    let format = object.get("format").and_then(Value::as_str);
    let Some(pattern) = format.and_then(time_pattern) else { return };
    if let Value::Array(all) = object.entry("allOf").or_insert_with(|| json!([])) {
        all.push(json!({ "pattern": pattern }));
    }
}

/// The `pattern` of a `format` of dates and times.
pub(super) fn time_pattern(format: &str) -> Option<String> {
    match format {
        "date" => Some(format!("^{DATE}$")),
        "time" => Some(format!("^{TIME}$")),
        "date-time" => Some(format!("^{DATE}T{TIME}$")),
        _ => None,
    }
}

/// The compiler's message about patterns that are too complex.
const UNDECIDED: &str = "Unable to determine if regex is empty";

/// The keyword that the compiler's message complains about, and its place.
pub(super) fn unenforceable(schema: &str, message: &str) -> Option<ConstraintError> {
    if message.contains(UNDECIDED) {
        let schema = serde_json::from_str(schema).ok()?;
        let reason =
            "with the other patterns and lengths of the same string, is too complex to compile; simplify it"
                .into();
        return Some(ConstraintError::Cap {
            keyword: "pattern".into(),
            place: find(&schema, "pattern", "#")?,
            reason,
        });
    }
    let keyword = if message.starts_with("oneOf constraints are not supported") {
        "oneOf"
    } else {
        message.split_once("Unimplemented keys: [\"")?.1.split('"').next()?
    };
    let schema = serde_json::from_str(schema).ok()?;
    let place = find(&schema, keyword, "#")?;
    Some(ConstraintError::Keyword { keyword: keyword.into(), place })
}

/// The place of the first schema with this keyword.
fn find(schema: &Value, keyword: &str, place: &str) -> Option<String> {
    each(schema, place, &mut |object, place| {
        if object.contains_key(keyword) { Err(place.to_owned()) } else { Ok(()) }
    })
    .err()
}
