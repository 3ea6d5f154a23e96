//! A pool of children: assigns tasks and limits their time.
//!
//! ```text
//! run ─► queue (max_waiting) ─► fast lane (FAST places, QUANTUM each) ─► done
//!            └─ full: busy           └─► slow lane (SLOW places, DEADLINE) ─► done, or killed
//!                                            └─ full: killed, busy
//! ```
//!
//! Nearly all tasks take milliseconds. A few take seconds or never end, which cannot be known in advance. So each task has a short
//! time, a quantum, in the fast lane. A task that needs longer leaves the fast lane with its child, which then runs at the lowest
//! priority, and the fast lane gets a new child. So other tasks wait for at most one quantum per slow task, and never for a
//! deadline.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    error::SandboxError,
    limits,
    process::{ChildFailure, ChildProgram, Process, SHORT, cpu_time_of, lower_priority},
    task::{Answer, Task},
};
use crate::{
    metrics::{Metrics, SandboxTask},
    units::Bytes,
    wire,
};

/// Maximum number of tasks in the fast lane.
const FAST: usize = 2;

/// Maximum number of tasks in the slow lane. This limits the memory that an attacker can use.
const SLOW: usize = 2;

/// The kind of tasks of a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct TaskKind {
    /// Its name in metrics.
    pub(super) name: &'static str,
    /// Maximum number of tasks that may wait for the fast lane.
    pub(super) max_waiting: usize,
}

/// CPU time in the fast lane. With wall-clock time, a busy machine would make every task look slow.
const QUANTUM: Duration = Duration::from_millis(250);

/// Wall-clock time in the fast lane, for a process that gets no CPU time.
const MAX_QUANTUM: Duration = Duration::from_secs(5);

/// Time between two checks of the CPU time.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Wall-clock time for a whole task. The child itself limits the CPU time.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a task failed.
#[derive(Debug)]
pub(super) enum TaskFailure {
    /// Its content needs too much.
    Limit(Limit),
    /// Its content is not the cause.
    Sandbox(SandboxError),
}

/// The limit that a task exceeded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    Time(Duration),
    /// Memory or stack: a process that runs out of either ends in the same way.
    Memory(Bytes),
}

impl From<ChildFailure> for TaskFailure {
    fn from(lost: ChildFailure) -> Self {
        match lost {
            ChildFailure::CpuTime => Self::Limit(Limit::Time(limits::CPU_TIME)),
            ChildFailure::Memory => Self::Limit(Limit::Memory(limits::MEMORY)),
            ChildFailure::Broken(reason) => Self::Sandbox(SandboxError::Unavailable { reason }),
        }
    }
}

/// The children for one kind of task.
#[derive(Debug)]
pub(super) struct Pool {
    kind: TaskKind,
    command: ChildProgram,
    idle: Mutex<Vec<Process>>,
    waiting: Semaphore,
    fast: Semaphore,
    slow: Semaphore,
    metrics: Arc<Metrics>,
}

/// One try of a task.
enum Attempt {
    Done(Answer),
    Failed(TaskFailure),
    /// A reused child had been stopped or lost, and this task is not the cause.
    Retry,
}

impl Pool {
    pub(super) fn new(kind: TaskKind, command: ChildProgram, metrics: Arc<Metrics>) -> Self {
        Self {
            kind,
            command,
            idle: Mutex::default(),
            waiting: Semaphore::new(FAST + kind.max_waiting),
            fast: Semaphore::new(FAST),
            slow: Semaphore::new(SLOW),
            metrics,
        }
    }

    /// Starts a child for the next task. Ends children of another thread, because that thread would have to forward every reply.
    pub(super) fn warm_up(&self) {
        self.idle().clear();
        self.refill();
    }

    fn refill(&self) {
        if self.idle().is_empty() {
            match self.start() {
                Ok(process) => self.put_back(process),
                // The next task reports it to its client.
                Err(failure) => {
                    tracing::warn!(?failure, kind = self.kind.name, "cannot start a sandbox process")
                }
            }
        }
    }

    /// Runs a task. The child is killed if the caller stops waiting.
    pub(super) async fn run(&self, task: Task) -> Result<Answer, TaskFailure> {
        let done = self.queue(task).await;
        let outcome = match &done {
            Ok(answer) if answer.is_ok() => "ok",
            Ok(_) => "refused",
            Err(TaskFailure::Limit(Limit::Time(_))) => "time",
            Err(TaskFailure::Limit(Limit::Memory(_))) => "memory",
            Err(TaskFailure::Sandbox(SandboxError::Busy)) => "busy",
            Err(TaskFailure::Sandbox(SandboxError::Unavailable { .. })) => "unavailable",
        };
        self.metrics.sandbox_tasks.get_or_create(&SandboxTask { kind: self.kind.name, outcome }).inc();
        done
    }

