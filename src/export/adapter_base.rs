//! What a model directory keeps of its source for [adapters beside it](super::unmerged): the configuration, from which the
//! blueprint follows, and the graph's nodes that compute its linear layers.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    ExportError, architectures,
    blueprint::{Blueprint, Linear, LmHead},
    emit::ProductNode,
    json_config::JsonConfig,
    unmerged::UnmergedError,
};
use crate::{files, manifest::Manifest};

/// The file's name in a model directory.
pub(super) const FILE: &str = "adapter_base.json";

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdapterBase {
    /// `config.json` of the source.
    config: Map<String, Value>,
    /// Whether the head is tied to the embedding in the exported model.
    is_head_tied: bool,
    /// Identifies the linear layers: their tensors, and how those are arranged in the graph.
    linears: String,
    pub products: Vec<ProductNode>,
}

impl AdapterBase {
    pub(super) fn new(config: &JsonConfig, blueprint: &Blueprint, products: Vec<ProductNode>) -> Self {
        let is_head_tied = matches!(blueprint.head, LmHead::Tied { .. });
        Self { config: config.whole().clone(), is_head_tied, linears: identify(blueprint), products }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// Reads the file in `model_dir`, and the blueprint of the model of `manifest`.
    pub(super) fn read(model_dir: &Path, manifest: &Manifest) -> Result<(Self, Blueprint), ExportError> {
        let path = model_dir.join(FILE);
        let json = files::read(&path, files::MAX_JSON)
            .map_err(|source| UnmergedError::Base { path: path.clone(), source })?;
        let base: Self = serde_json::from_slice(&json)
            .map_err(|source| UnmergedError::BaseFormat { path: path.clone(), source })?;
        let config = serde_json::to_vec(&base.config).unwrap_or_default();
        let blueprint = architectures::read(&JsonConfig::parse(&path, &config)?)?;
        let blueprint = if base.is_head_tied { blueprint } else { blueprint.untied() };
        let blueprint = blueprint.with_vocabulary(manifest.dims.vocab);
        // Another version may arrange heads in another way.
        if identify(&blueprint) != base.linears {
            return Err(UnmergedError::BaseVersion { path }.into());
        }
        Ok((base, blueprint))
    }
}

/// SHA-256 of what decides where an adapter's numbers go.
fn identify(blueprint: &Blueprint) -> String {
    let mut sum = Sha256::new();
    for Linear { weight, bias } in blueprint.linears() {
        sum.update(format!("{weight:?} {bias:?}\n"));
    }
    files::hexadecimal(sum)
}
