//! What an adapter's tensors are, by their names.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use super::AdapterError;
use crate::export::{
    tensor_names::{canonical, is_buffer, is_of_a_sense, unwrapped},
    tensors::TensorFile,
    tensors_error::TensorsError,
};
use crate::manifest::MAX_DIMENSION;

/// What PEFT puts before the names of the base's modules, once for each wrapper of its own.
const MODEL: &str = "base_model.model.";

/// The adapter's name unless a training chose another. PEFT leaves it out when it saves.
const DEFAULT_NAME: &str = "default";

/// Modules of PEFT that have one entry for each adapter.
const PER_ADAPTER: [&str; 7] = [
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "modules_to_save",
    "trainable_tokens_delta",
];

/// The role of a tensor in its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// `[rank, in]`.
    LoraA,
    /// `[out, rank]`.
    LoraB,
    /// `[out]`: added to the bias, scaled.
    LoraBias,
    /// `[rank, rows]` of an embedding.
    EmbeddingA,
    /// `[hidden, rank]` of an embedding.
    EmbeddingB,
    /// DoRA: the length of each output's weights, or of each dimension of an embedding.
    Magnitude,
    /// Rows of an embedding that are replaced.
    Tokens,
    /// The module's own, in place of the base's.
    Weight,
    Bias,
    /// The base's, as it was when the adapter was saved.
    BaseWeight,
    BaseBias,
}

impl Part {
    /// As PEFT calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::LoraA => "lora_A",
            Self::LoraB => "lora_B",
            Self::LoraBias => "lora_B.bias",
            Self::EmbeddingA => "lora_embedding_A",
            Self::EmbeddingB => "lora_embedding_B",
            Self::Magnitude => "lora_magnitude_vector",
            Self::Tokens => "trainable_tokens_delta",
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::BaseWeight => "base_layer.weight",
            Self::BaseBias => "base_layer.bias",
        }
    }
}

/// What the adapter holds of a module.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name as the adapter has it, prefixes included: what patterns are matched against.
    pub name: String,
    /// Names of its tensors.
    pub parts: BTreeMap<Part, String>,
}

/// The name of a tensor as in the base, without PEFT's own prefix.
fn in_base(tensor: &str) -> Cow<'_, str> {
    let strip = |name: &str| {
        let mut rest = name;
        while let Some(inner) = rest.strip_prefix(MODEL) {
            rest = inner;
        }
        name.len() - rest.len()
    };
    match unwrapped(tensor) {
        Cow::Borrowed(name) => name[strip(name)..].into(),
        Cow::Owned(name) => name[strip(&name)..].to_owned().into(),
    }
}

/// The name of the adapter in the name of a tensor of a low-rank pair, which is as the training had it in memory.
fn adapter_name(tensor: &str) -> Option<&str> {
    let path: Vec<&str> = tensor.split('.').collect();
    match path.as_slice() {
        [.., "lora_A" | "lora_B", name, "weight" | "bias"] => Some(name),
        [.., "lora_embedding_A" | "lora_embedding_B", name] => Some(name),
        _ => None,
    }
}

/// The module and which of its parts a tensor is; `names` are those that adapters have in this file.
fn parse(tensor: &str, names: &BTreeSet<&str>) -> Option<(String, Part)> {
    let tensor = in_base(tensor);
    let mut path: Vec<&str> = Vec::new();
    for part in tensor.split('.') {
        let is_adapter = names.contains(part) && path.last().is_some_and(|last| PER_ADAPTER.contains(last));
        if !is_adapter {
            path.push(part);
        }
    }
    // Of a module that is saved whole, also its own modules.
    path.retain(|part| *part != "modules_to_save");
    let (module, part) = match path.as_slice() {
        [module @ .., "lora_A", "weight"] => (module, Part::LoraA),
        [module @ .., "lora_B", "weight"] => (module, Part::LoraB),
        [module @ .., "lora_B", "bias"] => (module, Part::LoraBias),
        [module @ .., "lora_embedding_A"] => (module, Part::EmbeddingA),
        [module @ .., "lora_embedding_B"] => (module, Part::EmbeddingB),
        [module @ .., "lora_magnitude_vector"] | [module @ .., "lora_magnitude_vector", "weight"] => {
            (module, Part::Magnitude)
        }
        [module @ .., "token_adapter", "trainable_tokens_delta"] => (module, Part::Tokens),
        [module @ .., "token_adapter", "base_layer", "weight"]
        | [module @ .., "base_layer" | "original_module", "weight"] => (module, Part::BaseWeight),
        [module @ .., "base_layer" | "original_module", "bias"] => (module, Part::BaseBias),
        [module @ .., "weight"] => (module, Part::Weight),
        [module @ .., "bias"] => (module, Part::Bias),
        _ => return None,
    };
    Some((module.join("."), part))
}

/// Whether a text model has no use for `tensor`: buffers, which `bias: all` takes for biases, and adapters of vision or audio.
pub(super) fn is_left_out(tensor: &str) -> bool {
    is_buffer(tensor) || is_of_a_sense(&in_base(tensor))
}

