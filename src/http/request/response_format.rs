//! The form that an answer must have: OpenAI's `response_format`, and three fields that say the same with less around it.
//!
//! | field | |
//! |---|---|
//! | `response_format` | `{"type": "text"}`, `{"type": "json_object"}`, `{"type": "json_schema", "json_schema": {"schema": …}}` |
//! | `json_schema` | a JSON schema (llama.cpp's name) |
//! | `grammar` | a grammar in Lark's syntax, from `start` |
//! | `regex` | a regular expression that matches the whole answer |
//!
//! At most one of them. A form is always kept to the letter, so `strict` asks for nothing more; what cannot be kept is
//! refused, not ignored. Only an answer that runs into its number of tokens is cut before it has its form, and its
//! `finish_reason` says so.

use serde_json::{Value, json};

use super::fields::{Fields, wrong_type};
use crate::{http::field_error::FieldError, job::Constraint};

/// The form that an answer must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) constraint: Constraint,
    /// The field that asked for it.
    pub(crate) param: String,
    /// Of a form that is made of several fields, those that may be at fault and what each asks for. Such an answer may be text
    /// as well.
    pub(crate) parts: Vec<(String, Constraint)>,
}

impl Form {
    /// Takes the fields that ask for a form.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>, FieldError> {
        let format = fields.take::<Value>("response_format")?.map(|format| format_of(format, fields));
        let schema = fields.take::<Value>("json_schema")?;
        let asked = [
            ("response_format", format.transpose()?.flatten()),
            ("json_schema", schema.map(|schema| schema_of(&schema, "json_schema")).transpose()?),
            // llama-server's clients send "" for no grammar.
            (
                "grammar",
                fields.take("grammar")?.filter(|text: &String| !text.is_empty()).map(Constraint::Lark),
            ),
            ("regex", fields.take("regex")?.map(Constraint::Regex)),
        ];
        let mut forms = asked.into_iter().filter_map(|(param, constraint)| Some((param, constraint?)));
        let Some((param, constraint)) = forms.next() else { return Ok(None) };
        match forms.next() {
            Some((other, _)) => {
                Err(FieldError::value(other, format!("is given together with {param}; send one of them")))
            }
            None => Ok(Some(Self { constraint, param: param.into(), parts: Vec::new() })),
        }
    }

    /// Takes `format`, OpenAI's newer spelling: the schema stands beside its name.
    pub(crate) fn take_flat(fields: &mut Fields) -> Result<Option<Self>, FieldError> {
        let Some(format) = fields.take::<Value>("format")? else { return Ok(None) };
        let param = fields.path("format");
        let mut format = fields.nested(format, &param)?;
        let constraint = constraint_of(&mut format, take_schema)?;
        format.finish(&[])?;
        Ok(constraint.map(|constraint| Self { constraint, param, parts: Vec::new() }))
    }

    /// Checks that nothing else asks for an end of the answer, in the order `stop`, `stop_token_ids`, `ignore_eos`: it
    /// would come before the form is complete, or not when it is.
    pub(crate) fn check_ends(&self, fields: &Fields, asked: [bool; 3]) -> Result<(), FieldError> {
        let names = ["stop", "stop_token_ids", "ignore_eos"];
        match names.iter().zip(asked).find(|(_, asked)| *asked) {
            None => Ok(()),
            Some((name, _)) => {
                let said = format!(
                    "is given together with {}, which alone says where the answer ends; leave one of them out",
                    self.param
                );
                Err(FieldError::value(fields.path(name), said))
            }
        }
    }
}

fn format_of(format: Value, fields: &Fields) -> Result<Option<Constraint>, FieldError> {
    let mut format = fields.nested(format, &fields.path("response_format"))?;
    let constraint = constraint_of(&mut format, named_schema)?;
    format.finish(&[])?;
    Ok(constraint)
}

/// Takes a format's type and, with `take_schema`, what belongs to a schema.
fn constraint_of(
    format: &mut Fields,
    take_schema: fn(&mut Fields) -> Result<Constraint, FieldError>,
) -> Result<Option<Constraint>, FieldError> {
    let kind: String = format.require("type")?;
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(Constraint::Schema(json!({ "type": "object" }).to_string()))),
        "json_schema" => take_schema(format).map(Some),
        other => {
            let said = format!(
                "{other:?} is not a format that eka knows; it knows text, json_object and json_schema"
            );
            Err(FieldError::value(format.path("type"), said))
        }
    }
}

/// OpenAI's envelope of a schema. Name and description are for models that are told them, which no chat template does.
fn named_schema(format: &mut Fields) -> Result<Constraint, FieldError> {
    let mut named = format.require_nested("json_schema")?;
    let constraint = take_schema(&mut named)?;
    named.finish(&[])?;
    Ok(constraint)
}

fn take_schema(named: &mut Fields) -> Result<Constraint, FieldError> {
    let (_name, _description) = (named.take::<String>("name")?, named.take::<String>("description")?);
    let _strict: Option<bool> = named.take("strict")?;
    schema_of(&named.require("schema")?, &named.path("schema"))
}

fn schema_of(schema: &Value, path: &str) -> Result<Constraint, FieldError> {
    if schema.is_object() {
        Ok(Constraint::Schema(schema.to_string()))
    } else {
        Err(wrong_type(path, "a JSON schema, which is an object", schema))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(body: &Value) -> Result<Option<Form>, FieldError> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        let form = Form::take(&mut fields)?;
        fields.finish(&[])?;
        Ok(form)
    }

    #[test]
    fn a_schema_is_the_same_in_openais_envelope_and_without_it() {
        let schema = json!({ "type": "object", "properties": { "b": {}, "a": {} } });
        let named = json!({ "name": "n", "description": "d", "strict": true, "schema": schema });
        let format = json!({ "response_format": { "type": "json_schema", "json_schema": named } });
        let Form { constraint, param, .. } = form(&format).unwrap().unwrap();
        assert_eq!(
            (&constraint, param.as_str()),
            (&Constraint::Schema(schema.to_string()), "response_format")
        );
        let bare = form(&json!({ "json_schema": schema })).unwrap().unwrap();
        assert_eq!(
            (bare.constraint, bare.param.as_str()),
            (constraint, "json_schema"),
            "the order of names is kept"
        );
    }

    #[test]
    fn text_asks_for_nothing() {
        for body in [
            json!({}),
            json!({ "response_format": { "type": "text" } }),
            json!({ "regex": null }),
            json!({ "grammar": "" }),
        ] {
            assert_eq!(form(&body).unwrap(), None);
        }
    }

    #[test]
    fn mistakes_name_the_field_within_the_format() {
        for (body, param, code) in [
            (json!({ "response_format": "json" }), "response_format", "invalid_type"),
            (json!({ "response_format": {} }), "response_format.type", "missing_field"),
            (json!({ "response_format": { "type": "yaml" } }), "response_format.type", "invalid_value"),
            (
                json!({ "response_format": { "type": "json_schema" } }),
                "response_format.json_schema",
                "missing_field",
            ),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": [] } } }),
                "response_format.json_schema.schema",
                "invalid_type",
            ),
            (
                json!({ "response_format": { "type": "json_object", "scheme": {} } }),
                "response_format.scheme",
                "unknown_field",
            ),
            (json!({ "regex": "a", "grammar": "start: \"a\"" }), "regex", "invalid_value"),
            (json!({ "json_schema": true }), "json_schema", "invalid_type"),
        ] {
            let error = form(&body).unwrap_err();
            assert_eq!((error.param(), error.code()), (param, code), "{error}");
        }
    }
}
