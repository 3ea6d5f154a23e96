//! Which child does which task, and for how long.
//!
//! ```text
//! run ─► queue (most_waiting) ─► fast lane (FAST places, QUANTUM each) ─► done
//!            └─ full: busy           └─► slow lane (SLOW places, DEADLINE) ─► done, or killed
//!                                            └─ full: killed, busy
//! ```
//!
//! Nearly all tasks take milliseconds, and a few take seconds or never end, which cannot be known in advance. So each has a
//! short time in the fast lane. One that needs longer leaves that lane with its child, which then runs at the lowest
//! priority, and the fast lane gets a fresh child. However many slow tasks come, others wait for as many quanta at most,
//! never for a deadline.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    ChildProgram, SandboxError, limits,
    process::{ChildFailure, Process, SHORT, cpu_time_of, lower_priority},
    task::{Answer, Task},
};
use crate::{
    metrics::{Metrics, SandboxTask},
    units::Bytes,
    wire,
};

/// Tasks that run in their first quantum at once.
const FAST: usize = 2;

/// Tasks that run for longer at once. Their memory is what an attack can take of the machine.
const SLOW: usize = 2;

/// What a pool does.
#[derive(Clone, Copy, Debug)]
pub(super) struct TaskKind {
    /// What its tasks are called in the metrics.
    pub(super) name: &'static str,
    /// Most tasks that wait for the fast lane.
    pub(super) most_waiting: usize,
}

/// Processor time in the fast lane. Time on the clock would call any task slow on a busy machine.
const QUANTUM: Duration = Duration::from_millis(250);

/// Time on the clock in the fast lane, for a process that gets no processor.
const LONGEST_QUANTUM: Duration = Duration::from_secs(5);

/// Between two looks at the processor time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time on the clock for a whole task, whose processor time the child limits itself.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a task has no answer.
#[derive(Debug)]
pub(super) enum TaskFailure {
    /// Its content asks for too much.
    Limit(Limit),
    /// Nothing that its content could change.
    Sandbox(SandboxError),
}

/// The limit that a task passed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    Time(Duration),
    /// Stack is memory too: a process that runs out of either ends in the same way.
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
    /// A child that had been running before was lost or had been stopped, which is nothing that this task did.
    Retry,
}

impl Pool {
    pub(super) fn new(kind: TaskKind, command: ChildProgram, metrics: Arc<Metrics>) -> Self {
        Self {
            kind,
            command,
            idle: Mutex::default(),
            waiting: Semaphore::new(FAST + kind.most_waiting),
            fast: Semaphore::new(FAST),
            slow: Semaphore::new(SLOW),
            metrics,
        }
    }

    /// Has a child ready for the next task, if one can be started. Children of another thread are ended: that thread would
    /// watch their pipes, and each reply would have to be handed over.
    pub(super) fn warm_up(&self) {
        self.idle().clear();
        self.refill();
    }

    fn refill(&self) {
        if self.idle().is_empty() {
            match self.start() {
                Ok(process) => self.put_back(process),
                // The next task says so to somebody.
                Err(failure) => {
                    tracing::warn!(?failure, kind = self.kind.name, "no sandbox process can be started")
                }
            }
        }
    }

    /// Does a task. A task whose caller stops waiting is killed.
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
        // What waits is the frame alone.
        let frame = encode(task).await?;
        loop {
            match self.attempt(&frame).await {
                Attempt::Done(answer) => return Ok(answer),
                Attempt::Failed(failure) => return Err(failure),
                // This ends: the number of old children is limited, and each try uses one up.
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
                self.go_on(answering).await
            }
        }
    }

    /// Waits for a task that has used up its quantum. Its process, which may hold much memory, is not used again.
    async fn go_on(
        &self,
        answering: impl Future<Output = (Process, Result<Answer, ChildFailure>)>,
    ) -> Attempt {
        let Ok(_place) = self.slow.try_acquire() else {
            return Attempt::Failed(TaskFailure::Sandbox(SandboxError::Busy));
        };
        match timeout(DEADLINE - LONGEST_QUANTUM, answering).await {
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

/// The task as a frame, made elsewhere where it is long: this thread streams answers.
async fn encode(task: Task) -> Result<Vec<u8>, TaskFailure> {
    let encode = |task: &Task| {
        let mut frame = Vec::new();
        // Bodies are limited, so a frame that is too long has been asked for by a setting.
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

/// What a process did with its time in the fast lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantum {
    /// It has run, as far as the system says.
    Run,
    /// It was never given the processor, as a stopped process is. That says nothing about its task.
    NotRun,
}

/// Completes when a task has had its time in the fast lane.
async fn quantum(id: Option<u32>, cpu_time_before: Duration) -> Quantum {
    let begun = Instant::now();
    sleep(QUANTUM).await;
    loop {
        let Some(now) = id.and_then(cpu_time_of) else { return Quantum::Run };
        let spent = now.saturating_sub(cpu_time_before);
        if begun.elapsed() >= LONGEST_QUANTUM {
            return if spent.is_zero() { Quantum::NotRun } else { Quantum::Run };
        }
        if spent >= QUANTUM {
            return Quantum::Run;
        }
        sleep(LOOK_EVERY).await;
    }
}