    async fn queue(&self, task: Task) -> Result<Answer, TaskFailure> {
        let _place = self.waiting.try_acquire().map_err(|_| TaskFailure::Sandbox(SandboxError::Busy))?;
        // Encoded before the wait, so that the task itself can be dropped.
        let frame = encode(task).await?;
        loop {
            match self.attempt(&frame).await {
                Attempt::Done(answer) => return Ok(answer),
                Attempt::Failed(failure) => return Err(failure),
                // This ends, because each retry uses up one of a few old children.
                Attempt::Retry => {}
            }
        }
    }

    async fn attempt(&self, frame: &[u8]) -> Attempt {
        let Ok(place) = self.fast.acquire().await else {
            return Attempt::Failed(TaskFailure::Sandbox(SandboxError::Busy));
        };
        let old = self.idle().pop();
        let is_new = old.is_none();
        let process = match old.map_or_else(|| self.start(), Ok) {
            Ok(process) => process,
            Err(failure) => return Attempt::Failed(failure),
        };
        let id = process.id();
        let first_quantum = quantum(id, process.cpu_time());
        let mut answering = Box::pin(process.answer(frame));
        let first = tokio::select! {
            answer = &mut answering => Ok(answer),
            quantum = first_quantum => Err(quantum),
        };
        match first {
            Ok((process, Ok(answer))) => {
                self.put_back(process);
                Attempt::Done(answer)
            }
            Ok((_, Err(_))) | Err(Quantum::NotRun) if !is_new => Attempt::Retry,
            Ok((_, Err(lost))) => {
                self.refill();
                Attempt::Failed(lost.into())
            }
            Err(_) => {
                drop(place);
                self.refill();
                id.into_iter().for_each(lower_priority);
                self.finish_slow(answering).await
            }
        }
    }

    /// Waits for a task in the slow lane. Its process may hold much memory and is not reused.
    async fn finish_slow(
        &self,
        answering: impl Future<Output = (Process, Result<Answer, ChildFailure>)>,
    ) -> Attempt {
        let Ok(_place) = self.slow.try_acquire() else {
            return Attempt::Failed(TaskFailure::Sandbox(SandboxError::Busy));
        };
        match timeout(DEADLINE - MAX_QUANTUM, answering).await {
            Ok((_, Ok(answer))) => Attempt::Done(answer),
            Ok((_, Err(lost))) => Attempt::Failed(lost.into()),
            Err(_) => Attempt::Failed(TaskFailure::Limit(Limit::Time(DEADLINE))),
        }
    }

    fn start(&self) -> Result<Process, TaskFailure> {
        let process = Process::start(&self.command);
        let process = process
            .map_err(|error| TaskFailure::Sandbox(SandboxError::Unavailable { reason: error.to_string() }))?;
        self.metrics.sandbox_starts.inc();
        Ok(process)
    }

    fn put_back(&self, process: Process) {
        let mut idle = self.idle();
        if idle.len() < FAST {
            idle.push(process);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Process>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Encodes a task as a frame; a long one on another thread, because this thread streams answers.
async fn encode(task: Task) -> Result<Vec<u8>, TaskFailure> {
    let encode = |task: &Task| {
        let mut frame = Vec::new();
        // Request bodies are limited, so this happens only if the settings allow larger ones.
        let encoded = wire::encode(task, &mut frame);
        encoded.map(|()| frame).map_err(|_| TaskFailure::Limit(Limit::Memory(wire::MAX_FRAME)))
    };
    if task.length() <= SHORT {
        return encode(&task);
    }
    let encoded = tokio::task::spawn_blocking(move || encode(&task)).await;
    encoded.unwrap_or_else(|error| {
        Err(TaskFailure::Sandbox(SandboxError::Unavailable { reason: error.to_string() }))
    })
}

/// How a quantum ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantum {
    /// The process has run, as far as the system reports it.
    Run,
    /// The process got no CPU time, for example because it is stopped. Its task is not the cause.
    NotRun,
}

/// Waits until a task has used up its time in the fast lane.
async fn quantum(id: Option<u32>, cpu_time_before: Duration) -> Quantum {
    let begun = Instant::now();
    sleep(QUANTUM).await;
    loop {
        let Some(now) = id.and_then(cpu_time_of) else { return Quantum::Run };
        let spent = now.saturating_sub(cpu_time_before);
        if begun.elapsed() >= MAX_QUANTUM {
            return if spent.is_zero() { Quantum::NotRun } else { Quantum::Run };
        }
        if spent >= QUANTUM {
            return Quantum::Run;
        }
        sleep(POLL_INTERVAL).await;
    }
}
