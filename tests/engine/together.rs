//! Several sequences in one pass: each has the bits that it has alone.

use std::{collections::BTreeMap, fs, ops::ControlFlow, path::Path};

use eka::{
    constraint::Guides,
    device_spec::CacheChoice,
    engine::{self, Forward, GenerationSummary, SequenceEvent, Speculation, Step, Timeline, TimelineOptions},
    export::{Layout, Options, Source, Storage, WeightFormat, export},
    job::{Constraint, EndReason, Failure, Job, JobId, LogprobOptions, Sampling},
    model::Model,
    units::Bytes,
};

use crate::support::{
    decoding::{assert_same, jobs, options, timeline},
    models::{OPTIONS, export_long, lock_host_pool, long_model, open_with, pool, runtime},
    program::{Program, root},
};

/// The steps of a sequence, and how it ended.
type Said = (Vec<Step>, Option<Result<GenerationSummary, Failure>>);

/// Runs `jobs` together; `patience` gives the tokens after which the client of a job leaves.
fn together(timeline: &mut Timeline, guides: &Guides, jobs: &[Job], patience: &[usize]) -> Vec<Said> {
    let mut said: Vec<Said> = jobs.iter().map(|_| (Vec::new(), None)).collect();
    let guided = jobs.iter().map(|job| (job, guides.begin(job))).collect();
    engine::generate_together(timeline, guided, |number, event| {
        let (steps, end) = &mut said[number];
        assert!(end.is_none(), "an event after the last one");
        match event {
            SequenceEvent::Step(Step::Progress { .. }) => {}
            SequenceEvent::Step(step) => steps.push(step),
            SequenceEvent::Ended(ended) => *end = Some(ended),
        }
        let heard = steps.iter().filter(|step| matches!(step, Step::Token(_))).count();
        let leaves = patience.get(number).is_some_and(|patience| heard >= *patience);
        if leaves { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    timeline.settle(true);
    said
}

fn alone(timeline: &mut Timeline, guides: &Guides, job: &Job) -> (Vec<Step>, GenerationSummary) {
    let mut said = Vec::new();
    let guide = guides.begin(job).unwrap();
    let outcome = engine::generate(timeline, job, guide, &mut Speculation::new(), |step| {
        if !matches!(step, Step::Progress { .. }) {
            said.push(step);
        }
        ControlFlow::Continue(())
    });
    timeline.settle(true);
    (said, outcome.unwrap())
}

/// Compares jobs that run together with each by itself.
fn compare(timeline: &mut Timeline, plain: &mut Timeline, guides: &Guides, jobs: &[Job]) {
    let expected: Vec<_> = jobs.iter().map(|job| alone(plain, guides, job)).collect();
    compare_with(&expected, timeline, guides, jobs);
}

fn compare_with(
    expected: &[(Vec<Step>, GenerationSummary)],
    timeline: &mut Timeline,
    guides: &Guides,
    jobs: &[Job],
) {
    let said = together(timeline, guides, jobs, &[]);
    for ((job, (steps, end)), (expected, without)) in jobs.iter().zip(said).zip(expected) {
        assert_same(&steps, expected, job);
        let with = end.unwrap().unwrap();
        assert_eq!(with.reason, without.reason, "{job:?}");
        assert_eq!(with.usage.completion_tokens, without.usage.completion_tokens, "{job:?}");
    }
}

/// Jobs that do not score their prompts, with log-probabilities.
fn scored_jobs() -> Vec<Job> {
    let scored =
        |job: Job| Job { logprobs: Some(LogprobOptions { top: 2, ..LogprobOptions::default() }), ..job };
    jobs().map(scored).collect()
}

/// `n` choices of one job, as `n` asks for them.
fn choices(job: &Job, n: u64) -> Vec<Job> {
    let choice = |number| {
        let sampling = Sampling { seed: job.sampling.seed + number, ..job.sampling.clone() };
        Job { id: JobId(number), sampling, ..job.clone() }
    };
    (0..n).map(choice).collect()
}

#[test]
fn sequences_of_any_prompts_have_the_bits_that_each_has_alone_with_all_weights() {
    for format in [WeightFormat::Full, WeightFormat::Int8, WeightFormat::Int4] {
        let dir = match format {
            WeightFormat::Full => long_model().to_path_buf(),
            _ => export_long(&format!("together-{format}"), |options| Options {
                weights: Storage { format, ..Storage::default() },
                ..options
            }),
        };
        let guides = Guides::new(dir.clone(), 1024);
        let (mut several, mut plain) = (timeline(&dir, 7), timeline(&dir, 0));
        assert!(several.takes_sequences());
        let jobs: Vec<Job> = scored_jobs().into_iter().take(16).collect();
        let expected: Vec<_> = jobs.iter().map(|job| alone(&mut plain, &guides, job)).collect();
        for width in [2, 4, 8] {
            for (jobs, expected) in jobs.chunks(width).zip(expected.chunks(width)) {
                compare_with(expected, &mut several, &guides, jobs);
            }
        }
        compare(&mut several, &mut plain, &guides, &choices(&jobs[7], 8));
        // Two choices of each of three prompts, which begin with the same tokens.
        let prompts = (0..3).map(|number| {
            let prompt = [&[7; 100][..], &vec![number + 20; 3 + number as usize * 40]].concat();
            Job { prompt, ..jobs[9].clone() }
        });
        let jobs: Vec<Job> = prompts.flat_map(|job| choices(&job, 2)).collect();
        compare(&mut several, &mut plain, &guides, &jobs);
    }
}

#[test]
fn sequences_that_another_worker_continues_have_the_same_bits() {
    let guides = Guides::new(long_model().to_path_buf(), 1024);
    let (mut several, mut plain) = (timeline(long_model(), 0), timeline(long_model(), 0));
    let jobs = choices(&Job { max_new_tokens: 40, end_tokens: Vec::new(), ..scored_jobs()[3].clone() }, 4);
    let whole: Vec<Vec<Step>> = jobs.iter().map(|job| alone(&mut plain, &guides, job).0).collect();
    let tokens = |steps: &[Step]| -> Vec<u32> {
        steps
            .iter()
            .filter_map(|step| if let Step::Token(token) = step { Some(*token) } else { None })
            .collect()
    };
    // The worker was lost after other numbers of tokens, one of them the last one.
    let lost = [0, 5, 20, 40];
    let resumed: Vec<Job> = jobs
        .iter()
        .zip(&whole)
        .zip(lost)
        .map(|((job, steps), lost)| Job { answer: tokens(steps)[..lost].to_vec(), ..job.clone() })
        .collect();
    for (((steps, end), job), (whole, lost)) in
        together(&mut several, &guides, &resumed, &[]).into_iter().zip(&resumed).zip(whole.iter().zip(lost))
    {
        assert_same(&steps, &whole[2 * lost..], job);
        assert_eq!(end.unwrap().unwrap().reason, EndReason::Length);
    }
}

#[test]
fn a_sequence_that_is_cancelled_leaves_the_others_unchanged() {
    let guides = Guides::new(long_model().to_path_buf(), 1024);
    let (mut several, mut plain) = (timeline(long_model(), 0), timeline(long_model(), 0));
    let jobs = choices(&Job { max_new_tokens: 30, end_tokens: Vec::new(), ..scored_jobs()[5].clone() }, 3);
    let said = together(&mut several, &guides, &jobs, &[usize::MAX, 4, 1]);
    for ((job, (steps, end)), (reason, tokens)) in jobs.iter().zip(said).zip([
        (EndReason::Length, 30),
        (EndReason::Cancelled, 4),
        (EndReason::Cancelled, 1),
    ]) {
        let (expected, _) = alone(&mut plain, &guides, job);
        assert_same(&steps, &expected[..2 * tokens], job);
        assert_eq!(end.unwrap().unwrap().reason, reason);
    }
}

#[test]
fn a_job_that_does_not_fit_fails_and_the_others_run() {
    let guides = Guides::new(long_model().to_path_buf(), 1024);
    let (mut several, mut plain) = (timeline(long_model(), 0), timeline(long_model(), 0));
    let fits = scored_jobs().remove(2);
    let mut jobs = choices(&fits, 3);
    jobs[0].max_new_tokens = 5000;
    jobs[2].prompt[0] = 9999;
    let said = together(&mut several, &guides, &jobs, &[]);
    assert!(matches!(said[0].1, Some(Err(Failure::Context { .. }))), "{:?}", said[0]);
    assert!(matches!(said[2].1, Some(Err(Failure::UnknownToken { id: 9999, .. }))), "{:?}", said[2]);
    assert_same(&said[1].0, &alone(&mut plain, &guides, &jobs[1]).0, &jobs[1]);
}

#[test]
fn sequences_in_a_pool_have_the_same_bits() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let mut several =
        Timeline::new(Model::open_in(&pool, long_model(), OPTIONS).unwrap(), options(0)).unwrap();
    let guides = Guides::new(long_model().to_path_buf(), 1024);
    let mut plain = timeline(long_model(), 0);
    for jobs in scored_jobs()[..12].chunks(4) {
        compare(&mut several, &mut plain, &guides, jobs);
    }
}

#[test]
fn more_positions_than_a_context_has_are_given_back_and_the_prompt_is_kept() {
    let model = Model::open(runtime(), long_model(), OPTIONS).unwrap();
    let options = TimelineOptions { chunk: 48, prefixes: Bytes::mib(64), ..TimelineOptions::default() };
    let mut several = Timeline::new(model, options).unwrap();
    let mut plain = timeline(long_model(), 0);
    let guides = Guides::new(long_model().to_path_buf(), 1024);
    let (context, prompt) = (several.capacity(), vec![9; 700]);
    let job = Job { max_new_tokens: context - 700, ..Job::new(JobId(0), prompt.clone(), 1) };
    // Four answers that may fill the context each, and are soon cancelled.
    let said = together(&mut several, &guides, &choices(&job, 4), &[3; 4]);
    let (expected, _) = alone(&mut plain, &guides, &Job { max_new_tokens: 3, ..job.clone() });
    said.iter().for_each(|(steps, _)| assert_same(steps, &expected, &job));
    assert_eq!(several.room(), context);
    let prompt_bytes = several.model().position().0 * 700;
    assert!((prompt_bytes..2 * prompt_bytes).contains(&several.kept().0), "{} are kept", several.kept());
    let again = alone(&mut several, &guides, &Job { max_new_tokens: 3, ..job });
    assert_eq!((again.0, again.1.usage.cached_tokens), (expected, 699));
}

#[tokio::test]
async fn constrained_sequences_have_the_answers_that_they_have_alone() {
    let dir = Program::start(&[]).await.export();
    let (mut several, mut plain) = (timeline(&dir, 0), timeline(&dir, 0));
    let guides = Guides::new(dir, plain.vocabulary());
    let job = |id, constraint: Option<&str>| Job {
        sampling: Sampling { temperature: 1.0, seed: id, ..Sampling::greedy() },
        constraint: constraint.map(|regex| Constraint::Regex(regex.into())),
        end_tokens: vec![2],
        ..Job::new(JobId(id), vec![20, 21, 22], 60)
    };
    // One has forced parts of several tokens, one no constraint.
    let jobs = [
        job(1, Some("(alphabet soup, |beta blockers; ){3,9}")),
        job(2, None),
        job(3, Some("[0-9]{4}-[0-9]{2}")),
        job(4, Some("yes, please")),
    ];
    compare(&mut several, &mut plain, &guides, &jobs);
    let unsatisfiable = Job { constraint: Some(Constraint::Regex("(".into())), ..job(5, None) };
    let said = together(&mut several, &guides, &[unsatisfiable, job(2, None)], &[]);
    assert!(matches!(said[0].1, Some(Err(Failure::Constraint { .. }))), "{:?}", said[0]);
    assert_eq!(said[1].0, alone(&mut plain, &guides, &job(2, None)).0);
}

/// Models whose positions are learned, or ALiBi: the graph computes the positions of one sequence.
const IN_TURN: [&str; 2] = ["bloom-six-heads", "gpt2-older-names"];

/// The fixture in `name`, exported with `format`.
fn fixture(name: &str, format: WeightFormat, output: &Path) {
    let config = root().join("tests/fixtures/models").join(name).join("base/config.json");
    let source = Source::Random { config, seed: 11 };
    let weights = Storage { format, ..Storage::default() };
    export(&Options { weights, layout: Layout::Eka, ..Options::new(source, output.into()) }, &()).unwrap();
}

#[test]
fn every_architecture_with_rotary_or_no_positions_computes_sequences_together_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut takes: BTreeMap<String, bool> = BTreeMap::new();
    for entry in fs::read_dir(root().join("tests/fixtures/models")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        for (format, cache) in
            [(WeightFormat::Full, CacheChoice::Auto), (WeightFormat::Int4, CacheChoice::Int8)]
        {
            let output = dir.path().join(&name);
            fixture(&name, format, &output);
            let session = eka::device::SessionOptions { threads: 2, cache, ..OPTIONS };
            let mut several = open_with(&output, 16, session);
            takes.insert(name.clone(), several.takes_sequences());
            if several.takes_sequences() {
                let mut plain = open_with(&output, 16, eka::device::SessionOptions { threads: 1, ..session });
                let vocabulary = several.vocabulary();
                let guides = Guides::new(output.clone(), vocabulary);
                let prompt = |length: usize, seed: usize| -> Vec<u32> {
                    (0..length).map(|i| u32::try_from((i * 31 + seed) % vocabulary).unwrap()).collect()
                };
                let job = |id: u64, prompt| Job {
                    logprobs: Some(LogprobOptions { top: 1, ..LogprobOptions::default() }),
                    ..Job::new(JobId(id), prompt, 12)
                };
                let same = [prompt(20, 3), prompt(1, 5)].concat();
                let jobs = [job(0, prompt(20, 3)), job(1, prompt(7, 9)), job(2, same.clone()), job(3, same)];
                compare(&mut several, &mut plain, &guides, &jobs);
                compare(&mut several, &mut plain, &guides, &choices(&jobs[0], 3));
            }
            fs::remove_dir_all(&output).unwrap();
        }
    }
    let in_turn: Vec<&str> = takes.iter().filter(|(_, takes)| !**takes).map(|(name, _)| &**name).collect();
    assert_eq!(in_turn, IN_TURN);
}

#[test]
fn models_without_row_invariant_operators_run_sequences_one_after_another() {
    let session = eka::device::SessionOptions { own_operators: false, ..OPTIONS };
    assert!(!open_with(long_model(), 16, session).takes_sequences());
}
