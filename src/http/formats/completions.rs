//! `POST /v1/completions` in OpenAI's wire format.

use std::slice;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    completion_stream::{Delta, FinishReason, FinishedChoice, Progress},
    format::{ApiFormat, CompletionHead, ResponseMeta, to_json},
    logprobs::CompletionLogprobs,
    sse::SseEvents,
    usage::{CompletionTail, Timings},
};
use crate::http::request::CompletionRequest;

/// An answer of `/v1/completions`; in a stream, one of its events.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion<'a> {
    #[serde(flatten)]
    head: CompletionHead<'a>,
    /// Empty in the events with usage or progress.
    choices: Vec<CompletionChoice<'a>>,
    #[serde(flatten)]
    tail: CompletionTail,
}

/// One of the answers to a prompt.
#[derive(Serialize, ToSchema)]
struct CompletionChoice<'a> {
    index: usize,
    text: &'a str,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs<'a>>,
    /// In a stream, null before the end.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
}

/// The format of OpenAI's completions.
pub(crate) struct Completions(ResponseMeta);

impl Completions {
    fn choice<'a>(&self, (index, finished): (usize, &'a FinishedChoice)) -> CompletionChoice<'a> {
        let logprobs = self.0.logprobs_of(&finished.scored);
        CompletionChoice { index, text: &finished.text, logprobs, finish_reason: Some(finished.reason) }
    }

    fn document<'a>(&'a self, choices: Vec<CompletionChoice<'a>>, tail: CompletionTail) -> Completion<'a> {
        Completion { head: self.0.head("text_completion"), choices, tail }
    }

    fn chunk<'a>(&'a self, choice: CompletionChoice<'a>, timings: Option<Timings>) -> Completion<'a> {
        self.document(vec![choice], self.0.tail_of_event(timings))
    }
}

impl ApiFormat for Completions {
    type Request = CompletionRequest;

    const ROUTE: &'static str = "/v1/completions";
    const ALIASES: &'static [&'static str] = &["/completions"];
    const ID_PREFIX: &'static str = "cmpl-";

    fn new(meta: ResponseMeta) -> Self {
        Self(meta)
    }

    fn whole(&self, choices: &[FinishedChoice]) -> String {
        let sent = choices.iter().filter(|choice| !choice.is_left_out);
        let written = sent.enumerate().map(|one| self.choice(one)).collect();
        to_json(&self.document(written, CompletionTail::of(choices)))
    }

    fn progress(&mut self, progress: Progress, out: &mut SseEvents) {
        out.push(&self.document(Vec::new(), progress.into()));
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut SseEvents) {
        let logprobs = self.0.logprobs_of(&delta.scored);
        out.push(&self.chunk(
            CompletionChoice { index: choice, text: &delta.text, logprobs, finish_reason: None },
            None,
        ));
    }

    fn closing(&mut self, choice: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        let finish_reason = Some(finished.reason);
        let last = CompletionChoice { index: choice, text: "", logprobs: None, finish_reason };
        out.push(&self.chunk(last, Some(Timings::of(slice::from_ref(finished)))));
    }

    fn end(&mut self, choices: &[FinishedChoice], out: &mut SseEvents) {
        if self.0.include_usage {
            out.push(&self.document(Vec::new(), CompletionTail::usage(choices)));
        }
        out.push_done();
    }
}
