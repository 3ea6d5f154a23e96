//! Fills the data file: reads, merges, quantizes and writes, a few megabytes at a time on every core.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use crate::units::Bytes;

use super::{
    Progress, Stage,
    blueprint::Param,
    plan::{FLOAT_BYTES, Fill, Plan, Stack},
    positioned::Positioned,
    quantize::Quantizer,
    rope::Table,
    weights::{Weights, WeightsError},
};

/// Weights in one piece of work: small beside any memory, large beside the cost of a read.
const PIECE: usize = 1 << 20;

/// Why the data file could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// A weight cannot be had.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file cannot be written.
    #[error("{}: {source}; is the disk full?", path.display())]
    Write {
        /// The file, in the temporary directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes the file at `path` as `plan` has it. `frequencies` are those of the rotary tables.
pub(super) fn fill(
    path: &Path,
    plan: &Plan,
    (weights, frequencies): (&Weights, &[f32]),
    progress: &dyn Progress,
) -> Result<(), FillError> {
    let failed = |source| FillError::Write { path: path.into(), source };
    let file = File::create_new(path).map_err(failed)?;
    file.set_len(plan.bytes()).map_err(failed)?;
    let writer = Writer { file: Positioned::new(file), path, weights, frequencies };
    progress.begin(Stage::Weights, Bytes(plan.bytes()));
    let pieces: Vec<Piece> = plan.fills.iter().flat_map(|fill| cut(fill, frequencies.len())).collect();
    pieces.into_par_iter().try_for_each(|piece| {
        progress.advance(writer.write(&piece)?);
        Ok::<_, FillError>(())
    })?;
    writer.file.into_file().and_then(|file| file.sync_all()).map_err(failed)
}

/// Some rows of one parameter, or of a table, and where they go.
enum Piece<'a> {
    Floats { param: &'a Param, rows: Range<usize>, offset: u64 },
    Quantized { param: &'a Param, rows: Range<usize>, to: Codes },
    Rotary { table: Table, positions: Range<usize>, offset: u64 },
}

/// Where codes and scales go.
struct Codes {
    quantizer: Quantizer,
    row_bytes: usize,
    codes_offset: u64,
    scales_offset: u64,
}

/// Some rows of one parameter of a stack.
struct Slice<'a> {
    param: &'a Param,
    rows: Range<usize>,
    /// Rows of the stack before these.
    rows_before: u64,
    /// Elements of the stack before these.
    elements_before: u64,
}

fn cut(fill: &Fill, pairs: usize) -> Vec<Piece<'_>> {
    match fill {
        Fill::Floats { stack, at } => slices(stack)
            .map(|Slice { param, rows, elements_before, .. }| {
                let offset = at.offset + elements_before * FLOAT_BYTES;
                Piece::Floats { param, rows, offset }
            })
            .collect(),
        Fill::Quantized { stack, quantizer, row_bytes, codes, scales } => {
            let scale_bytes = quantizer.blocks(stack.cols()) as u64 * FLOAT_BYTES;
            let place = |Slice { param, rows, rows_before, .. }| {
                let codes_offset = codes.offset + rows_before * *row_bytes as u64;
                let scales_offset = scales.offset + rows_before * scale_bytes;
                let to = Codes { quantizer: *quantizer, row_bytes: *row_bytes, codes_offset, scales_offset };
                Piece::Quantized { param, rows, to }
            };
            slices(stack).map(place).collect()
        }
        Fill::Rotary { table, positions, at } => {
            let place = |positions: Range<usize>| {
                let offset = at.offset + positions.start as u64 * pairs as u64 * FLOAT_BYTES;
                Piece::Rotary { table: *table, positions, offset }
            };
            ranges(*positions, pairs).map(place).collect()
        }
    }
}

fn slices(stack: &Stack) -> impl Iterator<Item = Slice<'_>> {
    let (mut rows_done, mut elements_done) = (0, 0);
    stack.0.iter().flat_map(move |param| {
        let cols = param.shape.cols();
        let (rows_before, elements_before) = (rows_done, elements_done);
        rows_done += param.shape.rows() as u64;
        elements_done += param.shape.elements();
        ranges(param.shape.rows(), cols).map(move |rows| Slice {
            param,
            rows_before: rows_before + rows.start as u64,
            elements_before: elements_before + rows.start as u64 * cols as u64,
            rows,
        })
    })
}

/// Cuts `rows` rows of `cols` columns into pieces.
fn ranges(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (PIECE / cols).max(1);
    (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
}

struct Writer<'a> {
    file: Positioned,
    path: &'a Path,
    weights: &'a Weights,
    frequencies: &'a [f32],
}

impl Writer<'_> {
    /// Gives the bytes written.
    fn write(&self, piece: &Piece) -> Result<Bytes, FillError> {
        match piece {
            Piece::Floats { param, rows, offset } => {
                self.write_floats(&self.weights.rows(param, rows.clone())?, *offset)
            }
            Piece::Rotary { table, positions, offset } => {
                self.write_floats(&table.rows(self.frequencies, positions.clone()), *offset)
            }
            Piece::Quantized { param, rows, to } => {
                let weights = self.weights.rows(param, rows.clone())?;
                self.write_quantized(&weights, param.shape.cols(), to)
            }
        }
    }

    fn write_quantized(&self, weights: &[f32], cols: usize, to: &Codes) -> Result<Bytes, FillError> {
        let rows = weights.len() / cols;
        let blocks = to.quantizer.blocks(cols);
        let mut codes = vec![0; rows * to.row_bytes];
        let mut scales = vec![0.0; rows * blocks];
        let places = codes.chunks_exact_mut(to.row_bytes).zip(scales.chunks_exact_mut(blocks));
        for (row, (codes, scales)) in weights.chunks_exact(cols).zip(places) {
            to.quantizer.quantize_row(row, codes, scales);
        }
        Ok(self.write_bytes(&codes, to.codes_offset)? + self.write_floats(&scales, to.scales_offset)?)
    }

    fn write_floats(&self, values: &[f32], offset: u64) -> Result<Bytes, FillError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.write_bytes(&bytes, offset)
    }

    fn write_bytes(&self, bytes: &[u8], offset: u64) -> Result<Bytes, FillError> {
        let failed = |source| FillError::Write { path: self.path.into(), source };
        self.file.write_all_at(bytes, offset).map_err(failed)?;
        Ok(Bytes::from(bytes.len()))
    }
}
