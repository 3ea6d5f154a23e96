//! Names of modules as PEFT's settings give them: whole, by their end, or by a regular expression of Python.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::Value;

use super::AdapterError;
use crate::export::json_config::JsonConfig;

/// A regular expression that must match a module's whole name.
#[derive(Debug)]
pub(super) struct Pattern {
    path: PathBuf,
    field: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles `text` from `field` of the file at `path`; `frame` extends it to the whole name.
    fn new(
        path: &Path,
        field: &'static str,
        text: &str,
        frame: impl Fn(&str) -> String,
    ) -> Result<Self, AdapterError> {
        let regex = Regex::new(&format!(r"\A(?:{})\z", frame(text))).map_err(|source| {
            AdapterError::Pattern { path: path.into(), field, pattern: text.into(), source: Box::new(source) }
        })?;
        Ok(Self { path: path.into(), field, text: text.into(), regex })
    }

    pub(super) fn matches(&self, module: &str) -> Result<bool, AdapterError> {
        self.regex.is_match(module).map_err(|source| AdapterError::Pattern {
            path: self.path.clone(),
            field: self.field,
            pattern: self.text.clone(),
            source: Box::new(source),
        })
    }

    /// The number of the layer that `module` lies in, by a pattern that captures it.
    fn layer(&self, module: &str) -> Option<usize> {
        let captures = self.regex.captures(module).ok().flatten()?;
        captures.name("layer")?.as_str().parse().ok()
    }
}

/// Values for some modules, and one for all others: `rank_pattern` and `alpha_pattern`.
#[derive(Debug)]
pub(super) struct ByModule<T> {
    patterns: Vec<(Pattern, T)>,
    /// For all others.
    pub default: T,
}

impl<T: Copy> ByModule<T> {
    /// Keys match a whole name or what follows one of its dots.
    pub(super) fn read(
        config: &JsonConfig,
        field: &'static str,
        default: T,
        value: impl Fn(&JsonConfig, &str) -> Result<T, crate::export::JsonConfigError>,
    ) -> Result<Self, AdapterError> {
        let Some(section) = config.section(field)? else { return Ok(Self { patterns: Vec::new(), default }) };
        let pattern = |(key, _): (&str, &Value)| {
            let pattern = Pattern::new(config.path(), field, key, |key| format!(r"(?:.*\.)?(?:{key})"))?;
            Ok((pattern, value(&section, key)?))
        };
        let patterns = section.fields().map(pattern).collect::<Result<_, AdapterError>>()?;
        Ok(Self { patterns, default })
    }

    /// That of the first pattern that matches.
    pub(super) fn of(&self, module: &str) -> Result<T, AdapterError> {
        for (pattern, value) in &self.patterns {
            if pattern.matches(module)? {
                return Ok(*value);
            }
        }
        Ok(self.default)
    }
}

/// Which modules a field names.
#[derive(Debug)]
enum Names {
    /// Everything that has a low-rank pair.
    All,
    /// `all-linear`: all but embeddings and the head.
    Linear,
    Pattern(Pattern),
    /// By their whole names, or by what follows a dot.
    EmbeddingAndHead(Vec<String>),
}

impl Names {
    fn read(config: &JsonConfig, field: &'static str) -> Result<Option<Self>, AdapterError> {
        match config.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => {
                Ok(Some(Self::Pattern(Pattern::new(config.path(), field, text, str::to_owned)?)))
            }
            Some(_) => {
                let names = config.texts(field)?.unwrap_or_default();
                Ok(Some(Self::EmbeddingAndHead(names.into_iter().map(Into::into).collect())))
            }
        }
    }

    fn matches(&self, module: &str) -> Result<bool, AdapterError> {
        match self {
            Self::All | Self::Linear => Ok(true),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::EmbeddingAndHead(names) => Ok(names.iter().any(|name| ends_with(module, name))),
        }
    }
}

/// Whether `module` is `name`, or ends with it after a dot.
pub(super) fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Which modules have low-rank matrices by the settings.
#[derive(Debug)]
pub(super) struct Targets {
    names: Names,
    excluded: Option<Names>,
    saved: Vec<Pattern>,
    layers: Option<Vec<usize>>,
    layer_patterns: Vec<Pattern>,
}

