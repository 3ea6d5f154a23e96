//! Hints to the scheduler of the operating system.

#[cfg(target_os = "linux")]
use std::io;

/// How the scheduler should treat the calling thread and the threads that it starts later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulingHint {
    /// It works for microseconds and should run at once: threads that forward tokens.
    LowLatency,
    /// It computes for long: the system's default.
    Throughput,
}

/// Gives the scheduler a hint. Where it is not supported, nothing changes.
///
/// A worker keeps every core busy. With slices of equal length, Linux (6.12 and later) lets a thread that wakes up wait
/// for the next tick, up to 4 ms, in each process that a token passes through. A thread with a short slice goes first, and
/// neither gets less of the processor. Child processes inherit the hint, so a worker resets it.
pub fn set_scheduling_hint(hint: SchedulingHint) {
    #[cfg(target_os = "linux")]
    {
        let slice_ns = match hint {
            SchedulingHint::LowLatency => 100_000,
            SchedulingHint::Throughput => 0,
        };
        if let Err(e) = set_slice(slice_ns) {
            tracing::debug!("the scheduling hint was refused: {e}");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = hint;
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
