//! Fills the data file: reads, merges, quantizes and writes, a few megabytes at a time on every core.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use crc32fast::Hasher;
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::{manifest::Dtype, units::Bytes};

use super::{
    Calibration, Progress, Stage,
    data_layout::{DataLayout, DataRange, QuantizedAt, Stack, TensorJob},
    dtype_encoding,
    known_blocks::KnownBlocks,
    param::{self, Param},
    positioned_io::PositionedFile,
    quantize::{Feedback, PackedRow, Quantizer},
    rope::{Angles, Table},
    weights::{Weights, WeightsError},
    written_pieces::WrittenPieces,
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
    /// The scale of a block does not fit the type that it is stored in.
    #[error(
        "{module}: weights are too large for quantization, whose scales are stored in 16 bits; store this module without it: \
         --keep {module}=none"
    )]
    TooGreatToQuantize {
        /// The module.
        module: String,
    },
    /// The temporary file of the calibration cannot be read.
    #[error("the temporary file of the calibration cannot be read: {source}; export again")]
    Calibration {
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{}: {source}; is the disk full?", path.display())]
    Write {
        /// The file, in the temporary directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What to fill a data file with.
pub(super) struct Fill<'a> {
    pub layout: &'a DataLayout,
    pub weights: &'a Weights,
    /// Those of the rotary positions, in order.
    pub angles: &'a [Angles],
    pub calibration: Option<&'a Calibration>,
    pub written: &'a WrittenPieces,
}

/// The number of pieces that the weights are written in.
pub(super) fn pieces(layout: &DataLayout) -> usize {
    layout.fills.iter().map(|job| cut(job).len()).sum()
}

/// Fills the file at `path`, which has its length already. Gives the bytes that an earlier run had written.
pub(super) fn write_weights(
    path: &Path,
    fill: Fill<'_>,
    progress: &dyn Progress,
) -> Result<Bytes, WriteWeightsError> {
    let Fill { layout, weights, angles, calibration, written } = fill;
    let failed = |source| WriteWeightsError::Write { path: path.into(), source };
    let file = File::options().read(true).write(true).open(path).map_err(failed)?;
    let writer = Writer { file: PositionedFile::new(file), path, weights, angles, written };
    progress.begin(Stage::Weights, Bytes(layout.bytes()));
    let (mut continued, mut number) = (Bytes(0), 0);
    let mut all: Vec<Numbered> = Vec::new();
    for job in &layout.fills {
        let pieces: Vec<Numbered> = (number..).zip(cut(job)).collect();
        number += pieces.len();
        let (left, done) = writer.unwritten(pieces);
        progress.advance(done);
        continued = Bytes(continued.0 + done.0);
        if left.is_empty() {
            continue;
        }
        match calibration.map(|calibration| feedback(job, calibration)).transpose()?.flatten() {
            // One after the other: the factor of one input takes up to four times as much memory as its layer's weights.
            Some(feedback) => writer.write_all(left, Some(&feedback), progress)?,
            None => all.extend(left),
        }
    }
    writer.write_all(all, None, progress)?;
    writer.file.into_file().and_then(|file| file.sync_all()).map_err(failed)?;
    Ok(continued)
}

/// The feedback between the columns of a matrix with few bits, if the model has been calibrated.
fn feedback(job: &TensorJob, calibration: &Calibration) -> Result<Option<Feedback>, WriteWeightsError> {
    match job {
        TensorJob::Quantized { stack, quantizer, .. } if quantizer.takes_feedback() => {
            let module = stack.0.first().map(Param::module).unwrap_or_default();
            calibration.feedback(module).map_err(|source| WriteWeightsError::Calibration { source })
        }
        _ => Ok(None),
    }
}

/// Some rows of a parameter or a table, with their place in the file.
enum Piece<'a> {
    Floats { param: &'a Param, rows: Range<usize>, dtype: Dtype, offset: u64 },
    Quantized { param: &'a Param, rows: Range<usize>, to: Codes },
    Rotary { rotary: usize, table: Table, positions: Range<usize>, pairs: usize, dtype: Dtype, offset: u64 },
}

/// A piece with its number in the order of the layout.
type Numbered<'a> = (usize, Piece<'a>);

impl Piece<'_> {
    /// Its bytes, in the order in which they are written. Some may be empty.
    fn ranges(&self) -> [DataRange; 4] {
        let range = |offset, rows: &Range<usize>, row_bytes: u64| DataRange {
            offset,
            bytes: rows.len() as u64 * row_bytes,
        };
        let one = |range| [range, EMPTY, EMPTY, EMPTY];
        match *self {
            Self::Floats { param, ref rows, dtype, offset } => {
                one(range(offset, rows, param.shape.cols() as u64 * dtype.bytes()))
            }
            Self::Rotary { ref positions, pairs, dtype, offset, .. } => {
                one(range(offset, positions, pairs as u64 * dtype.bytes()))
            }
            Self::Quantized { param, ref rows, ref to } => {
                let cols = param.shape.cols();
                let blocks = to.quantizer.blocks(cols) as u64;
                let offset_bytes = if to.quantizer.has_offsets { blocks * to.dtype.bytes() } else { 0 };
                [
                    range(to.offsets_offset, rows, offset_bytes),
                    range(to.scales_offset, rows, blocks * to.quantizer.scale_type.stored().bytes()),
                    range(to.zero_points_offset, rows, to.quantizer.zero_point_row_bytes(cols) as u64),
                    range(to.codes_offset, rows, to.row_bytes as u64),
                ]
            }
        }
    }
}

