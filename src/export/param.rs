//! A tensor of the model, and where its numbers lie in a checkpoint.
//!
//! The graph wants every linear layer as `[out, in]`, and query, key and value apart. Checkpoints store some of them
//! transposed (GPT-2), several in one tensor (Phi-3), or several in one tensor that take turns head by head (BLOOM). A
//! [`Param`] names the graph's tensor and its *lines* in the stored tensor, so that reading, merging and
//! quantizing need not know the difference.

use std::{fmt, ops::Range};

use super::head_layout::HeadLayout;

/// A tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Param {
    /// Its name in the checkpoint, without the prefixes that differ between checkpoints. Several may share one.
    pub name: String,
    /// The shape in the graph.
    pub shape: Shape,
    /// The tensor that stores it, if that has those of all experts.
    pub stacked: Option<Stacked>,
    /// Which lines of the stored tensor it is.
    pub lines: Lines,
    /// How lines of a head are arranged, if not as they are stored.
    pub line_heads: Option<HeadLayout>,
    /// The same of columns.
    pub column_heads: Option<HeadLayout>,
    /// Whether the tensor is stored as `[in, out]`: its lines are columns.
    pub transposed: bool,
    /// Added to every number: some norms store by how much they differ from one.
    pub offset: f32,
    /// Multiplies every number, after `offset`.
    pub factor: f32,
}

/// The place of an expert's tensor in one of all experts, whose first dimension is the expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stacked {
    /// The stored tensor's name, without the prefixes that differ between checkpoints.
    pub name: String,
    pub expert: usize,
    pub experts: usize,
}

/// The shape of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Vector(usize),
    Matrix { rows: usize, cols: usize },
}

/// Which lines of a stored tensor are meant. A line is an output: a row of a matrix, or an element of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lines {
    All,
    /// A range of lines from `start`, in a tensor of `of` lines.
    From {
        start: usize,
        of: usize,
    },
    /// `width` lines from `start` of every group of `of` lines.
    Turns {
        start: usize,
        width: usize,
        of: usize,
    },
    /// Heads of `width` lines, each `times` times one after another.
    Repeated {
        width: usize,
        times: usize,
    },
    /// None: the tensor is not stored, and every number is zero before `offset` and `factor`.
    Nowhere,
}

/// Consecutive lines or columns of the graph's tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// They are stored here.
    Stored(Range<usize>),
    /// This number of zeros.
    Zeros(usize),
}

impl Shape {
    /// A vector counts as one row.
    pub(super) const fn rows(self) -> usize {
        match self {
            Self::Vector(_) => 1,
            Self::Matrix { rows, .. } => rows,
        }
    }

    pub(super) const fn cols(self) -> usize {
        match self {
            Self::Vector(n) => n,
            Self::Matrix { cols, .. } => cols,
        }
    }

    /// Both factors are below 2^25, so this cannot overflow.
    pub(super) const fn elements(self) -> u64 {
        self.rows() as u64 * self.cols() as u64
    }

    /// Outputs: rows of a matrix, elements of a vector.
    const fn lines(self) -> usize {
        match self {
            Self::Vector(n) => n,
            Self::Matrix { rows, .. } => rows,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vector(n) => write!(f, "[{n}]"),
            Self::Matrix { rows, cols } => write!(f, "[{rows}, {cols}]"),
        }
    }
}

impl Param {
    pub(super) fn vector(name: impl Into<String>, len: usize) -> Self {
        Self::new(name.into(), Shape::Vector(len))
    }

    pub(super) fn matrix(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        Self::new(name.into(), Shape::Matrix { rows, cols })
    }

    fn new(name: String, shape: Shape) -> Self {
        Self {
            name,
            shape,
            stacked: None,
            lines: Lines::All,
            line_heads: None,
            column_heads: None,
            transposed: false,
            offset: 0.0,
            factor: 1.0,
        }
    }

    /// Keeps the first `rows` rows of a matrix.
    pub(super) fn keep_first(&mut self, kept: usize) {
        if let Shape::Matrix { rows, .. } = &mut self.shape {
            if self.lines == Lines::All {
                self.lines = Lines::From { start: 0, of: *rows };
            }
            *rows = kept.min(*rows);
        }
    }

    /// Repeats each head of `width` lines `times` times.
    pub(super) fn repeat(&mut self, width: usize, times: usize) {
        let (Shape::Vector(lines) | Shape::Matrix { rows: lines, .. }) = &mut self.shape;
        *lines *= times;
        self.lines = Lines::Repeated { width, times };
    }

