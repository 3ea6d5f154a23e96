//! Registers functions, filters and tests that take their arguments unparsed.

use minijinja::{
    Environment, Error, State, Value,
    value::{Rest, ValueOrKwargs},
};

/// Adds a function that takes its arguments unparsed.
pub(super) fn add_function(
    environment: &mut Environment<'_>,
    name: &'static str,
    function: impl Fn(&mut State<'_, '_>, &[Value]) -> Result<Value, Error> + Send + Sync + 'static,
) {
    environment.add_function(name, move |state: &mut State<'_, '_>, given: Rest<ValueOrKwargs>| {
        function(state, &given.into_values())
    });
}

/// Adds a filter that takes its arguments unparsed; the first is the filtered value.
pub(super) fn add_filter(
    environment: &mut Environment<'_>,
    name: &'static str,
    filter: impl Fn(&mut State<'_, '_>, &[Value]) -> Result<Value, Error> + Send + Sync + 'static,
) {
    environment.add_filter(name, move |state: &mut State<'_, '_>, given: Rest<ValueOrKwargs>| {
        filter(state, &given.into_values())
    });
}

/// Adds a test that takes its arguments unparsed; the first is the tested value.
pub(super) fn add_test(
    environment: &mut Environment<'_>,
    name: &'static str,
    test: impl Fn(&mut State<'_, '_>, &[Value]) -> Result<bool, Error> + Send + Sync + 'static,
) {
    environment.add_test(name, move |state: &mut State<'_, '_>, given: Rest<ValueOrKwargs>| {
        test(state, &given.into_values())
    });
}
