//! `POST /v1/completions` in OpenAI's wire format.

use std::slice;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    completion_stream::{Delta, FinishReason, FinishedChoice, Progress},
    format::{ApiFormat, CompletionHead, ResponseMeta, to_json},
    logprobs::{CompletionLogprobs, ScoredToken},
    sse::Frame,
    usage::{PromptProgress, Timings, Usage},
};
use crate::{
    http::{
        field_error::FieldError,
        request::{
            compat::{self, OtherField},
            fields::{Fields, whole_of},
            generation::{Ask, Rules, asked, prompt_of, take_choices, take_tokens},
        },
    },
    job::ScoresAsked,
};

/// An answer of `/v1/completions`; in a stream, one of its events.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion<'a> {
    #[serde(flatten)]
    head: CompletionHead<'a>,
    /// Empty in the events with usage or progress.
    choices: Vec<CompletionChoice<'a>>,
    /// In a stream, sent with `include_usage` only; null before the last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
    /// In a stream, sent with the end of each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_progress: Option<PromptProgress>,
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

impl From<ResponseMeta> for Completions {
    fn from(meta: ResponseMeta) -> Self {
        Self(meta)
    }
}

impl Completions {
    fn logprobs<'a>(&self, tokens: &'a [ScoredToken]) -> Option<CompletionLogprobs<'a>> {
        self.0.logprobs.then(|| tokens.into())
    }

    fn choice<'a>(&self, (index, finished): (usize, &'a FinishedChoice)) -> CompletionChoice<'a> {
        let logprobs = self.logprobs(&finished.scored);
        CompletionChoice { index, text: &finished.text, logprobs, finish_reason: Some(finished.reason) }
    }

    fn document<'a>(&'a self, choices: Vec<CompletionChoice<'a>>) -> Completion<'a> {
        let head = self.0.head("text_completion");
        Completion { head, choices, usage: None, timings: None, prompt_progress: None }
    }

    fn chunk<'a>(&'a self, choice: CompletionChoice<'a>) -> Completion<'a> {
        Completion { usage: self.0.include_usage.then_some(None), ..self.document(vec![choice]) }
    }
}

impl ApiFormat for Completions {
    const ROUTE: &'static str = "/v1/completions";
    const ID_PREFIX: &'static str = "cmpl-";
    const TEMPERATURE: f32 = 1.0;
    const OTHERS: &'static [&'static [OtherField]] =
        &[compat::OPENAI, compat::COMPLETIONS, compat::WITHOUT_TOOLS, compat::PEERS];

    fn ask(fields: &mut Fields, rules: &Rules) -> Result<Ask, FieldError> {
        let prompt = prompt_of(fields.require("prompt")?, "prompt")?;
        let max_tokens = take_tokens(fields, "max_tokens")?;
        let ask = Ask::take(fields, rules, prompt, max_tokens)?;
        let choices = take_choices(fields)?;
        check_best_of(fields, choices)?;
        let echo = fields.take("echo")?.unwrap_or(false);
        let scores = take_scores(fields, echo)?;
        Ok(Ask { choices, echo, scores, ..ask })
    }

    fn whole(&self, choices: &[FinishedChoice]) -> String {
        to_json(&Completion {
            usage: Some(Some(Usage::of(choices))),
            timings: Some(Timings::of(choices)),
            ..self.document(choices.iter().enumerate().map(|one| self.choice(one)).collect())
        })
    }

    fn progress(&mut self, progress: Progress, out: &mut Frame) {
        out.push(&Completion { prompt_progress: Some(progress.into()), ..self.document(Vec::new()) });
    }

    fn opening(&mut self, _: usize, _: &mut Frame) {}

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Frame) {
        let logprobs = self.logprobs(&delta.scored);
        out.push(&self.chunk(CompletionChoice {
            index: choice,
            text: &delta.text,
            logprobs,
            finish_reason: None,
        }));
    }

    fn closing(&mut self, choice: usize, finished: &FinishedChoice, out: &mut Frame) {
        let finish_reason = Some(finished.reason);
        let last = CompletionChoice { index: choice, text: "", logprobs: None, finish_reason };
        out.push(&Completion { timings: Some(Timings::of(slice::from_ref(finished))), ..self.chunk(last) });
    }

    fn end(&mut self, choices: &[FinishedChoice], out: &mut Frame) {
        if self.0.include_usage {
            out.push(&Completion { usage: Some(Some(Usage::of(choices))), ..self.document(Vec::new()) });
        }
        out.push_done();
    }
}

/// Every choice that is generated is sent, so the best of more than those is not to be had.
fn check_best_of(fields: &mut Fields, choices: usize) -> Result<(), FieldError> {
    match fields.whole("best_of", 1..=u64::from(u32::MAX))? {
        Some(best_of) if best_of != choices as u64 => {
            let said = format!(
                "is {best_of}, and n is {choices}; eka sends every choice that it generates, so leave it out or send {choices}"
            );
            Err(FieldError::value("best_of", said))
        }
        _ => Ok(()),
    }
}

/// `logprobs`: how many others. `false` is what some clients send for none.
fn take_scores(fields: &mut Fields, echo: bool) -> Result<Option<ScoresAsked>, FieldError> {
    const MOST: u64 = 5;
    match fields.take::<Value>("logprobs")? {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(top) => {
            let allowed = top.as_number().and_then(whole_of).and_then(|top| u64::try_from(top).ok());
            let allowed = allowed.filter(|top| *top <= MOST);
            let range = || format!("0 to {MOST}");
            let wrong =
                || FieldError::Range { param: "logprobs".into(), found: top.to_string(), range: range() };
            allowed.map(|top| Some(asked(top, echo))).ok_or_else(wrong)
        }
    }
}
