//! Rows of bytes that move from one stride to another: how a tensor grows along its next-to-last dimension.
//!
//! ```text
//! [1, 2, 3, d] ──► [1, 2, 5, d]     aaab bb.. ──► aaa..bbb..
//! ```

use std::ptr;

/// Rows, where they lie and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StridedCopy {
    /// How many.
    pub(super) count: usize,
    /// Of each, the bytes that move: no more than either stride.
    pub(super) bytes: usize,
    /// Bytes from one row to the next where they lie.
    pub(super) from: usize,
    /// Bytes from one row to the next where they go.
    pub(super) to: usize,
}

impl StridedCopy {
    /// Bytes from the first row's start to the last row's end where they lie, and where they go; `None` when they
    /// overlap or cannot be counted.
    pub(super) fn spans(self) -> Option<(usize, usize)> {
        let Self { count, bytes, from, to } = self;
        let Some(before) = count.checked_sub(1) else { return Some((0, 0)) };
        let span = |stride: usize| before.checked_mul(stride)?.checked_add(bytes);
        (bytes <= from.min(to)).then_some((span(from)?, span(to)?))
    }

    /// Copies them in the host's memory.
    ///
    /// # Safety
    /// [`spans`](Self::spans) must be known, and `from` and `to` valid for reads and writes of as many bytes.
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
    fn rows_move_to_their_new_stride_and_what_lies_between_them_stays() {
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
