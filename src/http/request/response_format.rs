//! The form that an answer must have: OpenAI's `response_format`, and shorter fields.
//!
//! | field | |
//! |---|---|
//! | `response_format` | `{"type": "text"}`, `{"type": "json_object"}`, `{"type": "json_schema", "json_schema": {"schema": …}}`; both JSON types also with `schema` beside `type`, as in llama.cpp |
//! | `json_schema` | a JSON schema (llama.cpp's name) |
//! | `grammar` | a grammar in Lark's syntax, from `start`, or in llama.cpp's (GBNF), from `root` |
//! | `regex` | a regular expression that matches the whole answer |
//! | `structured_outputs`, `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` | the same, as in vLLM; `choice` is a list of texts |
//! | `structural_tag`, in `structured_outputs` and as a type of `response_format` | text with tags whose content has a form, as in vLLM and xgrammar |
//!
//! At most one of them. The answer always matches, so `strict` changes nothing; a schema that cannot be enforced is refused.
//! Only an answer that reaches its token limit may end before it matches; its `finish_reason` is then `length`.

use serde_json::{Map, Value, json};

use super::{
    closed_objects::closed,
    compat, gbnf,
    schema::{
        FieldType, Location, Modify, array, boolean, either, json_object, object, shape, string, string_list,
        tagged_shape,
    },
    structural_tag,
};
use crate::{http::field_error::FieldError, job::Constraint};

shape! {
    /// Fields for the form of the answer. They are mutually exclusive.
    pub(crate) struct FormatFields {
        /// The form of the answer, as OpenAI describes it.
        response_format: Option<ResponseFormat> = object().optional();
        /// A JSON schema that the answer must match.
        json_schema: Option<Map<String, Value>> = json_object().optional();
        /// A grammar that the answer must match: in Lark's syntax, from `start`, or in llama.cpp's, from `root`.
        grammar: Option<Constraint> = grammar().optional().unset_at("\"\"");
        /// A regular expression that must match the whole answer.
        regex: Option<String> = string().optional();
        /// The form of the answer, as vLLM describes it.
        structured_outputs: Option<StructuredOutputs> = object().optional();
        /// The same as `json_schema`, as in vLLM.
        guided_json: Option<Map<String, Value>> = schema_or_text().optional();
        /// The same as `regex`, as in vLLM.
        guided_regex: Option<String> = string().optional();
        /// The answer is one of these texts.
        guided_choice: Vec<String> = choice().or_empty();
        /// The same as `grammar`, as in vLLM.
        guided_grammar: Option<Constraint> = grammar().optional().unset_at("\"\"");
    }
}

shape! {
    /// The form of the answer, as vLLM describes it: one of these.
    pub(crate) struct StructuredOutputs {
        json: Option<Map<String, Value>> = schema_or_text().optional();
        regex: Option<String> = string().optional();
        /// The answer is one of these texts.
        choice: Vec<String> = choice().or_empty();
        grammar: Option<Constraint> = grammar().optional();
        /// The answer is a JSON object.
        json_object: bool = boolean().or(false);
        /// Text with tags whose content has a form: an object, or its text.
        structural_tag: Option<Constraint> = tags_or_text().optional();
    }
    accepts compat::STRUCTURED_OUTPUTS;
}

/// Most texts to choose from, and their longest in bytes.
const MAX_CHOICES: usize = 256;
const MAX_CHOICE_BYTES: usize = 4096;

fn choice() -> impl FieldType<Value = Vec<String>> {
    string_list(MAX_CHOICES, MAX_CHOICE_BYTES, "a choice cannot be an empty text")
}

/// A schema, or its text.
fn schema_or_text() -> impl FieldType<Value = Map<String, Value>> {
    let parsed = |text: String, at: &Location| {
        serde_json::from_str(&text).map_err(|error| at.invalid(format!("is not a JSON schema: {error}")))
    };
    either(string().try_map(parsed), json_object()).named("SchemaOrText", "A JSON schema, or its text.")
}

/// A structural tag, or its text.
fn tags_or_text() -> impl FieldType<Value = Constraint> {
    schema_or_text().try_map(|tag, at| structural_tag::constraint(tag).map_err(|error| at.invalid(error)))
}

/// A grammar in either notation.
fn grammar() -> impl FieldType<Value = Constraint> {
    string().try_map(|text, at| match gbnf::is_gbnf(&text) {
        true => gbnf::to_lark(&text).map(Constraint::Lark).map_err(|error| at.invalid(error)),
        false => Ok(Constraint::Lark(text)),
    })
}

/// One of some texts.
fn one_of_texts(texts: &[String]) -> Option<Constraint> {
    let texts: Vec<_> = texts.iter().map(|text| fancy_regex::escape(text)).collect();
    (!texts.is_empty()).then(|| Constraint::Regex(texts.join("|")))
}

