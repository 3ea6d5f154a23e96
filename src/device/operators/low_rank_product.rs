//! Adds the products of active adapters to those of the base.
//!
//! `A·x` is computed before the base's product, on several threads. `B·(A·x)` is added by the thread that has computed a panel
//! of the base's product, while the panel is in its cache. Sums have a fixed order, so a row has the same bits whatever other
//! rows it is computed with.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use std::{ops::Range, sync::Arc};

use ort::operator::ComputeContext;

use super::{
    super::threads::ThreadLimits,
    cpu_isa::{CpuIsa, Task},
    float_product::{self, FloatProduct, FloatWeights, Weight},
    low_rank::{ActiveAdapters, ActiveLowRank, AdapterSlot, Floats, Span},
    packed_weights::PANEL,
    parts::Parts,
    simd_f32::{LANES, SimdF32},
    simd_i8::SimdI8,
};

/// Rows of `A` that are one task in decode; rows of activations that are one task in prefill.
const TASK_ROWS: usize = 16;

/// Rows of the product that are computed at once.
const TILE: usize = 4;

// Both kinds of products are computed in these panels.
const _: () = assert!(float_product::PANEL == PANEL);

/// The adapters of a node.
#[derive(Clone)]
pub(super) struct NodeAdapters {
    pub(super) slot: AdapterSlot,
    /// The node's number; `None` for a node that no adapter can change.
    pub(super) number: Option<usize>,
}

/// The active adapters of a node in the run that is under way.
pub(super) struct ActiveNode {
    active: Arc<ActiveAdapters>,
    number: usize,
}

/// `A·x` of the adapters that change a node in the run that is under way.
pub(super) struct Added {
    active: Arc<ActiveAdapters>,
    number: usize,
    rows: usize,
    /// `[rows, rank]` for each adapter, scaled.
    sums: Vec<Vec<f32>>,
}

impl NodeAdapters {
    /// Those that change this node; `None` if none does.
    pub(super) fn active(&self) -> Option<ActiveNode> {
        let (number, active) = self.number.zip(self.slot.active())?;
        (!active.of_node(number).is_empty()).then_some(ActiveNode { active, number })
    }
}

impl ActiveNode {
    /// What the node reads in place of `input`, if that is something else.
    pub(super) fn input(&self, input: &[f32]) -> Option<Vec<f32>> {
        self.active.input_of(self.number, input)
    }

    /// Multiplies `input`, some rows of `depth` numbers, by the matrices `A`.
    pub(super) fn read(
        self,
        context: &ComputeContext,
        limits: &ThreadLimits,
        kind: CpuIsa,
        (input, depth): (&[f32], usize),
    ) -> ort::Result<Added> {
        let Self { active, number } = self;
        let rows = input.len() / depth.max(1);
        let mut sums = Vec::new();
        for adapter in active.of_node(number) {
            let mut projected = vec![0.0; rows * adapter.low_rank.rank];
            let projection = Projection { adapter, input, rows, sums: Parts::of(&mut projected) };
            let threads = limits.of(rows);
            let tasks = if threads == 1 { 1 } else { projection.tasks() };
            if tasks <= 1 {
                // SAFETY: one call, for all of them; the processor has these instructions.
                (0..projection.tasks()).for_each(|task| unsafe { projection.compute(kind, task) });
            } else {
                // SAFETY: a call for each task; the processor has these instructions.
                context.par_for(tasks, limits.batches(rows), |task| unsafe {
                    projection.compute(kind, task);
                })?;
            }
            scale(&mut projected, &adapter.scales);
            sums.push(projected);
        }
        Ok(Added { active, number, rows, sums })
    }
}

fn scale(sums: &mut [f32], scales: &[f32]) {
    if !scales.is_empty() {
        for row in sums.chunks_exact_mut(scales.len()) {
            row.iter_mut().zip(scales).for_each(|(sum, scale)| *sum *= scale);
        }
    }
}

/// `A·x` of one adapter under way, a part of `A` or of the rows a task.
struct Projection<'a> {
    adapter: &'a ActiveLowRank,
    /// `[rows, depth]`.
    input: &'a [f32],
    rows: usize,
    /// `[rows, rank]`.
    sums: Parts<'a, f32>,
}

impl Projection<'_> {
    fn tasks(&self) -> usize {
        let rows = if self.rows == 1 { self.adapter.low_rank.rank } else { self.rows };
        rows.div_ceil(TASK_ROWS)
    }

    /// # Safety
    /// No two calls at once may be for the same task, and the processor must be of `kind`.
    unsafe fn compute(&self, kind: CpuIsa, task: usize) {
        let (rank, depth) = (self.adapter.low_rank.rank, self.adapter.low_rank.depth);
        let share = |of: usize| task * TASK_ROWS..((task + 1) * TASK_ROWS).min(of);
        let (rows, columns) = if self.rows == 1 { (0..1, share(rank)) } else { (share(self.rows), 0..rank) };
        let matrix = columns.start * depth..columns.end * depth;
        let weights = match &self.adapter.low_rank.a {
            Floats::Float32(a) => FloatWeights::Float32(&a[matrix]),
            Floats::Float16(a) => FloatWeights::Float16(&a[matrix]),
        };
        let first = rows.start * rank + columns.start;
        // SAFETY: the sums of this task: some columns of the only row, or whole rows.
        let sums = unsafe { self.sums.part(first, rows.len() * columns.len()) };
        let input = &self.input[rows.start * depth..rows.end * depth];
        let product = FloatProduct { weights, input, depth, columns: columns.len(), output: Parts::of(sums) };
        // SAFETY: one call, for all panels of this product; as the caller promises.
        unsafe { product.compute(kind, 0..product.panels()) };
    }
}