    /// The module's name, as adapters call it: the tensor's without `.weight`.
    pub(super) fn module(&self) -> &str {
        module(&self.name)
    }

    /// The name of the tensor that stores it.
    pub(super) fn stored_name(&self) -> &str {
        self.stacked.as_ref().map_or(&self.name, |stacked| &stacked.name)
    }

    /// Numbers of the stored tensor before the first one of this expert.
    pub(super) fn stored_start(&self) -> usize {
        self.stacked.as_ref().map_or(0, |stacked| stacked.expert * self.stored_lines() * self.stored_cols())
    }

    /// Whether a checkpoint stores it.
    pub(super) fn is_stored(&self) -> bool {
        self.lines != Lines::Nowhere
    }

    /// Numbers of it that a checkpoint stores.
    pub(super) fn stored_elements(&self) -> u64 {
        match (self.lines, self.shape) {
            (Lines::Nowhere, _) => 0,
            (_, Shape::Vector(_)) => self.part_lines() as u64,
            (_, Shape::Matrix { .. }) => self.part_lines() as u64 * self.stored_cols() as u64,
        }
    }

    /// Lines of it that are stored, without those of other parts of the same tensor.
    fn part_lines(&self) -> usize {
        let lines = stored_count(self.shape.lines(), self.line_heads.as_ref());
        match self.lines {
            Lines::Repeated { times, .. } => lines / times,
            _ => lines,
        }
    }

    /// Lines of the tensor that is stored.
    pub(super) fn stored_lines(&self) -> usize {
        match self.lines {
            Lines::All | Lines::Repeated { .. } => self.part_lines(),
            Lines::From { of, .. } => of,
            Lines::Turns { width, of, .. } => self.part_lines() / width * of,
            Lines::Nowhere => 0,
        }
    }

    /// Numbers in a line of the tensor that is stored; one in a vector.
    pub(super) fn stored_cols(&self) -> usize {
        match self.shape {
            Shape::Vector(_) => 1,
            Shape::Matrix { cols, .. } => stored_count(cols, self.column_heads.as_ref()),
        }
    }

    /// The shape of the tensor that is stored.
    pub(super) fn stored_shape(&self) -> Vec<usize> {
        let lines = self.stored_lines();
        let mut shape: Vec<usize> = self.stacked.iter().map(|stacked| stacked.experts).collect();
        match self.shape {
            Shape::Vector(_) => shape.push(lines),
            Shape::Matrix { .. } if self.transposed => shape.extend([self.stored_cols(), lines]),
            Shape::Matrix { .. } => shape.extend([lines, self.stored_cols()]),
        }
        shape
    }

    /// Where `rows` of this lie among the stored lines, in order.
    pub(super) fn stored(&self, rows: Range<usize>) -> Vec<Run> {
        let wanted = match self.shape {
            // The one row of a vector is all of its lines.
            Shape::Vector(n) => 0..n,
            Shape::Matrix { .. } => rows,
        };
        runs(wanted, |line| {
            let line = self.line_heads.as_ref().map_or(Some(line), |heads| heads.stored(line))?;
            match self.lines {
                Lines::All => Some(line),
                Lines::From { start, .. } => Some(start + line),
                Lines::Turns { start, width, of } => Some(line / width * of + start + line % width),
                Lines::Repeated { width, times } => Some(line / (width * times) * width + line % width),
                Lines::Nowhere => None,
            }
        })
    }

