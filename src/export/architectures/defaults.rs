//! What transformers' configuration classes take for fields that a configuration leaves out, and other names of fields.
//!
//! `scripts/fixtures/config_defaults.py` reads them out of the classes, so that none is copied wrongly or forgotten.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::export::json_config::JsonConfig;

/// The file that the script writes.
const JSON: &str = include_str!("defaults.json");

static TABLE: LazyLock<Table> = LazyLock::new(|| serde_json::from_str(JSON).unwrap_or_default());

/// Sizes that every file has: one without them is truncated. In a section of a multimodal model they may be left out.
const SIZES: [&str; 20] = [
    "attention_heads",
    "d_model",
    "ffn_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "n_embd",
    "n_head",
    "n_heads",
    "n_layer",
    "n_layers",
    "n_positions",
    "num_attention_heads",
    "num_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_kv_heads",
    "num_layers",
    "seq_length",
    "vocab_size",
];

/// Sizes whose defaults published models rely on.
const RELIED_ON: [&str; 3] = ["max_position_embeddings", "num_key_value_heads", "num_kv_heads"];

#[derive(Default, Deserialize)]
struct Table {
    /// By `model_type`.
    text: BTreeMap<String, Entry>,
    /// Whether a multimodal model ties the head, by its `model_type`.
    tied: BTreeMap<String, bool>,
}

#[derive(Default, Deserialize)]
struct Entry {
    aliases: BTreeMap<String, String>,
    fields: Map<String, Value>,
    theta: Option<f64>,
}

/// A configuration's place in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the file.
    Whole,
    /// It is the section for the text model.
    Section,
}

/// `config` of a model of the type `name`, with names and defaults of transformers.
pub(super) fn complete(config: &JsonConfig, name: &str, place: Place) -> JsonConfig {
    let Some(entry) = TABLE.text.get(name) else { return config.clone() };
    let mut fields = entry.fields.clone();
    if place == Place::Whole {
        fields.retain(|field, _| !SIZES.contains(&&**field) || RELIED_ON.contains(&&**field));
    }
    let aliases = entry.aliases.iter();
    let config = aliases.fold(config.clone(), |config, (alias, field)| config.renamed(alias, field));
    if let Some(theta) = entry.theta {
        fields.insert("rope_theta".into(), theta.into());
    }
    config.or(Value::Object(fields))
}

/// Whether a multimodal model of the type `name` ties the head where it does not say.
pub(super) fn is_tied(name: &str) -> Option<bool> {
    TABLE.tied.get(name).copied()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(json: &str) -> JsonConfig {
        JsonConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap()
    }

    #[test]
    fn the_table_is_valid() {
        let table: Table = serde_json::from_str(JSON).unwrap();
        assert!(table.text.len() > 40 && table.tied.len() > 10);
    }

    #[test]
    fn defaults_fill_what_is_absent_and_sizes_only_in_a_section() {
        let whole = complete(&config(r#"{"rms_norm_eps": 1e-3}"#), "phi3", Place::Whole);
        assert_eq!(whole.positive("rms_norm_eps").unwrap(), 1e-3);
        assert_eq!(whole.size("original_max_position_embeddings").unwrap(), 4096);
        assert!(whole.size("hidden_size").is_err());
        let section = complete(&config("{}"), "phi3", Place::Section);
        assert_eq!(section.size("hidden_size").unwrap(), 3072);
        assert_eq!(section.positive("rms_norm_eps").unwrap(), 1e-5);
    }

    #[test]
    fn other_names_of_fields_count() {
        let gpt2 = complete(&config(r#"{"num_hidden_layers": 3}"#), "gpt2", Place::Section);
        assert_eq!((gpt2.size("n_layer").unwrap(), gpt2.size("n_head").unwrap()), (3, 12));
    }
}
