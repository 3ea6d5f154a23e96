//! One constrained answer: which tokens may follow, worked out while the device reads the one before.
//!
//! ```text
//! engine's thread:   forward(token) ─────────► choice() ─► pick ─► picked(token) ─► forward(token) ─────► …
//! guide's thread:    consume, mask for the next ──┘                    └── consume, mask for the next ──► …
//! ```
//!
//! Text that the constraint forces is cut into tokens once and given all together, to be read in one pass. The cut depends
//! only on the tokens before it. So a guide that starts with part of an answer reaches the same state as the guide that made
//! it, even in the middle of forced text.

use std::{
    collections::VecDeque,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    time::{Duration, Instant},
};

use llguidance::{CancellationHandle, Matcher, toktrie::SimpleVob};

use super::{
    ConstraintError,
    grammar::{Compiler, NO_TOKEN, plain, spawn},
    vocabulary::environment,
};
use crate::{
    job::{Constraint, Failure, Job},
    text::Vocabulary,
};

/// Time limit of the first choice: the tokenizer and the grammar are loaded, and the answer so far is matched. Below the
/// watchdog's default, so that a slow machine fails the job and not the worker.
const PATIENCE_TO_BEGIN: Duration = Duration::from_secs(20);

/// Time limit of each further choice. A usual one takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes guides for the answers of one model.
pub struct Guides {
    model_dir: PathBuf,
    vocabulary: usize,
    /// Made for the first job that needs it; shared with that job's thread.
    compiler: Arc<OnceLock<Result<Compiler, Failure>>>,
}

impl fmt::Debug for Guides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guides").field("model_dir", &self.model_dir).finish_non_exhaustive()
    }
}

/// The tokens that may follow.
#[derive(Debug)]
pub enum Choice {
    /// Nothing: the answer is complete.
    Nothing,
    /// Exactly these tokens, at least one.
    Forced(Vec<u32>),
    /// One of these tokens.
    Among(Allowed),
}

/// The tokens that may be picked.
#[derive(Debug)]
pub struct Allowed {
    tokens: SimpleVob,
    /// Whether the end tokens are allowed.
    ends: bool,
}

impl Allowed {
    /// Sets the logits of tokens that may not be picked to negative infinity: `logits` is `[vocab]`, `ends` are the end
    /// tokens.
    pub fn mask(&self, logits: &mut [f32], ends: &[u32]) {
        let ends = ends.iter().filter(|_| self.ends);
        let kept: Vec<(usize, f32)> =
            ends.filter_map(|id| Some((*id as usize, *logits.get(*id as usize)?))).collect();
        let words = self.tokens.as_slice();
        for (logits, word) in logits.chunks_mut(32).zip(words.iter().chain(std::iter::repeat(&0))) {
            if *word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for (id, logit) in kept {
            logits[id] = logit;
        }
    }
}

/// Decides which tokens may follow in one answer.
#[derive(Debug)]
pub struct Guide {
    choices: mpsc::Receiver<Result<Choice, Failure>>,
    picked: mpsc::Sender<u32>,
    stop: Arc<Mutex<Option<CancellationHandle>>>,
    patience: Duration,
    waited: Duration,
}

impl Guides {
    /// For the model in `model_dir`, with ids below `vocabulary`. Reads nothing yet.
    #[must_use]
    pub fn new(model_dir: PathBuf, vocabulary: usize) -> Self {
        Self { model_dir, vocabulary, compiler: Arc::default() }
    }

    /// How many compiled constraints the cache has.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.compiler.get().and_then(|compiler| compiler.as_ref().ok()).map_or(0, Compiler::kept)
    }

    /// Starts a thread that works for `job`; `None` for a job without a constraint.
    ///
    /// # Errors
    /// [`Failure::Constraint`] when no thread can be started. [`Guide::choice`] reports errors of the constraint.
    pub fn begin(&self, job: &Job) -> Result<Option<Guide>, Failure> {
        let Some(constraint) = job.constraint.clone() else { return Ok(None) };
        let (say, choices) = mpsc::sync_channel(1);
        let (picked, hear) = mpsc::channel();
        let stop = Arc::default();
        let (model_dir, vocabulary, compiler) =
            (self.model_dir.clone(), self.vocabulary, Arc::clone(&self.compiler));
        let (answer, stopping) = (job.answer.clone(), Arc::clone(&stop));
        // A pass gives the logits of its last token only.
        let together = if job.logprobs.is_some() { 1 } else { usize::MAX };
        let work = move || {
            let begun = Instant::now();
            let compiler = compiler.get_or_init(|| {
                let vocabulary = Vocabulary::open(&model_dir, vocabulary).map_err(|e| failed(&e))?;
                Compiler::new(&environment(vocabulary)).map_err(|e| failed(&e))
            });
            let table = begun.elapsed();
            let compiled = compiler.as_ref().map_err(Clone::clone);
            let state =
                compiled.and_then(|compiler| GrammarState::begin(compiler, &constraint, &answer, &stopping));
            tracing::debug!(?table, grammar = ?(begun.elapsed() - table), "the constraint is ready");
            match state {
                Ok(state) => GrammarState { together, ..state }.walk(&say, &hear),
                Err(failure) => drop(say.send(Err(failure))),
            }
        };
        spawn("guide", work).map_err(|e| failed(&e))?;
        let (patience, waited) = (PATIENCE_TO_BEGIN, Duration::ZERO);
        Ok(Some(Guide { choices, picked, stop, patience, waited }))
    }
}

