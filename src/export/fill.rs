//! Fills the data file: reads, merges, quantizes and writes, a few megabytes at a time on every core.

use std::{fs::File, io, ops::Range, path::Path, path::PathBuf};

use rayon::prelude::*;

use crate::units::Bytes;

use super::{
    Progress, Stage,
    blueprint::Param,
    plan::{FLOAT_BYTES, Fill, Plan, Region},
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

fn cut(fill: &Fill, pairs: usize) -> Vec<Piece<'_>> {
    match fill {
        Fill::Floats { stack, at } => {
            let mut start = at.offset;
            let mut pieces = Vec::new();
            for param in &stack.0 {
                let row_bytes = param.shape.cols() as u64 * FLOAT_BYTES;
                pieces.extend(ranges(param.shape.rows(), param.shape.cols()).map(|rows| {
                    let offset = start + rows.start as u64 * row_bytes;
                    Piece::Floats { param, rows, offset }
                }));
                start += param.shape.rows() as u64 * row_bytes;
            }
            pieces
        }
        Fill::Quantized { stack, quantizer, row_bytes, codes, scales } => {
            let scale_bytes = quantizer.blocks(stack.cols()) as u64 * FLOAT_BYTES;
            let mut first_row = 0;
            let mut pieces = Vec::new();
            for param in &stack.0 {
                pieces.extend(ranges(param.shape.rows(), param.shape.cols()).map(|rows| {
                    let row = (first_row + rows.start) as u64;
                    let codes_offset = codes.offset + row * *row_bytes as u64;
                    let scales_offset = scales.offset + row * scale_bytes;
                    let to =
                        Codes { quantizer: *quantizer, row_bytes: *row_bytes, codes_offset, scales_offset };
                    Piece::Quantized { param, rows, to }
                }));
                first_row += param.shape.rows();
            }
            pieces
        }
        Fill::Rotary { table, at: Region { offset, bytes } } => {
            let row_bytes = pairs as u64 * FLOAT_BYTES;
            let positions = usize::try_from(bytes / row_bytes).unwrap_or(usize::MAX);
            let piece = |positions: Range<usize>| {
                let offset = offset + positions.start as u64 * row_bytes;
                Piece::Rotary { table: *table, positions, offset }
            };
            ranges(positions, pairs).map(piece).collect()
        }
    }
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
