//! Sends the prompts of a suite.

use std::time::Instant;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    answer::{MemoryUse, ObservedAnswer},
    outcome::{Mode, Outcome},
    suite::{Case, Suite},
};
use crate::client::{Client, ClientError};

/// Maximum number of concurrent requests: half of the default queue.
const MAX_CONCURRENT: usize = 16;

/// Sends the first prompt to a server whose process was started at `began`; the response time starts there.
pub async fn cold(
    client: &Client,
    suite: &Suite,
    began: Instant,
    report: impl FnOnce(&Outcome),
) -> Vec<Outcome> {
    let Some(first) = suite.cases.first() else { return Vec::new() };
    let outcome = Outcome::of(first, Mode::Cold, ask(client, first, began).await);
    report(&outcome);
    vec![outcome]
}

/// Sends each prompt after the previous answer.
pub async fn one_by_one(
    client: &Client,
    suite: &Suite,
    mode: Mode,
    mut report: impl FnMut(&Outcome),
) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(suite.cases.len());
    for case in &suite.cases {
        let outcome = Outcome::of(case, mode, ask(client, case, Instant::now()).await);
        report(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

/// Sends all prompts at once. `report` is called with each outcome when it arrives; the result is in the suite's order.
pub async fn all_at_once(client: &Client, suite: &Suite, mut report: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let asking = suite.cases.iter().enumerate().map(|(at, case)| async move {
        (at, Outcome::of(case, Mode::Queued, ask(client, case, Instant::now()).await))
    });
    let mut asking = stream::iter(asking).buffer_unordered(MAX_CONCURRENT);
    let mut outcomes = Vec::new();
    while let Some((at, outcome)) = asking.next().await {
        report(&outcome);
        outcomes.push((at, outcome));
    }
    outcomes.sort_by_key(|(at, _)| *at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn ask(client: &Client, case: &Case, began: Instant) -> Result<ObservedAnswer, ClientError> {
    let system = case.system.iter().map(|system| json!({"role": "system", "content": system}));
    let messages: Vec<_> = system.chain([json!({"role": "user", "content": case.prompt})]).collect();
    let mut body = json!({"messages": messages, "stream": true});
    if let Some(max) = case.max_new_tokens {
        body["max_new_tokens"] = json!(max);
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
    let mut seen = ObservedAnswer { pieces, ..read(&last) };
    seen.first_text_ms = first.unwrap_or(response).as_secs_f64() * 1e3;
    seen.response_ms = response.as_secs_f64() * 1e3;
    Ok(seen)
}

/// The fields of the last event.
fn read(document: &Value) -> ObservedAnswer {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |pointer: &str| document.pointer(pointer).and_then(Value::as_u64);
    ObservedAnswer {
        text: text(&document["text"]),
        finish_reason: text(&document["finish_reason"]),
        prompt_tokens: number("/usage/prompt_tokens").unwrap_or_default(),
        completion_tokens: number("/usage/completion_tokens").unwrap_or_default(),
        tokens_per_second: document["timings"]["decode_tokens_per_second"].as_f64(),
        resumed: number("/timings/resumed").unwrap_or_default(),
        memory: MemoryUse {
            before: number("/memory/before/resident"),
            peak: number("/memory/peak/resident"),
            after: number("/memory/after/resident"),
        },
        ..ObservedAnswer::default()
    }
}
