//! Tokens that are guessed make answers come sooner, and never other ones.

use std::{ops::ControlFlow, path::Path};

use eka::{
    constraint::Guides,
    engine::{self, Forward, GenerationSummary, Speculation, Step, Timeline, TimelineOptions},
    job::{Constraint, Dry, Job, JobId, LogprobOptions, Sampling},
    model::Model,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::{
    growth::directory,
    models::runtime,
    pools::{ONE_THREAD, pool, turn},
    program::Program,
};

fn options(drafts: usize) -> TimelineOptions {
    TimelineOptions { chunk: 48, drafts, ..TimelineOptions::default() }
}

pub(crate) fn timeline(dir: &Path, drafts: usize) -> Timeline {
    Timeline::new(Model::open(runtime(), dir, ONE_THREAD).unwrap(), options(drafts)).unwrap()
}

/// What a job says, scores apart, and how it ended; `patience` steps are heard of it.
fn run(
    timeline: &mut Timeline,
    guides: &Guides,
    job: &Job,
    patience: usize,
) -> (Vec<Step>, GenerationSummary) {
    let mut said = Vec::new();
    let guide = guides.begin(job).unwrap();
    let outcome = engine::generate(timeline, job, guide, &mut Speculation::eager(), |step| {
        said.push(step);
        if said.len() < patience { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    (said, outcome.unwrap())
}

/// Prompts that repeat themselves, of a few tokens that the answer is made of as well: much is guessed, some of it right.
pub(crate) fn jobs() -> impl Iterator<Item = Job> {
    let mut random = StdRng::seed_from_u64(3);
    let sampled = |seed| Sampling { temperature: 0.8, top_k: 40, seed, ..Sampling::greedy() };
    (0..24).map(move |id: u64| {
        let few: Vec<u32> = (0..random.random_range(2..5)).map(|_| random.random_range(3..1024)).collect();
        let prompt =
            (0..random.random_range(1..90)).map(|_| few[random.random_range(0..few.len())]).collect();
        let mut sampling = if id.is_multiple_of(2) { Sampling::greedy() } else { sampled(id) };
        sampling.logit_bias = few.iter().map(|token| (*token, 100.0)).collect();
        match id % 6 {
            2 => sampling.repetition_penalty = 1.2,
            3 => sampling.frequency_penalty = 0.3,
            4 => {
                sampling.dry =
                    Some(Dry { multiplier: 0.8, base: 1.75, allowed_length: 2, breakers: vec![few[0]] });
            }
            _ => {}
        }
        let end_tokens = if id.is_multiple_of(3) { vec![few[1]] } else { Vec::new() };
        let logprobs = (id % 4 == 1).then_some(LogprobOptions { top: 2, prompt: id % 8 == 1 });
        let max_new_tokens = random.random_range(1..80);
        Job { sampling, end_tokens, logprobs, ..Job::new(JobId(id), prompt, max_new_tokens) }
    })
}

/// The same tokens with the same probabilities, but for what arithmetic in another order makes of them.
pub(crate) fn assert_same(guessed: &[Step], plain: &[Step], job: &Job) {
    assert_eq!(guessed.len(), plain.len(), "{job:?}");
    for pair in guessed.iter().zip(plain) {
        match pair {
            (Step::Logprobs(guessed), Step::Logprobs(plain)) => {
                assert_eq!((guessed.position, guessed.token), (plain.position, plain.token));
                assert!((guessed.logprob - plain.logprob).abs() < 1e-4, "{guessed:?} {plain:?}");
            }
            (guessed, plain) => assert_eq!(guessed, plain, "{job:?}"),
        }
    }
}

/// Runs all jobs with guesses and without; how many tokens were guessed, and how many of them right.
fn compare(guessing: &mut Timeline, plain: &mut Timeline) -> [usize; 2] {
    let guides = Guides::new(directory().to_path_buf(), plain.vocabulary());
    let mut drafted = [0, 0];
    for job in jobs() {
        let (expected, without) = run(plain, &guides, &job, usize::MAX);
        let (said, with) = run(guessing, &guides, &job, usize::MAX);
        assert_same(&said, &expected, &job);
        assert_eq!((with.reason, with.usage), (without.reason, without.usage));
        assert_eq!(without.timings.drafted.tokens, 0);
        drafted[0] += with.timings.drafted.tokens;
        drafted[1] += with.timings.drafted.accepted;
        // One who leaves in the middle of what was guessed.
        let heard = expected.len() / 2 + 1;
        assert_same(&run(guessing, &guides, &job, heard).0, &expected[..heard.min(expected.len())], &job);
    }
    drafted
}

#[test]
fn guesses_change_no_answer() {
    let drafted = compare(&mut timeline(directory(), 7), &mut timeline(directory(), 0));
    assert!(drafted[1] > 100 && drafted[0] > drafted[1] + 100, "{drafted:?}: next to nothing was tested");
}

#[test]
fn guesses_change_no_answer_out_of_a_cache_that_grows() {
    let _turn = turn();
    let pool = pool(None);
    let mut growing =
        Timeline::new(Model::open_in(&pool, directory(), ONE_THREAD).unwrap(), options(15)).unwrap();
    let drafted = compare(&mut growing, &mut timeline(directory(), 0));
    assert!(drafted[1] > 100, "{drafted:?}");
}

#[tokio::test]
async fn a_constraint_is_kept_by_what_is_guessed() {
    let dir = Program::start(&[]).await.export();
    let (mut guessing, mut plain) = (timeline(&dir, 7), timeline(&dir, 0));
    let guides = Guides::new(dir, plain.vocabulary());
    let schema =
        json!({ "type": "array", "items": { "enum": ["alpha", "beta"] }, "minItems": 6, "maxItems": 9 });
    for (sampling, constraint) in [
        (Sampling::greedy(), Constraint::Schema(schema.to_string())),
        (Sampling { temperature: 1.0, ..Sampling::greedy() }, Constraint::Schema(schema.to_string())),
        (Sampling { temperature: 1.0, ..Sampling::greedy() }, Constraint::Regex("(abc|abd){9,20}".into())),
    ] {
        let job = Job {
            sampling,
            constraint: Some(constraint),
            end_tokens: vec![2],
            ..Job::new(JobId(0), vec![20, 21, 22], 200)
        };
        let (expected, without) = run(&mut plain, &guides, &job, usize::MAX);
        let (said, with) = run(&mut guessing, &guides, &job, usize::MAX);
        assert_eq!((said, with.reason, with.usage), (expected, without.reason, without.usage));
        assert!(with.timings.drafted.accepted > 0, "{with:?}");
    }
}

#[tokio::test]
async fn answers_of_the_whole_program_are_the_same_and_say_what_was_guessed() {
    let (guessing, plain) =
        (Program::start(&[]).await, Program::start(&["--set", "engine.draft_tokens=0"]).await);
    let mut made = 0;
    for sampling in [json!({}), json!({ "temperature": 0.7, "seed": 5 })] {
        let mut request = json!({ "prompt": "one two three, one two three, one two", "max_new_tokens": 200, "ignore_eos": true });
        request.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
        let ((_, with), (_, without)) =
            tokio::join!(guessing.ask("/generate-lite", &request), plain.ask("/generate-lite", &request));
        assert_eq!(with["text"], without["text"]);
        let drafted = |answer: &serde_json::Value| {
            ["draft_n", "draft_n_accepted"].map(|name| answer["timings"][name].as_u64().unwrap())
        };
        assert_eq!(drafted(&without), [0, 0]);
        let [all, right] = drafted(&with);
        assert!(right <= all);
        made += all;
    }
    let metrics = guessing.client.get(format!("{}/metrics", guessing.url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains(&format!("eka_draft_tokens_total{{source=\"text\"}} {made}\n")),
        "{made}: {metrics}"
    );
}
