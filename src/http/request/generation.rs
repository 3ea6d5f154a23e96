//! The fields that all generating routes share, and the checked request that they become.
//!
//! The routes differ in how the prompt is sent, in the name of the token limit, and in defaults; each has its request in a file of
//! its own. [`GenerateParams`] are checked: every number is in range and the model has every token id. Only the length of
//! the prompt is unknown until it is tokenized.

use std::{num::NonZeroUsize, time::Duration};

use super::{
    adapters::{AdapterChoice, adapters},
    cache_salt::cache_salt,
    compat,
    echoed_fields::EchoedFields,
    fill_in_middle::FillInMiddle,
    keep_alive::keep_alive,
    llama_cpp_echo::LlamaCppEcho,
    prompt::{Prompt, check_ids, token_ids},
    response_format::{FormatFields, OutputConstraint, TextFormat},
    sampling::SamplingFields,
    sampling_texts::SamplingTexts,
    schema::{
        FieldType, Modify, OptionalField, ReadObject, boolean, integer, integer_from, object, one_of, shape,
        string, string_list,
    },
    thinking::Thinking,
    token_details::TokenDetails,
    tools::{ToolContext, ToolSet},
};
use crate::{
    executor::{Deadlines, Terms},
    http::{
        field_error::FieldError,
        stored_responses::{StoredForClient, ToStore},
    },
    job::{KeepAlive, LogprobOptions, Priority, Sampling, SamplingDefaults},
    text::ToolCallParserOptions,
    units::Tokens,
};

/// Most stop strings of one request.
const MAX_STOPS: usize = 16;

/// Most bytes of one stop string. Up to as many bytes of a streamed answer are held back.
const MAX_STOP_BYTES: usize = 1024;

/// Most tokens that end an answer. A worker compares each token of the answer with all of them.
const MAX_STOP_TOKENS: usize = 1024;

/// Most answers to one prompt.
const MAX_CHOICES: usize = 8;

const STREAM: &str = "\"stream\": true";

shape! {
    /// Fields that all generating routes share.
    pub(crate) struct Generation {
        ..sampling: SamplingFields;
        ..format: FormatFields;
        /// Id of a model of `GET /v1/models`; by default the first of them.
        _model as "model": Option<String> = string().optional();
        /// Adapters of the model, added up with their weights; a model name of the form `MODEL:ADAPTER` chooses one.
        adapters: Vec<AdapterChoice> = adapters().or_empty();
        /// The answer ends before any of these strings: at most 16 of 1024 bytes, none of them empty. `""` means none. They
        /// have no effect within reasoning, tool calls and an answer whose form is constrained.
        stop: Vec<String> = stop_strings().or_empty().unset_at("\"\"");
        /// The answer has the stop string that ends it.
        include_stop_str_in_output: bool = boolean().or(false);
        /// The answer ends before any of these tokens.
        stop_token_ids: Vec<u32> = token_ids().items(0..=MAX_STOP_TOKENS).or_empty();
        /// Fewest tokens of the answer: no end token ends it before. A stop string may.
        min_tokens: usize = integer(0..=u32::MAX as usize).or(0);
        /// End tokens of the model do not end the answer.
        ignore_eos: bool = boolean().or(false);
        /// Sends the answer as server-sent events while it is generated.
        stream: bool = boolean().or(false);
        /// Only for streams.
        stream_options: Option<StreamOptions> = object().optional();
        /// Only for streams: events report how much of a long prompt was processed.
        return_progress: bool = boolean().or(false);
        /// Keeps only this many tokens of the prompt; -1 keeps as many as the context has room for.
        truncate_prompt_tokens: Option<i64> = integer(-1..=i64::from(u32::MAX)).optional();
        /// Where `truncate_prompt_tokens` removes tokens: `left`, the default, keeps the last ones.
        truncation_side: Option<TruncationSide> = truncation_side().optional();
        /// Whether the prompt may reuse cached prompts and is cached itself.
        cache_prompt: bool = boolean().or(true);
        /// The prompt reuses only cached prompts of the same salt. Use a random text that others cannot guess.
        cache_salt: Option<String> = cache_salt().optional();
        /// Longest wait in the queue, in milliseconds; the server's setting is the maximum.
        queue_timeout_ms: Option<u64> = integer_from(1).optional();
        /// Longest time from the request to the end of its answer, in milliseconds; the server's setting is the maximum.
        timeout_ms: Option<u64> = integer_from(1).optional();
        /// Longest time to generate, in milliseconds. The answer then ends with the tokens so far.
        max_time_ms: Option<u64> = integer_from(1).optional();
        /// Interactive requests, the default, run before batch requests, within a limit.
        priority: Option<Priority> = priority().optional().unset_at("0");
        /// OpenAI's name for a priority: `flex` is batch, all others are interactive.
        service_tier: Option<Priority> = service_tier().optional();
        /// How long the model stays loaded afterwards.
        keep_alive: Option<KeepAlive> = keep_alive().optional();
    }
}

