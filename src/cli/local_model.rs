//! Answers for the terminal: the way that a request takes, without queue and HTTP. The same worker process, the same text.

use std::{io, sync::Arc};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    exit::{Exit, WithExit},
    resolve_model,
    sampling::SamplingArgs,
    worker,
};
use crate::{
    config::Config,
    job::{Event, Failure, Finish, FinishReason, Job, JobId, Readiness, Timings, Usage},
    metrics::Metrics,
    supervise::Supervisor,
    text::Text,
    worker::faults::Plan,
};

/// A model with a worker of its own.
pub(super) struct LocalModel {
    /// The model's text side.
    pub(super) text: Arc<Text>,
    /// Most positions, prompt and answer together.
    pub(super) context: usize,
    /// Tokens of an answer when nobody says.
    pub(super) default_max_new: usize,
    supervisor: Supervisor,
    metrics: Arc<Metrics>,
    jobs: u64,
}

/// What was said.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) end: StopReason,
    pub(super) seed: u64,
    pub(super) usage: Usage,
    pub(super) timings: Timings,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    /// By itself, or at a text to stop at.
    Stop,
    /// No more tokens were wanted.
    Length,
    /// It was not wanted any more.
    Cancelled,
}

impl StopReason {
    /// As `/generate-lite` says it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

impl LocalModel {
    /// Prepares the model of the settings and starts a worker, which loads it.
    ///
    /// # Errors
    /// When there is no model, or it cannot be exported.
    pub(super) async fn start(config: &Config, faults: Option<&Plan>) -> anyhow::Result<Self> {
        let gpu = worker::gpu(config, config.engine.device.first()).await?;
        let model = resolve_model::model(config, gpu)?;
        let text = Arc::new(Text::open(&model.dir, &model.id)?);
        let mut command = worker::command(config, std::slice::from_ref(&model))?;
        command.arguments.extend(faults.into_iter().flat_map(worker::faults));
        let metrics = Arc::new(Metrics::new());
        let (supervisor, keeping) = Supervisor::new(command, Arc::clone(&metrics));
        tokio::spawn(keeping);
        let most = text.card().context_length;
        Ok(Self {
            context: config.engine.context_length.map_or(most, |n| most.min(n.0)),
            default_max_new: config.engine.default_max_new_tokens.0,
            text,
            supervisor,
            metrics,
            jobs: 0,
        })
    }

    /// Waits until the model is loaded.
    ///
    /// # Errors
    /// When it cannot be.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        let mut readiness = self.supervisor.readiness();
        let is_settled =
            |state: &Readiness| matches!(state, Readiness::Ready(_) | Readiness::Down { retry_in: None, .. });
        match &*readiness.wait_for(is_settled).await? {
            Readiness::Down { reason, .. } => self.unloadable(reason),
            _ => Ok(()),
        }
    }

    fn unloadable<T>(&self, reason: &str) -> anyhow::Result<T> {
        Err(anyhow!("the model cannot be loaded: {reason}")).with_exit(Exit::without_worker(&self.metrics))
    }

    /// Answers `prompt` with `max_new` tokens at most, and gives the text to `out` as it comes, whole characters at a time.
    ///
    /// # Errors
    /// When the generation fails, or `out` does.
    pub(super) async fn say(
        &mut self,
        (prompt, max_new): (Vec<u32>, usize),
        wanted: &SamplingArgs,
        cancel: &CancellationToken,
        out: impl FnMut(&str) -> io::Result<()>,
    ) -> anyhow::Result<Answer> {
        let job = self.job(prompt, max_new, wanted);
        let seed = job.sampling.seed;
        let mut telling = TextStream { out, text: String::new(), stopped: false };
        let (sender, mut events) = mpsc::unbounded_channel();
        let runner = self.supervisor.runner();
        let (finish, told) = tokio::join!(runner.run(job, sender, cancel.clone()), async {
            let told = telling.tell(self.text.detokenizer(wanted.stop.clone()), &mut events, cancel).await;
            // Nobody listens: no further token is wanted.
            told.inspect_err(|_| cancel.cancel())
        });
        told.context("the answer cannot be written")?;
        let Finish { reason, usage, timings, .. } = match finish {
            Err(Failure::NoWorker { message, .. }) => return self.unloadable(&message),
            finish => finish?,
        };
        let end = match reason {
            _ if telling.stopped => StopReason::Stop,
            FinishReason::EndToken => StopReason::Stop,
            FinishReason::Length => StopReason::Length,
            FinishReason::Cancelled => StopReason::Cancelled,
        };
        Ok(Answer { text: telling.text, end, seed, usage, timings })
    }

