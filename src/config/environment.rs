//! What a process inherits: environment variables and the working directory.

use std::{collections::BTreeMap, env, ffi::OsString, io, path::PathBuf};

/// Environment variables and working directory, as a value, so that tests need not change their own process.
pub(super) struct Environment {
    pub(super) variables: BTreeMap<String, String>,
    pub(super) directory: PathBuf,
}

impl Environment {
    /// Those of this process.
    ///
    /// # Errors
    /// When the working directory does not exist.
    pub(super) fn of_this_process() -> io::Result<Self> {
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Ok(Self { variables: env::vars_os().filter_map(text).collect(), directory: env::current_dir()? })
    }
}