impl Targets {
    pub(super) fn read(config: &JsonConfig) -> Result<Self, AdapterError> {
        const TARGETS: &str = "target_modules";
        const SAVED: &str = "modules_to_save";
        let is_shorthand = config
            .get(TARGETS)
            .and_then(Value::as_str)
            .is_some_and(|text| text.eq_ignore_ascii_case("all-linear"));
        let names =
            if is_shorthand { Names::Linear } else { Names::read(config, TARGETS)?.unwrap_or(Names::All) };
        let saved = config.texts(SAVED)?.unwrap_or_default().into_iter().map(|name| {
            Pattern::new(config.path(), SAVED, name, |name| format!(r"(?:.*\.)?(?:{name})(?:\..*)?"))
        });
        Ok(Self {
            names,
            excluded: Names::read(config, "exclude_modules")?.filter(|names| !names.is_empty()),
            saved: saved.collect::<Result<_, _>>()?,
            layers: read_layers(config)?,
            layer_patterns: read_layer_patterns(config)?,
        })
    }

    /// Why `module` has no low-rank matrices by the settings; `None` if it has. `is_end`: whether it is an embedding or
    /// the head.
    pub(super) fn refusal(&self, module: &str, is_end: bool) -> Result<Option<&'static str>, AdapterError> {
        if is_end && matches!(self.names, Names::Linear) {
            return Ok(Some("target_modules is all-linear, which no embedding and no head is"));
        }
        if !self.names.matches(module)? {
            return Ok(Some("target_modules does not name it"));
        }
        self.exclusion(module)
    }

    /// What `target_modules` names one by one.
    pub(super) fn listed(&self) -> &[String] {
        match &self.names {
            Names::EmbeddingAndHead(names) => names,
            _ => &[],
        }
    }

    /// Why `module` would have none although `target_modules` names it.
    pub(super) fn exclusion(&self, module: &str) -> Result<Option<&'static str>, AdapterError> {
        if self.excluded.as_ref().map(|names| names.matches(module)).transpose()? == Some(true) {
            return Ok(Some("exclude_modules names it"));
        }
        for saved in &self.saved {
            if saved.matches(module)? {
                return Ok(Some("modules_to_save names it"));
            }
        }
        Ok((!self.has_layer(module)).then_some("layers_to_transform leaves its layer out"))
    }

    /// As in PEFT, a list of layers only narrows the matches of a list of name suffixes.
    fn has_layer(&self, module: &str) -> bool {
        let (Names::EmbeddingAndHead(names), Some(layers)) = (&self.names, &self.layers) else { return true };
        if names.iter().any(|name| name == module) {
            return true;
        }
        let layer = if self.layer_patterns.is_empty() {
            module.split('.').find_map(|part| part.parse().ok())
        } else {
            self.layer_patterns.iter().find_map(|pattern| pattern.layer(module))
        };
        layer.is_some_and(|layer| layers.contains(&layer))
    }
}

impl Names {
    fn is_empty(&self) -> bool {
        match self {
            Self::All | Self::Linear => false,
            Self::Pattern(pattern) => pattern.text.is_empty(),
            Self::EmbeddingAndHead(names) => names.is_empty(),
        }
    }
}

fn read_layers(config: &JsonConfig) -> Result<Option<Vec<usize>>, AdapterError> {
    const FIELD: &str = "layers_to_transform";
    let layers = config.ids(FIELD)?;
    Ok((!layers.is_empty()).then(|| layers.into_iter().map(|layer| layer as usize).collect()))
}

