//! Smoke test of a server: prompts in several scripts, expected answers, and a report.
//!
//! Each prompt is sent in several modes: before the model is loaded, after, all requests at once, and with a new worker
//! process per request.

mod check;
mod report;
mod suite;

use std::time::Instant;

use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};

pub use self::{
    check::{Letters, problems},
    report::{Report, Run},
    suite::{Case, Expected, Suite, SuiteError},
};
use crate::client::{Client, ClientError};

/// Most concurrent requests: half of the default queue.
const MAX_CONCURRENT: usize = 16;

/// How the prompts are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// First request to a server that is still loading its model.
    Cold,
    /// One request after the other, with the model loaded.
    Cached,
    /// All requests at once; the response time includes the queue.
    Queued,
    /// One request after the other, each on a new worker process.
    Isolated,
}

impl Mode {
    /// Its name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Cached => "cached",
            Self::Queued => "queued",
            Self::Isolated => "isolated",
        }
    }
}

/// An answer as a client sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seen {
    /// The whole text.
    pub text: String,
    /// The pieces of the stream, concatenated.
    #[serde(skip)]
    pub pieces: String,
    /// Why generation ended.
    pub finish_reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Time from the request to the first text.
    pub first_text_ms: f64,
    /// Time from the request to the end.
    pub response_ms: f64,
    /// Decode speed, as the server reports it.
    pub tokens_per_second: Option<f64>,
    /// How often generation was resumed on another worker.
    pub resumed: u64,
    /// Resident memory of the worker around the request, in bytes.
    pub memory: Around,
}

/// Memory around a request, in bytes; `None` if the server does not report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Around {
    /// Before the request.
    pub before: Option<u64>,
    /// Peak during the request.
    pub peak: Option<u64>,
    /// After the request.
    pub after: Option<u64>,
}

/// Result of one request.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Name of the prompt.
    pub name: String,
    /// How it was sent.
    pub mode: Mode,
    /// Share of the letters in the expected script.
    pub script_share: Option<f64>,
    /// All problems; empty if the answer is as expected.
    pub problems: Vec<String>,
    /// The answer, unless the request failed.
    pub answer: Option<Seen>,
}

impl Outcome {
    fn of(case: &Case, mode: Mode, asked: Result<Seen, ClientError>) -> Self {
        let name = case.name.clone();
        match asked {
            Err(error) => {
                let problems = vec![error.to_string()];
                Self { name, mode, script_share: None, problems, answer: None }
            }
            Ok(seen) => {
                let script = case.expected.script;
                let script_share = script.and_then(|(script, _)| Letters::of(&seen.text).share(script));
                let problems = problems(&case.expected, &seen);
                Self { name, mode, script_share, problems, answer: Some(seen) }
            }
        }
    }

    /// Whether the answer is as expected.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Sends the first prompt to a server whose process was started at `began`; the response time starts there.
pub async fn cold(
    client: &Client,
    suite: &Suite,
    began: Instant,
    tell: impl FnOnce(&Outcome),
) -> Vec<Outcome> {
    let Some(first) = suite.cases.first() else { return Vec::new() };
    let outcome = Outcome::of(first, Mode::Cold, ask(client, first, began).await);
    tell(&outcome);
    vec![outcome]
}

/// Sends each prompt after the previous answer.
pub async fn one_by_one(
    client: &Client,
    suite: &Suite,
    mode: Mode,
    mut tell: impl FnMut(&Outcome),
) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(suite.cases.len());
    for case in &suite.cases {
        let outcome = Outcome::of(case, mode, ask(client, case, Instant::now()).await);
        tell(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

/// Sends all prompts at once. `tell` sees the outcomes as they arrive; the result is in the suite's order.
pub async fn all_at_once(client: &Client, suite: &Suite, mut tell: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let asking = suite.cases.iter().enumerate().map(|(at, case)| async move {
        (at, Outcome::of(case, Mode::Queued, ask(client, case, Instant::now()).await))
    });
    let mut asking = stream::iter(asking).buffer_unordered(MAX_CONCURRENT);
    let mut outcomes = Vec::new();
    while let Some((at, outcome)) = asking.next().await {
        tell(&outcome);
        outcomes.push((at, outcome));
    }
    outcomes.sort_by_key(|(at, _)| *at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn ask(client: &Client, case: &Case, began: Instant) -> Result<Seen, ClientError> {
    let system = case.system.iter().map(|system| json!({"role": "system", "content": system}));
    let messages: Vec<_> = system.chain([json!({"role": "user", "content": case.prompt})]).collect();
    let mut body = json!({"messages": messages, "stream": true});
    if let Some(most) = case.max_new_tokens {
        body["max_new_tokens"] = json!(most);
    }
    let mut events = client.stream("/generate-lite", &body).await?;
    let (mut pieces, mut first, mut last) = (String::new(), None, None);
    while let Some(event) = events.next().await? {
        first.get_or_insert_with(|| began.elapsed());
        match event.get("finish_reason") {
            Some(_) => last = Some(event),
            None => pieces += event["text"].as_str().unwrap_or_default(),
        }
    }
    let response = began.elapsed();
    let Some(last) = last else {
        return Err(ClientError::Invalid("no event has a finish_reason; is the server eka?".into()));
    };
    let mut seen = Seen { pieces, ..read(&last) };
    seen.first_text_ms = first.unwrap_or(response).as_secs_f64() * 1e3;
    seen.response_ms = response.as_secs_f64() * 1e3;
    Ok(seen)
}

/// The fields of the last event.
fn read(document: &Value) -> Seen {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |pointer: &str| document.pointer(pointer).and_then(Value::as_u64);
    Seen {
        text: text(&document["text"]),
        finish_reason: text(&document["finish_reason"]),
        prompt_tokens: number("/usage/prompt_tokens").unwrap_or_default(),
        completion_tokens: number("/usage/completion_tokens").unwrap_or_default(),
        tokens_per_second: document["timings"]["decode_tokens_per_second"].as_f64(),
        resumed: number("/timings/resumed").unwrap_or_default(),
        memory: Around {
            before: number("/memory/before/resident"),
            peak: number("/memory/peak/resident"),
            after: number("/memory/after/resident"),
        },
        ..Seen::default()
    }
}
