//! Gemma 4's text models: layers that see every key have larger heads than those with a window, the last layers use the keys
//! and values of earlier ones, and small models have embeddings for every layer.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    super::{
        blueprint::{Attention, Blueprint, HeadNorms, Layer, Linear, Norm, PerLayer, PerLayerInputs},
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param},
        rope::{Partial, Rotary, Scaling},
    },
    family::{Family, HeadNormWidth, NormStyle, linear},
    fields::{activation, check_heads, require_flag, sliding_layers},
};
use crate::manifest::Dims;

/// Where transformers' newer files have the settings of layers that see every key, by their numbers.
const OVERRIDES: &str = "per_layer_config";

/// What the class takes for heads of layers that see every key.
const FULL_HEAD_DIM: usize = 512;

/// Settings that differ between layers.
struct Layers<'a> {
    config: &'a JsonConfig,
    family: Family,
    slides: Vec<bool>,
    /// Layers from here on use the keys and values of earlier ones.
    first_shared: usize,
    /// Of the layers with most of them.
    kv_heads: usize,
}

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "enable_moe_block", false)?;
    if config.text("use_bidirectional_attention").is_ok_and(|kind| kind == Some("all")) {
        return Err(config.unsupported("use_bidirectional_attention", "null, vision"));
    }
    let layers = Layers::read(config)?;
    let plain = config.clone().with("rope_parameters", Value::Null).with("rope_scaling", Value::Null);
    let family = &layers.family;
    let mut blueprint = family.blueprint("gemma4_text", &plain)?;
    blueprint.dims.kv_heads = layers.kv_heads;
    blueprint.layers =
        (0..family.dims.layers).map(|number| layers.layer(number)).collect::<Result<_, _>>()?;
    blueprint.rotaries = layers.rotaries()?;
    blueprint.per_layer = per_layer_inputs(config, family)?;
    blueprint.embedding.scale = Some((family.dims.hidden as f32).sqrt());
    blueprint.logits_cap = config.optional_positive("final_logit_softcapping")?;
    Ok(blueprint)
}

impl<'a> Layers<'a> {
    fn read(config: &'a JsonConfig) -> Result<Self, JsonConfigError> {
        const SHARED: &str = "num_kv_shared_layers";
        let bias = config.flag("attention_bias", false)?;
        let family = Family {
            input_bias: bias,
            output_bias: bias,
            head_norms: Some(HeadNormWidth::Each),
            activation: "hidden_activation",
            ..Family::read(config)?
        };
        let count = family.dims.layers;
        let mut slides = sliding_layers(config, count, |layer| !(layer + 1).is_multiple_of(6))?;
        // transformers does so too.
        if let Some(last) = slides.last_mut() {
            *last = false;
        }
        let shared = if config.get(SHARED).is_some() { config.count(SHARED)? } else { 0 };
        let Some(first_shared) = count.checked_sub(shared) else {
            return Err(config.wrong(SHARED, format!("at most num_hidden_layers, {count}")));
        };
        let mut layers = Self { config, family, slides, first_shared, kv_heads: 0 };
        layers.check_overrides()?;
        let kv_heads = [layers.kv_heads(true)?, layers.kv_heads(false)?];
        layers.kv_heads = kv_heads[0].max(kv_heads[1]);
        let heads = layers.family.dims.heads;
        let most = layers.kv_heads;
        if !heads.is_multiple_of(most) || kv_heads.iter().any(|few| !most.is_multiple_of(*few)) {
            let expected = format!(
                "a divisor of num_attention_heads, {heads}, and a divisor or multiple of num_key_value_heads"
            );
            return Err(config.wrong("num_global_key_value_heads", expected));
        }
        check_heads(config, "global_head_dim", (heads, layers.head_dim(false)?))?;
        Ok(layers)
    }

    /// A setting of layers that see every key: in `per_layer_config` of transformers' newer files, else in `field`.
    fn of_full_layers(&self, name: &str, field: &str) -> Result<Option<usize>, JsonConfigError> {
        let Some(overrides) = self.config.section(OVERRIDES)? else {
            return self.config.optional_size(field);
        };
        let key = overrides.fields().map(|(key, _)| key.to_owned()).next();
        let own = key.map_or(Ok(None), |key| overrides.section(&key))?;
        own.map_or(Ok(None), |own| own.optional_size(name))
    }

