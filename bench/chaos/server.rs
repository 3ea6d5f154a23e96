//! A real `eka serve` with the demonstration's model.

use std::{
    cell::Cell,
    collections::VecDeque,
    env, fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use eka::worker::faults::FaultPlan;
use serde_json::Value;

use crate::Outcome;

/// A hang costs this long, and a step that takes longer on a busy machine would be taken for one.
const PATIENCE: [&str; 3] =
    ["watchdog.decode_floor_ms=1000", "watchdog.prefill_base_ms=1000", "watchdog.idle_ms=3000"];

/// A request that takes longer is lost.
const LOST: Duration = Duration::from_secs(120);

/// Lines of the log that are kept.
const LOG_LINES: usize = 40;

/// What the parent held after so many answers.
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
    pub(crate) async fn start(plan: &FaultPlan) -> Outcome<Self> {
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
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let log = Arc::default();
        let address = collect(BufReader::new(child.stderr.take().ok_or("no log")?), &log);
        let client = reqwest::Client::builder().timeout(LOST).build()?;
        let mut server = Self { child, url: String::new(), client, count: Cell::new(0), log };
        let address = address.recv().map_err(|_| format!("it ended: {:?}", server.log()))?;
        server.url = format!("http://{address}");
        while server.client.get(format!("{}/readyz", server.url)).send().await?.status() != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    pub(crate) fn post(&self, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}/generate-lite", self.url)).json(body)
    }

    /// How many have asked before.
    pub(crate) fn count(&self) -> usize {
        self.count.replace(self.count.get() + 1)
    }

    pub(crate) async fn metrics(&self) -> Outcome<String> {
        Ok(self.client.get(format!("{}/metrics", self.url)).send().await?.text().await?)
    }

    /// What the parent holds after so many answers.
    pub(crate) fn memory(&self, answers: usize) -> Outcome<Memory> {
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

/// Reads the log as it comes, so that the server never waits for its reader; gives its address as soon as it says it.
fn collect(
    lines: impl BufRead + Send + 'static,
    log: &Arc<Mutex<VecDeque<String>>>,
) -> mpsc::Receiver<String> {
    let (found, address) = mpsc::channel();
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("on http://") {
                let _ = found.send(address.trim().to_owned());
            }
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
    });
    address
}
