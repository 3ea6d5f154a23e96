//! Memory for weights that are packed once and read from the first byte to the last with every token.
//!
//! In pages of 2 MiB where the system has them: weights in pages of 4 KiB are 150,000 of them, each faulted in when it is
//! filled and looked up anew when it is read. Most matrices are no multiple of 2 MiB, and their scales are less: so they lie
//! one behind the other in large mappings, as each in one of its own would leave a third of all weights in small pages.

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut, Range},
    slice,
    sync::Arc,
};

use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};

/// Size of a large page, in bytes.
const LARGE: usize = 2 << 20;

/// Least size of a mapping; pages that are never written take no memory.
const MAPPING: usize = 64 << 20;

/// Where pages begin: at a cache line, as vector instructions read one at a time.
const LINE: usize = 64;

/// Mappings that pages are taken from, the last one in use.
#[derive(Debug, Default)]
pub struct PackedStorage {
    mapping: Option<Arc<MmapRaw>>,
    /// Of it, in bytes, what has not been taken.
    free: Range<usize>,
}

impl PackedStorage {
    /// The next `bytes`; `None` if memory is short.
    fn take(&mut self, bytes: usize) -> Option<(Arc<MmapRaw>, Range<usize>)> {
        let end = |start: usize| start.checked_add(bytes);
        if self.mapping.is_none() || end(self.free.start)? > self.free.end {
            // Addresses cost nothing: enough of them that large pages fit from the first byte on.
            let mapping = MmapOptions::new().len(bytes.max(MAPPING).checked_add(LARGE)?).map_anon().ok()?;
            let before = mapping.as_ptr().align_offset(LARGE).min(LARGE);
            #[cfg(target_os = "linux")]
            if let Err(e) = mapping.advise_range(memmap2::Advice::HugePage, before, mapping.len() - before) {
                tracing::debug!("no huge pages: {e}");
            }
            self.free = before..mapping.len();
            self.mapping = Some(Arc::new(mapping.into()));
        }
        let range = self.free.start..end(self.free.start)?;
        self.free.start = range.end.next_multiple_of(LINE).min(self.free.end);
        Some((self.mapping.clone()?, range))
    }
}

/// Some `T`, zeroed at first.
#[derive(Debug)]
pub(super) struct HugePages<T> {
    mapping: Arc<MmapRaw>,
    /// In bytes, where the first `T` is, and where the last one ends: no other pages of the mapping have any of it.
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<T: Pod> HugePages<T> {
    /// Room for `len` from `store`; `None` where there is none.
    pub(super) fn zeroed(len: usize, store: &mut PackedStorage) -> Option<Self> {
        const { assert!(align_of::<T>() <= LINE) };
        let (mapping, range) = store.take(len.checked_mul(size_of::<T>())?)?;
        Some(Self { mapping, range, element: PhantomData })
    }

    fn first(&self) -> *mut T {
        // SAFETY: within the mapping, as `take` gave it.
        unsafe { self.mapping.as_mut_ptr().add(self.range.start) }.cast()
    }
}

impl<T: Pod> Deref for HugePages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the range is in the mapping, begins at a cache line and belongs only to these pages; any bytes are a `T`.
        unsafe { slice::from_raw_parts(self.first(), self.range.len() / size_of::<T>()) }
    }
}

impl<T: Pod> DerefMut for HugePages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and no other reference exists, as `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.first(), self.range.len() / size_of::<T>()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn pages_are_zeroed_at_first_and_share_no_byte(
            lengths in prop::collection::vec((0usize..300_000, any::<bool>()), 1..30),
        ) {
            let mut store = PackedStorage::default();
            let mut all = Vec::new();
            for (i, (len, is_large)) in lengths.into_iter().enumerate() {
                let len = if is_large { len * 64 } else { len };
                let mut pages = HugePages::<u16>::zeroed(len, &mut store).unwrap();
                prop_assert_eq!(pages.as_ptr().align_offset(LINE), 0);
                prop_assert!(pages.len() == len && pages.iter().all(|word| *word == 0));
                pages.fill(u16::try_from(i).unwrap() + 1);
                all.push(pages);
            }
            drop(store);
            for (i, pages) in all.iter().enumerate() {
                prop_assert!(pages.iter().all(|word| usize::from(*word) == i + 1));
            }
        }
    }

    #[test]
    fn an_allocation_without_memory_is_none() {
        assert!(HugePages::<u32>::zeroed(usize::MAX, &mut PackedStorage::default()).is_none());
        assert!(HugePages::<u8>::zeroed(usize::MAX - LARGE, &mut PackedStorage::default()).is_none());
        let mut store = PackedStorage::default();
        let first = HugePages::<u8>::zeroed(1, &mut store).unwrap();
        assert!(HugePages::<u8>::zeroed(usize::MAX - LARGE, &mut store).is_none());
        assert_eq!((first.len(), HugePages::<u8>::zeroed(1, &mut store).unwrap().len()), (1, 1));
    }
}
