//! Memory for what is laid out once and read from the first byte to the last with every token.
//!
//! A mapping of its own in pages of 2 MiB where the system has them: weights in pages of 4 KiB are 150,000 of them, each
//! faulted in when it is filled and looked up anew when it is read.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::{MmapMut, MmapOptions};

/// What a large page has.
const LARGE: usize = 2 << 20;

/// Some `T`, zeroed at first.
#[derive(Debug)]
pub(super) struct Pages<T> {
    map: MmapMut,
    /// In bytes, where the first `T` is, and where the last one ends.
    range: std::ops::Range<usize>,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// Room for `len`; `None` where there is none.
    pub(super) fn zeroed(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        // Addresses cost nothing: enough of them that large pages fit from the first byte on.
        let spare = if bytes < LARGE { 0 } else { LARGE };
        let map = MmapOptions::new().len(bytes.max(1).checked_add(spare)?).map_anon().ok()?;
        let before = if spare == 0 { 0 } else { map.as_ptr().align_offset(LARGE).min(spare) };
        #[cfg(target_os = "linux")]
        if spare > 0
            && let Err(e) = map.advise_range(memmap2::Advice::HugePage, before, bytes)
        {
            tracing::debug!("no huge pages: {e}");
        }
        Some(Self { map, range: before..before + bytes, element: std::marker::PhantomData })
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[self.range.clone()])
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[self.range.clone()])
    }
}
