//! Hyperparameters and tensor names of GGUF's architectures, as a Hugging Face checkpoint has them.

use serde_json::{Map, Value, json};

use crate::export::tensors::RowOrder;

use super::{error::GgufError, metadata::Metadata};

/// An architecture that GGUF names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Architecture {
    name: &'static str,
    /// What transformers calls it.
    model_type: &'static str,
    /// The names of the norms after `attn_norm`, by their names in GGUF, which differ where a layer has four.
    norms: &'static [(&'static str, &'static str)],
    /// Rows of query and key are stored for rotation of neighbours.
    is_interleaved: bool,
    /// What norms have added, that checkpoints do not.
    norm_offset: f32,
}

const TWO_NORMS: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];

const FOUR_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Most of them.
const PLAIN: Architecture =
    Architecture { name: "", model_type: "", norms: TWO_NORMS, is_interleaved: false, norm_offset: 0.0 };

const ARCHITECTURES: [Architecture; 6] = [
    Architecture { name: "gemma2", model_type: "gemma2", norms: FOUR_NORMS, norm_offset: 1.0, ..PLAIN },
    Architecture { name: "gemma3", model_type: "gemma3_text", norms: FOUR_NORMS, norm_offset: 1.0, ..PLAIN },
    Architecture { name: "llama", model_type: "llama", is_interleaved: true, ..PLAIN },
    Architecture { name: "phi3", model_type: "phi3", ..PLAIN },
    Architecture { name: "qwen2", model_type: "qwen2", ..PLAIN },
    Architecture { name: "qwen3", model_type: "qwen3", ..PLAIN },
];

/// Parts of a layer with the same name in every architecture.
const MODULES: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Hyperparameters that are read here, or that change nothing: the vocabulary's size is that of the embedding.
const KNOWN: [&str; 23] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attn_logit_softcapping",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// Divisors of rotary frequencies, which GGUF keeps as tensors.
#[derive(Debug, Default)]
pub(super) struct RopeFactors {
    /// `rope_freqs.weight`: at every length.
    pub all: Option<Vec<f32>>,
    /// `rope_factors_short.weight` and `rope_factors_long.weight`: up to the original context, and beyond.
    pub by_length: Option<[Vec<f32>; 2]>,
}

/// What tensors say about a model.
#[derive(Debug)]
pub(super) struct Shapes {
    /// Rows of `token_embd.weight`.
    pub vocab: usize,
    /// Whether there is an `output.weight`.
    pub has_head: bool,
    /// Whether query, key and value have biases.
    pub has_attention_bias: bool,
    /// Whether the MLP has biases.
    pub has_mlp_bias: bool,
}

impl Architecture {
    /// The architecture of `metadata`.
    pub(super) fn of(metadata: &Metadata) -> Result<Self, GgufError> {
        let name = &*metadata.architecture;
        ARCHITECTURES.into_iter().find(|known| known.name == name).ok_or_else(|| {
            let names: Vec<_> = ARCHITECTURES.iter().map(|known| known.name).collect();
            metadata.unsupported("general.architecture", name, names.join(", "))
        })
    }

