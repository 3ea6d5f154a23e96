//! Reads `adapter_config.json`.
//!
//! PEFT gets about one new setting a month, and most of them change the merged weights. So every setting must be known to be
//! harmless, handled here, or off. An unknown setting counts as off if it is null, false, empty or zero.

use serde_json::Value;

use super::{
    AdapterError,
    patterns::{ByModule, Targets, ends_with},
};
use crate::export::json_config::{JsonConfig, JsonConfigError};

/// Settings about training, loading or bookkeeping: no value changes the merged weights, except where the tensors' names
/// show it.
const HARMLESS: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    // Settings of initialisations, which `init_lora_weights` names where one was used.
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "velora_config",
    // Describes how the base stores the weight, which the architecture knows.
    "fan_in_fan_out",
    "inference_mode",
    "lora_bias",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Settings that are read here or with the modules' names.
const READ: [&str; 15] = [
    "alpha_pattern",
    "ensure_weight_tying",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// Initialisations that do not change the base. Others (PiSSA, OLoRA, CorDA, LoftQ) also change the base's weights, and an
/// adapter saved as it was trained then only fits the changed base.
const INITIALISATIONS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// An adapter's settings.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    ranks: ByModule<usize>,
    alphas: ByModule<f32>,
    is_rank_stabilized: bool,
    /// Whether every pair comes with a magnitude.
    pub is_dora: bool,
    /// Whether the head's tensors repeat the embedding's delta.
    pub is_tying: bool,
    pub targets: Targets,
    /// Ends of names of modules that are saved whole.
    pub saved: Vec<String>,
    /// Ends of names of parameters of all experts that have low-rank matrices.
    pub parameters: Vec<String>,
    tokens: Vec<Tokens>,
}

/// Tokens of an embedding whose rows are replaced.
#[derive(Debug)]
struct Tokens {
    /// End of the embedding's name; the input's embedding when absent.
    module: Option<String>,
    tokens: Vec<usize>,
}

impl AdapterConfig {
    pub(super) fn read(config: &JsonConfig) -> Result<Self, AdapterError> {
        refuse_unsupported(config)?;
        let (rank, alpha) = (config.size("r")?, config.positive("lora_alpha")?);
        let saved = config.texts("modules_to_save")?.unwrap_or_default();
        Ok(Self {
            ranks: ByModule::read(config, "rank_pattern", rank, |section, key| section.size(key))?,
            alphas: ByModule::read(config, "alpha_pattern", alpha, |section, key| section.positive(key))?,
            is_rank_stabilized: config.flag("use_rslora", false)?,
            is_dora: config.flag("use_dora", false)?,
            is_tying: config.flag("ensure_weight_tying", false)?,
            targets: Targets::read(config)?,
            saved: saved.into_iter().map(Into::into).collect(),
            parameters: config
                .texts("target_parameters")?
                .unwrap_or_default()
                .into_iter()
                .map(Into::into)
                .collect(),
            tokens: read_tokens(config)?,
        })
    }

    /// Rank unless `rank_pattern` overrides it.
    pub(super) fn default_rank(&self) -> usize {
        self.ranks.default
    }

    /// Alpha unless `alpha_pattern` overrides it.
    pub(super) fn default_alpha(&self) -> f32 {
        self.alphas.default
    }

    /// Rank of the matrices of `module`.
    pub(super) fn rank(&self, module: &str) -> Result<usize, AdapterError> {
        self.ranks.of(module)
    }

    /// What the product of the matrices of `module` is multiplied with.
    pub(super) fn scale(&self, module: &str) -> Result<f32, AdapterError> {
        let rank = self.rank(module)? as f32;
        Ok(self.alphas.of(module)? / if self.is_rank_stabilized { rank.sqrt() } else { rank })
    }

    /// Whether `module` is saved whole, or part of a module that is.
    pub(super) fn is_saved(&self, module: &str) -> bool {
        self.saved.iter().any(|name| is_or_is_within(module, name))
    }

    /// Whether `target_parameters` names the parameter `name`.
    pub(super) fn names_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|end| ends_with(name, end))
    }

    /// The tokens whose rows of `module` are replaced; as in PEFT, the head of a tied model has those of its embedding.
    pub(super) fn tokens(&self, module: &str, is_embedding: bool) -> Option<&[usize]> {
        let named = |entry: &&Tokens| entry.module.as_ref().is_some_and(|name| ends_with(module, name));
        let entry = self.tokens.iter().find(named).or_else(|| {
            self.tokens
                .iter()
                .find(|entry| entry.module.is_none() || (!is_embedding && self.tokens.len() == 1))
        })?;
        Some(&entry.tokens)
    }
}

/// Whether `module` or a module around it has a name that ends so. PEFT does not ask for a dot before the end.
pub(super) fn is_or_is_within(module: &str, end: &str) -> bool {
    module
        .match_indices('.')
        .map(|(dot, _)| &module[..dot])
        .chain([module])
        .any(|around| around.ends_with(end))
}

fn read_tokens(config: &JsonConfig) -> Result<Vec<Tokens>, JsonConfigError> {
    const FIELD: &str = "trainable_token_indices";
    let positions = |ids: Vec<u32>| ids.into_iter().map(|id| id as usize).collect();
    if !config.get(FIELD).is_some_and(Value::is_object) {
        let tokens: Vec<usize> = positions(config.ids(FIELD)?);
        return Ok(if tokens.is_empty() { Vec::new() } else { vec![Tokens { module: None, tokens }] });
    }
    let Some(section) = config.section(FIELD)? else { return Ok(Vec::new()) };
    section
        .fields()
        .map(|(name, _)| Ok(Tokens { module: Some(name.into()), tokens: positions(section.ids(name)?) }))
        .collect()
}

