//! One timed request to a server with OpenAI's API.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::plan::Api;
use crate::client::{Client, ClientError};

/// Measurements of one request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Scheduled send time, from the start of the run.
    pub scheduled_at: Duration,
    /// Time from the scheduled send time to the first text.
    pub ttft: Option<Duration>,
    /// Times between two chunks with text. A chunk may have several tokens.
    pub inter_chunk: Vec<Duration>,
    /// Time from the scheduled send time to the end.
    pub total: Duration,
    /// Tokens of the prompt, as the server reports them.
    pub prompt_tokens: u64,
    /// Tokens of the answer as the server reports them, or else the number of text events; 0 after an error.
    pub output_tokens: u64,
    /// Error code of a request without a complete answer.
    pub error: Option<String>,
}

impl Outcome {
    /// Mean time per token after the first.
    #[must_use]
    pub fn tpot(&self) -> Option<Duration> {
        let rest = u32::try_from(self.output_tokens.checked_sub(1)?).ok().filter(|rest| *rest > 0)?;
        Some(self.total.checked_sub(self.ttft?)? / rest)
    }
}

/// Sends a request and reads the answer to its end. Times count from `due`, the scheduled send time, so that a late send does not
/// hide the server's delay (coordinated omission).
pub(super) async fn timed_request(
    client: &Client,
    api: Api,
    body: &Value,
    began: Instant,
    due: Instant,
) -> Outcome {
    let mut outcome = Outcome { scheduled_at: due.saturating_duration_since(began), ..Outcome::default() };
    let read = read_events(client, api, body, due, &mut outcome).await;
    outcome.total = due.elapsed();
    outcome.error = read.err().map(|error| error.code());
    outcome
}

async fn read_events(
    client: &Client,
    api: Api,
    body: &Value,
    due: Instant,
    outcome: &mut Outcome,
) -> Result<(), ClientError> {
    let mut events = client.stream(api.path(), body).await?;
    let (mut chunks, mut counted, mut last) = (0, None, None::<Instant>);
    while let Some(event) = events.next().await? {
        if event["usage"].is_object() {
            let count = |name: &str| event["usage"][name].as_u64();
            outcome.prompt_tokens = count("prompt_tokens").unwrap_or(0);
            counted = count("completion_tokens");
        }
        if !has_text(api, &event) {
            continue;
        }
        let now = Instant::now();
        chunks += 1;
        match last {
            None => outcome.ttft = Some(now.saturating_duration_since(due)),
            Some(last) => outcome.inter_chunk.push(now - last),
        }
        last = Some(now);
    }
    outcome.output_tokens = counted.unwrap_or(chunks);
    Ok(())
}

/// Whether an event has text or tool calls. Reasoning models send `reasoning_content` or `reasoning` first.
fn has_text(api: Api, event: &Value) -> bool {
    let choice = &event["choices"][0];
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    match api {
        Api::Completions => is_text(&choice["text"]),
        Api::Chat => {
            let delta = &choice["delta"];
            ["content", "reasoning_content", "reasoning"].iter().any(|name| is_text(&delta[name]))
                || delta["tool_calls"].is_array()
        }
    }
}
