//! `POST /completion` and `POST /infill` in llama-server's own format.

use std::{marker::PhantomData, slice};

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, Ref, RefOr, Schema,
        schema::{AdditionalProperties, AnyOfBuilder},
    },
};

use super::{
    format::{ApiFormat, ResponseMeta, to_json},
    logprobs::{ScoredToken, TokenProbability},
    sse::SseEvents,
    update::{Delta, FinishReason, FinishedChoice, Progress},
    usage::{PromptProgress, Timings},
};
use crate::http::request::{GenerateRequest, GenerationSettings, InfillRequest, LlamaCompletionRequest};

/// An answer of `/completion`: one object, or an array where the request has several answers.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum LlamaCompletions<'a> {
    One(ReducedCompletion<'a>),
    Several(Vec<ReducedCompletion<'a>>),
}

/// One answer, or those of its fields that the request names in `response_fields`, by their paths.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum ReducedCompletion<'a> {
    Whole(Box<LlamaCompletion<'a>>),
    Reduced(Map<String, Value>),
}

/// Not derived: that would describe alternatives of which an answer has exactly one, and a whole answer is an object as well.
impl PartialSchema for ReducedCompletion<'_> {
    fn schema() -> RefOr<Schema> {
        let reduced = ObjectBuilder::new()
            .description(Some("The fields that `response_fields` names, by their paths."))
            .additional_properties(Some(AdditionalProperties::FreeForm(true)));
        AnyOfBuilder::new().item(Ref::from_schema_name(LlamaCompletion::name())).item(reduced).into()
    }
}

impl ToSchema for ReducedCompletion<'_> {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((LlamaCompletion::name().into(), LlamaCompletion::schema()));
        LlamaCompletion::schemas(schemas);
    }
}

/// One answer; in a stream, one of its events.
#[derive(Serialize, ToSchema)]
pub(crate) struct LlamaCompletion<'a> {
    index: usize,
    content: &'a str,
    /// Ids; in a complete answer with `return_tokens` only.
    tokens: &'a [u32],
    /// Always 0.
    id_slot: usize,
    /// Whether the answer is complete.
    stop: bool,
    model: &'a str,
    /// Tokens of the answer so far.
    tokens_predicted: usize,
    /// Tokens of the prompt.
    tokens_evaluated: usize,
    /// With `n_probs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_probabilities: Option<Vec<TokenProbability<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_progress: Option<PromptProgress>,
    #[serde(flatten)]
    end: Option<LlamaEnd<'a>>,
}

/// What a complete answer has besides.
#[derive(Serialize, ToSchema)]
struct LlamaEnd<'a> {
    generation_settings: &'a GenerationSettings,
    /// As it was sent; empty for token ids.
    prompt: &'a str,
    has_new_line: bool,
    /// Always false: a prompt that does not fit is refused.
    truncated: bool,
    stop_type: StopType,
    /// The stop string that ended the answer.
    stopping_word: &'a str,
    /// Tokens in the prefix cache after the answer, if it is kept.
    tokens_cached: usize,
    timings: Timings,
}

/// Why an answer ended: an end token, a stop string, or the limit of tokens.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum StopType {
    Eos,
    Word,
    Limit,
}

/// The routes that answer in this format.
pub(crate) trait LlamaRoute: Send + 'static {
    type Request: GenerateRequest;
    const ROUTE: &'static str;
}

/// `/completion`.
pub(crate) struct CompletionRoute;

/// `/infill`.
pub(crate) struct InfillRoute;

impl LlamaRoute for CompletionRoute {
    type Request = LlamaCompletionRequest;
    const ROUTE: &'static str = "/completion";
}

impl LlamaRoute for InfillRoute {
    type Request = InfillRequest;
    const ROUTE: &'static str = "/infill";
}

/// llama-server's own format.
pub(crate) struct LlamaFormat<R>(ResponseMeta, PhantomData<R>);

impl<R: LlamaRoute> LlamaFormat<R> {
    fn event<'a>(&'a self, choice: usize, content: &'a str) -> LlamaCompletion<'a> {
        LlamaCompletion {
            index: choice,
            content,
            tokens: &[],
            id_slot: 0,
            stop: false,
            model: &self.0.model,
            tokens_predicted: 0,
            tokens_evaluated: self.0.prompt_tokens,
            completion_probabilities: None,
            prompt_progress: None,
            end: None,
        }
    }

