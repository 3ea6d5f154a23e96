//! Edits of OpenAPI schemas that their builders do not offer.

use serde_json::Value;
use utoipa::openapi::{
    Deprecated, RefOr,
    extensions::Extensions,
    schema::{Object, OneOf, OneOfBuilder, Schema, SchemaType, Type},
};

/// The named schemas that a schema refers to, as utoipa collects them.
pub(crate) type Schemas = Vec<(String, RefOr<Schema>)>;

/// Also allows `null`.
pub(super) fn nullable(schema: RefOr<Schema>) -> RefOr<Schema> {
    match schema {
        RefOr::T(Schema::Object(mut object)) => {
            if let Some(values) = &mut object.enum_values {
                values.insert(0, Value::Null);
            }
            object.schema_type = or_null(object.schema_type);
            object.into()
        }
        RefOr::T(Schema::Array(mut array)) => {
            array.schema_type = or_null(array.schema_type);
            array.into()
        }
        RefOr::T(Schema::OneOf(mut one_of)) => {
            one_of.items.push(null());
            Schema::OneOf(one_of).into()
        }
        other => OneOfBuilder::new().item(other).item(null()).into(),
    }
}

fn null() -> RefOr<Schema> {
    Object::with_type(Type::Null).into()
}

fn or_null(schema_type: SchemaType) -> SchemaType {
    match schema_type {
        SchemaType::Type(one) => SchemaType::Array(vec![one, Type::Null]),
        other => other,
    }
}

/// Sets the description; an empty one changes nothing.
pub(super) fn described(mut schema: RefOr<Schema>, description: String) -> RefOr<Schema> {
    if description.is_empty() {
        return schema;
    }
    match &mut schema {
        RefOr::Ref(reference) => reference.description = description,
        RefOr::T(
            Schema::Object(Object { description: old, .. }) | Schema::OneOf(OneOf { description: old, .. }),
        ) => {
            *old = Some(description);
        }
        RefOr::T(Schema::Array(array)) => array.description = Some(description),
        RefOr::T(Schema::AllOf(all_of)) => all_of.description = Some(description),
        RefOr::T(_) => {}
    }
    schema
}

/// Sets the default.
pub(super) fn with_default(mut schema: RefOr<Schema>, default: Value) -> RefOr<Schema> {
    match &mut schema {
        RefOr::T(Schema::Object(object)) => object.default = Some(default),
        RefOr::T(Schema::Array(array)) => array.default = Some(default),
        RefOr::T(Schema::OneOf(one_of)) => one_of.default = Some(default),
        _ => {}
    }
    schema
}

/// Marks a schema as deprecated.
pub(super) fn deprecated(mut schema: RefOr<Schema>) -> RefOr<Schema> {
    if let RefOr::T(Schema::Object(object)) = &mut schema {
        object.deprecated = Some(Deprecated::True);
    }
    schema
}

/// Allows further properties only where they are null: that is the same as absent.
pub(super) fn only_null_beside() -> Extensions {
    let null = serde_json::json!({ "type": "null" });
    Extensions::from_iter([("unevaluatedProperties", null)])
}
