//! One pass over the graph: its tensors bound once, then run as often as one likes.

use half::{bf16, f16};

use super::{Model, check::of_layer};
use crate::{
    device::{Binding, DeviceError, Element, Pool, Shared, Slot},
    manifest::{Dtype, Lengths},
};

/// The key-value cache of one timeline, `[1, kv_heads, capacity, head_dim]` for each layer's keys and values.
///
/// The graph updates it in place; which of its positions count is said with each pass, so forgetting the last ones
/// costs nothing.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<[Shared; 2]>,
    capacity: usize,
}

impl Cache {
    /// Positions that it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Gives its memory back; it can be used again at once, from position 0.
    pub fn discard(&self) {
        self.layers.iter().flatten().for_each(Shared::discard);
    }
}

/// Of which positions a graph gives logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// Of those that it is asked for.
    Chosen,
    /// Of the last one.
    Last,
    /// Of all that are fed.
    All,
}

/// A pass of up to `width` tokens, with the logits of up to `rows` of them.
#[derive(Debug)]
pub struct Pass {
    binding: Binding,
    input_ids: Slot<i64>,
    lengths: LengthSlots,
    logits: Slot<f32>,
    width: usize,
    rows: usize,
    vocab: usize,
    capacity: usize,
}

/// Where lengths are written, and which logits come of it.
#[derive(Clone, Copy, Debug)]
enum LengthSlots {
    Given { seqlens_k: Slot<i32>, total_sequence_length: Slot<i32>, logits_index: Slot<i64> },
    Mask { attention_mask: Slot<i64>, gives_all: bool },
}

impl Model {
    /// A cache with room for `capacity` positions: from the model's pool, where it has one; else mapped, and then only
    /// positions that are used cost memory.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] or [`DeviceError::NoRoom`] when there is no room for it.
    pub fn cache(&self, capacity: usize) -> Result<Cache, DeviceError> {
        let dims = &self.manifest().dims;
        let shape = [1, dims.kv_heads, capacity, dims.head_dim];
        let dtype = self.manifest().dtype;
        let pool = self.session().pool();
        let layer = |_| Ok([tensor(dtype, &shape, pool)?, tensor(dtype, &shape, pool)?]);
        Ok(Cache { layers: (0..dims.layers).map(layer).collect::<Result<_, DeviceError>>()?, capacity })
    }

    /// Binds a pass of up to `width` tokens over `cache`, with logits of up to `rows` of them; fewer where the graph
    /// gives only those of the last token.
    ///
    /// # Errors
    /// [`DeviceError`] when memory cannot be mapped or bound.
    pub fn pass(&self, cache: &Cache, width: usize, rows: usize) -> Result<Pass, DeviceError> {
        let names = &self.manifest().graph;
        let vocab = self.manifest().dims.vocab;
        let rows = if self.rows() == Rows::Last { 1 } else { rows };
        let mut binding = Binding::new(self.session())?;
        let input_ids = binding.input(&names.input_ids, &[1, width])?;
        let lengths = LengthSlots::bind(&mut binding, &names.lengths, rows, cache.capacity, self.rows())?;
        let given = if self.rows() == Rows::All { width } else { rows };
        let logits = binding.output(&names.logits, &[1, given, vocab])?;
        for (i, [key, value]) in cache.layers.iter().enumerate() {
            binding.in_place(&of_layer(&names.past_key, i), &of_layer(&names.present_key, i), key)?;
            binding.in_place(&of_layer(&names.past_value, i), &of_layer(&names.present_value, i), value)?;
        }
        let capacity = cache.capacity;
        Ok(Pass { binding, input_ids, lengths, logits, width, rows, vocab, capacity })
    }
}

