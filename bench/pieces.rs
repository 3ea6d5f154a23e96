//! What the server's own work costs per token: picking, framing, making text.
//!
//! A decode step of a billion parameters takes some 25 ms on two cores. These are microseconds, and shall stay so.

use std::{fs, hint::black_box, path::Path, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use eka::{
    engine::Sampler,
    job::{JobId, Sampling},
    text::Text,
    wire::{self, Up},
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
    let token = Up::Token { job: JobId(1_000), id: 31_999 };
    let mut frame = Vec::new();
    c.bench_function("encode and decode a token's frame", |b| {
        b.iter(|| {
            frame.clear();
            wire::encode(black_box(&token), &mut frame).expect("a token fits a frame");
            black_box(wire::decode::<Up>(&frame[4..]).expect("it decodes"))
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
        let mut decoder = text.decoder(stops.clone());
        let mut tokens = ids.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| black_box(decoder.push(*tokens.next().expect("it cycles"))));
        });
    }
    group.finish();
}

criterion_group!(pieces, sampler, frames, detokenizer);
criterion_main!(pieces);
