//! The settings `cluster.*` as the cluster needs them, and the first connection to the NATS server.

use std::{fs, time::Duration};

use anyhow::Context;
use tokio::time::sleep;

use super::exit::{Exit, WithExit};
use crate::{
    cluster::{Affinity, Broker, ConnectError, Credentials, Options, Pool, Storage, random_name},
    config::{AffinityMode, Cluster, Config, DrainMode, QueueStorage},
    files, manifest,
};

/// Pause before another attempt to reach the NATS server: the processes of a cluster start in any order.
const AGAIN: Duration = Duration::from_millis(500);

/// How a process takes part in the cluster. `is_gateway`: a gateway's name is different each time that it starts, because its jobs
/// are numbered anew.
///
/// # Errors
/// When there is no cluster to join.
pub(super) fn options(config: &Config, is_gateway: bool) -> anyhow::Result<Options> {
    let Cluster { join, prefix, node_id, replicas, max_jobs, .. } = &config.cluster;
    let cluster = &config.cluster;
    let urls = join.clone().context(
        "cluster.join is not set: use --join with the URLs of NATS servers, such as nats://10.0.0.5:4222",
    );
    let id = match node_id {
        Some(id) if is_gateway => random_name(id),
        Some(id) => id.clone(),
        None => random_name(&host_name()),
    };
    let user = cluster.user.clone().zip(cluster.password_file.clone());
    let certificate = cluster.cert_file.clone().zip(cluster.key_file.clone());
    Ok(Options {
        urls: urls.with_exit(Exit::Usage)?,
        credentials: Credentials {
            user,
            nkey_file: cluster.nkey_file.clone(),
            ca_file: cluster.ca_file.clone(),
            certificate,
        },
        prefix: prefix.clone(),
        id,
        max_jobs: *max_jobs,
        replicas: *replicas,
        storage: match cluster.storage {
            QueueStorage::File => Storage::File,
            QueueStorage::Memory => Storage::Memory,
        },
        claim: cluster.claim_ms.into(),
        probe: cluster.probe_ms.into(),
        lost: cluster.lost_ms.into(),
        beat: cluster.beat_ms.into(),
        max_losses: cluster.max_losses.get(),
        max_overtakes: config.queue.max_overtakes,
        affinity: match cluster.affinity {
            AffinityMode::Off => Affinity::Off,
            AffinityMode::Idle => Affinity::Idle,
            AffinityMode::Worth => Affinity::Worth,
        },
        keeps_prompts: config.engine.prefix_cache_bytes.0 > 0,
        hands_over: cluster.drain == DrainMode::HandOver,
    })
}

/// Connects to the NATS server; waits for one that cannot be reached.
///
/// # Errors
/// When credentials, certificates or their files are wrong.
pub(super) async fn connect(options: &Options, what: &str) -> anyhow::Result<Broker> {
    let mut is_logged = false;
    loop {
        match Broker::connect(options, what).await {
            Ok(broker) => return Ok(broker),
            Err(error) if error.is_temporary() => {
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::warn!(event = "broker_unreachable", "{error}; trying again");
                }
                sleep(AGAIN).await;
            }
            Err(error @ ConnectError::File { .. }) => return Err(error).with_exit(Exit::Usage),
            Err(error) => return Err(error).with_exit(Exit::Machine),
        }
    }
}

/// The pool of the model in `dir`.
///
/// # Errors
/// When its manifest cannot be read.
pub(super) fn pool(id: &str, dir: &std::path::Path) -> anyhow::Result<Pool> {
    let path = manifest::path(dir);
    let (_, digest) = files::hash(&path, |_| {}).with_context(|| path.display().to_string())?;
    Ok(Pool::new(id, &digest))
}

fn host_name() -> String {
    let named = |name: &str| std::env::var(name).ok().filter(|name| !name.is_empty());
    let file = || fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned());
    named("HOSTNAME").or_else(file).or_else(|| named("COMPUTERNAME")).unwrap_or_else(|| "eka".into())
}
