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
    /// Parts of a layer that have another name than in [`MODULES`], by their names in GGUF.
    modules: &'static [(&'static str, &'static str)],
    /// Names of the embedding, of the list of layers and of the last norm.
    outer: [&'static str; 3],
    /// Query, key and value are one tensor, and a checkpoint has them by key heads.
    is_fused_by_head: bool,
    /// Rows of query and key are stored for rotation of neighbours.
    is_interleaved: bool,
    /// A part of each head may be rotated, and the class has a default for it.
    is_partial: bool,
    /// What norms have added, that checkpoints do not.
    norm_offset: f32,
    /// Numbers by their keys in GGUF and their fields in a configuration.
    numbers: &'static [(&'static str, &'static str)],
    /// Fields for biases of query, key and value, of the attention's output, and of the MLP.
    biases: [&'static str; 3],
}

const FOUR_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const FALCON: &[(&str, &str)] = &[
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];

/// Falcon with a norm for each half of a layer.
const FALCON_WITH_TWO_NORMS: &[(&str, &str)] = &[
    ("attn_norm", "ln_mlp"),
    ("attn_norm_2", "ln_attn"),
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];

const EXPERTS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// Mixtral has the name of Llama.
const MIXTRAL: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.experts.w1"),
    ("ffn_up_exps", "block_sparse_moe.experts.w3"),
    ("ffn_down_exps", "block_sparse_moe.experts.w2"),
];

const RMS: (&str, &str) = ("attention.layer_norm_rms_epsilon", "rms_norm_eps");

const LAYER_NORM: &str = "attention.layer_norm_epsilon";

/// Most of them.
const PLAIN: Architecture = Architecture {
    name: "",
    model_type: "",
    modules: &[],
    outer: ["model.embed_tokens", "model.layers", "model.norm"],
    is_fused_by_head: false,
    is_interleaved: false,
    is_partial: false,
    norm_offset: 0.0,
    numbers: &[RMS],
    biases: ["attention_bias", "attention_out_bias", "mlp_bias"],
};

