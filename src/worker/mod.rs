//! The child process: frames in, engine, frames out.
//!
//! ```text
//! stdin ──► reader thread ──frames──► this thread: start, then one frame at a time ──► stdout
//!                └── cancel, shutdown: noted at once, seen between two steps
//! ```
//!
//! The thread that computes never waits for input while it has a job, and the thread that reads never computes, so a
//! cancel is seen after the step that is running, however long the queue of frames. When stdin ends the parent is gone
//! and there is nobody left to answer: the process ends where it is, even in the middle of a step.
//!
//! It holds as many models as it is told to. Which of them, and which has to go for another, is the parent's to decide: it
//! knows what they took the last time, also when this process is a new one.

pub mod faults;
mod loaded;
mod memory;
mod saved;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    ops::ControlFlow,
    path::Path,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    device::{
        Device, DeviceErrorKind, OpenError, OpenOptions, cores,
        host::{self, Pace},
    },
    engine::{self, EngineError, Forward, Outcome, Step},
    job::{
        Failure, Finish, FinishReason, GpuReport, Job, Memory, MemoryReport, ModelId, ModelReport, Placement,
        RuntimeReport, SaveAs,
    },
    model::ModelError,
    units::Bytes,
    wire::{self, Down, DraftModel, PROTOCOL, Up, WireError, WorkerSpec},
};
use faults::{Faults, Outlet, Plan, Point};
use loaded::{Loaded, Opening};
use memory::Holdings;
pub use memory::{device_memory, device_peak};
use saved::{NotSaved, SavedPrompt};

/// Why a worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The parent sent something else first than how to run.
    #[error("expected how to run first, got {0}")]
    NoStart(String),
    /// The device cannot be opened; the parent has been told.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The device failed in a way that outlives the job; the parent has been told.
    #[error("the device can no longer be used")]
    Poisoned,
    /// The pipe to the parent failed.
    #[error(transparent)]
    Pipe(#[from] WireError),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the model does not run: {0}")]
    Engine(#[from] EngineError),
    #[error(
        "the model gives the logits of the last token alone, so no guess of a draft model can be verified"
    )]
    Unverifiable,
    #[error(transparent)]
    Pipe(#[from] WireError),
}

impl LoadError {
    /// What it means for the device.
    fn fault(&self) -> DeviceErrorKind {
        match self {
            Self::Model(ModelError::Load { source, .. }) => source.kind(),
            Self::Engine(e) => e.fault(),
            Self::Model(_) | Self::Unverifiable | Self::Pipe(_) => DeviceErrorKind::Other,
        }
    }
}

/// What the reading thread has noted for the computing one.
#[derive(Debug, Default)]
struct Noted {
    /// The last job cancelled, by number and one more; 0 is none. One job runs at a time, so one is enough.
    cancelled: AtomicU64,
    shutdown: AtomicBool,
}

impl Noted {
    fn stops(&self, job: &Job) -> bool {
        self.shutdown.load(Ordering::Relaxed) || self.cancelled.load(Ordering::Relaxed) == job.id.0 + 1
    }
}

/// Serves the parent at the other end of `input` and `output` until it says to end. What `plan` says goes wrong.
///
/// # Errors
/// [`WorkerError`] when the device cannot be opened, the pipe fails, or the device can no longer be used.
pub fn run(
    input: impl Read + Send + 'static,
    output: impl Write + 'static,
    plan: Plan,
) -> Result<(), WorkerError> {
    let mut output = Outlet::new(output);
    let faults = Faults::new(plan, output.clone());
    wire::write(&Up::Hello { protocol: PROTOCOL }, &mut output)?;
    let noted = Arc::new(Noted::default());
    let frames = read_frames(input, Arc::clone(&noted));
    let spec = match frames.recv() {
        Ok(Down::Start(spec)) => spec,
        Ok(Down::Shutdown) | Err(_) => return Ok(()),
        Ok(other) => return Err(WorkerError::NoStart(format!("{other:?}"))),
    };
    // What passes tokens on is in a hurry; what computes them is not. Inherited by the threads of ONNX Runtime.
    host::set_pace(Pace::Steady);
    let device = match open(&spec) {
        Ok(device) => device,
        Err(e) => {
            // If the parent is gone as well there is nobody to tell.
            let _ = wire::write(&Up::StartFailed { message: e.to_string() }, &mut output);
            return Err(e.into());
        }
    };
    let threads = spec.threads.unwrap_or_else(host::physical_cores);
    let holdings = Holdings::new(device.pool().cloned(), spec.trim);
    let report = RuntimeReport {
        runtime: device.runtime().version(),
        library: device.runtime().path().to_path_buf(),
        device: device.to_string(),
        gpu: device.gpu().map(|gpu| GpuReport { has_bfloat16: gpu.has_bfloat16 }),
        fell_back: device.fell_back().map(ToString::to_string),
        threads,
        memory: holdings.idle(),
    };
    wire::write(&Up::Started(report), &mut output)?;
    Worker { models: BTreeMap::new(), device, spec, threads, noted, output, holdings, faults }.serve(&frames)
}

