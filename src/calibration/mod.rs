//! Runs a model over a calibration text, and adds up what its linear layers read.
//!
//! The graph is the float32 export of the same model; the inputs of its linear layers are made its outputs. For each input the
//! Gram matrix, the sum of `x·xᵀ` over all tokens, is all that quantization needs. These matrices may be larger than the weights, so
//! they are summed for as many layers at a time as fit [`Limits::memory`], and kept in a file. A run for the first layers does not
//! compute the last ones, because no output needs them.

use std::{fs::File, io, path::Path};

use ndarray::{Array2, ArrayView2, Axis, linalg::general_mat_mul, s};
use rayon::prelude::*;

use crate::{
    device::{Binding, DeviceError, Graph, Runtime, Session, SessionOptions, Slot},
    device_spec::{CacheChoice, PackedFileChoice},
    export::{Calibration, ObservedInput, ObservedModel, gram_parts},
    manifest::{CalibrationRecord, Lengths},
    units::Bytes,
};

/// A text to calibrate on when none is given: prose, conversations and code in many languages and scripts, written for eka.
pub const BUILT_IN_TEXT: &str = include_str!("text.txt");

/// Rows of a Gram matrix that a thread computes at a time.
const STRIPE: usize = 64;

/// Why a model could not be calibrated.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// ONNX Runtime failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The graph could not be decoded.
    #[error("the float32 graph cannot be decoded: {0}")]
    Graph(#[from] prost::DecodeError),
    /// The matrices could not be kept.
    #[error("the temporary file of the calibration cannot be written: {0}; is the disk full?")]
    File(#[from] io::Error),
    /// There is nothing to calibrate on.
    #[error("the calibration text has fewer than 2 tokens; use a longer text")]
    NoTokens,
}

/// What a calibration may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Compute threads.
    pub threads: usize,
    /// Memory for Gram matrices.
    pub memory: Bytes,
}

/// A calibration text in tokens.
#[derive(Clone, Debug)]
pub struct CalibrationText {
    /// Each is processed by itself.
    pub windows: Vec<Vec<u32>>,
    /// For the manifest.
    pub record: CalibrationRecord,
}

/// Calibrates the model whose float32 export is in `dir`. `file` holds the Gram matrices. `advance` is called with the share of the work
/// that is done.
///
/// # Errors
/// [`CalibrationError`] when the text is too short, ONNX Runtime fails, or the disk is full.
pub fn calibrate(
    (runtime, dir): (&Runtime, &Path),
    model: &ObservedModel,
    text: &CalibrationText,
    (file, limits): (File, Limits),
    advance: &mut dyn FnMut(f64),
) -> Result<Calibration, CalibrationError> {
    let CalibrationText { windows, record } = text;
    if windows.iter().map(Vec::len).sum::<usize>() < 2 {
        return Err(CalibrationError::NoTokens);
    }
    let mut calibration = Calibration::new(file, record.clone());
    let groups = groups(model.inputs(), limits.memory);
    for (number, group) in groups.iter().enumerate() {
        let graph = Graph::in_place_of(dir, model.graph(group)?, dir.to_path_buf(), None);
        let options = SessionOptions {
            threads: limits.threads,
            own_operators: false,
            captures: false,
            cache: CacheChoice::Float32,
            packed_file: PackedFileChoice::Never,
        };
        let mut session = Session::open(runtime, &graph, options)?;
        let mut grams: Vec<Vec<Array2<f32>>> = group
            .iter()
            .map(|input| gram_parts(input.columns).map(|(_, size)| Array2::zeros((size, size))).collect())
            .collect();
        let longest = windows.iter().map(Vec::len).max().unwrap_or_default();
        let mut pass = ObservedPass::new(&session, model, group, longest)?;
        for (done, window) in windows.iter().enumerate() {
            pass.run(&mut session, window)?;
            for (i, grams) in grams.iter_mut().enumerate() {
                add(grams, pass.input(i));
            }
            let share = (done + 1) as f64 / windows.len() as f64;
            advance((number as f64 + share) / groups.len() as f64);
        }
        for (input, mut grams) in group.iter().zip(grams) {
            grams.iter_mut().for_each(mirror);
            calibration.add(&input.modules, input.columns, &grams)?;
        }
    }
    Ok(calibration)
}

/// Consecutive inputs whose Gram matrices fit `memory`, or a single one.
fn groups(inputs: &[ObservedInput], memory: Bytes) -> Vec<Vec<ObservedInput>> {
    let mut groups: Vec<Vec<ObservedInput>> = Vec::new();
    let mut room = 0;
    for input in inputs {
        let bytes: u64 = gram_parts(input.columns).map(|(_, size)| 4 * (size * size) as u64).sum();
        match groups.last_mut() {
            Some(group) if bytes <= room => group.push(input.clone()),
            _ => {
                groups.push(vec![input.clone()]);
                room = memory.0;
            }
        }
        room = room.saturating_sub(bytes);
    }
    groups
}

