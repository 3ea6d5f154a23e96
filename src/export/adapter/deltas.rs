//! The changes of one adapter to one module, checked against the module's shape and the adapter's configuration.

use std::collections::BTreeMap;

use super::{
    Adapter, AdapterError,
    adapter_config::is_or_is_within,
    merge::{Change, LowRank, Magnitude},
    patterns::ends_with,
    target_modules::{ModuleKind, TargetModule},
    tensors::{Module, Part},
};
use crate::export::{tensor_names::canonical, tensors::TensorFile};

impl Adapter {
    /// Its changes to the module at `place`, each with whether it applies to the bias.
    pub(super) fn deltas(
        &self,
        module: &Module,
        place: &TargetModule,
        is_head: bool,
    ) -> Result<Vec<(bool, Change)>, AdapterError> {
        let mut deltas = Vec::new();
        if let Some(product) = self.product(module, place, is_head)? {
            if let Some(tensor) = module.parts.get(&Part::LoraBias) {
                check_shape(&self.file, tensor, &[place.weight.stored_lines()])?;
                deltas.push((true, Change::Bias { tensor: tensor.clone(), scale: product.scale }));
            }
            let magnitude = self.magnitude(module, place)?;
            deltas.push((false, Change::LowRank { product, magnitude }));
        }
        deltas.extend(self.tokens(module, place)?.map(|change| (false, change)));
        Ok(deltas)
    }

    /// The pair of matrices of `module`, if it has one.
    fn product(
        &self,
        module: &Module,
        place: &TargetModule,
        is_head: bool,
    ) -> Result<Option<LowRank>, AdapterError> {
        let is_embedding = place.kind == ModuleKind::Embedding;
        let (a, b) =
            if is_embedding { (Part::EmbeddingA, Part::EmbeddingB) } else { (Part::LoraA, Part::LoraB) };
        let beside =
            [Part::LoraBias, Part::Magnitude].into_iter().find(|part| module.parts.contains_key(part));
        let (tensor_a, tensor_b) = match (module.parts.get(&a), module.parts.get(&b)) {
            (Some(tensor_a), Some(tensor_b)) => (tensor_a, tensor_b),
            (Some(_), None) => return Err(self.incomplete(module, a, b)),
            (None, Some(_)) => return Err(self.incomplete(module, b, a)),
            (None, None) => return beside.map_or(Ok(None), |part| Err(self.incomplete(module, part, a))),
        };
        // PEFT takes the router of experts, which is no linear layer in transformers, by its parameter.
        let parameter = format!("{}.weight", module.name);
        let is_parameter = self.settings.names_parameter(&parameter);
        let is_expected = is_parameter || (is_head && self.settings.is_tying);
        let refusal = self.settings.targets.refusal(&module.name, is_embedding || is_head)?;
        if let Some(reason) = refusal.filter(|_| !is_expected) {
            return Err(self.contradiction(tensor_a, reason));
        }
        let named = if is_parameter { &parameter } else { &module.name };
        let rank = self.settings.rank(named)?;
        let (lines, cols) = (place.weight.stored_lines(), place.weight.stored_cols());
        let (shape_a, shape_b) =
            if is_embedding { ([rank, lines], [cols, rank]) } else { ([rank, cols], [lines, rank]) };
        check_shape(&self.file, tensor_a, &shape_a)?;
        check_shape(&self.file, tensor_b, &shape_b)?;
        let scale = self.weight * self.settings.scale(named)?;
        Ok(Some(LowRank { a: tensor_a.clone(), b: tensor_b.clone(), rank, scale, is_embedding }))
    }

    fn magnitude(&self, module: &Module, place: &TargetModule) -> Result<Option<Magnitude>, AdapterError> {
        let is_embedding = place.kind == ModuleKind::Embedding;
        match (module.parts.get(&Part::Magnitude), self.settings.is_dora) {
            (None, false) => Ok(None),
            (None, true) => {
                let pair = if is_embedding { Part::EmbeddingA } else { Part::LoraA };
                Err(self.incomplete(module, pair, Part::Magnitude))
            }
            (Some(tensor), false) => Err(self.contradiction(tensor, "use_dora is off")),
            (Some(tensor), true) if is_embedding => {
                check_shape(&self.file, tensor, &[place.weight.shape.cols()])?;
                Ok(Some(Magnitude::Columns { tensor: tensor.clone(), factors: None }))
            }
            (Some(tensor), true) => {
                check_shape(&self.file, tensor, &[place.weight.stored_lines()])?;
                Ok(Some(Magnitude::Rows(tensor.clone())))
            }
        }
    }

