//! What an adapter adds to the product of a node, and which adapters are active.
//!
//! For a product `y = W·x` of `columns` outputs, an adapter gives
//!
//! ```text
//! y = factor ∘ (W·x + Σ scale · B·(A·x)) + bias
//! ```
//!
//! - A node may hold several layers that read the same input, such as queries, keys and values. Each has its own pair: the
//!   rows of all `A` lie one after the other, and each `B` covers some columns.
//! - `factor` is DoRA's: the trained length of a column's weights, divided by their length with the pair added.
//! - `bias` is what the adapter changes about the bias, which another node adds.
//!
//! `x` is the node's input, or `input ∘ factors + shifts` where the adapter changes the norm that the node reads.
//!
//! # Layout
//! `A` is as in the file, `[rank, depth]`. `B` is packed in panels of 32 columns, as the weights of the base are, so that the
//! thread that has computed a panel of the base's product adds to it:
//!
//! ```text
//! B       [panel][pair][rank of the pair][32]     zeros where a column of the panel belongs to another pair
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use half::f16;

use super::packed_weights::PANEL;
use crate::units::Bytes;

/// Numbers of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Floats {
    /// Single precision.
    Float32(Vec<f32>),
    /// Half precision.
    Float16(Vec<f16>),
}

impl Floats {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Float32(floats) => floats.len(),
            Self::Float16(floats) => floats.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Float32(floats) => size_of_val(&**floats),
            Self::Float16(floats) => size_of_val(&**floats),
        }
    }
}

/// A layer's second matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankPair {
    /// First output column of the layer.
    pub first_column: usize,
    /// Output columns of the layer.
    pub columns: usize,
    /// Its rows of `A`, which follow those of the pair before.
    pub rank: usize,
    /// Factor of the product.
    pub scale: f32,
    /// `[columns, rank]`.
    pub b: Floats,
}

/// What DoRA needs to know of each column of a node, `[columns]` each. Columns that DoRA does not change have ones in
/// `magnitude` and `base`, and zeros in the others.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnLengths {
    /// The trained length.
    pub magnitude: Vec<f32>,
    /// The squared length of the base's weights.
    pub base: Vec<f32>,
    /// The scalar product of the base's weights with what the pair adds at weight one.
    pub cross: Vec<f32>,
    /// The squared length of what the pair adds at weight one.
    pub added: Vec<f32>,
}

impl ColumnLengths {
    /// What each column is multiplied with when the pair has `weight`.
    fn factors(&self, weight: f32) -> Vec<f32> {
        let weight = f64::from(weight);
        let columns = self.magnitude.iter().zip(&self.base).zip(self.cross.iter().zip(&self.added));
        let factor = |((magnitude, base), (cross, added)): ((&f32, &f32), (&f32, &f32))| {
            let squared =
                f64::from(*base) + 2.0 * weight * f64::from(*cross) + weight * weight * f64::from(*added);
            // A column of zeros pads a head.
            if squared > 0.0 { single(f64::from(*magnitude) / squared.sqrt()) } else { 1.0 }
        };
        columns.map(factor).collect()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a factor in single precision")]
const fn single(factor: f64) -> f32 {
    factor as f32
}

/// What is not a matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ColumnTerms {
    /// Added to columns, multiplied by the adapter's weight.
    pub scaled_bias: Option<Vec<f32>>,
    /// Added to columns as it is.
    pub bias: Option<Vec<f32>>,
    /// DoRA's lengths.
    pub lengths: Option<ColumnLengths>,
}

/// What an adapter changes about the input of a node, `[depth]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct InputTerms {
    /// Multiplies the input.
    pub factors: Vec<f32>,
    /// Added afterwards.
    pub shifts: Option<Vec<f32>>,
}

impl InputTerms {
    /// Changes some rows of the input.
    fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.factors.len().max(1)) {
            row.iter_mut().zip(&self.factors).for_each(|(x, factor)| *x *= factor);
            if let Some(shifts) = &self.shifts {
                row.iter_mut().zip(shifts).for_each(|(x, shift)| *x += shift);
            }
        }
    }
}

/// The adapter's tensors do not fit the node.
#[derive(Debug, thiserror::Error)]
#[error("{what} of {found} numbers, expected {expected}")]
pub struct LowRankError {
    what: &'static str,
    found: usize,
    expected: usize,
}

/// What an adapter adds to the product of one node.
#[derive(Debug)]
pub struct LowRank {
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// Rows of `a`.
    pub(super) rank: usize,
    /// `[rank, depth]`.
    pub(super) a: Floats,
    /// The scale of each row of `a`.
    scales: Vec<f32>,
    /// Packed; see the module.
    pub(super) b: Floats,
    spans: Vec<Span>,
    /// The spans of panel `i` are those from `panels[i]` to `panels[i + 1]`.
    panels: Vec<usize>,
    terms: ColumnTerms,
    input: Option<InputTerms>,
}

/// A pair's part of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The first row of `A`.
    pub(super) row: usize,
    pub(super) rank: usize,
    /// Where its numbers begin in the packed `B`.
    pub(super) start: usize,
}