    /// Reads `rows` of this, row by row, where `read` gives stored lines.
    pub(super) fn read<E>(
        &self,
        rows: Range<usize>,
        read: impl Fn(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        let mut values = Vec::new();
        for run in self.stored(rows) {
            match run {
                Run::Zeros(count) => values.resize(values.len() + count * self.stored_cols(), 0.0),
                Run::Stored(lines) => values.extend(read(lines)?),
            }
        }
        Ok(self.arrange_columns(values))
    }

    /// Arranges lines of [`stored_cols`](Self::stored_cols) numbers as the graph has them: with zeros where heads are padded.
    pub(super) fn arrange_columns(&self, values: Vec<f32>) -> Vec<f32> {
        let (Some(heads), Shape::Matrix { cols, .. }) = (&self.column_heads, self.shape) else {
            return values;
        };
        let runs = runs(0..cols, |column| heads.stored(column));
        let mut arranged = Vec::with_capacity(values.len() / self.stored_cols().max(1) * cols);
        for line in values.chunks_exact(self.stored_cols()) {
            for run in &runs {
                match run {
                    Run::Stored(columns) => arranged.extend_from_slice(&line[columns.clone()]),
                    Run::Zeros(count) => arranged.resize(arranged.len() + count, 0.0),
                }
            }
        }
        arranged
    }
}

/// How many of `count` lines or columns are stored.
fn stored_count(count: usize, heads: Option<&HeadLayout>) -> usize {
    heads.map_or(count, |heads| count / heads.width() * heads.stored_width())
}

/// Joins neighbours; `stored` gives the place of each of `wanted`.
fn runs(wanted: Range<usize>, stored: impl Fn(usize) -> Option<usize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for place in wanted.map(stored) {
        match (runs.last_mut(), place) {
            (Some(Run::Stored(range)), Some(place)) if range.end == place => range.end += 1,
            (Some(Run::Zeros(count)), None) => *count += 1,
            (_, Some(place)) => runs.push(Run::Stored(place..place + 1)),
            (_, None) => runs.push(Run::Zeros(1)),
        }
    }
    runs
}

/// The name of the module whose weight `tensor` is.
pub(super) fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: Lines) -> Param {
        Param { lines, ..Param::matrix("qkv.weight", 4, 8) }
    }

    fn stored(ranges: &[Range<usize>]) -> Vec<Run> {
        ranges.iter().cloned().map(Run::Stored).collect()
    }

    #[test]
    fn a_part_of_a_fused_tensor_starts_where_the_others_end() {
        let key = lines(Lines::From { start: 16, of: 24 });
        assert_eq!(key.stored_shape(), [24, 8]);
        assert_eq!(key.stored(1..3), [Run::Stored(17..19)]);
    }

    #[test]
    fn parts_that_take_turns_are_picked_up_head_by_head() {
        let key = lines(Lines::Turns { start: 2, width: 2, of: 6 });
        assert_eq!(key.stored_shape(), [12, 8]);
        assert_eq!(key.stored(0..4), stored(&[2..4, 8..10]));
        assert_eq!(key.stored(1..3), stored(&[3..4, 8..9]));
    }

    #[test]
    fn heads_that_are_repeated_are_stored_once() {
        let key = lines(Lines::Repeated { width: 1, times: 2 });
        assert_eq!((key.stored_shape(), key.stored_elements()), (vec![2, 8], 16));
        assert_eq!(key.stored(0..4), stored(&[0..1, 0..2, 1..2]), "the lines 0, 0, 1 and 1");
    }

    #[test]
    fn a_vector_is_cut_by_its_elements() {
        let bias = Param { lines: Lines::From { start: 4, of: 12 }, ..Param::vector("qkv.bias", 4) };
        assert_eq!(bias.stored_shape(), [12]);
        assert_eq!(bias.stored(0..1), [Run::Stored(4..8)]);
    }

    #[test]
    fn a_transposed_matrix_has_its_lines_last() {
        let param = Param { transposed: true, ..lines(Lines::From { start: 0, of: 12 }) };
        assert_eq!(param.stored_shape(), [8, 12]);
    }

    #[test]
    fn padded_heads_have_zeros_that_are_not_stored() {
        let heads = Some(HeadLayout::padded(3, 4));
        let rows = Param { line_heads: heads.clone(), ..Param::matrix("q.weight", 8, 5) };
        assert_eq!((rows.stored_shape(), rows.stored_elements()), (vec![6, 5], 30));
        let expected = [Run::Stored(0..3), Run::Zeros(1), Run::Stored(3..6), Run::Zeros(1)];
        assert_eq!(rows.stored(0..8), expected);
        let columns = Param { column_heads: heads, ..Param::matrix("o.weight", 5, 8) };
        assert_eq!(columns.stored_shape(), [5, 6]);
        let line = (1..=6).map(|n| n as f32).collect();
        assert_eq!(columns.arrange_columns(line), [1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 0.0]);
    }

    #[test]
    fn a_tensor_that_is_not_stored_is_zeros() {
        let param = Param { lines: Lines::Nowhere, ..Param::vector("norm.weight", 4) };
        assert_eq!((param.stored(0..1), param.stored_elements()), (vec![Run::Zeros(4)], 0));
    }
}
