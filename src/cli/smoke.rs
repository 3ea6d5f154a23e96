//! `eka smoke`: smoke test of a server with known answers, and a report.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use anyhow::{Context, ensure};

use super::{
    exit::{Exit, WithExit},
    output::{self, OutputFlags},
    shutdown,
    spawn_server::SpawnedServer,
};
use crate::{
    client::{Client, PATIENCE},
    config::{self, ConfigArgs},
    smoke::{self, Mode, Outcome, Report, Run, Suite},
};

/// Run a smoke test: compare a server's answers with known ones
///
/// Starts a server unless --url names one. Each prompt is sent on its own and together with all others; without --url, the first
/// one is also sent while the server starts. Prints a report in Markdown.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// URL of a running eka, such as http://127.0.0.1:8110, instead of starting one
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// TOML file of prompts and expected answers [default: the ten languages of models/demo]
    #[arg(long, value_name = "FILE")]
    suite: Option<PathBuf>,

    /// Number of prompts that must pass, such as 9/10 [default: all]
    #[arg(long, value_name = "N/M")]
    require: Option<Required>,

    /// Also test a second server that replaces its worker after every answer
    #[arg(long, value_name = "HOW", conflicts_with = "url")]
    isolate: Option<Isolate>,

    /// Also write the report to smoke.md and smoke.json in this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// API key, if the server needs one
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,

    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,
}

/// When workers are replaced.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Isolate {
    /// After every answer
    PerRequest,
}

/// Number of prompts that must pass, and of all prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Required {
    right: usize,
    of: usize,
}

impl FromStr for Required {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(right, of)| Some((right.parse().ok()?, of.parse().ok()?)));
        let (right, of) = numbers.ok_or("expected two numbers such as 9/10")?;
        if right > of {
            return Err(format!(
                "{right}/{of}: more prompts would have to pass than are sent; expected N/M with N at most M"
            ));
        }
        Ok(Self { right, of })
    }
}

/// Runs the test and prints the report.
///
/// # Errors
/// When there is no server or no suite. A wrong answer is not an error, but gives [`Exit::Failed`].
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let began = Instant::now();
    if args.config.print_config {
        let settings = config::Settings::load(&args.config)?;
        return super::settings::print_config(&settings, args.output.json).map(|()| Exit::Done);
    }
    let suite = args.suite().with_exit(Exit::Usage)?;
    let required = args.required(&suite).with_exit(Exit::Usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = runtime.block_on(async {
        tokio::select! {
            run = run_modes(args, &suite) => run.map(Some),
            _ = shutdown::signal() => Ok(None),
        }
    })?;
    let Some(run) = run else { return Ok(Exit::Interrupted) };
    let report = Report::of(Run { required, took_seconds: began.elapsed().as_secs_f64(), ..run });
    // First, so that a directory that cannot be written does not lose the report.
    if args.output.json {
        output::document(&report)?;
    } else {
        output::result(|out| out.write_all(report.markdown().as_bytes()))?;
    }
    args.out.iter().try_for_each(|dir| write(dir, &report))?;
    Ok(if report.passed { Exit::Done } else { Exit::Failed })
}

impl Args {
    fn suite(&self) -> anyhow::Result<Suite> {
        Ok(self.suite.as_deref().map_or_else(Suite::demo, Suite::read)?)
    }

    fn required(&self, suite: &Suite) -> anyhow::Result<usize> {
        let of = suite.cases.len();
        let Some(required) = self.require else { return Ok(of) };
        ensure!(
            required.of == of,
            "--require names {} prompts, but the suite {} has {of}",
            required.of,
            suite.name
        );
        Ok(required.right)
    }
}

/// Runs all modes against the named server, or against servers that it starts.
async fn run_modes(args: &Args, suite: &Suite) -> anyhow::Result<Run> {
    let key = args.api_key.as_deref();
    let Some(url) = &args.url else { return with_spawned_servers(args, suite, key).await };
    ensure_no_settings(&args.config).with_exit(Exit::Usage)?;
    let client = Client::new(url, key, PATIENCE).with_exit(Exit::Usage)?;
    client.get("/readyz").await.context("the server is not ready").with_exit(Exit::Machine)?;
    let mut run = described(&client, suite).await?;
    run.outcomes = loaded(&client, suite).await;
    Ok(run)
}

fn ensure_no_settings(config: &ConfigArgs) -> anyhow::Result<()> {
    ensure!(
        *config == ConfigArgs::default(),
        "settings have no effect with --url; pass them to `eka serve`, or omit --url"
    );
    Ok(())
}

async fn with_spawned_servers(args: &Args, suite: &Suite, key: Option<&str>) -> anyhow::Result<Run> {
    let mut server = SpawnedServer::start(&args.config, &[], key).await?;
    let ready = server.ready().await?;
    output::note(format_args!("ready after {:.1} s: {}", ready.as_secs_f64(), server.client.url()));
    let mut run = described(&server.client, suite).await?;
    run.ready_ms = Some(ready.as_secs_f64() * 1e3);
    run.outcomes = smoke::cold(&server.client, suite, server.started_at, print_progress).await;
    run.outcomes.extend(loaded(&server.client, suite).await);
    server.stop().await;
    if let Some(Isolate::PerRequest) = args.isolate {
        let mut server = SpawnedServer::start(&args.config, &["recycle.between_requests=true"], key).await?;
        server.ready().await?;
        run.outcomes.extend(smoke::one_by_one(&server.client, suite, Mode::Isolated, print_progress).await);
        server.stop().await;
    }
    Ok(run)
}

/// The modes that need a loaded model: one by one, then all at once.
async fn loaded(client: &Client, suite: &Suite) -> Vec<Outcome> {
    let mut outcomes = smoke::one_by_one(client, suite, Mode::Cached, print_progress).await;
    outcomes.extend(smoke::all_at_once(client, suite, print_progress).await);
    outcomes
}

fn print_progress(outcome: &Outcome) {
    let Outcome { name, mode, problems, answer, .. } = outcome;
    let took = answer.as_ref().map(|seen| format!(" {:.0} ms", seen.response_ms)).unwrap_or_default();
    let state = if outcome.is_right() { "right".into() } else { format!("WRONG: {}", problems.join("; ")) };
    output::note(output::printable(&format!("{:<8} {name:<12}{took} {state}", mode.as_str())));
}

/// An empty run that describes the server.
async fn described(client: &Client, suite: &Suite) -> anyhow::Result<Run> {
    let models = client.get_json("/v1/models").await.with_exit(Exit::Machine)?;
    let model = &models["data"][0];
    let runtime = &model["eka"]["worker"];
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let device = text(&runtime["device"]).or_else(|| text(&model["eka"]["devices"][0]["worker"]["device"]));
    Ok(Run {
        eka: env!("CARGO_PKG_VERSION"),
        suite: suite.name.clone(),
        server: client.url().to_owned(),
        model: text(&model["id"]).unwrap_or_default(),
        device,
        ready_ms: None,
        required: 0,
        took_seconds: 0.0,
        outcomes: Vec::new(),
    })
}

fn write(dir: &Path, report: &Report) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report)? + "\n";
    fs::create_dir_all(dir).with_context(|| format!("--out: cannot create {}", dir.display()))?;
    for (name, content) in [("smoke.md", report.markdown()), ("smoke.json", json)] {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_takes_two_numbers() {
        assert_eq!("9/10".parse(), Ok(Required { right: 9, of: 10 }));
        for refused in ["10", "11/10", "a/b", "-1/3", "1/2/3"] {
            assert!(refused.parse::<Required>().is_err(), "{refused}");
        }
    }
}