impl StructuredOutputs {
    fn constraint(self) -> Result<Option<Constraint>, FieldError> {
        let all = [
            ("structured_outputs.json", self.json.map(schema)),
            ("structured_outputs.regex", self.regex.map(Constraint::Regex)),
            ("structured_outputs.choice", one_of_texts(&self.choice)),
            ("structured_outputs.grammar", self.grammar),
            ("structured_outputs.json_object", self.json_object.then(any_object)),
            ("structured_outputs.structural_tag", self.structural_tag),
        ];
        let mut sent = all.into_iter().filter_map(|(name, constraint)| Some((name, constraint?)));
        match (sent.next(), sent.next()) {
            (Some((one, _)), Some((other, _))) => Err(FieldError::conflict(other, one)),
            (first, _) => Ok(first.map(|(_, constraint)| constraint)),
        }
    }
}

tagged_shape! {
    /// OpenAI's `response_format`.
    pub(crate) enum ResponseFormat by "type" {
        "text" => Text(AnyText),
        "json_object" => JsonObject(ObjectFormat),
        "json_schema" => JsonSchema(SchemaFormat),
        "structural_tag" => StructuralTag(StructuralTag),
    }
}

tagged_shape! {
    /// The form of the answer, as `/v1/responses` describes it.
    pub(crate) enum TextFormat by "type" {
        "text" => Text(AnyText),
        "json_object" => JsonObject(AnyObject),
        "json_schema" => JsonSchema(NamedSchema),
    }
}

shape! {
    /// Any text.
    pub(crate) struct AnyText {}
}

shape! {
    /// A JSON object.
    pub(crate) struct AnyObject {}
}

shape! {
    /// A JSON object.
    pub(crate) struct ObjectFormat {
        /// A schema that it matches, as in llama.cpp.
        schema: Option<Map<String, Value>> = json_object().optional();
    }
}

shape! {
    /// Text with tags whose content has a form, as vLLM and xgrammar describe it; either `format`, or `structures` with `triggers`.
    pub(crate) struct StructuralTag {
        format: Option<Map<String, Value>> = json_object().optional();
        structures: Option<Vec<Map<String, Value>>> = array(json_object()).optional();
        triggers: Vec<String> = string_list(MAX_CHOICES, MAX_CHOICE_BYTES, "a trigger cannot be an empty text").or_empty();
    }
}

shape! {
    /// JSON that matches a schema; either `json_schema` or `schema`.
    pub(crate) struct SchemaFormat {
        json_schema: Option<NamedSchema> = object().optional();
        /// The schema without its name, as in llama.cpp.
        schema: Option<Map<String, Value>> = json_object().optional();
    }
}

shape! {
    /// A JSON schema with a name.
    pub(crate) struct NamedSchema {
        /// The schema; it is always enforced, whatever `strict` is.
        schema: Map<String, Value> = json_object();
    }
    accepts compat::NAMED_SCHEMA;
}

/// A constraint on the answer, and the field that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutputConstraint {
    pub(crate) constraint: Constraint,
    /// The field of the request.
    pub(crate) param: String,
    /// The parts of a constraint that is made of several fields, each with its field, to find the one that is wrong. The
    /// answer may then be plain text as well.
    pub(crate) parts: Vec<(String, Constraint)>,
}

impl FormatFields {
    /// The constraint of these fields or of `text_format`, a form of another API with the name of its field.
    pub(crate) fn constraint(
        self,
        text_format: Option<(&'static str, TextFormat)>,
    ) -> Result<Option<OutputConstraint>, FieldError> {
        let response_format = self.response_format.map(ResponseFormat::constraint).transpose()?.flatten();
        let structured_outputs =
            self.structured_outputs.map(StructuredOutputs::constraint).transpose()?.flatten();
        let (param, text_format) = text_format.unzip();
        let param = param.unwrap_or_default();
        let candidates = [
            ("response_format", response_format),
            ("json_schema", self.json_schema.map(schema)),
            ("grammar", self.grammar),
            ("regex", self.regex.map(Constraint::Regex)),
            ("structured_outputs", structured_outputs),
            ("guided_json", self.guided_json.map(schema)),
            ("guided_regex", self.guided_regex.map(Constraint::Regex)),
            ("guided_choice", one_of_texts(&self.guided_choice)),
            ("guided_grammar", self.guided_grammar),
            (param, text_format.and_then(TextFormat::constraint)),
        ];
        let mut given = candidates.into_iter().filter_map(|(param, constraint)| Some((param, constraint?)));
        let Some((param, constraint)) = given.next() else { return Ok(None) };
        match given.next() {
            Some((other, _)) => Err(FieldError::conflict(other, param)),
            None => Ok(Some(OutputConstraint { constraint, param: param.into(), parts: Vec::new() })),
        }
    }
}

impl ResponseFormat {
    fn constraint(self) -> Result<Option<Constraint>, FieldError> {
        const NAMED: &str = "response_format.json_schema";
        match self {
            Self::Text(AnyText {}) => Ok(None),
            Self::StructuralTag(tag) => tag.constraint().map(Some),
            Self::JsonObject(format) => Ok(Some(format.schema.map_or_else(any_object, schema))),
            Self::JsonSchema(format) => match (format.json_schema, format.schema) {
                (Some(_), Some(_)) => Err(FieldError::conflict("response_format.schema", NAMED)),
                (Some(NamedSchema { schema: one }), None) | (None, Some(one)) => Ok(Some(schema(one))),
                (None, None) => Err(FieldError::Missing { param: NAMED.into() }),
            },
        }
    }
}

impl StructuralTag {
    fn constraint(self) -> Result<Constraint, FieldError> {
        let mut tag = Map::new();
        tag.extend(self.format.map(|format| ("format".into(), Value::Object(format))));
        tag.extend(self.structures.map(|structures| ("structures".into(), json!(structures))));
        tag.insert("triggers".into(), json!(self.triggers));
        structural_tag::constraint(tag).map_err(|error| FieldError::value("response_format", error))
    }
}

impl TextFormat {
    /// A JSON object.
    pub(crate) const fn any_object() -> Self {
        Self::JsonObject(AnyObject {})
    }

