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
    time::Instant,
};

use crate::{
    constraint::Guides,
    device::{
        Runtime, RuntimeError, SessionOptions,
        host::{self, Pace},
    },
    engine::{self, EngineError, Forward, Step, Timeline, TimelineOptions},
    job::{Failure, Finish, Job, Memory, MemoryReport, ModelId, ModelReport, RuntimeReport},
    model::{Model, ModelError},
    wire::{self, Down, PROTOCOL, Up, WireError, WorkerSpec},
};
use faults::{Faults, Outlet, Plan, Point};

/// Why a worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The parent sent something else first than how to run.
    #[error("expected how to run first, got {0}")]
    NoStart(String),
    /// ONNX Runtime cannot be used; the parent has been told.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
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
    #[error(transparent)]
    Pipe(#[from] WireError),
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
/// [`WorkerError`] when ONNX Runtime cannot be used, the pipe fails, or the device can no longer be used.
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
    let runtime = match Runtime::load(spec.onnxruntime_dir.as_deref()) {
        Ok(runtime) => runtime,
        Err(e) => {
            // If the parent is gone as well there is nobody to tell.
            let _ = wire::write(&Up::StartFailed { message: e.to_string() }, &mut output);
            return Err(e.into());
        }
    };
    let threads = spec.threads.unwrap_or_else(host::physical_cores);
    let idle = memory_after_trim();
    let report = RuntimeReport {
        runtime: runtime.version(),
        library: runtime.path().to_path_buf(),
        threads,
        memory: idle,
    };
    wire::write(&Up::Started(report), &mut output)?;
    Worker { runtime, spec, threads, models: BTreeMap::new(), noted, output, idle, faults }.serve(&frames)
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

/// A model, and what keeps its answers in a form.
struct Loaded {
    timeline: Timeline,
    guides: Guides,
}

struct Worker<W> {
    runtime: Runtime,
    spec: WorkerSpec,
    threads: usize,
    models: BTreeMap<ModelId, Loaded>,
    noted: Arc<Noted>,
    output: W,
    /// What it held after the last trim, and so before the next job: asking again would delay the first token.
    idle: Memory,
    faults: Faults,
}

impl<W: Write> Worker<W> {
    fn serve(mut self, frames: &mpsc::Receiver<Down>) -> Result<(), WorkerError> {
        loop {
            match frames.recv() {
                Ok(Down::Generate(job)) => self.generate(&job)?,
                Ok(Down::Load { model, dir }) => self.load(model, &dir)?,
                Ok(Down::Unload(model)) => {
                    // Its session frees weights as it is dropped; the heap then has what it can give back.
                    drop(self.models.remove(&model));
                    self.idle = memory_after_trim();
                    wire::write(&Up::Unloaded { model, memory: self.idle }, &mut self.output)?;
                }
                Ok(Down::Trim) => {
                    self.models.values_mut().for_each(|loaded| loaded.timeline.clear());
                    self.idle = memory_after_trim();
                    wire::write(&Up::Trimmed { memory: self.idle }, &mut self.output)?;
                }
                Ok(Down::Cancel(_) | Down::Start(_)) => {}
                Ok(Down::Shutdown) | Err(_) => return Ok(()),
            }
        }
    }

    fn load(&mut self, model: ModelId, dir: &Path) -> Result<(), WorkerError> {
        let frame = match self.try_load(&model, dir) {
            Ok(report) => Up::Ready { model, report },
            Err(LoadError::Pipe(e)) => return Err(e.into()),
            Err(e) => {
                self.idle = memory_after_trim();
                Up::LoadFailed { model, message: e.to_string() }
            }
        };
        Ok(wire::write(&frame, &mut self.output)?)
    }

    fn try_load(&mut self, id: &ModelId, dir: &Path) -> Result<ModelReport, LoadError> {
        let (started, before) = (Instant::now(), self.idle);
        self.faults.at(Point::Load)?;
        let model = Model::open(&self.runtime, dir, SessionOptions { threads: self.threads })?;
        let capacity = self.spec.context_length.unwrap_or(0);
        let options = TimelineOptions { capacity, chunk: self.spec.prefill_chunk };
        let mut timeline = Timeline::new(model, options).map_err(EngineError::from)?;
        wire::write(&Up::Loaded(id.clone()), &mut self.output)?;
        self.faults.at(Point::WarmUp)?;
        timeline.warm_up()?;
        let placement = timeline.model().session().placement().map_err(EngineError::from)?;
        let capacity = timeline.capacity();
        let guides = Guides::new(dir.to_path_buf(), timeline.vocabulary());
        self.models.insert(id.clone(), Loaded { timeline, guides });
        self.idle = memory_after_trim();
        let placement = placement.into_iter().collect();
        Ok(ModelReport { placement, capacity, load_time: started.elapsed(), before, after: self.idle })
    }

    fn generate(&mut self, job: &Job) -> Result<(), WorkerError> {
        let before = self.idle;
        let mut broken = None;
        let Self { models, noted, output, faults, .. } = self;
        let Some(Loaded { timeline, guides }) = models.get_mut(&job.model) else {
            let failure = Failure::Model { model: job.model.clone(), message: "it is not loaded".into() };
            return Ok(wire::write(&Up::Failed { job: job.id, failure, poisoned: false }, output)?);
        };
        let guide = guides.begin(job);
        let mut model = faults.around(timeline, job);
        let outcome = guide.map_err(EngineError::Job).and_then(|guide| {
            engine::generate(&mut model, job, guide, |step| {
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
        let peak_resident = host::memory().peak_resident;
        timeline.clear();
        self.idle = memory_after_trim();
        let memory = MemoryReport { before, peak_resident, after: self.idle };
        let last = match outcome {
            Ok(engine::Outcome { reason, usage, timings }) => {
                Up::Done { job: job.id, finish: Finish { reason, usage, timings, memory } }
            }
            // The CPU provider has no state that an error could spoil.
            Err(e) => {
                Up::Failed { job: job.id, failure: Failure::from(e), poisoned: self.faults.has_poisoned() }
            }
        };
        wire::write(&last, &mut self.output)?;
        if self.faults.has_poisoned() { Err(WorkerError::Poisoned) } else { Ok(()) }
    }
}

fn step_frame(job: &Job, step: Step) -> Up {
    match step {
        Step::Progress { done, total } => Up::Progress { job: job.id, done, total },
        Step::Score(score) => Up::Score { job: job.id, score },
        Step::Token(id) => Up::Token { job: job.id, id },
    }
}

/// What is left when the heap has given back what is free; a new peak starts here.
fn memory_after_trim() -> Memory {
    host::release_free_heap();
    host::reset_peak();
    let host::HostMemory { resident, anonymous, .. } = host::memory();
    Memory { resident, anonymous }
}
