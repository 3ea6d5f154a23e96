//! A server on a real socket with the demonstration model's tokenizer and a scripted model: fast, and exact about time.

use std::{
    fs,
    net::TcpListener,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use eka::{
    config::{DefaultsFrom, MetricNames, UnknownFields},
    executor::{Deadlines, Executor, Limits},
    http::{AppState, Life, Listener, Settings, serve},
    job::{
        DraftCounts, EndReason, Event, Failure, Finish, Job, Memory, MemoryReport, ModelReport, Placement,
        Pooling, Readiness, RuntimeReport, SlotReport, Step, Timings, Usage,
    },
    manifest::{Dims, Dtype, FILE_NAME, GraphNames, Manifest, Provenance, SCHEMA},
    metrics::Metrics,
    sandbox::{ChildProgram, Sandbox},
    text::Text,
    units::{Bytes, Tokens},
};
use serde_json::Value;
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// The demonstration model's answer to "Please speak slowly." in Kannada; some characters span several tokens.
pub(crate) const ANSWER: &str = "ದಯವಿಟ್ಟು ನಿಧಾನವಾಗಿ ಮಾತನಾಡಿ.";
pub(crate) const ANSWER_IDS: [u32; 14] =
    [1270, 485, 325, 107, 650, 2650, 593, 338, 104, 352, 1160, 301, 20, 6];
/// Ends an answer of the demo's model.
const END: u32 = 2;
pub(crate) const CONTEXT_LENGTH: usize = 256;
pub(crate) const VOCABULARY: usize = 4096;
pub(crate) const MODEL: &str = "demo";

/// How a test wants its server.
#[derive(Clone, Copy)]
pub(crate) struct ServerOptions {
    pub(crate) max_jobs: usize,
    /// Between two tokens.
    pub(crate) step: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) max_connections: usize,
    pub(crate) grace: Duration,
    pub(crate) body_limit: Bytes,
    pub(crate) readiness: fn() -> Readiness,
    /// Prompts are read in two chunks, with progress after the first.
    pub(crate) progress: bool,
    /// Instead of the demo's own.
    pub(crate) template: Option<&'static str>,
    /// Token ids sent instead of [`ANSWER`], followed by the end token.
    pub(crate) answer: Option<&'static str>,
    pub(crate) unknown_fields: UnknownFields,
    pub(crate) metric_names: MetricNames,
    pub(crate) sampling_defaults: DefaultsFrom,
    /// Most tokens of an answer whose request sets no limit; `None` for the rest of the context.
    pub(crate) default_max_new: Option<usize>,
    /// Memory for stored responses.
    pub(crate) stored_responses: Bytes,
    /// How long a stream can be resumed.
    pub(crate) resume_window: Duration,
    /// Memory for the events of streams that can be resumed.
    pub(crate) resume_memory: Bytes,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_jobs: 8,
            step: Duration::from_millis(1),
            heartbeat: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            max_connections: 512,
            grace: Duration::from_secs(30),
            body_limit: Bytes::kib(64),
            readiness: || Readiness::Ready(ready_report()),
            progress: false,
            template: None,
            answer: None,
            unknown_fields: UnknownFields::Refuse,
            metric_names: MetricNames::Eka,
            sampling_defaults: DefaultsFrom::Eka,
            default_max_new: Some(64),
            stored_responses: Bytes(0),
            resume_window: Duration::ZERO,
            resume_memory: Bytes::mib(1),
        }
    }
}