fn open(spec: &WorkerSpec) -> Result<Device, OpenError> {
    // Before anything is loaded, so that all threads that compute are started by one that is kept there.
    if !spec.processors.is_empty()
        && let Err(e) = cores::keep_to(&spec.processors)
    {
        tracing::warn!("threads are not kept to processors {:?}: {e}", spec.processors);
    }
    Device::open(OpenOptions {
        choice: spec.device,
        libraries: spec.onnxruntime_dir.as_deref(),
        memory_limit: spec.device_memory,
        host_pool: spec.host_pool,
    })
}

/// Reads frames on a thread of their own for as long as the parent lives.
fn read_frames(mut input: impl Read + Send + 'static, noted: Arc<Noted>) -> mpsc::Receiver<Down> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        loop {
            match wire::read::<Down>(&mut input) {
                Ok(Some(Down::Cancel(job))) => noted.cancelled.store(job.0 + 1, Ordering::Relaxed),
                Ok(Some(frame)) => {
                    noted.shutdown.fetch_or(frame == Down::Shutdown, Ordering::Relaxed);
                    if sender.send(frame).is_err() {
                        return;
                    }
                }
                Ok(None) => process::exit(0),
                Err(e) => {
                    tracing::error!("the parent's frames cannot be read: {e}");
                    process::exit(1);
                }
            }
        }
    });
    receiver
}

struct Worker<W> {
    // Declared before the device that they are loaded on: fields are dropped in order.
    models: BTreeMap<ModelId, Loaded>,
    device: Device,
    spec: WorkerSpec,
    threads: usize,
    noted: Arc<Noted>,
    output: W,
    holdings: Holdings,
    faults: Faults,
}

impl<W: Write> Worker<W> {
    fn serve(mut self, frames: &mpsc::Receiver<Down>) -> Result<(), WorkerError> {
        loop {
            match self.next(frames)? {
                Some(Down::Generate(job)) => self.generate(&job)?,
                Some(Down::Load { model, dir, draft }) => self.load(model, &dir, draft.as_ref())?,
                Some(Down::Unload(model)) => {
                    // Its session frees weights as it is dropped; heap and pool then have what they can give back.
                    drop(self.models.remove(&model));
                    self.note_kept();
                    let held = self.holdings.settle();
                    let memory = self.trim_to_due(Duration::ZERO).unwrap_or(held);
                    wire::write(&Up::Unloaded { model, memory }, &mut self.output)?;
                }
                Some(Down::Trim) => {
                    self.forget(None);
                    self.clear_others(None);
                    let memory = self.trim(Bytes(0));
                    wire::write(&Up::Trimmed { memory }, &mut self.output)?;
                }
                Some(Down::Restore { model, name, file, salt }) => {
                    self.restore(&model, SavedPrompt { name: &name, file: &file, salt })?;
                }
                Some(Down::Forget(name)) => {
                    self.forget(Some(&name));
                    let memory = self.holdings.settle();
                    wire::write(&Up::Forgotten { memory }, &mut self.output)?;
                }
                Some(Down::Cancel(_) | Down::Start(_) | Down::Ping) => {}
                Some(Down::Shutdown) | None => return Ok(()),
            }
        }
    }

    /// The next frame that asks for work; `None` when there will be no more. While none comes, what the trim policy says,
    /// and an answer to every ping: from this thread, as the one that reads frames would answer while this one hangs.
    fn next(&mut self, frames: &mpsc::Receiver<Down>) -> Result<Option<Down>, WorkerError> {
        let idle_since = Instant::now();
        let mut patience = self.holdings.wait();
        loop {
            let received = match patience {
                Some(wait) => frames.recv_timeout(wait.saturating_sub(idle_since.elapsed())),
                None => frames.recv().map_err(Into::into),
            };
            match received {
                Ok(Down::Ping) => wire::write(&Up::Pong, &mut self.output)?,
                Ok(frame) => return Ok(Some(frame)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.trim_if_due(patience.take().unwrap_or_default())?;
                }
            }
        }
    }