impl Guide {
    /// What may follow the tokens so far: those that the job came with, those given as forced, and those picked.
    ///
    /// # Errors
    /// [`Failure::Constraint`] when nothing can, or when it takes too long to find out.
    pub fn choice(&mut self) -> Result<Choice, Failure> {
        let begun = Instant::now();
        let patience = std::mem::replace(&mut self.patience, PATIENCE);
        let choice = self.choices.recv_timeout(patience).unwrap_or_else(|_| {
            let seconds = patience.as_secs();
            Err(failed(&format_args!("what may follow was not known after {seconds} s")))
        });
        self.waited += begun.elapsed();
        choice
    }

    /// Reports the token that was picked among those allowed.
    pub fn picked(&self, token: u32) {
        // If the thread has ended, `choice` returns its error.
        let _ = self.picked.send(token);
    }
}

impl Drop for Guide {
    fn drop(&mut self) {
        tracing::debug!(waited = ?self.waited, "the constraint has ended");
        if let Some(stop) = &*self.stop.lock().unwrap_or_else(PoisonError::into_inner) {
            stop.cancel();
        }
    }
}

/// The state of one answer in its grammar.
struct GrammarState {
    matcher: Matcher,
    /// Tokens that the constraint forces.
    forced: VecDeque<u32>,
    /// Maximum number of forced tokens to return together.
    together: usize,
}

impl GrammarState {
    /// The state after the tokens of `answer`.
    fn begin(
        compiler: &Compiler,
        constraint: &Constraint,
        answer: &[u32],
        stop: &Mutex<Option<CancellationHandle>>,
    ) -> Result<Self, Failure> {
        let matcher = compiler.compile(constraint).map_err(|e| failed(&e))?;
        *stop.lock().unwrap_or_else(PoisonError::into_inner) = matcher.cancellation_handle();
        let mut state = Self { matcher, forced: VecDeque::new(), together: usize::MAX };
        for token in answer {
            state.look_ahead();
            if state.forced.pop_front().is_some_and(|forced| forced != *token) {
                return Err(failed(&"the answer so far was not made under it"));
            }
            state.take(*token)?;
        }
        Ok(state)
    }

    /// Sends each choice and receives the token that was picked, until the receiver is dropped.
    fn walk(mut self, say: &mpsc::SyncSender<Result<Choice, Failure>>, hear: &mpsc::Receiver<u32>) {
        loop {
            let choice = self.choice();
            let is_picked = matches!(choice, Ok(Choice::Among(_)));
            let is_last = matches!(choice, Ok(Choice::Nothing) | Err(_));
            if say.send(choice).is_err() || is_last {
                return;
            }
            if !is_picked {
                continue;
            }
            let Ok(token) = hear.recv() else { return };
            if let Err(failure) = self.take(token) {
                drop(say.send(Err(failure)));
                return;
            }
        }
    }

    fn choice(&mut self) -> Result<Choice, Failure> {
        if self.matcher.is_stopped() && self.matcher.stop_reason().is_ok() {
            return Ok(Choice::Nothing);
        }
        self.look_ahead();
        if !self.forced.is_empty() {
            let together = self.together.min(self.forced.len());
            let forced: Vec<u32> = self.forced.drain(..together).collect();
            forced.iter().try_for_each(|token| self.take(*token))?;
            return Ok(Choice::Forced(forced));
        }
        let ends = self.matcher.is_accepting().map_err(|e| unfollowed(&e.to_string()))?;
        match self.matcher.compute_mask() {
            Ok(tokens) => Ok(Choice::Among(Allowed { tokens, ends })),
            // The grammar allows more, but no token of the model does.
            Err(e) if ends && e.to_string().starts_with(NO_TOKEN) => Ok(Choice::Nothing),
            Err(e) => Err(unfollowed(&e.to_string())),
        }
    }

    /// Cuts forced text into tokens, once for each such text.
    fn look_ahead(&mut self) {
        if self.forced.is_empty() {
            self.forced.extend(self.matcher.compute_ff_tokens());
        }
    }

    fn take(&mut self, token: u32) -> Result<(), Failure> {
        self.matcher.consume_token(token).map_err(|e| unfollowed(&e.to_string()))
    }
}

impl From<ConstraintError> for Failure {
    fn from(error: ConstraintError) -> Self {
        failed(&error)
    }
}

fn failed(why: &dyn fmt::Display) -> Failure {
    Failure::Constraint { message: why.to_string() }
}

fn unfollowed(message: &str) -> Failure {
    failed(&plain(message))
}
