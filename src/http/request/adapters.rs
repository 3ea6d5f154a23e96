//! The adapters of a request.

use super::schema::{FieldType, Modify, array, number, object, shape, string};

/// Most adapters of one request.
const MAX_ADAPTERS: usize = 8;

shape! {
    /// An adapter of the request's model.
    pub(crate) struct AdapterChoice {
        /// Its name: that of its directory beside the model.
        name: String = string();
        /// Factor of what it adds; 1 is as it was trained.
        weight: f32 = number(-100.0..=100.0).or(1.0);
    }
}

/// Several adapters, each with its weight.
pub(super) fn adapters() -> impl FieldType<Value = Vec<AdapterChoice>> {
    array(object()).items(0..=MAX_ADAPTERS)
}
