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
pub(super) const LARGE: usize = 2 << 20;

/// Least size of a mapping; pages that are never written take no memory.
const MAPPING: usize = 64 << 20;

/// Where pages begin: at a cache line, as vector instructions read one at a time.
pub(super) const LINE: usize = 64;

/// Mappings that pages are taken from, the last one in use.
#[derive(Debug, Default)]
pub struct PackedStorage {
    mapping: Option<Arc<MmapRaw>>,
    /// Of it, in bytes, what has not been taken.
    free: Range<usize>,
}

impl PackedStorage {
    /// Takes all memory back, if nothing uses it any more, to fill it again.
    pub fn reuse(&mut self) {
        let Some(mapping) = self.mapping.as_mut().filter(|mapping| Arc::strong_count(mapping) == 1) else {
            *self = Self::default();
            return;
        };
        self.free = before(mapping)..mapping.len();
    }

    /// The next `bytes`; `None` if memory is short.
    fn take(&mut self, bytes: usize) -> Option<(Arc<MmapRaw>, Range<usize>)> {
        let end = |start: usize| start.checked_add(bytes);
        if self.mapping.is_none() || end(self.free.start)? > self.free.end {
            // Addresses cost nothing: enough of them that large pages fit from the first byte on.
            let mapping = MmapOptions::new().len(bytes.max(MAPPING).checked_add(LARGE)?).map_anon().ok()?;
            let mapping = MmapRaw::from(mapping);
            let before = before(&mapping);
            #[cfg(target_os = "linux")]
            if let Err(e) = mapping.advise_range(memmap2::Advice::HugePage, before, mapping.len() - before) {
                tracing::debug!("no huge pages: {e}");
            }
            self.free = before..mapping.len();
            self.mapping = Some(Arc::new(mapping));
        }
        let range = self.free.start..end(self.free.start)?;
        self.free.start = range.end.next_multiple_of(LINE).min(self.free.end);
        Some((self.mapping.clone()?, range))
    }
}

/// Bytes of `mapping` before its first large page.
fn before(mapping: &MmapRaw) -> usize {
    mapping.as_ptr().align_offset(LARGE).min(LARGE)
}

/// Some `T` to be written; of any content at first.
#[derive(Debug)]
pub(super) struct HugePages<T>(PackedSlice<T>);

impl<T: Pod> HugePages<T> {
    /// Room for `len` from `store`; `None` where there is none.
    pub(super) fn take(len: usize, store: &mut PackedStorage) -> Option<Self> {
        const { assert!(align_of::<T>() <= LINE) };
        let (mapping, range) = store.take(len.checked_mul(size_of::<T>())?)?;
        Some(Self(PackedSlice { mapping, range, element: PhantomData }))
    }

    /// What was written, to be read.
    pub(super) fn freeze(self) -> PackedSlice<T> {
        self.0
    }
}

impl<T: Pod> Deref for HugePages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pod> DerefMut for HugePages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let PackedSlice { range, .. } = &self.0;
        // SAFETY: as in `PackedSlice::deref`; the storage's mapping can be written, and no other reference to this range
        // exists, as `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.0.first(), range.len() / size_of::<T>()) }
    }
}

/// Some `T` of a mapping, to be read.
#[derive(Debug)]
pub(super) struct PackedSlice<T> {
    mapping: Arc<MmapRaw>,
    /// In bytes, where the first `T` is, and where the last one ends. Nothing writes there.
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<T: Pod> PackedSlice<T> {
    /// `len` of them from the byte `start` of a mapped file; `None` where the file does not have them, or not at the start of
    /// a cache line.
    pub(super) fn of(mapping: &Arc<MmapRaw>, start: usize, len: usize) -> Option<Self> {
        const { assert!(align_of::<T>() <= LINE) };
        let range = start..start.checked_add(len.checked_mul(size_of::<T>())?)?;
        let fits = start.is_multiple_of(LINE) && range.end <= mapping.len();
        fits.then(|| Self { mapping: Arc::clone(mapping), range, element: PhantomData })
    }

    /// A copy in memory of `store`.
    pub(super) fn copied(&self, store: &mut PackedStorage) -> Option<Self>
    where
        T: Send + Sync,
    {
        use rayon::prelude::*;
        let mut copy = HugePages::take(self.len(), store)?;
        let pieces = copy.par_chunks_mut(LARGE / size_of::<T>()).zip(self.par_chunks(LARGE / size_of::<T>()));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
        Some(copy.freeze())
    }

    fn first(&self) -> *mut T {
        // SAFETY: within the mapping, as `take` or `of` found.
        unsafe { self.mapping.as_mut_ptr().add(self.range.start) }.cast()
    }
}

impl<T: Pod> Deref for PackedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the range is in the mapping and begins at a cache line; nothing writes to it; any bytes are a `T`.
        unsafe { slice::from_raw_parts(self.first(), self.range.len() / size_of::<T>()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_filled_again_only_when_nothing_uses_it() {
        let mut store = PackedStorage::default();
        let first = HugePages::<u8>::take(100, &mut store).unwrap();
        let address = first.as_ptr();
        store.reuse();
        let second = HugePages::<u8>::take(100, &mut store).unwrap();
        assert_ne!(second.as_ptr(), address);
        let address = second.as_ptr();
        drop((first, second));
        store.reuse();
        assert_eq!(HugePages::<u8>::take(100, &mut store).unwrap().as_ptr(), address);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn pages_share_no_byte(
            lengths in prop::collection::vec((0usize..300_000, any::<bool>()), 1..30),
        ) {
            let mut store = PackedStorage::default();
            let mut all = Vec::new();
            for (i, (len, is_large)) in lengths.into_iter().enumerate() {
                let len = if is_large { len * 64 } else { len };
                let mut pages = HugePages::<u16>::take(len, &mut store).unwrap();
                prop_assert_eq!(pages.as_ptr().align_offset(LINE), 0);
                prop_assert_eq!(pages.len(), len);
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
        assert!(HugePages::<u32>::take(usize::MAX, &mut PackedStorage::default()).is_none());
        assert!(HugePages::<u8>::take(usize::MAX - LARGE, &mut PackedStorage::default()).is_none());
        let mut store = PackedStorage::default();
        let first = HugePages::<u8>::take(1, &mut store).unwrap();
        assert!(HugePages::<u8>::take(usize::MAX - LARGE, &mut store).is_none());
        assert_eq!((first.len(), HugePages::<u8>::take(1, &mut store).unwrap().len()), (1, 1));
    }
}
