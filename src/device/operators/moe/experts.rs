//! The products of a pass with the experts that its tokens have chosen.
//!
//! Tokens are grouped by expert, so that an expert's weights are read once for all tokens that have chosen it; weights of
//! experts that none has chosen are not read at all:
//!
//! ```text
//! places   one for each token and each of its experts, in the order of experts
//! group    an expert with its places: rows of one product
//! task     some panels of a group's columns: what a thread takes
//! ```
//!
//! A place is computed from its own row alone, and a token's places are added up in the order of experts, so a token has the
//! same bits whatever other tokens it is computed with.

use std::{ops::Range, sync::Arc};

use ort::operator::ComputeContext;

use super::{
    super::{
        super::threads::ThreadLimits,
        cpu_isa::CpuIsa,
        float_product::{FloatProduct, FloatWeights},
        packed_weights::{PANEL, PackedWeights},
        parts::Parts,
        quantized_product::{Product, Rounded, Rounding},
    },
    activation::SwiGlu,
    routing::{Choice, Routing},
};

/// The matrices of all experts for one of their products.
#[derive(Clone, Copy)]
pub(super) enum Matrices<'a> {
    Packed(&'a [Arc<PackedWeights>]),
    /// `[experts, columns, depth]`.
    Float {
        weights: FloatWeights<'a>,
        columns: usize,
        depth: usize,
    },
}

impl Matrices<'_> {
    pub(super) fn columns(&self) -> usize {
        match self {
            Self::Packed(matrices) => matrices.first().map_or(0, |matrix| matrix.columns()),
            Self::Float { columns, .. } => *columns,
        }
    }

    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Packed(matrices) => matrices.first().map_or(0, |matrix| matrix.depth()),
            Self::Float { depth, .. } => *depth,
        }
    }

    fn panels(&self) -> usize {
        self.columns().div_ceil(PANEL)
    }
}

/// An expert with the places that are its rows.
#[derive(Clone, Debug)]
struct Group {
    expert: usize,
    places: Range<usize>,
}

/// Buffers that all nodes of a session share, because they run one after the other.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    choices: Vec<Choice>,
    groups: Vec<Group>,
    /// For each token and each of its experts, in turn, its place.
    place_of: Vec<usize>,
    /// For each place, the token and the weight.
    places: Vec<(usize, f32)>,
    rounded: Rounded,
    input: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    output: Vec<f32>,
}

/// Everything that a pass computes with.
pub(super) struct Pass<'a> {
    pub(super) routing: &'a Routing,
    pub(super) activation: SwiGlu,
    /// Whether weights multiply what experts read instead of what they give.
    pub(super) scales_input: bool,
    /// `[experts]`; empty without.
    pub(super) correction: &'a [f32],
    /// `[experts, columns]` of gate, up and down; empty without.
    pub(super) biases: [&'a [f32]; 3],
    pub(super) gate: Matrices<'a>,
    pub(super) up: Matrices<'a>,
    pub(super) down: Matrices<'a>,
    pub(super) limits: &'a ThreadLimits,
    pub(super) kind: CpuIsa,
}

/// Bytes of the activations of a product's places, at most: tokens beyond them are computed after the others.
const MAX_BYTES: usize = 32 << 20;

/// Numbers that one thread copies, rounds or adds up sooner than it wakes another.
const FEW_NUMBERS: usize = 1 << 14;

/// Into how many tasks a thread's share of a product is split.
const TASKS_PER_THREAD: usize = 8;