    /// Gives memory of the device back, if that is due, and says what is held then.
    fn trim_if_due(&mut self, idle: Duration) -> Result<(), WorkerError> {
        let began = Instant::now();
        let Some(memory) = self.trim_to_due(idle) else { return Ok(()) };
        Ok(wire::write(&Up::Held { memory, took: began.elapsed() }, &mut self.output)?)
    }

    fn trim_to_due(&mut self, idle: Duration) -> Option<Memory> {
        let keep = self.holdings.due(idle)?;
        Some(self.trim(keep))
    }

    /// Gives memory of the device back, down to `keep`; what captured steps hold first, if it takes their scratch away.
    fn trim(&mut self, keep: Bytes) -> Memory {
        if self.holdings.has_to_trim(keep) {
            self.models.values_mut().for_each(Loaded::release_captured);
        }
        self.holdings.trim_to(keep)
    }

    fn load(&mut self, model: ModelId, dir: &Path, draft: Option<&DraftModel>) -> Result<(), WorkerError> {
        let frame = match self.try_load(&model, dir, draft) {
            Ok(report) => Up::Ready { model, report },
            Err(LoadError::Pipe(e)) => return Err(e.into()),
            // Another worker may well load it: it is this one that cannot.
            Err(e) if e.fault() == DeviceErrorKind::Poisoned => {
                tracing::error!("{model} cannot be loaded: {e}");
                return Err(WorkerError::Poisoned);
            }
            Err(e) => {
                self.holdings.settle();
                self.trim_to_due(Duration::ZERO);
                Up::LoadFailed { model, message: e.to_string() }
            }
        };
        Ok(wire::write(&frame, &mut self.output)?)
    }

    fn try_load(
        &mut self,
        id: &ModelId,
        dir: &Path,
        draft: Option<&DraftModel>,
    ) -> Result<ModelReport, LoadError> {
        let (started, was_kept) = (Instant::now(), self.holdings.idle().prefix_cache > Bytes(0));
        self.clear_others(None);
        // What was kept until now would count for the model.
        let before = if was_kept { self.holdings.settle() } else { self.holdings.idle() };
        self.faults.at(Point::Load)?;
        let opening = Opening { device: &self.device, spec: &self.spec, threads: self.threads };
        let opened = opening.open(dir, draft)?;
        wire::write(&Up::Loaded(id.clone()), &mut self.output)?;
        self.faults.at(Point::WarmUp)?;
        let loaded = opened.warm_up(dir)?;
        let placement = loaded.timeline.model().session().placement().map_err(EngineError::from)?;
        let (capacity, draft) = (loaded.timeline.capacity(), loaded.draft.clone());
        let threads = loaded.timeline.model().session().threads();
        self.models.insert(id.clone(), loaded);
        let held = self.holdings.settle();
        let after = self.trim_to_due(Duration::ZERO).unwrap_or(held);
        let placement = Placement(placement);
        Ok(ModelReport {
            placement,
            capacity,
            decode_threads: threads.map(|threads| threads.decode),
            prefill_threads: threads.map(|threads| threads.prefill),
            draft,
            load_time: started.elapsed(),
            before,
            after,
        })
    }

    /// Gives back what models other than this one keep for their next jobs: one cache at a time is kept.
    fn clear_others(&mut self, but: Option<&ModelId>) {
        let others = self.models.iter_mut().filter(|(id, _)| but != Some(*id));
        others.for_each(|(_, loaded)| loaded.clear_to(Bytes(0)));
        self.note_kept();
    }

    /// What is kept for prompts that begin alike, from here on.
    fn note_kept(&mut self) {
        let kept = self.models.values().map(|loaded| loaded.kept().0).sum();
        self.holdings.keep(Bytes(kept));
    }

    fn restore(&mut self, model: &ModelId, prompt: SavedPrompt<'_>) -> Result<(), WorkerError> {
        let restored = match self.models.get_mut(model) {
            Some(loaded) => saved::restore(loaded, model, prompt),
            None => Err(not_loaded(model)),
        };
        self.note_kept();
        let memory = self.holdings.settle();
        let frame = match restored {
            Ok(_) => Up::Restored { memory },
            Err(failure) => Up::NotRestored { failure },
        };
        Ok(wire::write(&frame, &mut self.output)?)
    }

