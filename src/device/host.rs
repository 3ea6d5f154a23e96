//! What this process holds of the host's memory, and giving it back.
//!
//! The resident set alone hides growth: it counts mapped weights, which the system may drop and read again. So the
//! anonymous part is read apart. Where the system does not say (it is read from `/proc`), figures are `None`, not zero.

use std::fs;
#[cfg(target_os = "linux")]
use std::io;

use crate::units::Bytes;

/// Memory of this process, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// Resident set: anonymous pages and mapped files together.
    pub resident: Option<Bytes>,
    /// Anonymous pages alone.
    pub anonymous: Option<Bytes>,
    /// Greatest resident set since the start, or since [`reset_peak`].
    pub peak_resident: Option<Bytes>,
}

/// Reads the figures of this process.
#[must_use]
pub fn memory() -> HostMemory {
    fs::read_to_string("/proc/self/status").map(|status| parse(&status)).unwrap_or_default()
}

fn parse(status: &str) -> HostMemory {
    let field = |name| field(status, name);
    HostMemory { resident: field("VmRSS"), anonymous: field("RssAnon"), peak_resident: field("VmHWM") }
}

/// A line `name: 123 kB` of a file under `/proc`.
fn field(text: &str, name: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes::kib(kib))
}

/// The machine's memory, in all and available to new work; `None` where the system does not say.
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

/// Gives freed heap pages back to the system.
pub fn release_free_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes the allocator's own lock and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How the scheduler should treat the calling thread and those that it starts from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It works for microseconds and must be let in at once: whoever passes tokens on.
    Prompt,
    /// It computes for as long as it may: the system's own choice.
    Steady,
}

/// Asks the scheduler for a pace. It is a wish: where it cannot be had, nothing changes.
///
/// A worker keeps every core busy. With slices of equal length, Linux (6.12 and later) lets a thread that wakes up wait
/// for the next tick, up to 4 ms, at each hand a token goes through; a thread that asks for a short slice goes first,
/// and neither gets less of the processor for it. Children inherit the wish, so a worker takes it back.
pub fn set_pace(pace: Pace) {
    #[cfg(target_os = "linux")]
    {
        let slice_ns = match pace {
            Pace::Prompt => 100_000,
            Pace::Steady => 0,
        };
        if let Err(e) = set_slice(slice_ns) {
            tracing::debug!("the scheduler keeps its pace: {e}");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = pace;
}

/// Sets the calling thread's slice, as sched_setattr(2) takes it for `SCHED_OTHER`; 0 is the system's.
#[cfg(target_os = "linux")]
fn set_slice(slice_ns: u64) -> io::Result<()> {
    // SAFETY: it reads the calling thread's priority; 0 is this thread.
    let sched_nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0),
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: 0,
        sched_nice,
        sched_priority: 0,
        sched_runtime: slice_ns,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of `attributes`, which lives through the call; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Physical cores that this process may use: what matrix kernels gain from; hyper-threads only contend.
#[must_use]
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_in_kibibytes_and_what_is_missing_is_none() {
        let memory = parse("Name:\teka\nVmHWM:\t  200 kB\nVmRSS:\t  100 kB\nRssFile: 3 kB\n");
        assert_eq!(memory.resident, Some(Bytes::kib(100)));
        assert_eq!(memory.peak_resident, Some(Bytes::kib(200)));
        assert_eq!(memory.anonymous, None);
        assert_eq!(parse("VmRSS: many kB"), HostMemory::default());
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
        // Other tests of this process take and give memory meanwhile, and one of them starts new peaks.
        let grown = (0..20).map(|_| grown()).find(|grown| *grown >= 60 << 20);
        assert!(grown.is_some(), "64 MiB were never seen");
    }
}
