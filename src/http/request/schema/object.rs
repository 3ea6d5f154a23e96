//! Objects of a request: one declaration gives the Rust type, its parser and its schema.
//!
//! ```text
//! shape! {
//!     /// What `stream_options` holds.
//!     pub(crate) struct StreamOptions {
//!         /// The last event has the usage of all choices.
//!         include_usage: bool = boolean().or(false);
//!     }
//!     accepts compat::STREAM_OPTIONS;
//! }
//! ```
//!
//! A line is a field: its doc comment, its name (`kind as "type"` where JSON has another name), its Rust type, and how it is
//! read ([`field`](super::field), [`types`](super::types)). `..group: Group;` includes the fields of another shape. `accepts`
//! names tables of fields that eka does not have; any other field is refused.
//!
//! [`tagged_shape!`] declares an object that has one of several shapes, depending on one field such as `type`.

use std::marker::PhantomData;

use serde_json::{Map, Value, json};

use super::{
    compat_field::CompatField,
    field::{FieldSpec, reference},
    fields::Fields,
    json_schema::{JsonType, Schemas, described, nullable, only_null_beside},
    location::Location,
    types::FieldType,
};
use crate::http::field_error::FieldError;

/// An object with fields that are known.
pub(crate) trait Shape: Sized + Send + 'static {
    /// The name of its schema.
    const NAME: &'static str;

    /// Its doc comment.
    const ABOUT: &'static str;

    /// Tables of the fields that are accepted at values that change nothing.
    const ACCEPTED: &'static [&'static [CompatField]];

    /// Takes the shape's own fields.
    fn take(fields: &mut Fields) -> Result<Self, FieldError>;

    /// Describes the shape's own fields.
    fn describe(object: &mut ObjectSchema<'_>);
}

/// What can be read from an object.
pub(crate) trait ReadObject: Sized + Send + 'static {
    /// The name of its schema.
    const NAME: &'static str;

    /// Reads all fields of an object.
    ///
    /// # Errors
    /// When a field is missing, wrong or unknown.
    fn read(fields: Fields) -> Result<Self, FieldError>;

    /// Its schema; those that it refers to are added to `schemas`.
    fn schema(schemas: &mut Schemas) -> Value;
}

impl<T: Shape> ReadObject for T {
    const NAME: &'static str = <T as Shape>::NAME;

    fn read(mut fields: Fields) -> Result<Self, FieldError> {
        let shape = Self::take(&mut fields)?;
        fields.finish(Self::ACCEPTED)?;
        Ok(shape)
    }

    fn schema(schemas: &mut Schemas) -> Value {
        ObjectSchema::new(schemas).of::<T>(Some(T::ACCEPTED))
    }
}

/// The field type of an object that is read as `T`.
pub(crate) const fn object<T: ReadObject>() -> ObjectOf<T> {
    ObjectOf(PhantomData)
}

pub(crate) struct ObjectOf<T>(PhantomData<T>);

impl<T: ReadObject> FieldType for ObjectOf<T> {
    type Value = T;
    const JSON: JsonType = JsonType::Object;

    fn read(&self, value: Value, at: &Location) -> Result<T, FieldError> {
        match value {
            Value::Object(object) => T::read(Fields::new(object, at.clone())),
            other => Err(at.wrong_type("an object", &other)),
        }
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        let schema = T::schema(schemas);
        schemas.insert(T::NAME.to_owned(), schema);
        reference(T::NAME)
    }
}

/// The schema of a shape while its fields are described.
pub(crate) struct ObjectSchema<'a> {
    properties: Map<String, Value>,
    required: Vec<&'a str>,
    groups: Vec<Value>,
    /// Names of the fields of the groups.
    grouped: Vec<String>,
    schemas: &'a mut Schemas,
}

impl<'a> ObjectSchema<'a> {
    fn new(schemas: &'a mut Schemas) -> Self {
        Self {
            properties: Map::new(),
            required: Vec::new(),
            groups: Vec::new(),
            grouped: Vec::new(),
            schemas,
        }
    }

    /// Adds a field; `about` is its doc comment.
    pub(crate) fn field<V>(&mut self, name: &'static str, about: &str, field: &impl FieldSpec<Value = V>) {
        let schema = described(field.describe(self.schemas), paragraphs(about));
        self.properties.insert(name.to_owned(), schema);
        if field.is_required() {
            self.required.push(name);
        }
    }

    /// Adds the fields of another shape.
    pub(crate) fn group<G: Shape>(&mut self) {
        let mut group = ObjectSchema::new(self.schemas);
        G::describe(&mut group);
        self.grouped.extend(group.properties.keys().chain(&group.grouped).cloned());
        let schema = group.finish::<G>(None);
        self.schemas.insert(<G as Shape>::NAME.to_owned(), schema);
        self.groups.push(reference(<G as Shape>::NAME));
    }

    /// The schema with the fields of `T`, which allows no others than those of `accepted`; `None` allows any.
    fn of<T: Shape>(mut self, accepted: Option<&[&[CompatField]]>) -> Value {
        T::describe(&mut self);
        self.finish::<T>(accepted)
    }

