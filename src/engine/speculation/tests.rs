//! A draft model and a main model, both defined by rules.

use std::ops::ControlFlow;

use super::learned::Speculation;
use crate::{
    device::DeviceError,
    engine::{Step, error::EngineError, forward::Forward, generate::generate, summary::GenerationSummary},
    job::{Job, JobId},
};

const VOCABULARY: usize = 50;

/// A model that continues a sequence by a rule.
struct Rule {
    says: fn(&[u32]) -> u32,
    text: Vec<u32>,
    passes: usize,
    vocabulary: usize,
    capacity: usize,
    /// Fails after this many passes, with this message.
    fails: Option<(usize, &'static str)>,
    logits: Vec<f32>,
}

impl Rule {
    fn new(says: fn(&[u32]) -> u32) -> Self {
        let (text, logits) = (Vec::new(), Vec::new());
        Self { says, text, passes: 0, vocabulary: VOCABULARY, capacity: 200, fails: None, logits }
    }
}

impl Forward for Rule {
    fn rewind(&mut self, length: usize) {
        self.text.truncate(length);
    }

    fn reserve(&mut self, _: usize) -> Result<(), EngineError> {
        Ok(())
    }

    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
        self.passes += 1;
        if let Some((_, message)) = self.fails.filter(|(after, _)| self.passes > *after) {
            return Err(DeviceError::Runtime { what: "a step", message: message.into() }.into());
        }
        assert!(tokens.iter().all(|token| (*token as usize) < self.vocabulary), "{tokens:?}");
        assert!(self.text.len() + tokens.len() <= self.capacity && tokens.len() <= self.chunk());
        let given = self.text.len() + tokens.len() - rows;
        self.text.extend(tokens);
        self.logits = vec![0.0; rows * self.vocabulary];
        for (row, length) in (0..rows).zip(given + 1..) {
            let says = (self.says)(&self.text[..length]) as usize;
            self.logits[row * self.vocabulary + says] = 1.0;
        }
        Ok(&mut self.logits)
    }

    fn rows(&self) -> usize {
        5
    }

    fn chunk(&self) -> usize {
        8
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }
}

/// Repeats no three tokens soon, so prompt lookup finds nothing.
fn right(text: &[u32]) -> u32 {
    let place = u32::try_from(text.len()).unwrap();
    (place * place + text[0]) % 43
}

/// Wrong at every third token.
fn mostly_right(text: &[u32]) -> u32 {
    if text.len().is_multiple_of(3) { 44 } else { right(text) }
}

fn eager(draft: Rule) -> Speculation<Rule> {
    Speculation::eager().with_draft(draft).unwrap()
}

fn job(prompt: usize, max_new_tokens: usize) -> Job {
    Job::new(JobId(0), (0..).take(prompt).collect(), max_new_tokens)
}

/// The answer, how it ended, and the number of passes.
fn run(
    speculation: &mut Speculation<Rule>,
    job: &Job,
) -> Result<(Vec<u32>, GenerationSummary, usize), EngineError> {
    let (mut model, mut said) = (Rule::new(right), Vec::new());
    let outcome = generate(&mut model, job, None, speculation, |step| {
        if let Step::Token(id) = step {
            said.push(id);
        }
        ControlFlow::Continue(())
    })?;
    Ok((said, outcome, model.passes))
}

fn expected(job: &Job) -> Vec<u32> {
    let mut text = job.prompt.clone();
    (0..job.max_new_tokens).for_each(|_| text.push(right(&text)));
    text.split_off(job.prompt.len())
}

/// Tokens that the draft model drafted, and those accepted.
fn by_model(outcome: &GenerationSummary) -> (usize, usize) {
    (outcome.timings.drafted_by_model.tokens, outcome.timings.drafted_by_model.accepted)
}