shape! {
    /// Options of a stream.
    pub(crate) struct StreamOptions {
        /// Adds a last event with the usage of all choices.
        include_usage: bool = boolean().or(false);
        /// With `include_usage`, each event has the usage of its choice so far.
        continuous_usage_stats: bool = boolean().or(false);
    }
    accepts compat::STREAM_OPTIONS;
}

fn stop_strings() -> impl FieldType<Value = Vec<String>> {
    let empty = "an empty stop string would match before anything";
    string_list(MAX_STOPS, MAX_STOP_BYTES, empty).or_one().named("Stop", "A string, or several.")
}

const fn truncation_side() -> impl FieldType<Value = TruncationSide> {
    one_of(&[("left", TruncationSide::Left), ("right", TruncationSide::Right)])
}

const fn priority() -> impl FieldType<Value = Priority> {
    one_of(&[("interactive", Priority::Interactive), ("batch", Priority::Batch)])
}

const fn service_tier() -> impl FieldType<Value = Priority> {
    one_of(&[
        ("auto", Priority::Interactive),
        ("default", Priority::Interactive),
        ("priority", Priority::Interactive),
        ("flex", Priority::Batch),
    ])
}

/// A number of tokens to generate; -1 means unlimited. The context length is checked once the prompt is tokenized.
pub(super) fn max_tokens() -> OptionalField<impl FieldType<Value = Tokens>, Option<Tokens>> {
    tokens_from(1)
}

/// As [`max_tokens`], or 0 to score the prompt.
pub(super) fn max_tokens_or_none() -> OptionalField<impl FieldType<Value = Tokens>, Option<Tokens>> {
    tokens_from(0)
}

fn tokens_from(min: usize) -> OptionalField<impl FieldType<Value = Tokens>, Option<Tokens>> {
    integer(min..=u32::MAX as usize).map(Tokens).optional().unset_at("-1")
}

/// `n`: how many answers to generate for one prompt.
pub(super) fn choices() -> impl FieldType<Value = usize> {
    integer(1..=MAX_CHOICES)
}

/// A request for answers, in the format of one route.
pub(crate) trait GenerateRequest: ReadObject {
    /// Checks the request against a model and the server's limits.
    ///
    /// # Errors
    /// When fields contradict each other or exceed a limit.
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError>;
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestContext<'a> {
    /// Number of token ids of the model.
    pub(crate) vocabulary: usize,
    /// Tokens that end an answer of the model.
    pub(crate) end_tokens: &'a [u32],
    /// Defaults, and the longest that a request may ask for.
    pub(crate) deadlines: Deadlines,
    pub(crate) tools: ToolContext,
    /// Sampling parameters of the model.
    pub(crate) sampling: SamplingDefaults,
    /// Whether the model can answer a conversation.
    pub(crate) has_chat_template: bool,
    /// How the model fills in the middle of a text, if it can.
    pub(crate) fill_in_middle: Option<FillInMiddle>,
    /// Responses that the server has stored for this client; `None` where it stores none.
    pub(crate) stored: Option<StoredForClient<'a>>,
}

/// What to generate, and under which conditions.
#[derive(Debug)]
pub(crate) struct GenerateParams {
    pub(crate) prompt: Prompt,
    /// Further prompts, which are answered as well.
    pub(crate) more_prompts: Vec<Prompt>,
    /// `None` leaves it to the settings and the room in the context.
    pub(crate) max_new: Option<Tokens>,
    pub(crate) sampling: Sampling,
    pub(crate) sampling_texts: SamplingTexts,
    pub(crate) constraint: Option<OutputConstraint>,
    /// How tool calls are read, where the answer may have any.
    pub(crate) reading: Option<ToolCallParserOptions>,
    /// How the model's reasoning is handled.
    pub(crate) thinking: Thinking,
    /// Fields of the request that the answer repeats.
    pub(crate) echoed: EchoedFields,
    /// What an answer in llama-server's format repeats.
    pub(crate) llama_cpp: Option<Box<LlamaCppEcho>>,
    /// The conversation, if the answer is stored.
    pub(crate) stored: Option<ToStore>,
    /// How many answers to generate for each prompt.
    pub(crate) choices: usize,
    /// How many of them are sent: those with the greatest mean log-probability of a token. `None` means all.
    pub(crate) best_of: Option<usize>,
    /// What the model scores.
    pub(crate) scores: Option<LogprobOptions>,
    /// What the answer tells about tokens.
    pub(crate) details: TokenDetails,
    /// Whether the request only loads the model.
    pub(crate) loads_only: bool,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: bool,
    /// Text that the answer begins with: that of the message which it continues.
    pub(crate) echoed_text: Option<String>,
    /// Whether the answer has nothing else: it is for the log-probabilities of the prompt.
    pub(crate) prompt_only: bool,
    pub(crate) stop: Vec<String>,
    /// Whether the answer has the stop string that ends it.
    pub(crate) includes_stop: bool,
    /// How the prompt is shortened; `None` keeps all of it.
    pub(crate) truncation: Option<Truncation>,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    /// Fewest tokens of the answer.
    pub(crate) min_new: usize,
    /// Whether the prompt may reuse cached prompts and is cached itself.
    pub(crate) cache_prompt: bool,
    /// Separates cached prompts from those with another salt, or with none.
    pub(crate) cache_salt: Option<String>,
    pub(crate) delivery: Delivery,
    pub(crate) terms: Terms,
    /// How long the model stays loaded afterwards.
    pub(crate) keep_alive: Option<KeepAlive>,
    /// Adapters of the model.
    pub(crate) adapters: Vec<AdapterChoice>,
}

