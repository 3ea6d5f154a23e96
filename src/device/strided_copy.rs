//! Copies rows of bytes from one stride to another: how a tensor grows along its next-to-last dimension.
//!
//! ```text
//! [1, 2, 3, d] ──► [1, 2, 5, d]     aaab bb.. ──► aaa..bbb..
//! ```

use std::ptr;

/// A copy of rows between two buffers with different strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StridedCopy {
    /// Number of rows.
    pub(super) count: usize,
    /// Bytes per row that are copied; at most the smaller stride.
    pub(super) bytes: usize,
    /// Stride of the source, in bytes.
    pub(super) from: usize,
    /// Stride of the destination, in bytes.
    pub(super) to: usize,
}

impl StridedCopy {
    /// Bytes from the start of the first row to the end of the last one, in source and destination; `None` if rows overlap or the
    /// number overflows.
    pub(super) fn spans(self) -> Option<(usize, usize)> {
        let Self { count, bytes, from, to } = self;
        let Some(before) = count.checked_sub(1) else { return Some((0, 0)) };
        let span = |stride: usize| before.checked_mul(stride)?.checked_add(bytes);
        (bytes <= from.min(to)).then_some((span(from)?, span(to)?))
    }

    /// Copies the rows in host memory.
    ///
    /// # Safety
    /// [`spans`](Self::spans) must not be `None`; `from` and `to` must be valid for reads and writes of as many bytes.
    pub(super) unsafe fn copy(self, from: *const u8, to: *mut u8) {
        for row in 0..self.count {
            // SAFETY: the row starts within the span, which the caller promises is valid.
            let from = unsafe { from.add(row * self.from) };
            // SAFETY: as above.
            let to = unsafe { to.add(row * self.to) };
            // SAFETY: so does it end; `copy` allows the two to be the same memory.
            unsafe { ptr::copy(from, to, self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_move_to_their_new_stride_and_the_gaps_are_unchanged() {
        let rows = StridedCopy { count: 3, bytes: 2, from: 3, to: 5 };
        assert_eq!(rows.spans(), Some((8, 12)));
        let (from, mut to) = (*b"ab.cd.ef", *b"------------");
        // SAFETY: both are as long as the spans.
        unsafe { rows.copy(from.as_ptr(), to.as_mut_ptr()) };
        assert_eq!(&to, b"ab---cd---ef");
    }

    #[test]
    fn rows_that_overlap_or_cannot_be_counted_have_no_spans() {
        assert_eq!(StridedCopy { count: 0, bytes: 9, from: 1, to: 1 }.spans(), Some((0, 0)));
        assert_eq!(StridedCopy { count: 2, bytes: 4, from: 3, to: 8 }.spans(), None);
        assert_eq!(StridedCopy { count: 2, bytes: 4, from: 8, to: 3 }.spans(), None);
        assert_eq!(StridedCopy { count: 3, bytes: 1, from: usize::MAX, to: 1 }.spans(), None);
    }
}
