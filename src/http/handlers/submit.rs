//! Turns a parsed request into jobs in the queue.
//!
//! Everything that can be checked in advance is checked before the job is queued: that a worker is available, that the prompt
//! fits the context, that constraints compile, that the queue has room.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use crate::{
    executor::{Caller, Deadlines, Terms},
    http::{
        error::ApiError,
        formats::completion_stream::CompletionStream,
        offload::Cost,
        request::{
            cache_salt,
            generation::{Delivery, GenerateParams},
            prompt::Prompt,
            prompt_rendering::render,
            prompt_tokens::{Special, Untokenized, tokenize},
            response_format::OutputConstraint,
        },
        state::AppState,
    },
    job::{Dry, Failure, Job, JobId, Priority, Readiness, Sampling, TraceLink},
    text::Text,
    units::Tokens,
};

/// Queues one job per choice and returns their streams. If the queue has no room for all of them, none stays queued.
pub(crate) async fn admit(
    state: &AppState,
    text: &Arc<Text>,
    id: JobId,
    caller: Caller,
    ask: GenerateParams,
    trace: Option<TraceLink>,
) -> Result<VecDeque<CompletionStream>, ApiError> {
    let arrived = Instant::now();
    check_readiness(&state.readiness.borrow())?;
    if let Some(constraint) = &ask.constraint {
        check_constraint(state, text, constraint, ask.terms.priority).await?;
    }
    let echo = if ask.echo { ask.prompt.text() } else { None };
    let prompt = encode(state, text, ask.prompt, ask.terms.priority).await?;
    let default = state.settings.default_max_new;
    let max_new_tokens = room(Tokens(prompt.len()), ask.max_new, default, state.context_length(text))?.0;
    let echo = match echo {
        None if ask.echo => Some(decode(state, text, &prompt).await?),
        echo => echo,
    };
    let first_scored = ask.scores.filter(|asked| asked.prompt).and_then(|_| prompt.first().copied());
    let mut end_tokens = ask.stop_token_ids;
    if !ask.ignore_eos {
        end_tokens.extend(&text.card().end_tokens);
    }
    let progress = matches!(ask.delivery, Delivery::Streamed { progress: true, .. });
    // With `parts`, the answer may also be plain text, which is decoded as usual.
    let is_formed = ask.constraint.as_ref().is_some_and(|constraint| constraint.parts.is_empty());
    let sampling = with_breakers(state, text, ask.sampling, ask.breakers).await?;
    let prompt_tokens = prompt.len();
    let (model, keep_alive) = (text.card().id.as_str().into(), ask.keep_alive);
    let constraint = ask.constraint.map(|output| output.constraint);
    let scores = ask.scores;
    let job = Job {
        model,
        keep_alive,
        sampling,
        constraint,
        logprobs: scores,
        trace,
        cache_prompt: ask.cache_prompt,
        cache_salt: cache_salt::digest(state, caller.key.as_deref(), ask.cache_salt.as_deref()),
        end_tokens,
        ..Job::new(id, prompt, max_new_tokens)
    };
    let mut answers = VecDeque::with_capacity(ask.choices);
    for job in choices(&job, ask.choices, || state.executor.new_id()) {
        // Later choices wait for earlier ones, so the queue's time limit applies to the first only.
        let Deadlines { queue, total } = ask.terms.deadlines;
        let queue = if answers.is_empty() { queue } else { total };
        let terms = Terms { deadlines: Deadlines { queue, total }, ..ask.terms };
        let ticket = state.executor.submit_for(caller.clone(), job, terms)?;
        let decoder = text.detokenizer(ask.stop.clone());
        let decoder = match &ask.reading {
            Some(reading) => decoder.with_special(reading.format.marker()),
            None => decoder,
        };
        let decoder = if is_formed { decoder.verbatim() } else { decoder };
        let answer = CompletionStream::new(ticket, Arc::clone(text), decoder, prompt_tokens, arrived);
        let answer = match &ask.reading {
            Some(reading) => answer.with_calls(reading.clone()),
            None => answer,
        };
        let answer = if progress { answer.with_progress() } else { answer };
        answers.push_back(match &echo {
            Some(prompt) => answer.echo(prompt.clone(), first_scored),
            None => answer,
        });
    }
    Ok(answers)
}

/// The job, and further ones that differ in id and seed only.
fn choices(first: &Job, most: usize, mut new_id: impl FnMut() -> JobId) -> impl Iterator<Item = Job> {
    let later = (1..most as u64).map(move |choice| {
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
    state: &AppState,
    text: &Text,
    output: &OutputConstraint,
    priority: Priority,
) -> Result<(), ApiError> {
    text.check_table()?;
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

/// Finds the tokens of the sequence breakers; on another thread, because it searches the whole vocabulary.
async fn with_breakers(
    state: &AppState,
    text: &Arc<Text>,
    sampling: Sampling,
    breakers: Vec<String>,
) -> Result<Sampling, ApiError> {
    let Some(dry) = sampling.dry.clone() else { return Ok(sampling) };
    let text = Arc::clone(text);
    let look_up = move || Ok::<_, ApiError>(text.tokens_with(&breakers));
    let breakers = state.offload.run(Cost::Light, look_up).await?;
    Ok(Sampling { dry: Some(Dry { breakers, ..dry }), ..sampling })
}

/// Tokenizes a prompt; not if the queue is full, because the worker needs the cores.
async fn encode(
    state: &AppState,
    text: &Arc<Text>,
    prompt: Prompt,
    priority: Priority,
) -> Result<Vec<u32>, ApiError> {
    state.executor.check_room(Tokens(1), priority)?;
    let (prompt, special) = match prompt {
        Prompt::Ids(ids) if ids.is_empty() => return Err(ApiError::EmptyPrompt),
        Prompt::Ids(ids) => return Ok(ids),
        // Some tokenizers add a beginning-of-text token even to empty text.
        Prompt::Text(prompt) if prompt.is_empty() => return Err(ApiError::EmptyPrompt),
        Prompt::Text(prompt) => (prompt, Special::Added),
        Prompt::Conversation(conversation) => (render(state, text, conversation).await?, Special::Written),
    };
    let ids = tokenize(state, text, Untokenized { text: prompt, special }).await?;
    if ids.is_empty() { Err(ApiError::EmptyPrompt) } else { Ok(ids) }
}

/// The text of a prompt that was sent as token ids, for echoing it.
async fn decode(state: &AppState, text: &Arc<Text>, ids: &[u32]) -> Result<String, ApiError> {
    let (text, ids) = (Arc::clone(text), ids.to_vec());
    state.offload.run(Cost::of_text(ids.len()), move || Ok::<_, ApiError>(text.decode(&ids))).await
}

/// The number of tokens to generate: the requested number, which has to fit, or the default, lowered to fit.
pub(crate) fn room(
    prompt: Tokens,
    asked: Option<Tokens>,
    default: Tokens,
    capacity: Tokens,
) -> Result<Tokens, ApiError> {
    let left = Tokens(capacity.0.saturating_sub(prompt.0));
    match asked {
        _ if left == Tokens(0) => Err(ApiError::NoRoom { prompt, capacity }),
        Some(max_new) if max_new > left => Err(Failure::Context { prompt, max_new, capacity }.into()),
        Some(max_new) => Ok(max_new),
        None => Ok(default.clamp(Tokens(1), left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_tokens_must_fit_and_the_default_is_lowered_to_fit() {
        let room = |prompt, asked: Option<usize>, default| {
            super::room(Tokens(prompt), asked.map(Tokens), Tokens(default), Tokens(16))
        };
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