impl GenerateParams {
    /// With this handling of the reasoning.
    pub(super) fn with_thinking(self, thinking: Thinking) -> Self {
        Self { thinking, ..self }
    }
}

/// How a prompt that may be too long is shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// How many of its tokens are kept; `None` keeps as many as the context has room for.
    pub(crate) max: Option<NonZeroUsize>,
    pub(crate) side: TruncationSide,
}

/// Which tokens are removed from a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TruncationSide {
    /// The first ones.
    Left,
    /// The last ones.
    Right,
}

impl Truncation {
    fn new(tokens: i64, side: TruncationSide) -> Result<Self, FieldError> {
        let none =
            "0 would keep nothing of the prompt; send 1 or more, or -1 for what the context has room for";
        let max = usize::try_from(tokens).ok();
        let max = max.map(|max| {
            NonZeroUsize::new(max).ok_or_else(|| FieldError::value("truncate_prompt_tokens", none))
        });
        Ok(Self { max: max.transpose()?, side })
    }
}

/// How the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// As one JSON document, when it is complete.
    Whole,
    /// As server-sent events, while it is generated.
    Streamed {
        /// With OpenAI's chunk of usage at the end.
        include_usage: bool,
        /// With the usage so far in every event.
        continuous_usage: bool,
        /// With events about a long prompt.
        progress: bool,
    },
}

/// What the fields of one route add to the shared fields.
#[derive(Debug)]
pub(super) struct RouteParams {
    pub(super) prompt: Prompt,
    pub(super) max_new: Option<Tokens>,
    /// Temperature of requests that send none, if the model has none either; 0 always picks the most probable token.
    pub(super) default_temperature: f32,
    /// The form of the answer, and its field.
    pub(super) text_format: Option<(&'static str, TextFormat)>,
    pub(super) tools: Option<ToolSet>,
}

impl RouteParams {
    pub(super) const fn new(prompt: Prompt, max_new: Option<Tokens>) -> Self {
        Self { prompt, max_new, default_temperature: 1.0, text_format: None, tools: None }
    }
}

impl Generation {
    /// Checks the shared fields together with those of the route.
    pub(super) fn resolve(
        self,
        route: RouteParams,
        context: &RequestContext<'_>,
    ) -> Result<GenerateParams, FieldError> {
        let delivery = self.delivery()?;
        let terms = Terms { is_limited: route.max_new.is_some(), ..self.terms(context.deadlines)? };
        route.prompt.check("prompt", context.vocabulary)?;
        check_ids(&self.stop_token_ids, "stop_token_ids", context.vocabulary)?;
        let side = self.truncation_side.unwrap_or(TruncationSide::Left);
        let truncation = self.truncate_prompt_tokens.map(|max| Truncation::new(max, side)).transpose()?;
        let temperature = context.sampling.temperature.or(Some(route.default_temperature));
        let defaults = SamplingDefaults { temperature, ..context.sampling };
        let (sampling, sampling_texts) = self.sampling.resolve(context.vocabulary, defaults)?;
        let mut constraint = self.format.constraint(route.text_format)?;
        let mut reading = None;
        if let Some((parser, calls)) = route.tools.map(|tools| tools.calls(&context.tools)).transpose()? {
            if let Some(constraint) = &constraint {
                let message = "cannot be combined with tools, whose calls have a format of their own; leave one of them out";
                return Err(FieldError::value(&constraint.param, message));
            }
            reading = Some(parser);
            constraint = calls;
        }
        if let Some(constraint) = &constraint {
            let ends = [!self.stop_token_ids.is_empty(), self.ignore_eos];
            constraint.check_ends(ends)?;
        }
        check_min_tokens(self.min_tokens, route.max_new, constraint.as_ref())?;
        Ok(GenerateParams {
            prompt: route.prompt,
            more_prompts: Vec::new(),
            max_new: route.max_new,
            sampling,
            sampling_texts,
            constraint,
            reading,
            thinking: Thinking::default(),
            echoed: EchoedFields::default(),
            choices: 1,
            best_of: None,
            scores: None,
            details: TokenDetails::default(),
            llama_cpp: None,
            stored: None,
            loads_only: false,
            echo: false,
            echoed_text: None,
            prompt_only: false,
            stop: self.stop,
            includes_stop: self.include_stop_str_in_output,
            truncation,
            stop_token_ids: self.stop_token_ids,
            ignore_eos: self.ignore_eos,
            min_new: self.min_tokens,
            cache_prompt: self.cache_prompt,
            cache_salt: self.cache_salt,
            delivery,
            terms,
            keep_alive: self.keep_alive,
            adapters: self.adapters,
        })
    }

