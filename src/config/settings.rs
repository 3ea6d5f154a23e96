//! Loading: the layers are merged, validated, and become a [`Config`].

use super::{
    args::ConfigArgs,
    environment::Environment,
    error::ConfigError,
    layers,
    merged::Merged,
    render,
    settings_table::{Config, SETTINGS},
    validate::Validator,
};

/// The validated settings, with the origin of each.
#[derive(Debug)]
pub struct Settings {
    /// The typed values.
    pub config: Config,
    pub(super) merged: Merged,
}

impl Settings {
    /// Reads defaults, file, environment variables and flags.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read, or with every problem of the settings.
    pub fn load(args: &ConfigArgs) -> Result<Self, ConfigError> {
        Self::load_in(args, &Environment::of_this_process().map_err(ConfigError::Directory)?)
    }

    /// A file that gives the same settings again, with the origin of each as a comment.
    #[must_use]
    pub fn to_toml(&self) -> String {
        render::to_toml(&self.merged)
    }

    /// One object with value and origin of each setting by its path.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        render::to_json(&self.merged)
    }

    /// Whether no file, variable or flag sets the setting at `path`.
    #[must_use]
    pub fn is_default(&self, path: &str) -> bool {
        self.merged.origin(path) == "default"
    }

    /// The paths of the settings whose values differ.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<&'static str> {
        let value = |settings: &Self, path| settings.merged.get(path).map(|value| value.kind.clone());
        let paths = SETTINGS.iter().map(|setting| setting.path);
        paths.filter(|path| value(self, path) != value(other, path)).collect()
    }

    pub(super) fn load_in(args: &ConfigArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let mut merged = layers::merge(args, environment)?;
        let problems = std::mem::take(&mut merged.problems);
        let mut validator = Validator { merged: &merged, environment, problems };
        let config = Config::read(&mut validator);
        validator.require_at_least("server.body_memory_bytes", "server.body_limit_bytes");
        validator.require_at_least("queue.total_timeout_ms", "queue.timeout_ms");
        // With one file only, the server would start without the TLS that its user expects.
        validator.require_both("tls.cert_file", "tls.key_file");
        validator.require_both("tls.key_file", "tls.cert_file");
        validator.require_both("cluster.cert_file", "cluster.key_file");
        validator.require_both("cluster.key_file", "cluster.cert_file");
        validator.require_both("cluster.user", "cluster.password_file");
        validator.require_both("cluster.password_file", "cluster.user");
        validator.require_at_least("cluster.lost_ms", "cluster.probe_ms");
        let problems = validator.problems;
        match config {
            Some(config) if problems.is_empty() => Ok(Self { config, merged }),
            _ => Err(ConfigError::Settings(problems)),
        }
    }
}