fn refuse_unsupported(config: &JsonConfig) -> Result<(), JsonConfigError> {
    if config.get("lora_parameters").is_some() {
        let supported =
            "adapters of PEFT, and this one is MLX's; mlx_lm.fuse merges it into its base, which eka exports";
        return Err(config.unsupported("lora_parameters", supported));
    }
    if config.text("peft_type")? != Some("LORA") {
        let supported = "LORA, also with DoRA, rank-stabilized, with patterns, biases, modules_to_save and \
                         trainable_token_indices";
        return Err(config.unsupported("peft_type", supported));
    }
    for (field, value) in config.fields() {
        let supported = match field {
            "bias" if ["none", "all", "lora_only"].iter().any(|known| value == known) => continue,
            "bias" => "none, all, lora_only",
            "init_lora_weights" if leaves_base_alone(value) => continue,
            "init_lora_weights" => "true, false, gaussian, eva, orthogonal (the others change the base too)",
            known if HARMLESS.contains(&known) || READ.contains(&known) => continue,
            _ if is_off(value) => continue,
            "alora_invocation_tokens" => {
                "null (an activated LoRA changes only what follows its tokens, so it cannot be merged)"
            }
            _ => "null (what changes weights in another way than LoRA and DoRA is not merged)",
        };
        return Err(config.unsupported(field, supported));
    }
    Ok(())
}

fn leaves_base_alone(value: &Value) -> bool {
    value.is_boolean() || value.as_str().is_some_and(|name| INITIALISATIONS.contains(&name))
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const QUERY: &str = "model.layers.1.self_attn.q_proj";

    fn read(more: &str) -> Result<AdapterConfig, AdapterError> {
        let json = format!(
            r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "init_lora_weights": true,
            "loftq_config": {{}}, "something_new": false, {more}}}"#
        );
        AdapterConfig::read(&JsonConfig::parse(Path::new("adapter_config.json"), json.as_bytes()).unwrap())
    }

    #[test]
    fn the_scale_is_the_modules_own_alpha_over_its_own_rank_or_over_its_root() {
        let scale = |more| read(more).unwrap().scale(QUERY).unwrap();
        assert_eq!(scale(r#""use_rslora": false"#), 4.0);
        assert_eq!(scale(r#""use_rslora": true"#), 8.0 / 2f32.sqrt());
        assert_eq!(scale(r#""rank_pattern": {"q_proj": 4}"#), 2.0);
        assert_eq!(scale(r#""use_rslora": true, "rank_pattern": {"q_proj": 4}"#), 4.0);
        assert_eq!(scale(r#""alpha_pattern": {".*layers.1.*": 3}"#), 1.5);
    }

    #[test]
    fn settings_that_would_change_the_result_are_refused_by_name() {
        for (field, value) in [
            ("layer_replication", "[[0, 4]]"),
            ("bias", "\"some\""),
            ("peft_type", "\"IA3\""),
            ("init_lora_weights", "\"pissa_niter_4\""),
            ("alora_invocation_tokens", "[1]"),
            ("use_qalora", "true"),
            ("use_bdlora", r#"{"nblocks": 2}"#),
            ("megatron_config", "{\"x\": 1}"),
            ("invented_next_year", "{\"x\": 1}"),
        ] {
            let message = read(&format!("{field:?}: {value}")).unwrap_err().to_string();
            assert!(message.contains(field) && message.contains("supported"), "{message}");
        }
    }

    #[test]
    fn other_kinds_of_adapters_are_refused_with_the_supported_ones() {
        for kind in ["VERA", "LOHA", "IA3", "PROMPT_TUNING", "ADALORA", "TRAINABLE_TOKENS"] {
            let message = read(&format!(r#""peft_type": "{kind}""#)).unwrap_err().to_string();
            assert!(message.contains(kind) && message.contains("LORA, also with DoRA"), "{message}");
        }
    }

    #[test]
    fn a_module_is_saved_if_its_name_or_one_around_it_ends_so() {
        let settings = read(r#""modules_to_save": ["norm", "mlp"]"#).unwrap();
        for (module, is_saved) in [
            ("model.norm", true),
            ("model.layers.0.input_layernorm", true),
            ("model.layers.0.mlp.up_proj", true),
            ("lm_head", false),
        ] {
            assert_eq!(settings.is_saved(module), is_saved, "{module}");
        }
    }

    #[test]
    fn tokens_are_those_of_the_input_or_of_a_named_module() {
        let tokens = |more, module, is_embedding| {
            read(more).unwrap().tokens(module, is_embedding).map(<[usize]>::to_vec)
        };
        let plain = r#""trainable_token_indices": [3, 5]"#;
        assert_eq!(tokens(plain, "model.embed_tokens", true), Some(vec![3, 5]));
        let named = r#""trainable_token_indices": {"wte": [1], "lm_head": [2]}"#;
        assert_eq!(tokens(named, "transformer.wte", true), Some(vec![1]));
        assert_eq!(tokens(named, "lm_head", false), Some(vec![2]));
        assert_eq!(tokens(named, "transformer.wpe", true), None);
    }
}