/// Adds the lower triangles of the products of the columns of `rows`.
fn add(grams: &mut [Array2<f32>], rows: ArrayView2<f32>) {
    for (gram, (first, size)) in grams.iter_mut().zip(gram_parts(rows.ncols())) {
        let rows = rows.slice(s![.., first..first + size]);
        gram.axis_chunks_iter_mut(Axis(0), STRIPE).into_par_iter().enumerate().for_each(
            |(chunk, mut stripe)| {
                let (start, end) = (chunk * STRIPE, chunk * STRIPE + stripe.nrows());
                let columns = rows.slice(s![.., start..end]);
                let mut stripe = stripe.slice_mut(s![.., ..end]);
                general_mat_mul(1.0, &columns.t(), &rows.slice(s![.., ..end]), 1.0, &mut stripe);
            },
        );
    }
}

/// Copies the lower triangle to the upper one.
fn mirror(gram: &mut Array2<f32>) {
    for row in 0..gram.nrows() {
        for column in 0..row {
            gram[[column, row]] = gram[[row, column]];
        }
    }
}

/// A pass over a window of tokens whose outputs are the inputs of linear layers.
struct ObservedPass {
    binding: Binding,
    input_ids: Slot<i64>,
    seqlens_k: Slot<i32>,
    total: Slot<i32>,
    logits_index: Slot<i64>,
    outputs: Vec<(Slot<f32>, usize)>,
    tokens: usize,
}

impl ObservedPass {
    /// For windows of up to `longest` tokens.
    fn new(
        session: &Session,
        model: &ObservedModel,
        group: &[ObservedInput],
        longest: usize,
    ) -> Result<Self, DeviceError> {
        let mut binding = Binding::new(session)?;
        let names = model.names();
        let declared = session.inputs();
        let is_declared = |name: &str| declared.iter().any(|port| port.name == name);
        let dims = model.dims();
        // The graph takes a cache, which stays empty: each window is a prompt by itself.
        let cache = [1, dims.kv_heads, longest, dims.head_dim];
        for layer in 0..dims.layers {
            for name in [&names.past_key, &names.past_value] {
                let name = name.replace("{i}", &layer.to_string());
                if is_declared(&name) {
                    binding.input::<f32>(&name, &cache)?;
                }
            }
        }
        let Lengths::Separate { seqlens_k, total_sequence_length, logits_index } = &names.lengths else {
            let message = "a float32 export has its lengths as inputs".into();
            return Err(DeviceError::Runtime { what: "the calibration graph", message });
        };
        let outputs = group
            .iter()
            .map(|input| Ok((binding.output(&input.tensor, &[1, longest, input.columns])?, input.columns)));
        let outputs = outputs.collect::<Result<Vec<_>, DeviceError>>()?;
        Ok(Self {
            input_ids: binding.input(&names.input_ids, &[1, longest])?,
            seqlens_k: binding.input(seqlens_k, &[1])?,
            total: binding.input(total_sequence_length, &[])?,
            logits_index: binding.input(logits_index, &[longest])?,
            outputs,
            binding,
            tokens: 0,
        })
    }

    fn run(&mut self, session: &mut Session, window: &[u32]) -> Result<(), DeviceError> {
        let tokens = window.len();
        if self.tokens != tokens {
            self.binding.reshape(self.input_ids, &[1, tokens])?;
            self.binding.reshape(self.logits_index, &[tokens])?;
            for (slot, columns) in &self.outputs {
                self.binding.reshape(*slot, &[1, tokens, *columns])?;
            }
            self.tokens = tokens;
        }
        let length = i32::try_from(tokens).unwrap_or(i32::MAX);
        self.binding.write(self.seqlens_k).fill(length - 1);
        self.binding.write(self.total).fill(length);
        for (id, token) in self.binding.write(self.input_ids).iter_mut().zip(window) {
            *id = i64::from(*token);
        }
        for (position, index) in (0..).zip(self.binding.write(self.logits_index)) {
            *index = position;
        }
        self.binding.run(session)
    }

    /// The input number `i` of the last run, `[tokens, columns]`.
    fn input(&self, i: usize) -> ArrayView2<'_, f32> {
        let (slot, columns) = self.outputs[i];
        let values = self.binding.read(slot);
        let rows = values.len() / columns.max(1);
        ArrayView2::from_shape((rows, columns), values).unwrap_or_else(|_| ArrayView2::from(&[[0.0; 0]; 0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(tensor: &str, columns: usize) -> ObservedInput {
        ObservedInput { tensor: tensor.into(), columns, modules: Vec::new() }
    }

    #[test]
    fn inputs_are_observed_in_groups_that_fit_the_memory() {
        let inputs = [input("a", 100), input("b", 100), input("c", 300), input("d", 10)];
        let sizes: Vec<usize> = groups(&inputs, Bytes(100_000)).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1]);
    }

    #[test]
    fn the_gram_matrix_is_the_sum_of_products_of_columns() {
        let rows = Array2::from_shape_fn((7, 150), |(row, column)| ((row * 31 + column * 17) % 11) as f32);
        let mut gram = vec![Array2::zeros((150, 150))];
        add(&mut gram, rows.slice(s![..3, ..]));
        add(&mut gram, rows.slice(s![3.., ..]));
        mirror(&mut gram[0]);
        assert_eq!(gram[0], rows.t().dot(&rows));
    }
}
