//! From a constraint's text to something that can be followed byte by byte, or the reason why not.

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

/// Longest text of a constraint. What people send is a tenth of it, and the worst that fits it compiles for seconds and
/// takes half a gigabyte.
const MOST_BYTES: usize = 64 << 10;

/// Deepest brackets of a grammar or a regular expression; JSON has a limit of its own.
const MOST_LEVELS: usize = 128;

/// What a matcher says when no token can follow.
pub(super) const NO_TOKEN: &str = "NoExtensionBias";

/// Grammars are compiled, and bytes followed, by recursion, whose depth is up to a stranger. Only what is touched of it
/// is ever memory.
const STACK: usize = 256 << 20;

/// Compiled constraints that are kept: clients send the same few again and again.
const MOST_KEPT: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Largest of them, by what the compiler says of its automata: all together are small beside a model.
const LARGEST_KEPT: usize = 4 << 20;

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
        Ok(Self { factory, compiled: Mutex::new(LruCache::new(MOST_KEPT)) })
    }

    /// Something that follows an answer under `constraint`, before its first byte.
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
        let is_small = parser.parser.lexer_stats().num_bytes <= LARGEST_KEPT;
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

/// Checks that a worker can keep `constraint`. Usually takes milliseconds, but time, memory and stack have no bound: a
/// server calls it in a process that can be killed (`sandbox`), on a thread with room for deep recursion.
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

/// An alphabet of bytes: what compiles over it compiles over any tokens.
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
    if text.len() > MOST_BYTES {
        return Err(ConstraintError::TooLong { found: text.len(), most: MOST_BYTES });
    }
    match levels(text) {
        found if found > MOST_LEVELS => Err(ConstraintError::TooDeep { found, most: MOST_LEVELS }),
        _ => Ok(()),
    }
}

/// How deep brackets go at most. Those within quotes count as well: reading the quotes right would be a parser of its
/// own, and whoever needs a hundred of them can spell them in parts.
fn levels(text: &str) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => now += 1,
            b')' | b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

/// The compiler's words, made ready for people.
fn explain(constraint: &Constraint, said: &str) -> ConstraintError {
    if let Constraint::Schema(schema) = constraint
        && let Some(keyword) = schema::unenforceable(schema, said)
    {
        return keyword;
    }
    match (constraint, reason(said)) {
        // Where it stands in the grammar that is made of it is nothing that a client has seen.
        (Constraint::Regex(_), Some(reason)) => invalid(reason),
        _ => invalid(&plain(said)),
    }
}

/// Why a regular expression is none: what follows the lines that point at the place.
fn reason(said: &str) -> Option<&str> {
    said.contains("regex parse error:").then(|| said.lines().find_map(|line| line.strip_prefix("error: ")))?
}

/// What the compiler or a matcher says, without the state and the excerpts that it adds for its own developers.
pub(super) fn plain(said: &str) -> String {
    const MOST: usize = 300;
    let line = said.lines().next().unwrap_or_default();
    if let Some(reason) = reason(said) {
        format!("{line} {reason}").chars().take(MOST).collect()
    } else if line.starts_with(NO_TOKEN) {
        "nothing can follow".into()
    } else if line.starts_with("panic") {
        "it is beyond what can be compiled".into()
    } else {
        line.chars().take(MOST).collect()
    }
}