impl LengthSlots {
    fn bind(
        binding: &mut Binding,
        names: &Lengths,
        rows: usize,
        capacity: usize,
        gives: Rows,
    ) -> Result<Self, DeviceError> {
        Ok(match names {
            Lengths::Given { seqlens_k, total_sequence_length, logits_index } => Self::Given {
                seqlens_k: binding.input(seqlens_k, &[1])?,
                total_sequence_length: binding.input(total_sequence_length, &[])?,
                logits_index: binding.input(logits_index, &[rows])?,
            },
            Lengths::Mask { attention_mask } => {
                let attention_mask = binding.input(attention_mask, &[1, capacity])?;
                binding.write(attention_mask).fill(1);
                Self::Mask { attention_mask, gives_all: gives == Rows::All }
            }
        })
    }
}

impl Pass {
    /// Feeds `tokens`, the first at position `past`, and returns the logits of the last `rows` of them,
    /// `[rows, vocab]`, to be read or changed.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when there are no tokens, or more than the pass or the cache have room for;
    /// [`DeviceError::Runtime`] when the run fails.
    pub fn run(&mut self, model: &mut Model, tokens: &[u32], past: usize) -> Result<&mut [f32], DeviceError> {
        self.check(tokens.len(), past)?;
        self.shape(tokens.len(), past + tokens.len())?;
        for (slot, token) in self.binding.write(self.input_ids).iter_mut().zip(tokens) {
            *slot = i64::from(*token);
        }
        self.binding.run(&mut model.session)?;
        let wanted = self.rows.min(tokens.len()) * self.vocab;
        let logits = self.binding.write(self.logits);
        let skipped = logits.len().saturating_sub(wanted);
        Ok(&mut logits[skipped..])
    }

    fn check(&self, new: usize, past: usize) -> Result<(), DeviceError> {
        let room = self.width.min(self.capacity.saturating_sub(past));
        if new == 0 || new > room {
            return Err(DeviceError::Shape { shape: vec![1, new], needed: new, room });
        }
        Ok(())
    }

    /// Lays the tensors out for `new` tokens, which make it `total`; a pass that is as long as the last one changes
    /// little.
    fn shape(&mut self, new: usize, total: usize) -> Result<(), DeviceError> {
        if self.binding.read(self.input_ids).len() != new {
            self.binding.reshape(self.input_ids, &[1, new])?;
        }
        let rows = self.rows.min(new);
        match self.lengths {
            LengthSlots::Given { seqlens_k, total_sequence_length, logits_index } => {
                self.binding.write(seqlens_k)[0] = length(total - 1);
                self.binding.write(total_sequence_length)[0] = length(total);
                if self.binding.read(logits_index).len() != rows {
                    self.binding.reshape(logits_index, &[rows])?;
                }
                for (slot, position) in self.binding.write(logits_index).iter_mut().zip(new - rows..) {
                    *slot = i64::try_from(position).unwrap_or(i64::MAX);
                }
                self.lay_out_logits(rows)
            }
            LengthSlots::Mask { attention_mask, gives_all } => {
                self.binding.reshape(attention_mask, &[1, total])?;
                self.lay_out_logits(if gives_all { new } else { 1 })
            }
        }
    }

    fn lay_out_logits(&mut self, rows: usize) -> Result<(), DeviceError> {
        if self.binding.read(self.logits).len() != rows * self.vocab {
            self.binding.reshape(self.logits, &[1, rows, self.vocab])?;
        }
        Ok(())
    }
}

fn tensor(dtype: Dtype, shape: &[usize], pool: Option<&Pool>) -> Result<Shared, DeviceError> {
    match dtype {
        Dtype::Float32 => of::<f32>(shape, pool),
        Dtype::Float16 => of::<f16>(shape, pool),
        Dtype::Bfloat16 => of::<bf16>(shape, pool),
    }
}

fn of<T: Element>(shape: &[usize], pool: Option<&Pool>) -> Result<Shared, DeviceError> {
    match pool {
        Some(pool) => Shared::in_pool::<T>(pool, shape),
        None => Shared::new::<T>(shape),
    }
}

/// A length as the graph counts it; no context is longer than the manifest's greatest, 2^24.
fn length(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
