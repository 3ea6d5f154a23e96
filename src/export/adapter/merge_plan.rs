//! The merge of all adapters into a base: for each tensor, its origin and the deltas that apply to it.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    Adapter, AdapterError,
    deltas::check_shape,
    experts,
    merge::{Change, Delta, add_squares},
    merge_error::MergeError,
    target_modules::{Changes, EmbeddingAndHead, TargetModule, WeightTie, target_modules},
    tensors::{Part, equal},
};
use crate::export::{
    blueprint::{Blueprint, LmHead},
    param::Param,
    tensors::TensorFile,
};
use crate::manifest::MAX_DIMENSION;

/// Weights of an embedding that are measured at once.
const MEASURED: usize = 1 << 20;

/// Where a tensor comes from, if not from the base by its own name.
#[derive(Clone, Debug)]
pub(in crate::export) enum Origin {
    /// The base's tensor of this name.
    Base(String),
    Adapter(AdapterTensor),
}

/// A tensor of an adapter, in place of one of the base.
#[derive(Clone, Debug)]
pub(in crate::export) struct AdapterTensor {
    /// Which of the adapters.
    adapter: usize,
    pub file: Arc<TensorFile>,
    pub tensor: String,
    /// Whether it was trained; else it is the base's, as it was when the adapter was saved.
    is_saved: bool,
}

/// Adapters, laid out over the tensors of a base.
#[derive(Debug, Default)]
pub(in crate::export) struct MergePlan {
    adapters: Vec<Adapter>,
    origins: BTreeMap<String, Origin>,
    deltas: BTreeMap<String, Vec<Delta>>,
    /// Notes for the user about the merge.
    pub notes: Vec<String>,
}

impl MergePlan {
    /// Lays `adapters` out over the model of `blueprint`; gives the blueprint of the merged model, whose vocabulary may
    /// be another and whose head may no longer be tied.
    pub(in crate::export) fn new(
        adapters: Vec<Adapter>,
        blueprint: Blueprint,
    ) -> Result<(Self, Blueprint), AdapterError> {
        if adapters.is_empty() {
            return Ok((Self::default(), blueprint));
        }
        let routers = experts::routers(&blueprint);
        let adapters: Vec<Adapter> = adapters
            .into_iter()
            .map(|adapter| adapter.with_names(|name| routers.get(name).cloned()))
            .collect();
        let ends = EmbeddingAndHead::new(
            &blueprint,
            |module| Changes {
                is_saved: adapters.iter().any(|adapter| adapter.saves(module)),
                has_product: adapters.iter().any(|adapter| adapter.has_product(module)),
            },
            |one, other| both_equal(&adapters, one, other),
        )?;
        let mut merge_plan = Self { adapters, ..Self::default() };
        merge_plan.find_origins(&ends)?;
        let blueprint = if ends.tie == WeightTie::Kept { blueprint } else { blueprint.untied() };
        let blueprint = merge_plan.grow(blueprint)?;
        let targets = target_modules(&blueprint);
        merge_plan.check_use(&targets, &blueprint)?;
        merge_plan.check_origins(&blueprint)?;
        merge_plan.find_deltas(&targets, &ends)?;
        merge_plan.find_expert_deltas(&blueprint)?;
        merge_plan.check_conflicts(&ends)?;
        for adapter in &merge_plan.adapters {
            adapter.check_complete(&targets)?;
        }
        merge_plan.note_cut(&ends);
        Ok((merge_plan, blueprint))
    }

    pub(in crate::export) fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// Where the tensor called `name` comes from, if not from the base by that name.
    pub(in crate::export) fn origin(&self, name: &str) -> Option<&Origin> {
        self.origins.get(name)
    }

    /// Every [`origin`](Self::origin), by the name of its tensor.
    pub(super) fn origins(&self) -> impl Iterator<Item = (&String, &Origin)> {
        self.origins.iter()
    }

    /// Every change, by the name of its tensor.
    pub(super) fn deltas(&self) -> impl Iterator<Item = (&String, &Vec<Delta>)> {
        self.deltas.iter()
    }

