//! A slice that several threads write to.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "a pointer within the slice, and the slice there")]

use std::{marker::PhantomData, slice};

/// A slice whose parts several threads write, each its own.
pub(super) struct Parts<'a, T> {
    first: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

/// Copies refer to the same slice; what callers of `part` promise is about all of them.
impl<T> Copy for Parts<'_, T> {}

// SAFETY: it is a mutable slice, taken apart by callers of `part`, who promise that no two parts overlap.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(super) fn of(slice: &'a mut [T]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part that starts at `start`.
    ///
    /// # Safety
    /// No other part that overlaps with it may be in use.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part of the slice");
        // SAFETY: within the slice (asserted above), which is borrowed mutably as long as `self` lives; no other part
        // overlaps, as the caller promises.
        unsafe { slice::from_raw_parts_mut(self.first.add(start), len) }
    }

    /// The part that starts at `start`, to be read.
    ///
    /// # Safety
    /// No part to be written that overlaps with it may be in use.
    pub(super) unsafe fn read(&self, start: usize, len: usize) -> &[T] {
        assert!(start <= self.len && len <= self.len - start, "a part of the slice");
        // SAFETY: as in `part`, and nothing writes to it.
        unsafe { slice::from_raw_parts(self.first.add(start), len) }
    }
}
