//! Mistral and Ministral: Llama with a window of keys.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope,
    },
    family::Family,
    fields::{one_window, windows},
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family::read(config)?;
    let windows = one_window(config, family.dims.layers)?;
    Ok(family.blueprint("mistral", config)?.with_windows(windows))
}

/// Ministral: windows in some layers.
pub(super) fn read_ministral(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family::read(config)?;
    let windows = windows(config, family.dims.layers, |_| true)?;
    Ok(family.blueprint("ministral", config)?.with_windows(windows))
}

/// Ministral 3: scores grow with the position from the original context on. Up to there, that factor is one.
pub(super) fn read_ministral3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family::read(config)?;
    let windows = one_window(config, family.dims.layers)?;
    let mut blueprint = family.blueprint("ministral3", config)?.with_windows(windows);
    if let Some(rope) = rope::section(config)?
        && rope.optional_positive("llama_4_scaling_beta")?.is_some()
    {
        let original = rope.size("original_max_position_embeddings")?;
        blueprint.longest_context = blueprint.longest_context.min(original);
        blueprint.context_length = blueprint.context_length.min(original);
    }
    Ok(blueprint)
}