impl Added {
    /// What was computed for `input` without threads, for tests.
    #[cfg(test)]
    pub(super) fn of(
        active: Arc<ActiveAdapters>,
        number: usize,
        kind: CpuIsa,
        (input, depth): (&[f32], usize),
    ) -> Self {
        let rows = input.len() / depth;
        let mut sums = Vec::new();
        for adapter in active.of_node(number) {
            let mut projected = vec![0.0; rows * adapter.low_rank.rank];
            let projection = Projection { adapter, input, rows, sums: Parts::of(&mut projected) };
            // SAFETY: a call for each task; `kind` is one of the processor's.
            (0..projection.tasks()).for_each(|task| unsafe { projection.compute(kind, task) });
            scale(&mut projected, &adapter.scales);
            sums.push(projected);
        }
        Self { active, number, rows, sums }
    }

    /// Adds to the columns of `panels` of `output`, `[rows, columns]`.
    ///
    /// # Safety
    /// No two calls at once may be for the same panel, nothing else may use these columns, and the processor must be of `kind`.
    pub(super) unsafe fn panels(&self, kind: CpuIsa, panels: Range<usize>, output: Parts<'_, f32>) {
        for (adapter, sums) in self.active.of_node(self.number).iter().zip(&self.sums) {
            let update = Update { adapter, sums, rows: self.rows, panels: panels.clone(), output };
            // SAFETY: as the caller promises.
            unsafe { kind.run(update) };
        }
    }
}

/// Adds one adapter's product to some panels.
struct Update<'a> {
    adapter: &'a ActiveLowRank,
    /// `[rows, rank]`.
    sums: &'a [f32],
    rows: usize,
    panels: Range<usize>,
    /// `[rows, columns]`.
    output: Parts<'a, f32>,
}

impl Task for Update<'_> {
    #[inline(always)]
    unsafe fn run<P: SimdI8>(self) {
        let low_rank = &self.adapter.low_rank;
        for panel in self.panels.clone() {
            for span in low_rank.spans(panel) {
                // SAFETY: as the caller promises.
                unsafe {
                    match &low_rank.b {
                        Floats::Float32(b) => self.span::<P, f32>(panel, *span, b),
                        Floats::Float16(b) => self.span::<P, half::f16>(panel, *span, b),
                    }
                }
            }
            if self.adapter.factors.is_some() || self.adapter.bias.is_some() {
                // SAFETY: as the caller promises.
                unsafe { self.finish(panel) };
            }
        }
    }
}

impl Update<'_> {
    #[inline(always)]
    unsafe fn span<V: SimdF32, W: Weight>(&self, panel: usize, span: Span, b: &[W]) {
        let b = &b[span.start..][..span.rank * PANEL];
        let mut row = 0;
        while row < self.rows {
            // SAFETY: as the caller promises.
            unsafe {
                if self.rows - row >= TILE {
                    self.tile::<V, W, TILE>([panel, row], span, b);
                    row += TILE;
                } else {
                    self.tile::<V, W, 1>([panel, row], span, b);
                    row += 1;
                }
            }
        }
    }

    /// `R` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<V: SimdF32, W: Weight, const R: usize>(
        &self,
        [panel, row]: [usize; 2],
        span: Span,
        b: &[W],
    ) {
        let rank = self.adapter.low_rank.rank;
        let sums = &self.sums[row * rank..][..R * rank];
        let mut columns = [[0.0; PANEL]; R];
        for (r, columns) in columns.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            let output = unsafe { self.columns(panel, row + r) };
            columns[..output.len()].copy_from_slice(output);
        }
        // SAFETY: `b` has a row of `PANEL` numbers for each of the span's; the instructions are there, as the caller promises.
        unsafe {
            let mut totals =
                columns.each_ref().map(|row| [V::load(row.as_ptr()), V::load(row.as_ptr().add(LANES))]);
            for at in 0..span.rank {
                let b = b.as_ptr().add(at * PANEL);
                let b = [W::load::<V>(b), W::load::<V>(b.add(LANES))];
                for (r, totals) in totals.iter_mut().enumerate() {
                    let sum = V::splat(sums[r * rank + span.row + at]);
                    *totals = [V::fma(sum, b[0], totals[0]), V::fma(sum, b[1], totals[1])];
                }
            }
            for (totals, columns) in totals.iter().zip(&mut columns) {
                V::store(totals[0], columns.as_mut_ptr());
                V::store(totals[1], columns.as_mut_ptr().add(LANES));
            }
        }
        for (r, columns) in columns.iter().enumerate() {
            // SAFETY: as the caller promises.
            let output = unsafe { self.columns(panel, row + r) };
            output.copy_from_slice(&columns[..output.len()]);
        }
    }

    /// Applies DoRA's factors and adds the bias.
    #[inline(always)]
    unsafe fn finish(&self, panel: usize) {
        for row in 0..self.rows {
            // SAFETY: as the caller promises.
            let output = unsafe { self.columns(panel, row) };
            let first = panel * PANEL;
            if let Some(factors) = &self.adapter.factors {
                output.iter_mut().zip(&factors[first..]).for_each(|(y, factor)| *y *= factor);
            }
            if let Some(bias) = &self.adapter.bias {
                output.iter_mut().zip(&bias[first..]).for_each(|(y, bias)| *y += bias);
            }
        }
    }

    /// The columns of a panel in one row.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the caller promises that nothing else uses these columns")]
    unsafe fn columns(&self, panel: usize, row: usize) -> &mut [f32] {
        let columns = self.adapter.low_rank.columns;
        let (first, end) = (panel * PANEL, ((panel + 1) * PANEL).min(columns));
        // SAFETY: as the caller promises.
        unsafe { self.output.part(row * columns + first, end - first) }
    }
}
