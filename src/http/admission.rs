//! From what was asked to a job in the queue, or the reason why not.
//!
//! Everything that can be refused is refused here, before it takes a place: a worker that is not there, a prompt that
//! does not fit, a queue that is full. What is accepted can only fail by what happens to it.

use std::sync::Arc;

use actix_web::web;

use super::{
    AppState,
    answer::Answer,
    ask::{Ask, Prompt},
    error::ApiError,
};
use crate::{
    executor::SubmitError,
    job::{Failure, Job, JobId, Readiness},
    text::{Text, TextError},
    units::Tokens,
};

/// Puts a job in the queue, and hands out the answer that will come of it.
pub(super) async fn admit(state: &AppState, id: JobId, ask: Ask) -> Result<Answer, ApiError> {
    check_readiness(&state.readiness.borrow())?;
    let prompt = encode(state.text.clone(), ask.prompt).await?;
    let card = state.text.card();
    let default = state.settings.default_max_new_tokens;
    let max_new_tokens = room(prompt.len(), ask.max_new_tokens, default, card.context_length)?;
    let mut end_tokens = ask.stop_token_ids;
    if !ask.ignore_eos {
        end_tokens.extend(&card.end_tokens);
    }
    let (prompt_tokens, sampling) = (prompt.len(), ask.sampling);
    let job = Job { id, prompt, sampling, max_new_tokens, end_tokens: end_tokens.clone() };
    let ticket = state.executor.submit(job, ask.deadlines)?;
    Ok(Answer::new(ticket, state.text.decoder(ask.stop), end_tokens, prompt_tokens))
}

/// A worker that is being replaced is worth waiting for: the queue holds until it is there.
fn check_readiness(readiness: &Readiness) -> Result<(), ApiError> {
    match readiness {
        Readiness::Ready(_) | Readiness::Restarting { .. } => Ok(()),
        Readiness::Starting => Err(ApiError::Loading),
        Readiness::Down { reason, retry_in } => {
            Err(ApiError::WorkerDown { reason: reason.clone(), retry_in: *retry_in })
        }
        Readiness::Stopping => Err(SubmitError::Stopped.into()),
    }
}

/// Encodes on a thread of its own: a long prompt takes long enough to stall every stream of this one.
async fn encode(text: Arc<Text>, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    let encoded = web::block(move || encode_now(&text, prompt)).await;
    let ids = encoded.map_err(|error| ApiError::Internal { message: error.to_string() })??;
    if ids.is_empty() { Err(ApiError::EmptyPrompt) } else { Ok(ids) }
}

fn encode_now(text: &Text, prompt: Prompt) -> Result<Vec<u32>, TextError> {
    match prompt {
        // Some tokenizers would make a beginning-of-text token of it.
        Prompt::Text(prompt) if prompt.is_empty() => Ok(Vec::new()),
        Prompt::Text(prompt) => text.encode(&prompt),
        Prompt::Ids(ids) => Ok(ids),
        Prompt::Conversation(messages) => text.encode_chat(&messages),
    }
}

/// How many tokens to generate: those asked for, which must fit, else as many of the default as fit.
fn room(prompt: usize, asked: Option<usize>, default: usize, capacity: usize) -> Result<usize, ApiError> {
    let left = capacity.saturating_sub(prompt);
    match asked {
        _ if left == 0 => Err(ApiError::NoRoom { prompt: Tokens(prompt), capacity: Tokens(capacity) }),
        Some(asked) if asked > left => {
            let (prompt, max_new, capacity) = (Tokens(prompt), Tokens(asked), Tokens(capacity));
            Err(Failure::Context { prompt, max_new, capacity }.into())
        }
        Some(asked) => Ok(asked),
        None => Ok(default.clamp(1, left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_must_fit_and_the_default_is_lowered_until_it_does() {
        assert_eq!(room(10, Some(6), 100, 16).unwrap(), 6);
        assert_eq!(room(10, None, 100, 16).unwrap(), 6);
        assert_eq!(room(10, None, 3, 16).unwrap(), 3);
        assert!(matches!(room(10, Some(7), 100, 16), Err(ApiError::Failure(Failure::Context { .. }))));
        for prompt in [16, 17, usize::MAX] {
            assert!(matches!(room(prompt, None, 1, 16), Err(ApiError::NoRoom { .. })));
        }
    }

    #[test]
    fn a_worker_that_is_being_replaced_is_worth_waiting_for_and_one_that_is_down_is_not() {
        check_readiness(&Readiness::Restarting { reason: "it fell".into() }).unwrap();
        for refused in [
            Readiness::Starting,
            Readiness::Down { reason: "it fell".into(), retry_in: None },
            Readiness::Stopping,
        ] {
            check_readiness(&refused).unwrap_err();
        }
    }
}
