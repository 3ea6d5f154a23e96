//! File descriptors: as many as the process may have, shared out between connections and everything else.
//!
//! Most systems start a process with a limit of 1,024 that it may raise itself, up to a hard one. A server that has used up
//! its descriptors on connections can neither accept a probe nor start a worker in place of one that died, so some are
//! reserved for that.

use std::num::NonZeroUsize;

use crate::http::SPARE_CONNECTIONS;

/// Descriptors of the process itself: the log, listeners, timers, the runtime, files that are read for a moment.
const OWN: usize = 64;

/// Descriptors of a worker, of the one that takes its place, and of both while they start.
const WORKER: usize = 16;

/// At least this many connections are served, even if the limit is too low for the reserve.
const LEAST: usize = 8;

/// Raises the limit of descriptors as far as allowed. Returns the limit, or `None` where there is none or it is unknown.
#[cfg(unix)]
pub(super) fn raise_limit() -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = match raised {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!("cannot raise the limit of open files from {current:?} to {maximum:?}: {error}");
            current
        }
    };
    limit.and_then(|limit| usize::try_from(limit).ok())
}

/// Other systems have no such limit.
#[cfg(not(unix))]
pub(super) const fn raise_limit() -> Option<usize> {
    None
}

/// Most connections: those of the settings, or as many as the descriptors suffice for.
pub(super) fn fit(wanted: NonZeroUsize, limit: Option<usize>, workers: usize) -> NonZeroUsize {
    let Some(limit) = limit else { return wanted };
    let kept = OWN + WORKER * workers + SPARE_CONNECTIONS;
    let room = NonZeroUsize::new(limit.saturating_sub(kept).max(LEAST)).unwrap_or(wanted);
    if room < wanted {
        tracing::warn!(
            event = "connections_limited",
            from = wanted,
            to = room,
            "server.max_connections lowered: the process may open {limit} files, and {kept} are reserved for workers and \
             probes; raise the limit with `ulimit -n`"
        );
    }
    room.min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(wanted: usize, limit: Option<usize>) -> usize {
        super::fit(NonZeroUsize::new(wanted).unwrap(), limit, 1).get()
    }

    #[test]
    fn connections_leave_descriptors_for_workers_and_probes() {
        assert_eq!(fit(1024, None), 1024);
        assert_eq!(fit(1024, Some(1 << 20)), 1024);
        assert_eq!(fit(1024, Some(1024)), 1024 - 64 - 16 - SPARE_CONNECTIONS);
        assert_eq!(fit(1024, Some(50)), LEAST);
        assert_eq!(fit(4, Some(50)), 4);
    }

    #[cfg(unix)]
    #[test]
    fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
        let limit = raise_limit();
        let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(limit, now.maximum.and_then(|limit| usize::try_from(limit).ok()));
    }
}