    fn tokens(&self, module: &Module, place: &TargetModule) -> Result<Option<Change>, AdapterError> {
        let Some(tensor) = module.parts.get(&Part::Tokens) else { return Ok(None) };
        let is_embedding = place.kind == ModuleKind::Embedding;
        let tokens = self.settings.tokens(&module.name, is_embedding);
        let tokens = tokens
            .ok_or_else(|| self.contradiction(tensor, "trainable_token_indices does not list its tokens"))?;
        check_shape(&self.file, tensor, &[tokens.len(), place.weight.shape.cols()])?;
        let vocab = place.weight.shape.rows();
        if let Some(&token) = tokens.iter().find(|token| **token >= vocab) {
            let (path, tensor) = (self.file.path().into(), tensor.clone());
            return Err(AdapterError::Token { path, tensor, token, vocab });
        }
        Ok(Some(Change::Tokens { tensor: tensor.clone(), tokens: tokens.to_vec() }))
    }

    /// Checks that every module that the settings name has tensors.
    pub(super) fn check_complete(&self, targets: &BTreeMap<&str, TargetModule>) -> Result<(), AdapterError> {
        let holds =
            |module: &Module, parts: [Part; 2]| parts.iter().any(|part| module.parts.contains_key(part));
        let missing = |field, name: &str| AdapterError::NoTensors {
            path: self.file.path().into(),
            field,
            name: name.into(),
        };
        for name in &self.settings.saved {
            let is_it = |module: &Module| {
                is_or_is_within(&module.name, name) && holds(module, [Part::Weight, Part::Bias])
            };
            if !self.modules.values().any(is_it) {
                return Err(missing("modules_to_save", name));
            }
        }
        for name in &self.settings.parameters {
            let (around, parameter) = name.rsplit_once('.').unwrap_or(("", name));
            let is_weight = parameter == "weight";
            let is_it = |found: &Module| {
                let module = found.name.strip_suffix(".base_layer").unwrap_or(&found.name);
                ends_with(module, around) && holds(found, [Part::LoraA, Part::LoraB])
            };
            // All experts of a layer are no module of the base, and their tensors have been checked.
            let is_there = !is_weight || self.modules.values().any(is_it);
            if !is_there && self.expects(around, targets)? {
                return Err(missing("target_parameters", name));
            }
        }
        for name in self.settings.targets.listed() {
            let is_it = |module: &Module| {
                ends_with(&module.name, name) && holds(module, [Part::LoraA, Part::EmbeddingA])
            };
            if !self.modules.values().any(is_it) && self.expects(name, targets)? {
                return Err(missing("target_modules", name));
            }
        }
        Ok(())
    }

    /// Whether the base has a module of this name that the settings do not exclude, however its prefixes are.
    fn expects(&self, name: &str, targets: &BTreeMap<&str, TargetModule>) -> Result<bool, AdapterError> {
        let prefixes =
            self.modules.iter().filter_map(|(canonical, module)| module.name.strip_suffix(canonical));
        let mut prefixes: Vec<&str> = prefixes.chain([""]).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let name = canonical(name);
        for (place, _) in targets.iter().filter(|(_, place)| place.kind != ModuleKind::Norm) {
            let mut excluded = false;
            for prefix in &prefixes {
                excluded |= self.settings.targets.exclusion(&format!("{prefix}{place}"))?.is_some();
            }
            if !excluded && ends_with(place, &name) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn incomplete(&self, module: &Module, present: Part, absent: Part) -> AdapterError {
        AdapterError::Incomplete {
            path: self.file.path().into(),
            module: module.name.clone(),
            present: present.name(),
            absent: absent.name(),
        }
    }

    pub(super) fn contradiction(&self, tensor: &str, reason: &'static str) -> AdapterError {
        AdapterError::Contradiction { path: self.file.path().into(), tensor: tensor.into(), reason }
    }
}

/// Checks that `tensor` has the shape that its place in the base asks for.
pub(super) fn check_shape(file: &TensorFile, tensor: &str, expected: &[usize]) -> Result<(), AdapterError> {
    if file.shape(tensor) != expected {
        return Err(file.shape_error(tensor, format!("{expected:?}")).into());
    }
    Ok(())
}
