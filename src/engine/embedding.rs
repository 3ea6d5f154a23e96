//! The embedding of a text: the hidden states of its tokens, pooled.

use std::{ops::ControlFlow, time::Instant};

use super::{error::EngineError, forward::Forward, sequence::check, summary::GenerationSummary};
use crate::job::{EndReason, Job, Pooling, Step, Timings, Usage};

/// Reads the prompt of `job`, and emits its embedding and the progress before.
///
/// # Errors
/// [`EngineError::Job`] when the job does not fit the model or the model gives no hidden states; others when the device fails.
pub(super) fn embed(
    model: &mut impl Forward,
    job: &Job,
    pooling: Pooling,
    mut emit: impl FnMut(Step) -> ControlFlow<()>,
) -> Result<GenerationSummary, EngineError> {
    check(model, job).map_err(EngineError::Job)?;
    let (prompt, began) = (&job.prompt, Instant::now());
    // Cached positions have no hidden states.
    model.begin(prompt, 0, job.cache_scope());
    model.reserve(prompt.len())?;
    let chunk = match pooling {
        Pooling::Last => model.chunk(),
        Pooling::Mean => model.scored_chunk(),
    };
    let (mut sums, mut read, mut reason) = (Vec::new(), 0, EndReason::EndToken);
    for tokens in prompt.chunks(chunk) {
        read += tokens.len();
        match pooling {
            Pooling::Last => sums = model.forward_hidden(tokens, 1)?.to_vec(),
            Pooling::Mean => add_rows(&mut sums, model.forward_hidden(tokens, chunk)?, tokens.len()),
        }
        let progress = Step::Progress { done: read, total: prompt.len(), cached: 0 };
        if read < prompt.len() && emit(progress).is_break() {
            reason = EndReason::Cancelled;
            break;
        }
    }
    if reason == EndReason::EndToken {
        if pooling == Pooling::Mean {
            divide(&mut sums, prompt.len());
        }
        // Whether the client has left no longer matters.
        let _ = emit(Step::Embedding(sums));
    }
    Ok(GenerationSummary {
        reason,
        usage: Usage { prompt_tokens: read, ..Usage::default() },
        timings: Timings { prefill: began.elapsed(), ..Timings::default() },
    })
}

/// Adds each of `rows` rows of hidden states to `sums`.
fn add_rows(sums: &mut Vec<f32>, hidden: &[f32], rows: usize) {
    let width = hidden.len() / rows.max(1);
    sums.resize(width, 0.0);
    for row in hidden.chunks_exact(width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of tokens")]
fn divide(sums: &mut [f32], tokens: usize) {
    sums.iter_mut().for_each(|sum| *sum /= tokens as f32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

    /// A model whose hidden state of a token is the token, and 1.
    struct Tokens(Vec<f32>);

    impl Forward for Tokens {
        fn rewind(&mut self, _: usize) {}

        fn reserve(&mut self, _: usize) -> Result<(), EngineError> {
            Ok(())
        }

        fn forward_rows(&mut self, _: &[u32], _: usize) -> Result<&mut [f32], EngineError> {
            Ok(&mut self.0)
        }

        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        fn forward_hidden(&mut self, tokens: &[u32], rows: usize) -> Result<&[f32], EngineError> {
            let last = &tokens[tokens.len().saturating_sub(rows)..];
            self.0 = last.iter().flat_map(|token| [*token as f32, 1.0]).collect();
            Ok(&self.0)
        }

        fn scored_chunk(&self) -> usize {
            2
        }

        fn chunk(&self) -> usize {
            3
        }

        fn capacity(&self) -> usize {
            32
        }

        fn vocabulary(&self) -> usize {
            32
        }
    }

    #[test]
    fn the_last_token_or_the_mean_of_all_is_the_embedding_whatever_the_chunks() {
        for (pooling, expected) in [(Pooling::Last, 9.0), (Pooling::Mean, 5.0)] {
            let job = Job::new(JobId(1), vec![1, 3, 5, 7, 9], 1);
            let mut steps = Vec::new();
            let summary = embed(&mut Tokens(Vec::new()), &job, pooling, |step| {
                steps.push(step);
                ControlFlow::Continue(())
            });
            assert_eq!(summary.unwrap().usage.prompt_tokens, 5);
            assert_eq!(steps.pop(), Some(Step::Embedding(vec![expected, 1.0])));
            assert!(!steps.is_empty() && steps.iter().all(|step| matches!(step, Step::Progress { .. })));
        }
    }

    #[test]
    fn a_client_that_leaves_gets_none() {
        let job = Job::new(JobId(1), vec![1; 9], 1);
        let summary = embed(&mut Tokens(Vec::new()), &job, Pooling::Last, |_| ControlFlow::Break(()));
        assert_eq!(summary.unwrap().reason, EndReason::Cancelled);
    }
}
