//! `eka:Attention`: what `com.microsoft:GroupQueryAttention` computes, over a cache that it updates in place.
//!
//! - [`Format`]: how keys and values lie in the cache: in float32, float16 or int8.
//! - [`pass`]: the keys and values of new tokens appended, and what queries see, in shares that threads take.
//! - [`plan`](plan::plan): into which shares.
//! - [`sequences`]: which of a pass's tokens belong to which sequence, and where the cache has its positions.
//! - [`steps`]: the arithmetic of a share on a block of positions.
//!
//! In decode, reading the cache is the work: keys and values are read once for all query heads that share them, and heads
//! are split into spans of positions where there are fewer of them than threads could take. In prefill the same steps
//! serve 64 rows with every block that they read, and none computes what the mask would hide.

mod format;
mod pass;
mod plan;
mod sequences;
mod steps;
#[cfg(test)]
mod tests;

use std::{ptr, slice};

use ort::{
    AsPointer,
    operator::{BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::{TensorElementType, ValueRef},
};

pub use format::Format;
use pass::{Bias, Form, Heads, MAX_ROWS, Pass, Rotary, Share};
use plan::plan;
pub use sequences::{CacheSegment, MAX_SEGMENTS, PassSequence};

use super::{
    super::threads::ThreadLimits,
    cpu_isa::CpuIsa,
    parts::Parts,
    tensors::{address, sizes},
};

/// The operator's name.
pub const ATTENTION: &str = "Attention";

/// `eka:Attention`, with the inputs, outputs and attributes of `GroupQueryAttention`.
pub(super) struct Attention {
    pub(super) format: Format,
    pub(super) limits: ThreadLimits,
    pub(super) kind: CpuIsa,
}

impl Attention {
    fn element(&self) -> TensorElementType {
        match self.format {
            Format::Float32 => TensorElementType::Float32,
            Format::Float16 => TensorElementType::Float16,
            Format::Int8 => TensorElementType::Int8,
        }
    }
}

impl Operator for Attention {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        ATTENTION
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CPUExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (float, int, cache) = (TensorElementType::Float32, TensorElementType::Int32, self.element());
        [
            OperatorInput::required(float),
            OperatorInput::optional(float),
            OperatorInput::optional(float),
            OperatorInput::required(cache),
            OperatorInput::required(cache),
            OperatorInput::required(int),
            OperatorInput::required(int),
            OperatorInput::optional(float),
            OperatorInput::optional(float),
            OperatorInput::optional(TensorElementType::Int64),
            OperatorInput::optional(float),
            OperatorInput::optional(float),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [
            OperatorOutput::required(TensorElementType::Float32),
            OperatorOutput::required(self.element()),
            OperatorOutput::required(self.element()),
        ]
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        let number = |name: &str| context.get::<i64>(name).and_then(|number| usize::try_from(number).ok());
        let float = |name: &str| context.get::<f32>(name).filter(|number| *number != 0.0);
        let (Some(heads), Some(kv_heads)) = (number("num_heads"), number("kv_num_heads")) else {
            return Err(ort::Error::new("it does not say how many heads there are"));
        };
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(ort::Error::new(format!("{heads} heads cannot share {kv_heads}")));
        }
        Ok(Box::new(Node {
            heads,
            kv_heads,
            window: number("local_window_size").filter(|window| *window > 0),
            scale: float("scale"),
            cap: float("softcap"),
            is_rotary: number("do_rotary") == Some(1),
            format: self.format,
            limits: self.limits.clone(),
            kind: self.kind,
            shares: Vec::new(),
            parts: Vec::new(),
        }))
    }
}

/// One node.
struct Node {
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
    /// One over the root of a head's size where there is none.
    scale: Option<f32>,
    cap: Option<f32>,
    is_rotary: bool,
    format: Format,
    limits: ThreadLimits,
    kind: CpuIsa,
    /// Kept from run to run.
    shares: Vec<Share>,
    /// As `shares`.
    parts: Vec<f32>,
}

