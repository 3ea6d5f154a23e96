//! A draft model makes answers faster and never changes them.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use eka::{
    constraint::Guides,
    engine::{self, EngineError, Forward, GenerationSummary, Speculation, Step, Timeline},
    export::{self, Options, Source},
    job::{CacheScope, Constraint, Job, JobId, Sampling},
    text::{TokenizerMismatch, check_same_tokens},
};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::{
    decoding::{assert_same, jobs, timeline},
    models::{exported, long_model},
    processes::send_signal,
    program::{Program, argument, cache, cache_setting, expected, root, run, text},
    server::events,
};

/// The demonstration model, exported.
async fn demo() -> PathBuf {
    Program::start(&[]).await.export()
}

/// A model of random weights that has the demonstration model's shape and tokens.
fn stranger(demo: &Path) -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let dir = cache().join(format!("stranger-{}", std::process::id()));
        let config = root().join("models/demo/base/config.json");
        export::export(&Options::new(Source::Random { config, seed: 8 }, dir.clone()), &()).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(demo.join(file), dir.join(file)).unwrap();
        }
        dir
    })
}

/// A timeline whose passes are counted.
struct Counted<'a> {
    timeline: &'a mut Timeline,
    passes: usize,
}

impl Forward for Counted<'_> {
    fn rewind(&mut self, length: usize) {
        self.timeline.rewind(length);
    }

    fn begin(&mut self, tokens: &[u32], max: usize, scope: CacheScope) -> usize {
        self.timeline.begin(tokens, max, scope)
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        self.timeline.reserve(more)
    }

    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
        self.passes += 1;
        self.timeline.forward_rows(tokens, rows)
    }

    fn rows(&self) -> usize {
        self.timeline.rows()
    }

    fn chunk(&self) -> usize {
        self.timeline.chunk()
    }

    fn capacity(&self) -> usize {
        self.timeline.capacity()
    }

    fn vocabulary(&self) -> usize {
        self.timeline.vocabulary()
    }
}

/// What came of a job.
struct Answer {
    said: Vec<Step>,
    outcome: GenerationSummary,
    passes: usize,
}

impl Answer {
    fn tokens(&self) -> Vec<u32> {
        let token = |step: &Step| if let Step::Token(id) = step { Some(*id) } else { None };
        self.said.iter().filter_map(token).collect()
    }

    /// Tokens that the draft model guessed, and those of them that were right.
    fn by_model(&self) -> [usize; 2] {
        [self.outcome.timings.drafted_by_model.tokens, self.outcome.timings.drafted_by_model.accepted]
    }
}

/// Runs a job as a worker does.
fn answer(timeline: &mut Timeline, speculation: &mut Speculation, guides: &Guides, job: &Job) -> Answer {
    let mut said = Vec::new();
    let guide = guides.begin(job).unwrap();
    let mut counted = Counted { timeline, passes: 0 };
    let outcome = engine::generate(&mut counted, job, guide, speculation, |step| {
        said.push(step);
        ControlFlow::Continue(())
    });
    let passes = counted.passes;
    timeline.settle(job.cache_prompt);
    speculation.settle(job.cache_prompt);
    Answer { said, outcome: outcome.unwrap(), passes }
}

fn eager(draft: &Path) -> Speculation {
    Speculation::eager().with_draft(timeline(draft, 0)).unwrap()
}

/// Runs all of `jobs` with and without a draft model; returns the numbers of drafted and accepted tokens.
fn compare(dir: &Path, draft: &Path, jobs: impl Iterator<Item = Job>) -> [usize; 2] {
    let (mut guessing, mut plain) = (timeline(dir, 7), timeline(dir, 0));
    let (mut drafted, mut none) = (eager(draft), Speculation::new());
    let guides = Guides::new(dir.to_path_buf(), plain.vocabulary());
    let mut sum = [0, 0];
    for job in jobs {
        let expected = answer(&mut plain, &mut none, &guides, &job);
        let with = answer(&mut guessing, &mut drafted, &guides, &job);
        assert_same(&with.said, &expected.said, &job);
        assert_eq!(
            (with.outcome.reason, with.outcome.usage),
            (expected.outcome.reason, expected.outcome.usage)
        );
        assert!(with.passes <= expected.passes, "{job:?}");
        sum[0] += with.by_model()[0];
        sum[1] += with.by_model()[1];
    }
    sum
}

/// What the demonstration model is asked in ten languages, and the ids that it answers with.
fn asked() -> Vec<(Job, Vec<u32>)> {
    let file = fs::read(root().join("tests/fixtures/demo/expected.json")).unwrap();
    let document: Value = serde_json::from_slice(&file).unwrap();
    let ids = |list: &Value| serde_json::from_value::<Vec<u32>>(list.clone()).unwrap();
    let one = |(id, prompt): (u64, &Value)| {
        let job = Job::new(JobId(id), ids(&prompt["prompt_ids"]), 48);
        (Job { end_tokens: ids(&document["stop_ids"]), ..job }, ids(&prompt["merged"]["ids"]))
    };
    (0..).zip(document["prompts"].as_array().unwrap()).map(one).collect()
}

