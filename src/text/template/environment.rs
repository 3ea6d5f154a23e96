//! minijinja, set up as `transformers` sets up Jinja2: an immutable sandbox with `trim_blocks`, `lstrip_blocks` and loop
//! controls.

use minijinja::{AutoEscape, Environment, Error, ErrorKind, syntax::SyntaxConfig};

use super::{
    filters, globals, methods, operators, predicates,
    repr::{charge_text, to_text},
};

/// Maximum steps of a rendering. A typical message takes hundreds, so only a very long conversation or a loop reaches this.
pub(super) const FUEL: u64 = 5_000_000;

/// An environment without templates.
///
/// # Errors
/// None in practice: the syntax is fixed and valid.
pub(super) fn new() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|output, state, value| {
        let mut text = to_text(value);
        charge_text(state, value, &text)?;
        if !matches!(state.auto_escape(), AutoEscape::None) && !value.is_safe() {
            text = filters::escape_text(&text);
        }
        output.write_str(&text).map_err(|_| Error::new(ErrorKind::WriteFailure, "the text cannot be written"))
    });
    environment.set_unknown_method_callback(methods::call);
    operators::add(&mut environment);
    filters::add(&mut environment);
    predicates::add(&mut environment);
    globals::add(&mut environment);
    Ok(environment)
}
