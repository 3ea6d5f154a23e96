//! `logit_bias`: tokens by their ids, as OpenAI has it, or all tokens of a text, as llama-server has it.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::schema::{FieldType, Location, counted, custom, integer, nullable, number, string};
use crate::http::field_error::FieldError;

/// Most tokens with a bias. OpenAI's limit is 300; lists of the tokens of several hundred words to avoid need more. Every
/// step of every answer adds them all, and each is sent to the worker.
pub(crate) const MAX_BIASES: usize = 1024;

/// Longest text whose tokens get a bias, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// What gets a bias.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BiasTarget {
    Token(u32),
    /// Each token of the text.
    Text(String),
}

/// A bias of `None` forbids the tokens.
pub(crate) type LogitBias = (BiasTarget, Option<f32>);

/// An object with a bias for each token id or text, or an array of pairs of both.
pub(crate) fn logit_bias() -> impl FieldType<Value = Vec<LogitBias>> {
    custom(read_biases, |schemas| {
        let forbidden = json!({ "type": "boolean", "const": false });
        let bias = json!({ "oneOf": [bias().schema(schemas), forbidden] });
        let text = string().bytes(1..=usize::MAX).schema(schemas);
        let target = json!({ "oneOf": [token_id().schema(schemas), text] });
        let pair = json!({ "type": "array", "prefixItems": [target, bias], "minItems": 2, "maxItems": 2 });
        let object = json!({ "type": "object", "additionalProperties": nullable(bias) });
        json!({ "oneOf": [object, counted(pair, &(0..=MAX_BIASES))] })
    })
}

fn bias() -> impl FieldType<Value = f32> {
    number(-100.0..=100.0)
}

fn token_id() -> impl FieldType<Value = u32> {
    integer(0..=u32::MAX)
}

/// The same token may be written in several ways ("7", "07"), and different biases for it would be ambiguous. Equal ones count once.
fn read_biases(value: Value, at: &Location) -> Result<Vec<LogitBias>, FieldError> {
    let entries = match &value {
        Value::Object(biases) => biases.len(),
        Value::Array(pairs) => pairs.len(),
        other => return Err(at.wrong_type("an object or an array of pairs", other)),
    };
    if entries > MAX_BIASES {
        return Err(at.invalid(format!(
            "{entries} entries, at most {MAX_BIASES}; to restrict an answer to some characters, send regex or grammar"
        )));
    }
    let mut seen: HashMap<BiasTarget, Option<Option<f32>>> = HashMap::with_capacity(entries);
    let mut taken = Vec::with_capacity(entries);
    let mut add = |target: BiasTarget, bias: Value, at: &Location| {
        let bias = match bias {
            Value::Null => None,
            Value::Bool(false) => Some(None),
            bias => Some(Some(self::bias().read(bias, at)?)),
        };
        match seen.insert(target.clone(), bias) {
            None => taken.extend(bias.map(|bias| (target, bias))),
            Some(same) if same == bias => {}
            Some(_) => {
                return Err(at.invalid(match target {
                    BiasTarget::Token(id) => format!("token {id} has more than one bias"),
                    BiasTarget::Text(text) => format!("{text:?} has more than one bias"),
                }));
            }
        }
        Ok(())
    };
    match value {
        Value::Object(biases) => biases.into_iter().try_for_each(|(key, bias)| {
            let at = at.field(&key);
            add(read_key(key, &at)?, bias, &at)
        })?,
        Value::Array(pairs) => pairs.into_iter().enumerate().try_for_each(|(index, pair)| {
            let at = at.item(index);
            let (target, bias) = read_pair(pair, &at)?;
            add(target, bias, &at)
        })?,
        _ => {}
    }
    Ok(taken)
}

/// A key of the object: the digits of a token id, or a text.
fn read_key(key: String, at: &Location) -> Result<BiasTarget, FieldError> {
    if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()) {
        let id = key.parse().map_err(|_| at.invalid("not a token id"))?;
        return Ok(BiasTarget::Token(id));
    }
    read_text(key, at)
}

