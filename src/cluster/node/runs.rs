//! The runs of a node, by their gateways and jobs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU16},
};

use tokio_util::sync::CancellationToken;

use super::log::EventLog;
use crate::cluster::messages::{RunEnd, RunKey};

/// A gateway and the number of its job.
pub(super) type JobKey = (String, u64);

/// A run on this node.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) key: RunKey,
    pub(super) log: Arc<EventLog>,
    /// Cancels each of its jobs, in the order of the grant.
    pub(super) cancels: Arc<[CancellationToken]>,
    /// The number of its slot.
    pub(super) slot: Arc<AtomicU16>,
}

impl Run {
    pub(super) fn new(key: RunKey, jobs: usize) -> Self {
        let cancels = (0..jobs).map(|_| CancellationToken::new()).collect();
        Self { key, log: Arc::default(), cancels, slot: Arc::default() }
    }

    /// Ends the run so that another node continues it.
    pub(super) fn hand_over(&self) {
        if self.log.end(RunEnd::HandOver) {
            self.cancels.iter().for_each(CancellationToken::cancel);
        }
    }

    /// Ends the run without waiting for its jobs: they stop after the current step.
    pub(super) fn stop(&self) {
        self.log.abandon();
        self.cancels.iter().for_each(CancellationToken::cancel);
    }
}

/// What a node has of a job.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// It has asked for it.
    Claiming,
    /// It runs it, or has run it and waits for the gateway's answer.
    Run(Run),
}

/// The jobs that a node claims, runs, or has not yet handed in.
#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<HashMap<JobKey, Entry>>);

impl Runs {
    /// Notes a claim; `false` if the node has this job.
    pub(super) fn claim(&self, job: &JobKey) -> bool {
        let mut entries = self.lock();
        let is_new = !entries.contains_key(job);
        if is_new {
            entries.insert(job.clone(), Entry::Claiming);
        }
        is_new
    }

    pub(super) fn start(&self, job: &JobKey, run: Run) {
        self.lock().insert(job.clone(), Entry::Run(run));
    }

    pub(super) fn remove(&self, job: &JobKey) {
        self.lock().remove(job);
    }

    pub(super) fn get(&self, job: &JobKey) -> Option<Entry> {
        self.lock().get(job).cloned()
    }

    /// Slots in use: by claims, and by runs that have not ended.
    pub(super) fn busy(&self) -> usize {
        let is_busy = |entry: &&Entry| match entry {
            Entry::Claiming => true,
            Entry::Run(run) => !run.log.has_ended(),
        };
        self.lock().values().filter(is_busy).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The runs by their gateways.
    pub(super) fn by_gateway(&self) -> HashMap<String, Vec<Run>> {
        let mut runs: HashMap<String, Vec<Run>> = HashMap::new();
        for ((gateway, _), entry) in self.lock().iter() {
            if let Entry::Run(run) = entry {
                runs.entry(gateway.clone()).or_default().push(run.clone());
            }
        }
        runs
    }

    /// Gives all running jobs back to their gateways.
    pub(super) fn hand_over(&self) {
        self.by_gateway().values().flatten().for_each(Run::hand_over);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobKey, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
