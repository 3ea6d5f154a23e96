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
//! A worker that hangs is one that is silent for too long: it says a frame for every chunk it reads and every token it
//! writes, and `watchdog` knows how long each may take on this machine. It is killed and replaced like one that died.

mod keeper;
mod policy;
mod process;
mod stderr;
mod watchdog;

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    job::{Event, Failure, Finish, Job, Readiness},
    metrics::Metrics,
    wire::LoadSpec,
};
use keeper::{History, Keeper, Request};
pub use watchdog::Budgets;

/// How to start a worker and what it shall load.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The program, usually this one.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The first frame it is sent.
    pub load: LoadSpec,
    /// How long it may be silent.
    pub budgets: Budgets,
}

/// Keeps one worker alive and runs jobs on it.
#[derive(Debug)]
pub struct Supervisor {
    requests: mpsc::Sender<Request>,
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

impl Supervisor {
    /// A supervisor, and the future that starts the first worker and keeps one alive; whether and when one is ready is
    /// told by [`readiness`](Self::readiness).
    pub fn new(
        command: WorkerCommand,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (requests, receiver) = mpsc::channel(1);
        let (state, readiness) = watch::channel(Readiness::Starting);
        let stop = CancellationToken::new();
        let keeper = Keeper::new(command, metrics, receiver, state, stop.clone());
        let (keeping, kept) = oneshot::channel();
        let work = async move {
            keeper.keep().await;
            drop(keeping);
        };
        (Self { requests, readiness, stop, kept }, work)
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
        let (reply, answer) = oneshot::channel();
        if self
            .requests
            .send(Request { job, events, cancel, reply, history: History::default() })
            .await
            .is_err()
        {
            return Err(Failure::ShuttingDown);
        }
        answer.await.unwrap_or(Err(Failure::ShuttingDown))
    }
}