    /// JSON that matches a schema.
    pub(crate) const fn of_schema(schema: Map<String, Value>) -> Self {
        Self::JsonSchema(NamedSchema { schema })
    }

    fn constraint(self) -> Option<Constraint> {
        match self {
            Self::Text(AnyText {}) => None,
            Self::JsonObject(AnyObject {}) => Some(any_object()),
            Self::JsonSchema(named) => Some(schema(named.schema)),
        }
    }
}

fn any_object() -> Constraint {
    Constraint::Schema(json!({ "type": "object" }).to_string())
}

fn schema(schema: Map<String, Value>) -> Constraint {
    Constraint::Schema(closed(Value::Object(schema)).to_string())
}

impl OutputConstraint {
    /// Checks that no other field ends the answer. `ends` is whether `stop_token_ids` and `ignore_eos` were sent: the answer
    /// would end before it matches, or not when it does.
    pub(crate) fn check_ends(&self, ends: [bool; 2]) -> Result<(), FieldError> {
        let names = ["stop_token_ids", "ignore_eos"];
        match names.into_iter().zip(ends).find(|(_, is_sent)| *is_sent) {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!(
                    "cannot be combined with {}, which determines where the answer ends; leave one of them out",
                    self.param
                );
                Err(FieldError::value(name, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::schema::{Fields, ReadObject};

    fn constraint(body: &Value) -> Result<Option<OutputConstraint>, FieldError> {
        let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        FormatFields::read(fields)?.constraint(None)
    }

    #[test]
    fn a_schema_is_the_same_in_openais_envelope_and_without_it() {
        let schema =
            json!({ "type": "object", "properties": { "b": {}, "a": {} }, "additionalProperties": false });
        let named = json!({ "name": "n", "description": "d", "strict": true, "schema": schema });
        let format = json!({ "response_format": { "type": "json_schema", "json_schema": named } });
        let OutputConstraint { constraint: from_envelope, param, .. } = constraint(&format).unwrap().unwrap();
        assert_eq!(
            (&from_envelope, param.as_str()),
            (&Constraint::Schema(schema.to_string()), "response_format")
        );
        for kind in ["json_object", "json_schema"] {
            let beside = json!({ "response_format": { "type": kind, "schema": schema } });
            assert_eq!(constraint(&beside).unwrap().unwrap().constraint, from_envelope, "{kind}");
        }
        let bare = constraint(&json!({ "json_schema": schema })).unwrap().unwrap();
        assert_eq!(
            (bare.constraint, bare.param.as_str()),
            (from_envelope, "json_schema"),
            "the order of names is kept"
        );
    }

    #[test]
    fn text_is_no_constraint() {
        for body in [
            json!({}),
            json!({ "response_format": { "type": "text" } }),
            json!({ "regex": null }),
            json!({ "grammar": "" }),
        ] {
            assert_eq!(constraint(&body).unwrap(), None);
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
            (
                json!({ "response_format": { "type": "json_schema", "schema": {}, "json_schema": { "schema": {} } } }),
                "response_format.schema",
                "invalid_value",
            ),
            (json!({ "regex": "a", "grammar": "start: \"a\"" }), "regex", "invalid_value"),
            (json!({ "json_schema": true }), "json_schema", "invalid_type"),
        ] {
            let error = constraint(&body).unwrap_err();
            assert_eq!((error.param(), error.code()), (param, code), "{error}");
        }
    }
}
