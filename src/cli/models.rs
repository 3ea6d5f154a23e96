//! `eka list` and `eka rm`: the models on this machine. `eka ps` and `eka stop`: the models that a running server has loaded.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    exit::{Exit, WithExit},
    health,
    output::{self, OutputFlags},
    resolve_model, settings,
};
use crate::{
    client::Client,
    config::{self, Config, ConfigArgs},
    files,
    manifest::{self, Manifest},
    units::Bytes,
};

/// Hexadecimal digits at the end of the name of a cached export.
const KEY_DIGITS: usize = 16;

/// List the models on this machine: those of the settings, and exports in the cache
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,
}

/// Remove exports from the cache
///
/// Only exports that eka made by itself are removed, never a model directory or a source.
#[derive(Debug, clap::Args)]
pub(super) struct RmArgs {
    /// Names of exports, as `eka list` prints them; without its key, a name stands for all exports of that model
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,
}

/// List the models that a running server has loaded
#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    server: ServerArgs,
}

/// Unload a model of a running server; its next request loads it again
#[derive(Debug, clap::Args)]
pub(super) struct StopArgs {
    /// The model's name
    #[arg(value_name = "MODEL")]
    loaded: String,

    #[command(flatten)]
    server: ServerArgs,
}

/// How to reach a running server.
#[derive(Debug, clap::Args)]
struct ServerArgs {
    /// URL of the server [default: the address of the settings]
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// API key, if the server has keys
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,

    #[command(flatten)]
    output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,
}

/// A model on this machine.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// `model`, `source` (exported when it is used) or `cache`.
    kind: &'static str,
    bytes: u64,
    path: PathBuf,
}

impl PsArgs {
    pub(super) const fn output(&self) -> OutputFlags {
        self.server.output
    }
}

impl StopArgs {
    pub(super) const fn output(&self) -> OutputFlags {
        self.server.output
    }
}

/// Prints the models of the settings and of the cache.
///
/// # Errors
/// When a directory of the settings cannot be read.
pub(super) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let loaded = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return settings::print_config(&loaded, args.output.json);
    }
    let models = listed(&loaded.config)?;
    if args.output.json {
        return output::document(&json!({ "models": models }));
    }
    let rows = models.iter().map(|model| {
        [
            model.name.clone(),
            model.kind.to_owned(),
            Bytes(model.bytes).to_string(),
            model.path.display().to_string(),
        ]
    });
    table(["NAME", "KIND", "SIZE", "PATH"], rows.collect())
}

/// The models of the settings, then those of the cache.
fn listed(config: &Config) -> anyhow::Result<Vec<Listed>> {
    let of_settings = resolve_model::of_settings(config)?.into_iter().map(|(path, name)| {
        let kind = if manifest::is_model(&path) { "model" } else { "source" };
        Listed { name, kind, bytes: size(&path), path }
    });
    Ok(of_settings.chain(cached(config)).collect())
}

