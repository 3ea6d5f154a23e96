//! `eka generate`: one answer, streamed to the terminal.
//!
//! It takes the way that a request takes, without queue and HTTP: the same worker process, the same text.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{logging, prepare, worker};
use crate::{
    config::{self, Config, ConfigArgs},
    job::{Event, Failure, Finish, Job, JobId, Sampling},
    metrics::Metrics,
    supervise::{Runner, Supervisor},
    text::{Message, Text},
};

/// Generate one answer and stream it to the terminal
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The prompt; `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    prompt: String,

    /// Continue the prompt as it stands, without the model's chat template
    #[arg(long)]
    raw: bool,

    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,

    /// Most tokens to generate [default: engine.default_max_new_tokens]
    #[arg(long, value_name = "TOKENS")]
    max_new_tokens: Option<usize>,

    /// 0 always takes the most probable token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,

    /// Only the most probable K tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Only the most probable tokens that sum to P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,

    /// Same seed, same answer [default: a random one]
    #[arg(long)]
    seed: Option<u64>,

    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    #[command(flatten)]
    config: ConfigArgs,
}

/// Generates and streams.
///
/// # Errors
/// When settings, model or prompt cannot be used, or the generation fails.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let config = config::Settings::load(&args.config)?.config;
    args.check()?;
    logging::start_quiet()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(generate(args, &config))
}

async fn generate(args: Args, config: &Config) -> anyhow::Result<()> {
    let gpu = worker::gpu(config, config.engine.devices.first()).await?;
    let model = prepare::model(config, gpu)?;
    let text = Arc::new(Text::open(&model.dir, &model.id)?);
    let job = args.job(&text, config)?;
    let command = worker::command(config, std::slice::from_ref(&model))?;
    let (supervisor, keeping) = Supervisor::new(command, Arc::new(Metrics::new()));
    tokio::spawn(keeping);
    let answered = stream(supervisor.runner(), job, &text, args.stop).await;
    supervisor.stop().await;
    let finish = answered?;
    summarize(&finish);
    Ok(())
}

impl Args {
    fn check(&self) -> anyhow::Result<()> {
        let (t, p) = (self.temperature, self.top_p);
        ensure!(t.is_finite() && t >= 0.0, "--temperature is {t}: expected 0 or more");
        ensure!(p > 0.0 && p <= 1.0, "--top-p is {p}: expected more than 0, at most 1");
        ensure!(self.max_new_tokens != Some(0), "--max-new-tokens is 0: expected 1 or more");
        ensure!(
            self.stop.iter().all(|stop| !stop.is_empty()),
            "--stop is empty: it would stop before anything"
        );
        Ok(())
    }

    fn job(&self, text: &Text, config: &Config) -> anyhow::Result<Job> {
        let prompt = self.encode(text)?;
        let card = text.card();
        let context =
            config.engine.context_length.map_or(card.context_length, |n| card.context_length.min(n.0));
        let room = context.saturating_sub(prompt.len());
        ensure!(
            room > 0,
            "the prompt of {} tokens leaves no room in the context length of {context}",
            prompt.len()
        );
        let asked = self.max_new_tokens.unwrap_or_else(|| room.min(config.engine.default_max_new.0));
        ensure!(
            asked <= room,
            "--max-new-tokens is {asked}: after a prompt of {} there is room for {room} of {context}",
            prompt.len()
        );
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed.unwrap_or_else(rand::random),
            ..Sampling::greedy()
        };
        let model = card.id.as_str().into();
        Ok(Job { model, sampling, end_tokens: card.end_tokens.clone(), ..Job::new(JobId(0), prompt, asked) })
    }

    fn encode(&self, text: &Text) -> anyhow::Result<Vec<u32>> {
        let prompt = match self.prompt.as_str() {
            "-" => from_stdin()?,
            prompt => prompt.to_owned(),
        };
        if self.raw || !text.card().has_chat_template {
            ensure!(self.system.is_none(), "the model has no chat template that --system could go into");
            return Ok(text.encode(&prompt)?);
        }
        let mut messages: Vec<_> = self.system.iter().map(|system| Message::new("system", system)).collect();
        messages.push(Message::new("user", prompt));
        Ok(text.encode_chat(&messages.into())?)
    }
}

fn from_stdin() -> anyhow::Result<String> {
    let mut prompt = String::new();
    io::stdin().read_to_string(&mut prompt).context("the prompt cannot be read from standard input")?;
    Ok(prompt)
}

/// Runs the job and writes what comes as it comes.
async fn stream(runner: Runner, job: Job, text: &Arc<Text>, stops: Vec<String>) -> anyhow::Result<Finish> {
    let mut decoder = text.decoder(stops);
    let (sender, mut events) = mpsc::unbounded_channel();
    let cancel = CancellationToken::new();
    let interrupted = cancel.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let running = runner.run(job, sender, cancel.clone());
    let writing = async {
        while let Some(event) = events.recv().await {
            let Event::Token(id) = event else { continue };
            let chunk = decoder.push(id);
            write_out(&chunk.text)?;
            if chunk.stopped {
                cancel.cancel();
            }
        }
        write_out(&decoder.finish())?;
        write_out("\n")
    };
    let (finish, written) = tokio::join!(running, writing);
    written.context("the answer cannot be written")?;
    match finish {
        Err(Failure::NoWorker { message }) => bail!("the model cannot be loaded: {message}"),
        other => Ok(other?),
    }
}

fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn summarize(finish: &Finish) {
    let Finish { usage, timings, .. } = finish;
    let (prefill, decode) = (timings.prefill.as_secs_f64(), timings.decode.as_secs_f64());
    eprintln!(
        "prompt {} tokens in {:.0} ms, answer {} tokens in {:.0} ms",
        usage.prompt_tokens,
        prefill * 1e3,
        usage.completion_tokens,
        decode * 1e3
    );
}
