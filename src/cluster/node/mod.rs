//! A node: pulls tickets while a slot is free, claims the jobs and runs them on this machine.

mod claim;
mod control;
mod kept;
mod log;
mod offers;
mod pull;
mod run;
mod runs;
mod shared;
mod turns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, interval, sleep},
};

pub use self::shared::{CommandOutcomes, Devices, Operators};
use self::{kept::Kept, offers::Offers, runs::Runs, shared::Shared};
use super::{
    broker::Broker,
    connect_error::ConnectError,
    jetstream::TicketStream,
    messages::{NodeState, encode},
    options::Options,
    subjects::Pool,
};
use crate::{
    executor::Executor,
    job::{ModelId, Readiness},
    metrics::Metrics,
};

/// Interval at which a node says what it is and can.
const REPORT: Duration = Duration::from_secs(1);

/// Longest wait at the end for the last events to reach their gateways.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// What a node is made of.
pub struct NodeParts {
    /// The connection to the NATS server.
    pub broker: Broker,
    /// Its settings.
    pub options: Options,
    /// The models that it can run, and their pools.
    pub pools: Vec<(Pool, ModelId)>,
    /// The queue in front of this machine's workers. Nothing else submits jobs to it.
    pub executor: Executor,
    /// The devices of this machine.
    pub devices: Devices,
    /// How gateways operate it.
    pub operators: Operators,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
}

/// A node of a cluster; clones are the same one.
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// A node, and the future that runs it.
    ///
    /// # Errors
    /// [`ConnectError`] when the connection has ended.
    pub async fn start(
        parts: NodeParts,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), ConnectError> {
        let NodeParts { broker, options, pools, executor, devices, operators, metrics } = parts;
        let stream = TicketStream::new(broker.clone(), &options);
        let shared = Arc::new(Shared {
            broker,
            stream,
            options,
            pools,
            executor,
            devices,
            metrics,
            instance: rand::random(),
            operators,
            runs: Runs::default(),
            kept: Kept::default(),
            offers: Offers::default(),
            changed: Notify::new(),
            freed: Notify::new(),
            is_draining: AtomicBool::new(false),
        });
        let commands = shared.broker.subscribe(shared.broker.subjects.control(&shared.options.id)).await?;
        let puller = pull::Puller::start(Arc::clone(&shared)).await?;
        let node = Self { shared: Arc::clone(&shared) };
        let work = async move {
            tokio::join!(
                puller.run(),
                control::serve(Arc::clone(&shared), commands),
                control::send_beats(Arc::clone(&shared)),
                report(shared),
            );
        };
        Ok((node, work))
    }

    /// Takes no more jobs. With `cluster.drain = hand-over` the running ones continue on other nodes.
    pub fn drain(&self) {
        self.shared.is_draining.store(true, Ordering::Relaxed);
        self.shared.freed.notify_waiters();
        self.shared.changed.notify_one();
        if self.shared.options.hands_over {
            self.shared.runs.hand_over();
        }
    }

    /// Waits until the last events are with their gateways, and says that the node leaves.
    pub async fn finish(&self) {
        let until = Instant::now() + LAST_EVENTS;
        while !self.shared.runs.is_empty() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
        let state = NodeState { leaving: true, ..self.shared.state() };
        self.shared.broker.publish(&self.shared.broker.subjects.state(), encode(&state)).await;
        self.shared.broker.flush(Duration::from_secs(1)).await;
    }
}

/// Says what this node is and can: every second, and at once when that changes.
async fn report(shared: Arc<Shared>) {
    let subject = shared.broker.subjects.state();
    let mut tick = interval(REPORT);
    let mut connection = shared.broker.connection();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = connection.changed() => {}
            () = shared.changed.notified() => {}
        }
        shared.metrics.cluster.connected.set(i64::from(shared.broker.connected_since().is_some()));
        if (shared.devices)().iter().all(|(_, state)| !matches!(state, Readiness::Ready(_))) {
            shared.kept.clear();
        }
        if shared.broker.connected_since().is_some() {
            shared.broker.publish(&subject, encode(&shared.state())).await;
        }
        // A device may have become ready, which wakes nothing else.
        shared.freed.notify_waiters();
    }
}