    fn finish<T: Shape>(mut self, accepted: Option<&[&[CompatField]]>) -> Value {
        // A field of a group is described there, not as one of another server.
        self.grouped.retain(|name| !self.properties.contains_key(name));
        let Self { mut properties, required, mut groups, grouped, .. } = self;
        CompatField::describe(accepted.into_iter().flatten().copied().flatten(), &mut properties);
        grouped.iter().for_each(|name| drop(properties.remove(name)));
        let mut schema = json!({ "type": "object" });
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        if !groups.is_empty() {
            groups.push(schema);
            schema = json!({ "allOf": groups });
        }
        let schema = if accepted.is_some() { only_null_beside(schema) } else { schema };
        described(schema, paragraphs(T::ABOUT))
    }
}

/// The values of the field that decides between the shapes of a [`tagged_shape!`].
pub(crate) struct TagValues {
    pub(crate) field: &'static str,
    pub(crate) values: &'static [&'static str],
    /// The value where the field is absent.
    pub(crate) default: Option<&'static str>,
}

/// The schema of one shape of a [`tagged_shape!`].
pub(crate) fn variant<T: Shape>(tag: TagValues, schemas: &mut Schemas) -> Value {
    let mut object = ObjectSchema::new(schemas);
    let schema = json!({ "type": "string", "enum": tag.values });
    let schema = if tag.default.is_some_and(|default| tag.values.contains(&default)) {
        nullable(schema)
    } else {
        object.required.push(tag.field);
        schema
    };
    object.properties.insert(tag.field.to_owned(), schema);
    object.of::<T>(Some(T::ACCEPTED))
}

/// The schema of a [`tagged_shape!`].
pub(crate) fn one_shape_of(about: &str, variants: &[Value]) -> Value {
    described(json!({ "oneOf": variants }), paragraphs(about))
}

/// Joins the lines of a doc comment; empty lines begin a new paragraph.
fn paragraphs(doc: &str) -> String {
    let lines: Vec<_> = doc.lines().map(str::trim).collect();
    lines.split(|line| line.is_empty()).map(|lines| lines.join(" ")).collect::<Vec<_>>().join("\n\n")
}

/// Declares an object with known fields; see the [module](self).
macro_rules! shape {
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $json:literal) => { $json };
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident {
            $( ..$group:ident: $group_type:ty; )*
            $( $(#[doc = $doc:literal])* $field:ident $(as $json:literal)?: $type:ty = $spec:expr; )*
        }
        $( accepts $($table:expr),+; )?
    ) => {
        $(#[doc = $about])*
        #[derive(Debug)]
        $vis struct $name {
            $( $vis $group: $group_type, )*
            $( $(#[doc = $doc])* $vis $field: $type, )*
        }

        impl $crate::http::request::schema::Shape for $name {
            const NAME: &'static str = stringify!($name);
            const ABOUT: &'static str = concat!($($about, "\n"),*);
            const ACCEPTED: &'static [&'static [$crate::http::request::schema::CompatField]] = &[$($($table),+)?];

            #[allow(unused_variables, reason = "a shape may have no fields")]
            fn take(
                fields: &mut $crate::http::request::schema::Fields,
            ) -> Result<Self, $crate::http::field_error::FieldError> {
                Ok(Self {
                    $( $field: fields.take($crate::http::request::schema::shape!(@name $field $($json)?), $spec)?, )*
                    $( $group: <$group_type as $crate::http::request::schema::Shape>::take(fields)?, )*
                })
            }

            #[allow(unused_variables, reason = "a shape may have no fields")]
            fn describe(object: &mut $crate::http::request::schema::ObjectSchema<'_>) {
                $( object.group::<$group_type>(); )*
                $( object.field::<$type>(
                    $crate::http::request::schema::shape!(@name $field $($json)?),
                    concat!($($doc, "\n"),*),
                    &$spec,
                ); )*
            }
        }
    };
}

/// Declares an object that has one of several shapes, depending on one field:
/// `enum Part by "type" { "text" => Text(TextPart), … }`. After `or` comes the value of objects without that field.
macro_rules! tagged_shape {
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
    (
        $(#[doc = $about:literal])*
        $vis:vis enum $name:ident by $tag:literal $(or $default:literal)? {
            $( $($value:literal)|+ => $variant:ident($shape:ty), )+
        }
    ) => {
        $(#[doc = $about])*
        #[allow(clippy::large_enum_variant, reason = "a request has few of them, and each is read once")]
        #[derive(Debug)]
        $vis enum $name {
            $( $variant($shape), )+
        }

        impl $crate::http::request::schema::ReadObject for $name {
            const NAME: &'static str = stringify!($name);

            fn read(
                mut fields: $crate::http::request::schema::Fields,
            ) -> Result<Self, $crate::http::field_error::FieldError> {
                let default = $crate::http::request::schema::tagged_shape!(@default $($default)?);
                let tag = fields.take_tag($tag, default)?;
                match tag.as_str() {
                    $( $($value)|+ => {
                        $crate::http::request::schema::ReadObject::read(fields).map(Self::$variant)
                    } )+
                    other => {
                        let supported = [$($($value),+),+];
                        Err(fields.location($tag).unsupported(other, supported.into_iter()))
                    }
                }
            }

            fn schema(schemas: &mut $crate::http::request::schema::Schemas) -> serde_json::Value {
                let default = $crate::http::request::schema::tagged_shape!(@default $($default)?);
                let variants = [$({
                    let tag = $crate::http::request::schema::TagValues {
                        field: $tag,
                        values: &[$($value),+],
                        default,
                    };
                    $crate::http::request::schema::variant::<$shape>(tag, schemas)
                }),+];
                $crate::http::request::schema::one_shape_of(concat!($($about, "\n"),*), &variants)
            }
        }
    };
}

pub(crate) use {shape, tagged_shape};
