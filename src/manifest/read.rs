//! Reads and writes a manifest.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{FILE_NAME, Manifest, ManifestError, OLDEST_SCHEMA, SCHEMA, genai, json::to_json};
use crate::files;

impl Manifest {
    /// Reads the manifest of `model_dir`.
    ///
    /// # Errors
    /// [`ManifestError`] when the file is missing, not of this layout or schema, or holds impossible sizes.
    pub fn read(model_dir: &Path) -> Result<Self, ManifestError> {
        let path = path(model_dir);
        let json = read(&path).map_err(|source| ManifestError::Read { path: path.clone(), source })?;
        if path.ends_with(genai::FILE_NAME) {
            return genai::parse(&path, &json);
        }
        Self::parse(&path, &json)
    }

    /// Parses and checks `json`, which came from `path`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, ManifestError> {
        // The schema first: a newer layout should be reported as newer, not as malformed.
        let failed = |source| ManifestError::Parse { path: path.into(), source };
        let Schema { schema } = serde_json::from_slice(json).map_err(failed)?;
        if !(OLDEST_SCHEMA..=SCHEMA).contains(&schema) {
            return Err(ManifestError::Schema { path: path.into(), found: schema });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(failed)?;
        manifest.validate(path)?;
        Ok(manifest)
    }

    /// The content of the file.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

/// Whether `model_dir` has a manifest.
#[must_use]
pub fn is_model(model_dir: &Path) -> bool {
    path(model_dir).is_file()
}

/// The manifest of `model_dir`, or its `genai_config.json`.
#[must_use]
pub fn path(model_dir: &Path) -> PathBuf {
    let [own, genai] = [FILE_NAME, genai::FILE_NAME].map(|name| model_dir.join(name));
    if !own.exists() && genai.is_file() { genai } else { own }
}

pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    files::read(path, files::MAX_JSON)
}

#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::*;

    const PLAIN: &str = r#"{"schema": 2, "architecture": "llama", "dtype": "float32", "context_length": 32,
        "dims": {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 96, "vocab": 50},
        "quantization": {"bits": 4, "block_size": 32, "accuracy_level": 4}, "end_tokens": [2], "parameters": 1,
        "overrides": [], "graph": {"file": "model.onnx", "input_ids": "a", "logits": "e",
            "lengths": {"given": {"seqlens_k": "b", "total_sequence_length": "c", "logits_index": "d"}},
            "past_key": "f", "past_value": "g", "present_key": "h", "present_value": "i"},
        "provenance": {"exporter": "eka", "sources": [], "adapters": [], "options": null}}"#;

    fn parse(json: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(Path::new(FILE_NAME), json.as_bytes())
    }

    #[test]
    fn a_manifest_of_the_first_release_is_read_and_one_of_today_records_files() {
        let older = parse(PLAIN).unwrap();
        assert_eq!((older.schema, &older.files[..]), (2, &[][..]));
        let record = |path: &str| FileRecord { path: path.into(), bytes: 3, sha256: "ab".into() };
        let files = vec![record("additional_chat_templates/tool_use.jinja"), record("model.onnx")];
        let newer = Manifest { schema: SCHEMA, files, ..older.clone() };
        assert_eq!(parse(&newer.to_json()).unwrap(), newer);
        for path in ["../model.onnx", "/etc/passwd", ""] {
            let outside = Manifest { files: vec![record(path)], ..older.clone() };
            let error = parse(&outside.to_json()).unwrap_err();
            assert!(error.to_string().contains("within the directory"), "{error}");
        }
    }

    #[test]
    fn an_end_token_outside_of_the_vocabulary_is_refused_with_both_numbers() {
        let error = parse(&PLAIN.replace("\"end_tokens\": [2]", "\"end_tokens\": [2, 50]")).unwrap_err();
        assert!(
            error.to_string().contains("contains 50,") && error.to_string().contains("50 tokens"),
            "{error}"
        );
    }

    #[test]
    fn a_written_manifest_is_read_back() {
        let manifest = parse(PLAIN).unwrap();
        assert_eq!(manifest.provenance.options, None);
        assert_eq!(parse(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn sizes_that_no_model_has_are_refused_by_name() {
        for (was, is, field) in [
            ("\"layers\": 2", "\"layers\": 1025", "layers is 1025"),
            ("\"vocab\": 50", "\"vocab\": 0", "vocab is 0"),
            ("\"head_dim\": 16", "\"head_dim\": 8388608", "head_dim is 8388608"),
            ("\"kv_heads\": 2", "\"kv_heads\": 3", "kv_heads is 3"),
            ("\"bits\": 4", "\"bits\": 3", "bits is 3"),
            ("\"file\": \"model.onnx\"", "\"file\": \"../x\"", "../x"),
            ("\"block_size\": 32", "\"block_size\": 0", "block_size is 0"),
        ] {
            let message = parse(&PLAIN.replace(was, is)).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn an_unknown_schema_is_reported_before_other_errors() {
        for found in [1, 4] {
            let error = parse(&format!(r#"{{"schema": {found}, "new": true}}"#)).unwrap_err();
            assert!(error.to_string().contains(&format!("schema version {found}, ")), "{error}");
        }
    }
}
