//! A pass over the graph: its tensors are bound once, and it runs many times.

use super::{Cache, Model, hidden_states::HiddenStates, load::LogitPositions, validate::of_layer};
use crate::{
    device::{Binding, DeviceError, DeviceErrorKind, Slot, operators::PassSequence},
    manifest::Lengths,
};

/// A pass of up to `width` tokens, with the logits of up to `rows` of them.
#[derive(Debug)]
pub struct Pass {
    binding: Binding,
    input_ids: Slot<i64>,
    lengths: LengthSlots,
    logits: Slot<f32>,
    /// Hidden states of the same rows, and their width.
    hidden: Option<(Slot<f32>, usize)>,
    width: usize,
    rows: usize,
    vocab: usize,
    capacity: usize,
    /// The lengths of several sequences, as attention reads them.
    table: Vec<i32>,
}

/// The graph's inputs for lengths; with a mask, also whether it computes the logits of all positions.
#[derive(Clone, Copy, Debug)]
enum LengthSlots {
    Separate { seqlens_k: Slot<i32>, total_sequence_length: Slot<i32>, logits_index: Slot<i64> },
    Mask { attention_mask: Slot<i64>, gives_all: bool },
}

impl Model {
    /// A pass of up to `width` tokens with logits of up to `rows` of them, fewer where the graph gives only those of the
    /// last token, over caches of up to `max` positions. It runs once it is [attached](Pass::attach) to one.
    ///
    /// # Errors
    /// [`DeviceError`] when memory cannot be mapped or bound.
    pub fn pass(&self, width: usize, rows: usize, max: usize) -> Result<Pass, DeviceError> {
        let names = &self.manifest().graph;
        let vocab = self.manifest().dims.vocab;
        let rows = if self.rows() == LogitPositions::Last { 1 } else { rows };
        let mut binding = Binding::new(self.session())?;
        let input_ids = binding.input(&names.input_ids, &[1, width])?;
        let lengths = LengthSlots::bind(&mut binding, &names.lengths, rows, max, self.rows())?;
        let given = if self.rows() == LogitPositions::All { width } else { rows };
        let logits = binding.output(&names.logits, &[1, given, vocab])?;
        Ok(Pass {
            binding,
            input_ids,
            lengths,
            logits,
            hidden: None,
            width,
            rows,
            vocab,
            capacity: 0,
            table: Vec::new(),
        })
    }

    /// A [pass](Self::pass) that gives hidden states beside the logits. The model must
    /// [give them](Model::gives_hidden_states).
    ///
    /// # Errors
    /// As [`pass`](Self::pass).
    pub fn pass_with_hidden(&self, width: usize, rows: usize, max: usize) -> Result<Pass, DeviceError> {
        let mut pass = self.pass(width, rows, max)?;
        if let Some(HiddenStates { output, .. }) = &self.hidden {
            let hidden = self.manifest().dims.hidden;
            pass.hidden = Some((pass.binding.output(output, &[1, rows, hidden])?, hidden));
        }
        Ok(pass)
    }

    /// A pass over up to `sequences` sequences, of up to `width` tokens in all, with the logits of each sequence's last token.
    /// The model must [take sequences](Model::takes_sequences).
    ///
    /// # Errors
    /// As [`pass`](Self::pass), and [`DeviceError::Shape`] when the model does not take sequences.
    pub fn pass_of_sequences(&self, width: usize, sequences: usize) -> Result<Pass, DeviceError> {
        let names = &self.manifest().graph;
        let Lengths::Separate { seqlens_k, total_sequence_length, logits_index } = &names.lengths else {
            return Err(DeviceError::Shape { shape: vec![sequences], needed: sequences, room: 1 });
        };
        let vocab = self.manifest().dims.vocab;
        let mut binding = Binding::new(self.session())?;
        let input_ids = binding.input(&names.input_ids, &[1, width])?;
        let lengths = LengthSlots::Separate {
            seqlens_k: binding.input(seqlens_k, &[PassSequence::table_len(sequences)])?,
            total_sequence_length: binding.input(total_sequence_length, &[])?,
            logits_index: binding.input(logits_index, &[sequences])?,
        };
        let logits = binding.output(&names.logits, &[1, sequences, vocab])?;
        let (rows, table, hidden) = (sequences, Vec::new(), None);
        Ok(Pass { binding, input_ids, lengths, logits, hidden, width, rows, vocab, capacity: 0, table })
    }
}

