//! Request bodies, and checks of rejected requests.

use serde_json::{Value, json};

/// `request` with `fields` added.
pub(crate) fn with(mut request: Value, fields: &Value) -> Value {
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

/// Asserts a 400 with this code and parameter.
#[track_caller]
pub(crate) fn assert_refused((status, answer): &(u16, Value), code: &str, param: &str) {
    let error = &answer["error"];
    let found = (*status, &error["code"], &error["param"]);
    assert_eq!(found, (400, &json!(code), &json!(param)), "{answer}");
}
