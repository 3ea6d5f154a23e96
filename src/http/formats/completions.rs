//! `POST /v1/completions` in OpenAI's wire format.

use std::slice;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    format::{ApiFormat, CompletionHead, ResponseMeta, to_json},
    logprobs::{CompletionLogprobs, PromptLogprob, PromptLogprobs},
    sse::SseEvents,
    update::{Delta, FinishReason, FinishedChoice, Progress},
    usage::{CompletionTail, Timings},
};
use crate::{http::request::CompletionRequest, job};

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
    /// With `return_token_ids`; in a stream, in the first event of each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
    /// With `prompt_logprobs`: log-probabilities by token id, for each token of the prompt; null for the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<std::collections::BTreeMap<String, PromptLogprob>>>>)]
    prompt_logprobs: Option<&'a [Option<PromptLogprobs>]>,
}

/// The format of OpenAI's completions.
pub(crate) struct Completions(ResponseMeta);

impl Completions {
    fn choice<'a>(&self, (index, finished): (usize, &'a FinishedChoice)) -> CompletionChoice<'a> {
        CompletionChoice {
            index,
            text: &finished.text,
            logprobs: self.0.logprobs_of(&finished.scored),
            finish_reason: Some(finished.reason),
            prompt_token_ids: finished.ids.prompt.as_deref(),
            token_ids: finished.ids.answer.as_deref(),
            prompt_logprobs: finished.prompt_logprobs.as_deref(),
        }
    }

    fn document<'a>(&'a self, choices: Vec<CompletionChoice<'a>>, tail: CompletionTail) -> Completion<'a> {
        Completion { head: self.0.head("text_completion"), choices, tail }
    }

    fn chunk<'a>(
        &'a self,
        choice: CompletionChoice<'a>,
        timings: Option<Timings>,
        usage: job::Usage,
    ) -> Completion<'a> {
        self.document(vec![choice], self.0.tail_of_event(timings, usage))
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

    fn whole(&mut self, choices: &[FinishedChoice]) -> String {
        let sent = choices.iter().filter(|choice| !choice.is_left_out);
        let written = sent.enumerate().map(|one| self.choice(one)).collect();
        to_json(&self.document(written, CompletionTail::of(choices)))
    }

    fn progress(&mut self, progress: Progress, out: &mut SseEvents) {
        out.push(&self.document(Vec::new(), progress.into()));
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut SseEvents) {
        let piece = CompletionChoice {
            index: choice,
            text: &delta.text,
            logprobs: self.0.logprobs_of(&delta.scored),
            finish_reason: None,
            prompt_token_ids: delta.ids.prompt.as_deref(),
            token_ids: delta.ids.answer.as_deref(),
            prompt_logprobs: None,
        };
        out.push(&self.chunk(piece, None, delta.usage));
    }

    fn closing(&mut self, choice: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        let last = CompletionChoice {
            index: choice,
            text: "",
            logprobs: None,
            finish_reason: Some(finished.reason),
            prompt_token_ids: None,
            token_ids: None,
            prompt_logprobs: None,
        };
        out.push(&self.chunk(last, Some(Timings::of(slice::from_ref(finished))), finished.usage));
    }

    fn end(&mut self, choices: &[FinishedChoice], out: &mut SseEvents) {
        if self.0.include_usage {
            out.push(&self.document(Vec::new(), CompletionTail::of(choices)));
        }
        out.push_done();
    }
}
