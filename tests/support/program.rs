//! The real program: `eka serve` with a worker, ONNX Runtime and the demonstration model, over a real socket.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    processes::{send_signal, worker_of},
    server::{events, eventually},
};

/// One of the ten prompts of the demonstration model, with the answer that transformers and PEFT computed.
pub(crate) struct Expected {
    pub(crate) prompt: String,
    pub(crate) text: String,
    pub(crate) tokens: usize,
}

pub(crate) fn expected() -> Vec<Expected> {
    let file = std::fs::read(root().join("tests/fixtures/demo/expected.json")).unwrap();
    let document: Value = serde_json::from_slice(&file).unwrap();
    let one = |entry: &Value| Expected {
        prompt: entry["prompt"].as_str().unwrap().into(),
        text: entry["merged"]["text"].as_str().unwrap().into(),
        tokens: entry["merged"]["ids"].as_array().unwrap().len(),
    };
    document["prompts"].as_array().unwrap().iter().map(one).collect()
}

pub(crate) fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// The program without this machine's settings.
pub(crate) fn eka(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eka"));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EKA_")) {
        command.env_remove(name);
    }
    command.current_dir(root()).args(arguments).stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    eka(arguments).output().unwrap()
}

/// What `/metrics` of a gateway or node has in addition.
pub(crate) fn cluster_metrics() -> String {
    let text = eka::metrics::Metrics::new().with_cluster().render().unwrap();
    text.split_inclusive('\n').filter(|line| line.contains("eka_cluster_")).collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Name of the ready file in [`Program::directory`].
const READY_FILE: &str = "ready.json";

fn serve(directory: &TempDir, flags: &[&str]) -> Command {
    serve_as("serve", directory, flags)
}

fn serve_as(role: &str, directory: &TempDir, flags: &[&str]) -> Command {
    let mut command = eka(&[role, "--port", "0", "--set", &cache_setting()]);
    command.arg("--ready-file").arg(directory.path().join(READY_FILE)).args(flags);
    command
}

/// `command` with the arguments and the environment of `eka`.
fn with_arguments_of(eka: &Command, mut command: Command) -> Command {
    command.args(eka.get_args()).current_dir(root()).stdin(Stdio::null());
    for (name, value) in eka.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// `eka serve` on a free port. Dropping it kills it.
pub(crate) struct Program {
    child: Child,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    log: Arc<Mutex<String>>,
    /// Holds the ready file.
    directory: TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Starts it with these flags and waits until it is ready.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        Self::start_listening(flags).await.ready().await
    }

    /// Starts `eka gateway` or `eka node` with these flags and waits until it is ready.
    pub(crate) async fn start_as_role(role: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = serve_as(role, &directory, flags);
        Self::listening(command, directory).await.ready().await
    }

    /// Starts it with these flags under a limit of `files` open files, and waits until it is ready.
    pub(crate) async fn start_with_files(files: usize, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = serve(&directory, flags);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]).arg(program.get_program());
        Self::listening(with_arguments_of(&program, shell), directory).await.ready().await
    }

    /// Starts a second name of the program, which the test may replace, and waits until it is ready.
    pub(crate) async fn start_as(name: &Path) -> Self {
        let original = env!("CARGO_BIN_EXE_eka");
        fs::hard_link(original, name).or_else(|_| fs::copy(original, name).map(drop)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let command = with_arguments_of(&serve(&directory, &[]), Command::new(name));
        Self::listening(command, directory).await.ready().await
    }

    async fn ready(self) -> Self {
        let mut program = self;
        let readyz = format!("{}/readyz", program.url);
        loop {
            if let Ok(response) = program.client.get(&readyz).send().await
                && response.status() == 200
            {
                return program;
            }
            assert!(program.child.try_wait().unwrap().is_none(), "it ended:\n{}", program.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts it with these flags and waits until it listens.
    pub(crate) async fn start_listening(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::listening(serve(&directory, flags), directory).await
    }

    async fn listening(mut command: Command, directory: TempDir) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = collect(BufReader::new(child.stderr.take().unwrap()));
        let mut program = Self { child, url: String::new(), client: reqwest::Client::new(), log, directory };
        program.url = program.address().await;
        program
    }

    /// The file that it was started with as `--ready-file`.
    pub(crate) fn ready_file(&self) -> PathBuf {
        self.directory.path().join(READY_FILE)
    }

    async fn address(&mut self) -> String {
        let mut found = None;
        eventually("the ready file", || {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended:\n{}", self.log());
            found = fs::read(self.ready_file()).ok();
            found.is_some()
        })
        .await;
        let document: Value = serde_json::from_slice(&found.unwrap()).unwrap();
        document["url"].as_str().unwrap().into()
    }

    /// The directory of the export that it serves.
    pub(crate) fn export(&self) -> PathBuf {
        let lines = [self.logged("export_reused"), self.logged("export_started")].concat();
        let (_, dir) = lines[0].split_once(" dir=").unwrap();
        dir.split_whitespace().next().unwrap().into()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The log lines of an event.
    pub(crate) fn logged(&self, event: &str) -> Vec<String> {
        let field = format!("event=\"{event}\"");
        self.log().lines().filter(|line| line.contains(&field)).map(str::to_owned).collect()
    }

    /// Waits until an event is in the log: its line may be written after the answer was sent.
    pub(crate) async fn has_logged(&self, event: &str) {
        eventually(event, || !self.logged(event).is_empty()).await;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn worker_pid(&self) -> u32 {
        worker_of(self.pid()).expect("the program has a worker")
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        self.get("/metrics").await.text().await.unwrap()
    }

    /// Waits until `/metrics` contains `text`, and returns it.
    pub(crate) async fn metrics_with(&self, text: &str) -> String {
        for _ in 0..3_000 {
            let metrics = self.metrics().await;
            if metrics.contains(text) {
                return metrics;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("/metrics never had {text}:\n{}", self.metrics().await);
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    /// Posts, and gives status and body.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// The whole answer, and the text pieces of the same request streamed.
    pub(crate) async fn both_ways(&self, request: &Value) -> (Value, Vec<String>) {
        let (status, whole) = self.ask("/generate-lite", request).await;
        assert_eq!(status, 200, "{whole}");
        let mut streamed = request.clone();
        streamed["stream"] = json!(true);
        let stream = self.post("/generate-lite", &streamed).send().await.unwrap().text().await.unwrap();
        let (documents, is_done) = events(&stream);
        assert!(is_done, "{stream}");
        let (last, pieces) = documents.split_last().unwrap();
        assert_eq!(last["text"], whole["text"], "a stream ends with the whole answer");
        assert_eq!(last["finish_reason"], whole["finish_reason"]);
        (whole, pieces.iter().map(|piece| piece["text"].as_str().unwrap().to_owned()).collect())
    }

    /// Sends a signal and waits for the end.
    pub(crate) async fn end_with(&mut self, signal: &str) -> ExitStatus {
        send_signal(signal, self.pid());
        self.end().await
    }

    /// Waits for the end.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

/// Where exports are kept between tests and runs.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

/// The shared cache as a setting.
pub(crate) fn cache_setting() -> String {
    format!("model.cache_dir={}", cache().display())
}

/// Reads the log as it comes, so that the program never waits for its reader.
fn collect(lines: impl BufRead + Send + 'static) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let shared = Arc::clone(&log);
    thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let mut log = shared.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    log
}

/// A path as an argument.
pub(crate) fn argument(path: &Path) -> &str {
    path.to_str().unwrap()
}