#[test]
fn draft_models_never_change_an_answer() {
    let other = cache().join(format!("long-other-{}", std::process::id()));
    let config = long_model().with_extension("json");
    export::export(&Options::new(Source::Random { config, seed: 6 }, other.clone()), &()).unwrap();
    for draft in [long_model(), &*other] {
        let [all, right] = compare(long_model(), draft, jobs());
        assert!(all > 300 && right < all, "{right} of {all}: next to nothing was tested");
    }
    // Where it is the model itself and nothing but the most probable is picked, it is right.
    let greedy = jobs().map(|job| Job { sampling: Sampling::greedy(), ..job });
    let [all, right] = compare(long_model(), long_model(), greedy);
    assert!(all > 100 && right == all, "{right} of {all}");
}

/// What ten answers of the demonstration model came to with a draft model and without.
#[derive(Debug, Default)]
struct Sum {
    passes: usize,
    plain_passes: usize,
    guessed: usize,
    right: usize,
}

/// Has the demonstration model in `dir` answer with the guesses of `draft`, which must change nothing.
fn ask_all(dir: &Path, draft: &Path) -> Sum {
    let (mut guessing, mut plain, mut drafted) = (timeline(dir, 15), timeline(dir, 0), eager(draft));
    let guides = Guides::new(dir.to_path_buf(), plain.vocabulary());
    let mut sum = Sum::default();
    for (job, ids) in asked() {
        let expected = answer(&mut plain, &mut Speculation::new(), &guides, &job);
        let with = answer(&mut guessing, &mut drafted, &guides, &job);
        let tokens = with.tokens();
        assert_eq!((&tokens[..], &tokens), (&ids[..ids.len() - 1], &expected.tokens()));
        let [guessed, right] = with.by_model();
        sum.passes += with.passes;
        sum.plain_passes += expected.passes;
        sum.guessed += guessed;
        sum.right += right;
    }
    // Figures for bench/results, with --nocapture.
    println!("{}: {sum:?}", draft.display());
    sum
}

#[tokio::test]
async fn the_model_as_its_own_draft_is_always_accepted() {
    let dir = demo().await;
    let Sum { passes, plain_passes, guessed, right } = ask_all(&dir, &dir);
    assert!(guessed > 0 && right == guessed, "{right} of {guessed}");
    assert!(passes * 4 < plain_passes, "{passes} of {plain_passes}");
}

#[tokio::test]
async fn a_quantized_copy_as_draft_is_mostly_accepted() {
    let (dir, fewer) = (demo().await, cache().join(format!("demo-int4-{}", std::process::id())));
    let sources = ["--base", "models/demo/base", "--adapter", "models/demo/adapter", "--quantize", "int4"];
    assert!(run(&[&["export", "--out", argument(&fewer)], &sources[..]].concat()).status.success());
    let Sum { passes, plain_passes, guessed, right } = ask_all(&dir, &fewer);
    assert!(right * 2 > guessed, "{right} of {guessed}");
    assert!(passes * 2 < plain_passes, "{passes} of {plain_passes}");
    let knows_nothing = ask_all(&dir, stranger(&dir));
    assert!(knows_nothing.right * 10 < knows_nothing.guessed, "{knows_nothing:?}");
}

#[tokio::test]
async fn a_useless_draft_model_is_tried_and_then_not_used() {
    let dir = demo().await;
    let draft = timeline(stranger(&dir), 0);
    let (mut guessing, mut plain) = (timeline(&dir, 15), timeline(&dir, 0));
    let mut drafted = Speculation::new().with_draft(draft).unwrap();
    let guides = Guides::new(dir, plain.vocabulary());
    let (mut guesses, mut right, mut said) = (0, 0, 0);
    for seed in 0..12 {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::greedy() };
        let job = Job { sampling, ..Job::new(JobId(seed), vec![1, 20, 21, 22], 120) };
        let expected = answer(&mut plain, &mut Speculation::new(), &guides, &job);
        let with = answer(&mut guessing, &mut drafted, &guides, &job);
        assert_same(&with.said, &expected.said, &job);
        guesses += with.by_model()[0];
        right += with.by_model()[1];
        said += with.outcome.usage.completion_tokens;
    }
    assert!(right * 4 < guesses, "{right} of {guesses} is more than it can know");
    assert!((1..said / 8).contains(&guesses), "{guesses} guesses for {said} tokens");
}

#[tokio::test]
async fn drafted_tokens_respect_constraints() {
    let dir = demo().await;
    let schema =
        json!({ "type": "array", "items": { "enum": ["alpha", "beta"] }, "minItems": 6, "maxItems": 9 });
    let forms = [
        Constraint::Schema(schema.to_string()),
        Constraint::Regex("(abc|abd){9,20}".into()),
        Constraint::Regex("[a-z ]{40,60}".into()),
    ];
    let jobs = forms.into_iter().flat_map(|form| {
        [0.0, 1.0].map(|temperature| Job {
            sampling: Sampling { temperature, repetition_penalty: 1.1, ..Sampling::greedy() },
            constraint: Some(form.clone()),
            end_tokens: vec![2],
            ..Job::new(JobId(0), vec![20, 21, 22], 200)
        })
    });
    let [all, _] = compare(&dir, &dir, jobs);
    assert!(all > 100, "{all}");
}