#[test]
fn a_right_draft_model_saves_a_pass_for_each_of_its_tokens() {
    let (mut speculation, job) = (eager(Rule::new(right)), job(10, 41));
    for _ in 0..2 {
        let (said, outcome, passes) = run(&mut speculation, &job).unwrap();
        assert_eq!((said, by_model(&outcome)), (expected(&job), (32, 32)));
        // Two for the prompt, then four drafted tokens and one more per pass.
        assert_eq!(passes, 2 + 40 / 5);
    }
}

#[test]
fn wrong_drafts_are_rewound() {
    let (mut speculation, job) = (eager(Rule::new(mostly_right)), job(10, 41));
    let (said, outcome, _) = run(&mut speculation, &job).unwrap();
    assert_eq!(said, expected(&job));
    let (all, accepted) = by_model(&outcome);
    assert!(accepted > 20 && all > accepted + 10, "{accepted} of {all}");
    let (whole, draft) = ([&*job.prompt, &said].concat(), speculation.draft.as_mut().unwrap());
    let (read, text) = (draft.read, &draft.model_mut().text);
    assert_eq!(text[..read], whole[..read]);
}

#[test]
fn it_drafts_up_to_its_own_context_length() {
    let draft = Rule { capacity: 30, ..Rule::new(right) };
    let (mut speculation, job) = (eager(draft), job(10, 41));
    let (said, outcome, _) = run(&mut speculation, &job).unwrap();
    assert_eq!(said, expected(&job));
    // The last drafted token is not read.
    assert!((15..=21).contains(&by_model(&outcome).1), "{outcome:?}");
}

#[test]
fn nothing_is_drafted_after_the_end_token() {
    let (mut speculation, mut job) = (eager(Rule::new(right)), job(10, 41));
    job.end_tokens = vec![expected(&job)[3]];
    let (said, outcome, _) = run(&mut speculation, &job).unwrap();
    assert_eq!((said.len(), by_model(&outcome)), (3, (3, 3)));
}

#[test]
fn a_token_outside_its_vocabulary_ends_drafting_for_that_sequence_only() {
    let draft = Rule { vocabulary: 43, ..Rule::new(right) };
    let mut speculation = eager(draft);
    let strange = Job { prompt: vec![1, 2, 46], ..job(3, 20) };
    let (said, outcome, _) = run(&mut speculation, &strange).unwrap();
    assert_eq!((said, by_model(&outcome)), (expected(&strange), (0, 0)));
    let (_, outcome, _) = run(&mut speculation, &job(3, 20)).unwrap();
    assert!(by_model(&outcome).1 > 10, "{outcome:?}");
}

#[test]
fn a_failing_draft_model_ends_drafting_but_not_the_answer() {
    for (words, goes_on) in [("it is broken", false), ("CUDA failure 2: out of memory", true)] {
        let (mut speculation, job) = (eager(Rule::new(right)), job(10, 41));
        let passes = speculation.draft.as_mut().unwrap().model_mut().passes;
        speculation.draft.as_mut().unwrap().model_mut().fails = Some((passes + 9, words));
        let (said, outcome, _) = run(&mut speculation, &job).unwrap();
        assert_eq!(said, expected(&job), "{words}");
        assert!((1..32).contains(&by_model(&outcome).1), "{outcome:?}");
        speculation.draft.as_mut().unwrap().model_mut().fails = None;
        let (said, outcome, _) = run(&mut speculation, &job).unwrap();
        assert_eq!((said, by_model(&outcome).1 > 0), (expected(&job), goes_on), "{words}");
    }
}

#[test]
fn a_device_that_the_draft_model_loses_is_lost_for_the_answer_too() {
    let mut speculation = eager(Rule::new(right));
    let words = "CUDA failure 700: an illegal memory access was encountered";
    speculation.draft.as_mut().unwrap().model_mut().fails = Some((0, words));
    let lost = run(&mut speculation, &job(10, 41)).unwrap_err();
    assert_eq!(lost.fault(), crate::device::DeviceErrorKind::Poisoned, "{lost}");
}
