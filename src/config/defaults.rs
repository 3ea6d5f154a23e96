//! Defaults that depend on the environment or on other settings.

use std::path::{Path, PathBuf};

use super::{environment::Environment, types::CacheDir, user_dirs::USER_CACHE, validate::Validator};

/// The name of the directory or the GGUF file in `model.path`.
pub(super) fn default_model_id(validator: &mut Validator<'_>) -> Option<String> {
    let path = validator.text("model.path")?.to_owned();
    let name = directory_name(&validator.environment.directory.join(&path));
    if name.is_none() && !path.is_empty() {
        let expected = "a directory with a name, or model.id to be set as well";
        validator.reject("model.path", expected.into());
    }
    name
}

fn directory_name(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let name = if is_gguf { path.file_stem()? } else { path.file_name()? };
    Some(name.to_string_lossy().into_owned())
}

/// `prompts/` in `model.cache_dir`: a service that may write nowhere else may write there.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all derived defaults")]
pub(super) fn default_prompt_dir(validator: &mut Validator<'_>) -> Option<PathBuf> {
    let configured = validator.text("model.cache_dir").map(PathBuf::from);
    Some(configured.unwrap_or_else(|| user_cache_dir(validator.environment)).join("prompts"))
}

/// `eka` in the directory where this platform keeps the user's caches.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all derived defaults")]
pub(super) fn default_cache_dir(validator: &mut Validator<'_>) -> Option<CacheDir> {
    Some(CacheDir::default_at(user_cache_dir(validator.environment)))
}

fn user_cache_dir(environment: &Environment) -> PathBuf {
    let found = USER_CACHE.find(|name| environment.variables.get(name).map(PathBuf::from));
    // A container's user often has no home directory. The temporary directory is shared with other users.
    found.unwrap_or_else(|| temporary_dir().join(user_dir_name()))
}

/// The temporary directory; `TMPDIR=` would make it the working directory.
fn temporary_dir() -> PathBuf {
    let dir = std::env::temp_dir();
    if cfg!(unix) && dir.is_relative() { "/tmp".into() } else { dir }
}

/// Name of this user's directory in a directory that all users share.
fn user_dir_name() -> String {
    #[cfg(unix)]
    return format!("eka-{}", rustix::process::geteuid().as_raw());
    #[cfg(not(unix))]
    "eka".into()
}
