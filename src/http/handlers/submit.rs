//! Turns a parsed request into jobs in the queue.
//!
//! Everything that can be checked in advance is checked before the job is queued: that a worker is available, that the prompt
//! fits the context, that constraints compile, that the queue has room.

use std::{mem, num::NonZeroUsize, sync::Arc, time::Instant};

use super::adapters;
use crate::{
    constraint,
    executor::{Caller, Deadlines, Terms},
    http::{
        error::ApiError,
        formats::{AnswerOptions, CompletionStream, Resume},
        offload::Cost,
        request::{
            Delivery, EncodeOptions, GenerateParams, OutputConstraint, Prompt, SamplingTexts, ServedModel,
            TruncationSide, cache_salt,
        },
        state::AppState,
    },
    job::{Constraint, Failure, Job, JobAdapter, JobId, Priority, Readiness, Sampling, TraceLink},
    text::{AnswerParserOptions, ReasoningFormat, ReasoningOptions, Text},
    units::Tokens,
};

/// Where a request comes from.
pub(crate) struct Origin {
    /// The id of the first job.
    pub(crate) id: JobId,
    pub(crate) caller: Caller,
    pub(crate) trace: Option<TraceLink>,
    pub(crate) adapters: Vec<JobAdapter>,
}

/// Queues a job for each choice of each prompt and returns their streams, prompt by prompt. A slot takes up to
/// `engine.max_sequences` of them together; if the queue has no room for all, none stays queued.
pub(crate) async fn submit(
    state: &AppState,
    text: &Arc<Text>,
    params: GenerateParams,
    origin: Origin,
) -> Result<Vec<CompletionStream>, ApiError> {
    let (arrived, terms, choices) = (Instant::now(), params.terms, params.choices);
    let caller = origin.caller.clone();
    check_readiness(&state.readiness.borrow())?;
    state.check_served(&text.card().id)?;
    adapters::count(state, &text.card().id, &origin.adapters);
    let prepared = prepare(ServedModel { state, text }, params, origin, arrived).await?;
    let all: Vec<(Job, AnswerOptions)> = prepared
        .into_iter()
        .flat_map(|(job, options)| {
            let jobs: Vec<Job> = variants(&job, choices, || state.executor.new_id()).collect();
            let of =
                move |(choice, job)| (job, AnswerOptions { counts_prompt: choice == 0, ..options.clone() });
            jobs.into_iter().enumerate().map(of)
        })
        .collect();
    let mut streams = Vec::with_capacity(all.len());
    let mut all = all.into_iter();
    loop {
        let (jobs, options): (Vec<_>, Vec<_>) = all.by_ref().take(state.settings.max_sequences.get()).unzip();
        if jobs.is_empty() {
            return Ok(streams);
        }
        // Later groups wait for earlier ones, so the queue's time limit applies to the first only.
        let Deadlines { queue, total } = terms.deadlines;
        let queue = if streams.is_empty() { queue } else { total };
        let terms = Terms { deadlines: Deadlines { queue, total }, ..terms };
        let jobs_to_resume: Vec<_> =
            jobs.iter().zip(&options).map(|(job, options)| options.budget.map(|_| job.clone())).collect();
        let tickets = state.executor.submit_together(&caller, jobs, terms)?;
        for ((ticket, options), job) in tickets.into_iter().zip(options).zip(jobs_to_resume) {
            let resume = job.map(|job| Resume::new(&state.executor, &caller, job, terms));
            streams.push(CompletionStream::new(ticket, Arc::clone(text), options, resume));
        }
    }
}

