//! Running it: logs, metrics, traces, the page, deployment files.

mod cluster_simulation;
mod deployment;
#[cfg(unix)]
#[cfg(unix)]
mod listeners;
mod logging;
#[cfg(unix)]
mod no_telemetry;
mod observability;
mod traces;
