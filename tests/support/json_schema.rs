//! Answers checked against the schemas of `/openapi.json`.

use std::slice;

use jsonschema::Validator;
use serde_json::Value;

/// The document with schemas that reject undescribed fields, so that a forgotten one is found.
pub(crate) fn closed(mut document: Value) -> Value {
    let schemas = document["components"]["schemas"].as_object_mut().unwrap();
    // A part of another schema cannot be closed separately.
    let parts: Vec<String> = schemas
        .values()
        .filter_map(|schema| schema["allOf"].as_array())
        .flatten()
        // An optional part is one of itself and null.
        .flat_map(|part| part["oneOf"].as_array().map_or(slice::from_ref(part), Vec::as_slice))
        .filter_map(|part| part["$ref"].as_str()?.rsplit('/').next().map(str::to_owned))
        .collect();
    for (name, schema) in schemas {
        let variants = schema.get("oneOf").is_some();
        if !parts.contains(name)
            && !variants
            && (schema.get("properties").is_some() || schema.get("allOf").is_some())
        {
            schema["unevaluatedProperties"] = false.into();
        }
    }
    document
}

pub(crate) fn validator(document: &Value, schema: &Value) -> Validator {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    jsonschema::validator_for(&schema).unwrap()
}

#[track_caller]
pub(crate) fn check(validator: &Validator, found: &Value, what: &str) {
    let wrong: Vec<_> = validator.iter_errors(found).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{what}: {wrong:#?} in {found:#}");
}

/// The schema of an answer with this status.
pub(crate) fn schema_of(operation: &Value, status: u16) -> &Value {
    let answer = &operation["responses"][status.to_string()];
    assert!(answer.is_object(), "{status} is not described for {}", operation["operationId"]);
    &answer["content"]["application/json"]["schema"]
}

pub(crate) fn examples(operation: &Value) -> impl Iterator<Item = &Value> {
    let body = &operation["requestBody"]["content"]["application/json"];
    body["examples"].as_object().into_iter().flat_map(|examples| examples.values().map(|one| &one["value"]))
}
