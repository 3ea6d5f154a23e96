//! Limit of open files: raised at start, and divided between connections and everything else.
//!
//! Most systems start a process with a soft limit of 1,024, which it may raise to the hard limit. A server that uses all
//! descriptors for connections cannot accept a health probe or start a worker, so some are reserved.

use std::num::NonZeroUsize;

use crate::http::SPARE_CONNECTIONS;

/// Descriptors of the process itself: log, listeners, timers, runtime, files.
const OWN: usize = 64;

/// Descriptors of a worker and its replacement.
const WORKER: usize = 16;

/// Minimum number of connections, even if the limit is too low for the reserve.
const MIN_CONNECTIONS: usize = 8;

/// Raises the soft limit to the hard limit. Returns the limit; `None` if unlimited or unknown.
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

/// Other platforms have no such limit.
#[cfg(not(unix))]
pub(super) const fn raise_limit() -> Option<usize> {
    None
}

/// The number of connections: as configured, or what the limit allows.
pub(super) fn fit(configured: NonZeroUsize, limit: Option<usize>, workers: usize) -> NonZeroUsize {
    let Some(limit) = limit else { return configured };
    let kept = OWN + WORKER * workers + SPARE_CONNECTIONS;
    let room = NonZeroUsize::new(limit.saturating_sub(kept).max(MIN_CONNECTIONS)).unwrap_or(configured);
    if room < configured {
        tracing::warn!(
            event = "connections_limited",
            from = configured,
            to = room,
            "server.max_connections lowered: the process may open {limit} files, and {kept} are reserved for workers and \
             probes; raise the limit with `ulimit -n`"
        );
    }
    room.min(configured)
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
        assert_eq!(fit(1024, Some(50)), MIN_CONNECTIONS);
        assert_eq!(fit(4, Some(50)), 4);
    }

    #[cfg(unix)]
    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let limit = raise_limit();
        let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(limit, now.maximum.and_then(|limit| usize::try_from(limit).ok()));
    }
}
