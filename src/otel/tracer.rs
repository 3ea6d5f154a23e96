//! The tracer of this process.

use std::sync::OnceLock;

use opentelemetry_sdk::trace::SdkTracer;

/// Set when a collector is configured.
pub(super) static TRACER: OnceLock<SdkTracer> = OnceLock::new();
