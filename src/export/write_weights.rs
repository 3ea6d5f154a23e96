//! Fills the data file: reads, merges, quantizes and writes, a few megabytes at a time on every core.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use crate::{manifest::Dtype, units::Bytes};

use super::{
    Progress, Stage,
    data_layout::{DataLayout, QuantizedAt, Stack, TensorJob},
    dtype_encoding,
    known_blocks::KnownBlocks,
    param::Param,
    positioned_io::PositionedFile,
    quantize::{PackedRow, Quantizer},
    rope::{Angles, Table},
    weights::{Weights, WeightsError},
};

/// Weights in one piece of work: small beside any memory, large beside the cost of a read.
const PIECE: usize = 1 << 20;

/// Why the data file could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum WriteWeightsError {
    /// The progress asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A weight cannot be read or merged.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A weight is too large for the type that it is stored in.
    #[error(
        "{tensor}: {value} does not fit {dtype:?}, whose largest value is {}; export with --dtype bfloat16 or float32",
        dtype_encoding::greatest(*dtype)
    )]
    TooGreat {
        /// The weight, without prefixes.
        tensor: String,
        /// The value.
        value: f32,
        /// The type.
        dtype: Dtype,
    },
    /// The file cannot be written.
    #[error("{}: {source}; is the disk full?", path.display())]
    Write {
        /// The file, in the temporary directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Fills the file at `path`, which has its length already, by `layout`. `angles` are those of the rotary positions, in
/// order.
pub(super) fn write_weights(
    path: &Path,
    layout: &DataLayout,
    (weights, angles): (&Weights, &[Angles]),
    progress: &dyn Progress,
) -> Result<(), WriteWeightsError> {
    let failed = |source| WriteWeightsError::Write { path: path.into(), source };
    let file = File::options().write(true).open(path).map_err(failed)?;
    let writer = Writer { file: PositionedFile::new(file), path, weights, angles };
    progress.begin(Stage::Weights, Bytes(layout.bytes()));
    let pieces: Vec<Piece> = layout.fills.iter().flat_map(cut).collect();
    pieces.into_par_iter().try_for_each(|piece| {
        if progress.is_cancelled() {
            return Err(WriteWeightsError::Cancelled);
        }
        progress.advance(writer.write(&piece)?);
        Ok::<_, WriteWeightsError>(())
    })?;
    writer.file.into_file().and_then(|file| file.sync_all()).map_err(failed)
}

/// Some rows of a parameter or a table, with their place in the file.
enum Piece<'a> {
    Floats { param: &'a Param, rows: Range<usize>, dtype: Dtype, offset: u64 },
    Quantized { param: &'a Param, rows: Range<usize>, to: Codes },
    Rotary { rotary: usize, table: Table, positions: Range<usize>, dtype: Dtype, offset: u64 },
}

/// The places of codes, scales and zero points.
struct Codes {
    quantizer: Quantizer,
    row_bytes: usize,
    codes_offset: u64,
    scales_offset: u64,
    zero_points_offset: u64,
    offsets_offset: u64,
    dtype: Dtype,
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

fn cut(fill: &TensorJob) -> Vec<Piece<'_>> {
    match *fill {
        TensorJob::Floats { ref stack, dtype, at } => slices(stack)
            .map(|Slice { param, rows, elements_before, .. }| {
                let offset = at.offset + elements_before * dtype.bytes();
                Piece::Floats { param, rows, dtype, offset }
            })
            .collect(),
        TensorJob::Quantized { ref stack, quantizer, row_bytes, dtype, at } => {
            let QuantizedAt { codes, scales, zero_points, offsets } = at;
            let scale_bytes = quantizer.blocks(stack.cols()) as u64 * dtype.bytes();
            let zero_point_bytes = quantizer.zero_point_row_bytes(stack.cols()) as u64;
            let place = |Slice { param, rows, rows_before, .. }| {
                let to = Codes {
                    quantizer,
                    row_bytes,
                    codes_offset: codes.offset + rows_before * row_bytes as u64,
                    scales_offset: scales.offset + rows_before * scale_bytes,
                    zero_points_offset: zero_points.offset + rows_before * zero_point_bytes,
                    offsets_offset: offsets.offset + rows_before * scale_bytes,
                    dtype,
                };
                Piece::Quantized { param, rows, to }
            };
            slices(stack).map(place).collect()
        }
        TensorJob::Rotary { rotary, table, positions, pairs, dtype, at } => {
            let place = |positions: Range<usize>| {
                let offset = at.offset + (positions.start * pairs) as u64 * dtype.bytes();
                Piece::Rotary { rotary, table, positions, dtype, offset }
            };
            ranges(positions, pairs).map(place).collect()
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
    file: PositionedFile,
    path: &'a Path,
    weights: &'a Weights,
    angles: &'a [Angles],
}

impl Writer<'_> {
    /// Gives the bytes written.
    fn write(&self, piece: &Piece) -> Result<Bytes, WriteWeightsError> {
        match *piece {
            Piece::Floats { param, ref rows, dtype, offset } => {
                let weights = self.weights.rows(param, rows.clone())?;
                self.write_floats(&weights, dtype, offset, &param.name)
            }
            Piece::Rotary { rotary, table, ref positions, dtype, offset } => {
                let rows = table.rows(&self.angles[rotary], positions.clone());
                self.write_floats(&rows, dtype, offset, "rotary")
            }
            Piece::Quantized { param, ref rows, ref to } => {
                let weights = self.weights.rows(param, rows.clone())?;
                let known = self.weights.known_blocks(param, rows.clone(), to.quantizer)?;
                self.write_quantized((&weights, known.as_ref()), param, to)
            }
        }
    }

    fn write_quantized(
        &self,
        (weights, known): (&[f32], Option<&KnownBlocks>),
        param: &Param,
        to: &Codes,
    ) -> Result<Bytes, WriteWeightsError> {
        let cols = param.shape.cols();
        let rows = weights.len() / cols;
        let blocks = to.quantizer.blocks(cols);
        let zero_point_bytes = to.quantizer.zero_point_row_bytes(cols);
        let mut codes = vec![0; rows * to.row_bytes];
        let mut scales = vec![0.0; rows * blocks];
        let mut zero_points = vec![0; rows * zero_point_bytes];
        let row_offsets = if to.quantizer.has_offsets { blocks } else { 0 };
        let mut offsets = vec![0.0; rows * row_offsets];
        for (index, row) in weights.chunks_exact(cols).enumerate() {
            let packed = PackedRow {
                codes: &mut codes[index * to.row_bytes..][..to.row_bytes],
                scales: &mut scales[index * blocks..][..blocks],
                zero_points: &mut zero_points[index * zero_point_bytes..][..zero_point_bytes],
                offsets: &mut offsets[index * row_offsets..][..row_offsets],
            };
            let known = known.map(|known| known.row(index, blocks));
            to.quantizer.quantize_row(row, known.as_ref(), packed);
        }
        let offsets = self.write_floats(&offsets, to.dtype, to.offsets_offset, &param.name)?;
        let scales = self.write_floats(&scales, to.dtype, to.scales_offset, &param.name)?;
        let zero_points = self.write_bytes(&zero_points, to.zero_points_offset)?;
        Ok(self.write_bytes(&codes, to.codes_offset)? + scales + zero_points + offsets)
    }

    fn write_floats(
        &self,
        values: &[f32],
        dtype: Dtype,
        offset: u64,
        tensor: &str,
    ) -> Result<Bytes, WriteWeightsError> {
        let greatest = dtype_encoding::greatest(dtype);
        if dtype != Dtype::Float32
            && let Some(&value) = values.iter().find(|value| value.abs() > greatest)
        {
            return Err(WriteWeightsError::TooGreat { tensor: tensor.into(), value, dtype });
        }
        self.write_bytes(&dtype_encoding::encode(values, dtype), offset)
    }

    fn write_bytes(&self, bytes: &[u8], offset: u64) -> Result<Bytes, WriteWeightsError> {
        let failed = |source| WriteWeightsError::Write { path: self.path.into(), source };
        self.file.write_all_at(bytes, offset).map_err(failed)?;
        Ok(Bytes::from(bytes.len()))
    }
}
