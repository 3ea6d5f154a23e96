//! How long requests wait in a cluster, by the way they find a node: simulated, for sizes that no test can start.
//!
//! ```sh
//! cargo bench --bench cluster_simulation                                  # 10, 100 and 1,000 nodes, all policies
//! cargo bench --bench cluster_simulation -- --nodes 2,4 --times FILE      # with service times that `eka bench --url` measured
//! ```
//!
//! The policies and what a run simulates are in [`simulation`]; docs/cluster.md uses the figures to size a cluster.

#[path = "simulation/mod.rs"]
mod simulation;

use std::{fs, path::PathBuf};

use clap::Parser;
use eka::loadgen::LoadResult;
use serde::Serialize;
use simulation::{Cluster, Figures, Policy, Speeds, Times, Workload};

type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Simulates waits and prefix hits of a cluster of nodes
#[derive(Debug, Parser)]
#[command(name = "cluster_simulation")]
struct Args {
    /// Numbers of nodes
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    nodes: Vec<u16>,
    /// Loads, in percent of the capacity without kept prefixes
    #[arg(long, value_delimiter = ',', default_value = "70,85,95", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=99))]
    load: Vec<u8>,
    /// Only these policies, for example pull,random
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_parser = policy)]
    policies: Vec<Policy>,
    /// Requests of each run, of which a fifth is warm-up; at least 1,000 for each node
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    requests: u32,
    /// Take service times from a result of `eka bench --url URL --clients 1 --out FILE`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prefill", "decode"])]
    times: Option<PathBuf>,
    /// Prompt tokens that a node reads per second
    #[arg(long, default_value_t = 1500.0, value_name = "TOKENS", value_parser = positive)]
    prefill: f64,
    /// Tokens that a node writes per second
    #[arg(long, default_value_t = 40.0, value_name = "TOKENS", value_parser = positive)]
    decode: f64,
    /// Turns of a conversation
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    turns: u8,
    /// Mean seconds between an answer and the next message
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = positive)]
    think: f64,
    /// Conversations whose prefix a node keeps
    #[arg(long, default_value_t = 8, value_name = "N")]
    kept: u16,
    /// Chooses the conversations; the same seed, the same figures
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Write the figures here as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed by `cargo bench`: simulate everything
    #[arg(long, hide = true)]
    bench: bool,
    /// Passed by cargo's test run: simulate a little
    #[arg(long, hide = true)]
    test: bool,
}

fn policy(name: &str) -> Result<Policy, String> {
    let known = Policy::ALL.map(Policy::name);
    let found = Policy::ALL.into_iter().find(|policy| policy.name() == name);
    found.ok_or_else(|| format!("unknown policy; expected one of {}", known.join(", ")))
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

/// A row of the result.
#[derive(Serialize)]
struct Row {
    nodes: u16,
    load_percent: u8,
    policy: &'static str,
    #[serde(flatten)]
    figures: Figures,
}

fn main() -> BenchResult<()> {
    let mut args = Args::parse();
    // As cargo means it: a test run of the benches is short.
    if args.test || !args.bench {
        (args.nodes, args.requests) = (vec![10], args.requests.min(5_000));
    }
    let workload = workload(&args)?;
    println!("{:.2} s per request without kept prefixes", workload.mean_service_s());
    println!("nodes  load  policy           wait p50 / p99     TTFT p50 / p99   prefix hits  busy");
    let policies = if args.policies.is_empty() { Policy::ALL.to_vec() } else { args.policies.clone() };
    let mut rows = Vec::new();
    for nodes in &args.nodes {
        for load in &args.load {
            for policy in &policies {
                let cluster = Cluster {
                    nodes: (*nodes).into(),
                    policy: *policy,
                    load: f64::from(*load) / 100.0,
                    kept: args.kept.into(),
                };
                let requests = usize::try_from(args.requests)?.max(cluster.nodes * 1_000);
                let figures = simulation::run(cluster, &workload, requests, args.seed);
                let row = Row { nodes: *nodes, load_percent: *load, policy: policy.name(), figures };
                print(&row);
                rows.push(row);
            }
        }
    }
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_string_pretty(&rows)? + "\n")?;
    }
    Ok(())
}

fn workload(args: &Args) -> BenchResult<Workload> {
    let times = match &args.times {
        Some(file) => {
            Times::Measured(measured(file).map_err(|error| format!("{}: {error}", file.display()))?)
        }
        None => Times::Speeds(Speeds { prefill: args.prefill, decode: args.decode, ..Speeds::default() }),
    };
    Ok(Workload { times, turns: args.turns.into(), think_s: args.think })
}

/// Seconds to the first token and from there to the end, of every request of a load test.
fn measured(file: &PathBuf) -> BenchResult<Vec<(f64, f64)>> {
    let result: LoadResult = serde_json::from_slice(&fs::read(file)?)?;
    let pace = result.settings.get("pace").map_or("", String::as_str);
    if pace != "closed, 1 clients" {
        // With several clients the time to the first token includes waiting, which the simulation would add again.
        return Err(
            format!("its requests were sent with pace {pace:?}; run eka bench with --clients 1").into()
        );
    }
    let times: Vec<_> = result
        .course
        .iter()
        .map(|&[_, ttft_ms, total_ms]| (ttft_ms / 1e3, (total_ms - ttft_ms).max(0.0) / 1e3))
        .collect();
    if times.is_empty() {
        return Err("it has no complete answer; run eka bench again".into());
    }
    Ok(times)
}

fn print(row: &Row) {
    let Row { nodes, load_percent, policy, figures } = row;
    let Figures { wait_p50_s, wait_p99_s, ttft_p50_s, ttft_p99_s, prefix_hits, utilization, .. } = figures;
    let (hits, busy) = (prefix_hits * 100.0, utilization * 100.0);
    println!(
        "{nodes:>5}  {load_percent:>3}%  {policy:<15}  {wait_p50_s:>7.2} / {wait_p99_s:<7.2}  {ttft_p50_s:>6.2} / {ttft_p99_s:<7.2}  {hits:>10.0}%  {busy:>3.0}%"
    );
}
