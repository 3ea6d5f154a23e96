//! What is to be seen of the queue and its slots: who runs, who waits, and what the last jobs took.
//!
//! Figures and names alone: of what was asked and answered nothing is kept when a job is over.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use super::Limits;
use crate::{
    job::{Failure, Finish, FinishReason, JobId, Memory, MemoryReport, ModelId, Priority},
    units::Tokens,
};

/// Jobs that are remembered when they are over.
const REMEMBERED: usize = 64;

/// Who wants a job done, in words that the executor keeps and gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Of the request that the job is for; empty where nobody gave it one.
    pub request_id: String,
    /// Name of the key that was shown.
    pub key: Option<String>,
}

/// The queue and its slots at one moment, in full.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Slots, one for each device.
    pub slots: usize,
    /// What the queue holds at most.
    pub limits: Limits,
    /// Whether new jobs are accepted.
    pub accepting: bool,
    /// What has a slot.
    pub running: Vec<RunningJobInfo>,
    /// What waits, in the order of its turns.
    pub waiting: Vec<WaitingJobInfo>,
    /// The last jobs that had a slot, the latest last; a few dozen at most.
    pub past: Vec<FinishedJob>,
    /// How many jobs ended in which way.
    pub counts: JobCounts,
}

/// A job as it was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobInfo {
    /// Its number.
    pub id: JobId,
    /// Who wants it.
    pub caller: Caller,
    /// Whether it goes before others.
    pub priority: Priority,
    /// What runs it.
    pub model: ModelId,
    /// Length of its prompt.
    pub prompt: Tokens,
    /// Most tokens it may generate.
    pub max_new: Tokens,
}

/// A job that has a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningJobInfo {
    /// The job.
    pub job: JobInfo,
    /// Which slot, counted from 0.
    pub slot: usize,
    /// For how long it has had it.
    pub time: Duration,
    /// Prompt tokens read.
    pub read: Tokens,
    /// Tokens generated.
    pub generated: Tokens,
    /// Since its first token; `None` before.
    pub decoding: Option<Duration>,
}

/// A job that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitingJobInfo {
    /// The job.
    pub job: JobInfo,
    /// Since it was accepted.
    pub time: Duration,
    /// For how long it is likely to wait from now on: what is ahead of it, at this slot's measured pace.
    pub left: Duration,
}

/// A job that had a slot and is over.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedJob {
    /// The job.
    pub job: JobInfo,
    /// Which slot it had, counted from 0.
    pub slot: usize,
    /// When it was over.
    pub ended: SystemTime,
    /// How it ended.
    pub outcome: JobOutcome,
    /// From accepted to having the slot.
    pub queue_wait: Duration,
    /// From having the slot to the end.
    pub time: Duration,
    /// Tokens generated.
    pub generated: Tokens,
    /// The worker's memory around it; `None` when it failed.
    pub memory: Option<MemoryReport>,
    /// What the worker held when the next job of this slot arrived: after the trim. `None` while there was no next one.
    pub settled: Option<Memory>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// By an end token.
    Stop,
    /// With as many tokens as were asked for.
    Length,
    /// Nobody wanted the rest: its client left, or its text was complete by a stop string.
    Cancelled,
    /// For whatever reason.
    Failed,
}

impl From<&Result<Finish, Failure>> for JobOutcome {
    fn from(ended: &Result<Finish, Failure>) -> Self {
        match ended.as_ref().map(|finish| finish.reason) {
            Ok(FinishReason::EndToken) => Self::Stop,
            Ok(FinishReason::Length) => Self::Length,
            Ok(FinishReason::Cancelled) => Self::Cancelled,
            Err(_) => Self::Failed,
        }
    }
}

/// How many jobs ended in which way, since the server was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// By an end token, or with as many tokens as were asked for.
    pub done: u64,
    /// Those that nobody wanted the rest of, also while they waited.
    pub cancelled: u64,
    /// All others.
    pub failed: u64,
}

/// The last jobs, and how many there were.
#[derive(Debug, Default)]
pub(super) struct History {
    past: VecDeque<FinishedJob>,
    counts: JobCounts,
}

impl History {
    /// Remembers a job that had a slot.
    pub(super) fn add(&mut self, past: FinishedJob) {
        self.count(past.outcome);
        let before = past.memory.map(|memory| memory.before);
        if let Some(last) = self.past.iter_mut().rfind(|last| last.slot == past.slot) {
            last.settled = before;
        }
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back(past);
    }

    /// JobCounts a job; one that never had a slot is not remembered.
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
    fn what_stays_after_a_job_is_what_the_next_one_of_its_slot_finds() {
        let mut history = History::default();
        for (id, slot, mib) in [(1, 0, 100), (2, 1, 200), (3, 0, 300)] {
            history.add(past(id, slot, mib));
        }
        let settled = history.past().into_iter().map(|past| past.settled?.resident).collect::<Vec<_>>();
        assert_eq!(settled, [Some(Bytes::mib(300)), None, None]);
    }

    #[test]
    fn the_latest_are_remembered_and_all_are_counted() {
        let mut history = History::default();
        (1..=100).for_each(|id| history.add(past(id, 0, id)));
        history.count(JobOutcome::Failed);
        let kept = history.past();
        assert_eq!((kept.len(), kept[0].job.id, kept[63].job.id), (64, JobId(37), JobId(100)));
        assert_eq!(history.counts(), JobCounts { done: 100, cancelled: 0, failed: 1 });
    }
}
