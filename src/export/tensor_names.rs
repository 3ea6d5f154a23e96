//! Names of tensors, without what depends on the class or the program that saved them.
//!
//! Checkpoints of one architecture differ in what they put before a tensor's name (`model.layers…`, `layers…`,
//! `language_model.model.layers…`), and training wraps modules in others (`_fsdp_wrapped_module`, `_orig_mod`). Names are therefore
//! compared without both, in checkpoints and in adapters.

use std::borrow::Cow;

/// Modules that training puts around others: FSDP, activation checkpoints and torch.compile.
const WRAPPERS: [&str; 4] =
    ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "_forward_module"];

/// What DistributedDataParallel and DeepSpeed put around the whole model.
const PARALLEL: &str = "module";

/// Prefixes of tensor names in checkpoints, outermost first.
const PREFIXES: [&str; 7] =
    ["language_model.", "text_model.", "model.", "transformer.", "gpt_neox.", "decoder.", "biogpt."];

/// Suffixes of tensors that are computed and not trained: the export computes them itself.
const BUFFERS: [&str; 9] = [
    ".inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".attn.causal_mask",
    ".act_fn.beta",
    ".act_fn.eps",
    ".embed_positions.weights",
];

/// Names of the head in older classes.
const HEADS: [(&str, &str); 4] = [
    ("embed_out", "lm_head"),
    ("embed_out.weight", "lm_head.weight"),
    ("output_projection", "lm_head"),
    ("output_projection.weight", "lm_head.weight"),
];

/// Prefixes of the tensors for vision and audio in multimodal models.
const SENSES: [&str; 16] = [
    "vision_tower.",
    "vision_model.",
    "vision_embed_tokens.",
    "visual.",
    "multi_modal_projector.",
    "image_newline",
    "connector.",
    "perceiver_resampler.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    // Janus makes images as well.
    "aligner.",
    "vqmodel.",
    "generation_embeddings.",
    "generation_aligner.",
    "generation_head.",
];

/// `name` without the modules that training wraps around others.
pub(super) fn unwrapped(name: &str) -> Cow<'_, str> {
    let is_wrapper = |part: &&str| WRAPPERS.contains(part);
    if !name.split('.').any(|part| is_wrapper(&part) || part == PARALLEL) {
        return name.into();
    }
    let parts = name.split('.').filter(|part| !is_wrapper(part));
    parts.skip_while(|part| *part == PARALLEL).collect::<Vec<_>>().join(".").into()
}

/// `name` without wrappers and the prefixes, and with the name of the head, that depend on which class saved it.
pub(super) fn canonical(name: &str) -> Cow<'_, str> {
    match unwrapped(name) {
        Cow::Borrowed(name) => without_prefixes(name).into(),
        Cow::Owned(name) => without_prefixes(&name).to_owned().into(),
    }
}

fn without_prefixes(name: &str) -> &str {
    let mut name = name;
    // Both `model.language_model.…` and `language_model.model.…` are in use.
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    HEADS.iter().find(|(older, _)| *older == name).map_or(name, |(_, newer)| newer)
}

/// Whether the tensor called `name` is computed, not trained.
pub(super) fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

/// Whether the tensor or module called `name` is for vision or audio.
pub(super) fn is_of_a_sense(name: &str) -> bool {
    SENSES.iter().any(|sense| canonical(name).starts_with(sense))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_the_prefixes_of_the_saving_class() {
        for name in ["norm.weight", "model.norm.weight", "language_model.model.norm.weight"] {
            assert_eq!(canonical(name), "norm.weight");
        }
    }

    #[test]
    fn modules_that_training_wraps_around_others_are_left_out() {
        for name in [
            "module.model.layers.0.mlp.up_proj.weight",
            "module.module.model.layers.0.mlp.up_proj.weight",
            "_orig_mod.model.layers.0.mlp.up_proj.weight",
            "_orig_mod.module.model.layers.0.mlp.up_proj.weight",
            "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
            "model.layers.0._checkpoint_wrapped_module.mlp._orig_mod.up_proj.weight",
        ] {
            assert_eq!(canonical(name), "layers.0.mlp.up_proj.weight", "{name}");
        }
        assert_eq!(unwrapped("model.module.weight"), "model.module.weight");
    }
}