/// Checks and tokenizes a request: the job of each prompt, and how its answers are made.
async fn prepare(
    model: ServedModel<'_>,
    mut params: GenerateParams,
    origin: Origin,
    arrived: Instant,
) -> Result<Vec<(Job, AnswerOptions)>, ApiError> {
    let (ServedModel { state, text }, priority) = (model, params.terms.priority);
    if let Some(constraint) = &params.constraint {
        check_constraint(model, constraint, priority).await?;
    }
    // Not if the queue is full: the worker needs the cores.
    state.executor.check_room(Tokens(1), priority)?;
    let more = mem::take(&mut params.more_prompts);
    let prompts = std::iter::once(mem::replace(&mut params.prompt, Prompt::Ids(Vec::new()))).chain(more);
    let mut end_tokens = mem::take(&mut params.stop_token_ids);
    if !params.ignore_eos {
        end_tokens.extend(&text.card().end_tokens);
    }
    let sampling = with_texts(model, params.sampling.clone(), mem::take(&mut params.sampling_texts)).await?;
    // With `parts`, the answer may also be plain text.
    let is_verbatim = params.constraint.as_ref().is_some_and(|constraint| constraint.parts.is_empty());
    let scores_prompt = params.scores.is_some_and(|scores| scores.prompt);
    let mut prepared = Vec::new();
    for prompt in prompts {
        let PreparedPrompt { tokens, max_new, echo, reasoning } = encode(model, prompt, &params).await?;
        let options = AnswerOptions {
            parser: AnswerParserOptions {
                reasoning,
                tools: params.reading.clone(),
                // A form has an end of its own.
                stop: if is_verbatim { Vec::new() } else { params.stop.clone() },
                includes_stop: params.includes_stop,
            },
            hides_reasoning: params.thinking.is_hidden,
            budget: params.thinking.budget.filter(|_| reasoning.is_some() && !scores_prompt),
            is_verbatim,
            wants_progress: matches!(params.delivery, Delivery::Streamed { progress: true, .. }),
            prompt_only: params.prompt_only,
            echo,
            details: params.details,
            first_scored: tokens.first().copied().filter(|_| params.echo && params.details.top.is_some()),
            prompt_ids: params.details.has_ids.then(|| tokens.as_slice().into()),
            prompt_tokens: tokens.len(),
            counts_prompt: true,
            arrived,
        };
        let id = if prepared.is_empty() { origin.id } else { state.executor.new_id() };
        let (key, salt) = (origin.caller.key.as_deref(), params.cache_salt.as_deref());
        let constraint = params.constraint.as_ref().map(|output| match reasoning {
            Some(reasoning) if is_verbatim => after_reasoning(&output.constraint, reasoning),
            _ => output.constraint.clone(),
        });
        let job = Job {
            model: text.card().id.as_str().into(),
            keep_alive: params.keep_alive,
            sampling: sampling.clone(),
            constraint,
            logprobs: params.scores,
            trace: origin.trace.clone(),
            cache_prompt: params.cache_prompt,
            cache_salt: cache_salt::digest(state, key, salt),
            adapters: origin.adapters.clone(),
            end_tokens: end_tokens.clone(),
            min_new_tokens: params.min_new,
            ..Job::new(id, tokens, max_new)
        };
        prepared.push((job, options));
    }
    Ok(prepared)
}

/// A tokenized prompt, with the room for its answer.
struct PreparedPrompt {
    tokens: Vec<u32>,
    max_new: usize,
    /// Its text, if the answer begins with it.
    echo: Option<String>,
    /// How the answer's reasoning is recognised.
    reasoning: Option<ReasoningOptions>,
}

async fn encode(
    model: ServedModel<'_>,
    mut prompt: Prompt,
    params: &GenerateParams,
) -> Result<PreparedPrompt, ApiError> {
    let echo = if params.echo { prompt.text() } else { params.echoed_text.clone() };
    let mut reasoning = model.text.reasoning().filter(|_| params.thinking.is_parsed);
    let form = form_of_prompt(&mut prompt, params, &mut reasoning, model.text);
    let options = EncodeOptions { truncation: truncation(params, model.context_length()), ..form };
    let encoded = model.encode(prompt, options).await?;
    let tokens = encoded.ids;
    let default = model.state.settings.default_max_new;
    let max_new = room(Tokens(tokens.len()), params.max_new, default, model.context_length())?.0;
    let echo = match echo {
        None if params.echo => Some(model.decode(&tokens).await?),
        echo => echo,
    };
    let is_open = encoded.is_in_reasoning;
    let reasoning = reasoning.map(|format| ReasoningOptions { format, is_open });
    Ok(PreparedPrompt { tokens, max_new, echo, reasoning })
}

/// What the prompt needs besides its text. An answer whose form is constrained begins with the form where no grammar can
/// let reasoning precede it.
fn form_of_prompt(
    prompt: &mut Prompt,
    params: &GenerateParams,
    reasoning: &mut Option<&'static ReasoningFormat>,
    text: &Text,
) -> EncodeOptions {
    let Some(constraint) = params.constraint.as_ref().filter(|output| output.parts.is_empty()) else {
        return EncodeOptions::default();
    };
    let can_precede = reasoning.and_then(ReasoningFormat::marks).is_some_and(|(_, close)| {
        !text.is_special(close) && !matches!(constraint.constraint, Constraint::Lark(_))
    });
    if let (Some(format), Prompt::Conversation(conversation), false) = (text.reasoning(), prompt, can_precede)
        && format.marks().is_none()
        && conversation.answer_prefix.is_empty()
    {
        conversation.answer_prefix = format.answer_start().to_owned();
    }
    if !can_precede {
        *reasoning = None;
    }
    EncodeOptions { ends_reasoning: !can_precede, ..EncodeOptions::default() }
}