/// A tensor of a run.
struct Tensor<'a, T> {
    shape: Vec<usize>,
    numbers: &'a [T],
}

/// Past or present keys or values.
#[derive(Clone, Copy)]
struct Place {
    first: *mut u8,
    bytes: usize,
}

impl Kernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |i: usize| context.input(i);
        let (query, key, value) = (input(0)?, input(1)?, input(2)?);
        let (lengths, cosines, sines, bias) = (input(5)?, input(7)?, input(8)?, input(10)?);
        let sinks = if context.num_inputs()? > 11 { input(11)? } else { None };
        let query = floats(query.as_ref())?.ok_or_else(|| missing("query"))?;
        let (key, value) = (floats(key.as_ref())?, floats(value.as_ref())?);
        let (cosines, sines) = (floats(cosines.as_ref())?, floats(sines.as_ref())?);
        let bias = floats(bias.as_ref())?;
        let sinks = floats(sinks.as_ref())?;
        if sinks.as_ref().is_some_and(|sinks| sinks.numbers.len() != self.heads) {
            return Err(ort::Error::new("the number of attention sinks differs from the number of heads"));
        }
        let lengths = lengths.ok_or_else(|| missing("length"))?;
        let lengths = lengths.try_extract_tensor::<i32>()?.1;
        let [1, new, width] = query.shape[..] else { return Err(shapes("query", &query.shape)) };

        let past_shape = cache_shape(context)?;
        let [1, kv_heads, capacity, row] = past_shape[..] else { return Err(shapes("past", &past_shape)) };
        let head_dim =
            if key.is_some() { width / self.heads } else { width / (self.heads + 2 * self.kv_heads) };
        let fits = kv_heads == self.kv_heads && head_dim > 0 && row == self.format.elements(head_dim);
        let sequences = sequences::decode(lengths, new, capacity).filter(|_| fits);
        let Some(sequences) = sequences else {
            let message = format!("{:?} and a cache of {past_shape:?}, lengths {lengths:?}", query.shape);
            return Err(ort::Error::new(message));
        };
        let total = sequences.iter().map(|sequence| sequence.total).max().unwrap_or_default();
        let form = self.form(head_dim);
        let [queries, new_keys, new_values] = split(&form, new, &query, key.as_ref(), value.as_ref())?;
        let rotary = if self.is_rotary { Some(tables(head_dim, total, cosines, sines)?) } else { None };
        let bias = bias.map(|bias| bias_of(bias, self.heads, &sequences)).transpose()?;

        let output_shape = [1, new, self.heads * head_dim].map(signed);
        let mut output = context.output(0, output_shape.as_slice())?.ok_or_else(|| missing("output"))?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let bytes = kv_heads * capacity * self.format.bytes(head_dim);
        let keys = in_place(context, [3, 1], &past_shape, bytes)?;
        let values = in_place(context, [4, 2], &past_shape, bytes)?;
        let pass = Pass {
            form,
            format: self.format,
            past: 0,
            new,
            before: 0,
            segments: &[],
            capacity,
            queries,
            new_keys,
            new_values,
            rotary,
            bias,
            sinks: sinks.map(|sinks| sinks.numbers),
            // SAFETY: the whole output of this run, which nothing else refers to while it is computed: past is the same
            // memory, and only its address was looked at.
            keys: Parts::of(unsafe { slice::from_raw_parts_mut(keys.first, keys.bytes) }),
            // SAFETY: as above.
            values: Parts::of(unsafe { slice::from_raw_parts_mut(values.first, values.bytes) }),
            output: Parts::of(output),
            parts: Parts::of(&mut []),
            part_stride: 0,
        };
        self.run(&mut passes(pass, &sequences), context)
    }
}

