//! Text tables of one run, or of two runs side by side.

use std::fmt::{self, Write};

use super::result::{Latency, LoadResult};

/// Percentiles in the tables.
const SHOWN: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// The latencies of a run, by name.
const WAITS: [(&str, Latency); 4] = [
    ("time to first token", |r| &r.ttft_ms),
    ("between pieces", |r| &r.itl_ms),
    ("per output token", |r| &r.tpot_ms),
    ("end to end", |r| &r.e2e_ms),
];

/// One of the rates of a run.
type Rate = fn(&LoadResult) -> f64;

/// The rates of a run.
const RATES: [(&str, Rate); 4] = [
    ("answers/s", |r| r.requests_per_second),
    ("good answers/s", |r| r.goodput),
    ("output tokens/s", |r| r.output_tokens_per_second),
    ("all tokens/s", |r| r.total_tokens_per_second),
];

/// Table of one run.
#[must_use]
pub fn table(result: &LoadResult) -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    let _ = write_table(&mut out, result);
    out
}

fn write_table(out: &mut String, result: &LoadResult) -> fmt::Result {
    let LoadResult { server, requests, completed, errors, seconds, prompt_tokens, output_tokens, .. } =
        result;
    writeln!(out, "{server}: {completed} of {requests} answered in {seconds:.2} s")?;
    writeln!(out, "prompts {prompt_tokens} tokens, answers {output_tokens} tokens")?;
    for (code, times) in errors {
        writeln!(out, "  failed: {times} {code}")?;
    }
    let rates = RATES.map(|(name, rate)| format!("{:.2} {name}", rate(result)));
    writeln!(out, "{}\n", rates.join(", "))?;
    writeln!(
        out,
        "{:<20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "ms", "mean", "p50", "p90", "p99", "p99.9", "max"
    )?;
    for (name, wait) in WAITS {
        let wait = wait(result);
        write!(out, "{name:<20} {:>9.2}", wait.mean)?;
        for percentile in SHOWN.into_iter().chain([100.0]) {
            write!(out, " {:>9}", figure(wait.at(percentile)))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Table of two runs and the ratio of the second to the first.
#[must_use]
pub fn comparison(first: &LoadResult, second: &LoadResult) -> String {
    let mut out = String::new();
    let _ = write_comparison(&mut out, first, second);
    out
}

fn write_comparison(out: &mut String, first: &LoadResult, second: &LoadResult) -> fmt::Result {
    for name in
        first.settings.keys().chain(second.settings.keys().filter(|n| !first.settings.contains_key(*n)))
    {
        let value = |result: &LoadResult| result.settings.get(name).cloned().unwrap_or_else(|| "–".into());
        if value(first) != value(second) {
            writeln!(out, "differs: {name} is {} and {}", value(first), value(second))?;
        }
    }
    writeln!(out, "{:<28} {:>11} {:>11} {:>8}", "", "first", "second", "ratio")?;
    let mut line = |name: &str, a: Option<f64>, b: Option<f64>| {
        let ratio = a.zip(b).filter(|(a, _)| *a > 0.0).map(|(a, b)| b / a);
        let ratio = ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.3}"));
        writeln!(out, "{name:<28} {:>11} {:>11} {ratio:>8}", figure(a), figure(b))
    };
    for (name, rate) in RATES {
        line(name, Some(rate(first)), Some(rate(second)))?;
    }
    let failed = |result: &LoadResult| {
        let failed: u64 = result.errors.values().sum();
        u32::try_from(failed).map(f64::from).ok()
    };
    line("failed", failed(first), failed(second))?;
    for (name, wait) in WAITS {
        for percentile in SHOWN {
            line(
                &format!("{name} p{percentile}, ms"),
                wait(first).at(percentile),
                wait(second).at(percentile),
            )?;
        }
    }
    Ok(())
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.2}"))
}
