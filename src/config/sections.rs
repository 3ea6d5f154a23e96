//! Views of sections whose settings belong together.

use std::path::Path;

use super::{
    checks::collector_url,
    settings_table::{Tls, Trace},
};

impl Tls {
    /// The files of certificate and private key; `None` for HTTP without TLS.
    #[must_use]
    pub fn files(&self) -> Option<(&Path, &Path)> {
        Some((self.cert_file.as_deref()?, self.key_file.as_deref()?))
    }
}

impl Trace {
    /// The URL that traces are sent to, with the default path of OTLP; `None` for no traces.
    #[must_use]
    pub fn collector_url(&self) -> Option<String> {
        self.otlp_endpoint.as_deref().and_then(collector_url)
    }
}