const ARCHITECTURES: [Architecture; 23] = [
    Architecture { name: "arcee", model_type: "arcee", is_interleaved: true, ..PLAIN },
    Architecture {
        name: "command-r",
        model_type: "cohere",
        numbers: &[(LAYER_NORM, "layer_norm_eps"), ("logit_scale", "logit_scale")],
        ..PLAIN
    },
    Architecture {
        name: "falcon",
        model_type: "falcon",
        modules: FALCON,
        outer: ["transformer.word_embeddings", "transformer.h", "transformer.ln_f"],
        is_fused_by_head: true,
        numbers: &[(LAYER_NORM, "layer_norm_epsilon")],
        biases: ["bias", "", ""],
        ..PLAIN
    },
    Architecture { name: "gemma", model_type: "gemma", norm_offset: 1.0, ..PLAIN },
    Architecture { name: "gemma2", model_type: "gemma2", modules: FOUR_NORMS, norm_offset: 1.0, ..PLAIN },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        modules: FOUR_NORMS,
        norm_offset: 1.0,
        ..PLAIN
    },
    Architecture {
        name: "gptneox",
        model_type: "gpt_neox",
        modules: &[
            ("attn_qkv", "attention.query_key_value"),
            ("attn_output", "attention.dense"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        outer: ["gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm"],
        is_fused_by_head: true,
        is_partial: true,
        numbers: &[(LAYER_NORM, "layer_norm_eps")],
        biases: ["attention_bias", "", ""],
        ..PLAIN
    },
    Architecture {
        name: "granite",
        model_type: "granite",
        is_interleaved: true,
        numbers: &[
            RMS,
            ("attention.scale", "attention_multiplier"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
        ],
        ..PLAIN
    },
    Architecture { name: "internlm2", model_type: "llama", is_interleaved: true, ..PLAIN },
    Architecture { name: "llama", model_type: "llama", is_interleaved: true, ..PLAIN },
    Architecture {
        name: "nemotron",
        model_type: "nemotron",
        is_partial: true,
        norm_offset: 1.0,
        numbers: &[(LAYER_NORM, "norm_eps")],
        ..PLAIN
    },
    Architecture { name: "olmo2", model_type: "olmo2", modules: FOUR_NORMS, ..PLAIN },
    Architecture { name: "olmoe", model_type: "olmoe", modules: EXPERTS, ..PLAIN },
    Architecture {
        name: "phi2",
        model_type: "phi",
        modules: &[("attn_output", "self_attn.dense"), ("ffn_up", "mlp.fc1"), ("ffn_down", "mlp.fc2")],
        outer: ["model.embed_tokens", "model.layers", "model.final_layernorm"],
        is_partial: true,
        numbers: &[(LAYER_NORM, "layer_norm_eps")],
        ..PLAIN
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        // Gate and up in one.
        modules: &[("ffn_up", "mlp.gate_up_proj")],
        ..PLAIN
    },
    Architecture { name: "qwen2", model_type: "qwen2", ..PLAIN },
    Architecture {
        name: "qwen2moe",
        model_type: "qwen2_moe",
        modules: EXPERTS,
        biases: ["qkv_bias", "", ""],
        ..PLAIN
    },
    Architecture { name: "qwen3", model_type: "qwen3", ..PLAIN },
    Architecture { name: "qwen3moe", model_type: "qwen3_moe", modules: EXPERTS, ..PLAIN },
    Architecture {
        name: "seed_oss",
        model_type: "seed_oss",
        modules: &[("post_attention_norm", "post_attention_layernorm")],
        ..PLAIN
    },
    Architecture { name: "smollm3", model_type: "smollm3", is_interleaved: true, ..PLAIN },
    Architecture {
        name: "stablelm",
        model_type: "stablelm",
        is_partial: true,
        numbers: &[(LAYER_NORM, "layer_norm_eps")],
        biases: ["use_qkv_bias", "", ""],
        ..PLAIN
    },
    Architecture {
        name: "starcoder2",
        model_type: "starcoder2",
        modules: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")],
        numbers: &[(LAYER_NORM, "norm_epsilon")],
        biases: ["use_bias", "", ""],
        ..PLAIN
    },
];

/// Parts of a layer with the same name in most architectures.
const MODULES: [(&str, &str); 12] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Hyperparameters that are read here, or that change nothing: the vocabulary's size is that of the embedding.
const KNOWN: [&str; 27] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attn_logit_softcapping",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_used_count",
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
    "use_parallel_residual",
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
    /// Whether query, key and value, the attention's output, and the MLP have biases.
    pub biases: [bool; 3],
    /// Whether each half of a layer has a norm of its own where both read the same stream.
    pub has_two_norms: bool,
    /// Whether there are experts.
    pub has_experts: bool,
}

/// Sizes of attention that decide the order of rows.
#[derive(Clone, Copy, Debug)]
pub(in crate::export) struct HeadSizes {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
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

    /// The same architecture for a model with these tensors.
    pub(super) fn with_shapes(self, shapes: &Shapes) -> Self {
        let has_names = self.name == "falcon" && shapes.has_two_norms;
        if has_names {
            return Self { modules: FALCON_WITH_TWO_NORMS, ..self };
        }
        let is_mixtral = self.name == "llama" && shapes.has_experts;
        if is_mixtral { Self { model_type: "mixtral", modules: MIXTRAL, ..self } } else { self }
    }

    /// The name of a tensor in a checkpoint; `None` for one that no checkpoint has.
    pub(super) fn checkpoint_name(&self, tensor: &str) -> Option<String> {
        let [embedding, layers, final_norm] = self.outer;
        match tensor {
            "token_embd.weight" => return Some(format!("{embedding}.weight")),
            "output.weight" | "output.bias" => return Some(tensor.replace("output", "lm_head")),
            "output_norm.weight" | "output_norm.bias" => {
                return Some(tensor.replace("output_norm", final_norm));
            }
            _ => {}
        }
        let (layer, rest) = tensor.strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (module, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let module = self.modules.iter().chain(&MODULES).find(|(gguf, _)| *gguf == module)?.1;
        Some(format!("{layers}.{layer}.{module}.{kind}"))
    }

    /// The order of the rows of a tensor.
    pub(super) fn row_order(&self, tensor: &str, sizes: HeadSizes) -> RowOrder {
        let HeadSizes { heads, kv_heads, head_dim } = sizes;
        let is_rotated = [".attn_q.", ".attn_k."].iter().any(|part| tensor.contains(part));
        if self.is_interleaved && is_rotated {
            RowOrder::Interleaved { head_dim }
        } else if self.is_fused_by_head && tensor.contains(".attn_qkv.") {
            RowOrder::Stacked { groups: kv_heads, queries: heads / kv_heads * head_dim, keys: head_dim }
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
            "rope_theta": metadata.float("rope.freq_base")?.unwrap_or(10_000.0),
        });
        let Value::Object(mut config) = config else { return Ok(Map::new()) };
        let mut set = |field: &str, value: Value| config.insert(field.into(), value);
        for (field, is_there) in
            self.biases.into_iter().zip(shapes.biases).filter(|(field, _)| !field.is_empty())
        {
            set(field, json!(is_there));
        }
        for (key, field) in self.numbers {
            if let Some(number) = metadata.float(key)? {
                set(field, json!(number));
            }
        }
        if rotated != head_dim || self.is_partial {
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
        config.extend(self.own_fields(metadata, shapes)?);
        Ok(config)
    }

    /// Fields that only this architecture has.
    fn own_fields(&self, metadata: &Metadata, shapes: &Shapes) -> Result<Map<String, Value>, GgufError> {
        let mut fields = Map::new();
        let mut set = |field: &str, value: Value| fields.insert(field.into(), value);
        if matches!(self.name, "stablelm" | "gptneox") {
            let default = self.name == "gptneox";
            set("use_parallel_residual", json!(metadata.flag("use_parallel_residual")?.unwrap_or(default)));
        }
        if shapes.has_experts {
            let width = metadata.required_size("feed_forward_length")?;
            let of_expert = metadata.size("expert_feed_forward_length")?.unwrap_or(width);
            set("moe_intermediate_size", json!(of_expert));
            for field in ["num_experts", "num_local_experts"] {
                set(field, json!(metadata.required_size("expert_count")?));
            }
            set("num_experts_per_tok", json!(metadata.required_size("expert_used_count")?));
            if let Some(shared) = metadata.size("expert_shared_feed_forward_length")? {
                set("shared_expert_intermediate_size", json!(shared));
            }
            // As in llama.cpp: GGUF files of these architectures do not say.
            set("norm_topk_prob", json!(self.name == "qwen3moe"));
        }
        if self.name == "falcon" {
            let HeadSizes { kv_heads, .. } = head_sizes(metadata)?;
            set("num_kv_heads", json!(kv_heads));
            set("ffn_hidden_size", json!(metadata.required_size("feed_forward_length")?));
            // With one key head, both layouts of the fused tensor are the same.
            set("new_decoder_architecture", json!(kv_heads > 1 || shapes.has_two_norms));
            set("num_ln_in_parallel_attn", json!(1 + usize::from(shapes.has_two_norms)));
        }
        Ok(fields)
    }

    /// GGUF has no field for it. It is the size of a head, but for the largest models, which llama.cpp also knows by their
    /// number of layers.
    fn score_divisor(&self, metadata: &Metadata, share: usize, head_dim: usize) -> Result<usize, GgufError> {
        let largest = if self.name == "gemma2" { 46 } else { 62 };
        Ok(if metadata.required_size("block_count")? == largest { share } else { head_dim })
    }

    /// A hyperparameter that is not understood may change what the model computes.
    fn refuse_unknown(&self, metadata: &Metadata) -> Result<(), GgufError> {
        let is_number = |name: &str| self.numbers.iter().any(|(key, _)| *key == name);
        match metadata.hyperparameters().find(|(name, _)| !KNOWN.contains(name) && !is_number(name)) {
            Some((name, value)) => Err(metadata.unsupported(&metadata.key(name), value, KNOWN.join(", "))),
            None => Ok(()),
        }
    }
}

/// The sizes of attention.
pub(super) fn head_sizes(metadata: &Metadata) -> Result<HeadSizes, GgufError> {
    let heads = head_count(metadata)?;
    let kv_heads = metadata.size("attention.head_count_kv")?.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of {heads}");
        return Err(metadata.wrong(&metadata.key("attention.head_count_kv"), kv_heads, &expected));
    }
    Ok(HeadSizes { heads, kv_heads, head_dim: head_dim(metadata)? })
}

fn head_count(metadata: &Metadata) -> Result<usize, GgufError> {
    match metadata.required_size("attention.head_count")? {
        0 => Err(metadata.wrong(&metadata.key("attention.head_count"), 0, "at least one")),
        heads => Ok(heads),
    }
}

/// Dimensions of a head, of which values have as many as keys.
fn head_dim(metadata: &Metadata) -> Result<usize, GgufError> {
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
        assert_eq!(name("phi2", "output_norm.bias").unwrap(), "model.final_layernorm.bias");
        assert_eq!(name("starcoder2", "blk.1.ffn_down.bias").unwrap(), "model.layers.1.mlp.c_proj.bias");
        for tensor in
            ["blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight", "blk.0.attn_q.scale", "rope_freqs.weight"]
        {
            assert_eq!(name("llama", tensor), None, "{tensor}");
        }
    }
}
