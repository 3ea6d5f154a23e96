//! A real `eka serve` with the demonstration model.

use std::{
    cell::Cell,
    collections::VecDeque,
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use eka::worker::faults::FaultPlan;
use serde_json::Value;

use crate::BenchResult;

/// A hang costs this long, and a step that takes longer on a busy machine would be taken for one.
const PATIENCE: [&str; 3] =
    ["watchdog.decode_floor_ms=1000", "watchdog.prefill_base_ms=1000", "watchdog.idle_ms=3000"];

/// A request that takes longer is lost.
const LOST: Duration = Duration::from_secs(120);

/// Lines of the log that are kept.
const LOG_LINES: usize = 40;

/// Memory of the parent after a number of answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) answers: usize,
    pub(crate) resident_kib: u64,
    pub(crate) anonymous_kib: u64,
}

pub(crate) struct Server {
    child: Child,
    url: String,
    client: reqwest::Client,
    count: Cell<usize>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start(plan: &FaultPlan) -> BenchResult<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eka"));
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EKA_")) {
            command.env_remove(name);
        }
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["serve", "--port", "0"]);
        command.args(["--set", concat!("model.cache_dir=", env!("CARGO_TARGET_TMPDIR"), "/cache")]);
        command.args(PATIENCE.iter().flat_map(|setting| ["--set", setting]));
        if !plan.is_off() {
            command.args(["--faults", &plan.to_string()]);
        }
        let directory = tempfile::tempdir()?;
        let ready_file = directory.path().join("ready.json");
        command.arg("--ready-file").arg(&ready_file);
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let log = Arc::default();
        collect(BufReader::new(child.stderr.take().ok_or("no log")?), &log);
        let client = reqwest::Client::builder().timeout(LOST).build()?;
        let mut server = Self { child, url: String::new(), client, count: Cell::new(0), log };
        loop {
            if let Some(url) = ready_url(&ready_file) {
                server.url = url;
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server exited ({status}): {:?}", server.log()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn post(&self, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}/generate-lite", self.url)).json(body)
    }

    /// Number of requests sent so far.
    pub(crate) fn count(&self) -> usize {
        self.count.replace(self.count.get() + 1)
    }

    pub(crate) async fn metrics(&self) -> BenchResult<String> {
        Ok(self.client.get(format!("{}/metrics", self.url)).send().await?.text().await?)
    }

    /// Records the parent's memory after a number of answers.
    pub(crate) fn memory(&self, answers: usize) -> BenchResult<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        };
        let field = |name| kib(name).ok_or_else(|| format!("the system does not say {name}"));
        Ok(Memory { answers, resident_kib: field("VmRSS:")?, anonymous_kib: field("RssAnon:")? })
    }

    /// The last lines of the log.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// The URL in the ready file of a server that has loaded its model.
fn ready_url(ready_file: &Path) -> Option<String> {
    let document: Value = serde_json::from_slice(&fs::read(ready_file).ok()?).ok()?;
    document["ready"].as_bool()?.then(|| document["url"].as_str().map(str::to_owned))?
}

/// Reads the log as it is written and keeps its last lines.
fn collect(lines: impl BufRead + Send + 'static, log: &Arc<Mutex<VecDeque<String>>>) {
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
    });
}
