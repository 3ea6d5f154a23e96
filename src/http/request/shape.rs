//! Objects of a request: one declaration gives the Rust type, its parser and its OpenAPI schema.
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
//! read ([`field`](super::field), [`field_types`](super::field_types)). `..group: Group;` includes the fields of another
//! shape. `accepts` names tables of fields that eka does not have; any other field is refused.
//!
//! [`tagged_shape!`] declares an object that has one of several shapes, depending on one field such as `type`.

use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{
        Ref, RefOr,
        schema::{AllOf, Object, ObjectBuilder, OneOf, Schema, Type},
    },
};

use super::{
    compat::CompatField,
    field::FieldSpec,
    field_types::FieldType,
    fields::Fields,
    json_type::JsonType,
    location::Location,
    schema::{Schemas, described, only_null_beside},
};
use crate::http::field_error::FieldError;

/// An object with fields that are known.
pub(crate) trait Shape: ToSchema + Sized {
    /// Its doc comment, line by line.
    const ABOUT: &'static [&'static str];

    /// Tables of the fields that are accepted at values that change nothing.
    const ACCEPTED: &'static [&'static [CompatField]];

    /// Takes the shape's own fields.
    fn take(fields: &mut Fields) -> Result<Self, FieldError>;

    /// Describes the shape's own fields.
    fn describe(object: &mut ObjectSchema<'_>);
}

/// What can be read from an object.
pub(crate) trait ReadObject: ToSchema + Sized {
    /// Reads all fields of an object.
    ///
    /// # Errors
    /// When a field is missing, wrong or unknown.
    fn read(fields: Fields) -> Result<Self, FieldError>;
}

impl<T: Shape> ReadObject for T {
    fn read(mut fields: Fields) -> Result<Self, FieldError> {
        let shape = Self::take(&mut fields)?;
        fields.finish(Self::ACCEPTED)?;
        Ok(shape)
    }
}

/// The field type of an object that is read as `T`.
pub(crate) const fn object<T: ReadObject>() -> ShapeType<T> {
    ShapeType(std::marker::PhantomData)
}

pub(crate) struct ShapeType<T>(std::marker::PhantomData<T>);

impl<T: ReadObject> FieldType for ShapeType<T> {
    type Value = T;
    const JSON: JsonType = JsonType::Object;

    fn read(&self, value: Value, at: &Location) -> Result<T, FieldError> {
        match value {
            Value::Object(object) => T::read(Fields::new(object, at.clone())),
            other => Err(at.wrong_type("an object", &other)),
        }
    }

    fn schema(&self, schemas: &mut Schemas) -> RefOr<Schema> {
        let name = T::name();
        schemas.push((name.to_string(), T::schema()));
        T::schemas(schemas);
        Ref::from_schema_name(name).into()
    }
}

/// The schema of a shape while its fields are described.
pub(crate) struct ObjectSchema<'a> {
    object: Object,
    groups: Vec<RefOr<Schema>>,
    schemas: &'a mut Schemas,
}

impl<'a> ObjectSchema<'a> {
    pub(crate) fn new(schemas: &'a mut Schemas) -> Self {
        Self { object: Object::with_type(Type::Object), groups: Vec::new(), schemas }
    }

    /// Adds a field; `about` is its doc comment, line by line.
    pub(crate) fn field<V>(&mut self, name: &str, about: &[&str], field: &impl FieldSpec<Value = V>) {
        let schema = described(field.describe(self.schemas), paragraph(about));
        self.object.properties.insert(name.to_owned(), schema);
        if field.is_required() {
            self.object.required.push(name.to_owned());
        }
    }

    /// Adds the field that decides the shape of a [`tagged_shape!`].
    fn tag(&mut self, name: &str, values: &[&str], is_default: bool) {
        let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(values.iter().copied()));
        self.object.properties.insert(name.to_owned(), schema.into());
        if !is_default {
            self.object.required.push(name.to_owned());
        }
    }

    /// Adds the fields of another shape.
    pub(crate) fn group<G: Shape>(&mut self) {
        let mut group = ObjectSchema::new(self.schemas);
        G::describe(&mut group);
        let schema = described(group.build(None), paragraph(G::ABOUT));
        self.schemas.push((G::name().to_string(), schema));
        self.groups.push(Ref::from_schema_name(G::name()).into());
    }

    /// The finished schema, which allows no other fields than those of `accepted`; `None` allows any.
    fn build(mut self, accepted: Option<&[&[CompatField]]>) -> RefOr<Schema> {
        for field in accepted.into_iter().flatten().copied().flatten() {
            let properties = &mut self.object.properties;
            properties.entry(field.name.to_owned()).or_insert_with(|| field.schema());
        }
        let extensions = accepted.map(|_| only_null_beside());
        if self.groups.is_empty() {
            self.object.extensions = extensions;
            return self.object.into();
        }
        let mut all_of = AllOf::new();
        all_of.items = self.groups;
        all_of.items.push(self.object.into());
        all_of.extensions = extensions;
        Schema::AllOf(all_of).into()
    }
}

