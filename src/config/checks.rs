//! Checks of text settings whose type does not validate them.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// Whether `text` can be a model's name in requests.
pub(super) fn is_model_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// Whether `text` is a log level or a filter.
///
/// `EnvFilter` takes a misspelt level for a module's name and an empty filter for `error`, so a single word must be a level.
#[must_use]
pub fn is_log_level(text: &str) -> bool {
    let is_level = !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    is_level || (text.contains(['=', ',']) && EnvFilter::try_new(text).is_ok())
}

/// Whether `text` is the URL of a collector that traces can be sent to.
pub(super) fn is_collector_url(text: &str) -> bool {
    collector_url(text).is_some()
}

/// Whether `text` has a visible character.
pub(super) fn is_not_blank(text: &str) -> bool {
    !text.trim().is_empty()
}

/// The URL that traces are sent to: `endpoint`, with the default path of OTLP unless it names one.
pub(super) fn collector_url(endpoint: &str) -> Option<String> {
    let authority = endpoint.strip_prefix("http://")?;
    let (host, path) = authority.split_once('/').unwrap_or((authority, ""));
    let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}@#".contains(c));
    let path = if path.is_empty() { "v1/traces" } else { path };
    (!host.is_empty() && is_plain(host) && is_plain(path)).then(|| format!("http://{host}/{path}"))
}

/// Whether `text` can be one part of a NATS subject and of the name of a stream.
pub(super) fn is_subject_token(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !text.is_empty() && text.len() <= 64 && text.chars().all(is_plain)
}

/// Whether `text` has URLs of NATS servers. A user in the URL would be ignored, and show in the list of processes.
pub(super) fn is_broker_urls(text: &str) -> bool {
    let is_url = |url: &str| {
        let authority = url
            .split_once("://")
            .map_or(Some(url), |(scheme, authority)| matches!(scheme, "nats" | "tls").then_some(authority));
        authority.is_some_and(|host| {
            !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c))
        })
    };
    !text.trim().is_empty() && text.split(',').all(|url| is_url(url.trim()))
}
