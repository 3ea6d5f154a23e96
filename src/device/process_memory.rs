//! The memory of this process on the host, and returning it to the system.
//!
//! The resident set hides growth, because it counts mapped weights, which the system may drop and read again. So the
//! anonymous part is read separately. Figures that the system does not have (they come from `/proc`) are `None`, not zero.

use std::fs;

use crate::units::Bytes;

/// Memory of this process, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident set: anonymous pages and mapped files together.
    pub resident: Option<Bytes>,
    /// Anonymous pages only.
    pub anonymous: Option<Bytes>,
    /// Greatest resident set since the start, or since [`reset_peak`].
    pub peak_resident: Option<Bytes>,
}

/// Reads the figures of this process.
#[must_use]
pub fn memory() -> ProcessMemory {
    fs::read_to_string("/proc/self/status").map(|status| parse(&status)).unwrap_or_default()
}

fn parse(status: &str) -> ProcessMemory {
    let field = |name| field(status, name);
    ProcessMemory { resident: field("VmRSS"), anonymous: field("RssAnon"), peak_resident: field("VmHWM") }
}

/// A line `name: 123 kB` of a file under `/proc`.
fn field(text: &str, name: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes::kib(kib))
}

/// The machine's total and available memory; `None` if the system does not report it.
#[must_use]
pub fn machine_memory() -> Option<(Bytes, Bytes)> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    Some((field(&meminfo, "MemTotal")?, field(&meminfo, "MemAvailable")?))
}

/// Starts a new peak at the present size. Where the system does not allow it, the peak stays that of the process.
pub fn reset_peak() {
    // proc(5): writing 5 resets the peak resident set size to the current value.
    if let Err(e) = fs::write("/proc/self/clear_refs", "5") {
        tracing::debug!("the peak of resident memory is that of the process: {e}");
    }
}

/// Returns freed heap pages to the system.
pub fn release_free_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes the allocator's own lock and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_kibibytes_and_missing_ones_are_none() {
        let memory = parse("Name:\teka\nVmHWM:\t  200 kB\nVmRSS:\t  100 kB\nRssFile: 3 kB\n");
        assert_eq!(memory.resident, Some(Bytes::kib(100)));
        assert_eq!(memory.peak_resident, Some(Bytes::kib(200)));
        assert_eq!(memory.anonymous, None);
        assert_eq!(parse("VmRSS: many kB"), ProcessMemory::default());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn touched_memory_shows_in_the_peak_after_it_is_gone() {
        let grown = || {
            reset_peak();
            let before = memory();
            let block = std::hint::black_box(vec![1u8; 64 << 20]);
            drop(block);
            memory().peak_resident.unwrap().0.saturating_sub(before.resident.unwrap().0)
        };
        // Other tests of this process allocate and free memory at the same time, and one of them resets the peak.
        let grown = (0..20).map(|_| grown()).find(|grown| *grown >= 60 << 20);
        assert!(grown.is_some(), "64 MiB were never seen");
    }
}
