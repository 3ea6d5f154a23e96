//! Start, feed and watch the child process that owns the device; start it again when it ends.
//!
//! ```text
//! executor ──run(job)──► Supervisor ──► keeper task ──stdin──► eka worker
//!                                          ▲ ▲──── frames ◄─── reader task ◄─stdout─┤
//!                                          │         own stderr ◄─── sieve ◄──stderr──┘
//!                                          └ policy: what to do after an end, a pure function
//! ```
//!
//! The keeper is one task with one worker, one job at most, and a state that others only watch. A job that arrives while
//! no worker is up waits in the keeper, not in the worker's pipe, so it survives the worker.
//!
//! A job whose worker ends is not lost: the keeper has every token that was said, and the sampler's state follows from
//! their number, so the next worker reads prompt and answer and goes on. A job that ends two workers is kept from a third:
//! it fails with [`Failure::WorkerLost`], and the queue behind it goes on.
//!
//! A worker holds as many models as the settings give it memory for; what a job needs and is not there is loaded before
//! the job, and the least recently used leave for it. A worker that works is replaced as well, if the settings say so: its
//! successor is loaded beside it where memory allows two, so that nobody waits.
//!
//! There is one worker for each device, and a supervisor for each worker. A [`Fleet`] is all of them: while one device has no
//! worker, its job may go on on another.
//!
//! A worker that hangs is one that is silent for too long: it says a frame for every chunk it reads and every token it
//! writes, and `watchdog` knows how long each may take on this machine. While it has nothing to do it is pinged. One that
//! hangs is killed and replaced like one that died.

mod boot;
mod conversation;
mod exchange;
mod figures;
mod fleet;
mod inbox;
mod keeper;
mod models;
mod pace;
mod policy;
mod process;
mod restored;
mod stderr;
mod watchdog;

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    job::{Event, Failure, Finish, Job, KeepAlive, ModelId, Order, OrderReport, Readiness, RuntimeReport},
    metrics::Metrics,
    units::Bytes,
    wire::{DraftModel, WorkerSpec},
};
use conversation::{End, History, Request};
use figures::Figures;
pub use fleet::{Fleet, FleetForeman, FleetRunner, FleetView};
use keeper::{Keeper, OrderRequest};
pub use watchdog::Budgets;

/// Orders that wait; whoever gives another one waits to give it.
const ORDERS: usize = 16;

/// How to start a worker, and what it is for.
///
/// On Linux a worker is killed when the thread that started it ends (`PR_SET_PDEATHSIG`), so that it never outlives this
/// process. Hence the future of a [`Supervisor`] is run by a thread that ends no sooner than the workers shall.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// What its device is called where there are several, in the log and in the metrics.
    pub label: Option<String>,
    /// The program, usually this one.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The first frame it is sent.
    pub spec: WorkerSpec,
    /// What it may be asked to load. The first worker loads the first of them; the rest is loaded when it is asked for.
    pub models: Vec<Place>,
    /// What all loaded models may hold together; `None` is no limit.
    pub model_memory: Option<Bytes>,
    /// How long a model stays that nobody uses, unless it is told otherwise.
    pub keep_alive: KeepAlive,
    /// How long a worker may be silent.
    pub budgets: Budgets,
    /// When one that works is replaced all the same.
    pub recycle: Recycle,
    /// Where the speeds of models are kept from one run to the next.
    pub pace_file: Option<PathBuf>,
    /// The machine's memory that is free for a second worker; `None` where the system does not say.
    pub available_memory: fn() -> Option<Bytes>,
}

impl WorkerCommand {
    fn place(&self, model: &ModelId) -> Option<&Place> {
        self.models.iter().find(|place| place.id == *model)
    }
}

/// A model that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What jobs call it.
    pub id: ModelId,
    /// Its directory.
    pub dir: PathBuf,
    /// What guesses for it.
    pub draft: Option<DraftModel>,
    /// The size of its files, and of its draft model's: what it is taken to need before it was ever loaded.
    pub on_disk: Bytes,
}

/// When a worker that works is replaced all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recycle {
    /// After so many jobs.
    pub after_jobs: Option<u64>,
    /// After so long.
    pub after: Option<Duration>,
    /// When it holds so much more, after a trim, than its models took.
    pub growth: Bytes,
    /// After every job: for drivers that hang when they are used for long.
    pub between_requests: bool,
}

/// Starts a worker as `command` says, and ends it when it has said what computes there.
///
/// # Errors
/// The worker's own words when its device cannot be used, else how it ended.
pub async fn ask_device(command: &WorkerCommand) -> Result<RuntimeReport, String> {
    boot::ask(command).await
}

