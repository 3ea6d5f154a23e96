//! The modules of a base that an adapter can change.

use std::collections::BTreeMap;

use super::tensors::Part;
use crate::export::{
    blueprint::{Blueprint, LmHead},
    param::Param,
};

/// A module of the base.
#[derive(Clone, Copy, Debug)]
pub(super) struct TargetModule<'a> {
    pub kind: ModuleKind,
    /// Of a tied head it is the embedding's table.
    pub weight: &'a Param,
    pub bias: Option<&'a Param>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModuleKind {
    Linear,
    Embedding,
    Norm,
}

impl TargetModule<'_> {
    /// Whether a module of this kind can have `part`.
    pub(super) fn has(&self, part: Part) -> bool {
        match part {
            Part::LoraA | Part::LoraB => self.kind == ModuleKind::Linear,
            Part::EmbeddingA | Part::EmbeddingB => self.kind == ModuleKind::Embedding,
            Part::Magnitude | Part::Tokens => self.kind != ModuleKind::Norm,
            Part::LoraBias => self.kind == ModuleKind::Linear && self.bias.is_some(),
            Part::Bias | Part::BaseBias => self.bias.is_some(),
            Part::Weight | Part::BaseWeight => true,
        }
    }
}

/// Every module that an adapter may change, by its name without prefixes.
pub(super) fn places(blueprint: &Blueprint) -> BTreeMap<&str, TargetModule<'_>> {
    let linear = blueprint.linears().map(|linear| (&linear.weight, linear.bias.as_ref(), ModuleKind::Linear));
    let norms = blueprint.norms().map(|norm| (&norm.weight, norm.bias.as_ref(), ModuleKind::Norm));
    let tables = blueprint.embedding.tables().map(|table| (table, None, ModuleKind::Embedding));
    let mut places: BTreeMap<_, _> = linear
        .chain(norms)
        .chain(tables)
        .map(|(weight, bias, kind)| (weight.module(), TargetModule { kind, weight, bias }))
        .collect();
    if let LmHead::Tied { stored_as } = &blueprint.head {
        let weight = &blueprint.embedding.table;
        places.insert(module(stored_as), TargetModule { kind: ModuleKind::Linear, weight, bias: None });
    }
    places
}

/// The module that `tensor` is the weight of.
fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// The embedding and the head, which may share one table.
#[derive(Clone, Debug)]
pub(super) struct EmbeddingAndHead {
    /// Names of the two modules.
    pub embedding: String,
    pub head: String,
    pub tie: WeightTie,
}

/// Whether embedding and head are one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightTie {
    /// They are two tensors of the base.
    Never,
    /// They are one, also after the merge.
    Kept,
    /// The adapter has one of them whole: the other keeps the base's.
    OnlyEmbeddingSaved,
    OnlyHeadSaved,
    /// The adapter has both whole.
    BothSaved,
}

impl EmbeddingAndHead {
    /// For a model whose adapters save the modules for which `is_saved` holds; `are_equal` compares the tensors that they save for
    /// two modules.
    pub(super) fn new<E>(
        blueprint: &Blueprint,
        is_saved: impl Fn(&str) -> bool,
        are_equal: impl FnOnce(&str, &str) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let embedding = blueprint.embedding.table.module().to_owned();
        let (head, is_tied) = match &blueprint.head {
            LmHead::Tied { stored_as } => (module(stored_as).to_owned(), true),
            LmHead::Separate(linear) => (linear.weight.module().to_owned(), false),
        };
        let tie = match (is_tied, is_saved(&embedding), is_saved(&head)) {
            (false, ..) => WeightTie::Never,
            (true, false, false) => WeightTie::Kept,
            (true, true, false) => WeightTie::OnlyEmbeddingSaved,
            (true, false, true) => WeightTie::OnlyHeadSaved,
            (true, true, true) if are_equal(&embedding, &head)? => WeightTie::Kept,
            (true, true, true) => WeightTie::BothSaved,
        };
        Ok(Self { embedding, head, tie })
    }

    /// The tensor that a change of `module`'s weight changes.
    pub(super) fn changed(&self, module: &str) -> String {
        let is_shared = self.tie == WeightTie::Kept && module == self.head;
        format!("{}.weight", if is_shared { &self.embedding } else { module })
    }

    /// The tensor that the base's weight of `module` is, if it is still of use.
    pub(super) fn kept(&self, module: &str) -> Option<String> {
        if module != self.embedding && module != self.head {
            return Some(self.changed(module));
        }
        match self.tie {
            WeightTie::Never | WeightTie::Kept => Some(self.changed(module)),
            WeightTie::OnlyEmbeddingSaved => Some(self.changed(&self.head)),
            WeightTie::OnlyHeadSaved => Some(self.changed(&self.embedding)),
            WeightTie::BothSaved => None,
        }
    }
}