    /// The changes of the tensor called `name`.
    pub(super) fn deltas_of(&self, name: &str) -> &[Delta] {
        self.deltas.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether an adapter changes the tensor called `name`.
    pub(in crate::export) fn changes(&self, name: &str) -> bool {
        self.origins.contains_key(name) || self.deltas.contains_key(name)
    }

    /// Applies the adapters' deltas to `weights`, the given rows of `param` from their origin.
    pub(in crate::export) fn apply(
        &self,
        weights: &mut [f32],
        param: &Param,
        rows: Range<usize>,
    ) -> Result<(), MergeError> {
        for delta in self.deltas.get(&param.name).into_iter().flatten() {
            delta.apply(weights, param, rows.clone())?;
        }
        Ok(())
    }

    /// Measures the columns that DoRA gives a length, which takes every row of their table; `read` gives rows as they
    /// come from their origin.
    pub(in crate::export) fn measure<E: From<MergeError>>(
        &mut self,
        table: &Param,
        read: impl Fn(&Self, Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        for index in 0..self.deltas.get(&table.name).map_or(0, Vec::len) {
            let deltas = &self.deltas[&table.name][..=index];
            let Some(tensor) = deltas[index].column_lengths() else { continue };
            let cols = table.shape.cols();
            let mut sums = vec![0.0; cols];
            for piece in pieces(table) {
                let mut weights = read(self, piece.clone())?;
                for delta in deltas {
                    delta.apply(&mut weights, table, piece.clone())?;
                }
                add_squares(&mut sums, &weights);
            }
            let lengths = deltas[index].file.read(tensor, 0..cols).map_err(MergeError::from)?;
            let measured = lengths.iter().zip(sums).map(|(length, sum)| factor(*length, sum)).collect();
            if let Some(delta) = self.deltas.get_mut(&table.name).and_then(|deltas| deltas.get_mut(index)) {
                delta.set_factors(measured);
            }
        }
        Ok(())
    }

    /// Finds the tensors that the adapters hold in place of the base's.
    fn find_origins(&mut self, ends: &EmbeddingAndHead) -> Result<(), AdapterError> {
        if let WeightTie::Cut { is_head_saved: false, .. } = ends.tie {
            let base = Origin::Base(format!("{}.weight", ends.embedding));
            self.origins.insert(format!("{}.weight", ends.head), base);
        }
        for adapter in 0..self.adapters.len() {
            let Adapter { file, modules, settings, .. } = &self.adapters[adapter];
            let parts = modules.iter().flat_map(|(name, module)| {
                let is_saved = settings.is_saved(&module.name);
                module.parts.iter().map(move |(part, tensor)| (name, *part, tensor, is_saved))
            });
            let held = |(name, part, tensor, is_saved): (&String, Part, &String, bool)| {
                let is_saved = is_saved && matches!(part, Part::Weight | Part::Bias);
                let tensor =
                    AdapterTensor { adapter, file: Arc::clone(file), tensor: tensor.clone(), is_saved };
                slots(name, part, is_saved, ends).into_iter().map(move |slot| (slot, tensor.clone()))
            };
            for (slot, held) in parts.flat_map(held).collect::<Vec<_>>() {
                self.add_origin(slot, held)?;
            }
        }
        Ok(())
    }

    /// A module that is saved whole wins over a copy of the base's; two of a kind have to be the same.
    fn add_origin(&mut self, slot: String, held: AdapterTensor) -> Result<(), AdapterError> {
        match self.origins.get(&slot) {
            Some(Origin::Adapter(other)) if other.is_saved == held.is_saved => {
                self.check_same(other, &held, &slot)
            }
            Some(Origin::Adapter(other)) if other.is_saved => Ok(()),
            _ => {
                self.origins.insert(slot, Origin::Adapter(held));
                Ok(())
            }
        }
    }

    fn check_same(&self, one: &AdapterTensor, other: &AdapterTensor, slot: &str) -> Result<(), AdapterError> {
        let are_equal = equal((&one.file, &one.tensor), (&other.file, &other.tensor))?;
        if one.adapter != other.adapter && (one.is_saved || !are_equal) {
            return Err(self.conflict([one.adapter, other.adapter], slot, "modules that are saved whole"));
        }
        if !are_equal {
            let (first, second) = (one.tensor.clone(), other.tensor.clone());
            return Err(AdapterError::Twice { path: one.file.path().into(), first, second });
        }
        Ok(())
    }

    /// Gives the model as many tokens as the adapters' tables have.
    fn grow(&self, blueprint: Blueprint) -> Result<Blueprint, AdapterError> {
        let rows = |param: &Param| match self.origins.get(&param.name) {
            Some(Origin::Adapter(AdapterTensor { file, tensor, .. })) => {
                file.shape(tensor).first().copied().unwrap_or(0)
            }
            _ => blueprint.dims.vocab,
        };
        let table = &blueprint.embedding.table;
        let embedding_rows = rows(table);
        if let Some(Origin::Adapter(AdapterTensor { file, tensor, .. })) = self.origins.get(&table.name)
            && !(1..=MAX_DIMENSION).contains(&embedding_rows)
        {
            return Err(file.shape_error(tensor, format!("a table of 1 to {MAX_DIMENSION} rows")).into());
        }
        if let LmHead::Separate(head) = &blueprint.head
            && rows(&head.weight) != embedding_rows
        {
            return Err(AdapterError::VocabularyDiffers {
                path: self.adapters[0].file.path().into(),
                embedding: table.name.clone(),
                embedding_rows,
                head: head.weight.name.clone(),
                head_rows: rows(&head.weight),
            });
        }
        Ok(blueprint.with_vocabulary(embedding_rows))
    }

    /// Checks that every tensor has a target module.
    fn check_use(
        &self,
        targets: &BTreeMap<&str, TargetModule>,
        blueprint: &Blueprint,
    ) -> Result<(), AdapterError> {
        for Adapter { file, modules, .. } in &self.adapters {
            let has = |name: &str, part: &Part| match targets.get(name) {
                Some(place) => place.has(*part),
                None => experts::has(*part) && experts::is_of_all(blueprint, name),
            };
            let unused: Vec<String> = modules
                .iter()
                .flat_map(|(name, module)| {
                    module.parts.iter().map(move |(part, tensor)| (name, part, tensor))
                })
                .filter(|(name, part, _)| !has(name, part))
                .map(|(.., tensor)| tensor.clone())
                .collect();
            if !unused.is_empty() {
                return Err(AdapterError::Unused { path: file.path().into(), tensors: unused });
            }
        }
        Ok(())
    }

    fn check_origins(&self, blueprint: &Blueprint) -> Result<(), AdapterError> {
        for param in blueprint.params() {
            if let Some(Origin::Adapter(AdapterTensor { file, tensor, .. })) = self.origins.get(&param.name) {
                check_shape(file, tensor, &param.stored_shape())?;
            }
        }
        Ok(())
    }

    fn find_deltas(
        &mut self,
        targets: &BTreeMap<&str, TargetModule>,
        ends: &EmbeddingAndHead,
    ) -> Result<(), AdapterError> {
        for (adapter, of) in self.adapters.iter().enumerate() {
            // PEFT merges the head last, which matters where it shares the embedding's table.
            let is_head = |name: &&String| **name == ends.head;
            let others = of.modules.keys().filter(|name| !is_head(name));
            for name in others.chain(of.modules.keys().filter(is_head)) {
                let Some(place) = targets.get(name.as_str()) else { continue };
                let deltas = of.deltas(&of.modules[name], place, *name == ends.head)?;
                for (is_bias, change) in deltas {
                    let slot = if is_bias { format!("{name}.bias") } else { ends.changed(name) };
                    let delta = Delta { adapter, file: Arc::clone(&of.file), change };
                    self.deltas.entry(slot).or_default().push(delta);
                }
            }
        }
        Ok(())
    }

    fn find_expert_deltas(&mut self, blueprint: &Blueprint) -> Result<(), AdapterError> {
        for (adapter, of) in self.adapters.iter().enumerate() {
            for (name, module) in &of.modules {
                for (slot, change) in of.expert_deltas(blueprint, (name, module))? {
                    let delta = Delta { adapter, file: Arc::clone(&of.file), change };
                    self.deltas.entry(slot).or_default().push(delta);
                }
            }
        }
        Ok(())
    }

    /// Checks that what several adapters do to one tensor is a sum.
    fn check_conflicts(&self, ends: &EmbeddingAndHead) -> Result<(), AdapterError> {
        for (slot, deltas) in &self.deltas {
            if let Some(Origin::Adapter(AdapterTensor { adapter, is_saved: true, .. })) =
                self.origins.get(slot)
                && let Some(other) = deltas.iter().find(|delta| delta.adapter != *adapter)
            {
                return Err(self.conflict([*adapter, other.adapter], slot, "modules that are saved whole"));
            }
            for delta in deltas.iter().filter(|delta| !delta.is_sum()) {
                if let Some(other) = deltas.iter().find(|other| other.adapter != delta.adapter) {
                    return Err(self.conflict([delta.adapter, other.adapter], slot, delta.what()));
                }
            }
            self.check_rows(deltas)?;
        }
        if matches!(ends.tie, WeightTie::Cut { .. }) {
            let of_end = |end: &String| self.deltas.get(&ends.changed(end)).into_iter().flatten();
            self.check_rows([&ends.embedding, &ends.head].into_iter().flat_map(of_end))?;
        }
        Ok(())
    }

    /// Where rows are replaced, PEFT loses what low-rank matrices add to the table, of the embedding or of a tied head.
    fn check_rows<'a>(
        &self,
        deltas: impl IntoIterator<Item = &'a Delta> + Clone,
    ) -> Result<(), AdapterError> {
        const REASON: &str = "trainable_token_indices is of the same table";
        let is_replaced = |delta: &Delta| matches!(delta.change, Change::Tokens { .. });
        let are_rows_replaced = deltas.clone().into_iter().any(is_replaced);
        for delta in deltas.into_iter().filter(|_| are_rows_replaced) {
            if let Change::LowRank { product, .. } = &delta.change {
                return Err(self.adapters[delta.adapter].contradiction(&product.a, REASON));
            }
        }
        Ok(())
    }

    fn note_cut(&mut self, ends: &EmbeddingAndHead) {
        let has_product = |end: &String| {
            let mut deltas = self.deltas.get(&ends.changed(end)).into_iter().flatten();
            deltas.any(|delta| matches!(delta.change, Change::LowRank { .. }))
        };
        let is_cut = matches!(ends.tie, WeightTie::Cut { .. });
        let changed: Vec<&str> = [&ends.embedding, &ends.head]
            .into_iter()
            .filter(|end| has_product(end))
            .map(String::as_str)
            .collect();
        if is_cut && !changed.is_empty() {
            self.notes.push(format!(
                "{} and {} are tied in the base, and the adapter was trained to change {}: the model has a table for each \
                 (PEFT's merge changes both)",
                ends.embedding,
                ends.head,
                changed.join(" and ")
            ));
        }
    }

    fn conflict(&self, [one, other]: [usize; 2], tensor: &str, what: &'static str) -> AdapterError {
        AdapterError::Conflict {
            first: self.adapters[one].dir.clone(),
            second: self.adapters[other].dir.clone(),
            tensor: tensor.into(),
            what,
        }
    }
}

/// Whether every adapter that saves both modules whole has equal tensors for both.
fn both_equal(adapters: &[Adapter], one: &str, other: &str) -> Result<bool, AdapterError> {
    let tensors = |module: &str| -> Vec<(&TensorFile, &str)> {
        let saving = adapters.iter().filter(|adapter| adapter.saves(module));
        saving.map(|adapter| (&*adapter.file, &*adapter.modules[module].parts[&Part::Weight])).collect()
    };
    for first in tensors(one) {
        for second in tensors(other) {
            if !equal(first, second)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Rows of `table`, some at a time.
fn pieces(table: &Param) -> impl Iterator<Item = Range<usize>> {
    let rows = table.shape.rows();
    let step = (MEASURED / table.shape.cols()).max(1);
    (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
}

/// The base's tensors that a part of the module `name` takes the place of; none for low-rank matrices, and for a copy
/// that is of no use any more.
fn slots(name: &str, part: Part, is_saved: bool, ends: &EmbeddingAndHead) -> Vec<String> {
    match part {
        Part::Weight if is_saved => vec![ends.changed(name)],
        Part::Weight | Part::BaseWeight => ends.kept(name),
        Part::Bias | Part::BaseBias => vec![format!("{name}.bias")],
        _ => Vec::new(),
    }
}

/// What makes a column of the given sum of squares `length` long.
#[expect(clippy::cast_possible_truncation, reason = "a factor of weights in single precision")]
fn factor(length: f32, squares: f64) -> f32 {
    (f64::from(length) / squares.sqrt()) as f32
}
