//! Requests that name a model.

use super::fields::Fields;
use crate::http::field_error::FieldError;

/// The body of a request that is answered with a model.
pub(crate) trait ModelRequest: Sized + Send + 'static {
    /// Reads all fields of the body.
    ///
    /// # Errors
    /// When a field is missing, wrong or unknown.
    fn parse(fields: Fields) -> Result<Self, FieldError>;

    /// The id of the model; `None` for the first one that is served.
    fn model(&self) -> Option<&str>;
}

/// Implements [`ModelRequest`] for a shape with this field for the model.
macro_rules! names_model {
    ($name:ident, $($field:ident).+) => {
        impl $crate::http::request::model_request::ModelRequest for $name {
            fn parse(
                fields: $crate::http::request::fields::Fields,
            ) -> Result<Self, $crate::http::field_error::FieldError> {
                $crate::http::request::shape::ReadObject::read(fields)
            }

            fn model(&self) -> Option<&str> {
                self.$($field).+.as_deref()
            }
        }
    };
}

pub(crate) use names_model;