#[test]
fn a_speculative_answer_continues_identically_on_another_worker() {
    let sampled = Sampling { temperature: 0.9, frequency_penalty: 0.2, seed: 4, ..Sampling::greedy() };
    for sampling in [Sampling::greedy(), sampled] {
        let job = Job { sampling, ..Job::new(JobId(0), (3..40).collect(), 60) };
        let guides = Guides::new(long_model().to_path_buf(), 1024);
        let whole = answer(&mut timeline(long_model(), 7), &mut eager(long_model()), &guides, &job).tokens();
        assert_eq!(whole.len(), 60);
        for cut in [1, 7, 8, 31, 59] {
            let resumed = Job { answer: whole[..cut].to_vec(), lost: 1, ..job.clone() };
            let rest =
                answer(&mut timeline(long_model(), 7), &mut eager(long_model()), &guides, &resumed).tokens();
            assert_eq!(rest, whole[cut..], "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_draft_model_with_another_vocabulary_is_rejected_with_the_first_difference() {
    let (dir, other) = (demo().await, exported("llama"));
    let cache = cache_setting();
    for command in [&["serve", "--port", "0"][..], &["generate", "Hello"]] {
        let refused = run(&[command, &["--set", &cache, "--draft-model", &other]].concat());
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(4), "{error}");
        for said in
            ["engine.draft_model", "token 3 is", "must have the same tokens", "the same tokenizer.json"]
        {
            assert!(error.contains(said), "{error}");
        }
    }
    check_same_tokens(&dir, stranger(&dir)).unwrap();
    // A graph that was made for fewer.
    let fewer = tempfile::tempdir().unwrap();
    fs::copy(dir.join("tokenizer.json"), fewer.path().join("tokenizer.json")).unwrap();
    let mut manifest: Value = serde_json::from_slice(&fs::read(dir.join("eka.json")).unwrap()).unwrap();
    manifest["dims"]["vocab"] = json!(100);
    fs::write(fewer.path().join("eka.json"), manifest.to_string()).unwrap();
    let refused = check_same_tokens(&dir, fewer.path()).unwrap_err();
    assert!(
        matches!(refused, TokenizerMismatch::VocabTooSmall { draft_vocab: 100, last } if last >= 100),
        "{refused}"
    );
    // A path without a model is reported with the setting's name.
    let refused = run(&["generate", "Hello", "--set", &cache, "--draft-model", "models/none"]);
    let error = text(&refused.stderr);
    assert!(refused.status.code() == Some(4) && error.contains("models/none is not a model"), "{error}");
}

#[tokio::test]
async fn v1_models_names_the_draft_model_and_answers_survive_a_crash() {
    let dir = demo().await;
    let name = dir.file_name().unwrap().to_str().unwrap();
    let program = Program::start(&["--draft-model", argument(&dir), "--faults", "hang@decode:3,job=1"]).await;
    let first = &expected()[0];
    let request = json!({ "messages": [{ "role": "user", "content": first.prompt }], "stream": true });
    let response = program.post("/generate-lite", &request).send().await.unwrap();
    let (mut stream, mut received) = (response.bytes_stream(), Vec::new());
    while !text(&received).contains("data: ") {
        received.extend(stream.next().await.expect("it has not ended").unwrap());
    }
    send_signal("KILL", program.worker_pid());
    while let Some(piece) = stream.next().await {
        received.extend(piece.unwrap());
    }
    let (documents, _) = events(&text(&received));
    let last = documents.last().unwrap();
    assert_eq!(
        (&last["text"], &last["timings"]["resumed"]),
        (&json!(first.text), &json!(1)),
        "{}",
        program.log()
    );

    let model: Value = program.get("/v1/models/demo").await.json().await.unwrap();
    assert_eq!(model["eka"]["loaded"]["draft_model"], json!(name), "{model}");
    let metrics = program.metrics().await;
    assert!(metrics.contains("eka_draft_tokens_total{source=\"model\"} "), "{metrics}");
}

#[tokio::test]
async fn a_draft_model_that_fails_to_load_is_a_warning() {
    let dir = demo().await;
    let broken = tempfile::tempdir().unwrap();
    for file in ["eka.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(dir.join(file), broken.path().join(file)).unwrap();
    }
    fs::write(broken.path().join("model.onnx"), "no graph").unwrap();
    let program = Program::start(&["--draft-model", argument(broken.path())]).await;
    let first = &expected()[0];
    let request = json!({ "messages": [{ "role": "user", "content": first.prompt }] });
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["text"]), (200, &json!(first.text)));
    program.has_logged("draft_model_unavailable").await;
    assert_eq!(program.logged("draft_model_unavailable").len(), 1, "{}", program.log());
    let models = program.get("/v1/models").await;
    let models: Value = models.json().await.unwrap();
    assert_eq!(models["data"][0]["eka"]["loaded"]["draft_model"], Value::Null);
}
