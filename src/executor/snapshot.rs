//! A snapshot of the queue: waiting and running jobs, and the last finished ones.
//!
//! It has numbers and names only. Prompts and answers are not kept.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use super::limits::Limits;
use crate::{
    job::{EndReason, Failure, Finish, JobId, Memory, MemoryReport, ModelId, Priority},
    units::Tokens,
};

/// Finished jobs that are kept.
const KEPT: usize = 64;

/// The caller of a job, for display.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Request id of the HTTP request; empty if none.
    pub request_id: String,
    /// Name of its API key.
    pub key: Option<String>,
}

/// Numbers of waiting and running jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSummary {
    /// Waiting jobs.
    pub queued_jobs: usize,
    /// Their prompt tokens.
    pub queued_prompt_tokens: Tokens,
    /// Running jobs, and for how long.
    pub running: Vec<(JobId, Duration)>,
    /// Whether new jobs are accepted; not after [`Executor::drain`](super::Executor::drain).
    pub accepting: bool,
}

/// All waiting and running jobs, and the last finished ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Number of slots, one per device.
    pub slots: usize,
    /// Limits of the queue.
    pub limits: Limits,
    /// Whether new jobs are accepted.
    pub accepting: bool,
    /// Running jobs.
    pub running: Vec<RunningJobInfo>,
    /// Waiting jobs in the order in which they will run.
    pub waiting: Vec<WaitingJobInfo>,
    /// The last finished jobs, the latest last.
    pub past: Vec<FinishedJob>,
    /// Number of jobs by outcome.
    pub counts: JobCounts,
}

/// An accepted job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobInfo {
    /// Its number.
    pub id: JobId,
    /// Its caller.
    pub caller: Caller,
    /// Its priority.
    pub priority: Priority,
    /// Its model.
    pub model: ModelId,
    /// Length of its prompt.
    pub prompt: Tokens,
    /// Maximum number of tokens to generate.
    pub max_new: Tokens,
}

/// A running job.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningJobInfo {
    /// The job.
    pub job: JobInfo,
    /// Its slot, counted from 0.
    pub slot: usize,
    /// Time since it started.
    pub time: Duration,
    /// Prompt tokens read so far.
    pub read: Tokens,
    /// Tokens generated so far.
    pub generated: Tokens,
    /// Time since its first token; `None` before.
    pub decoding: Option<Duration>,
}

/// A waiting job.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitingJobInfo {
    /// The job.
    pub job: JobInfo,
    /// Time since it was accepted.
    pub time: Duration,
    /// Estimated time until it runs.
    pub left: Duration,
}

/// A finished job that had a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedJob {
    /// The job.
    pub job: JobInfo,
    /// Its slot, counted from 0.
    pub slot: usize,
    /// When it ended.
    pub ended: SystemTime,
    /// How it ended.
    pub outcome: JobOutcome,
    /// Time from acceptance to its start.
    pub queue_wait: Duration,
    /// Time from its start to its end.
    pub time: Duration,
    /// Tokens generated.
    pub generated: Tokens,
    /// The worker's memory; `None` if the job failed.
    pub memory: Option<MemoryReport>,
    /// The worker's memory after the trim, when the next job of this slot started; `None` before.
    pub settled: Option<Memory>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// At an end token.
    Stop,
    /// At its maximum length.
    Length,
    /// Cancelled: its client left, or a stop string was found.
    Cancelled,
    /// With an error.
    Failed,
}

impl From<&Result<Finish, Failure>> for JobOutcome {
    fn from(ended: &Result<Finish, Failure>) -> Self {
        match ended.as_ref().map(|finish| finish.reason) {
            Ok(EndReason::EndToken) => Self::Stop,
            Ok(EndReason::Length) => Self::Length,
            Ok(EndReason::Cancelled) => Self::Cancelled,
            Err(_) => Self::Failed,
        }
    }
}

/// Number of jobs by outcome since the server was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// At an end token or at their maximum length.
    pub done: u64,
    /// Cancelled, also while waiting.
    pub cancelled: u64,
    /// With an error.
    pub failed: u64,
}

/// The last finished jobs, and the counts of all.
#[derive(Debug, Default)]
pub(super) struct History {
    past: VecDeque<FinishedJob>,
    counts: JobCounts,
}

impl History {
    /// Adds a finished job.
    pub(super) fn add(&mut self, past: FinishedJob) {
        self.count(past.outcome);
        let before = past.memory.map(|memory| memory.before);
        if let Some(last) = self.past.iter_mut().rfind(|last| last.slot == past.slot) {
            last.settled = before;
        }
        if self.past.len() == KEPT {
            self.past.pop_front();
        }
        self.past.push_back(past);
    }

    /// Counts a job. One that never had a slot is not remembered.
    pub(super) const fn count(&mut self, outcome: JobOutcome) {
        match outcome {
            JobOutcome::Stop | JobOutcome::Length => self.counts.done += 1,
            JobOutcome::Cancelled => self.counts.cancelled += 1,
            JobOutcome::Failed => self.counts.failed += 1,
        }
    }

    pub(super) fn past(&self) -> Vec<FinishedJob> {
        self.past.iter().cloned().collect()
    }

    pub(super) const fn counts(&self) -> JobCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn past(id: u64, slot: usize, mib: u64) -> FinishedJob {
        let before = Memory { resident: Some(Bytes::mib(mib)), ..Memory::default() };
        FinishedJob {
            job: JobInfo { id: JobId(id), ..JobInfo::default() },
            slot,
            ended: SystemTime::UNIX_EPOCH,
            outcome: JobOutcome::Stop,
            queue_wait: Duration::ZERO,
            time: Duration::ZERO,
            generated: Tokens(1),
            memory: Some(MemoryReport { before, ..MemoryReport::default() }),
            settled: None,
        }
    }

    #[test]
    fn settled_memory_is_what_the_next_job_of_the_slot_finds() {
        let mut history = History::default();
        for (id, slot, mib) in [(1, 0, 100), (2, 1, 200), (3, 0, 300)] {
            history.add(past(id, slot, mib));
        }
        let settled = history.past().into_iter().map(|past| past.settled?.resident).collect::<Vec<_>>();
        assert_eq!(settled, [Some(Bytes::mib(300)), None, None]);
    }

    #[test]
    fn the_latest_jobs_are_kept_and_all_are_counted() {
        let mut history = History::default();
        (1..=100).for_each(|id| history.add(past(id, 0, id)));
        history.count(JobOutcome::Failed);
        let kept = history.past();
        assert_eq!((kept.len(), kept[0].job.id, kept[63].job.id), (64, JobId(37), JobId(100)));
        assert_eq!(history.counts(), JobCounts { done: 100, cancelled: 0, failed: 1 });
    }
}
