//! Does a server say what it should? Prompts in several scripts, what is expected of their answers, and a report.
//!
//! Each prompt is asked in several ways, which are the steps by which the service that eka grew out of was mended: with
//! the model not loaded yet, loaded, with all requests at once, and with a new worker for each.

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

/// Requests that are sent at once, at most: half of what a queue holds unless somebody says otherwise.
const AT_ONCE: usize = 16;

/// A way of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The first request to a server that has just been started, its model not loaded.
    Cold,
    /// One request after the other, the model loaded.
    Cached,
    /// All requests at once; the response time has the wait in it.
    Queued,
    /// One after the other, each on a worker process of its own.
    Isolated,
}

impl Mode {
    /// As reports name it.
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

/// An answer as whoever asked for it sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seen {
    /// The whole text.
    pub text: String,
    /// What the pieces of the stream come to.
    #[serde(skip)]
    pub pieces: String,
    /// Why it ended.
    pub finish_reason: String,
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
    /// From asking to the first text.
    pub first_text_ms: f64,
    /// From asking to the end.
    pub response_ms: f64,
    /// How fast the answer was computed, as the server says.
    pub tokens_per_second: Option<f64>,
    /// How often it was taken up again on another worker.
    pub resumed: u64,
    /// Resident memory of the worker around the request, in bytes.
    pub memory: Around,
}

/// Memory around a request, in bytes; `None` where the server does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Around {
    /// When it arrived.
    pub before: Option<u64>,
    /// The most while it ran.
    pub peak: Option<u64>,
    /// When it was done.
    pub after: Option<u64>,
}

/// What came of one request.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The prompt's name.
    pub name: String,
    /// How it was asked.
    pub mode: Mode,
    /// The share of the letters that are in the script that is expected, where one is.
    pub script_share: Option<f64>,
    /// What is wrong; nothing is when it is empty.
    pub problems: Vec<String>,
    /// The answer, if there was one.
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

    /// Whether everything is as expected.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Asks the first prompt alone, of a server whose process was started at `began`: the response time counts from there.
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

/// Asks every prompt when the one before has its answer.
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

/// Asks all prompts at once. The outcomes are in the suite's order, and told as they come.
pub async fn all_at_once(client: &Client, suite: &Suite, mut tell: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let asking = suite.cases.iter().enumerate().map(|(at, case)| async move {
        (at, Outcome::of(case, Mode::Queued, ask(client, case, Instant::now()).await))
    });
    let mut asking = stream::iter(asking).buffer_unordered(AT_ONCE);
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
        return Err(ClientError::Garbled("no event has a finish_reason: is the server an eka?".into()));
    };
    let mut seen = Seen { pieces, ..read(&last) };
    seen.first_text_ms = first.unwrap_or(response).as_secs_f64() * 1e3;
    seen.response_ms = response.as_secs_f64() * 1e3;
    Ok(seen)
}

/// What the last event says.
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
