//! Compiles a constraint's text into a matcher, or gives the reason why it cannot.

use std::{
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};
use lru::LruCache;

use super::{ConstraintError, error::invalid, schema};
use crate::job::Constraint;

/// Longest text of a constraint. Typical ones have a tenth of it. The worst case of this size compiles for seconds and takes
/// half a gigabyte.
const MAX_GRAMMAR_BYTES: usize = 64 << 10;

/// Deepest brackets of a grammar or a regular expression; the JSON parser has a separate limit.
const MAX_NESTING: usize = 128;

/// The matcher's error when no token can follow.
pub(super) const NO_TOKEN: &str = "NoExtensionBias";

/// Stack of the threads that compile and match, in bytes: both recurse, to a depth that the client's grammar decides. Only
/// touched pages take memory.
const STACK: usize = 256 << 20;

/// Size of the cache of compiled constraints: clients send the same few again and again.
const MAX_CACHED: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Largest constraint in the cache, in bytes of its automata: all together are small beside a model.
const MAX_CACHED_BYTES: usize = 4 << 20;

/// Compiles constraints over one set of tokens.
pub(super) struct Compiler {
    factory: ParserFactory,
    /// Before their first bytes.
    compiled: Mutex<LruCache<Constraint, Matcher>>,
}

impl Compiler {
    /// A compiler over the tokens of `environment`.
    pub(super) fn new(environment: &TokEnv) -> Result<Self, ConstraintError> {
        let capabilities = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let slices = SlicedBiasComputer::general_slices();
        let canonical = environment.tokenize_is_canonical();
        let capabilities = if canonical { capabilities } else { InferenceCapabilities::default() };
        let mut factory =
            ParserFactory::new(environment, capabilities, &slices).map_err(|e| invalid(&e.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory, compiled: Mutex::new(LruCache::new(MAX_CACHED)) })
    }

    /// A matcher for an answer under `constraint`, before its first byte.
    pub(super) fn compile(&self, constraint: &Constraint) -> Result<Matcher, ConstraintError> {
        if let Some(matcher) = self.compiled().get(constraint) {
            return Ok(matcher.deep_clone().into_cancellable());
        }
        let grammar = match constraint {
            Constraint::Schema(schema) => TopLevelGrammar::from_json_schema(schema::prepare(schema)?),
            Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
        };
        let parser = self.factory.create_parser(grammar).map_err(|e| explain(constraint, &e.to_string()))?;
        let is_small = parser.parser.lexer_stats().num_bytes <= MAX_CACHED_BYTES;
        let matcher = Matcher::new(Ok(parser));
        if is_small {
            self.compiled().put(constraint.clone(), matcher.deep_clone());
        }
        Ok(matcher.into_cancellable())
    }

    /// How many are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.compiled().len()
    }

    fn compiled(&self) -> MutexGuard<'_, LruCache<Constraint, Matcher>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks that `constraint` compiles. Usually takes milliseconds, but time, memory and stack have no bound: a server calls
/// it in a process that can be killed (`sandbox`), on a thread with room for deep recursion.
///
/// # Errors
/// [`ConstraintError`] when it cannot.
pub fn check(constraint: &Constraint) -> Result<(), ConstraintError> {
    check_size(constraint)?;
    compile_over_bytes(constraint)
}

fn compile_over_bytes(constraint: &Constraint) -> Result<(), ConstraintError> {
    let compile = || {
        let mut matcher = Compiler::new(&bytes())?.compile(constraint)?;
        matcher.compute_mask().map_err(|e| explain(constraint, &e.to_string()))
    };
    catch_unwind(AssertUnwindSafe(compile))
        .unwrap_or_else(|_| Err(invalid("it cannot be compiled")))
        .map(|_| ())
}

/// Starts a thread with room for deep recursion.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, ConstraintError> {
    let thread = thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work);
    thread.map_err(|e| invalid(&format!("no thread could be started for it: {e}")))
}

/// A vocabulary of the 256 bytes: a constraint that compiles over it compiles over any tokens.
fn bytes() -> TokEnv {
    let words: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(256, INVALID_TOKEN), &words)))
}

/// Checks how long `constraint` is and how deeply its brackets nest, which takes microseconds.
///
/// # Errors
/// [`ConstraintError::TooLong`] and [`ConstraintError::TooDeep`].
pub fn check_size(constraint: &Constraint) -> Result<(), ConstraintError> {
    let (Constraint::Schema(text) | Constraint::Lark(text) | Constraint::Regex(text)) = constraint;
    if text.len() > MAX_GRAMMAR_BYTES {
        return Err(ConstraintError::TooLong { found: text.len(), max: MAX_GRAMMAR_BYTES });
    }
    match levels(text) {
        found if found > MAX_NESTING => Err(ConstraintError::TooDeep { found, max: MAX_NESTING }),
        _ => Ok(()),
    }
}

/// The deepest nesting of brackets. Brackets within quotes count as well: to exclude them would take a parser for quotes.
fn levels(text: &str) -> usize {
    let (mut now, mut max) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => now += 1,
            b')' | b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
        max = max.max(now);
    }
    max
}

/// Turns the compiler's message into an error for the client.
fn explain(constraint: &Constraint, message: &str) -> ConstraintError {
    if let Constraint::Schema(schema) = constraint
        && let Some(keyword) = schema::unenforceable(schema, message)
    {
        return keyword;
    }
    match (constraint, reason(message)) {
        // The compiler's position is one in a generated grammar, which the client has not seen.
        (Constraint::Regex(_), Some(reason)) => invalid(reason),
        _ => invalid(&plain(message)),
    }
}

/// The reason from a syntax error of the regex parser, which follows lines that point at the position.
fn reason(message: &str) -> Option<&str> {
    message
        .contains("regex parse error:")
        .then(|| message.lines().find_map(|line| line.strip_prefix("error: ")))?
}

/// The message of the compiler or a matcher, without the internal state and the excerpts that it adds.
pub(super) fn plain(message: &str) -> String {
    const MAX_CHARACTERS: usize = 300;
    let line = message.lines().next().unwrap_or_default();
    if let Some(reason) = reason(message) {
        format!("{line} {reason}").chars().take(MAX_CHARACTERS).collect()
    } else if line.starts_with(NO_TOKEN) {
        "nothing can follow".into()
    } else if line.starts_with("panic") {
        "it is too complex to compile".into()
    } else {
        line.chars().take(MAX_CHARACTERS).collect()
    }
}