/// A running server; dropping it shuts it down.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) executor: Executor,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: watch::Sender<Readiness>,
    pub(crate) client: reqwest::Client,
    last_job: Arc<Mutex<Option<Job>>>,
    shutdown: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Server {
    pub(crate) fn start(wish: ServerOptions) -> Self {
        Self::start_with(wish, |_| {})
    }

    /// Starts it with what else the state may have.
    pub(crate) fn start_with(wish: ServerOptions, equip: impl FnOnce(&mut AppState)) -> Self {
        let metrics = Arc::new(Metrics::new());
        let max_jobs = NonZeroUsize::new(wish.max_jobs).unwrap();
        let limits = Limits { max_jobs, max_prompt_tokens: Tokens(100_000) };
        let text = demo_text(wish.template);
        let mut script = ANSWER_IDS.to_vec();
        if let Some(answer) = wish.answer {
            script = text.encode_bare(answer).unwrap();
            script.push(END);
        }
        let last_job = Arc::new(Mutex::new(None));
        let seen_job = Arc::clone(&last_job);
        let executor = Executor::start(limits, metrics.clone(), move |job: Job, says, cancel| {
            *seen_job.lock().unwrap() = Some(job.clone());
            if wish.progress {
                says.send(Event::Step(Step::Progress { done: 2, total: 5, cached: 1 })).unwrap();
            }
            speak(script.clone(), job, says, cancel, wish.step)
        });
        let (readiness, seen) = watch::channel((wish.readiness)());
        let settings = Settings {
            body_limit: wish.body_limit,
            body_memory: Bytes::mib(16),
            heartbeat: wish.heartbeat,
            max_connections: NonZeroUsize::new(wish.max_connections).unwrap(),
            write_timeout: wish.write_timeout,
            grace: wish.grace,
            deadlines: Deadlines { queue: Duration::from_secs(60), total: Duration::from_secs(120) },
            context_length: None,
            default_max_new: wish.default_max_new.map(Tokens),
            sampling_defaults: wish.sampling_defaults,
            max_sequences: NonZeroUsize::new(8).unwrap(),
            pooling: Pooling::Last,
            log_prompts: false,
            unknown_fields: wish.unknown_fields,
            metric_names: wish.metric_names,
            prefix_cache_shared: false,
            stored_responses: wish.stored_responses,
            stored_responses_lifetime: Duration::from_secs(60),
            resume_window: wish.resume_window,
            resume_memory: wish.resume_memory,
        };
        let mut state = AppState::new(text, executor.clone(), metrics.clone(), seen, settings);
        state.sandbox = Some(sandbox(&metrics));
        equip(&mut state);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (shutdown, requested) = oneshot::channel();
        let (over, ended) = oneshot::channel();
        thread::spawn(move || {
            let life = Life { beside: async {}, shutdown: async { drop(requested.await) }, finish: async {} };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(vec![Listener::Tcp(listener)], state, life)).unwrap();
            let _ = over.send(());
        });
        let client = reqwest::Client::new();
        Self {
            url,
            executor,
            metrics,
            readiness,
            client,
            last_job,
            shutdown: Some(shutdown),
            ended: Some(ended),
        }
    }

    /// The job that ran last.
    pub(crate) fn last_job(&self) -> Job {
        self.last_job.lock().unwrap().clone().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    /// Posts, and gives status and body.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Posts, and gives the whole stream.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> String {
        let response = self.post(path, body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        response.text().await.unwrap()
    }

    /// Asks the server to shut down; gives what completes when it has.
    pub(crate) fn shut_down(&mut self) -> oneshot::Receiver<()> {
        drop(self.shutdown.take());
        self.ended.take().unwrap()
    }

    pub(crate) async fn has_counted(&self, route: &str, code: &str, times: u64) {
        let line = format!("eka_requests_total{{route=\"{route}\",code=\"{code}\"}} {times}\n");
        eventually(&line, || self.metrics.render().unwrap().contains(&line)).await;
    }

    /// Waits until this many jobs wait and one runs.
    pub(crate) async fn has_queued(&self, jobs: usize) {
        eventually("the queue to fill", || {
            let now = self.executor.summary();
            now.queued_jobs == jobs && now.running.len() == 1
        })
        .await;
    }

    pub(crate) async fn is_idle(&self) {
        eventually("the slot to be free", || {
            let now = self.executor.summary();
            now.queued_jobs == 0 && now.running.is_empty()
        })
        .await;
    }
}

/// A sandbox of the program under test.
pub(crate) fn sandbox(metrics: &Arc<Metrics>) -> Sandbox {
    let program = env!("CARGO_BIN_EXE_eka").into();
    Sandbox::new(ChildProgram { program, arguments: vec!["sandbox".into()] }, Arc::clone(metrics))
}

