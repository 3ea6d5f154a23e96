//! Phi-1, 1.5 and 2: both halves of a layer read the same normalised stream, and everything has a bias.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::Family,
    fields::require_flag,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().or(json!({ "partial_rotary_factor": 0.5 }));
    require_flag(config, "qk_layernorm", false)?;
    // A head that shares the embedding's weights has a bias all the same.
    require_flag(config, "tie_word_embeddings", false)?;
    let blueprint = Family::read_biased(config)?.blueprint("phi", config)?;
    let blueprint = blueprint.in_parallel(false).with_head_bias();
    let names = [("o_proj", "dense"), ("up_proj", "fc1"), ("down_proj", "fc2"), ("norm", "final_layernorm")];
    Ok(blueprint.renamed(&names))
}
