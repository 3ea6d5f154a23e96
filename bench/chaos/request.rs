//! The requests of the chaos bench and their answers.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::{BenchResult, server::Server};

/// A request that is sent repeatedly.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    prompt: String,
    max_new_tokens: usize,
    ignore_eos: bool,
}

impl Question {
    /// Each prompt of the phrasebook, to its end, cut short, and far beyond its end.
    pub(crate) fn all() -> BenchResult<Vec<Self>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/demo/expected.json");
        let document: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let prompts = document["prompts"].as_array().ok_or("the phrasebook has no prompts")?;
        let prompts = prompts.iter().filter_map(|prompt| prompt["prompt"].as_str());
        let lengths = [(48, false), (3, false), (96, true)];
        Ok(prompts
            .flat_map(|prompt| {
                lengths.map(|(max_new_tokens, ignore_eos)| Self {
                    prompt: prompt.into(),
                    max_new_tokens,
                    ignore_eos,
                })
            })
            .collect())
    }

    fn body(&self, stream: bool) -> Value {
        json!({
            "messages": [{ "role": "user", "content": self.prompt }],
            "max_new_tokens": self.max_new_tokens,
            "ignore_eos": self.ignore_eos,
            "stream": stream,
        })
    }
}

/// The question of request `number`: scattered, so that faults at a fixed interval hit every question.
pub(crate) const fn question_of(number: usize, questions: usize) -> usize {
    // Knuth's multiplier; its upper half is the scattered one.
    ((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % questions
}

/// One request and its result.
#[derive(Debug)]
pub(crate) struct FinishedRequest {
    /// Index of its question.
    pub(crate) question: usize,
    /// When the answer was complete.
    pub(crate) ended: Instant,
    pub(crate) answer: Result<Answer, RequestError>,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The job's number, from its id.
    pub(crate) job: u64,
    pub(crate) text: String,
    pub(crate) completion_tokens: u64,
    pub(crate) resumed: u64,
    /// As the client saw it, without the time in the queue.
    pub(crate) served: Duration,
}

/// Why a request has no complete answer.
#[derive(Debug)]
pub(crate) struct RequestError {
    /// Error code of the server; empty for other errors.
    pub(crate) code: String,
    pub(crate) why: String,
    /// The text received before the error.
    pub(crate) partial: String,
}

impl<E: std::error::Error> From<E> for RequestError {
    fn from(e: E) -> Self {
        Self { code: String::new(), why: e.to_string(), partial: String::new() }
    }
}

impl RequestError {
    fn protocol(why: &str, partial: &str) -> Self {
        Self { code: String::new(), why: why.into(), partial: partial.into() }
    }

    fn error(document: &Value, partial: String) -> Self {
        let text = |name: &str| document["error"][name].as_str().unwrap_or_default().to_owned();
        Self { code: text("code"), why: text("message"), partial }
    }
}

/// Sends a request; every second one is streamed.
pub(crate) async fn send(server: &Server, question: &Question, question_index: usize) -> FinishedRequest {
    let streamed = server.count().is_multiple_of(2);
    let began = Instant::now();
    let answer = if streamed { stream(server, question).await } else { whole(server, question).await };
    let ended = Instant::now();
    let answer = answer.and_then(|document| read(&document, ended - began));
    FinishedRequest { question: question_index, ended, answer }
}

async fn whole(server: &Server, question: &Question) -> Result<Value, RequestError> {
    let response = server.post(&question.body(false)).send().await?;
    let is_ok = response.status().is_success();
    let document: Value = response.json().await?;
    if is_ok { Ok(document) } else { Err(RequestError::error(&document, String::new())) }
}

/// The last document of a stream. The chunks before it must have the same text.
async fn stream(server: &Server, question: &Question) -> Result<Value, RequestError> {
    let response = server.post(&question.body(true)).send().await?;
    if !response.status().is_success() {
        return Err(RequestError::error(&response.json().await?, String::new()));
    }
    let (mut bytes, mut pieces) = (Vec::new(), response.bytes_stream());
    while let Some(piece) = pieces.next().await {
        bytes.extend(piece?);
    }
    let stream = String::from_utf8(bytes)?;
    let (mut partial, mut closing, mut is_done) = (String::new(), None, false);
    for event in stream.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        if is_done {
            return Err(RequestError::protocol("an event follows [DONE]", &partial));
        }
        if event == "[DONE]" {
            is_done = true;
            continue;
        }
        let document: Value = serde_json::from_str(event)?;
        if document["error"].is_object() {
            return Err(RequestError::error(&document, partial));
        } else if document["id"].is_string() && closing.replace(document.clone()).is_some() {
            return Err(RequestError::protocol("the stream has two closing events", &partial));
        } else if closing.is_none() {
            partial.push_str(document["text"].as_str().unwrap_or_default());
        }
    }
    match closing {
        Some(closing) if is_done && closing["text"] == partial.as_str() => Ok(closing),
        Some(_) if is_done => Err(RequestError::protocol("the chunks differ from the answer", &partial)),
        _ => Err(RequestError::protocol("the stream ended early", &partial)),
    }
}

fn read(document: &Value, took: Duration) -> Result<Answer, RequestError> {
    let field = |found: Option<u64>| found.ok_or_else(|| RequestError::protocol(&document.to_string(), ""));
    let id = document["id"].as_str().and_then(|id| id.rsplit('-').next()?.parse().ok());
    let queued = document["timings"]["queue_ms"].as_f64().unwrap_or(0.0);
    Ok(Answer {
        job: field(id)?,
        text: document["text"].as_str().unwrap_or_default().into(),
        completion_tokens: field(document["usage"]["completion_tokens"].as_u64())?,
        resumed: field(document["timings"]["resumed"].as_u64())?,
        served: took.saturating_sub(Duration::from_secs_f64(queued / 1e3)),
    })
}
