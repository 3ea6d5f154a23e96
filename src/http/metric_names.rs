//! Repeats metrics under the names of vLLM and of OpenTelemetry's conventions for generative AI, for routers, autoscalers and
//! dashboards that look for those.
//!
//! They are the same samples with the labels that such readers expect, so they cannot differ from eka's.

use std::fmt::Write;

use crate::config::MetricNames;

/// The end mark of OpenMetrics.
const END: &str = "# EOF\n";

/// A metric and its other name, without the suffixes of samples.
type Rename = (&'static str, &'static str);

/// What vLLM calls them. Two names were changed in its versions, so both are there.
const VLLM: &[Rename] = &[
    ("eka_slot_busy", "vllm:num_requests_running"),
    ("eka_queue_jobs", "vllm:num_requests_waiting"),
    ("eka_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"),
    ("eka_kv_cache_usage_ratio", "vllm:gpu_cache_usage_perc"),
    ("eka_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
    ("eka_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"),
    ("eka_inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    ("eka_job_duration_seconds", "vllm:e2e_request_latency_seconds"),
    ("eka_queue_wait_seconds", "vllm:request_queue_time_seconds"),
    ("eka_prompt_tokens", "vllm:prompt_tokens"),
    ("eka_generated_tokens", "vllm:generation_tokens"),
    ("eka_prompt_tokens", "vllm:prefix_cache_queries"),
    ("eka_prompt_tokens_cached", "vllm:prefix_cache_hits"),
];

/// What OpenTelemetry calls them, as Prometheus' exporters write the names.
const GEN_AI: &[Rename] = &[
    ("eka_time_to_first_token_seconds", "gen_ai_server_time_to_first_token_seconds"),
    ("eka_inter_token_latency_seconds", "gen_ai_server_time_per_output_token_seconds"),
    ("eka_job_duration_seconds", "gen_ai_server_request_duration_seconds"),
];

/// `text`, in OpenMetrics' format, with its metrics under further names. Their labels name `model`, the first of the server.
pub(crate) fn with_names(mut text: String, names: MetricNames, model: &str) -> String {
    let model = escaped(model);
    let of_vllm = (VLLM, format!("engine=\"0\",model_name=\"{model}\""));
    let of_open_telemetry =
        (GEN_AI, format!("gen_ai_provider_name=\"eka\",gen_ai_request_model=\"{model}\""));
    let wanted = match names {
        MetricNames::Eka => return text,
        MetricNames::Vllm => vec![of_vllm],
        MetricNames::GenAi => vec![of_open_telemetry],
        MetricNames::All => vec![of_vllm, of_open_telemetry],
    };
    let families = families(&text);
    let mut further = String::new();
    for (names, labels) in wanted {
        for &(name, renamed) in names {
            let lines = families.iter().filter(|(family, _)| *family == name).flat_map(|(_, lines)| lines);
            for line in lines {
                // Writing to a `String` does not fail.
                let _ = writeln!(further, "{}", rename(line, (name, renamed), &labels));
            }
        }
    }
    let end = text.strip_suffix(END).map(str::len);
    text.truncate(end.unwrap_or(text.len()));
    text + &further + END
}

/// The lines of each metric, by its name: a `# HELP`, others that begin with `#`, and the samples.
fn families(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut families: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()) {
            families.push((name, Vec::new()));
        }
        if let Some((_, lines)) = families.last_mut().filter(|_| line != END.trim_end()) {
            lines.push(line);
        }
    }
    families
}

/// A line of the metric `name` as one of `renamed`, its samples with `labels`.
fn rename(line: &str, (name, renamed): Rename, labels: &str) -> String {
    if line.starts_with('#') {
        return line.replacen(name, renamed, 1);
    }
    let line = line.replacen(name, renamed, 1);
    match (line.split_once('{'), line.split_once(' ')) {
        (Some((sample, rest)), _) => format!("{sample}{{{labels},{rest}"),
        (None, Some((sample, value))) => format!("{sample}{{{labels}}} {value}"),
        (None, None) => line,
    }
}

/// A value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP eka_prompt_tokens Tokens.\n# TYPE eka_prompt_tokens counter\neka_prompt_tokens_total 7\n\
        # HELP eka_prompt_tokens_cached Tokens.\n# TYPE eka_prompt_tokens_cached counter\neka_prompt_tokens_cached_total 3\n\
        # HELP eka_job_duration_seconds Time.\n# TYPE eka_job_duration_seconds histogram\n# UNIT eka_job_duration_seconds seconds\n\
        eka_job_duration_seconds_bucket{le=\"1.0\"} 2\neka_job_duration_seconds_sum 0.5\n# EOF\n";

    #[test]
    fn samples_are_repeated_under_other_names_with_the_model() {
        let text = with_names(METRICS.into(), MetricNames::All, "a\"b");
        assert!(text.starts_with(METRICS.strip_suffix(END).unwrap()) && text.ends_with(END), "{text}");
        for line in [
            "# TYPE vllm:prompt_tokens counter\nvllm:prompt_tokens_total{engine=\"0\",model_name=\"a\\\"b\"} 7",
            "vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"a\\\"b\"} 7",
            "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"a\\\"b\"} 3",
            "vllm:e2e_request_latency_seconds_bucket{engine=\"0\",model_name=\"a\\\"b\",le=\"1.0\"} 2",
            "gen_ai_server_request_duration_seconds_sum{gen_ai_provider_name=\"eka\",gen_ai_request_model=\"a\\\"b\"} 0.5",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("eka_prompt_tokens_total").count(), 1);
        assert_eq!(with_names(METRICS.into(), MetricNames::Eka, "a"), METRICS);
    }
}
