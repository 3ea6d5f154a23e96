//! `eka bench --url`: load test of a server, and comparison of two results.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{
    exit::{Exit, WithExit},
    output::{self, OutputFlags},
};
use crate::{
    client::Client,
    loadgen::{self, Heading, Lengths, Limits, LoadResult, Pace, Plan, Prompts, Until},
};

/// Flags that conflict with a model directory. `requires = "url"` is not enough: clap ignores it if `url` conflicts with a
/// present argument.
pub(super) const FLAGS: [&str; 20] = [
    "url",
    "compare",
    "api",
    "served_model",
    "prompt_length",
    "output_length",
    "prompts",
    "token_ids",
    "ignore_eos",
    "field",
    "clients",
    "rate",
    "requests",
    "duration",
    "warm_up",
    "seed",
    "good_ttft",
    "good_tpot",
    "good_e2e",
    "out",
];

/// Flags of the load test.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Load test")]
pub(super) struct LoadArgs {
    /// URL of a server with OpenAI's API to test, instead of running a model
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "prompt", "generate", "rounds", "bare"])]
    url: Option<String>,

    /// Compare two result files written by --out
    #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"], conflicts_with_all = ["model", "url"])]
    compare: Option<Vec<PathBuf>>,

    /// Endpoint to use
    #[arg(long, value_name = "API", default_value = "chat", requires = "url")]
    api: Api,

    /// The model's name in requests [default: the first model that the server lists]
    #[arg(long, value_name = "NAME", requires = "url")]
    served_model: Option<String>,

    /// Length of a prompt in words: 64, uniform:64-256, normal:128,32, lognormal:128,0.8 or exponential:128
    #[arg(long, value_name = "LENGTHS", default_value = "64", requires = "url")]
    prompt_length: Lengths,

    /// Maximum number of tokens of an answer, in the same format
    #[arg(long, value_name = "LENGTHS", default_value = "64", requires = "url")]
    output_length: Lengths,

    /// File of prompts, one per line
    #[arg(long, value_name = "FILE", requires = "url", conflicts_with_all = ["prompt_length", "token_ids"])]
    prompts: Option<PathBuf>,

    /// Use random token ids below this number as prompts, so that lengths count tokens; with --api completions
    #[arg(long, value_name = "VOCABULARY", requires = "url", value_parser = clap::value_parser!(u32).range(2..))]
    token_ids: Option<u32>,

    /// Ignore the model's end token; for servers that support ignore_eos
    #[arg(long, requires = "url")]
    ignore_eos: bool,

    /// Additional field of every request, with a JSON value; can be repeated
    #[arg(long, value_name = "NAME=JSON", requires = "url", value_parser = field)]
    field: Vec<(String, Value)>,

    /// Closed loop: number of clients, each of which sends its next request after the previous answer [default: 1]
    #[arg(long, value_name = "N", requires = "url", conflicts_with = "rate", value_parser = clap::value_parser!(u16).range(1..))]
    clients: Option<u16>,

    /// Open loop: mean number of requests per second, sent at random times independent of the answers
    #[arg(long, value_name = "PER_SECOND", requires = "url", value_parser = positive)]
    rate: Option<f64>,

    /// Number of requests [default: 100]
    #[arg(long, value_name = "N", requires = "url", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,

    /// Duration of the test, instead of a number of requests
    #[arg(long, value_name = "SECONDS", requires = "url", value_parser = positive)]
    duration: Option<f64>,

    /// Number of warm-up requests, which are not measured
    #[arg(long, value_name = "N", default_value_t = 3, requires = "url")]
    warm_up: u64,

    /// Seed of prompts, lengths and schedule
    #[arg(long, value_name = "N", default_value_t = 0, requires = "url")]
    seed: u64,

    /// Goodput: longest time to the first text
    #[arg(long, value_name = "MS", requires = "url", value_parser = positive)]
    good_ttft: Option<f64>,

    /// Goodput: longest mean time per token after the first
    #[arg(long, value_name = "MS", requires = "url", value_parser = positive)]
    good_tpot: Option<f64>,

    /// Goodput: longest time to the end
    #[arg(long, value_name = "MS", requires = "url", value_parser = positive)]
    good_e2e: Option<f64>,

    /// Longest silence of the server within an answer
    #[arg(long, value_name = "SECONDS", default_value = "300", requires = "url", value_parser = positive)]
    patience: f64,

    /// Write the result to this file, as JSON
    #[arg(long, value_name = "FILE", requires = "url")]
    out: Option<PathBuf>,

    /// Draw latencies into this SVG file, also with --compare; for a model, speed over prompt and context length
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,

    /// API key, if the server needs one
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// OpenAI's endpoints that generate.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Api {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions
    Completions,
}

