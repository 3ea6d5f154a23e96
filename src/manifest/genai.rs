//! `genai_config.json`, the configuration of onnxruntime-genai: the parts that eka reads.

use std::path::Path;

use serde::Deserialize;

use super::{Dims, Dtype, GraphNames, Lengths, Manifest, ManifestError, Provenance, SCHEMA};

pub(super) const FILE_NAME: &str = "genai_config.json";

#[derive(Deserialize)]
struct Config {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    r#type: String,
    context_length: usize,
    vocab_size: usize,
    decoder: Decoder,
    #[serde(default)]
    eos_token_id: Ids,
}

#[derive(Deserialize)]
struct Decoder {
    filename: String,
    head_size: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    num_key_value_heads: usize,
    inputs: Inputs,
    outputs: Outputs,
}

/// An input that is left out has its usual name.
#[derive(Deserialize)]
#[serde(default)]
struct Inputs {
    input_ids: String,
    attention_mask: String,
    past_key_names: String,
    past_value_names: String,
}

#[derive(Deserialize)]
#[serde(default)]
struct Outputs {
    logits: String,
    present_key_names: String,
    present_value_names: String,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Ids {
    #[default]
    None,
    One(u32),
    Several(Vec<u32>),
}

impl Default for Inputs {
    fn default() -> Self {
        Self {
            input_ids: "input_ids".into(),
            attention_mask: "attention_mask".into(),
            past_key_names: "past_key_values.%d.key".into(),
            past_value_names: "past_key_values.%d.value".into(),
        }
    }
}

impl Default for Outputs {
    fn default() -> Self {
        Self {
            logits: "logits".into(),
            present_key_names: "present.%d.key".into(),
            present_value_names: "present.%d.value".into(),
        }
    }
}

/// Parses and checks the configuration `json` from `path`. It does not contain the type of activations, the storage of
/// weights, or their number.
pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Manifest, ManifestError> {
    let failed = |source| ManifestError::Genai { path: path.into(), source };
    let Config { model } = serde_json::from_slice(json).map_err(failed)?;
    let Model { r#type, context_length, vocab_size, decoder, eos_token_id } = model;
    let dims = Dims {
        layers: decoder.num_hidden_layers,
        hidden: decoder.hidden_size,
        heads: decoder.num_attention_heads,
        kv_heads: decoder.num_key_value_heads,
        head_dim: decoder.head_size,
        intermediate: 0,
        vocab: vocab_size,
    };
    let mut end_tokens = match eos_token_id {
        Ids::None => Vec::new(),
        Ids::One(id) => vec![id],
        Ids::Several(ids) => ids,
    };
    // Another program made this file. An id outside the vocabulary is dropped, since the model cannot generate it.
    end_tokens.retain(|id| (*id as usize) < vocab_size);
    let manifest = Manifest {
        schema: SCHEMA,
        architecture: r#type,
        dims,
        dtype: Dtype::Float32,
        quantization: None,
        overrides: Vec::new(),
        context_length,
        end_tokens,
        parameters: 0,
        graph: graph(decoder),
        provenance: Provenance {
            exporter: "onnxruntime-genai".into(),
            sources: Vec::new(),
            adapters: Vec::new(),
            options: None,
        },
        files: Vec::new(),
    };
    manifest.validate(path)?;
    Ok(manifest)
}

fn graph(decoder: Decoder) -> GraphNames {
    let Decoder { filename, inputs, outputs, .. } = decoder;
    let of_layer = |name: String| name.replace("%d", "{i}");
    GraphNames {
        file: filename,
        input_ids: inputs.input_ids,
        lengths: Lengths::Mask { attention_mask: inputs.attention_mask },
        logits: outputs.logits,
        past_key: of_layer(inputs.past_key_names),
        past_value: of_layer(inputs.past_value_names),
        present_key: of_layer(outputs.present_key_names),
        present_value: of_layer(outputs.present_value_names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(filename: &str, eos: &str) -> Result<Manifest, ManifestError> {
        let json = format!(
            r#"{{"model": {{"type": "llama", "context_length": 256, "vocab_size": 320, "eos_token_id": {eos},
            "decoder": {{"filename": "{filename}", "head_size": 16, "hidden_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 3, "num_key_value_heads": 2, "inputs": {{"attention_mask": "mask"}},
            "outputs": {{}}}}}}, "search": {{}}}}"#
        );
        let path = Path::new(FILE_NAME);
        parse(path, json.as_bytes())
    }

    #[test]
    fn names_and_sizes_are_taken_over() {
        let manifest = read("decoder.onnx", "[2, 7]").unwrap();
        assert_eq!((manifest.dims.layers, manifest.dims.head_dim, manifest.dims.vocab), (3, 16, 320));
        assert_eq!(manifest.end_tokens, [2, 7]);
        assert_eq!(manifest.graph.file, "decoder.onnx");
        assert_eq!(manifest.graph.past_key, "past_key_values.{i}.key");
        assert_eq!(manifest.graph.lengths, Lengths::Mask { attention_mask: "mask".into() });
        assert_eq!(read("model.onnx", "2").unwrap().end_tokens, [2]);
        assert_eq!(read("model.onnx", "null").unwrap().end_tokens, Vec::<u32>::new());
    }

    #[test]
    fn a_graph_outside_of_the_directory_is_refused() {
        for file in ["../model.onnx", "/etc/passwd", "..", "a/b.onnx", ""] {
            let message = read(file, "2").unwrap_err().to_string();
            assert!(message.contains("plain name"), "{file:?}: {message}");
        }
    }
}