    fn probabilities<'a>(&self, scored: &'a [ScoredToken]) -> Option<Vec<TokenProbability<'a>>> {
        let after_sampling = self.0.details.after_sampling;
        let of = |scored| TokenProbability::new(scored, after_sampling);
        self.0.details.top.map(|_| scored.iter().map(of).collect())
    }

    /// The end of a choice, with `content`.
    fn last_event<'a>(
        &'a self,
        choice: usize,
        finished: &'a FinishedChoice,
        content: &'a str,
    ) -> LlamaCompletion<'a> {
        let echo = self.0.llama_cpp.as_deref();
        let end = echo.map(|echo| LlamaEnd {
            generation_settings: &echo.settings,
            prompt: echo.prompts.get(choice / echo.choices.max(1)).map_or("", String::as_str),
            has_new_line: finished.text.contains('\n'),
            truncated: false,
            stop_type: match (finished.reason, &finished.stop_string) {
                (FinishReason::Length, _) => StopType::Limit,
                (_, Some(_)) => StopType::Word,
                (_, None) => StopType::Eos,
            },
            stopping_word: finished.stop_string.as_deref().unwrap_or_default(),
            tokens_cached: finished.usage.prompt_tokens + finished.usage.completion_tokens,
            timings: Timings::of(slice::from_ref(finished)),
        });
        LlamaCompletion {
            stop: true,
            tokens_predicted: finished.usage.completion_tokens,
            tokens_evaluated: finished.usage.prompt_tokens,
            end,
            ..self.event(choice, content)
        }
    }

    /// A complete answer with the fields that the request names.
    fn reduced<'a>(&self, answer: LlamaCompletion<'a>) -> ReducedCompletion<'a> {
        let paths = self.0.llama_cpp.as_deref().map_or(&[][..], |echo| &echo.response_fields);
        if paths.is_empty() {
            return ReducedCompletion::Whole(Box::new(answer));
        }
        let answer = serde_json::to_value(&answer).unwrap_or_default();
        let at = |path: &str| path.split('/').try_fold(&answer, |value, name| value.get(name)).cloned();
        ReducedCompletion::Reduced(paths.iter().filter_map(|path| Some((path.clone(), at(path)?))).collect())
    }

    fn complete<'a>(&'a self, (choice, finished): (usize, &'a FinishedChoice)) -> LlamaCompletion<'a> {
        let tokens = finished.ids.answer.as_deref();
        let is_wanted = self.0.llama_cpp.as_ref().is_some_and(|echo| echo.return_tokens);
        LlamaCompletion {
            tokens: tokens.filter(|_| is_wanted).unwrap_or_default(),
            completion_probabilities: self.probabilities(&finished.scored),
            ..self.last_event(choice, finished, &finished.text)
        }
    }
}

impl<R: LlamaRoute> ApiFormat for LlamaFormat<R> {
    type Request = R::Request;

    const ROUTE: &'static str = R::ROUTE;
    const ID_PREFIX: &'static str = "cmpl-";

    fn new(meta: ResponseMeta) -> Self {
        Self(meta, PhantomData)
    }

    fn whole(&mut self, choices: &[FinishedChoice]) -> String {
        let all = choices.iter().enumerate().map(|one| self.complete(one));
        let mut all: Vec<_> = all.map(|one| self.reduced(one)).collect();
        to_json(&match all.pop() {
            Some(one) if all.is_empty() => LlamaCompletions::One(one),
            last => {
                all.extend(last);
                LlamaCompletions::Several(all)
            }
        })
    }

    fn progress(&mut self, progress: Progress, out: &mut SseEvents) {
        out.push(&LlamaCompletion { prompt_progress: Some(progress.into()), ..self.event(0, "") });
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut SseEvents) {
        out.push(&LlamaCompletion {
            tokens: delta.ids.answer.as_deref().unwrap_or_default(),
            tokens_predicted: delta.usage.completion_tokens,
            completion_probabilities: self.probabilities(&delta.scored),
            ..self.event(choice, &delta.text)
        });
    }

    fn closing(&mut self, choice: usize, finished: &FinishedChoice, out: &mut SseEvents) {
        out.push(&self.reduced(self.last_event(choice, finished, "")));
    }

    /// The last event of each answer says that it is the last.
    fn end(&mut self, _: &[FinishedChoice], _: &mut SseEvents) {}
}
