//! The request queue, connected to the workers.

use std::sync::Arc;

use super::reload::limits;
use crate::{
    config::Config,
    executor::{Executor, Routing},
    job::ModelId,
    metrics::Metrics,
    supervise::WorkerPool,
};

/// Starts the queue: a handle for requests, and the future that runs it.
pub(super) fn start(
    config: &Config,
    metrics: &Arc<Metrics>,
    workers: &WorkerPool,
) -> (Executor, impl Future<Output = ()> + Send + use<>) {
    let run = |slot| {
        let workers = workers.clone();
        move |jobs, events| {
            let workers = workers.clone();
            async move { workers.run(slot, jobs, events).await }
        }
    };
    let slots = (0..workers.size()).map(run).collect();
    let (executor, running) = Executor::with_slots(limits(config), Arc::clone(metrics), slots);
    executor.limit_overtakes(config.queue.max_overtakes);
    route(config, &executor, workers.clone());
    (executor, running)
}

/// Makes the queue wait for the device that has a job's model, if there is a choice.
fn route(config: &Config, executor: &Executor, mut workers: WorkerPool) {
    let max_switches = config.queue.max_switches;
    let has_one_device = workers.size() == 1;
    if has_one_device && max_switches.is_none() {
        return;
    }
    let (loaded, open) = (workers.clone(), workers.clone());
    executor.route(Routing {
        max_switches,
        is_loaded: Arc::new(move |slot, model: &ModelId| loaded.is_loaded(slot, model)),
        is_open: Arc::new(move |slot| has_one_device || open.is_open(slot)),
    });
    let executor = executor.clone();
    tokio::spawn(async move {
        loop {
            workers.changed().await;
            executor.look_again();
        }
    });
}