impl Node {
    fn form(&self, head_dim: usize) -> Form {
        Form {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim,
            window: self.window,
            #[expect(clippy::cast_precision_loss, reason = "a head's size")]
            scale: self.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            cap: self.cap,
        }
    }

    fn run<'a>(&'a mut self, passes: &mut [Pass<'a>], context: &ComputeContext) -> ort::Result<()> {
        let count = plan(passes, self.limits.all(), &mut self.shares);
        let stride = passes.iter().map(Pass::part).max().unwrap_or_default();
        self.parts.resize(count * stride, 0.0);
        let parts = Parts::of(&mut self.parts);
        let new = passes.iter().map(|pass| pass.new).sum();
        for pass in &mut *passes {
            (pass.parts, pass.part_stride) = (parts, stride);
        }
        run(passes, self.kind, &self.shares, self.limits.batches(new), context)
    }
}

/// The passes over `sequences`, whose tokens follow each other in `all`.
fn passes<'a>(all: Pass<'a>, sequences: &'a [PassSequence]) -> Vec<Pass<'a>> {
    let mut before = 0;
    let pass = |sequence: &'a PassSequence| {
        let PassSequence { tokens: new, total, segments } = sequence;
        let pass = Pass { past: total - new, new: *new, before, segments, ..all };
        before += new;
        pass
    };
    sequences.iter().map(pass).collect()
}

/// Appends, computes all shares, and puts parts together.
fn run(
    passes: &[Pass],
    kind: CpuIsa,
    shares: &[Share],
    batches: usize,
    context: &ComputeContext,
) -> ort::Result<()> {
    for pass in passes {
        if pass.new < MAX_ROWS {
            // SAFETY: one call at a time, and no share is being computed yet.
            (0..pass.new).for_each(|token| unsafe { pass.append(token) });
        } else {
            // SAFETY: a call for each token, and no share is being computed yet.
            context.par_for(pass.new, batches, |token| unsafe { pass.append(token) })?;
        }
    }
    let share = |share: &Share| {
        // SAFETY: all has been appended; shares have separate rows or parts, and each is computed once; the processor has
        // the instructions of `kind`.
        unsafe { passes[share.pass].share(kind, share) }
    };
    if let [only] = shares {
        share(only);
        return Ok(());
    }
    context.par_for(shares.len(), batches, |number| share(&shares[number]))?;
    let joins: Vec<&[Share]> =
        shares.chunk_by(|a, b| (a.pass, a.head, &a.rows) == (b.pass, b.head, &b.rows)).collect();
    let join = |i: usize| {
        if let (
            [Share { pass, head, rows, part: Some(first), .. }, ..],
            Some(Share { part: Some(last), .. }),
        ) = (joins[i], joins[i].last())
        {
            // SAFETY: all shares have been computed, and each of these has other rows; the processor has the instructions
            // of `kind`.
            unsafe { passes[*pass].join(kind, *head, rows.clone(), *first..last + 1) };
        }
    };
    if shares.iter().all(|share| share.part.is_none()) {
        return Ok(());
    }
    if shares.len() < joins.len() * MANY_PARTS {
        (0..joins.len()).for_each(join);
        return Ok(());
    }
    context.par_for(joins.len(), batches, join)
}

/// Parts of a row from which on it pays to ask other threads to put parts together.
const MANY_PARTS: usize = 8;

/// Where queries, keys and values are, in one tensor or in three.
fn split<'a>(
    form: &Form,
    new: usize,
    query: &Tensor<'a, f32>,
    key: Option<&Tensor<'a, f32>>,
    value: Option<&Tensor<'a, f32>>,
) -> ort::Result<[Heads<'a>; 3]> {
    let [queries, others] = [form.heads, form.kv_heads].map(|heads| heads * form.head_dim);
    let (Some(key), Some(value)) = (key, value) else {
        let stride = queries + 2 * others;
        if query.numbers.len() != new * stride {
            return Err(shapes("query", &query.shape));
        }
        return Ok([0, queries, queries + others].map(|start| Heads {
            numbers: query.numbers,
            start,
            stride,
        }));
    };
    let one = |what: &str, tensor: &Tensor<'a, f32>, stride: usize| {
        if tensor.numbers.len() != new * stride {
            return Err(shapes(what, &tensor.shape));
        }
        Ok(Heads { numbers: tensor.numbers, start: 0, stride })
    };
    Ok([one("query", query, queries)?, one("key", key, others)?, one("value", value, others)?])
}

