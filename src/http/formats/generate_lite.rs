//! `POST /generate-lite`: eka's own format. Greedy by default; reports timings and memory.

use std::slice;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    format::{ApiFormat, ResponseMeta, to_json},
    sse::SseEvents,
    update::{Delta, FinishReason, FinishedChoice, Progress},
    usage::{PromptProgress, RequestMemory, Timings, Usage},
};
use crate::{
    http::{random_id, request::GenerateLiteRequest},
    job::JobId,
};

/// An answer of `/generate-lite`; in a stream, its last event.
#[derive(Serialize, ToSchema)]
pub(crate) struct Generated<'a> {
    id: &'a str,
    model: &'a str,
    text: &'a str,
    finish_reason: FinishReason,
    /// The same request with this seed gives the same answer.
    seed: u64,
    usage: Usage,
    timings: Timings,
    memory: RequestMemory,
}

/// An event of the stream of `/generate-lite` before the last one.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GeneratedDelta<'a> {
    /// Text to append.
    Text(&'a str),
    PromptProgress(PromptProgress),
}

/// eka's own format.
pub(crate) struct GenerateLite(ResponseMeta);

impl GenerateLite {
    fn document<'a>(&'a self, finished: &'a FinishedChoice) -> Generated<'a> {
        let choices = slice::from_ref(finished);
        Generated {
            id: &self.0.id,
            model: &self.0.model,
            text: &finished.text,
            finish_reason: finished.reason,
            seed: self.0.seed,
            usage: Usage::of(choices),
            timings: Timings::of(choices),
            memory: finished.memory.into(),
        }
    }
}

impl ApiFormat for GenerateLite {
    type Request = GenerateLiteRequest;

    const ROUTE: &'static str = "/generate-lite";
    const ID_PREFIX: &'static str = "gen-";

    /// With the job's number, in which order the queue took them: for tests of the queue and of faults.
    fn id(job: JobId) -> String {
        format!("{}-{}", random_id::new(Self::ID_PREFIX), job.0)
    }

    fn new(meta: ResponseMeta) -> Self {
        Self(meta)
    }

    fn whole(&mut self, choices: &[FinishedChoice]) -> String {
        // No field of this format asks for more than one choice.
        choices.first().map_or_else(String::new, |finished| to_json(&self.document(finished)))
    }

    fn progress(&mut self, progress: Progress, out: &mut SseEvents) {
        out.push(&GeneratedDelta::PromptProgress(progress.into()));
    }

    fn delta(&mut self, _: usize, delta: &Delta, out: &mut SseEvents) {
        out.push(&GeneratedDelta::Text(&delta.text));
    }

    fn closing(&mut self, _: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        out.push(&self.document(finished));
    }
}