fn read_layer_patterns(config: &JsonConfig) -> Result<Vec<Pattern>, AdapterError> {
    const FIELD: &str = "layers_pattern";
    let texts = match config.get(FIELD) {
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::String(text)) => vec![text.as_str()],
        _ => config.texts(FIELD)?.unwrap_or_default(),
    };
    let pattern = |text| {
        Pattern::new(config.path(), FIELD, text, |text| format!(r"(?:.*?\.)?(?:{text})\.(?<layer>\d+)\..*"))
    };
    texts.into_iter().map(pattern).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "model.layers.1.self_attn.q_proj";

    fn settings(json: &str) -> JsonConfig {
        JsonConfig::parse(Path::new("adapter_config.json"), json.as_bytes()).unwrap()
    }

    fn rank(patterns: &str, module: &str) -> usize {
        let config = settings(&format!(r#"{{"rank_pattern": {patterns}}}"#));
        let ranks = ByModule::read(&config, "rank_pattern", 8, |section, key| section.size(key));
        ranks.unwrap().of(module).unwrap()
    }

    fn refusal(json: &str, module: &str) -> Option<&'static str> {
        Targets::read(&settings(json)).unwrap().refusal(module, false).unwrap()
    }

    #[test]
    fn pattern_keys_are_whole_names_ends_after_a_dot_or_expressions() {
        for (patterns, expected) in [
            (r#"{"model.layers.1.self_attn.q_proj": 4}"#, 4),
            (r#"{"q_proj": 4}"#, 4),
            (r#"{"proj": 4}"#, 8),
            (r#"{"q": 4}"#, 8),
            (r#"{".*proj": 4}"#, 4),
            (r#"{"^model\\.layers\\.[0-1]\\..*": 4}"#, 4),
            (r#"{"layers.0.*q_proj": 4}"#, 8),
            (r#"{"k_proj|q_proj": 4}"#, 4),
            (r#"{"self_attn.q_proj": 2, "q_proj": 4}"#, 2),
            (r#"{"(?!q_proj)\\w+": 4}"#, 8),
        ] {
            assert_eq!(rank(patterns, QUERY), expected, "{patterns}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_is_named() {
        let config = settings(r#"{"target_modules": "(q_proj"}"#);
        let message = Targets::read(&config).unwrap_err().to_string();
        assert!(message.contains("target_modules") && message.contains("(q_proj"), "{message}");
    }

    #[test]
    fn targets_are_a_list_of_ends_an_expression_or_all() {
        for (targets, is_one) in [
            (r#"["q_proj"]"#, true),
            (r#"["self_attn.q_proj"]"#, true),
            (r#"["model.layers.1.self_attn.q_proj"]"#, true),
            (r#"["proj", "k_proj"]"#, false),
            (r#"".*\\.[01]\\..*_proj""#, true),
            (r#""q_proj""#, false),
            (r#""All-Linear""#, true),
            ("null", true),
        ] {
            let config = format!(r#"{{"target_modules": {targets}}}"#);
            assert_eq!(refusal(&config, QUERY).is_none(), is_one, "{targets}");
        }
    }

    #[test]
    fn all_linear_is_all_but_the_ends_of_a_model() {
        let targets = Targets::read(&settings(r#"{"target_modules": "all-linear"}"#)).unwrap();
        assert!(targets.refusal("lm_head", true).unwrap().is_some());
        assert!(targets.refusal(QUERY, false).unwrap().is_none());
    }

    #[test]
    fn modules_are_excluded_by_name_by_layer_or_because_they_are_saved_whole() {
        for (more, expected) in [
            (r#""exclude_modules": ["self_attn.q_proj"]"#, Some("exclude_modules names it")),
            (r#""exclude_modules": ".*layers\\.1\\..*""#, Some("exclude_modules names it")),
            (r#""exclude_modules": ".*layers\\.0\\..*""#, None),
            (r#""modules_to_save": ["self_attn"]"#, Some("modules_to_save names it")),
            (r#""modules_to_save": ["attn"]"#, None),
            (r#""layers_to_transform": 1"#, None),
            (r#""layers_to_transform": [0, 2]"#, Some("layers_to_transform leaves its layer out")),
            (r#""layers_to_transform": [1], "layers_pattern": "layers""#, None),
            (
                r#""layers_to_transform": [1], "layers_pattern": ["h"]"#,
                Some("layers_to_transform leaves its layer out"),
            ),
        ] {
            let config = format!(r#"{{"target_modules": ["q_proj"], {more}}}"#);
            assert_eq!(refusal(&config, QUERY), expected, "{more}");
        }
    }
}
