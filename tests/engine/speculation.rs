//! Speculative decoding makes answers faster and never changes them.

use std::ops::ControlFlow;

use eka::{
    constraint::Guides,
    engine::{self, Forward, GenerationSummary, Speculation, Step, Timeline},
    job::{Constraint, Job, JobId, Sampling},
    model::Model,
};
use serde_json::json;

use crate::support::{
    decoding::{assert_same, jobs, options, timeline},
    models::{OPTIONS, lock_host_pool, long_model, pool},
    program::Program,
};

/// The first `patience` steps of a job and its outcome.
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

/// Runs all jobs with guesses and without; how many tokens were guessed, and how many of them right.
fn compare(guessing: &mut Timeline, plain: &mut Timeline) -> [usize; 2] {
    let guides = Guides::new(long_model().to_path_buf(), plain.vocabulary());
    let mut drafted = [0, 0];
    for job in jobs() {
        let (expected, without) = run(plain, &guides, &job, usize::MAX);
        let (said, with) = run(guessing, &guides, &job, usize::MAX);
        assert_same(&said, &expected, &job);
        assert_eq!((with.reason, with.usage), (without.reason, without.usage));
        assert_eq!(without.timings.drafted.tokens, 0);
        drafted[0] += with.timings.drafted.tokens;
        drafted[1] += with.timings.drafted.accepted;
        // A client that disconnects in the middle of a draft.
        let heard = expected.len() / 2 + 1;
        assert_same(&run(guessing, &guides, &job, heard).0, &expected[..heard.min(expected.len())], &job);
    }
    drafted
}

#[test]
fn drafts_do_not_change_answers() {
    let drafted = compare(&mut timeline(long_model(), 7), &mut timeline(long_model(), 0));
    assert!(drafted[1] > 100 && drafted[0] > drafted[1] + 100, "{drafted:?}: next to nothing was tested");
}

#[test]
fn drafts_do_not_change_answers_with_a_growing_cache() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let mut growing =
        Timeline::new(Model::open_in(&pool, long_model(), OPTIONS).unwrap(), options(15)).unwrap();
    let drafted = compare(&mut growing, &mut timeline(long_model(), 0));
    assert!(drafted[1] > 100, "{drafted:?}");
}

#[tokio::test]
async fn drafts_respect_constraints() {
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
async fn the_server_gives_the_same_answers_with_drafts_and_counts_them() {
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
    let metrics = guessing.metrics().await;
    assert!(
        metrics.contains(&format!("eka_draft_tokens_total{{source=\"text\"}} {made}\n")),
        "{made}: {metrics}"
    );
}