    /// Lets go of saved prompts that were restored: of those of a name, or of all.
    fn forget(&mut self, name: Option<&str>) {
        self.models.values_mut().for_each(|loaded| loaded.timeline.forget_restored(name));
        self.note_kept();
    }

    /// Puts a job's prompt into its file, if it was read to its end.
    fn save(
        &mut self,
        job: &Job,
        to: &SaveAs,
        read: Result<Outcome, EngineError>,
    ) -> Result<Result<Outcome, EngineError>, WorkerError> {
        let Self { models, noted, output, .. } = self;
        let (Some(loaded), Ok(outcome)) = (models.get(&job.model), &read) else { return Ok(read) };
        if outcome.reason == FinishReason::Cancelled {
            return Ok(read);
        }
        let (mut outcome, began) = (*outcome, Instant::now());
        let written = saved::save(loaded, &job.model, &job.prompt, to, |written| {
            wire::write(&Up::Saving { job: job.id, written }, output).map_err(NotSaved::Pipe)?;
            if noted.stops(job) { Err(NotSaved::Stopped) } else { Ok(()) }
        });
        outcome.timings.saving = began.elapsed();
        match written {
            Ok(_) => Ok(Ok(outcome)),
            Err(e) => Ok(match e.into_failure(&to.name)? {
                None => Ok(Outcome { reason: FinishReason::Cancelled, ..outcome }),
                Some(failure) => Err(failure),
            }),
        }
    }

    fn generate(&mut self, job: &Job) -> Result<(), WorkerError> {
        let before = self.holdings.idle();
        self.clear_others(Some(&job.model));
        self.holdings.begin();
        let mut broken = None;
        let Self { models, noted, output, faults, .. } = self;
        let Some(loaded) = models.get_mut(&job.model) else {
            let failure = not_loaded(&job.model);
            return Ok(wire::write(&Up::Failed { job: job.id, failure, poisoned: false }, output)?);
        };
        let Loaded { timeline, speculation, guides, .. } = loaded;
        let guide = guides.begin(job);
        let mut model = faults.around(timeline, job);
        let outcome = guide.map_err(EngineError::Job).and_then(|guide| {
            engine::generate(&mut model, job, guide, speculation, |step| {
                match wire::write(&step_frame(job, step), output) {
                    Ok(()) if noted.stops(job) => ControlFlow::Break(()),
                    Ok(()) => {
                        // Whoever reads the frame may be waiting for this very core.
                        thread::yield_now();
                        ControlFlow::Continue(())
                    }
                    Err(e) => {
                        broken = Some(e);
                        ControlFlow::Break(())
                    }
                }
            })
        });
        if let Some(e) = broken {
            return Err(e.into());
        }
        let outcome = match &job.save {
            Some(to) => self.save(job, to, outcome)?,
            None => outcome,
        };
        let peak_resident = host::memory().peak_resident;
        let device_peak = self.holdings.peak();
        let Some(loaded) = self.models.get_mut(&job.model) else { return Ok(()) };
        match &outcome {
            Ok(_) => loaded.settle(job.cache_prompt),
            // Refused before anything was computed, or by its constraint: what is kept is sound.
            Err(EngineError::Job(_)) => loaded.settle(false),
            Err(_) => loaded.clear(),
        }
        self.note_kept();
        let memory = MemoryReport { before, peak_resident, after: self.holdings.settle(), device_peak };
        let fault = outcome.as_ref().map_or_else(EngineError::fault, |_| DeviceErrorKind::Other);
        let poisoned = fault == DeviceErrorKind::Poisoned;
        let last = match outcome {
            Ok(Outcome { reason, usage, timings }) => {
                Up::Done { job: job.id, finish: Finish { reason, usage, timings, memory } }
            }
            Err(e) => Up::Failed { job: job.id, failure: Failure::from(e), poisoned },
        };
        wire::write(&last, &mut self.output)?;
        if poisoned {
            return Err(WorkerError::Poisoned);
        }
        self.trim_if_due(Duration::ZERO)
    }
}

fn not_loaded(model: &ModelId) -> Failure {
    Failure::Model { model: model.clone(), message: "it is not loaded".into() }
}

fn step_frame(job: &Job, step: Step) -> Up {
    match step {
        Step::Progress { done, total, cached } => Up::Progress { job: job.id, done, total, cached },
        Step::Score(score) => Up::Score { job: job.id, score },
        Step::Token(id) => Up::Token { job: job.id, id },
    }
}
