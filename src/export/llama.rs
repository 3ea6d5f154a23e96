//! Llama: which settings `config.json` has and how its tensors are called.

use crate::manifest::Dims;

use super::{
    blueprint::{Attention, Blueprint, Head, Layer, Linear, Mlp, Norm, Param},
    rope::Rotary,
    settings::{MOST_SIZE, Settings, SettingsError},
};

/// transformers' default for `rms_norm_eps`.
const DEFAULT_EPSILON: f32 = 1e-6;

/// More than any published decoder has; a graph of millions of layers would only exhaust memory.
const MOST_LAYERS: usize = 1024;

/// Reads the configuration of a Llama checkpoint.
pub(super) fn read(config: &Settings) -> Result<Blueprint, SettingsError> {
    refuse_unsupported(config)?;
    let llama = Llama {
        dims: read_dims(config)?,
        epsilon: config.optional_positive("rms_norm_eps")?.unwrap_or(DEFAULT_EPSILON),
        attention_bias: config.flag("attention_bias", false)?,
        mlp_bias: config.flag("mlp_bias", false)?,
    };
    let Dims { layers, hidden, vocab, .. } = llama.dims;
    Ok(Blueprint {
        architecture: "llama",
        dims: llama.dims,
        context_length: config.size("max_position_embeddings")?,
        rotary: Rotary::read(config)?,
        embedding: Param::matrix("embed_tokens.weight", vocab, hidden),
        layers: (0..layers).map(|layer| llama.layer(layer)).collect(),
        final_norm: llama.norm("norm".into()),
        head: llama.head(config.flag("tie_word_embeddings", false)?),
    })
}

fn refuse_unsupported(config: &Settings) -> Result<(), SettingsError> {
    let activation = config.text("hidden_act")?.unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return Err(config.unsupported("hidden_act", "silu"));
    }
    if config.get("quantization_config").is_some() {
        let way_out =
            "checkpoints in float32, float16 or bfloat16; export the unquantized model with --quantize";
        return Err(config.unsupported("quantization_config", way_out));
    }
    if config.optional_positive("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(config.unsupported("partial_rotary_factor", "1"));
    }
    Ok(())
}

fn read_dims(config: &Settings) -> Result<Dims, SettingsError> {
    let layers = config.size("num_hidden_layers")?;
    if layers > MOST_LAYERS {
        return Err(config.wrong("num_hidden_layers", format!("at most {MOST_LAYERS}")));
    }
    let hidden = config.size("hidden_size")?;
    if !hidden.is_multiple_of(2) {
        return Err(config.unsupported("hidden_size", "even sizes, so that two 4-bit weights fill a byte"));
    }
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.wrong("num_key_value_heads", format!("a divisor of num_attention_heads, {heads}")));
    }
    let head_dim = read_head_dim(config, hidden, heads)?;
    let intermediate = config.size("intermediate_size")?;
    let vocab = config.size("vocab_size")?;
    Ok(Dims { layers, hidden, heads, kv_heads, head_dim, intermediate, vocab })
}

fn read_head_dim(config: &Settings, hidden: usize, heads: usize) -> Result<usize, SettingsError> {
    let stated = config.optional_size("head_dim")?;
    let field = if stated.is_some() { "head_dim" } else { "num_attention_heads" };
    if stated.is_none() && !hidden.is_multiple_of(heads) {
        return Err(
            config.wrong(field, format!("a divisor of hidden_size, {hidden}, as there is no head_dim"))
        );
    }
    let head_dim = stated.unwrap_or(hidden / heads);
    if !head_dim.is_multiple_of(16) {
        let supported = "heads of a multiple of 16 dimensions, as ONNX Runtime's rotary attention needs";
        return Err(config.unsupported(field, supported));
    }
    // Three times, because query, key and value are stacked into one matrix.
    if head_dim.checked_mul(heads).and_then(|n| n.checked_mul(3)).is_none_or(|n| n > MOST_SIZE) {
        return Err(config.wrong(field, format!("heads that are together at most {} wide", MOST_SIZE / 3)));
    }
    Ok(head_dim)
}

struct Llama {
    dims: Dims,
    epsilon: f32,
    attention_bias: bool,
    mlp_bias: bool,
}