    fn job(&mut self, prompt: Vec<u32>, max_new: usize, wanted: &SamplingArgs) -> Job {
        self.jobs += 1;
        let card = self.text.card();
        let (model, end_tokens) = (card.id.as_str().into(), card.end_tokens.clone());
        Job { model, sampling: wanted.sampling(), end_tokens, ..Job::new(JobId(self.jobs), prompt, max_new) }
    }

    /// Ends the worker.
    pub(super) async fn stop(self) {
        self.supervisor.stop().await;
    }
}

/// From tokens to whoever reads.
struct TextStream<W> {
    out: W,
    text: String,
    /// A text to stop at came.
    stopped: bool,
}

impl<W: FnMut(&str) -> io::Result<()>> TextStream<W> {
    async fn tell(
        &mut self,
        mut decoder: crate::text::Detokenizer,
        events: &mut mpsc::UnboundedReceiver<Event>,
        cancel: &CancellationToken,
    ) -> io::Result<()> {
        while let Some(event) = events.recv().await {
            let Event::Token(id) = event else { continue };
            let chunk = decoder.push(id);
            self.say(&chunk.text)?;
            if chunk.stopped {
                self.stopped = true;
                cancel.cancel();
            }
        }
        self.say(&decoder.finish())
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.text += text;
        if text.is_empty() { Ok(()) } else { (self.out)(text) }
    }
}

impl Answer {
    /// With the names that `/generate-lite` uses.
    pub(super) fn document(&self, model: &str) -> Value {
        let Self { text, end, seed, usage, timings } = self;
        let (prefill, decode) = (timings.prefill.as_secs_f64(), timings.decode.as_secs_f64());
        let rate = |tokens: usize, seconds: f64| (seconds > 0.0).then(|| tokens as f64 / seconds);
        json!({
            "model": model,
            "text": text,
            "finish_reason": end.as_str(),
            "seed": seed,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
            "timings": {
                "prefill_ms": prefill * 1e3,
                "decode_ms": decode * 1e3,
                "resumed": timings.resumed,
                "draft_n": timings.drafted.tokens,
                "draft_n_accepted": timings.drafted.right,
                "draft_model_n": timings.drafted_by_model.tokens,
                "draft_model_n_accepted": timings.drafted_by_model.right,
                "prefill_tokens_per_second": rate(usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens), prefill),
                "decode_tokens_per_second": rate(usage.completion_tokens.saturating_sub(1), decode),
            },
        })
    }

    /// Tokens and times in a line, for people.
    pub(super) fn summary(&self) -> String {
        let Self { usage, timings, .. } = self;
        format!(
            "prompt {} tokens in {:.0} ms, answer {} tokens in {:.0} ms",
            usage.prompt_tokens,
            timings.prefill.as_secs_f64() * 1e3,
            usage.completion_tokens,
            timings.decode.as_secs_f64() * 1e3
        )
    }
}

/// Does `work`, and cancels `cancel` at the first Ctrl-C until then; whether there was one.
pub(super) async fn interruptible<T>(work: impl Future<Output = T>, cancel: &CancellationToken) -> (T, bool) {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return (done, false),
        Ok(()) = tokio::signal::ctrl_c() => cancel.cancel(),
    }
    (work.await, true)
}