    fn delivery(&self) -> Result<Delivery, FieldError> {
        let include_usage = self.stream_options.as_ref().is_some_and(|options| options.include_usage);
        let continuous_usage =
            self.stream_options.as_ref().is_some_and(|options| options.continuous_usage_stats)
                && include_usage;
        let progress = self.return_progress;
        match self.stream {
            true => Ok(Delivery::Streamed { include_usage, continuous_usage, progress }),
            false if progress => Err(FieldError::requires("return_progress", STREAM)),
            false if self.stream_options.is_some() => Err(FieldError::requires("stream_options", STREAM)),
            false => Ok(Delivery::Whole),
        }
    }

    /// The deadlines and the priority; `max` holds the server's limits, which are also the defaults.
    fn terms(&self, max: Deadlines) -> Result<Terms, FieldError> {
        let priority = match (self.priority, self.service_tier) {
            (Some(_), Some(_)) => return Err(FieldError::conflict("priority", "service_tier")),
            (priority, tier) => priority.or(tier).unwrap_or(Priority::Interactive),
        };
        let queue = within("queue_timeout_ms", self.queue_timeout_ms, max.queue)?.unwrap_or(max.queue);
        let total = within("timeout_ms", self.timeout_ms, max.total)?.unwrap_or(max.total);
        let max_time = within("max_time_ms", self.max_time_ms, max.total)?;
        Ok(Terms { priority, max_time, ..Deadlines { queue, total }.into() })
    }
}

/// Checks that an answer of `max` tokens in this form can have `min` tokens.
fn check_min_tokens(
    min: usize,
    max: Option<Tokens>,
    constraint: Option<&OutputConstraint>,
) -> Result<(), FieldError> {
    if let Some(max) = max.filter(|max| max.0 < min) {
        let message = format!("is {min}, above the limit of {max} for the answer; send {} or less", max.0);
        return Err(FieldError::value("min_tokens", message));
    }
    match constraint {
        Some(constraint) if min > 0 => Err(FieldError::conflict("min_tokens", &constraint.param)),
        _ => Ok(()),
    }
}

/// Checks a time in milliseconds against the server's limit.
pub(super) fn within(name: &str, found: Option<u64>, max: Duration) -> Result<Option<Duration>, FieldError> {
    let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX).max(1);
    match found {
        Some(found) if found > max_ms => {
            let range = format!("1 to {max_ms}");
            Err(FieldError::Range { param: name.to_owned(), found: found.to_string(), range })
        }
        found => Ok(found.map(Duration::from_millis)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::request::{generate_lite::GenerateLiteRequest, schema::Fields};

    fn stop(stop: Value) -> Result<Vec<String>, FieldError> {
        let mut fields = Fields::parse(json!({ "stop": stop }).to_string().as_bytes()).unwrap();
        fields.take("stop", stop_strings().or_empty().unset_at("\"\""))
    }

    #[test]
    fn stop_strings_are_few_and_short_and_the_error_names_the_limit() {
        assert_eq!(stop(json!(vec!["क".repeat(341); 16])).unwrap().len(), 16);
        assert!(stop(json!("")).unwrap().is_empty());
        for (refused, words) in [
            (json!(vec!["a".repeat(250_000); 16]), "string 0 has 250000 bytes, at most 1024"),
            (json!(vec!["a"; 17]), "17 strings, at most 16"),
            (json!(["a", ""]), "string 1 is empty"),
        ] {
            let error = stop(refused).unwrap_err();
            assert!(error.param() == "stop" && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn tokens_that_end_an_answer_are_few() {
        let body = json!({ "prompt": "a", "stop_token_ids": vec![1; 1025] }).to_string();
        let error = GenerateLiteRequest::read(Fields::parse(body.as_bytes()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("1025 items, at most 1024"), "{error}");
    }
}