/// Waits for something that happens soon on an idle machine and in time on a busy one.
pub(crate) async fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happens() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain for {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// The JSON documents of an event stream, and whether it ends with `[DONE]`.
pub(crate) fn events(stream: &str) -> (Vec<Value>, bool) {
    let mut documents = vec![];
    let mut is_done = false;
    for event in stream.split_terminator("\n\n") {
        assert!(!is_done, "something follows [DONE]: {event}");
        match event.strip_prefix("data: ") {
            Some("[DONE]") => is_done = true,
            Some(document) => documents.push(serde_json::from_str(document).unwrap()),
            None => assert!(event.starts_with(": "), "neither data nor a comment: {event:?}"),
        }
    }
    (documents, is_done)
}

/// Sends the answer's tokens, repeatedly if the end token does not end it.
async fn speak(
    script: Vec<u32>,
    job: Job,
    says: UnboundedSender<Event>,
    cancel: CancellationToken,
    step: Duration,
) -> Result<Finish, Failure> {
    if job.embedding.is_some() {
        says.send(Event::Step(Step::Embedding(vec![3.0, 4.0]))).unwrap();
        return Ok(finish(&job, EndReason::EndToken, 0));
    }
    for (generated, token) in script.iter().cycle().take(job.max_new_tokens).enumerate() {
        tokio::select! {
            () = cancel.cancelled() => return Ok(finish(&job, EndReason::Cancelled, generated)),
            () = sleep(step) => {}
        }
        if job.end_tokens.contains(token) {
            return Ok(finish(&job, EndReason::EndToken, generated + 1));
        }
        says.send(Event::Step(Step::Token(*token))).unwrap();
    }
    Ok(finish(&job, EndReason::Length, job.max_new_tokens))
}

fn finish(job: &Job, reason: EndReason, completion_tokens: usize) -> Finish {
    let memory =
        Memory { resident: Some(Bytes::mib(300)), anonymous: Some(Bytes::mib(100)), ..Memory::default() };
    Finish {
        reason,
        usage: Usage { prompt_tokens: job.prompt.len(), completion_tokens, cached_tokens: 1 },
        timings: Timings {
            prefill: Duration::from_millis(20),
            decode: Duration::from_millis(100),
            resumed: 0,
            drafted: DraftCounts { tokens: 9, accepted: 4 },
            saving: Duration::ZERO,
            drafted_by_model: DraftCounts { tokens: 5, accepted: 3 },
        },
        memory: MemoryReport {
            before: memory,
            peak_resident: Some(Bytes::mib(400)),
            after: memory,
            device_peak: None,
        },
    }
}

pub(crate) fn ready_report() -> SlotReport {
    let memory = |mib| Memory { resident: Some(Bytes::mib(mib)), ..Memory::default() };
    let runtime = RuntimeReport {
        runtime: "scripted 1.0".into(),
        library: "/secret/of/the/server".into(),
        device: "the CPU".into(),
        gpu: None,
        fell_back: None,
        threads: 2,
        memory: memory(100),
    };
    let operators = [("MatMul".to_owned(), 40), ("Add".to_owned(), 2)].into();
    let model = ModelReport {
        placement: Placement([("CPUExecutionProvider".into(), operators)].into()),
        capacity: CONTEXT_LENGTH,
        decode_threads: None,
        prefill_threads: None,
        draft: None,
        load_time: Duration::from_millis(1_500),
        before: memory(100),
        after: memory(300),
    };
    SlotReport { runtime, models: vec![(MODEL.into(), model)], memory: memory(300) }
}

/// A model directory with the demo's tokenizer and the given or the demo's template.
fn demo_text(template: Option<&str>) -> Arc<Text> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/base");
    let directory = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(base.join(name), directory.path().join(name)).unwrap();
    }
    if let Some(template) = template {
        fs::write(directory.path().join("chat_template.jinja"), template).unwrap();
    }
    // With tools, prompts are longer.
    let context_length = if template.is_some() { 2048 } else { CONTEXT_LENGTH };
    let manifest = Manifest { context_length, ..manifest() };
    fs::write(directory.path().join(FILE_NAME), manifest.to_json()).unwrap();
    Arc::new(Text::open(directory.path(), MODEL).unwrap())
}

fn manifest() -> Manifest {
    Manifest {
        schema: SCHEMA,
        architecture: "llama".into(),
        dims: Dims {
            layers: 1,
            hidden: 8,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            intermediate: 8,
            vocab: VOCABULARY,
        },
        dtype: Dtype::Float32,
        quantization: None,
        overrides: Vec::new(),
        context_length: CONTEXT_LENGTH,
        end_tokens: vec![2, 6],
        parameters: 1,
        graph: GraphNames::default(),
        provenance: Provenance { exporter: "test".into(), sources: vec![], adapters: vec![], options: None },
        files: vec![],
    }
}
