//! Cost of the server's work per token: sampling, framing, detokenizing.
//!
//! A decode step of a billion parameters takes about 25 ms on two cores. These must stay in microseconds.

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use eka::{
    auth::Keys,
    constraint::{Choice, Guide, Guides},
    engine::Sampler,
    job::{Constraint, Failure, Job, JobId, Sampling, Step},
    text::Text,
    wire::{self, FromWorker},
};

const VOCABULARY: usize = 32_000;

/// Logits without ties, the same in every run.
fn logits() -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 4096.0 - 8.0
    };
    (0..VOCABULARY).map(|_| next()).collect()
}

fn sampler(c: &mut Criterion) {
    let logits = logits();
    let drawn = Sampling { temperature: 0.8, seed: 1, ..Sampling::greedy() };
    let cases = [
        ("greedy", Sampling::greedy()),
        ("temperature", drawn.clone()),
        ("top_k 40", Sampling { top_k: 40, ..drawn.clone() }),
        ("top_p 0.95", Sampling { top_p: 0.95, ..drawn.clone() }),
        ("top_k, top_p, penalties", Sampling { top_k: 40, top_p: 0.95, repetition_penalty: 1.1, ..drawn }),
    ];
    let mut group = c.benchmark_group("pick from 32,000");
    let prompt: Vec<u32> = (0..512).collect();
    for (name, sampling) in &cases {
        let mut sampler = Sampler::new(sampling, &prompt);
        let mut scratch = logits.clone();
        group.bench_function(*name, |b| {
            b.iter(|| {
                scratch.copy_from_slice(&logits);
                black_box(sampler.pick(&mut scratch))
            });
        });
    }
    group.finish();
}

fn frames(c: &mut Criterion) {
    let token = FromWorker::Step { job: JobId(1_000), step: Step::Token(31_999) };
    let mut frame = Vec::new();
    c.bench_function("encode and decode a token's frame", |b| {
        b.iter(|| {
            frame.clear();
            wire::encode(black_box(&token), &mut frame).expect("a token fits a frame");
            black_box(wire::decode::<FromWorker>(&frame[4..]).expect("it decodes"))
        });
    });
}

/// The demo's tokenizer beside a manifest of its export, if it has been exported.
fn text() -> Option<Arc<Text>> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/base");
    let directory = tempfile::tempdir().ok()?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(base.join(name), directory.path().join(name)).ok()?;
    }
    let source = eka::export::Source::Checkpoint { base, adapters: Vec::new() };
    let options = eka::export::Options::new(source, directory.path().join("demo"));
    eka::export::export(&options, &()).ok()?;
    Some(Arc::new(Text::open(&options.output, "demo").ok()?))
}

fn detokenizer(c: &mut Criterion) {
    let text = text().expect("the demo lies in models/demo");
    let ids = text.encode("ನಾಳೆ ನೋಡೋಣ. आपका दिन शुभ हो! See you tomorrow.").expect("it encodes");
    let mut group = c.benchmark_group("make text of one token");
    for (name, stops) in
        [("plain", Vec::new()), ("with four stop strings", vec!["</s>", "\n\n", "User:", "।"])]
    {
        let stops: Vec<String> = stops.into_iter().map(str::to_owned).collect();
        let mut decoder = text.detokenizer(stops.clone());
        let mut tokens = ids.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| black_box(decoder.push(*tokens.next().expect("it cycles"))));
        });
    }
    group.finish();
}

/// A schema of the kind that people send.
fn person() -> Constraint {
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 20, "maxLength": 40 },
            "language": { "enum": ["தமிழ்", "हिन्दी", "ಕನ್ನಡ"] },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 12 }, "minItems": 2, "maxItems": 4 },
        },
        "required": ["name", "language", "age", "tags"],
        "additionalProperties": false,
    });
    Constraint::Schema(schema.to_string())
}

/// The next choice that is one.
fn free_choice(guide: &mut Guide) -> Result<Choice, Failure> {
    loop {
        match guide.choice() {
            Ok(Choice::Forced(_)) => {}
            other => return other,
        }
    }
}

/// Makes answers of whatever is most probable among what may follow, until `tokens` were picked; the time it took to know
/// what may, and to mask the rest.
fn follow(guides: &Guides, job: &Job, logits: &[f32], tokens: u64) -> Duration {
    let (mut took, mut left) = (Duration::ZERO, tokens);
    while left > 0 {
        let mut guide = guides.begin(job).expect("a thread").expect("a constraint");
        let mut scratch = logits.to_vec();
        let mut position = 0;
        // The first choice waits for the grammar, which is measured by itself.
        let mut choice = free_choice(&mut guide);
        while let (Ok(Choice::Among(allowed)), true) = (&choice, left > 0) {
            scratch.copy_from_slice(logits);
            scratch.rotate_left(position * 7_919 % logits.len());
            let begun = Instant::now();
            allowed.mask(&mut scratch, &[]);
            took += begun.elapsed();
            let best = (0_u32..).zip(&scratch).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id);
            let begun = Instant::now();
            guide.picked(best);
            choice = free_choice(&mut guide);
            took += begun.elapsed();
            (position, left) = (position + 1, left - 1);
        }
    }
    took
}

/// With the demo's vocabulary, or with that of the tokenizer in the directory that `EKA_BENCH_TOKENIZER` names.
fn constraint(c: &mut Criterion) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/base");
    let dir = std::env::var_os("EKA_BENCH_TOKENIZER").map_or(demo, PathBuf::from);
    let tokenizer = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).expect("a tokenizer");
    let size = tokenizer.get_vocab_size(true);
    let mut group = c.benchmark_group(format!("constraint over {size} tokens"));
    let job = Job { constraint: Some(person()), ..Job::new(JobId(1), vec![1], 1_000) };
    let begin = |guides: &Guides| {
        let mut guide = guides.begin(&job).expect("a thread").expect("a constraint");
        black_box(guide.choice()).expect("something may follow")
    };
    group.sample_size(10);
    group.bench_function("read the tokenizer, for the first answer", |b| {
        b.iter(|| begin(&Guides::new(dir.clone(), size)));
    });
    let guides = Guides::new(dir.clone(), size);
    begin(&guides);
    group.bench_function("compile the schema, for each answer", |b| b.iter(|| begin(&guides)));
    group.bench_function("check the schema, before it is accepted", |b| {
        b.iter(|| eka::constraint::check(&person()))
    });
    let logits: Vec<f32> = logits().into_iter().cycle().take(size).collect();
    group.bench_function("know what may follow, for each token", |b| {
        b.iter_custom(|tokens| follow(&guides, &job, &logits, tokens));
    });
    group.finish();
}

/// Shows that the time to reject a key does not depend on how much of it was right: its digest is looked up.
fn keys(c: &mut Criterion) {
    const RIGHT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let keys = Keys::read(None, Some(RIGHT)).expect("a key that is long enough");
    let wrong = |at: usize| format!("{}x{}", &RIGHT[..at], &RIGHT[at + 1..]);
    let mut group = c.benchmark_group("look a key of 48 letters up");
    for (name, shown) in [
        ("wrong from the first letter on", wrong(0)),
        ("wrong in the middle", wrong(24)),
        ("wrong in the last letter", wrong(47)),
        ("right", RIGHT.to_owned()),
    ] {
        group.bench_function(name, |b| b.iter(|| keys.find(black_box(shown.as_bytes())).is_some()));
    }
    group.finish();
}

criterion_group!(pieces, sampler, frames, detokenizer, constraint, keys);
criterion_main!(pieces);
