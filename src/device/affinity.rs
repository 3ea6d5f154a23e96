//! Physical cores, and pinning threads to some of them.
//!
//! A system moves threads freely: to the other half of a busy core, or to a core that another worker uses. Pinning prevents
//! it on a dedicated machine. On a shared machine it is better not to pin, as a pinned thread waits for other programs on
//! its core.

use std::io;

/// One logical processor of each physical core that the calling thread may run on, in their order.
///
/// # Errors
/// If the system does not expose it.
pub fn core_ids() -> io::Result<Vec<usize>> {
    system::core_ids()
}

/// Pins the calling thread, and the threads that it starts later, to `processors`.
///
/// # Errors
/// The system's reason, such as that it may use none of them.
pub fn pin_to(processors: &[usize]) -> io::Result<()> {
    system::pin_to(processors)
}

/// Number of physical cores that this process may use. Matrix kernels gain nothing from hyper-threads.
#[must_use]
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}

#[cfg(target_os = "linux")]
mod system {
    use std::{fs, io};

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) fn core_ids() -> io::Result<Vec<usize>> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = Vec::new();
        for processor in (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)) {
            let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
            let siblings =
                fs::read_to_string(&path).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
            let siblings = super::list(&siblings)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {siblings:?}")))?;
            if !siblings.iter().any(|sibling| cores.contains(sibling)) {
                cores.push(processor);
            }
        }
        Ok(cores)
    }

    pub(super) fn pin_to(processors: &[usize]) -> io::Result<()> {
        let mut set = CpuSet::new();
        for processor in processors.iter().filter(|processor| **processor < CpuSet::MAX_CPU) {
            set.set(*processor);
        }
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    pub(super) fn core_ids() -> io::Result<Vec<usize>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system does not say which processors are cores"))
    }

    pub(super) fn pin_to(_: &[usize]) -> io::Result<()> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system does not let threads be kept to processors",
        ))
    }
}

/// Numbers and ranges of them, as Linux writes lists of processors: `0-3,8`.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is nothing to read"))]
fn list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read_as_linux_writes_them() {
        assert_eq!(list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(list("7"), Some(vec![7]));
        assert_eq!(list(""), None);
        assert_eq!(list("0-x"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_pinned_thread_and_its_children_run_only_on_their_core() {
        let all = core_ids().unwrap();
        assert!(!all.is_empty() && all.is_sorted(), "{all:?}");
        let last = *all.last().unwrap();
        let kept = std::thread::spawn(move || {
            pin_to(&[last]).unwrap();
            let of_child = std::thread::spawn(|| core_ids().unwrap()).join().unwrap();
            (core_ids().unwrap(), of_child)
        });
        assert_eq!(kept.join().unwrap(), (vec![last], vec![last]));
        assert_eq!(core_ids().unwrap(), all, "this thread was not pinned");
        assert!(pin_to(&[]).is_err());
    }
}
