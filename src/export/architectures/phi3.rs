//! Phi-3, 3.5 and 4: query, key and value are one tensor, gate and up another.

use super::{
    super::{
        blueprint::{Blueprint, Inner, Layer},
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param},
    },
    family::{Family, with_defaults},
    fields::windows,
};
use crate::manifest::Dims;

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_defaults(config, "hidden_act");
    let family = Family::read(config)?;
    let windows = windows(config, family.dims.layers, |_| true)?;
    let mut blueprint = family.blueprint("phi3", config)?.with_windows(windows);
    for (i, layer) in blueprint.layers.iter_mut().enumerate() {
        fuse(family.dims, i, layer);
    }
    Ok(blueprint)
}

/// Takes the layer's weights from the tensors that hold several.
fn fuse(dims: Dims, layer: usize, parts: &mut Layer) {
    let Dims { hidden, heads, kv_heads, head_dim, intermediate, .. } = dims;
    let part = |name: &str, start: usize, rows: usize, of: usize| Param {
        lines: Lines::From { start, of },
        ..Param::matrix(format!("layers.{layer}.{name}.weight"), rows, hidden)
    };
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let of = q + 2 * kv;
    let attention = &mut parts.attention;
    attention.query.weight = part("self_attn.qkv_proj", 0, q, of);
    attention.key.weight = part("self_attn.qkv_proj", q, kv, of);
    attention.value.weight = part("self_attn.qkv_proj", q + kv, kv, of);
    if let Inner::Gated { gate, up } = &mut parts.mlp.inner {
        gate.weight = part("mlp.gate_up_proj", 0, intermediate, 2 * intermediate);
        up.weight = part("mlp.gate_up_proj", intermediate, intermediate, 2 * intermediate);
    }
}