    /// The name of a tensor in a checkpoint; `None` for one that no checkpoint has.
    pub(super) fn checkpoint_name(&self, tensor: &str) -> Option<String> {
        match tensor {
            "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
            "output_norm.weight" => return Some("model.norm.weight".into()),
            "output.weight" => return Some("lm_head.weight".into()),
            _ => {}
        }
        let (layer, rest) = tensor.strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (module, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let module = match module {
            // Phi-3's has gate and up in one.
            "ffn_up" if self.name == "phi3" => "mlp.gate_up_proj",
            _ => MODULES.iter().chain(self.norms).find(|(gguf, _)| *gguf == module)?.1,
        };
        Some(format!("model.layers.{layer}.{module}.{kind}"))
    }

    /// The order of the rows of a tensor.
    pub(super) fn row_order(&self, tensor: &str, head_dim: usize) -> RowOrder {
        let is_rotated = [".attn_q.", ".attn_k."].iter().any(|part| tensor.contains(part));
        if self.is_interleaved && is_rotated {
            RowOrder::Interleaved { head_dim }
        } else {
            RowOrder::Checkpoint
        }
    }

    /// What a tensor has added to every number.
    pub(super) fn offset(&self, tensor: &str) -> f32 {
        if tensor.ends_with("_norm.weight") { self.norm_offset } else { 0.0 }
    }

    /// The model's `config.json`.
    pub(super) fn config(
        &self,
        metadata: &Metadata,
        shapes: &Shapes,
        factors: &RopeFactors,
    ) -> Result<Map<String, Value>, GgufError> {
        self.refuse_unknown(metadata)?;
        let (hidden, heads) = (metadata.required_size("embedding_length")?, head_count(metadata)?);
        let head_dim = head_dim(metadata)?;
        let rotated = metadata.size("rope.dimension_count")?.unwrap_or(head_dim);
        let epsilon = metadata.float("attention.layer_norm_rms_epsilon")?;
        let config = json!({
            "model_type": self.model_type,
            "vocab_size": shapes.vocab,
            "hidden_size": hidden,
            "intermediate_size": metadata.required_size("feed_forward_length")?,
            "num_hidden_layers": metadata.required_size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": metadata.size("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "max_position_embeddings": metadata.required_size("context_length")?,
            "tie_word_embeddings": !shapes.has_head,
            "attention_bias": shapes.has_attention_bias,
            "mlp_bias": shapes.has_mlp_bias,
            "rope_theta": metadata.float("rope.freq_base")?.unwrap_or(10_000.0),
        });
        let Value::Object(mut config) = config else { return Ok(Map::new()) };
        let mut set = |field: &str, value: Value| config.insert(field.into(), value);
        if let Some(epsilon) = epsilon {
            set("rms_norm_eps", json!(epsilon));
        }
        if rotated != head_dim {
            #[expect(clippy::cast_precision_loss, reason = "sizes of a head")]
            set("partial_rotary_factor", json!(rotated as f64 / head_dim as f64));
        }
        if let Some(scaling) = rope_scaling(metadata, factors)? {
            // Phi-3's class has a default for it, which would count more than the field in the section.
            set("original_max_position_embeddings", scaling["original_max_position_embeddings"].clone());
            set("rope_scaling", scaling);
        }
        if matches!(self.name, "gemma2" | "gemma3" | "phi3")
            && let Some(window) = metadata.size("attention.sliding_window")?
        {
            set("sliding_window", json!(window));
        }
        if let Some(windows) = metadata.flags("attention.sliding_window_pattern")? {
            let name = |is_window| if is_window { "sliding_attention" } else { "full_attention" };
            set("layer_types", windows.into_iter().map(name).collect());
        } else if let Some(every) = metadata.size("attention.sliding_window_pattern")? {
            set("sliding_window_pattern", json!(every));
        }
        if matches!(self.name, "gemma2" | "gemma3") {
            set("query_pre_attn_scalar", json!(self.score_divisor(metadata, hidden / heads, head_dim)?));
            set("attn_logit_softcapping", json!(metadata.float("attn_logit_softcapping")?));
            set("final_logit_softcapping", json!(metadata.float("final_logit_softcapping")?));
        }
        if self.name == "gemma3" {
            set("rope_local_base_freq", json!(metadata.float("rope.freq_base_swa")?.unwrap_or(10_000.0)));
        }
        Ok(config)
    }

    /// GGUF has no field for it. It is the size of a head, but for the largest models, which llama.cpp also knows by their
    /// number of layers.
    fn score_divisor(&self, metadata: &Metadata, share: usize, head_dim: usize) -> Result<usize, GgufError> {
        let largest = if self.name == "gemma2" { 46 } else { 62 };
        Ok(if metadata.required_size("block_count")? == largest { share } else { head_dim })
    }

    /// A hyperparameter that is not understood may change what the model computes.
    fn refuse_unknown(&self, metadata: &Metadata) -> Result<(), GgufError> {
        match metadata.hyperparameters().find(|(name, _)| !KNOWN.contains(name)) {
            Some((name, value)) => Err(metadata.unsupported(&metadata.key(name), value, KNOWN.join(", "))),
            None => Ok(()),
        }
    }
}

fn head_count(metadata: &Metadata) -> Result<usize, GgufError> {
    match metadata.required_size("attention.head_count")? {
        0 => Err(metadata.wrong(&metadata.key("attention.head_count"), 0, "at least one")),
        heads => Ok(heads),
    }
}

/// Dimensions of a head, of which values have as many as keys.
pub(super) fn head_dim(metadata: &Metadata) -> Result<usize, GgufError> {
    let share = metadata.required_size("embedding_length")? / head_count(metadata)?;
    let keys = metadata.size("attention.key_length")?.unwrap_or(share);
    let values = metadata.size("attention.value_length")?.unwrap_or(keys);
    if keys == 0 || !keys.is_multiple_of(2) {
        return Err(metadata.wrong(&metadata.key("attention.key_length"), keys, "an even number"));
    }
    if values != keys {
        return Err(metadata.unsupported(&metadata.key("attention.value_length"), values, keys.to_string()));
    }
    Ok(keys)
}

/// `rope_scaling`, if frequencies are changed.
fn rope_scaling(metadata: &Metadata, factors: &RopeFactors) -> Result<Option<Value>, GgufError> {
    let original = metadata.size("rope.scaling.original_context_length")?;
    let context = metadata.required_size("context_length")?;
    let factor = metadata.float("rope.scaling.factor")?;
    let attention_factor = metadata.float("rope.scaling.attn_factor")?;
    if let Some([short, long]) = &factors.by_length {
        return Ok(Some(json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": original.unwrap_or(context),
            "attention_factor": attention_factor,
        })));
    }
    if let Some(divisors) = &factors.all {
        // One list for every length, as LongRoPE whose two lists are equal.
        return Ok(Some(json!({
            "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
            "original_max_position_embeddings": context, "factor": 1.0, "attention_factor": 1.0,
        })));
    }
    match metadata.text("rope.scaling.type")? {
        None | Some("none") => Ok(None),
        Some("linear") => Ok(Some(json!({ "rope_type": "linear", "factor": factor.unwrap_or(1.0) }))),
        Some("yarn") => Ok(Some(json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
        }))),
        Some(other) => {
            Err(metadata.unsupported(&metadata.key("rope.scaling.type"), other, "none, linear, yarn"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_the_names_of_a_checkpoint() {
        let name = |architecture: &str, tensor| {
            let known = ARCHITECTURES.into_iter().find(|known| known.name == architecture).unwrap();
            known.checkpoint_name(tensor)
        };
        assert_eq!(
            name("llama", "blk.3.ffn_norm.weight").unwrap(),
            "model.layers.3.post_attention_layernorm.weight"
        );
        assert_eq!(
            name("gemma2", "blk.3.ffn_norm.weight").unwrap(),
            "model.layers.3.pre_feedforward_layernorm.weight"
        );
        assert_eq!(name("phi3", "blk.0.ffn_up.weight").unwrap(), "model.layers.0.mlp.gate_up_proj.weight");
        assert_eq!(name("qwen2", "blk.0.attn_q.bias").unwrap(), "model.layers.0.self_attn.q_proj.bias");
        for tensor in
            ["blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight", "blk.0.attn_q.scale", "rope_freqs.weight"]
        {
            assert_eq!(name("llama", tensor), None, "{tensor}");
        }
    }
}
