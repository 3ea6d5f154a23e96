//! Looks for leaks of the memory pool: requests of 1 to 1,900 prompt tokens over a pool on the host, trimmed after each.
//!
//! `cargo bench --bench pool_soak -- --requests 2000 --json FILE` prints a table, writes it as JSON, and ends with 1 if
//! more memory was held after a trim than weights and kept cache, if the pool's accounting is not empty at the end, or if the
//! process grew.

mod soak;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use eka::{
    device::{Pool, Runtime, pool::PoolOptions},
    units::Bytes,
};
use soak::{BenchResult, MAX_PROMPT, Report, SoakOptions};

/// Runs requests of all lengths over a pool of host memory and looks for leaks
#[derive(Debug, Parser)]
#[command(name = "pool_soak")]
struct Args {
    /// Requests to run
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Chooses the requests; the same seed, the same requests
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// What the key-value cache may keep, as device.kv_keep_bytes; 2 KiB are a position
    #[arg(long, default_value_t = 1 << 20, value_name = "BYTES")]
    kv_keep: u64,
    /// Write the figures here as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed by `cargo bench`: run everything
    #[arg(long, hide = true)]
    bench: bool,
    /// Passed by cargo's test run: run once and short
    #[arg(long, hide = true)]
    test: bool,
}

/// Tolerance: allocator pages and thread stacks of a process change a little.
const NOISE: u64 = 256 << 10;

fn main() -> BenchResult<ExitCode> {
    eka::device::refuse_telemetry();
    let args = Args::parse();
    // As cargo means it: a test run of the benches is short.
    let requests = if args.test || !args.bench { 20 } else { usize::try_from(args.requests)? };
    let directory = tempfile::tempdir()?;
    let dir = directory.path().join("model");
    soak::model(&dir, |options| options)?;
    let options = SoakOptions { requests, seed: args.seed, kv_keep: Bytes(args.kv_keep), captures: false };
    let pool = Pool::on_host(&Runtime::load(None)?, PoolOptions::default())?;
    let began = Instant::now();
    let report = soak::run(&pool, &dir, options)?;
    print(&report, began.elapsed().as_secs());
    if let Some(file) = args.json {
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    let mut wrong = report.wrong();
    // In a few requests the process is still warming up.
    let grown = report.anonymous_late.saturating_sub(report.anonymous_early);
    if requests >= 500 && grown > NOISE {
        wrong.push(format!("the process grew by {}", Bytes(grown)));
    }
    wrong.iter().for_each(|line| println!("WRONG: {line}"));
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report, seconds: u64) {
    let line = |what: &str, figure: String| println!("  {what:<52} {figure}");
    let Report { requests, prompt_tokens, answer_tokens, .. } = report;
    println!("{requests} requests of 1 to {MAX_PROMPT} prompt tokens in {seconds} s");
    line("tokens read, written", format!("{prompt_tokens}, {answer_tokens}"));
    line("weights", Bytes(report.weights).to_string());
    line("the cache may keep", Bytes(report.kv_keep).to_string());
    line("most held in a request", Bytes(report.peak).to_string());
    line("most held after a trim", Bytes(report.max_after_trim).to_string());
    line("times more than weights and what may be kept", report.times_above.to_string());
    line("times that the cache was kept", report.times_kept.to_string());
    line("blocks given, spilled, written to when free", {
        format!("{}, {}, {}", report.allocations, report.spills, report.writes_after_free)
    });
    line("out and held by the pool's books at the end", {
        format!("{}, {}", Bytes(report.in_use_at_end), Bytes(report.held_at_end))
    });
    line("anonymous memory between requests, early", Bytes(report.anonymous_early).to_string());
    line("  late", Bytes(report.anonymous_late).to_string());
    line("a trim: median, 99 of 100, longest", {
        format!("{}, {}, {} µs", report.trim_median_us, report.trim_p99_us, report.trim_max_us)
    });
}