impl Pass {
    /// Lets its runs be [captured](Binding::capture): for a pass that repeats with the same number of tokens.
    #[must_use]
    pub fn captured(mut self, model: &Model) -> Self {
        // With a mask, shapes change from run to run.
        if matches!(self.lengths, LengthSlots::Separate { .. }) {
            self.binding.capture(model.session());
        }
        self
    }

    /// Stops capturing runs.
    pub fn refuse_capture(&mut self) {
        self.binding.refuse_capture();
    }

    /// Releases the resources of captured runs.
    pub fn release_captured(&mut self) {
        self.binding.release_captured();
    }
}

impl LengthSlots {
    fn bind(
        binding: &mut Binding,
        names: &Lengths,
        rows: usize,
        max: usize,
        gives: LogitPositions,
    ) -> Result<Self, DeviceError> {
        Ok(match names {
            Lengths::Separate { seqlens_k, total_sequence_length, logits_index } => Self::Separate {
                seqlens_k: binding.input(seqlens_k, &[1])?,
                total_sequence_length: binding.input(total_sequence_length, &[])?,
                logits_index: binding.input(logits_index, &[rows])?,
            },
            Lengths::Mask { attention_mask } => {
                let attention_mask = binding.input(attention_mask, &[1, max])?;
                binding.write(attention_mask).fill(1);
                Self::Mask { attention_mask, gives_all: gives == LogitPositions::All }
            }
        })
    }
}

impl Pass {
    /// Binds `cache` in place of the one before. Other bindings stay.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the graph does not take it; the pass has no cache then.
    pub fn attach(&mut self, model: &Model, cache: &Cache) -> Result<(), DeviceError> {
        let names = &model.manifest().graph;
        self.capacity = 0;
        for (i, [key, value]) in cache.layers().iter().enumerate() {
            self.binding.in_place(&of_layer(&names.past_key, i), &of_layer(&names.present_key, i), key)?;
            self.binding.in_place(
                &of_layer(&names.past_value, i),
                &of_layer(&names.present_value, i),
                value,
            )?;
        }
        self.capacity = cache.capacity();
        Ok(())
    }

    /// Detaches the cache, and gives up its share of the cache's memory. The pass cannot run until it has another cache.
    pub fn detach(&mut self) {
        self.capacity = 0;
        self.binding.let_go();
    }

    /// Feeds `tokens`, the first at position `past`, and returns the logits of the last `rows` of them,
    /// `[rows, vocab]`, to be read or changed.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] for no tokens, or for more than the pass or the cache has room for;
    /// [`DeviceError::Runtime`] when the run fails.
    pub fn run(&mut self, model: &mut Model, tokens: &[u32], past: usize) -> Result<&mut [f32], DeviceError> {
        self.check(tokens.len(), past)?;
        self.write_tokens(tokens)?;
        self.shape(tokens.len(), past + tokens.len())?;
        let repeats = self.binding.plan_run();
        self.set_host_length(if repeats { self.capacity } else { past + tokens.len() });
        match self.binding.run(&mut model.session) {
            Err(e) if repeats && e.kind() != DeviceErrorKind::Poisoned => {
                tracing::warn!("a run cannot be captured as a CUDA graph and runs operator by operator: {e}");
                self.set_host_length(past + tokens.len());
                self.binding.run(&mut model.session)?;
            }
            ran => ran?,
        }
        let wanted = self.rows.min(tokens.len()) * self.vocab;
        let logits = self.binding.write(self.logits);
        let skipped = logits.len().saturating_sub(wanted);
        Ok(&mut logits[skipped..])
    }

    /// The hidden states of the rows of the last [run](Self::run) of `model`, `[rows, hidden]`; empty for a pass without them. To be
    /// called once after a run.
    #[must_use]
    pub fn hidden(&mut self, model: &Model) -> &[f32] {
        let Some((hidden, _)) = self.hidden else { return &[] };
        if let Some((adapters, head)) = model.head_adapters() {
            adapters.change_input(head, self.binding.write(hidden));
        }
        self.binding.read(hidden)
    }

