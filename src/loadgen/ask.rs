//! One request to a server that speaks OpenAI's language, as a client with a clock sees it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::plan::Api;
use crate::client::{Client, ClientError};

/// What came of one request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// When it was to be sent, counted from the beginning.
    pub at: Duration,
    /// From when it was to be sent to the first text.
    pub first: Option<Duration>,
    /// Between two pieces of text. A piece may have several tokens.
    pub gaps: Vec<Duration>,
    /// From when it was to be sent to the end.
    pub total: Duration,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens of the answer, as the server counts them; pieces where it does not.
    pub output_tokens: u64,
    /// Why there is no whole answer.
    pub error: Option<String>,
}

impl Outcome {
    /// Time for each token after the first.
    #[must_use]
    pub fn per_token(&self) -> Option<Duration> {
        let rest = u32::try_from(self.output_tokens.checked_sub(1)?).ok().filter(|rest| *rest > 0)?;
        Some(self.total.checked_sub(self.first?)? / rest)
    }
}

/// Asks, and reads the answer to its end. `due` is when the request was to be sent: one that is sent late because this program
/// was busy has waited all the same.
pub(super) async fn ask(client: &Client, api: Api, body: &Value, began: Instant, due: Instant) -> Outcome {
    let mut outcome = Outcome { at: due.saturating_duration_since(began), ..Outcome::default() };
    let read = read(client, api, body, due, &mut outcome).await;
    outcome.total = due.elapsed();
    outcome.error = read.err().map(|error| error.code());
    outcome
}

async fn read(
    client: &Client,
    api: Api,
    body: &Value,
    due: Instant,
    outcome: &mut Outcome,
) -> Result<(), ClientError> {
    let mut events = client.stream(api.path(), body).await?;
    let (mut pieces, mut counted, mut last) = (0, None, None::<Instant>);
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
        pieces += 1;
        match last {
            None => outcome.first = Some(now.saturating_duration_since(due)),
            Some(last) => outcome.gaps.push(now - last),
        }
        last = Some(now);
    }
    outcome.output_tokens = counted.unwrap_or(pieces);
    Ok(())
}

/// Whether an event brings text; models that think aloud bring it under another name first.
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
