//! Defaults, file, environment variables and flags, each layer over the previous one. Every value keeps its origin.

use std::{io, path::PathBuf};

use config::{FileFormat, FileSourceString, Map, Source, Value, ValueKind};

use super::{
    args::ConfigArgs,
    environment::Environment,
    error::{ConfigError, Problem},
    lookup::{by_path, by_variable, nearest},
    merged::Merged,
    setting::Setting,
    settings_table::SETTINGS,
};
use crate::{files, units::Bytes};

const PREFIX: &str = "EKA_";

/// Names the file; not a setting.
const FILE_VARIABLE: &str = "EKA_CONFIG";

const FILE_NAME: &str = "eka.toml";

/// A thousand times the size of a file with every setting.
const MAX_FILE: Bytes = Bytes::mib(4);

/// Merges all layers.
///
/// # Errors
/// When the file cannot be read. Invalid values are problems of the result.
pub(super) fn merge(args: &ConfigArgs, environment: &Environment) -> Result<Merged, ConfigError> {
    let mut layers = Layers::default();
    layers.add_defaults();
    layers.add_file(args, environment)?;
    layers.add_environment(environment);
    layers.add_flags(args);
    let builder = config::Config::builder().add_source(layers.settings);
    let root = builder.build().map_err(ConfigError::Merge)?.cache;
    Ok(Merged { root, problems: layers.problems })
}

/// One layer as a source of the `config` crate; keys are whole paths.
#[derive(Clone, Debug, Default)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

#[derive(Default)]
struct Layers {
    /// The lowest first.
    settings: Vec<Layer>,
    problems: Vec<Problem>,
}

impl Layers {
    fn add_defaults(&mut self) {
        self.settings.push(Layer::default());
        for setting in SETTINGS {
            if let Some(default) = setting.default {
                self.set(setting, setting.parse(default), "default");
            }
        }
    }

    fn add_file(&mut self, args: &ConfigArgs, environment: &Environment) -> Result<(), ConfigError> {
        let named =
            args.config.clone().or_else(|| environment.variables.get(FILE_VARIABLE).map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| FILE_NAME.into());
        let text = match files::read_text(&environment.directory.join(&path), MAX_FILE) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(()),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let file = config::File::<FileSourceString, FileFormat>::from_str(&text, FileFormat::Toml);
        let origin = path.display().to_string();
        let sections = file.collect().map_err(|source| ConfigError::Parse { path, source })?;
        self.settings.push(Layer::default());
        for (section, value) in sections {
            match value.kind {
                ValueKind::Table(keys) => self.add_section(&section, keys, &origin),
                _ => self.add_unknown(section, &origin),
            }
        }
        Ok(())
    }

    fn add_section(&mut self, section: &str, keys: Map<String, Value>, origin: &str) {
        for (name, value) in keys {
            let path = format!("{section}.{name}");
            match by_path(&path) {
                Some(setting) => self.set(setting, value.kind, origin),
                None => self.add_unknown(path, origin),
            }
        }
    }

    fn add_environment(&mut self, environment: &Environment) {
        self.settings.push(Layer::default());
        let ours = environment
            .variables
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX) && *name != FILE_VARIABLE);
        for (name, value) in ours {
            if let Some(setting) = by_variable(name) {
                self.set(setting, setting.parse(value), &format!("environment {name}"));
            } else {
                let known = SETTINGS.iter().map(Setting::variable).chain([FILE_VARIABLE.to_owned()]);
                let nearest = nearest(name, known);
                self.problems.push(Problem::Unknown {
                    name: name.clone(),
                    origin: "environment".into(),
                    nearest,
                });
            }
        }
    }

    fn add_flags(&mut self, args: &ConfigArgs) {
        self.settings.push(Layer::default());
        for (path, value) in &args.set {
            match by_path(path) {
                Some(setting) => self.set(setting, setting.parse(value), "--set"),
                None => self.add_unknown(path.clone(), "--set"),
            }
        }
        for (setting, flag, value) in args.flags.given() {
            self.set(setting, setting.parse(value), &format!("--{flag}"));
        }
    }

    /// Sets a value in the uppermost layer.
    fn set(&mut self, setting: &'static Setting, value: ValueKind, origin: &str) {
        let origin = origin.to_owned();
        if !setting.has_kind(&value) {
            let (value, expected) = (setting.show(&value), setting.expected());
            self.problems.push(Problem::Value { key: setting.path, value, origin, expected });
        } else if let Some(layer) = self.settings.last_mut() {
            layer.0.insert(setting.path.to_owned(), Value::new(Some(&origin), value));
        }
    }

    fn add_unknown(&mut self, name: String, origin: &str) {
        let nearest = nearest(&name, SETTINGS.iter().map(|setting| setting.path.to_owned()));
        self.problems.push(Problem::Unknown { name, origin: origin.to_owned(), nearest });
    }
}
