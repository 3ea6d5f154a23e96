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
pub(super) fn target_modules(blueprint: &Blueprint) -> BTreeMap<&str, TargetModule<'_>> {
    let linear = blueprint.linears().map(|linear| (&linear.weight, linear.bias.as_ref(), ModuleKind::Linear));
    let norms = blueprint.norms().filter(|norm| norm.weight.is_stored());
    let norms = norms.map(|norm| (&norm.weight, norm.bias.as_ref(), ModuleKind::Norm));
    let tables = blueprint.tables().map(|table| (table, None, ModuleKind::Embedding));
    let mut targets: BTreeMap<_, _> = linear
        .chain(norms)
        .chain(tables)
        .map(|(weight, bias, kind)| (weight.module(), TargetModule { kind, weight, bias }))
        .collect();
    if let LmHead::Tied { stored_as } = &blueprint.head {
        let weight = &blueprint.embedding.table;
        targets.insert(module(stored_as), TargetModule { kind: ModuleKind::Linear, weight, bias: None });
    }
    targets
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
    /// They are one in the base, and an adapter changes one of them or each in another way. What it does not have whole
    /// begins as the base's table.
    Cut { is_embedding_saved: bool, is_head_saved: bool },
}

/// What the adapters do to a module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes {
    /// One of them has it whole.
    pub is_saved: bool,
    /// One of them adds a low-rank product.
    pub has_product: bool,
}

impl EmbeddingAndHead {
    /// For a model whose adapters do what `changes` says for a module; `are_equal` compares the tensors that they save for
    /// two modules.
    pub(super) fn new<E>(
        blueprint: &Blueprint,
        changes: impl Fn(&str) -> Changes,
        are_equal: impl FnOnce(&str, &str) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let embedding = blueprint.embedding.table.module().to_owned();
        let (head, is_tied) = match &blueprint.head {
            LmHead::Tied { stored_as } => (module(stored_as).to_owned(), true),
            LmHead::Separate(linear) => (linear.weight.module().to_owned(), false),
        };
        let (of_embedding, of_head) = (changes(&embedding), changes(&head));
        let (is_embedding_saved, is_head_saved) = (of_embedding.is_saved, of_head.is_saved);
        let is_kept = !of_embedding.has_product
            && !of_head.has_product
            && is_embedding_saved == is_head_saved
            && (!is_head_saved || are_equal(&embedding, &head)?);
        let tie = match (is_tied, is_kept) {
            (false, _) => WeightTie::Never,
            (true, true) => WeightTie::Kept,
            (true, false) => WeightTie::Cut { is_embedding_saved, is_head_saved },
        };
        Ok(Self { embedding, head, tie })
    }

    /// The tensor that a change of `module`'s weight changes.
    pub(super) fn changed(&self, module: &str) -> String {
        let is_shared = self.tie == WeightTie::Kept && module == self.head;
        format!("{}.weight", if is_shared { &self.embedding } else { module })
    }

    /// The tensors that begin as the base's weight of `module`, of which an adapter may have a copy.
    pub(super) fn kept(&self, module: &str) -> Vec<String> {
        match self.tie {
            WeightTie::Cut { is_embedding_saved, is_head_saved }
                if module == self.embedding || module == self.head =>
            {
                let ends = [(&self.embedding, is_embedding_saved), (&self.head, is_head_saved)];
                ends.into_iter().filter(|(_, is_saved)| !is_saved).map(|(end, _)| self.changed(end)).collect()
            }
            _ => vec![self.changed(module)],
        }
    }
}