/// The modules of `file`, by their names without prefixes, without tensors that are left out.
pub(super) fn read(file: &TensorFile) -> Result<BTreeMap<String, Module>, AdapterError> {
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    let mut unknown = Vec::new();
    let names: BTreeSet<&str> = file.names().filter_map(adapter_name).chain([DEFAULT_NAME]).collect();
    for tensor in file.names().filter(|tensor| !is_left_out(tensor)) {
        let Some((name, part)) = parse(tensor, &names) else {
            unknown.push(tensor.into());
            continue;
        };
        file.check_type(tensor)?;
        let module = modules
            .entry(canonical(&name).into_owned())
            .or_insert_with(|| Module { name, parts: BTreeMap::new() });
        if let Some(first) = module.parts.insert(part, tensor.into())
            && !equal((file, &first), (file, tensor))?
        {
            let path = file.path().into();
            return Err(AdapterError::Twice { path, first, second: tensor.into() });
        }
    }
    if !unknown.is_empty() {
        return Err(AdapterError::Unused { path: file.path().into(), tensors: unknown });
    }
    if modules.is_empty() {
        return Err(AdapterError::Empty { path: file.path().into() });
    }
    Ok(modules)
}

/// Whether two tensors hold the same numbers in the same shape.
pub(super) fn equal(one: (&TensorFile, &str), other: (&TensorFile, &str)) -> Result<bool, TensorsError> {
    let shape = one.0.shape(one.1);
    if shape != other.0.shape(other.1) {
        return Ok(false);
    }
    let elements: usize = shape.iter().product();
    for start in (0..elements).step_by(MAX_DIMENSION) {
        let range = start..elements.min(start + MAX_DIMENSION);
        if one.0.read(one.1, range.clone())? != other.0.read(other.1, range)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::testing::{self, Tensor};

    fn modules(tensors: &[Tensor]) -> Result<BTreeMap<String, Module>, AdapterError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_model.safetensors");
        testing::write(&path, tensors);
        read(&TensorFile::open(&path).unwrap())
    }

    #[test]
    fn tensor_names_are_parsed_with_and_without_the_adapters_name() {
        const QUERY: &str = "model.layers.0.self_attn.q_proj";
        let names = BTreeSet::from(["default"]);
        for (rest, expected) in [
            ("lora_A.weight", Part::LoraA),
            ("lora_B.default.weight", Part::LoraB),
            ("lora_B.bias", Part::LoraBias),
            ("lora_embedding_A", Part::EmbeddingA),
            ("lora_embedding_B.default", Part::EmbeddingB),
            ("lora_magnitude_vector", Part::Magnitude),
            ("lora_magnitude_vector.default", Part::Magnitude),
            ("lora_magnitude_vector.default.weight", Part::Magnitude),
            ("token_adapter.trainable_tokens_delta", Part::Tokens),
            ("token_adapter.base_layer.weight", Part::BaseWeight),
            ("base_layer.weight", Part::BaseWeight),
            ("original_module.weight", Part::BaseWeight),
            ("base_layer.bias", Part::BaseBias),
            ("weight", Part::Weight),
            ("modules_to_save.weight", Part::Weight),
            ("modules_to_save.default.weight", Part::Weight),
            ("bias", Part::Bias),
        ] {
            let name = format!("base_model.model.{QUERY}.{rest}");
            assert_eq!(parse(&name, &names), Some((QUERY.into(), expected)), "{name}");
        }
        assert_eq!(parse("base_model.model.lm_head.lora_something", &names), None);
    }

    #[test]
    fn tensor_names_are_parsed_without_what_training_put_into_them() {
        const QUERY: &str = "model.layers.0.self_attn.q_proj";
        let names = BTreeSet::from(["default", "french"]);
        for name in [
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
            "base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.french.weight",
        ] {
            assert_eq!(parse(name, &names), Some((QUERY.into(), Part::LoraA)), "{name}");
        }
        let of_saved = "base_model.model.model.layers.0.mlp.modules_to_save.french.up_proj.weight";
        assert_eq!(parse(of_saved, &names), Some(("model.layers.0.mlp.up_proj".into(), Part::Weight)));
    }

    #[test]
    fn an_adapter_may_have_any_name_and_two_that_differ_are_refused() {
        let tensor = |name: &str| {
            Tensor::new(&format!("base_model.model.layers.0.mlp.up_proj.lora_A.{name}.weight"), &[2])
        };
        assert_eq!(modules(&[tensor("french")]).unwrap().len(), 1);
        assert!(matches!(modules(&[tensor("french"), tensor("hindi")]), Err(AdapterError::Twice { .. })));
    }

    #[test]
    fn modules_are_known_without_prefixes_and_buffers_are_none() {
        let tensor = |rest| Tensor::new(&format!("base_model.model.transformer.h.0.attn.{rest}"), &[1]);
        let found = modules(&[tensor("c_attn.lora_A.weight"), tensor("bias")]);
        let found = found.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found["h.0.attn.c_attn"].name, "transformer.h.0.attn.c_attn");
    }

    #[test]
    fn a_copy_is_fine_and_a_contradiction_is_not() {
        let tensor = |name: &str| Tensor { name: name.into(), shape: vec![2], values: vec![1.0, 2.0] };
        let [one, mut other] =
            ["base_model.model.norm.weight", "base_model.model.norm.modules_to_save.weight"].map(tensor);
        assert_eq!(modules(&[one.clone(), other.clone()]).unwrap().len(), 1);
        other.values[1] = 3.0;
        assert!(matches!(modules(&[one, other]), Err(AdapterError::Twice { .. })));
    }

    #[test]
    fn a_tensor_of_no_known_kind_is_named() {
        let message = modules(&[Tensor::new("base_model.model.q_proj.vera_lambda_d", &[2])]).unwrap_err();
        assert!(message.to_string().contains("q_proj.vera_lambda_d"), "{message}");
        assert!(matches!(modules(&[]), Err(AdapterError::Empty { .. })));
    }
}