impl LowRank {
    /// For a node of `[columns, depth]`: `a` has the rows of all pairs.
    ///
    /// # Errors
    /// [`LowRankError`] when a tensor has another number of elements.
    pub fn new(
        [columns, depth]: [usize; 2],
        a: Floats,
        pairs: &[LowRankPair],
        terms: ColumnTerms,
    ) -> Result<Self, LowRankError> {
        let rank = pairs.iter().fold(0, |rank: usize, pair| rank.saturating_add(pair.rank));
        check("lora_A", a.len(), rank.saturating_mul(depth))?;
        for LowRankPair { first_column, columns: width, rank, b, .. } in pairs {
            check("lora_B", b.len(), width.saturating_mul(*rank))?;
            let end = first_column.saturating_add(*width);
            check("columns", end, end.min(columns))?;
        }
        let ColumnTerms { scaled_bias, bias, lengths } = &terms;
        let lengths = lengths.iter().flat_map(|l| [&l.magnitude, &l.base, &l.cross, &l.added]);
        for vector in scaled_bias.iter().chain(bias).chain(lengths) {
            check("a vector", vector.len(), columns)?;
        }
        let scales = pairs.iter().flat_map(|pair| vec![pair.scale; pair.rank]).collect();
        let (spans, panels, length) = spans(columns, pairs);
        let is_half = pairs.iter().all(|pair| matches!(pair.b, Floats::Float16(_)));
        let b = if is_half {
            Floats::Float16(pack(pairs, length, |pair| match &pair.b {
                Floats::Float16(b) => b,
                Floats::Float32(_) => &[],
            }))
        } else {
            let wide: Vec<Vec<f32>> = pairs.iter().map(|pair| widened(&pair.b)).collect();
            let of = |pair: &LowRankPair| {
                pairs.iter().position(|other| std::ptr::eq(pair, other)).map_or(&[][..], |i| &wide[i])
            };
            Floats::Float32(pack(pairs, length, of))
        };
        Ok(Self { columns, depth, rank, a, scales, b, spans, panels, terms, input: None })
    }

    /// The same with another input.
    ///
    /// # Errors
    /// [`LowRankError`] when a vector has another length than the node's depth.
    pub fn with_input(self, input: InputTerms) -> Result<Self, LowRankError> {
        for vector in [Some(&input.factors), input.shifts.as_ref()].into_iter().flatten() {
            check("a vector of the input", vector.len(), self.depth)?;
        }
        Ok(Self { input: Some(input), ..self })
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let vectors = [&self.terms.scaled_bias, &self.terms.bias].into_iter().flatten().count();
        let vectors = vectors + if self.terms.lengths.is_some() { 4 } else { 0 };
        let input = self.input.as_ref().map_or(0, |input| 1 + usize::from(input.shifts.is_some()));
        let vectors = (vectors * self.columns + input * self.depth) * size_of::<f32>();
        Bytes::from(self.a.bytes() + self.b.bytes() + vectors + self.spans.len() * size_of::<Span>())
    }

    /// The parts of a panel.
    pub(super) fn spans(&self, panel: usize) -> &[Span] {
        &self.spans[self.panels[panel]..self.panels[panel + 1]]
    }
}

fn check(what: &'static str, found: usize, expected: usize) -> Result<(), LowRankError> {
    if found == expected { Ok(()) } else { Err(LowRankError { what, found, expected }) }
}

fn widened(floats: &Floats) -> Vec<f32> {
    match floats {
        Floats::Float32(floats) => floats.clone(),
        Floats::Float16(floats) => floats.iter().map(|float| float.to_f32()).collect(),
    }
}

/// The parts of every panel, where those of each begin, and how many numbers they take.
fn spans(columns: usize, pairs: &[LowRankPair]) -> (Vec<Span>, Vec<usize>, usize) {
    let (mut spans, mut panels, mut length) = (Vec::new(), vec![0], 0);
    for panel in 0..columns.div_ceil(PANEL) {
        let mut row = 0;
        for pair in pairs {
            if pair.rank > 0 && !shared(panel, pair).is_empty() {
                spans.push(Span { row, rank: pair.rank, start: length });
                length += pair.rank * PANEL;
            }
            row += pair.rank;
        }
        panels.push(spans.len());
    }
    (spans, panels, length)
}

/// The columns of `panel` that belong to `pair`.
fn shared(panel: usize, pair: &LowRankPair) -> Range<usize> {
    let start = (panel * PANEL).max(pair.first_column);
    start..((panel + 1) * PANEL).min(pair.first_column + pair.columns).max(start)
}