    /// All layers that see every key have the same settings, and no other layer has its own.
    fn check_overrides(&self) -> Result<(), JsonConfigError> {
        let Some(overrides) = self.config.section(OVERRIDES)? else { return Ok(()) };
        let mut left: BTreeSet<usize> =
            (0..self.slides.len()).filter(|number| !self.slides[*number]).collect();
        let mut values = overrides.fields().map(|(_, value)| value);
        let first = values.next();
        let are_same = values.all(|value| Some(value) == first);
        let are_full =
            overrides.fields().all(|(key, _)| key.parse().is_ok_and(|number| left.remove(&number)));
        let are_known = first.and_then(Value::as_object).is_none_or(|settings| {
            settings.keys().all(|key| matches!(key.as_str(), "head_dim" | "num_key_value_heads"))
        });
        if are_same && are_full && are_known && (left.is_empty() || first.is_none()) {
            return Ok(());
        }
        let supported =
            "head_dim and num_key_value_heads, the same for all layers of full_attention and no others";
        Err(self.config.unsupported(OVERRIDES, supported))
    }

    fn head_dim(&self, slides: bool) -> Result<usize, JsonConfigError> {
        if slides {
            return Ok(self.family.dims.head_dim);
        }
        Ok(self.of_full_layers("head_dim", "global_head_dim")?.unwrap_or(FULL_HEAD_DIM))
    }

    fn kv_heads(&self, slides: bool) -> Result<usize, JsonConfigError> {
        let own = self.family.dims.kv_heads;
        let is_stated = self.config.get(OVERRIDES).is_some() || self.has_one_projection(slides)?;
        if slides || !is_stated {
            return Ok(own);
        }
        Ok(self.of_full_layers("num_key_value_heads", "num_global_key_value_heads")?.unwrap_or(own))
    }

    /// Whether values are the keys without their norm and rotation.
    fn has_one_projection(&self, slides: bool) -> Result<bool, JsonConfigError> {
        Ok(!slides && self.config.flag("attention_k_eq_v", false)?)
    }