fn read_text(text: String, at: &Location) -> Result<BiasTarget, FieldError> {
    match text.len() {
        0 => Err(at.invalid("an empty text has no tokens; expected a token id or a text")),
        1..=MAX_TEXT_BYTES => Ok(BiasTarget::Text(text)),
        bytes => Err(at.invalid(format!("a text of {bytes} bytes, at most {MAX_TEXT_BYTES}"))),
    }
}

/// A token id or a text, and its bias.
fn read_pair(value: Value, at: &Location) -> Result<(BiasTarget, Value), FieldError> {
    match value {
        Value::Array(mut pair) if pair.len() == 2 && !pair[1].is_null() => {
            let bias = pair.swap_remove(1);
            let target = match pair.swap_remove(0) {
                Value::String(text) => read_text(text, at)?,
                id => BiasTarget::Token(token_id().read(id, at)?),
            };
            Ok((target, bias))
        }
        Value::Array(_) => Err(at.invalid("not a pair of a token id or text and a bias")),
        other => Err(at.wrong_type("an array of a token id or text and a bias", &other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::http::request::schema::{Fields, Modify};

    fn biases(value: Value) -> Result<Vec<LogitBias>, FieldError> {
        let mut fields = Fields::parse(json!({ "logit_bias": value }).to_string().as_bytes()).unwrap();
        fields.take("logit_bias", logit_bias().or_empty())
    }

    fn token(id: u32, bias: f32) -> LogitBias {
        (BiasTarget::Token(id), Some(bias))
    }

    #[test]
    fn the_number_of_biases_is_limited_and_the_error_names_the_limit() {
        let many = |n: usize| (0..n).map(|id| (format!("{id:0>9}"), json!(1))).collect::<Map<_, _>>();
        assert_eq!(biases(many(MAX_BIASES).into()).unwrap().len(), MAX_BIASES);
        let error = biases(many(40_960).into()).unwrap_err();
        assert_eq!((error.param(), error.code()), ("logit_bias", "invalid_value"));
        assert!(error.to_string().contains("40960 entries, at most 1024"), "{error}");
    }

    #[test]
    fn one_token_in_two_spellings_is_refused() {
        let error = biases(json!({ "1": 1, "01": 2 })).unwrap_err();
        assert_eq!(error.param(), "logit_bias.01");
        assert!(error.to_string().contains("token 1 has more than one bias"), "{error}");
        assert_eq!(biases(json!({ "1": 1, "2": null, "3": -2.5 })).unwrap(), [token(1, 1.0), token(3, -2.5)]);
    }

    #[test]
    fn biases_may_be_a_list_of_pairs_as_in_llama_cpp() {
        assert_eq!(biases(json!([[1, 1], [3.0, -2.5], [1, 1]])).unwrap(), [token(1, 1.0), token(3, -2.5)]);
        for (wrong, param) in [
            (json!([[1, 1], [1, 2]]), "logit_bias[1]"),
            (json!([["a", 1], ["a", 2]]), "logit_bias[1]"),
            (json!([[1]]), "logit_bias[0]"),
            (json!([["", 1]]), "logit_bias[0]"),
            (json!([[1, true]]), "logit_bias[0]"),
            (json!([[1, 101]]), "logit_bias[0]"),
            (json!([1, 2]), "logit_bias[0]"),
            (json!([["a".repeat(MAX_TEXT_BYTES + 1), 1]]), "logit_bias[0]"),
            (json!(vec![[1, 1]; MAX_BIASES + 1]), "logit_bias"),
        ] {
            assert_eq!(biases(wrong).unwrap_err().param(), param);
        }
    }

    #[test]
    fn texts_and_false_are_read_as_llama_server_reads_them() {
        let text = |text: &str, bias| (BiasTarget::Text(text.to_owned()), bias);
        let expected = [text(" the", Some(-100.0)), text("-1", Some(1.0)), (BiasTarget::Token(7), None)];
        assert_eq!(biases(json!([[" the", -100], ["-1", 1], [7, false]])).unwrap(), expected);
        let mut read = biases(json!({ " the": -100, "-1": 1, "7": false })).unwrap();
        read.sort_by_key(|(target, _)| expected.iter().position(|(other, _)| other == target));
        assert_eq!(read, expected);
        assert_eq!(biases(json!({ "99999999999": 1 })).unwrap_err().param(), "logit_bias.99999999999");
    }
}
