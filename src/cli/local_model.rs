//! Answers for the terminal: the same worker process and text processing as the server, without queue and HTTP.

use std::{io, sync::Arc};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    exit::{Exit, WithExit},
    resolve_model,
    sampling::SamplingArgs,
    worker, worker_configs,
};
use crate::{
    config::{Config, DefaultsFrom},
    job::{
        EndReason, Event, Failure, Finish, GroupedJob, Job, JobId, Readiness, SamplingDefaults, Step,
        Timings, Usage,
    },
    metrics::Metrics,
    supervise::WorkerPool,
    text::Text,
    worker::faults::FaultPlan,
};

/// A model with its worker process.
pub(super) struct LocalModel {
    /// The model's tokenizer and chat template.
    pub(super) text: Arc<Text>,
    /// Context length, for prompt and answer together.
    pub(super) context: usize,
    /// Default for the most tokens of an answer; `None` is what is left of the context.
    pub(super) default_max_new: Option<usize>,
    /// Sampling parameters where no flag sets them.
    pub(super) sampling: SamplingDefaults,
    workers: WorkerPool,
    metrics: Arc<Metrics>,
    jobs: u64,
}

/// A generated answer.
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
    /// At an end token or a stop string.
    Stop,
    /// At the requested number of tokens.
    Length,
    /// By Ctrl-C.
    Cancelled,
}

impl StopReason {
    /// Its name in `/generate-lite`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

impl LocalModel {
    /// Resolves the model of the settings and starts a worker that loads it.
    ///
    /// # Errors
    /// When there is no model, or it cannot be exported.
    pub(super) async fn start(config: &Config, faults: Option<&FaultPlan>) -> anyhow::Result<Self> {
        let gpu = worker_configs::gpu(config, config.engine.device.first()).await?;
        let model = resolve_model::model(config, gpu)?;
        let text = Arc::new(Text::open(&model.dir, &model.id)?);
        let mut worker = worker_configs::on_first_device(config, std::slice::from_ref(&model))?;
        worker.arguments.extend(faults.into_iter().flat_map(worker::faults));
        let metrics = Arc::new(Metrics::new());
        let (workers, supervision) = WorkerPool::new(vec![worker], &metrics);
        tokio::spawn(supervision);
        worker_configs::warn_of_context(config, &text);
        let max = text.card().context_length;
        Ok(Self {
            context: config.engine.context_length.map_or(max, |n| max.min(n.0)),
            default_max_new: config.engine.default_max_new_tokens.tokens().map(|tokens| tokens.0),
            sampling: match config.engine.sampling_defaults {
                DefaultsFrom::Model => text.card().sampling,
                DefaultsFrom::Eka => SamplingDefaults::default(),
            },
            text,
            workers,
            metrics,
            jobs: 0,
        })
    }

    /// Waits until the model is loaded.
    ///
    /// # Errors
    /// When the model cannot be loaded.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        let mut readiness = self.workers.readiness();
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

    /// Generates at most `max_new` tokens after `prompt` and passes the text to `out` as it arrives, in whole characters.
    ///
    /// # Errors
    /// When generation fails, or `out` returns an error.
    pub(super) async fn generate(
        &mut self,
        (prompt, max_new): (Vec<u32>, usize),
        wanted: &SamplingArgs,
        cancel: &CancellationToken,
        out: impl FnMut(&str) -> io::Result<()>,
    ) -> anyhow::Result<Answer> {
        let job = self.job(prompt, max_new, wanted);
        let seed = job.sampling.seed;
        let mut decoder = AnswerDecoder { out, text: String::new(), stopped: false };
        let (sender, mut events) = mpsc::unbounded_channel();
        let jobs = vec![GroupedJob { job, cancel: cancel.clone() }];
        let (ran, written) = tokio::join!(self.workers.run(0, jobs, sender), async {
            let written = decoder.run(self.text.detokenizer(wanted.stop.clone()), &mut events, cancel).await;
            // Without a reader, generation stops.
            written.inspect_err(|_| cancel.cancel())
        });
        let finish = written.context("cannot write the answer")?;
        let Finish { reason, usage, timings, .. } = match ran.and(finish) {
            Err(Failure::NoWorker { message, .. }) => return self.unloadable(&message),
            finish => finish?,
        };
        let end = match reason {
            _ if decoder.stopped => StopReason::Stop,
            EndReason::EndToken => StopReason::Stop,
            EndReason::Length => StopReason::Length,
            EndReason::Cancelled => StopReason::Cancelled,
        };
        Ok(Answer { text: decoder.text, end, seed, usage, timings })
    }

    fn job(&mut self, prompt: Vec<u32>, max_new: usize, wanted: &SamplingArgs) -> Job {
        self.jobs += 1;
        let card = self.text.card();
        let (model, end_tokens) = (card.id.as_str().into(), card.end_tokens.clone());
        Job {
            model,
            sampling: wanted.sampling(self.sampling),
            end_tokens,
            ..Job::new(JobId(self.jobs), prompt, max_new)
        }
    }

    /// Stops the worker.
    pub(super) async fn stop(self) {
        self.workers.stop().await;
    }
}

/// Decodes tokens and passes the text on.
struct AnswerDecoder<W> {
    out: W,
    /// The text so far.
    text: String,
    /// Whether a stop string was found.
    stopped: bool,
}

impl<W: FnMut(&str) -> io::Result<()>> AnswerDecoder<W> {
    async fn run(
        &mut self,
        mut detokenizer: crate::text::Detokenizer,
        events: &mut mpsc::UnboundedReceiver<(JobId, Event)>,
        cancel: &CancellationToken,
    ) -> io::Result<Result<Finish, Failure>> {
        let mut finish = Err(Failure::ShuttingDown);
        while let Some((_, event)) = events.recv().await {
            let id = match event {
                Event::Step(Step::Token(id)) => id,
                Event::Done(last) => {
                    finish = Ok(last);
                    continue;
                }
                Event::Failed(failure) => {
                    finish = Err(failure);
                    continue;
                }
                _ => continue,
            };
            let chunk = detokenizer.push(id);
            self.write(&chunk.text)?;
            if chunk.stopped {
                self.stopped = true;
                cancel.cancel();
            }
        }
        self.write(&detokenizer.finish())?;
        Ok(finish)
    }

    /// Adds text to the answer and passes it on.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.text += text;
        if text.is_empty() { Ok(()) } else { (self.out)(text) }
    }
}

impl Answer {
    /// As JSON, with the field names of `/generate-lite`.
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
                "draft_n_accepted": timings.drafted.accepted,
                "draft_model_n": timings.drafted_by_model.tokens,
                "draft_model_n_accepted": timings.drafted_by_model.accepted,
                "prefill_tokens_per_second": rate(usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens), prefill),
                "decode_tokens_per_second": rate(usage.completion_tokens.saturating_sub(1), decode),
            },
        })
    }

    /// Token counts and times in one line.
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

/// Awaits `work`. The first Ctrl-C cancels `cancel`; returns whether there was one.
pub(super) async fn interruptible<T>(work: impl Future<Output = T>, cancel: &CancellationToken) -> (T, bool) {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return (done, false),
        Ok(()) = tokio::signal::ctrl_c() => cancel.cancel(),
    }
    (work.await, true)
}