    /// Feeds `tokens`, which are those of `sequences` one after the other, and returns the logits of each sequence's last token,
    /// `[sequences, vocab]`. Only for a [pass of sequences](Model::pass_of_sequences).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_sequences(
        &mut self,
        model: &mut Model,
        tokens: &[u32],
        sequences: &[PassSequence],
    ) -> Result<&mut [f32], DeviceError> {
        let LengthSlots::Separate { seqlens_k, logits_index, .. } = self.lengths else {
            return Err(DeviceError::Shape { shape: vec![1], needed: sequences.len(), room: 1 });
        };
        self.check(tokens.len(), 0)?;
        if sequences.is_empty() || sequences.len() > self.rows {
            let (needed, room) = (sequences.len(), self.rows);
            return Err(DeviceError::Shape { shape: vec![needed], needed, room });
        }
        self.write_tokens(tokens)?;
        self.table.clear();
        sequences.iter().for_each(|sequence| sequence.encode(&mut self.table));
        if self.binding.read(seqlens_k).len() != self.table.len() {
            self.binding.reshape(seqlens_k, &[self.table.len()])?;
        }
        self.binding.write(seqlens_k).copy_from_slice(&self.table);
        if self.binding.read(logits_index).len() != sequences.len() {
            self.binding.reshape(logits_index, &[sequences.len()])?;
        }
        let mut end = 0;
        for (slot, sequence) in self.binding.write(logits_index).iter_mut().zip(sequences) {
            end += sequence.tokens;
            *slot = i64::try_from(end).unwrap_or(i64::MAX) - 1;
        }
        self.lay_out_logits(sequences.len())?;
        self.set_host_length(sequences.iter().map(|sequence| sequence.total).max().unwrap_or_default());
        self.binding.run(&mut model.session)?;
        Ok(self.binding.write(self.logits))
    }

    fn write_tokens(&mut self, tokens: &[u32]) -> Result<(), DeviceError> {
        if self.binding.read(self.input_ids).len() != tokens.len() {
            self.binding.reshape(self.input_ids, &[1, tokens.len()])?;
        }
        for (slot, token) in self.binding.write(self.input_ids).iter_mut().zip(tokens) {
            *slot = i64::from(*token);
        }
        Ok(())
    }

    /// Sets the total length that attention reads on the host. It is an upper bound of the length on the device. In a
    /// captured run it is the capacity of the cache, because it is read once, at the capture.
    fn set_host_length(&mut self, total: usize) {
        if let LengthSlots::Separate { total_sequence_length, .. } = self.lengths {
            self.binding.write(total_sequence_length)[0] = length(total);
        }
    }

    fn check(&self, new: usize, past: usize) -> Result<(), DeviceError> {
        let room = self.width.min(self.capacity.saturating_sub(past));
        if new == 0 || new > room {
            return Err(DeviceError::Shape { shape: vec![1, new], needed: new, room });
        }
        Ok(())
    }

    /// Sets the shapes for `new` tokens of `total`. A pass of the same length as the last one changes little.
    fn shape(&mut self, new: usize, total: usize) -> Result<(), DeviceError> {
        let rows = self.rows.min(new);
        match self.lengths {
            LengthSlots::Separate { seqlens_k, logits_index, .. } => {
                self.binding.write(seqlens_k)[0] = length(total - 1);
                if self.binding.read(logits_index).len() != rows {
                    self.binding.reshape(logits_index, &[rows])?;
                }
                // A written input is copied to the device, so unchanged indices are not written.
                let positions = (new - rows..).map(|position| i64::try_from(position).unwrap_or(i64::MAX));
                if !self.binding.read(logits_index).iter().copied().eq(positions.clone().take(rows)) {
                    self.binding
                        .write(logits_index)
                        .iter_mut()
                        .zip(positions)
                        .for_each(|(slot, n)| *slot = n);
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
        if let Some((hidden, width)) = self.hidden
            && self.binding.read(hidden).len() != rows * width
        {
            self.binding.reshape(hidden, &[1, rows, width])?;
        }
        Ok(())
    }
}

/// A length as the graph's int32. The manifest limits contexts to 2^24 positions, so it always fits.
fn length(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