    /// Angles of layers that see every key, and of those with a window if there are any.
    fn rotaries(&self) -> Result<Vec<Rotary>, JsonConfigError> {
        const FIELD: &str = "rope_parameters";
        let default = json!({
            "full_attention": { "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
        });
        let has_own = self.config.get(FIELD).is_some_and(|own| !own.is_null());
        let config = if has_own { self.config.clone() } else { self.config.clone().with(FIELD, default) };
        let parameters = config.section(FIELD)?;
        let section = |name| parameters.as_ref().map_or(Ok(None), |parameters| parameters.section(name));
        let mut rotaries = vec![read_rotary(&config, section("full_attention")?, self.head_dim(false)?)?];
        if self.slides.contains(&true) {
            rotaries.push(read_rotary(&config, section("sliding_attention")?, self.family.dims.head_dim)?);
        }
        Ok(rotaries)
    }

    fn layer(&self, number: usize) -> Result<Layer, JsonConfigError> {
        let slides = self.slides[number];
        let is_shared = number >= self.first_shared;
        let is_wide = is_shared && self.config.flag("use_double_wide_mlp", false)?;
        let dims = self.family.dims;
        let dims = Dims {
            head_dim: self.head_dim(slides)?,
            kv_heads: self.kv_heads(slides)?,
            intermediate: if is_wide { 2 * dims.intermediate } else { dims.intermediate },
            ..dims
        };
        let family = Family { dims, ..self.family };
        let mut layer = family.layer(self.config, number)?;
        let scope = format!("layers.{number}");
        let norm = |name: &str| Some(family.norm(&format!("{scope}.{name}"), dims.hidden));
        layer.attention_end = norm("post_attention_layernorm");
        layer.mlp_norm = norm("pre_feedforward_layernorm");
        layer.mlp_end = norm("post_feedforward_layernorm");
        layer.scalar = Some(Param::vector(format!("{scope}.layer_scalar"), 1));
        layer.per_layer = self.per_layer(&scope)?;
        let attention = &mut layer.attention;
        attention.rotary = Some(usize::from(slides));
        attention.window = if slides { self.config.optional_size("sliding_window")? } else { None };
        attention.scale = Some(1.0);
        let style = NormStyle { has_weights: false, ..family.norms };
        attention.value_norm = Some(style.norm(&format!("{scope}.self_attn.v_norm"), dims.head_dim));
        if self.has_one_projection(slides)? {
            attention.value = attention.key.clone();
        }
        let times = self.kv_heads / dims.kv_heads;
        for linear in [&mut attention.key, &mut attention.value] {
            repeat(linear, dims.head_dim, times);
        }
        if is_shared {
            self.share(attention, slides)?;
        }
        Ok(layer)
    }

    /// Takes keys and values from the last layer of the same kind that has its own.
    fn share(&self, attention: &mut Attention, slides: bool) -> Result<(), JsonConfigError> {
        let source = self.slides[..self.first_shared].iter().rposition(|kind| *kind == slides);
        if source.is_none() {
            let expected = "layers of each type before the ones that share keys and values";
            return Err(self.config.wrong("num_kv_shared_layers", expected));
        }
        attention.shares = source;
        let mut params = vec![&mut attention.key.weight, &mut attention.value.weight];
        params.extend([&mut attention.key.bias, &mut attention.value.bias].into_iter().flatten());
        if let Some(HeadNorms::Each([_, key])) = &mut attention.head_norms {
            params.push(&mut key.weight);
        }
        params.into_iter().for_each(|param| param.lines = Lines::Nowhere);
        Ok(())
    }

    fn per_layer(&self, scope: &str) -> Result<Option<PerLayer>, JsonConfigError> {
        let Some(size) = per_layer_size(self.config)? else { return Ok(None) };
        let hidden = self.family.dims.hidden;
        Ok(Some(PerLayer {
            gate: linear(scope, "per_layer_input_gate", [size, hidden], false),
            activation: activation(self.config, "hidden_activation")?,
            projection: linear(scope, "per_layer_projection", [hidden, size], false),
            norm: self.family.norm(&format!("{scope}.post_per_layer_input_norm"), hidden),
        }))
    }
}

/// Zero turns it off.
fn per_layer_size(config: &JsonConfig) -> Result<Option<usize>, JsonConfigError> {
    const SIZE: &str = "hidden_size_per_layer_input";
    if config.get(SIZE).is_none() || config.count(SIZE)? == 0 { Ok(None) } else { config.optional_size(SIZE) }
}

fn per_layer_inputs(config: &JsonConfig, family: &Family) -> Result<Option<PerLayerInputs>, JsonConfigError> {
    let Some(size) = per_layer_size(config)? else { return Ok(None) };
    let Dims { layers, hidden, .. } = family.dims;
    let rows = config.size("vocab_size_per_layer_input")?;
    let width = size.checked_mul(layers).filter(|width| *width <= crate::manifest::MAX_DIMENSION);
    let width = width.ok_or_else(|| config.wrong("hidden_size_per_layer_input", "a smaller size"))?;
    let mut projection =
        Linear { weight: Param::matrix("per_layer_model_projection.weight", width, hidden), bias: None };
    projection.weight.factor = (hidden as f32).sqrt().recip();
    let Norm { weight, .. } = family.norm("per_layer_projection_norm", size);
    // The sum of the two is divided by the root of two.
    let share = 0.5f32.sqrt();
    let norm = Norm { weight: Param { factor: share, ..weight }, ..family.norm("", size) };
    Ok(Some(PerLayerInputs {
        table: Param::matrix("embed_tokens_per_layer.weight", rows, width),
        scale: (size as f32).sqrt() * share,
        projection,
        norm,
        size,
    }))
}

/// Repeats each head `times` times, so that all layers have as many.
fn repeat(linear: &mut Linear, head_dim: usize, times: usize) {
    if times == 1 {
        return;
    }
    for param in [&mut linear.weight].into_iter().chain(&mut linear.bias) {
        param.repeat(head_dim, times);
    }
}

fn read_rotary(
    config: &JsonConfig,
    section: Option<JsonConfig>,
    head_dim: usize,
) -> Result<Rotary, JsonConfigError> {
    const SHARE: &str = "partial_rotary_factor";
    let heads = (head_dim, Partial::Refused);
    let Some(section) = section else { return Rotary::read_section(config, None, heads) };
    if section.text("rope_type")? != Some("proportional") {
        return Rotary::read_section(config, Some(&section), heads);
    }
    let share = section.optional_positive(SHARE)?.unwrap_or(1.0);
    if share > 1.0 {
        return Err(section.wrong(SHARE, "a share of at most 1"));
    }
    let factor = section.optional_positive("factor")?.unwrap_or(1.0);
    let whole = section.clone().with("rope_type", "default").with(SHARE, 1.0);
    let rotary = Rotary::read_section(config, Some(&whole), heads)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a head's pairs")]
    let turning = (f64::from(share) * head_dim as f64 / 2.0) as usize;
    Ok(Rotary { scaling: Scaling::Proportional { turning, factor }, ..rotary })
}