impl LoadArgs {
    /// Whether a load test or comparison is requested.
    pub(super) const fn is_wanted(&self) -> bool {
        self.url.is_some() || self.compare.is_some()
    }

    fn plan(&self, model: Option<String>) -> anyhow::Result<Plan> {
        let api = match self.api {
            Api::Chat => loadgen::Api::Chat,
            Api::Completions => loadgen::Api::Completions,
        };
        let prompts = match (&self.prompts, self.token_ids) {
            (Some(file), _) => Prompts::Listed(lines(file)?),
            (None, Some(vocabulary)) => {
                ensure!(
                    api == loadgen::Api::Completions,
                    "--token-ids needs --api completions, because chats are text"
                );
                Prompts::Ids(vocabulary)
            }
            (None, None) => Prompts::Words,
        };
        let pace = match self.rate {
            Some(rate) => Pace::Open { rate },
            None => Pace::Closed { clients: self.clients.unwrap_or(1).into() },
        };
        Ok(Plan {
            model,
            api,
            prompts,
            prompt_lengths: self.prompt_length,
            output_lengths: self.output_length,
            ignore_eos: self.ignore_eos,
            extra: self.field.iter().cloned().collect(),
            pace,
            seed: self.seed,
        })
    }

    fn until(&self) -> Until {
        match self.duration {
            Some(seconds) => Until::Elapsed(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
            None => Until::Requests(self.requests.unwrap_or(100)),
        }
    }

    /// As in the result file.
    fn settings(&self, plan: &Plan) -> BTreeMap<String, String> {
        let pace = match plan.pace {
            Pace::Closed { clients } => format!("closed, {clients} clients"),
            Pace::Open { rate } => format!("open, {rate} per second"),
        };
        let prompts = match &plan.prompts {
            Prompts::Words => "words".into(),
            Prompts::Ids(vocabulary) => format!("token ids below {vocabulary}"),
            Prompts::Listed(prompts) => format!("{} given", prompts.len()),
        };
        let until = match self.until() {
            Until::Requests(requests) => format!("{requests} requests"),
            Until::Elapsed(time) => format!("{} s", time.as_secs_f64()),
        };
        let fields: Vec<_> = self.field.iter().map(|(name, value)| format!("{name}={value}")).collect();
        [
            ("model", plan.model.clone().unwrap_or_default()),
            ("api", plan.api.path().into()),
            ("pace", pace),
            ("until", until),
            ("prompts", prompts),
            ("prompt_length", plan.prompt_lengths.to_string()),
            ("output_length", plan.output_lengths.to_string()),
            ("ignore_eos", plan.ignore_eos.to_string()),
            ("fields", fields.join(" ")),
            ("warm_up", self.warm_up.to_string()),
            ("seed", self.seed.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

/// Runs the load test or comparison and prints the result.
///
/// # Errors
/// When the server cannot be reached, or no request has a complete answer.
pub(super) fn run(args: &LoadArgs, output: OutputFlags) -> anyhow::Result<()> {
    if let Some([first, second]) = args.compare.as_deref() {
        return compare(first, second, args.plot.as_deref(), output);
    }
    let url = args.url.as_deref().context("no server; pass --url")?;
    let patience = Duration::try_from_secs_f64(args.patience).unwrap_or(Duration::MAX);
    let client = Client::new(url, args.api_key.as_deref(), patience).with_exit(Exit::Usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(measured(args, &client))?;
    if let Some(file) = &args.out {
        write(file, &(serde_json::to_string(&result)? + "\n"))?;
    }
    if output.json {
        output::document(&result)?;
    } else {
        output::result(|out| out.write_all(output::printable(&loadgen::table(&result)).as_bytes()))?;
    }
    let failed: Vec<_> = result.errors.iter().map(|(code, times)| format!("{times} {code}")).collect();
    ensure!(result.completed > 0, "no request has a complete answer: {}", failed.join(", "));
    args.plot.iter().try_for_each(|file| draw(file, &[(String::new(), &result)]))
}

async fn measured(args: &LoadArgs, client: &Client) -> anyhow::Result<LoadResult> {
    let model = match &args.served_model {
        Some(model) => Some(model.clone()),
        None => {
            let list = client.get_json("/v1/models").await;
            let list = list.context("cannot list the server's models; pass --served-model");
            list.with_exit(Exit::Machine)?["data"][0]["id"].as_str().map(str::to_owned)
        }
    };
    let plan = Arc::new(args.plan(model).with_exit(Exit::Usage)?);
    let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let limits = Limits { ttft_ms: args.good_ttft, tpot_ms: args.good_tpot, e2e_ms: args.good_e2e };
    let heading = Heading { began, server: client.url().into(), settings: args.settings(&plan), limits };
    let bar = progress(args.until());
    let run =
        loadgen::run(client, &plan, args.warm_up, args.until(), |ended| bar.set_position(ended as u64)).await;
    bar.finish_and_clear();
    Ok(LoadResult::of(heading, &run.outcomes, run.took.as_secs_f64())?)
}

fn progress(until: Until) -> ProgressBar {
    if output::is_quiet() {
        return ProgressBar::hidden();
    }
    let bar = match until {
        Until::Requests(requests) => ProgressBar::new(requests),
        Until::Elapsed(_) => ProgressBar::no_length(),
    };
    let style = ProgressStyle::with_template("{elapsed} {wide_bar} {pos} answered of {human_len}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn compare(first: &Path, second: &Path, plot: Option<&Path>, output: OutputFlags) -> anyhow::Result<()> {
    let read = |file: &Path| {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        LoadResult::parse(&text).map_err(|why| anyhow!("{}: {why}", file.display()))
    };
    let (a, b) = (read(first).with_exit(Exit::Usage)?, read(second).with_exit(Exit::Usage)?);
    if let Some(file) = plot {
        let name = |file: &Path| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        draw(file, &[(name(first), &a), (name(second), &b)])?;
    }
    if output.json {
        return output::document(&serde_json::json!({ "first": a, "second": b }));
    }
    output::result(|out| out.write_all(output::printable(&loadgen::comparison(&a, &b)).as_bytes()))
}

fn draw(file: &Path, runs: &[(String, &LoadResult)]) -> anyhow::Result<()> {
    let picture = loadgen::svg(runs).map_err(|why| anyhow!("--plot: {why}"))?;
    write(file, &picture)
}

pub(super) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn lines(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("--prompts {}", file.display()))?;
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "--prompts {}: no prompts in this file", file.display());
    Ok(lines)
}

fn field(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=JSON, such as cache_prompt=false")?;
    let value = serde_json::from_str(value).map_err(|error| format!("{value:?} is not JSON: {error}"))?;
    Ok((name.to_owned(), value))
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if number > 0.0 && number.is_finite() { Ok(number) } else { Err(format!("{text} is not more than 0")) }
}
