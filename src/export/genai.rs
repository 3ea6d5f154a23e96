//! `genai_config.json`, so that onnxruntime-genai can run the same directory.

use serde_json::{Value, json};

use crate::manifest::{GraphNames, Lengths, Manifest};

use super::json_config::JsonConfig;

pub(super) const CONFIG: &str = "genai_config.json";

/// The type of decoders for which onnxruntime-genai has no specific one.
const ANY_DECODER: &str = "decoder";

/// The configuration of a model for onnxruntime-genai; `generation` gives the sampling defaults.
pub(super) fn config(manifest: &Manifest, generation: Option<&JsonConfig>) -> Value {
    let Manifest { dims, context_length, graph, end_tokens, .. } = manifest;
    let token = |field: &str| generation.and_then(|settings| settings.get(field)).cloned();
    let pad = token("pad_token_id").or_else(|| end_tokens.first().map(|id| json!(id)));
    let mut config = json!({
        "model": {
            "context_length": context_length,
            "decoder": {
                "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
                "filename": graph.file,
                "head_size": dims.head_dim,
                "hidden_size": dims.hidden,
                "inputs": inputs(graph),
                "outputs": {
                    "logits": graph.logits,
                    "present_key_names": of_layer(&graph.present_key),
                    "present_value_names": of_layer(&graph.present_value),
                },
                "num_attention_heads": dims.heads,
                "num_hidden_layers": dims.layers,
                "num_key_value_heads": dims.kv_heads,
            },
            "eos_token_id": end_tokens,
            "pad_token_id": pad.unwrap_or_else(|| json!(0)),
            "type": kind(&manifest.architecture),
            "vocab_size": dims.vocab,
        },
        "search": search(*context_length, generation),
    });
    if let Some(bos) = token("bos_token_id") {
        config["model"]["bos_token_id"] = bos;
    }
    config
}

fn inputs(graph: &GraphNames) -> Value {
    let mut inputs = json!({
        "input_ids": graph.input_ids,
        "past_key_names": of_layer(&graph.past_key),
        "past_value_names": of_layer(&graph.past_value),
    });
    if let Lengths::Mask { attention_mask } = &graph.lengths {
        inputs["attention_mask"] = json!(attention_mask);
    }
    inputs
}

fn search(context_length: usize, generation: Option<&JsonConfig>) -> Value {
    let mut search = json!({
        "do_sample": false, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0,
        "num_beams": 1, "num_return_sequences": 1, "early_stopping": true, "length_penalty": 1.0, "min_length": 0,
    });
    for field in ["do_sample", "temperature", "top_k", "top_p", "repetition_penalty"] {
        if let Some(value) = generation.and_then(|settings| settings.get(field)) {
            search[field] = value.clone();
        }
    }
    search["max_length"] = json!(context_length);
    // The cache is updated in place: attention reads and writes the same memory.
    search["past_present_share_buffer"] = json!(true);
    search
}

fn of_layer(name: &str) -> String {
    name.replace("{i}", "%d")
}

fn kind(architecture: &str) -> &str {
    match architecture {
        "gemma2" | "gemma3_text" | "llama" | "mistral" | "phi3" | "qwen2" | "qwen3" => architecture,
        // Its type gpt2 has a different cache layout.
        _ => ANY_DECODER,
    }
}