/// The schema of a shape.
pub(crate) fn shape_schema<T: Shape>(schemas: &mut Schemas) -> RefOr<Schema> {
    let mut object = ObjectSchema::new(schemas);
    T::describe(&mut object);
    described(object.build(Some(T::ACCEPTED)), paragraph(T::ABOUT))
}

/// The schema of one shape of a [`tagged_shape!`].
pub(crate) fn variant_schema<T: Shape>(
    tag: &str,
    values: &[&str],
    is_default: bool,
    schemas: &mut Schemas,
) -> RefOr<Schema> {
    let mut object = ObjectSchema::new(schemas);
    object.tag(tag, values, is_default);
    T::describe(&mut object);
    described(object.build(Some(T::ACCEPTED)), paragraph(T::ABOUT))
}

/// The schema of a [`tagged_shape!`].
pub(crate) fn tagged_schema(about: &[&str], variants: Vec<RefOr<Schema>>) -> RefOr<Schema> {
    let mut one_of = OneOf::new();
    one_of.items = variants;
    described(Schema::OneOf(one_of).into(), paragraph(about))
}

/// Joins the lines of a doc comment; empty lines begin a new paragraph.
fn paragraph(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines.iter().map(|line| line.trim()) {
        text.push_str(match line {
            "" => "\n\n",
            _ if text.is_empty() || text.ends_with('\n') => "",
            _ => " ",
        });
        text.push_str(line);
    }
    text
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

        impl $crate::http::request::shape::Shape for $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];
            const ACCEPTED: &'static [&'static [$crate::http::request::compat::CompatField]] = &[$($($table),+)?];

            #[allow(unused_variables, reason = "a shape may have no fields")]
            fn take(
                fields: &mut $crate::http::request::fields::Fields,
            ) -> Result<Self, $crate::http::field_error::FieldError> {
                Ok(Self {
                    $( $group: <$group_type as $crate::http::request::shape::Shape>::take(fields)?, )*
                    $( $field: fields.take($crate::http::request::shape::shape!(@name $field $($json)?), $spec)?, )*
                })
            }

            #[allow(unused_variables, reason = "a shape may have no fields")]
            fn describe(object: &mut $crate::http::request::shape::ObjectSchema<'_>) {
                $( object.group::<$group_type>(); )*
                $( object.field::<$type>(
                    $crate::http::request::shape::shape!(@name $field $($json)?),
                    &[$($doc),*],
                    &$spec,
                ); )*
            }
        }

        $crate::http::request::shape::describe_with!($name, $crate::http::request::shape::shape_schema::<$name>);
    };
}

/// Declares an object that has one of several shapes, depending on one field:
/// `enum Part by "type" { "text" => Text(TextPart), … }`. After `or` comes the shape of objects without that field.
macro_rules! tagged_shape {
    (
        $(#[doc = $about:literal])*
        $vis:vis enum $name:ident by $tag:literal $(or $default:literal)? {
            $( $($value:literal)|+ => $variant:ident($shape:ty), )+
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug)]
        $vis enum $name {
            $( $variant($shape), )+
        }

        impl $name {
            /// The value of the deciding field where it is absent.
            const DEFAULT_TAGS: &'static [&'static str] = &[$($default)?];

            fn describe_variants(
                schemas: &mut $crate::http::request::schema::Schemas,
            ) -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let variants = vec![$({
                    let values = &[$($value),+];
                    let is_default = Self::DEFAULT_TAGS.iter().any(|tag| values.contains(tag));
                    $crate::http::request::shape::variant_schema::<$shape>($tag, values, is_default, schemas)
                }),+];
                $crate::http::request::shape::tagged_schema(&[$($about),*], variants)
            }
        }

        impl $crate::http::request::shape::ReadObject for $name {
            fn read(
                mut fields: $crate::http::request::fields::Fields,
            ) -> Result<Self, $crate::http::field_error::FieldError> {
                let tag = fields.take_tag($tag, Self::DEFAULT_TAGS.first().copied())?;
                match tag.as_str() {
                    $( $($value)|+ => {
                        $crate::http::request::shape::ReadObject::read(fields).map(Self::$variant)
                    } )+
                    other => {
                        let supported = [$($($value),+),+];
                        Err(fields.location($tag).unsupported(other, supported.into_iter()))
                    }
                }
            }
        }

        $crate::http::request::shape::describe_with!($name, $name::describe_variants);
    };
}

/// Implements utoipa's traits by a function that describes the type.
macro_rules! describe_with {
    ($name:ident, $describe:expr) => {
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                $describe(&mut Vec::new())
            }
        }

        impl utoipa::ToSchema for $name {
            fn schemas(schemas: &mut $crate::http::request::schema::Schemas) {
                $describe(schemas);
            }
        }
    };
}

pub(crate) use {describe_with, shape, tagged_shape};
