//! `eka settings`: the reference of all settings.

use super::output;
use crate::config;

/// Prints every setting with its default, valid values and documentation.
///
/// # Errors
/// When stdout cannot be written to.
pub(super) fn run() -> anyhow::Result<()> {
    output::result(|out| out.write_all(config::reference().as_bytes()))
}
