//! A NATS server, and gateways and nodes with the demonstration model around it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::program::{Program, argument, root};

/// Text files of a model, which are all that a gateway needs.
const TEXT_FILES: [&str; 6] = [
    "eka.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// The NATS server that `scripts/nats-server` fetched, or that is installed.
fn nats_server() -> PathBuf {
    let fetched = root().join(".nats/nats-server");
    let installed =
        env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let mut found = [fetched].into_iter().chain(installed.map(|dir| dir.join("nats-server")));
    found.find(|path| path.is_file()).expect(
        "the tests of the cluster need a NATS server: run scripts/nats-server, or install Debian's package nats-server",
    )
}

/// A NATS server with JetStream on a port of its own. Dropping it kills it.
pub(crate) struct NatsServer {
    child: Child,
    pub(crate) port: u16,
    directory: TempDir,
    flags: Vec<String>,
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        Self::start_with("", &[])
    }

    /// Starts it with a configuration and flags.
    pub(crate) fn start_with(configuration: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Free until it is used; no other test asks for this one.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = directory.path().join("nats.conf");
        fs::write(&config, configuration).unwrap();
        let mut flags: Vec<String> = flags.iter().map(|&flag| flag.into()).collect();
        flags.extend(["-c".into(), argument(&config).into()]);
        let child = Self::spawn(port, &directory, &flags);
        Self { child, port, directory, flags }
    }

    fn spawn(port: u16, directory: &TempDir, flags: &[String]) -> Child {
        let mut command = Command::new(nats_server());
        command.args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"]);
        command.arg(directory.path().join("store")).args(flags).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the NATS server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Self::kill`].
    pub(crate) fn start_again(&mut self) {
        self.child = Self::spawn(self.port, &self.directory, &self.flags);
    }

    /// All bytes that it has on its disk.
    pub(crate) fn store(&self) -> Vec<u8> {
        fn read(dir: &Path, bytes: &mut Vec<u8>) {
            for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    read(&entry, bytes);
                } else {
                    bytes.extend(fs::read(entry).unwrap_or_default());
                }
            }
        }
        let mut bytes = Vec::new();
        read(&self.directory.path().join("store"), &mut bytes);
        bytes
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A NATS server, a gateway and nodes.
pub(crate) struct Cluster {
    pub(crate) gateway: Program,
    pub(crate) nodes: Vec<Program>,
    pub(crate) nats: NatsServer,
    /// The model of the gateway, without weights.
    models: TempDir,
    flags: Vec<String>,
}

impl Cluster {
    /// A gateway and this many nodes, which are ready.
    pub(crate) async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, &[]).await
    }

    /// The same with further flags for all of them.
    pub(crate) async fn start_with(nodes: usize, flags: &[&str]) -> Self {
        let nats = NatsServer::start();
        let flags: Vec<String> = flags.iter().map(|&flag| flag.into()).collect();
        let mut started = Vec::new();
        for number in 1..=nodes.max(1) {
            started.push(start_node(&nats, number, &flags).await);
        }
        let models = tempfile::tempdir().unwrap();
        copy_texts(&started[0].export(), &models.path().join("demo"));
        let gateway = start_gateway(&nats, models.path(), &flags).await;
        let cluster = Self { gateway, nodes: started, nats, models, flags };
        cluster.has_slots(nodes).await;
        cluster
    }

    /// Stops a node as a rolling restart does, and starts it again.
    pub(crate) async fn restart_node(&mut self, index: usize) {
        let ended = self.nodes[index].end_with("TERM").await;
        assert!(ended.success(), "{ended}:\n{}", self.nodes[index].log());
        self.nodes[index] = start_node(&self.nats, index + 1, &self.flags).await;
    }

    /// Another gateway.
    pub(crate) async fn another_gateway(&self) -> Program {
        start_gateway(&self.nats, self.models.path(), &self.flags).await
    }

    /// Waits until the gateway knows this many slots that are ready.
    pub(crate) async fn has_slots(&self, slots: usize) {
        self.gateway.metrics_with(&format!("eka_cluster_slots {slots}\n")).await;
    }

    /// The index of the node that runs a request.
    pub(crate) async fn running_node(&self) -> usize {
        for _ in 0..3_000 {
            let slot: Value = self.gateway.get("/v1/slot").await.json().await.unwrap();
            let devices = slot["devices"].as_array().unwrap();
            if let Some(busy) = devices.iter().find(|device| !device["running"].is_null()) {
                let name = busy["label"].as_str().unwrap();
                return name.strip_prefix("node-").unwrap().parse::<usize>().unwrap() - 1;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no node runs a request:\n{}", self.gateway.log());
    }

    /// Waits until no node runs anything, and returns how long that took.
    pub(crate) async fn is_idle(&self) -> Duration {
        let begun = Instant::now();
        for node in &self.nodes {
            node.metrics_with("eka_slot_busy 0\n").await;
        }
        begun.elapsed()
    }
}

/// Copies what a gateway needs of a model.
pub(crate) fn copy_texts(export: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in TEXT_FILES.iter().filter(|name| export.join(name).is_file()) {
        fs::copy(export.join(name), to.join(name)).unwrap();
    }
}

async fn start_node(nats: &NatsServer, number: usize, flags: &[String]) -> Program {
    let (url, name) = (nats.url(), format!("cluster.node_id=node-{number}"));
    // Slow enough to be disturbed in the middle of an answer, on any machine.
    let slow = ["--threads", "1", "--faults", "slow=12@decode:1"];
    let own = ["--join", &url, "--model", "models/demo", "--set", &name].into_iter().chain(slow);
    let flags: Vec<&str> = own.chain(flags.iter().map(String::as_str)).collect();
    Program::start_as_role("node", &flags).await
}

async fn start_gateway(nats: &NatsServer, models: &Path, flags: &[String]) -> Program {
    let url = nats.url();
    let own = ["--join", &url, "--models", argument(models)];
    let flags: Vec<&str> = own.into_iter().chain(flags.iter().map(String::as_str)).collect();
    Program::start_as_role("gateway", &flags).await
}
