//! A tensor of the model, and where its numbers lie in a checkpoint.
//!
//! The graph wants every linear layer as `[out, in]`, and query, key and value apart. Checkpoints store some of them
//! transposed (GPT-2), several in one tensor (Phi-3), or several in one tensor that take turns head by head (BLOOM). A
//! [`Param`] names the graph's tensor and its *lines* in the stored tensor, so that reading, merging and
//! quantizing need not know the difference.

use std::{fmt, iter, ops::Range};

/// A tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Param {
    /// Its name in the checkpoint, without the prefixes that differ between checkpoints. Several may share one.
    pub name: String,
    /// As the graph wants it.
    pub shape: Shape,
    /// Which lines of the stored tensor it is.
    pub lines: Lines,
    /// Whether the tensor is stored as `[in, out]`: its lines are columns.
    pub transposed: bool,
    /// Added to every number: some norms store by how much they differ from one.
    pub offset: f32,
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
    /// As many as are wanted, from `start`, of a tensor that has `of`.
    From {
        start: usize,
        of: usize,
    },
    /// The `part`-th of `parts` that take turns, `width` lines at a time.
    Turns {
        part: usize,
        parts: usize,
        width: usize,
    },
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
        Self { name, shape, lines: Lines::All, transposed: false, offset: 0.0 }
    }

    /// Keeps the first `rows` rows of a matrix that is stored whole.
    pub(super) fn keep_first(&mut self, kept: usize) {
        if let Shape::Matrix { rows, .. } = &mut self.shape {
            self.lines = Lines::From { start: 0, of: *rows };
            *rows = kept.min(*rows);
        }
    }

    /// The module's name, as adapters call it: the tensor's without `.weight`.
    pub(super) fn module(&self) -> &str {
        module(&self.name)
    }

    /// Lines of the tensor that is stored.
    pub(super) const fn stored_lines(&self) -> usize {
        match self.lines {
            Lines::All => self.shape.lines(),
            Lines::From { of, .. } => of,
            Lines::Turns { parts, .. } => self.shape.lines() * parts,
        }
    }

    /// The shape of the tensor that is stored.
    pub(super) fn stored_shape(&self) -> Vec<usize> {
        let lines = self.stored_lines();
        match self.shape {
            Shape::Vector(_) => vec![lines],
            Shape::Matrix { cols, .. } if self.transposed => vec![cols, lines],
            Shape::Matrix { cols, .. } => vec![lines, cols],
        }
    }

    /// Where `rows` of this lie among the stored lines: ranges that follow each other.
    pub(super) fn stored(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let wanted = match self.shape {
            // The one row of a vector is all of its lines.
            Shape::Vector(n) => 0..n,
            Shape::Matrix { .. } => rows,
        };
        match self.lines {
            Lines::All => iter::once(wanted).collect(),
            Lines::From { start, .. } => iter::once(start + wanted.start..start + wanted.end).collect(),
            Lines::Turns { part, parts, width } => turns(wanted, part, parts, width),
        }
    }
}

/// The name of the module whose weight `tensor` is.
pub(super) fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

fn turns(wanted: Range<usize>, part: usize, parts: usize, width: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut line = wanted.start;
    while line < wanted.end {
        let (turn, within) = (line / width, line % width);
        let taken = (width - within).min(wanted.end - line);
        let start = (turn * parts + part) * width + within;
        ranges.push(start..start + taken);
        line += taken;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: Lines) -> Param {
        Param { lines, ..Param::matrix("qkv.weight", 4, 8) }
    }

    #[test]
    fn a_part_of_a_fused_tensor_starts_where_the_others_end() {
        let key = lines(Lines::From { start: 16, of: 24 });
        assert_eq!(key.stored_shape(), [24, 8]);
        assert!(key.stored(1..3).into_iter().eq(iter::once(17..19)));
    }

    #[test]
    fn parts_that_take_turns_are_picked_up_head_by_head() {
        let key = lines(Lines::Turns { part: 1, parts: 3, width: 2 });
        assert_eq!(key.stored_shape(), [12, 8]);
        assert_eq!(key.stored(0..4), [2..4, 8..10]);
        assert_eq!(key.stored(1..3), [3..4, 8..9]);
    }

    #[test]
    fn a_vector_is_cut_by_its_elements() {
        let bias = Param { lines: Lines::From { start: 4, of: 12 }, ..Param::vector("qkv.bias", 4) };
        assert_eq!(bias.stored_shape(), [12]);
        assert!(bias.stored(0..1).into_iter().eq(iter::once(4..8)));
    }

    #[test]
    fn a_transposed_matrix_has_its_lines_last() {
        let param = Param { transposed: true, ..lines(Lines::From { start: 0, of: 12 }) };
        assert_eq!(param.stored_shape(), [8, 12]);
    }
}