const EMPTY: DataRange = DataRange { offset: 0, bytes: 0 };

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
            let blocks = quantizer.blocks(stack.cols()) as u64;
            let scale_bytes = blocks * quantizer.scale_type.stored().bytes();
            let offset_bytes = blocks * dtype.bytes();
            let zero_point_bytes = quantizer.zero_point_row_bytes(stack.cols()) as u64;
            let place = |Slice { param, rows, rows_before, .. }| {
                let to = Codes {
                    quantizer,
                    row_bytes,
                    codes_offset: codes.offset + rows_before * row_bytes as u64,
                    scales_offset: scales.offset + rows_before * scale_bytes,
                    zero_points_offset: zero_points.offset + rows_before * zero_point_bytes,
                    offsets_offset: offsets.offset + rows_before * offset_bytes,
                    dtype,
                };
                Piece::Quantized { param, rows, to }
            };
            slices(stack).map(place).collect()
        }
        TensorJob::Rotary { rotary, table, positions, pairs, dtype, at } => {
            let place = |positions: Range<usize>| {
                let offset = at.offset + (positions.start * pairs) as u64 * dtype.bytes();
                Piece::Rotary { rotary, table, positions, pairs, dtype, offset }
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

/// `count` rows of `size` elements each, which may be none.
fn rows_mut<T>(values: &mut [T], size: usize, count: usize) -> impl Iterator<Item = &mut [T]> {
    let mut rows = values.chunks_mut(size.max(1));
    (0..count).map(move |_| rows.next().unwrap_or_default())
}

struct Writer<'a> {
    file: PositionedFile,
    path: &'a Path,
    weights: &'a Weights,
    angles: &'a [Angles],
    written: &'a WrittenPieces,
}

impl Writer<'_> {
    /// The pieces that no earlier run has written, and the bytes of the others.
    fn unwritten<'a>(&self, pieces: Vec<Numbered<'a>>) -> (Vec<Numbered<'a>>, Bytes) {
        let (done, left): (Vec<_>, Vec<_>) =
            pieces.into_par_iter().partition(|(number, piece)| self.is_written(*number, piece));
        let bytes = done.iter().flat_map(|(_, piece)| piece.ranges()).map(|range| range.bytes).sum();
        (left, Bytes(bytes))
    }

    /// Whether an earlier run has written this piece, and its bytes have not changed.
    fn is_written(&self, number: usize, piece: &Piece) -> bool {
        let Some(checksum) = self.written.checksum(number) else { return false };
        let mut hasher = Hasher::new();
        let read = piece.ranges().into_iter().try_for_each(|range| {
            let mut bytes = vec![0; usize::try_from(range.bytes).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut bytes, range.offset)?;
            hasher.update(&bytes);
            Ok::<_, io::Error>(())
        });
        read.is_ok() && hasher.finalize() == checksum
    }

    /// Writes `pieces` on all threads.
    fn write_all(
        &self,
        pieces: Vec<Numbered>,
        feedback: Option<&Feedback>,
        progress: &dyn Progress,
    ) -> Result<(), WriteWeightsError> {
        pieces.into_par_iter().try_for_each(|(number, piece)| {
            if progress.is_cancelled() {
                return Err(WriteWeightsError::Cancelled);
            }
            let mut hasher = Hasher::new();
            progress.advance(self.write(&piece, feedback, &mut hasher)?);
            let noted = self.written.note(number, hasher.finalize());
            noted.map_err(|source| WriteWeightsError::Write { path: self.path.into(), source })
        })
    }

    /// Gives the bytes written, and adds them to `sum`.
    fn write(
        &self,
        piece: &Piece,
        feedback: Option<&Feedback>,
        sum: &mut Hasher,
    ) -> Result<Bytes, WriteWeightsError> {
        match *piece {
            Piece::Floats { param, ref rows, dtype, offset } => {
                let weights = self.weights.rows(param, rows.clone())?;
                self.write_floats(&weights, dtype, (offset, &param.name), sum)
            }
            Piece::Rotary { rotary, table, ref positions, dtype, offset, .. } => {
                let rows = table.rows(&self.angles[rotary], positions.clone());
                self.write_floats(&rows, dtype, (offset, "rotary"), sum)
            }
            Piece::Quantized { param, ref rows, ref to } => {
                let weights = self.weights.rows(param, rows.clone())?;
                let known = self.weights.known_blocks(param, rows.clone(), to.quantizer)?;
                self.write_quantized((&weights, known.as_ref(), feedback), param, to, sum)
            }
        }
    }

    fn write_quantized(
        &self,
        (weights, known, feedback): (&[f32], Option<&KnownBlocks>, Option<&Feedback>),
        param: &Param,
        to: &Codes,
        sum: &mut Hasher,
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
        let parts = rows_mut(&mut codes, to.row_bytes, rows).zip(rows_mut(&mut scales, blocks, rows)).zip(
            rows_mut(&mut zero_points, zero_point_bytes, rows).zip(rows_mut(&mut offsets, row_offsets, rows)),
        );
        let packed: Vec<PackedRow> = parts
            .map(|((codes, scales), (zero_points, offsets))| PackedRow {
                codes,
                scales,
                zero_points,
                offsets,
            })
            .collect();
        match (feedback, known) {
            (Some(feedback), None) => {
                let rows = ArrayView2::from_shape((rows, cols), weights).map_err(WeightsError::Misfit)?;
                to.quantizer.quantize_rows(rows, feedback, packed);
            }
            _ => {
                for (index, (row, packed)) in weights.chunks_exact(cols).zip(packed).enumerate() {
                    let known = known.map(|known| known.row(index, blocks));
                    to.quantizer.quantize_row(row, known.as_ref(), packed);
                }
            }
        }
        let offsets = self.write_floats(&offsets, to.dtype, (to.offsets_offset, &param.name), sum)?;
        let scales = self.write_scales(scales, to, &param.name, sum)?;
        let zero_points = self.write_bytes(&zero_points, to.zero_points_offset, sum)?;
        Ok(self.write_bytes(&codes, to.codes_offset, sum)? + scales + zero_points + offsets)
    }

    fn write_scales(
        &self,
        mut scales: Vec<f32>,
        to: &Codes,
        tensor: &str,
        sum: &mut Hasher,
    ) -> Result<Bytes, WriteWeightsError> {
        let scale_type = to.quantizer.scale_type;
        if scales.iter().any(|scale| !scale.is_finite()) {
            let module = param::module(tensor).into();
            return Err(WriteWeightsError::TooGreatToQuantize { module });
        }
        scales.iter_mut().for_each(|scale| *scale *= scale_type.factor());
        self.write_floats(&scales, scale_type.stored(), (to.scales_offset, tensor), sum)
    }

    fn write_floats(
        &self,
        values: &[f32],
        dtype: Dtype,
        (offset, tensor): (u64, &str),
        sum: &mut Hasher,
    ) -> Result<Bytes, WriteWeightsError> {
        let greatest = dtype_encoding::greatest(dtype);
        if dtype != Dtype::Float32
            && let Some(&value) = values.iter().find(|value| value.abs() > greatest)
        {
            return Err(WriteWeightsError::TooGreat { tensor: tensor.into(), value, dtype });
        }
        self.write_bytes(&dtype_encoding::encode(values, dtype), offset, sum)
    }

    fn write_bytes(&self, bytes: &[u8], offset: u64, sum: &mut Hasher) -> Result<Bytes, WriteWeightsError> {
        sum.update(bytes);
        let failed = |source| WriteWeightsError::Write { path: self.path.into(), source };
        self.file.write_all_at(bytes, offset).map_err(failed)?;
        Ok(Bytes::from(bytes.len()))
    }
}
