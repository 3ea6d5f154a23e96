//! A gateway: owns jobs from their acceptance to their end.
//!
//! Each group of jobs has one task ([`lifecycle`]), which holds the state of the group and gets mail: claims, events, what probes found.
//! The tasks here only pass messages to the owners, and look after the stream and the list of nodes.

mod affinity;
mod dispatch;
mod grant;
mod lifecycle;
mod mail;
mod operate;
mod owner;
mod probe;
mod run;
mod shared;
mod ticket_list;
mod tickets;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, atomic::AtomicU32},
    time::Duration,
};

use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        watch,
    },
    time::{Instant, interval, sleep},
};

use self::{
    mail::Mail,
    owner::Owner,
    shared::{OwnerHandle, Shared},
    ticket_list::Tickets,
};
use super::{
    broker::Broker,
    connect_error::ConnectError,
    fleet::{Fleet, NodeCounts},
    jetstream::{StreamError, TicketStream},
    options::Options,
    subjects::Pool,
};
use crate::{
    executor::{Executor, Limits, QueueChange},
    job::{Command, CommandOutcome, JobId, ModelId, Readiness},
    metrics::{Metrics, NodeLabel},
};

/// Interval at which nodes that no longer report are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// How long a gateway tries to create the stream before it gives up: servers of a cluster elect a leader first.
const CREATE: Duration = Duration::from_secs(20);

/// A gateway of a cluster; clones are the same one.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
}

impl Gateway {
    /// A gateway that serves these models, its queue, and the future that runs both.
    ///
    /// # Errors
    /// [`ConnectError`] when the broker does not allow what a gateway needs.
    pub async fn start(
        broker: Broker,
        options: Options,
        (limits, pools): (Limits, BTreeMap<ModelId, Pool>),
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Executor, impl Future<Output = ()> + Send + 'static), ConnectError> {
        let stream = TicketStream::new(broker.clone(), &options);
        create(&stream, pools.values(), &options).await?;
        let (executor, queue, changes, deadlines) = Executor::remote(limits, Arc::clone(&metrics));
        let shared = Arc::new(Shared {
            tickets: Tickets::default(),
            fleet: Fleet::new(),
            owners: Mutex::default(),
            broker,
            stream,
            options,
            pools,
            queue,
            metrics,
        });
        let gateway = Self { shared: Arc::clone(&shared) };
        let dispatch = dispatch::Dispatch::start(Arc::clone(&shared)).await?;
        let work = async move {
            tokio::join!(
                deadlines,
                dispatch.run(),
                start_owners(Arc::clone(&shared), changes),
                watch_nodes(Arc::clone(&shared)),
                tickets::watch(shared),
            );
        };
        Ok((gateway, executor, work))
    }

    /// Whether a node is ready, with the loaded models of all nodes.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.shared.fleet.readiness()
    }

    /// The state of every slot by its name.
    #[must_use]
    pub fn devices(&self) -> Vec<(String, Readiness)> {
        self.shared.fleet.devices()
    }

    /// Whether a node can run a model.
    #[must_use]
    pub fn serves(&self, model: &ModelId) -> bool {
        self.shared.pools.get(model).is_some_and(|pool| self.shared.fleet.serves(pool.as_str()))
    }

    /// Runs a command on every node that serves its model; one outcome per device, at least one.
    pub async fn command(&self, command: Command) -> Vec<CommandOutcome> {
        operate::on_all_nodes(&self.shared, command).await
    }

    /// Tells a node to stop after the requests that it has; `false` if the node is unknown.
    pub async fn drain_node(&self, node: &str) -> bool {
        operate::drain(&self.shared, node).await
    }

    /// Waits until the last messages are with the broker.
    pub async fn finish(&self) {
        self.shared.broker.flush(Duration::from_secs(1)).await;
    }
}

/// Creates the stream and the consumers of all pools.
async fn create(
    stream: &TicketStream,
    pools: impl Iterator<Item = &Pool> + Clone,
    options: &Options,
) -> Result<(), ConnectError> {
    let until = Instant::now() + CREATE;
    loop {
        let mut created = stream.create().await;
        for pool in pools.clone() {
            if created.is_ok() {
                created = stream.create_consumers(pool).await;
            }
        }
        let reason = match created {
            Ok(()) => return Ok(()),
            Err(StreamError::Refused { message, .. }) => message,
            Err(_) if Instant::now() < until => {
                sleep(Duration::from_millis(250)).await;
                continue;
            }
            Err(StreamError::Missing) => "it has no JetStream; start it with --jetstream".into(),
            Err(StreamError::Full | StreamError::Late) => {
                "it does not answer; check the permissions of cluster.user for $JS.API.>".into()
            }
        };
        return Err(ConnectError::Stream { urls: options.urls.clone(), reason });
    }
}

/// Starts an owner for each accepted group, and tells owners of jobs that were withdrawn.
async fn start_owners(shared: Arc<Shared>, mut changes: UnboundedReceiver<QueueChange>) {
    while let Some(change) = changes.recv().await {
        match change {
            QueueChange::Accepted(group) => {
                let (mail, mailbox) = unbounded_channel();
                let (JobId(number), epoch) = (group.group, Arc::new(AtomicU32::new(0)));
                let handle = OwnerHandle { mail, epoch: Arc::clone(&epoch) };
                shared.owners().insert(number, handle);
                let owner = Owner::new(Arc::clone(&shared), group, mailbox, epoch);
                tokio::spawn(lifecycle::run(owner));
            }
            QueueChange::Withdrawn(group) => drop(shared.mail(group.0, Mail::Withdrawn)),
        }
    }
}

/// Notes nodes that no longer report, and how many slots there are.
async fn watch_nodes(shared: Arc<Shared>) {
    let (mut look, mut known) = (interval(LOOK), HashSet::new());
    loop {
        look.tick().await;
        // Without a connection no node can report.
        if shared.broker.connected_since().is_some_and(|since| since.elapsed() > LOOK * 8) {
            for node in shared.fleet.mark_away(Instant::now()) {
                tracing::warn!(event = "node_away", node, "a node does not report any more");
            }
        }
        let (slots, live) = shared.fleet.counts();
        shared.queue.set_slots(slots, live);
        let cluster = &shared.metrics.cluster;
        cluster.slots.set(gauge(live));
        cluster.connected.set(i64::from(shared.broker.connected_since().is_some()));
        let now = measure_nodes(&shared);
        known.difference(&now).for_each(|node| cluster.forget(node));
        known = now;
    }
}

/// Sets the metrics of each node, and gives the nodes.
fn measure_nodes(shared: &Shared) -> HashSet<NodeLabel> {
    let (cluster, running) = (&shared.metrics.cluster, shared.queue.running());
    let mut known = HashSet::new();
    let nodes = shared.fleet.nodes_by_name();
    cluster.nodes.set(gauge(nodes.iter().filter(|node| !node.is_away).count()));
    for NodeCounts { node, is_away, live, slots } in nodes {
        let node = NodeLabel { node };
        let jobs = slots.iter().filter_map(|slot| running.get(slot)).sum();
        cluster.node_up.get_or_create(&node).set(i64::from(!is_away));
        cluster.node_slots.get_or_create(&node).set(gauge(live));
        cluster.node_running.get_or_create(&node).set(gauge(jobs));
        known.insert(node);
    }
    known
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
