//! A file with packed weights, mapped into memory.
//!
//! Packing weights takes as long as everything else of a start, and most of that time the system clears the memory that they
//! are packed into. A mapped file has neither cost: its pages are in the page cache, and every worker shares them. But
//! weights are read from the first byte to the last with every token, and pages of 4 KiB make that slow (18 against 28 GB/s
//! on one core of a Zen 4). File systems with large folios keep what is written in large aligned pieces in pages of 2 MiB, and
//! map them as such. [`PackedFile::is_in_large_pages`] says whether this file is.

use std::{fs, fs::File, io, sync::Arc};

use memmap2::{MmapOptions, MmapRaw};

use super::huge_pages::LARGE;

/// A mapped file.
#[derive(Clone, Debug)]
pub struct PackedFile {
    pub(super) mapping: Arc<MmapRaw>,
}

impl PackedFile {
    /// Maps `file` for reading and brings its content into memory.
    ///
    /// # Errors
    /// The system's.
    pub fn map(file: &File) -> io::Result<Self> {
        // The start of a large page in memory is the start of one in the file: the kernel aligns mappings of this size.
        let mapping = MmapOptions::new().map_raw_read_only(file)?;
        #[cfg(target_os = "linux")]
        for advice in [memmap2::Advice::HugePage, memmap2::Advice::PopulateRead] {
            // Older kernels lack either; pages are then read one by one when they are needed.
            if let Err(e) = mapping.advise(advice) {
                tracing::debug!("{advice:?}: {e}");
            }
        }
        Ok(Self { mapping: Arc::new(mapping) })
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.mapping.len()
    }

    /// Whether reading it is as fast as reading memory of this process: nearly all of it is mapped in large pages, or memory
    /// of this process would not be either.
    #[must_use]
    pub fn is_in_large_pages(&self) -> bool {
        let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if enabled.is_ok_and(|choices| choices.contains("[never]")) {
            return true;
        }
        let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let large = large_pages(&maps, self.mapping.as_ptr().addr());
        // The last page of a file is rarely a whole large one.
        large + 2 * LARGE >= self.bytes() / 100 * 95
    }
}

/// Bytes in large pages of the mapping at `address`, from the content of `/proc/self/smaps`.
fn large_pages(maps: &str, address: usize) -> usize {
    let begins = format!("{address:x}-");
    let mut lines = maps.lines().skip_while(|line| !line.starts_with(&begins));
    let field = lines.find_map(|line| line.strip_prefix("FilePmdMapped:"));
    let kib = field.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn large_pages_are_those_of_the_mapping_at_the_address() {
        let maps = "7f00-7fff r--s 0 fe:00 1 /a\nRss: 9 kB\nFilePmdMapped:     2048 kB\n\
                    8f00-8fff r--s 0 fe:00 2 /b\nRss: 9 kB\nFilePmdMapped:     4096 kB\n";
        assert_eq!([0x7f00, 0x8f00, 0x9f00].map(|at| large_pages(maps, at)), [2 << 20, 4 << 20, 0]);
    }

    #[test]
    fn a_file_is_mapped_as_it_is() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let mapped = PackedFile::map(&file).unwrap();
        assert_eq!(mapped.bytes(), 5000);
        // Less than a large page, so the question has an answer everywhere.
        assert!(mapped.is_in_large_pages());
    }
}
