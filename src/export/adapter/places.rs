//! Where in a model an adapter's modules belong.

use std::collections::BTreeMap;

use super::tensors::Part;
use crate::export::{
    blueprint::{Blueprint, Head},
    param::Param,
};

/// A module of the base.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub kind: Kind,
    /// Of a tied head it is the embedding's table.
    pub weight: &'a Param,
    pub bias: Option<&'a Param>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Linear,
    Embedding,
    Norm,
}

impl Place<'_> {
    /// Whether a module of this kind can have `part`.
    pub(super) fn has(&self, part: Part) -> bool {
        match part {
            Part::LoraA | Part::LoraB => self.kind == Kind::Linear,
            Part::EmbeddingA | Part::EmbeddingB => self.kind == Kind::Embedding,
            Part::Magnitude | Part::Tokens => self.kind != Kind::Norm,
            Part::LoraBias => self.kind == Kind::Linear && self.bias.is_some(),
            Part::Bias | Part::BaseBias => self.bias.is_some(),
            Part::Weight | Part::BaseWeight => true,
        }
    }
}

/// Every module that an adapter may change, by its name without prefixes.
pub(super) fn places(blueprint: &Blueprint) -> BTreeMap<&str, Place<'_>> {
    let linear = blueprint.linears().map(|linear| (&linear.weight, linear.bias.as_ref(), Kind::Linear));
    let norms = blueprint.norms().map(|norm| (&norm.weight, norm.bias.as_ref(), Kind::Norm));
    let tables = blueprint.embedding.tables().map(|table| (table, None, Kind::Embedding));
    let mut places: BTreeMap<_, _> = linear
        .chain(norms)
        .chain(tables)
        .map(|(weight, bias, kind)| (weight.module(), Place { kind, weight, bias }))
        .collect();
    if let Head::Tied { stored_as } = &blueprint.head {
        let weight = &blueprint.embedding.table;
        places.insert(module(stored_as), Place { kind: Kind::Linear, weight, bias: None });
    }
    places
}

/// The module that `tensor` is the weight of.
fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// The embedding and the head, which may share one table.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// Names of the two modules.
    pub embedding: String,
    pub head: String,
    pub tie: Tie,
}

/// Whether embedding and head are one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tie {
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

impl Ends {
    /// Of a model whose adapters save the modules that `is_saved` says; `are_equal` whether what they save for both is
    /// the same.
    pub(super) fn new<E>(
        blueprint: &Blueprint,
        is_saved: impl Fn(&str) -> bool,
        are_equal: impl FnOnce(&str, &str) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let embedding = blueprint.embedding.table.module().to_owned();
        let (head, is_tied) = match &blueprint.head {
            Head::Tied { stored_as } => (module(stored_as).to_owned(), true),
            Head::Own(linear) => (linear.weight.module().to_owned(), false),
        };
        let tie = match (is_tied, is_saved(&embedding), is_saved(&head)) {
            (false, ..) => Tie::Never,
            (true, false, false) => Tie::Kept,
            (true, true, false) => Tie::OnlyEmbeddingSaved,
            (true, false, true) => Tie::OnlyHeadSaved,
            (true, true, true) if are_equal(&embedding, &head)? => Tie::Kept,
            (true, true, true) => Tie::BothSaved,
        };
        Ok(Self { embedding, head, tie })
    }

    /// The tensor that a change of `module`'s weight changes.
    pub(super) fn changed(&self, module: &str) -> String {
        let is_shared = self.tie == Tie::Kept && module == self.head;
        format!("{}.weight", if is_shared { &self.embedding } else { module })
    }

    /// The tensor that the base's weight of `module` is, if it is still of use.
    pub(super) fn kept(&self, module: &str) -> Option<String> {
        if module != self.embedding && module != self.head {
            return Some(self.changed(module));
        }
        match self.tie {
            Tie::Never | Tie::Kept => Some(self.changed(module)),
            Tie::OnlyEmbeddingSaved => Some(self.changed(&self.head)),
            Tie::OnlyHeadSaved => Some(self.changed(&self.embedding)),
            Tie::BothSaved => None,
        }
    }
}
