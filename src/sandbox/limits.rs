//! The limits that a child sets on itself, so that they hold even if its parent fails.

use std::time::Duration;

use crate::units::Bytes;

/// Memory of a task: the greatest schemas that people use need a tenth of it.
pub(super) const MEMORY: Bytes = Bytes::mib(512);

/// Processor time of a task.
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

    use super::{super::child::STACK, CPU_TIME, MEMORY};
    use crate::{child_process, units::Bytes};

    /// The program itself, its libraries, the main thread's stack, and what the allocator reserves ahead.
    const PROGRAM: Bytes = Bytes::mib(256);

    /// Limits that hold as long as the process lives. What the system refuses is left as it is: a child without one of
    /// them still has the others, and the parent's deadline.
    pub(in super::super) fn apply() {
        // A core file would hold a client's words.
        set_soft(Resource::Core, 0);
        set_soft(Resource::As, PROGRAM.0 + STACK.0 + MEMORY.0);
        let _ = child_process::end_with_parent();
    }

    /// Lets the task that begins have [`CPU_TIME`]; the system kills this process after that.
    pub(in super::super) fn allow_cpu_time() {
        // The system counts whole seconds of the whole process.
        set_soft(Resource::Cpu, (cpu_time() + CPU_TIME).as_secs() + 1);
    }

    /// Processor time of this process so far.
    pub(in super::super) fn cpu_time() -> Duration {
        clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
    }

    /// Sets a soft limit, as far as the hard one lets it.
    fn set_soft(resource: Resource, most: u64) {
        let Rlimit { maximum, .. } = getrlimit(resource);
        let most = maximum.map_or(most, |hard| hard.min(most));
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum });
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