/// Keeps one worker alive and runs jobs on it.
#[derive(Debug)]
pub struct Supervisor {
    requests: mpsc::Sender<Request>,
    orders: mpsc::Sender<OrderRequest>,
    readiness: watch::Receiver<Readiness>,
    stop: CancellationToken,
    /// Closed when the keeper is gone.
    kept: oneshot::Receiver<()>,
}

/// A handle to run jobs with, for the executor's closure.
#[derive(Clone, Debug)]
pub struct Runner {
    requests: mpsc::Sender<Request>,
}

/// A handle to have something done between two jobs.
#[derive(Clone, Debug)]
pub struct Foreman {
    orders: mpsc::Sender<OrderRequest>,
}

impl Foreman {
    /// Has `order` done as soon as the slot is free, before the next job.
    ///
    /// # Errors
    /// [`Failure::Model`] when a model cannot be loaded, [`Failure::NoWorker`] while there is none,
    /// [`Failure::WorkerLost`] when it ended meanwhile, [`Failure::ShuttingDown`].
    pub async fn give(&self, order: Order) -> Result<OrderReport, Failure> {
        let (reply, outcome) = oneshot::channel();
        self.orders.send((order, reply)).await.map_err(|_| Failure::ShuttingDown)?;
        outcome.await.unwrap_or(Err(Failure::ShuttingDown))
    }
}

impl Supervisor {
    /// A supervisor, and the future that starts the first worker and keeps one alive; whether and when one is ready is
    /// told by [`readiness`](Self::readiness).
    pub fn new(
        command: WorkerCommand,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        Self::in_turn(command, metrics, Arc::new(Semaphore::new(1)))
    }

    /// As [`new`](Self::new), with workers that make way one after the other, in `turns` with those of others.
    fn in_turn(
        command: WorkerCommand,
        metrics: Arc<Metrics>,
        turns: Arc<Semaphore>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let label = command.label.clone();
        let span =
            label.as_ref().map_or_else(tracing::Span::none, |device| tracing::error_span!("worker", %device));
        let figures = Figures::new(metrics, label.as_deref().into());
        let (requests, receiver) = mpsc::channel(1);
        let (orders, ordered) = mpsc::channel(ORDERS);
        let (state, readiness) = watch::channel(Readiness::Starting);
        let stop = CancellationToken::new();
        let keeper = Keeper::new(command, figures, turns, receiver, ordered, state, stop.clone());
        let (keeping, kept) = oneshot::channel();
        let work = async move {
            keeper.keep().await;
            drop(keeping);
        }
        .instrument(span);
        (Self { requests, orders, readiness, stop, kept }, work)
    }

    /// Whether jobs can be run, now and whenever it changes.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// A handle to run jobs with.
    #[must_use]
    pub fn runner(&self) -> Runner {
        Runner { requests: self.requests.clone() }
    }

    /// A handle to have something done between two jobs.
    #[must_use]
    pub fn foreman(&self) -> Foreman {
        Foreman { orders: self.orders.clone() }
    }

    /// Ends the worker, kindly at first, and returns when it is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        // Nothing is ever sent: the sender goes when the keeper does, or when whoever ran it has gone.
        let _ = self.kept.await;
    }
}

impl Runner {
    /// Runs `job` on the worker, waiting for one if need be, and passes on what it says. After `cancel` it returns as
    /// soon as the worker has stopped, with what was done so far.
    ///
    /// # Errors
    /// [`Failure`] from the worker, or [`Failure::WorkerLost`] when it ended, [`Failure::NoWorker`] when there will be
    /// none.
    pub async fn run(
        &self,
        job: Job,
        events: mpsc::UnboundedSender<Event>,
        cancel: CancellationToken,
    ) -> Result<Finish, Failure> {
        match self.attempt((job, History::default()), events, cancel, CancellationToken::new()).await {
            End::Over(end) => end,
            End::Returned { why, .. } => Err(why.unwrap_or(Failure::ShuttingDown)),
        }
    }

    /// As [`run`](Self::run), for a job that may have run before, and that comes back when it is recalled in time.
    async fn attempt(
        &self,
        (job, history): (Job, History),
        events: mpsc::UnboundedSender<Event>,
        cancel: CancellationToken,
        recall: CancellationToken,
    ) -> End {
        let (reply, answer) = oneshot::channel();
        let request = Request { job, events, cancel, reply, history, recall };
        if self.requests.send(request).await.is_err() {
            return End::Over(Err(Failure::ShuttingDown));
        }
        answer.await.unwrap_or(End::Over(Err(Failure::ShuttingDown)))
    }
}