/// How the prompt is shortened, so that the answer fits a context of `capacity` tokens.
fn truncation(params: &GenerateParams, capacity: Tokens) -> Option<(usize, TruncationSide)> {
    let truncation = params.truncation?;
    let fitting = capacity.0.saturating_sub(params.max_new.map_or(1, |max| max.0)).max(1);
    Some((truncation.max.map_or(fitting, NonZeroUsize::get), truncation.side))
}

/// The constraint on an answer that may reason before it.
fn after_reasoning(
    constraint: &Constraint,
    ReasoningOptions { format, is_open }: ReasoningOptions,
) -> Constraint {
    let after = format.marks().and_then(|marks| constraint::after_text(constraint, marks, is_open));
    after.unwrap_or_else(|| constraint.clone())
}

/// The job, and further ones that differ in id and seed only.
fn variants(first: &Job, max: usize, mut new_id: impl FnMut() -> JobId) -> impl Iterator<Item = Job> {
    let later = (1..max as u64).map(move |choice| {
        let mut job = Job { id: new_id(), ..first.clone() };
        job.sampling.seed = job.sampling.seed.wrapping_add(choice);
        job
    });
    std::iter::once(first.clone()).chain(later)
}

/// Refuses requests if no worker is expected soon. While a worker is replaced, requests wait in the queue.
pub(crate) fn check_readiness(readiness: &Readiness) -> Result<(), ApiError> {
    match readiness {
        Readiness::Restarting { .. } => Ok(()),
        _ => ApiError::not_ready(readiness).map_or(Ok(()), Err),
    }
}

/// Compiles a constraint in the sandbox to check it; not if the queue is full.
async fn check_constraint(
    ServedModel { state, text }: ServedModel<'_>,
    output: &OutputConstraint,
    priority: Priority,
) -> Result<(), ApiError> {
    text.check_constraints_supported()?;
    state.executor.check_room(Tokens(1), priority)?;
    let sandbox = state.sandbox()?;
    let Err(whole) = sandbox.check(&output.constraint).await? else { return Ok(()) };
    if !whole.is_limit() {
        for (param, part) in &output.parts {
            let checked = sandbox.check(part).await?;
            checked.map_err(|source| ApiError::Constraint { param: param.clone(), source })?;
        }
    }
    Err(ApiError::Constraint { param: output.param.clone(), source: whole })
}

/// Adds the tokens of the texts; on another thread, because that may take a search through the vocabulary.
async fn with_texts(
    model: ServedModel<'_>,
    sampling: Sampling,
    texts: SamplingTexts,
) -> Result<Sampling, ApiError> {
    if texts.is_unused(&sampling) {
        return Ok(sampling);
    }
    let text = Arc::clone(model.text);
    model.state.offload.run(Cost::Light, move || texts.add_to(sampling, &text)).await
}

/// The number of tokens to generate: the requested number, which has to fit, or the default, lowered to fit.
pub(crate) fn room(
    prompt: Tokens,
    asked: Option<Tokens>,
    default: Option<Tokens>,
    capacity: Tokens,
) -> Result<Tokens, ApiError> {
    let left = Tokens(capacity.0.saturating_sub(prompt.0));
    match asked {
        _ if left == Tokens(0) => Err(ApiError::NoRoom { prompt, capacity }),
        Some(max_new) if max_new > left => Err(Failure::Context { prompt, max_new, capacity }.into()),
        Some(max_new) => Ok(max_new),
        None => Ok(default.unwrap_or(left).clamp(Tokens(1), left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_tokens_must_fit_and_the_default_is_lowered_to_fit() {
        let room = |prompt, asked: Option<usize>, default| {
            super::room(Tokens(prompt), asked.map(Tokens), Some(Tokens(default)), Tokens(16))
        };
        assert_eq!(super::room(Tokens(10), None, None, Tokens(16)).unwrap(), Tokens(6), "what is left");
        assert_eq!(room(10, Some(6), 100).unwrap(), Tokens(6));
        assert_eq!(room(10, None, 100).unwrap(), Tokens(6));
        assert_eq!(room(10, None, 3).unwrap(), Tokens(3));
        assert!(matches!(room(10, Some(7), 100), Err(ApiError::Failure(Failure::Context { .. }))));
        for prompt in [16, 17, usize::MAX] {
            assert!(matches!(room(prompt, None, 1), Err(ApiError::NoRoom { .. })));
        }
    }

    #[test]
    fn requests_wait_for_a_restarting_worker_and_are_refused_without_one() {
        check_readiness(&Readiness::Restarting { reason: "it crashed".into() }).unwrap();
        for refused in [
            Readiness::Starting,
            Readiness::Down { reason: "it crashed".into(), retry_in: None },
            Readiness::Stopping,
        ] {
            check_readiness(&refused).unwrap_err();
        }
    }
}
