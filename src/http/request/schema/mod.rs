//! A declaration of request bodies from which their parser and their JSON schema are made, so the two cannot differ.
//!
//! [`mod@object`] declares objects, [`types`] the types of their fields, and [`field`] what an absent field means.

mod compat_field;
mod field;
mod fields;
mod ignored_fields;
mod json_schema;
mod location;
mod object;
mod string_list;
mod types;
mod unique_keys;

pub(crate) use self::{
    compat_field::{Accepted, CompatField, compat_fields},
    field::{Modify, OptionalField},
    fields::Fields,
    ignored_fields::Ignored,
    json_schema::{JsonType, Schemas, nullable},
    location::Location,
    object::{
        ObjectSchema, ReadObject, Shape, TagValues, object, one_shape_of, shape, tagged_shape, variant,
    },
    string_list::string_list,
    types::{
        FieldType, array, boolean, check_count, counted, custom, either, integer, integer_from, json_object,
        number, one_of, string, whole,
    },
};