impl Llama {
    fn layer(&self, layer: usize) -> Layer {
        Layer {
            attention_norm: self.norm(format!("layers.{layer}.input_layernorm")),
            attention: self.attention(&format!("layers.{layer}.self_attn")),
            mlp_norm: self.norm(format!("layers.{layer}.post_attention_layernorm")),
            mlp: self.mlp(&format!("layers.{layer}.mlp")),
        }
    }

    fn norm(&self, module: String) -> Norm {
        Norm { weight: Param::vector(module + ".weight", self.dims.hidden), epsilon: self.epsilon }
    }

    fn attention(&self, module: &str) -> Attention {
        let Dims { hidden, heads, kv_heads, head_dim, .. } = self.dims;
        let linear = |name, rows, cols| linear(module, name, (rows, cols), self.attention_bias);
        Attention {
            query: linear("q_proj", heads * head_dim, hidden),
            key: linear("k_proj", kv_heads * head_dim, hidden),
            value: linear("v_proj", kv_heads * head_dim, hidden),
            output: linear("o_proj", hidden, heads * head_dim),
        }
    }

    fn mlp(&self, module: &str) -> Mlp {
        let Dims { hidden, intermediate, .. } = self.dims;
        let linear = |name, rows, cols| linear(module, name, (rows, cols), self.mlp_bias);
        Mlp {
            gate: linear("gate_proj", intermediate, hidden),
            up: linear("up_proj", intermediate, hidden),
            down: linear("down_proj", hidden, intermediate),
        }
    }

    fn head(&self, tied: bool) -> Head {
        let weight = "lm_head.weight".to_owned();
        if tied {
            return Head::Tied { stored_as: weight };
        }
        Head::Own(Linear { weight: Param::matrix(weight, self.dims.vocab, self.dims.hidden), bias: None })
    }
}

fn linear(module: &str, name: &str, (rows, cols): (usize, usize), biased: bool) -> Linear {
    let bias = biased.then(|| Param::vector(format!("{module}.{name}.bias"), rows));
    Linear { weight: Param::matrix(format!("{module}.{name}.weight"), rows, cols), bias }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const NEW: &str = r#"{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 160, "vocab_size": 320, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}"#;
    const OLD: &str = r#"{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 160, "vocab_size": 320, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "rope_scaling": null, "torch_dtype": "float16"}"#;

    fn read_with(json: &str, field: &str, value: &str) -> Result<Blueprint, SettingsError> {
        let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap();
        fields.insert(field.into(), serde_json::from_str(value).unwrap());
        read(&Settings::parse(Path::new("config.json"), &serde_json::to_vec(&fields).unwrap()).unwrap())
    }

    #[test]
    fn both_styles_of_transformers_give_the_same_blueprint() {
        let [new, old] = [NEW, OLD].map(|json| read_with(json, "use_cache", "true").unwrap());
        assert_eq!(format!("{new:?}"), format!("{old:?}"));
        assert_eq!(new.dims.head_dim, 16);
    }

    #[test]
    fn parameters_are_counted_with_the_head_once() {
        let untied = read_with(NEW, "tie_word_embeddings", "false").unwrap();
        let tied = read_with(NEW, "tie_word_embeddings", "true").unwrap();
        assert_eq!(untied.parameters() - tied.parameters(), 320 * 64);
    }

    #[test]
    fn biases_appear_where_the_configuration_has_them() {
        let biased = read_with(NEW, "attention_bias", "true").unwrap();
        let names: Vec<_> = biased.params().map(|param| param.name.as_str()).collect();
        assert!(names.contains(&"layers.1.self_attn.o_proj.bias"));
        assert!(!names.contains(&"layers.1.mlp.up_proj.bias"));
    }

    #[test]
    fn sizes_that_do_not_fit_each_other_are_refused_by_field() {
        for (field, value) in [
            ("num_key_value_heads", "3"),
            ("num_hidden_layers", "16777216"),
            ("num_attention_heads", "16777216"),
            ("head_dim", "12"),
            ("head_dim", "16777216"),
            ("hidden_size", "63"),
        ] {
            let message = read_with(NEW, field, value).unwrap_err().to_string();
            assert!(message.contains(field) || message.contains("head_dim"), "{field} = {value}: {message}");
        }
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for (field, value) in [
            ("hidden_act", "\"gelu\""),
            ("quantization_config", "{\"quant_method\": \"gptq\"}"),
            ("partial_rotary_factor", "0.5"),
        ] {
            let message = read_with(NEW, field, value).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }
}
