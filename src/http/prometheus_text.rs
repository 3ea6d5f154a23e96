//! Metrics in Prometheus' text format, from OpenMetrics' text format.
//!
//! Samples are the same. Prometheus names the metric of a counter with its suffix `_total`, has no type for info metrics, no
//! units and no end mark.

use std::{collections::HashMap, fmt::Write};

use actix_web::http::header::{ACCEPT, HeaderMap};

/// The content type.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a client asks for OpenMetrics.
pub(crate) fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let accepts = |value: &str| value.to_ascii_lowercase().contains("application/openmetrics-text");
    headers.get_all(ACCEPT).any(|value| value.to_str().is_ok_and(accepts))
}

/// The same metrics in Prometheus' text format.
pub(crate) fn from_open_metrics(metrics: &str) -> String {
    let kinds: HashMap<&str, &str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut text = String::with_capacity(metrics.len());
    for line in metrics.lines() {
        // Writing to a `String` does not fail.
        let _ = match line.strip_prefix("# ").map(|comment| comment.splitn(3, ' ').collect::<Vec<_>>()) {
            None => writeln!(text, "{line}"),
            Some(words) => match words[..] {
                ["HELP", name, help] => writeln!(text, "# HELP {} {help}", named(name, &kinds)),
                ["TYPE", name, kind] => writeln!(text, "# TYPE {} {}", named(name, &kinds), typed(kind)),
                _ => Ok(()),
            },
        };
    }
    text
}

/// The name of a metric, with the suffix of its samples.
fn named(name: &str, kinds: &HashMap<&str, &str>) -> String {
    match kinds.get(name) {
        Some(&"counter") => format!("{name}_total"),
        Some(&"info") => format!("{name}_info"),
        _ => name.to_owned(),
    }
}

fn typed(kind: &str) -> &str {
    match kind {
        "info" | "stateset" => "gauge",
        "unknown" => "untyped",
        kind => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_suffix_and_units_and_the_end_mark_are_left_out() {
        let metrics = "# HELP a Requests.\n# TYPE a counter\na_total{b=\"# c\"} 1\n# HELP d Time.\n# TYPE d histogram\n# UNIT d seconds\n\
            d_bucket{le=\"+Inf\"} 1\n# HELP e Build.\n# TYPE e info\ne_info{v=\"1\"} 1\n# EOF\n";
        let text = "# HELP a_total Requests.\n# TYPE a_total counter\na_total{b=\"# c\"} 1\n# HELP d Time.\n# TYPE d histogram\n\
            d_bucket{le=\"+Inf\"} 1\n# HELP e_info Build.\n# TYPE e_info gauge\ne_info{v=\"1\"} 1\n";
        assert_eq!(from_open_metrics(metrics), text);
    }
}
