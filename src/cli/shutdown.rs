//! Graceful and immediate shutdown of the server.

use std::{path::PathBuf, process, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{exit::Exit, ready_file};
use crate::{job::Readiness, log_queue};

/// Longest wait for the last log lines after the signal to exit immediately.
const LAST_LINES_AT_ONCE: Duration = Duration::from_millis(200);

/// Completes when the server must shut down: at a signal, after `/admin/drain`, or when no worker can ever start. A second
/// signal exits the process.
pub(super) async fn requested(
    mut readiness: watch::Receiver<Readiness>,
    drain: CancellationToken,
    ready_file: Option<PathBuf>,
) {
    let hopeless = |state: &Readiness| matches!(state, Readiness::Down { retry_in: None, .. });
    tokio::select! {
        name = signal() => tracing::info!(
            event = "shutdown_started",
            "{name}: shutting down gracefully; send the signal again to exit immediately"
        ),
        () = drain.cancelled() => {
            tracing::info!(event = "shutdown_started", "/admin/drain: shutting down gracefully");
        }
        _ = readiness.wait_for(hopeless) => {}
    }
    #[cfg(unix)]
    super::systemd::notify_stopping();
    tokio::spawn(async move {
        if drain.is_cancelled() {
            // Kubernetes sends SIGTERM after its preStop hook, which may call /admin/drain.
            let name = signal().await;
            tracing::info!("{name}: already shutting down; send the signal again to exit immediately");
        }
        // Some senders signal twice at once: the process, and its process group.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let name = signal().await;
        tracing::warn!(event = "shutdown_forced", "{name}: exiting immediately");
        ready_file.as_deref().inspect(|path| ready_file::remove_own(path));
        log_queue::flush(LAST_LINES_AT_ONCE);
        process::exit(Exit::Interrupted.code().into());
    });
}

/// Completes with the name of the next termination signal.
#[cfg(unix)]
pub(super) async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot receive signals; stop this process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Completes with the name of the next termination signal.
#[cfg(not(unix))]
pub(super) async fn signal() -> &'static str {
    if let Err(e) = tokio::signal::ctrl_c().await {
        tracing::error!("cannot receive Ctrl-C: {e}; stop this process in the task manager");
        return std::future::pending().await;
    }
    "Ctrl-C"
}
