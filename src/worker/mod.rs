//! The child process: frames in, engine, frames out.
//!
//! ```text
//! stdin ──► reader thread ──frames──► this thread: load, then one job at a time ──► stdout
//!                └── cancel, shutdown: noted at once, seen between two steps
//! ```
//!
//! The thread that computes never waits for input while it has a job, and the thread that reads never computes, so a
//! cancel is seen after the step that is running, however long the queue of frames. When stdin ends the parent is gone
//! and there is nobody left to answer: the process ends where it is, even in the middle of a step.

use std::{
    io::{Read, Write},
    ops::ControlFlow,
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
    job::{Failure, Finish, Job, Memory, MemoryReport, ReadyReport},
    model::{Model, ModelError},
    wire::{self, Down, LoadSpec, PROTOCOL, Up, WireError},
};

/// Why a worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The parent sent something else than a load first.
    #[error("expected a load first, got {0}")]
    NoLoad(String),
    /// The model could not be loaded; the parent has been told.
    #[error("{0}")]
    Load(String),
    /// The pipe to the parent failed.
    #[error(transparent)]
    Pipe(#[from] WireError),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
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

/// Serves the parent at the other end of `input` and `output` until it says to end.
///
/// # Errors
/// [`WorkerError`] when the model cannot be loaded or the pipe fails.
pub fn run(input: impl Read + Send + 'static, mut output: impl Write) -> Result<(), WorkerError> {
    wire::write(&Up::Hello { protocol: PROTOCOL }, &mut output)?;
    let noted = Arc::new(Noted::default());
    let frames = read_frames(input, Arc::clone(&noted));
    let spec = match frames.recv() {
        Ok(Down::Load(spec)) => spec,
        Ok(Down::Shutdown) | Err(_) => return Ok(()),
        Ok(other) => return Err(WorkerError::NoLoad(format!("{other:?}"))),
    };
    let (timeline, ready) = load(&spec, &mut output).map_err(|e| tell_load_failure(&e, &mut output))?;
    let idle = ready.memory;
    wire::write(&Up::Ready(ready), &mut output)?;
    let guides = Guides::new(spec.model_dir, timeline.vocabulary());
    Worker { timeline, guides, noted, output, idle }.serve(&frames)
}

fn tell_load_failure(error: &LoadError, output: &mut impl Write) -> WorkerError {
    let message = error.to_string();
    // If the parent is gone as well there is nobody to tell.
    let _ = wire::write(&Up::LoadFailed { message: message.clone() }, output);
    WorkerError::Load(message)
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

fn load(spec: &LoadSpec, output: &mut impl Write) -> Result<(Timeline, ReadyReport), LoadError> {
    let started = Instant::now();
    // What passes tokens on is in a hurry; what computes them is not. Inherited by the threads of ONNX Runtime.
    host::set_pace(Pace::Steady);
    let runtime = Runtime::load(spec.onnxruntime_dir.as_deref())?;
    let threads = spec.threads.unwrap_or_else(host::physical_cores);
    let model = Model::open(&runtime, &spec.model_dir, SessionOptions { threads })?;
    let capacity = spec.context_length.unwrap_or(0);
    let options = TimelineOptions { capacity, chunk: spec.prefill_chunk };
    let mut timeline = Timeline::new(model, options).map_err(EngineError::from)?;
    wire::write(&Up::Loaded, output)?;
    timeline.warm_up()?;
    let placement = timeline.model().session().placement().map_err(EngineError::from)?;
    let ready = ReadyReport {
        runtime: runtime.version(),
        library: runtime.path().to_path_buf(),
        placement: placement.into_iter().collect(),
        threads,
        capacity: timeline.capacity(),
        load_time: started.elapsed(),
        memory: memory_after_trim(),
    };
    Ok((timeline, ready))
}

struct Worker<W> {
    timeline: Timeline,
    guides: Guides,
    noted: Arc<Noted>,
    output: W,
    /// What it held after the last trim, and so before the next job: asking again would delay the first token.
    idle: Memory,
}

impl<W: Write> Worker<W> {
    fn serve(mut self, frames: &mpsc::Receiver<Down>) -> Result<(), WorkerError> {
        loop {
            match frames.recv() {
                Ok(Down::Generate(job)) => self.generate(&job)?,
                Ok(Down::Trim) => {
                    let memory = self.trim();
                    wire::write(&Up::Trimmed { memory }, &mut self.output)?;
                }
                Ok(Down::Cancel(_) | Down::Load(_)) => {}
                Ok(Down::Shutdown) | Err(_) => return Ok(()),
            }
        }
    }

    fn generate(&mut self, job: &Job) -> Result<(), WorkerError> {
        let before = self.idle;
        let mut broken = None;
        let Self { timeline, guides, noted, output, .. } = self;
        let guide = guides.begin(job);
        let outcome = guide.map_err(EngineError::Job).and_then(|guide| {
            engine::generate(timeline, job, guide, |step| match wire::write(&step_frame(job, step), output) {
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
            })
        });
        if let Some(e) = broken {
            return Err(e.into());
        }
        let peak_resident = host::memory().peak_resident;
        let memory = MemoryReport { before, peak_resident, after: self.trim() };
        let last = match outcome {
            Ok(engine::Outcome { reason, usage, timings }) => {
                Up::Done { job: job.id, finish: Finish { reason, usage, timings, memory } }
            }
            // The CPU provider has no state that an error could spoil.
            Err(e) => Up::Failed { job: job.id, failure: Failure::from(e), poisoned: false },
        };
        Ok(wire::write(&last, &mut self.output)?)
    }

    /// Gives back what the last job left behind.
    fn trim(&mut self) -> Memory {
        self.timeline.clear();
        self.idle = memory_after_trim();
        self.idle
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