/// Packs the matrices of `pairs`, in the order of [`spans`].
fn pack<'a, T: Copy + Default + 'a>(
    pairs: &'a [LowRankPair],
    length: usize,
    numbers: impl Fn(&'a LowRankPair) -> &'a [T],
) -> Vec<T> {
    let mut packed = vec![T::default(); length];
    let end = pairs.iter().map(|pair| pair.first_column + pair.columns).max().unwrap_or(0);
    let mut spans = packed.as_mut_slice();
    for panel in 0..end.div_ceil(PANEL) {
        for pair in pairs.iter().filter(|pair| pair.rank > 0) {
            let columns = shared(panel, pair);
            if columns.is_empty() {
                continue;
            }
            let (span, rest) = spans.split_at_mut(pair.rank * PANEL);
            spans = rest;
            for column in columns {
                let from = &numbers(pair)[(column - pair.first_column) * pair.rank..][..pair.rank];
                for (to, number) in span[column - panel * PANEL..].iter_mut().step_by(PANEL).zip(from) {
                    *to = *number;
                }
            }
        }
    }
    packed
}

/// The matrices of an adapter, by the number of their node.
#[derive(Debug, Default)]
pub struct AdapterWeights {
    products: BTreeMap<usize, Arc<LowRank>>,
}

impl AdapterWeights {
    /// Adds what changes the node number `product`.
    pub fn add(&mut self, product: usize, low_rank: LowRank) {
        self.products.insert(product, Arc::new(low_rank));
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.products.values().map(|low_rank| low_rank.bytes()).sum()
    }
}

/// A node that an adapter can change.
#[derive(Debug)]
struct ProductNode {
    name: String,
    /// Columns and depth.
    shape: [usize; 2],
}

/// The place in a session for the adapters of its next runs. Clones refer to the same place.
#[derive(Clone, Default)]
pub struct AdapterSlot {
    nodes: Arc<Vec<ProductNode>>,
    active: Arc<Mutex<Option<Arc<ActiveAdapters>>>>,
}

impl fmt::Debug for AdapterSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterSlot").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

/// The active adapters, by the number of the node.
#[derive(Debug)]
pub(super) struct ActiveAdapters {
    nodes: Vec<Vec<ActiveLowRank>>,
}

/// A part of an active adapter, with its weight.
#[derive(Debug)]
pub(super) struct ActiveLowRank {
    pub(super) low_rank: Arc<LowRank>,
    /// What each row of `A·x` is multiplied with.
    pub(super) scales: Vec<f32>,
    pub(super) factors: Option<Vec<f32>>,
    pub(super) bias: Option<Vec<f32>>,
}

impl AdapterSlot {
    /// For a graph's nodes, each with its name and its columns and depth, by their numbers.
    pub(super) fn new(nodes: impl IntoIterator<Item = (String, [usize; 2])>) -> Self {
        let nodes = nodes.into_iter().map(|(name, shape)| ProductNode { name, shape }).collect();
        Self { nodes: Arc::new(nodes), active: Arc::default() }
    }

    /// The number of the node called `name`, with its columns and depth.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<(usize, [usize; 2])> {
        let number = self.nodes.iter().position(|node| node.name == name)?;
        Some((number, self.nodes[number].shape))
    }

    /// Lets the next runs use `adapters`, each with its weight, in place of those before.
    pub fn set(&self, adapters: &[(&AdapterWeights, f32)]) {
        let active = (!adapters.is_empty()).then(|| {
            let of_node = |number| {
                let parts = adapters.iter().filter_map(|(adapter, weight)| {
                    Some(ActiveLowRank::new(adapter.products.get(&number)?, *weight))
                });
                parts.collect()
            };
            Arc::new(ActiveAdapters { nodes: (0..self.nodes.len()).map(of_node).collect() })
        });
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = active;
    }

    /// Changes `rows`, some rows of the input of the node with this number, as the active adapters do.
    pub fn change_input(&self, number: usize, rows: &mut [f32]) {
        if let Some(changed) = self.active().and_then(|active| active.input_of(number, rows)) {
            rows.copy_from_slice(&changed);
        }
    }

    /// The adapters of the run that is under way.
    pub(super) fn active(&self) -> Option<Arc<ActiveAdapters>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ActiveAdapters {
    /// What the node with this number reads in place of `input`, if that is something else.
    pub(super) fn input_of(&self, number: usize, input: &[f32]) -> Option<Vec<f32>> {
        let mut terms =
            self.of_node(number).iter().filter_map(|active| active.low_rank.input.as_ref()).peekable();
        terms.peek()?;
        let mut changed = input.to_vec();
        terms.for_each(|terms| terms.apply(&mut changed));
        Some(changed)
    }

    /// What changes the node with this number, in order.
    pub(super) fn of_node(&self, number: usize) -> &[ActiveLowRank] {
        self.nodes.get(number).map_or(&[], Vec::as_slice)
    }
}

impl ActiveLowRank {
    pub(super) fn new(low_rank: &Arc<LowRank>, weight: f32) -> Self {
        let ColumnTerms { scaled_bias, bias, lengths } = &low_rank.terms;
        let scaled = scaled_bias.as_ref().map(|bias| bias.iter().map(|b| b * weight).collect::<Vec<f32>>());
        let bias = match (scaled, bias) {
            (Some(scaled), Some(bias)) => Some(scaled.iter().zip(bias).map(|(a, b)| a + b).collect()),
            (scaled, bias) => scaled.or_else(|| bias.clone()),
        };
        Self {
            scales: low_rank.scales.iter().map(|scale| scale * weight).collect(),
            factors: lengths.as_ref().map(|lengths| lengths.factors(weight)),
            bias,
            low_rank: Arc::clone(low_rank),
        }
    }
}