/// The exports in the cache.
fn cached(config: &Config) -> Vec<Listed> {
    let entries = fs::read_dir(exports(config)).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<Listed> = entries
        .filter(|entry| manifest::is_model(&entry.path()))
        .map(|entry| Listed {
            name: entry.file_name().to_string_lossy().into_owned(),
            kind: "cache",
            bytes: size(&entry.path()),
            path: entry.path(),
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn exports(config: &Config) -> PathBuf {
    config.model.cache_dir.join(resolve_model::EXPORTS)
}

/// Bytes of a model's files, or of a source's.
fn size(path: &Path) -> u64 {
    if let Ok(manifest) = Manifest::read(path) {
        return manifest.files.iter().map(|file| file.bytes).sum();
    }
    let Ok(found) = fs::metadata(path) else { return 0 };
    if found.is_file() {
        return found.len();
    }
    let parts = ["", "base", "adapter"].map(|part| path.join(part));
    let entries = parts.iter().flat_map(fs::read_dir).flatten().filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

/// Removes exports from the cache.
///
/// # Errors
/// When a name is not an export, or cannot be removed.
pub(super) fn rm(args: &RmArgs) -> anyhow::Result<()> {
    let loaded = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return settings::print_config(&loaded, args.output.json);
    }
    let cached = cached(&loaded.config);
    let mut removed = Vec::new();
    for name in &args.names {
        let named: Vec<_> = cached.iter().filter(|model| is_named(&model.name, name)).collect();
        ensure_found(&loaded.config, name, &named).with_exit(Exit::Usage)?;
        removed.extend(named);
    }
    for model in &removed {
        // Without its manifest, a directory that is removed in part is not taken for a model.
        let cannot = || format!("cannot remove {}", model.path.display());
        if files::exists(&model.path) {
            fs::remove_file(model.path.join(manifest::FILE_NAME)).with_context(cannot)?;
            fs::remove_dir_all(&model.path).with_context(cannot)?;
        }
    }
    if args.output.json {
        return output::document(&json!({ "removed": removed }));
    }
    output::result(|out| {
        removed.iter().try_for_each(|model| writeln!(out, "removed {}", model.path.display()))
    })
}

/// Whether an export has this name, with or without its key.
fn is_named(export: &str, name: &str) -> bool {
    let key = export.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    export == name
        || key.is_some_and(|key| key.len() == KEY_DIGITS && key.bytes().all(|c| c.is_ascii_hexdigit()))
}

fn ensure_found(config: &Config, name: &str, found: &[&Listed]) -> anyhow::Result<()> {
    ensure!(
        !found.is_empty(),
        "{name} is not an export in {}; `eka list` prints the names; eka removes no other models",
        exports(config).display()
    );
    Ok(())
}

/// Prints the models that a server has loaded.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub(super) fn ps(args: &PsArgs) -> anyhow::Result<()> {
    let Some(client) = args.server.client()? else { return Ok(()) };
    let answer: Value = ask(client.get_json("/api/ps"))?;
    if args.server.output.json {
        return output::document(&answer);
    }
    let models = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
    let rows = models.iter().map(|model| {
        let bytes = Bytes(model["size"].as_u64().unwrap_or_default());
        let name = model["name"].as_str().unwrap_or_default().to_owned();
        [name, bytes.to_string(), model["context_length"].to_string()]
    });
    table(["NAME", "SIZE", "CONTEXT"], rows.collect())
}

/// Unloads a model of a server.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub(super) fn stop(args: &StopArgs) -> anyhow::Result<()> {
    let Some(client) = args.server.client()? else { return Ok(()) };
    let id = args.loaded.strip_suffix(":latest").unwrap_or(&args.loaded);
    ensure!(!id.contains(['/', '?', '#', '%']), "{id} is not the name of a model; `eka ps` prints the names");
    let answer: Value = ask(client.post_json(&format!("/admin/models/{id}/unload"), &json!({})))?;
    if args.server.output.json {
        return output::document(&answer);
    }
    output::result(|out| writeln!(out, "unloaded {}", output::printable(id)))
}

impl ServerArgs {
    /// A client of the server; `None` if only the settings are wanted, which are printed.
    fn client(&self) -> anyhow::Result<Option<Client>> {
        let loaded = config::Settings::load(&self.config)?;
        if self.config.print_config {
            return settings::print_config(&loaded, self.output.json).map(|()| None);
        }
        let url =
            self.url.clone().map_or_else(|| health::address(&loaded.config), Ok).with_exit(Exit::Usage)?;
        let patience = Duration::from_secs(60);
        Client::new(&url, self.api_key.as_deref(), patience).with_exit(Exit::Usage).map(Some)
    }
}

fn ask(request: impl Future<Output = Result<Value, crate::client::ClientError>>) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(request).with_exit(Exit::Failed)
}

/// Prints rows below a head, in columns.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> anyhow::Result<()> {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    output::result(|out| {
        rows.iter().try_for_each(|row| {
            let cells =
                row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", output::printable(cell)));
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_has_its_name_with_and_without_its_key() {
        let export = "my-model-1be1d731bfe7888c";
        assert!(is_named(export, export) && is_named(export, "my-model"));
        for other in ["my", "my-mode", "my-model-", "my-model-1be1", ""] {
            assert!(!is_named(export, other), "{other}");
        }
        assert!(!is_named("my-model", "my"));
    }
}
