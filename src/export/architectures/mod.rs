//! The architectures: each is a file that reads a configuration and names tensors.
//!
//! Fields that a configuration leaves out have the defaults of transformers' configuration classes, but sizes have none:
//! a file without them is truncated.

mod bloom;
mod family;
mod fields;
mod gemma;
mod gpt2;
mod llama;
mod mistral;
mod phi3;
mod qwen;

use super::{
    blueprint::Blueprint,
    json_config::{JsonConfig, JsonConfigError},
};

/// Reads the configuration of one architecture.
type Read = fn(&JsonConfig) -> Result<Blueprint, JsonConfigError>;

/// Every architecture, by its `model_type`.
const ARCHITECTURES: [(&str, Read); 9] = [
    ("bloom", bloom::read),
    ("gemma2", gemma::read_2),
    ("gemma3_text", gemma::read_3),
    ("gpt2", gpt2::read),
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("phi3", phi3::read),
    ("qwen2", qwen::read_2),
    ("qwen3", qwen::read_3),
];

/// Where models that also see or hear keep the settings of their text model.
pub(super) const TEXT: &str = "text_config";

/// The blueprint of the model that `config` describes.
pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    if let Some(quantization) = config.section("quantization_config")? {
        return Err(refuse_quantized(config, &quantization));
    }
    // Only one level: no model nests these sections, and each level would copy all levels within it.
    match config.section(TEXT)? {
        Some(text) => read_text(&text),
        None => read_text(config),
    }
}

fn read_text(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    const FIELD: &str = "model_type";
    if let Some(quantization) = config.section("quantization_config")? {
        return Err(refuse_quantized(config, &quantization));
    }
    let supported = ARCHITECTURES.map(|(name, _)| name).join(", ");
    let name = config.text(FIELD)?.ok_or_else(|| config.missing(FIELD, supported.clone()))?;
    match ARCHITECTURES.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => read(config),
        None => Err(config.unsupported(FIELD, supported)),
    }
}

fn refuse_quantized(config: &JsonConfig, quantization: &JsonConfig) -> JsonConfigError {
    let method = quantization.text("quant_method").ok().flatten().unwrap_or("unknown").to_owned();
    config.unsupported(
        "quantization_config",
        format!(
            "weights in float32, float16 or bfloat16, and these are packed ({method}); take the model that they were \
             quantized from, and quantize it here with --quantize"
        ),
    )
}
