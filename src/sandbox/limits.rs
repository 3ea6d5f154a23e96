//! The limits that a child sets on itself, so that they hold even if its parent fails.

use std::time::Duration;

use crate::units::Bytes;

/// Stack size. Compilers and template engines recurse as deeply as their input nests. Only the touched part uses memory.
pub(super) const STACK: Bytes = Bytes::mib(256);

/// Memory of a task. The largest common schemas need a tenth of it.
pub(super) const MEMORY: Bytes = Bytes::mib(512);

/// CPU time of a task.
pub(super) const CPU_TIME: Duration = Duration::from_secs(5);

#[cfg(unix)]
pub(super) use unix::{allow_cpu_time, apply, cpu_time};

#[cfg(unix)]
mod unix {
    use std::time::Duration;

    use rustix::{
        process::{Resource, Rlimit, getrlimit, setrlimit},
        time::{ClockId, clock_gettime},
    };

    use super::{CPU_TIME, MEMORY, STACK};
    use crate::{child_process, units::Bytes};

    /// The program, its libraries, the main thread's stack, and reserves of the allocator.
    const PROGRAM: Bytes = Bytes::mib(256);

    /// Sets the limits that hold for the whole life of the process. Errors are ignored: a child that lacks one limit still has the
    /// others and the parent's deadline.
    pub(in super::super) fn apply() {
        // A core file would contain client data.
        set_soft(Resource::Core, 0);
        set_soft(Resource::As, PROGRAM.0 + STACK.0 + MEMORY.0);
        let _ = child_process::end_with_parent();
    }

    /// Allows the next task [`CPU_TIME`]. The system kills this process after that.
    pub(in super::super) fn allow_cpu_time() {
        // The system counts whole seconds since the start of the process.
        set_soft(Resource::Cpu, (cpu_time() + CPU_TIME).as_secs() + 1);
    }

    /// CPU time of this process so far.
    pub(in super::super) fn cpu_time() -> Duration {
        clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
    }

    /// Sets a soft limit, up to the hard limit.
    fn set_soft(resource: Resource, max: u64) {
        let Rlimit { maximum, .. } = getrlimit(resource);
        let max = maximum.map_or(max, |hard| hard.min(max));
        let _ = setrlimit(resource, Rlimit { current: Some(max), maximum });
    }
}

#[cfg(not(unix))]
pub(super) fn apply() {}

#[cfg(not(unix))]
pub(super) fn allow_cpu_time() {}

#[cfg(not(unix))]
pub(super) fn cpu_time() -> Duration {
    Duration::ZERO
}