impl Pass<'_> {
    /// Computes tokens `[rows, hidden]` with their router's logits `[rows, experts]` into `output`, `[rows, hidden]`.
    pub(super) fn compute(
        &self,
        context: &ComputeContext,
        (input, logits): (&[f32], &[f32]),
        output: &mut [f32],
        scratch: &mut Scratch,
    ) -> ort::Result<()> {
        let hidden = self.gate.depth();
        let widest = hidden.max(self.gate.columns());
        let rows = (MAX_BYTES / (widest * size_of::<f32>() * self.routing.chosen)).max(1);
        let pieces = input.chunks(rows * hidden).zip(logits.chunks(rows * self.routing.experts));
        for ((input, logits), output) in pieces.zip(output.chunks_mut(rows * hidden)) {
            self.piece(context, (input, logits), output, scratch)?;
        }
        Ok(())
    }

    fn piece(
        &self,
        context: &ComputeContext,
        (input, logits): (&[f32], &[f32]),
        output: &mut [f32],
        scratch: &mut Scratch,
    ) -> ort::Result<()> {
        let (hidden, width) = (self.gate.depth(), self.gate.columns());
        let rows = input.len() / hidden;
        let Scratch { choices, groups, place_of, places, rounded, input: gathered, gate, up, output: parts } =
            scratch;
        self.choose(context, logits, choices)?;
        group(choices, (self.routing.experts, self.routing.chosen), (groups, place_of, places));
        let count = places.len();
        resize(gathered, count * hidden);
        self.gather(context, (input, places), gathered)?;
        resize(gate, count * width);
        resize(up, count * width);
        self.multiply(context, (groups, gathered, rows), rounded, &mut [(&self.gate, gate), (&self.up, up)])?;
        self.activate(context, (groups, rows), gate, up)?;
        resize(parts, count * hidden);
        self.multiply(context, (groups, gate, rows), rounded, &mut [(&self.down, parts)])?;
        self.combine(context, (choices, place_of, parts), output)
    }

    /// The experts of every token.
    fn choose(&self, context: &ComputeContext, logits: &[f32], choices: &mut Vec<Choice>) -> ort::Result<()> {
        let Routing { experts, chosen, .. } = *self.routing;
        let rows = logits.len() / experts;
        choices.clear();
        choices.resize(rows * chosen, Choice::default());
        let parts = Parts::of(choices);
        self.spread(context, rows, rows, |row| {
            // SAFETY: the choices of one token; each is computed once.
            let choices = unsafe { parts.part(row * chosen, chosen) };
            self.routing.choose(&logits[row * experts..][..experts], self.correction, choices);
        })
    }

    /// The rows that experts read, place by place.
    fn gather(
        &self,
        context: &ComputeContext,
        (input, places): (&[f32], &[(usize, f32)]),
        gathered: &mut [f32],
    ) -> ort::Result<()> {
        let hidden = self.gate.depth();
        let rows = input.len() / hidden;
        let parts = Parts::of(gathered);
        self.spread_rows(context, [places.len(), hidden], rows, |place| {
            let (row, weight) = places[place];
            // SAFETY: the row of one place; each is filled once.
            let to = unsafe { parts.part(place * hidden, hidden) };
            to.copy_from_slice(&input[row * hidden..][..hidden]);
            if self.scales_input {
                to.iter_mut().for_each(|number| *number *= weight);
            }
        })
    }

    /// Multiplies the rows of every group with the matrices of its expert. All of `products` read the same rows.
    fn multiply(
        &self,
        context: &ComputeContext,
        (groups, input, rows): (&[Group], &[f32], usize),
        rounded: &mut Rounded,
        products: &mut [(&Matrices, &mut Vec<f32>)],
    ) -> ort::Result<()> {
        // The same rounding for all of them: it depends on the width of codes and on the unit of scales, which products
        // of unlike matrices do not share.
        for (matrices, output) in products {
            let columns = matrices.columns();
            let outputs: Vec<Parts<f32>> =
                split(output, groups, columns).into_iter().map(Parts::of).collect();
            if let Matrices::Packed(packed) = **matrices {
                self.round(context, (groups, input, rows), (packed, rounded))?;
            }
            let tasks = self.tasks(groups, matrices.panels(), rows);
            let compute = |task: usize| {
                let (group, panels) = &tasks[task];
                let Group { expert, places } = &groups[*group];
                match **matrices {
                    Matrices::Packed(packed) => {
                        let matrix = &*packed[*expert];
                        let rounded = rounded.some(places.clone(), matrix);
                        let product = Product { matrix, rounded, output: outputs[*group] };
                        // SAFETY: tasks do not share a panel of a group; the processor has these instructions.
                        unsafe { product.panels(self.kind, panels.clone()) };
                    }
                    Matrices::Float { weights, columns, depth } => {
                        let weights = weights.some(expert * columns * depth..(expert + 1) * columns * depth);
                        let input = &input[places.start * depth..places.end * depth];
                        let product =
                            FloatProduct { weights, input, depth, columns, output: outputs[*group] };
                        // SAFETY: as above.
                        unsafe { product.compute(self.kind, panels.clone()) };
                    }
                }
            };
            self.spread(context, tasks.len(), rows, compute)?;
        }
        Ok(())
    }

    /// Rounds the rows of every group for the matrix of its expert.
    fn round(
        &self,
        context: &ComputeContext,
        (groups, input, rows): (&[Group], &[f32], usize),
        (packed, rounded): (&[Arc<PackedWeights>], &mut Rounded),
    ) -> ort::Result<()> {
        let Some(first) = packed.first() else { return Ok(()) };
        let depth = first.depth();
        rounded.resize(input.len() / depth, first);
        let words = rounded.split(groups.iter().map(|group| group.places.len()), first);
        let mut tasks = Vec::new();
        let mut roundings = Vec::with_capacity(groups.len());
        for (number, (group, words)) in groups.iter().zip(words).enumerate() {
            let input = &input[group.places.start * depth..group.places.end * depth];
            // SAFETY: the processor has these instructions.
            let rounding = unsafe { Rounding::part(input, &packed[group.expert], self.kind, words) };
            tasks.extend((0..rounding.groups()).map(|part| (number, part)));
            roundings.push(rounding);
        }
        let numbers = input.len() / tasks.len().max(1);
        self.spread_rows(context, [tasks.len(), numbers], rows, |task| {
            let (number, part) = tasks[task];
            // SAFETY: a call for each part of each group.
            unsafe { roundings[number].group(part) };
        })
    }

    /// `activation(gate) · up`, into `gate`.
    fn activate(
        &self,
        context: &ComputeContext,
        (groups, rows): (&[Group], usize),
        gate: &mut [f32],
        up: &[f32],
    ) -> ort::Result<()> {
        let width = self.gate.columns();
        let [gate_bias, up_bias, _] = self.biases;
        let of_place: Vec<usize> =
            groups.iter().flat_map(|group| group.places.clone().map(|_| group.expert)).collect();
        let parts = Parts::of(gate);
        self.spread_rows(context, [of_place.len(), width], rows, |place| {
            // SAFETY: the row of one place; each is computed once.
            let gate = unsafe { parts.part(place * width, width) };
            let biases = [gate_bias, up_bias].map(|bias| of_expert(bias, of_place[place], width));
            // SAFETY: the processor has these instructions.
            unsafe { self.activation.apply(self.kind, gate, &up[place * width..][..width], biases) };
        })
    }

    /// Adds up what a token's experts give.
    fn combine(
        &self,
        context: &ComputeContext,
        (choices, place_of, parts): (&[Choice], &[usize], &[f32]),
        output: &mut [f32],
    ) -> ort::Result<()> {
        let (hidden, chosen) = (self.down.columns(), self.routing.chosen);
        let rows = output.len() / hidden;
        let outputs = Parts::of(output);
        self.spread_rows(context, [rows, hidden * chosen], rows, |row| {
            // SAFETY: the output of one token; each is computed once.
            let output = unsafe { outputs.part(row * hidden, hidden) };
            output.fill(0.0);
            for slot in row * chosen..(row + 1) * chosen {
                let Choice { expert, weight } = choices[slot];
                let weight = if self.scales_input { 1.0 } else { weight };
                let part = &parts[place_of[slot] * hidden..][..hidden];
                let bias = of_expert(self.biases[2], expert, hidden);
                if bias.is_empty() {
                    output.iter_mut().zip(part).for_each(|(sum, part)| *sum += weight * part);
                } else {
                    let both = part.iter().zip(bias);
                    output
                        .iter_mut()
                        .zip(both)
                        .for_each(|(sum, (part, bias))| *sum += weight * (part + bias));
                }
            }
        })
    }

    /// The tasks of a product: groups and panels of their columns, of about the same work each.
    fn tasks(&self, groups: &[Group], panels: usize, rows: usize) -> Vec<(usize, Range<usize>)> {
        let places: usize = groups.iter().map(|group| group.places.len()).sum();
        let wanted = self.limits.of(rows) * TASKS_PER_THREAD;
        let work = (places * panels).div_ceil(wanted);
        let mut tasks = Vec::new();
        for (number, group) in groups.iter().enumerate() {
            let step = (work / group.places.len().max(1)).clamp(1, panels.max(1));
            tasks.extend((0..panels).step_by(step).map(|start| (number, start..panels.min(start + step))));
        }
        tasks
    }

    /// Calls `compute` for each of `count` rows of `width` numbers: on one thread where waking others would take longer.
    fn spread_rows(
        &self,
        context: &ComputeContext,
        [count, width]: [usize; 2],
        rows: usize,
        compute: impl Fn(usize) + Send + Sync,
    ) -> ort::Result<()> {
        if count * width <= FEW_NUMBERS {
            (0..count).for_each(compute);
            return Ok(());
        }
        self.spread(context, count, rows, compute)
    }

    /// Calls `compute` with every number below `count`, on the threads for a pass of `rows`.
    fn spread(
        &self,
        context: &ComputeContext,
        count: usize,
        rows: usize,
        compute: impl Fn(usize) + Send + Sync,
    ) -> ort::Result<()> {
        if count <= 1 || self.limits.of(rows) == 1 {
            (0..count).for_each(compute);
            return Ok(());
        }
        context.par_for(count, self.limits.batches(rows), compute)
    }
}

