//! The fields of a request's body, or of an object within it.
//!
//! Every known field is taken by its name; a field that remains is an error, so none is ignored in silence. `null` is the
//! same as absent. Errors name the field with its path (`messages[2].content`), the value and the limit.
//!
//! With `server.unknown_fields = warn`, unknown fields are noted in [`Ignored`] instead.

use serde_json::{Map, Value};

use super::{
    compat_field::CompatField,
    field::{FieldSpec, Modify},
    ignored_fields::Ignored,
    location::Location,
    types::string,
    unique_keys,
};
use crate::{config::UnknownFields, http::field_error::FieldError};

/// The fields of an object that were not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    object: Map<String, Value>,
    location: Location,
}

impl Fields {
    /// The fields of the body.
    ///
    /// # Errors
    /// When it is not a JSON object, or a name comes twice in an object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self::new(unique_keys::object(body)?, Location::default()))
    }

    /// The fields of an object within the body.
    pub(crate) const fn new(object: Map<String, Value>, location: Location) -> Self {
        Self { object, location }
    }

    /// Sets what happens to unknown fields, here and in objects within; by default they are refused.
    pub(crate) fn with_unknown(self, unknown: UnknownFields) -> Self {
        Self { location: Location::body(unknown), ..self }
    }

    /// The place of a field.
    pub(crate) fn location(&self, name: &str) -> Location {
        self.location.field(name)
    }

    /// A field that is there and not null, left where it is.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field.
    ///
    /// In constant time: `shift_remove` would keep the order of the others, and move up to all of them for each field taken.
    ///
    /// # Errors
    /// When the field is required and missing, or its value is wrong.
    pub(crate) fn take<F: FieldSpec>(&mut self, name: &str, field: F) -> Result<F::Value, FieldError> {
        field.take(self.object.swap_remove(name), || self.location.field(name))
    }

    /// Takes the field that decides the shape of this object; `default` is its value where it is absent.
    pub(crate) fn take_tag(&mut self, name: &str, default: Option<&str>) -> Result<String, FieldError> {
        let tag = self.take(name, string().optional())?;
        tag.or(default.map(str::to_owned)).ok_or_else(|| self.location.field(name).missing())
    }

    /// Collects the unknown fields that are ignored, here and in objects within.
    pub(crate) fn ignored(&self) -> Ignored {
        self.location.ignored()
    }

    /// Checks that nothing remains but fields of `accepted` at values that change nothing.
    ///
    /// # Errors
    /// When there is another field, or another value; none where unknown fields are ignored.
    pub(crate) fn finish(self, accepted: &[&[CompatField]]) -> Result<(), FieldError> {
        for (name, value) in self.object.iter().filter(|(_, value)| !value.is_null()) {
            let at = self.location.field(name);
            let checked = match CompatField::find(accepted.iter().copied().flatten(), name) {
                Some(field) => field.check(value, &at),
                None => Err(FieldError::Unknown { param: at.path().to_owned() }),
            };
            checked.or_else(|error| at.refuse(error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::request::{
        prompt::token_ids,
        schema::{compat_fields, integer, integer_from, number},
    };

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).unwrap()
    }

    fn nested(object: Value, path: &str) -> Fields {
        let Value::Object(object) = object else { panic!("{object} is not an object") };
        Fields::new(object, Location::default().field(path))
    }

    #[test]
    fn null_is_absent() {
        let mut fields = fields(r#"{"a": null}"#);
        assert_eq!(fields.take("a", string().optional()).unwrap(), None);
        assert_eq!(fields.take("b", string().optional()).unwrap(), None);
        fields.finish(&[]).unwrap();
    }

    #[test]
    fn taking_every_field_of_a_large_object_moves_no_other_field() {
        let names: Vec<String> = (0..40_000).map(|n| format!("field_{n}")).collect();
        let object = names.iter().map(|name| (name.clone(), Value::from(1))).collect();
        let mut fields = nested(Value::Object(object), "logit_bias");
        assert_eq!(fields.take(&names[0], integer_from::<u64>(0)).unwrap(), 1);
        // `shift_remove` would have put the second field in the first place.
        assert_eq!(fields.object.keys().next(), names.last());
        for name in &names[1..] {
            assert_eq!(fields.take(name, integer_from::<u64>(0)).unwrap(), 1);
        }
        fields.finish(&[]).unwrap();
    }

    #[test]
    fn an_error_names_the_place_within_a_field() {
        let error = fields(r#"{"ids": [1, "two"]}"#).take("ids", token_ids()).unwrap_err();
        assert_eq!((error.param(), error.code()), ("ids[1]", "invalid_type"));
        let mut nested = nested(json!({"role": 7}), "messages[2]");
        assert_eq!(nested.take("role", string()).unwrap_err().param(), "messages[2].role");
        assert_eq!(nested.take("content", string()).unwrap_err().code(), "missing_field");
    }

    #[test]
    fn numbers_out_of_range_name_field_value_and_limit() {
        for (body, message) in [
            (r#"{"t": 2.5}"#, "t is 2.5, outside 0 to 2"),
            (r#"{"t": -0.1}"#, "t is -0.1, outside 0 to 2"),
            (r#"{"t": 1e300}"#, "t is 1e+300, outside 0 to 2"),
        ] {
            assert_eq!(fields(body).take("t", number(0.0..=2.0)).unwrap_err().to_string(), message);
        }
        for (body, message) in [
            (r#"{"n": 0}"#, "n is 0, outside 1 to 9"),
            (r#"{"n": -1}"#, "n is -1, outside 1 to 9"),
            (r#"{"n": 1.5}"#, "n is 1.5, outside 1 to 9"),
            (r#"{"n": 123456789012345678901234567890}"#, "n is 1.2345678901234568e+29, outside 1 to 9"),
        ] {
            assert_eq!(fields(body).take("n", integer::<usize>(1..=9)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_number_that_json_cannot_hold_is_not_json() {
        assert!(Fields::parse(br#"{"t": 1e999}"#).is_err());
        assert!(Fields::parse(br#"{"t": NaN}"#).is_err());
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_point_or_an_exponent() {
        let take = |body| fields(body).take("n", integer::<u64>(0..=100));
        for (body, found) in [(r#"{"n": 5.0}"#, 5), (r#"{"n": 1e2}"#, 100), (r#"{"n": -0.0}"#, 0)] {
            assert_eq!(take(body).unwrap(), found, "{body}");
        }
        for body in [r#"{"n": 5.5}"#, r#"{"n": 1e40}"#, r#"{"n": -1.0}"#] {
            assert_eq!(take(body).unwrap_err().code(), "invalid_value", "{body}");
        }
        assert_eq!(fields(r#"{"ids": [1, 2.0, 3e0]}"#).take("ids", token_ids()).unwrap(), [1, 2, 3]);
        for ids in ["[1, 2.5]", "[1, -1]", "[1, 4294967296]", "[1, \"2\"]"] {
            let error = fields(&format!("{{\"ids\": {ids}}}")).take("ids", token_ids()).unwrap_err();
            assert_eq!((error.param(), error.code()), ("ids[1]", "invalid_type"));
        }
    }

    compat_fields! {
        ACCEPTED {
            "mirostat": off(0), "eka does not have it";
        }
    }

    #[test]
    fn a_field_that_is_not_supported_is_refused_unless_it_is_null_or_off() {
        for body in
            [r#"{"mirostat": 0}"#, r#"{"mirostat": 0.0}"#, r#"{"mirostat": null}"#, r#"{"new": null}"#]
        {
            fields(body).finish(&[ACCEPTED]).unwrap();
        }
        let more = fields(r#"{"mirostat": 2}"#).finish(&[ACCEPTED]).unwrap_err();
        assert_eq!((more.param(), more.code()), ("mirostat", "unsupported_field"));
        assert!(more.to_string().ends_with("leave it out or send 0; eka does not have it"), "{more}");
        let typo = fields(r#"{"temprature": 1}"#).finish(&[ACCEPTED]).unwrap_err();
        assert_eq!((typo.param(), typo.code()), ("temprature", "unknown_field"));
    }

    #[test]
    fn with_warn_fields_are_noted_instead_of_refused_nested_ones_too() {
        let all = fields(r#"{"mirostat": 2, "seed": null, "new": 1}"#).with_unknown(UnknownFields::Warn);
        let object = json!({ "b": 1, "c": null }).as_object().unwrap().clone();
        Fields::new(object, all.location("a").item(0)).finish(&[]).unwrap();
        let ignored = all.ignored();
        all.finish(&[ACCEPTED]).unwrap();
        let header = ignored.to_header().unwrap();
        assert_eq!(header.to_str().unwrap(), "a[0].b, mirostat, new");
    }
}
