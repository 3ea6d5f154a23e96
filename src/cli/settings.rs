//! `--print-config`, and `eka settings`: the reference of all settings.

use super::output;
use crate::config;

/// Prints every setting with its default, valid values and documentation.
///
/// # Errors
/// When stdout cannot be written to.
pub(super) fn run() -> anyhow::Result<()> {
    output::result(|out| out.write_all(config::reference().as_bytes()))
}

/// Prints the settings with their origins.
///
/// # Errors
/// When stdout cannot be written to.
pub(super) fn print_config(settings: &config::Settings, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return output::document(&settings.to_json());
    }
    output::result(|out| out.write_all(settings.to_toml().as_bytes()))
}
