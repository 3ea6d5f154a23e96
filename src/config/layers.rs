//! Defaults, file, environment and flags, one over the other; each value remembers where it came from.

use std::{collections::BTreeMap, env, io, path::PathBuf};

use config::{FileFormat, FileSourceString, Map, Source, Value, ValueKind};

use super::{
    ConfigArgs, ConfigError, Problem,
    keys::{Default, KEYS, Key, nearest},
};
use crate::{files, units::Bytes};

const PREFIX: &str = "EKA_";

/// Names the file, and is no setting itself.
const FILE_VARIABLE: &str = "EKA_CONFIG";

const FILE_NAME: &str = "eka.toml";

/// A file with every setting is a thousandth of this.
const MOST_FILE: Bytes = Bytes::mib(4);

/// What a process starts with; a value, so that tests need not change their own process.
pub(super) struct Surroundings {
    pub(super) variables: BTreeMap<String, String>,
    pub(super) directory: PathBuf,
}

impl Surroundings {
    pub(super) fn of_this_process() -> io::Result<Self> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Ok(Self { variables: env::vars_os().filter_map(text).collect(), directory: env::current_dir()? })
    }
}

/// The settings that won, with their origins, and what was wrong with those that could not take part.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) root: Value,
    pub(super) problems: Vec<Problem>,
}

impl Merged {
    /// Puts all layers together.
    pub(super) fn read(args: &ConfigArgs, around: &Surroundings) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        layers.add_defaults();
        layers.add_file(args, around)?;
        layers.add_environment(around);
        layers.add_flags(args);
        let builder = config::Config::builder().add_source(layers.settings);
        let root = builder.build().map_err(ConfigError::Merge)?.cache;
        Ok(Self { root, problems: layers.problems })
    }

    /// The value of a setting, unless nobody set it and it has no default.
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.root, |value, name| match &value.kind {
            ValueKind::Table(table) => table.get(name),
            _ => None,
        })
    }

    /// Where a setting's value comes from.
    pub(super) fn origin(&self, path: &str) -> &str {
        self.get(path).and_then(Value::origin).unwrap_or("default")
    }
}

/// One layer as a source; keys are whole paths.
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
        for key in &KEYS {
            if let Default::Is(default) = key.default {
                self.set(key, key.read(default), "default");
            }
        }
    }

    fn add_file(&mut self, args: &ConfigArgs, around: &Surroundings) -> Result<(), ConfigError> {
        let named = args.config.clone().or_else(|| around.variables.get(FILE_VARIABLE).map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| FILE_NAME.into());
        let text = match files::read_text(&around.directory.join(&path), MOST_FILE) {
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
            match Key::by_path(&path) {
                Some(key) => self.set(key, value.kind, origin),
                None => self.add_unknown(path, origin),
            }
        }
    }

    fn add_environment(&mut self, around: &Surroundings) {
        self.settings.push(Layer::default());
        let ours =
            around.variables.iter().filter(|(name, _)| name.starts_with(PREFIX) && *name != FILE_VARIABLE);
        for (name, value) in ours {
            if let Some(key) = Key::by_variable(name) {
                self.set(key, key.read(value), &format!("environment {name}"));
            } else {
                let known = KEYS.iter().map(Key::variable).chain([FILE_VARIABLE.to_owned()]);
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
            match Key::by_path(path) {
                Some(key) => self.set(key, key.read(value), "--set"),
                None => self.add_unknown(path.clone(), "--set"),
            }
        }
        for (flag, path, value) in args.direct() {
            if let Some(key) = Key::by_path(path) {
                self.set(key, key.read(value), flag);
            }
        }
    }

    /// Sets `key` in the layer that was begun last.
    fn set(&mut self, key: &'static Key, value: ValueKind, origin: &str) {
        let origin = origin.to_owned();
        if !key.has_type(&value) {
            let (value, expected) = (key.show(&value), key.expected());
            self.problems.push(Problem::Value { key: key.path, value, origin, expected });
        } else if let Some(layer) = self.settings.last_mut() {
            layer.0.insert(key.path.to_owned(), Value::new(Some(&origin), value));
        }
    }

    fn add_unknown(&mut self, name: String, origin: &str) {
        let nearest = nearest(&name, KEYS.iter().map(|key| key.path.to_owned()));
        self.problems.push(Problem::Unknown { name, origin: origin.to_owned(), nearest });
    }
}
