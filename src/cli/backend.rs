//! What answers the requests of a server: workers on this machine, or the nodes of a cluster.

use std::{collections::BTreeMap, path::Path, pin::Pin, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    cluster_options,
    exit::{Exit, WithExit},
    queue,
    reload::limits,
    resolve_model,
    served_models::ServedModels,
    worker_configs,
};
use crate::{
    cluster::{Broker, Gateway, Node, NodeParts, Operators, Options, Pool},
    config::{self, Config},
    executor::{Executor, Limits},
    http::{Commands, DeviceStates, DrainNode, ModelRegistry, ServesModel},
    job::{ModelId, Readiness},
    metrics::Metrics,
    prompt_store::PromptStore,
    sandbox::Sandbox,
    supervise::{WorkerConfig, WorkerPool},
};

/// The command that starts a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Serve,
    Gateway,
    Node,
}

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Alone.
    Single,
    /// Takes requests of clients, and lets nodes answer them.
    Gateway,
    /// Answers requests of gateways.
    Node,
    /// A gateway and a node.
    Both,
}

/// A future without a name.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Changes the workers before they are started.
type Inject<'a> = &'a dyn Fn(Vec<WorkerConfig>) -> Vec<WorkerConfig>;

/// What answers requests.
pub(super) struct Backend {
    pub(super) models: ModelRegistry,
    pub(super) executor: Executor,
    pub(super) readiness: watch::Receiver<Readiness>,
    pub(super) devices: DeviceStates,
    /// `None` if commands are not supported.
    pub(super) commands: Option<Commands>,
    /// Stops a node of a cluster; `None` without one.
    pub(super) drain_node: Option<DrainNode>,
    /// `None` if every model of the settings can be answered.
    pub(super) serves: Option<ServesModel>,
    /// `None` if prompts cannot be saved.
    pub(super) saved: Option<PromptStore>,
    /// Workers on this machine.
    pub(super) workers: usize,
    /// Runs as long as the server does.
    pub(super) beside: Task,
    /// Called when the server begins to shut down.
    pub(super) on_shutdown: Box<dyn FnOnce()>,
    /// Ends what was started, after the last answer.
    pub(super) finish: Task,
}

impl Role {
    /// The role of a server with these settings. A gateway or node that has only `models.dir` gets its first model as `model.path`.
    ///
    /// # Errors
    /// When there is no cluster to join, or no model.
    pub(super) fn of(command: Command, settings: &mut config::Settings) -> anyhow::Result<Self> {
        let role = match (command, &settings.config.cluster.join) {
            (Command::Serve, None) => return Ok(Self::Single),
            (Command::Serve, Some(_)) => Self::Both,
            (Command::Gateway, _) => Self::Gateway,
            (Command::Node, _) => Self::Node,
        };
        cluster_options::options(&settings.config, false)?;
        if settings.is_default("model.path")
            && let Some(dir) = settings.config.models.dir.clone()
        {
            let (path, id) = resolve_model::first_in(&dir)?;
            (settings.config.model.path, settings.config.model.id) = (path, id);
        }
        Ok(role)
    }
}

