//! What gateways and nodes need to know, from the settings `cluster.*`.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

/// How to reach the NATS server, and how gateways and nodes work together.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs of NATS servers of one cluster, separated by commas.
    pub urls: String,
    /// How to log in.
    pub credentials: Credentials,
    /// First part of every subject.
    pub prefix: String,
    /// Name of this process in subjects.
    pub id: String,
    /// Maximum number of waiting jobs of all gateways.
    pub max_jobs: NonZeroUsize,
    /// Copies of the queue.
    pub replicas: NonZeroUsize,
    /// Where the queue is kept.
    pub storage: Storage,
    /// Time for a node to claim a job.
    pub claim: Duration,
    /// Silence after which a gateway asks a node.
    pub probe: Duration,
    /// Silence after which a node is lost.
    pub lost: Duration,
    /// Interval of a node's reports.
    pub beat: Duration,
    /// Nodes that a job may lose.
    pub max_losses: u32,
    /// Interactive jobs in a row that a node takes while batch jobs wait.
    pub max_overtakes: usize,
    /// Whether requests go to the node that keeps the beginning of their prompt.
    pub affinity: Affinity,
    /// Whether this process keeps the beginnings of prompts: its prefix cache has memory.
    pub keeps_prompts: bool,
    /// Whether a node that stops gives its running jobs to other nodes.
    pub hands_over: bool,
}

/// Whether a request goes to the node that keeps the beginning of its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// To any free node.
    Off,
    /// To that node, if it is free.
    Idle,
    /// To that node, if it is free before another one could have read the beginning.
    Worth,
}

/// How to log in at the NATS server.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// User and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// File with the seed of an nkey.
    pub nkey_file: Option<PathBuf>,
    /// Certificates that the server's certificate may be signed with.
    pub ca_file: Option<PathBuf>,
    /// Files of this process's certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// Where the queue is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On the server's disk.
    File,
    /// In the server's memory.
    Memory,
}