/// Sorts the choices of tokens by expert.
fn group(
    choices: &[Choice],
    (experts, chosen): (usize, usize),
    (groups, place_of, places): (&mut Vec<Group>, &mut Vec<usize>, &mut Vec<(usize, f32)>),
) {
    let mut starts = vec![0; experts + 1];
    choices.iter().for_each(|choice| starts[choice.expert + 1] += 1);
    for expert in 0..experts {
        starts[expert + 1] += starts[expert];
    }
    groups.clear();
    groups.extend(
        (0..experts)
            .filter(|expert| starts[*expert] < starts[expert + 1])
            .map(|expert| Group { expert, places: starts[expert]..starts[expert + 1] }),
    );
    place_of.clear();
    places.clear();
    places.resize(choices.len(), (0, 0.0));
    for (slot, choice) in choices.iter().enumerate() {
        let place = starts[choice.expert];
        starts[choice.expert] += 1;
        place_of.push(place);
        places[place] = (slot / chosen, choice.weight);
    }
}

/// `numbers` in consecutive parts, one a group, of `columns` numbers for each place.
fn split<'a>(numbers: &'a mut [f32], groups: &[Group], columns: usize) -> Vec<&'a mut [f32]> {
    let mut rest = numbers;
    let part = |group: &Group| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(group.places.len() * columns);
        rest = behind;
        part
    };
    groups.iter().map(part).collect()
}

/// The biases of one expert; none without biases.
fn of_expert(biases: &[f32], expert: usize, width: usize) -> &[f32] {
    if biases.is_empty() { &[] } else { &biases[expert * width..][..width] }
}

/// Makes room; the content is overwritten.
fn resize(buffer: &mut Vec<f32>, len: usize) {
    buffer.truncate(len);
    buffer.resize(len, 0.0);
}