impl Backend {
    /// Starts what a server with this role needs. `drain` makes the server stop as SIGTERM does.
    ///
    /// # Errors
    /// When models, workers or the connection to the cluster cannot be used.
    pub(super) async fn start(
        role: Role,
        config: &Config,
        (metrics, sandbox): (&Arc<Metrics>, &Sandbox),
        (inject, drain): (Inject<'_>, &CancellationToken),
    ) -> anyhow::Result<Self> {
        match role {
            Role::Single => Self::single(config, metrics, sandbox, inject).await,
            Role::Gateway => Self::gateway(config, metrics, sandbox).await,
            Role::Node => Self::node(config, metrics, sandbox, (inject, drain)).await,
            Role::Both => Self::gateway_and_node(config, metrics, sandbox, (inject, drain)).await,
        }
    }

    async fn single(
        config: &Config,
        metrics: &Arc<Metrics>,
        sandbox: &Sandbox,
        inject: Inject<'_>,
    ) -> anyhow::Result<Self> {
        let (models, workers) = worker_configs::on_all_devices(config, sandbox).await?;
        let (workers, supervision) = WorkerPool::new(inject(workers), metrics);
        let (executor, queue) = queue::start(config, metrics, &workers);
        let ended = workers.clone();
        Ok(Self {
            models,
            executor,
            readiness: workers.readiness(),
            devices: devices(&workers),
            commands: Some(worker_commands(workers.clone())),
            drain_node: None,
            serves: None,
            // Absolute, because workers use the directory too.
            saved: Some(PromptStore::new(std::path::absolute(&config.engine.prefix_cache_dir)?)),
            workers: workers.size(),
            beside: Box::pin(async {
                tokio::join!(supervision, queue);
            }),
            on_shutdown: Box::new(|| {}),
            finish: Box::pin(async move { ended.stop().await }),
        })
    }

    async fn gateway(config: &Config, metrics: &Arc<Metrics>, sandbox: &Sandbox) -> anyhow::Result<Self> {
        let options = cluster_options::options(config, true)?;
        let served = ServedModels::open(vec![resolve_model::texts(config)?], sandbox).await?;
        let mut pools = BTreeMap::new();
        for model in served.devices.iter().flatten() {
            pools.insert(model.id.as_str().into(), cluster_options::pool(&model.id, &model.dir)?);
        }
        let broker = cluster_options::connect(&options, "gateway").await?;
        let joined = join(broker, options, (config, pools), metrics).await?;
        Ok(Self::of_gateway(joined, served.registry))
    }

    async fn node(
        config: &Config,
        metrics: &Arc<Metrics>,
        sandbox: &Sandbox,
        (inject, drain): (Inject<'_>, &CancellationToken),
    ) -> anyhow::Result<Self> {
        let options = cluster_options::options(config, false)?;
        let (models, workers) = worker_configs::on_all_devices(config, sandbox).await?;
        let pools = pools(&workers)?;
        let broker = cluster_options::connect(&options, "node").await?;
        let (workers, supervision) = WorkerPool::new(inject(workers), metrics);
        let (executor, queue) = queue::start(config, metrics, &workers);
        let parts = NodeParts {
            broker,
            options,
            pools,
            executor: executor.clone(),
            devices: node_devices(&workers),
            operators: operators(&workers, drain),
            metrics: Arc::clone(metrics),
        };
        let (node, work) = Node::start(parts).await.with_exit(Exit::Machine)?;
        let (ended, last) = (workers.clone(), node.clone());
        Ok(Self {
            models,
            executor,
            readiness: workers.readiness(),
            devices: devices(&workers),
            commands: None,
            drain_node: None,
            serves: None,
            saved: None,
            workers: workers.size(),
            beside: Box::pin(async {
                tokio::join!(supervision, queue, work);
            }),
            on_shutdown: Box::new(move || node.drain()),
            finish: Box::pin(async move {
                last.finish().await;
                ended.stop().await;
            }),
        })
    }

    async fn gateway_and_node(
        config: &Config,
        metrics: &Arc<Metrics>,
        sandbox: &Sandbox,
        (inject, drain): (Inject<'_>, &CancellationToken),
    ) -> anyhow::Result<Self> {
        let options = cluster_options::options(config, true)?;
        let (models, workers) = worker_configs::on_all_devices(config, sandbox).await?;
        let pools = pools(&workers)?;
        let broker = cluster_options::connect(&options, "server").await?;
        let (workers, supervision) = WorkerPool::new(inject(workers), metrics);
        // The gateway measures the requests; the node's queue would count them twice.
        let (executor, queue) = queue::start(config, &Arc::new(Metrics::new()), &workers);
        let parts = NodeParts {
            broker: broker.clone(),
            options: options.clone(),
            pools: pools.clone(),
            executor: executor.clone(),
            devices: node_devices(&workers),
            operators: operators(&workers, drain),
            metrics: Arc::clone(metrics),
        };
        let (node, work) = Node::start(parts).await.with_exit(Exit::Machine)?;
        let by_model = pools.into_iter().map(|(pool, model)| (model, pool)).collect();
        let joined = join(broker, options, (config, by_model), metrics).await?;
        let grace = config.server.grace_ms.into();
        let size = workers.size();
        let mut both = Self::of_gateway(joined, models);
        let (of_gateway, finish_gateway) = (both.beside, both.finish);
        both.workers = size;
        both.beside = Box::pin(async {
            tokio::join!(supervision, queue, work, of_gateway);
        });
        // This node may be the only one that can answer the requests that wait here.
        both.finish = Box::pin(async move {
            node.drain();
            executor.drain(grace).await;
            node.finish().await;
            finish_gateway.await;
            workers.stop().await;
        });
        Ok(both)
    }

    fn of_gateway(joined: Joined, models: ModelRegistry) -> Self {
        let Joined { gateway, executor, work } = joined;
        let (states, served, last) = (gateway.clone(), gateway.clone(), gateway.clone());
        let (operated, stopped) = (gateway.clone(), gateway.clone());
        Self {
            models,
            executor,
            readiness: gateway.readiness(),
            devices: Arc::new(move || states.devices()),
            commands: Some(Arc::new(move |command| {
                let gateway = operated.clone();
                Box::pin(async move { gateway.command(command).await })
            })),
            drain_node: Some(Arc::new(move |node| {
                let gateway = stopped.clone();
                Box::pin(async move { gateway.drain_node(&node).await })
            })),
            serves: Some(Arc::new(move |model| served.serves(&model.into()))),
            saved: None,
            workers: 0,
            beside: work,
            on_shutdown: Box::new(|| {}),
            finish: Box::pin(async move { last.finish().await }),
        }
    }
}

/// A gateway that is connected.
struct Joined {
    gateway: Gateway,
    executor: Executor,
    work: Task,
}

async fn join(
    broker: Broker,
    options: Options,
    (config, pools): (&Config, BTreeMap<ModelId, Pool>),
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Joined> {
    // The queue of all gateways has one bound.
    let limits = Limits { max_jobs: options.max_jobs, ..limits(config) };
    let started = Gateway::start(broker, options, (limits, pools), Arc::clone(metrics)).await;
    let (gateway, executor, work) = started.with_exit(Exit::Machine)?;
    Ok(Joined { gateway, executor, work: Box::pin(work) })
}

/// The pools of the models that workers can load. All devices serve the same models; the export for the first one counts.
fn pools(workers: &[WorkerConfig]) -> anyhow::Result<Vec<(Pool, ModelId)>> {
    let models = workers.first().map(|worker| &worker.models[..]).unwrap_or_default();
    let pool = |id: &ModelId, dir: &Path| Ok((cluster_options::pool(&id.0, dir)?, id.clone()));
    models.iter().map(|source| pool(&source.id, &source.dir)).collect()
}

/// The state of each device, with its name if there are several.
fn node_devices(workers: &WorkerPool) -> crate::cluster::Devices {
    let devices = workers.devices().map(|(label, readiness)| (label.map(str::to_owned), readiness));
    let devices: Vec<_> = devices.collect();
    Arc::new(move || devices.iter().map(|(label, state)| (label.clone(), state.borrow().clone())).collect())
}

/// What gateways may do with this node.
fn operators(workers: &WorkerPool, drain: &CancellationToken) -> Operators {
    let (workers, drain) = (workers.clone(), drain.clone());
    Operators {
        command: Box::new(move |command| {
            let workers = workers.clone();
            Box::pin(async move { workers.command(command).await })
        }),
        drain: Box::new(move || drain.cancel()),
    }
}

fn worker_commands(workers: WorkerPool) -> Commands {
    Arc::new(move |command| {
        let workers = workers.clone();
        Box::pin(async move { workers.command(command).await })
    })
}

/// The devices by name, if there are several.
fn devices(workers: &WorkerPool) -> DeviceStates {
    let named = workers.devices().filter_map(|(label, readiness)| Some((label?.to_owned(), readiness)));
    let named: Vec<_> = named.collect();
    Arc::new(move || named.iter().map(|(name, state)| (name.clone(), state.borrow().clone())).collect())
}
