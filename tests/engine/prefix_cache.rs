//! The prefix cache makes answers faster and never changes them.

use std::{cell::RefCell, ops::ControlFlow};

use eka::{
    engine::{self, GenerationSummary, Speculation, Step, Timeline, TimelineOptions},
    job::{EndReason, Job, JobId, LogprobOptions, Sampling},
    model::Model,
    units::Bytes,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    soak,
    support::{
        models::{OPTIONS, base_only_model, lock_host_pool, long_model, pool, runtime},
        processes::send_signal,
        program::{Program, expected},
    },
};

/// Room for some 300 positions of the model, which are of 2 KiB.
const BOUND: Bytes = Bytes::kib(700);

fn timeline(prefixes: Bytes) -> Timeline {
    let model = Model::open(runtime(), long_model(), OPTIONS).unwrap();
    Timeline::new(model, TimelineOptions { chunk: 48, prefixes, ..TimelineOptions::default() }).unwrap()
}

fn tokens(seed: u64, length: usize) -> Vec<u32> {
    soak::prompt(&mut StdRng::seed_from_u64(seed), length)
}

/// Runs a job for at most `patience` steps; returns its tokens, each after the bits of its log-probability if it has one.
fn run(timeline: &mut Timeline, job: &Job, patience: usize) -> (Vec<u32>, GenerationSummary) {
    let (mut said, mut heard) = (Vec::new(), 0);
    let outcome = engine::generate(timeline, job, None, &mut Speculation::new(), |step| {
        match step {
            Step::Token(token) => said.push(token),
            Step::Logprobs(score) => said.push(score.logprob.to_bits()),
            Step::Progress { .. } | Step::Embedding(_) => {}
        }
        heard += 1;
        if heard < patience { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    (said, outcome.unwrap())
}

/// A request as a worker runs it.
#[derive(Clone, Debug)]
struct Asked {
    /// Which text the prompt begins like, and with how much of it.
    stem: u64,
    shared: usize,
    /// What follows, that no other prompt has.
    own: usize,
    answer: usize,
    sampled: bool,
    /// Steps until its client leaves.
    patience: usize,
    cache_prompt: bool,
    is_resumed: bool,
}

fn asked() -> impl Strategy<Value = Asked> {
    let lengths = (0u64..2, 0usize..160, 0usize..60, 1usize..24);
    let turns =
        (any::<bool>(), prop_oneof![4 => Just(usize::MAX), 1 => 1usize..12], prop::bool::weighted(0.8));
    (lengths, turns, prop::bool::weighted(0.2)).prop_map(
        |((stem, shared, own, answer), (sampled, patience, cache_prompt), is_resumed)| Asked {
            stem,
            shared,
            own,
            answer,
            sampled,
            patience,
            cache_prompt,
            is_resumed,
        },
    )
}

impl Asked {
    fn job(&self, id: usize) -> Job {
        let own = tokens(100 + id as u64, self.own + 1);
        let prompt = [&tokens(self.stem, 160)[..self.shared], &own].concat();
        let sampled = Sampling { temperature: 0.8, top_k: 40, seed: 7, ..Sampling::greedy() };
        let sampling = if self.sampled { sampled } else { Sampling::greedy() };
        let answer = if self.is_resumed { tokens(9, self.answer / 2) } else { Vec::new() };
        let job = Job::new(JobId(id as u64), prompt, self.answer);
        let logprobs = Some(LogprobOptions::default());
        Job { sampling, answer, logprobs, cache_prompt: self.cache_prompt, ..job }
    }
}

#[test]
fn answers_from_the_prefix_cache_match_an_empty_cache() {
    // proptest passes a shared reference.
    let both = RefCell::new((timeline(Bytes(0)), timeline(BOUND), [0, 0]));
    let mut runner = TestRunner::new(Config { cases: 16, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(asked(), 1..14), |requests| {
            let (cold, warm, [cached, read]) = &mut *both.borrow_mut();
            for (id, asked) in requests.iter().enumerate() {
                let job = asked.job(id);
                let (expected, whole) = run(cold, &job, usize::MAX);
                let (said, outcome) = run(warm, &job, asked.patience);
                warm.settle(job.cache_prompt);
                prop_assert!(warm.kept() <= BOUND, "{}", warm.kept());
                if outcome.reason == EndReason::Cancelled {
                    prop_assert!(expected.starts_with(&said), "{said:?} {expected:?}");
                } else {
                    prop_assert_eq!((said, outcome.reason), (expected, whole.reason));
                    prop_assert_eq!(outcome.usage.prompt_tokens, job.prompt.len());
                }
                prop_assert!(outcome.usage.cached_tokens <= job.prompt.len());
                prop_assert!(job.cache_prompt || outcome.usage.cached_tokens == 0);
                *cached += outcome.usage.cached_tokens;
                *read += outcome.usage.prompt_tokens;
            }
            Ok(())
        })
        .unwrap();
    let [cached, read] = both.borrow().2;
    assert!(cached * 10 > read, "{cached} of {read} were kept: next to nothing was tested");
}

/// How many tokens of a prompt did not have to be computed.
fn cached(timeline: &mut Timeline, prompt: &[u32], answer: usize) -> usize {
    let (said, outcome) = run(timeline, &Job::new(JobId(0), prompt.to_vec(), answer), usize::MAX);
    assert_eq!(said.len(), answer);
    timeline.settle(true);
    outcome.usage.cached_tokens
}

#[test]
fn several_prefixes_are_kept_and_the_least_recently_used_is_evicted() {
    let [a, b, c, d] = [1, 2, 3, 4].map(|seed| tokens(seed, 100));
    let one = {
        let mut timeline = timeline(Bytes::mib(64));
        cached(&mut timeline, &a, 2);
        timeline.kept()
    };
    // Copies take less than the one that is in the cache, whose rows lie apart.
    let mut timeline = timeline(Bytes(3 * one.0 - 1));
    assert_eq!([&a, &b].map(|prompt| cached(&mut timeline, prompt, 2)), [0, 0]);
    assert_eq!([&a, &b, &a].map(|prompt| cached(&mut timeline, prompt, 2)), [99; 3]);
    // A third fits beside the two, a fourth does not: `b` has waited longest.
    assert_eq!([&c, &d].map(|prompt| cached(&mut timeline, prompt, 2)), [0, 0]);
    assert_eq!([&a, &c].map(|prompt| cached(&mut timeline, prompt, 2)), [99, 99]);
    assert_eq!(cached(&mut timeline, &b, 2), 0);
    timeline.clear();
    assert_eq!((timeline.kept(), cached(&mut timeline, &a, 2)), (Bytes(0), 0));
}

#[test]
fn a_sequence_that_is_too_long_keeps_its_beginning() {
    let mut timeline = timeline(BOUND);
    let long = tokens(1, 1000);
    cached(&mut timeline, &long, 2);
    assert!(timeline.kept() <= BOUND && timeline.kept() > Bytes::kib(500), "{}", timeline.kept());
    let beginning = cached(&mut timeline, &long, 2);
    assert!((250..350).contains(&beginning), "{beginning}");
}

#[test]
fn in_a_pool_only_the_last_sequence_is_kept_within_the_limit() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let open = |keep, prefixes| {
        let model = Model::open_in(&pool, long_model(), OPTIONS).unwrap();
        Timeline::new(model, TimelineOptions { keep, prefixes, ..TimelineOptions::default() }).unwrap()
    };
    let [a, b] = [1, 2].map(|seed| tokens(seed, 100));
    let nothing = [(Bytes(0), BOUND), (BOUND, Bytes(0))];
    for (keep, prefixes) in nothing {
        let mut timeline = open(keep, prefixes);
        assert_eq!([&a, &a].map(|prompt| cached(&mut timeline, prompt, 2)), [0, 0]);
        assert_eq!((timeline.kept(), pool.stats().scratch > Bytes(0)), (Bytes(0), keep > Bytes(0)));
    }
    let mut timeline = open(BOUND, Bytes::mib(64));
    assert_eq!([&a, &a, &b, &a].map(|prompt| cached(&mut timeline, prompt, 2)), [0, 99, 0, 0]);
    assert_eq!(timeline.kept(), pool.stats().scratch);
    let grown = [&a[..], &tokens(3, 1000)].concat();
    assert_eq!(
        [&grown, &grown].map(|prompt| cached(&mut timeline, prompt, 2)),
        [100, 0],
        "too large to stay"
    );
    assert_eq!((timeline.kept(), pool.stats().scratch), (Bytes(0), Bytes(0)));
}

/// A chapter of the phrasebook, whose answer is known.
fn chapter(n: usize) -> (Value, String) {
    let chapter = expected().swap_remove(n);
    (json!({ "messages": [{ "role": "user", "content": chapter.prompt }], "temperature": 0 }), chapter.text)
}

/// Requests a chapter, checks the answer and returns it.
async fn right(program: &Program, n: usize, more: &Value) -> Value {
    let (mut request, text) = chapter(n);
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["text"]), (200, &json!(text)), "{}", program.log());
    answer
}

fn details(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

async fn scraped(program: &Program, name: &str) -> u64 {
    let metrics = program.metrics().await;
    let line =
        metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{metrics}"));
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn every_route_reports_cached_tokens() {
    let program = Program::start(&["--device", "cpu"]).await;
    let first = right(&program, 0, &json!({})).await;
    assert_eq!(details(&first), 0);
    assert_eq!(first["memory"]["before"]["prefix_cache"], 0);
    let kept = first["memory"]["after"]["prefix_cache"].as_u64().unwrap();
    assert!(kept > 0, "{first}");

    let again = right(&program, 0, &json!({})).await;
    let all = again["usage"]["prompt_tokens"].as_u64().unwrap() - 1;
    assert_eq!((details(&again), &again["timings"]["cached_tokens"]), (all, &json!(all)));
    assert_eq!(again["memory"]["before"]["prefix_cache"], kept);
    let apart = right(&program, 0, &json!({ "cache_prompt": false })).await;
    assert_eq!(details(&apart), 0);

    let (mut chat, _) = chapter(0);
    chat["max_tokens"] = json!(3);
    chat["n"] = json!(2);
    let answer = program.ask("/v1/chat/completions", &chat).await.1;
    assert_eq!(details(&answer), all, "{answer}");
    assert_eq!(answer["timings"]["cached_tokens"], 2 * all, "{answer}");
    let (question, _) = chapter(0);
    let responses = json!({ "input": question["messages"], "temperature": 0, "store": false });
    let answer = program.ask("/v1/responses", &responses).await.1;
    assert_eq!(answer["usage"]["input_tokens_details"]["cached_tokens"], all, "{answer}");
    let completion = json!({ "prompt": "Once upon a time, and again upon a time", "max_tokens": 2 });
    program.ask("/v1/completions", &completion).await;
    let answer = program.ask("/v1/completions", &completion).await.1;
    assert_eq!(details(&answer) + 1, answer["usage"]["prompt_tokens"].as_u64().unwrap(), "{answer}");
    let scored = json!({ "prompt": completion["prompt"], "max_tokens": 2, "echo": true, "logprobs": 0 });
    assert_eq!(details(&program.ask("/v1/completions", &scored).await.1), 0, "its scores are not kept");
    assert_eq!(scraped(&program, "eka_prompt_tokens_cached_total").await, 4 * all + details(&answer));
}

#[tokio::test]
async fn a_trim_and_a_new_worker_clear_the_prefix_cache() {
    let program = Program::start(&["--device", "cpu"]).await;
    for _ in 0..2 {
        right(&program, 0, &json!({})).await;
    }
    let kind = "eka_memory_bytes{process=\"worker\",kind=\"prefix_cache\"}";
    assert!(scraped(&program, kind).await > 0);
    assert_eq!(program.ask("/admin/trim", &json!({})).await.0, 200);
    assert_eq!(scraped(&program, kind).await, 0);
    assert_eq!(details(&right(&program, 0, &json!({})).await), 0);
    send_signal("KILL", program.worker_pid());
    assert_eq!(details(&right(&program, 0, &json!({})).await), 0);
    assert!(details(&right(&program, 0, &json!({})).await) > 0);
    let none = Program::start(&["--device", "cpu", "--set", "engine.prefix_cache_bytes=0"]).await;
    for _ in 0..2 {
        let answer = right(&none, 0, &json!({})).await;
        assert_eq!((details(&answer), &answer["memory"]["after"]["prefix_cache"]), (0, &json!(0)));
    }
}

#[tokio::test]
async fn switching_models_clears_the_prefix_cache() {
    let models = base_only_model();
    let dir = format!("models.dir={}", models.path().display());
    let program = Program::start(&["--device", "cpu", "--set", &dir]).await;
    for _ in 0..2 {
        right(&program, 0, &json!({})).await;
        assert!(details(&right(&program, 0, &json!({})).await) > 0);
        let (mut other, _) = chapter(0);
        other["model"] = json!("base-only");
        let (status, answer) = program.ask("/generate-lite", &other).await;
        assert_eq!((status, details(&answer)), (200, 0), "{answer}");
        let held = &answer["memory"]["after"]["prefix_cache"];
        assert!(held.as_u64().unwrap() > 0);
        assert_eq!(details(&right(&program, 0, &json!({})).await), 0);
    }
}