/// The tables for heads of `head_dim`, which must reach `total` positions.
fn tables<'a>(
    head_dim: usize,
    total: usize,
    cosines: Option<Tensor<'a, f32>>,
    sines: Option<Tensor<'a, f32>>,
) -> ort::Result<Rotary<'a>> {
    let (Some(cosines), Some(sines)) = (cosines, sines) else { return Err(missing("table of angles")) };
    match cosines.shape[..] {
        [positions, pairs] if sines.shape == cosines.shape && positions >= total && 2 * pairs <= head_dim => {
            Ok(Rotary { pairs, cosines: cosines.numbers, sines: sines.numbers })
        }
        _ => Err(shapes("table of angles", &cosines.shape)),
    }
}

/// The bias of the scores of one sequence: `[1, heads, new, total]`, or one head for all.
fn bias_of<'a>(bias: Tensor<'a, f32>, heads: usize, sequences: &[PassSequence]) -> ort::Result<Bias<'a>> {
    match (&bias.shape[..], sequences) {
        (&[1, of, tokens, positions], [only])
            if (of == 1 || of == heads) && [tokens, positions] == [only.tokens, only.total] =>
        {
            Ok(Bias { numbers: bias.numbers, is_shared: of != heads })
        }
        _ => Err(shapes("bias", &bias.shape)),
    }
}

/// A float32 input, where there is one.
fn floats<'a>(input: Option<&'a ValueRef<'_>>) -> ort::Result<Option<Tensor<'a, f32>>> {
    let Some(input) = input else { return Ok(None) };
    let (shape, numbers) = input.try_extract_tensor::<f32>()?;
    Ok(Some(Tensor { shape: sizes(shape), numbers }))
}

/// The shape of the past keys, which must be that of the values.
fn cache_shape(context: &ComputeContext) -> ort::Result<Vec<usize>> {
    let shape = |i: usize| -> ort::Result<Vec<usize>> {
        let input = context.input(i)?.ok_or_else(|| missing("past"))?;
        let shape = input.dtype().tensor_shape().map(|shape| sizes(shape));
        shape.ok_or_else(|| missing("shape of past"))
    };
    let (keys, values) = (shape(3)?, shape(4)?);
    if keys == values { Ok(keys) } else { Err(shapes("past", &values)) }
}

/// The present keys or values, in the memory of the past ones: `input` and `output` are the same memory, or are made equal.
fn in_place(
    context: &ComputeContext,
    [input, output]: [usize; 2],
    shape: &[usize],
    bytes: usize,
) -> ort::Result<Place> {
    let shape: Vec<i64> = shape.iter().copied().map(signed).collect();
    let past = context.input(input)?.ok_or_else(|| missing("past"))?;
    let present = context.output(output, shape.as_slice())?.ok_or_else(|| missing("present"))?;
    let (past, present) = (address(past.ptr())?, address(present.ptr())?);
    if past != present {
        // SAFETY: both are tensors of this shape, whose size in bytes this is; `copy` allows them to overlap.
        unsafe { ptr::copy(past, present, bytes) };
    }
    Ok(Place { first: present, bytes })
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn missing(what: &str) -> ort::Error {
    ort::Error::new(format!("there is no {what}"))
}

fn shapes(what: &str, shape: &[usize]) -> ort::Error {
    ort::Error::new(format!("a {what} of {shape:?}, which does not go with the rest"))
}
