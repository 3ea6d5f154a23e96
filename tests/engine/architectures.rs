//! Every architecture against the logits that transformers and PEFT compute from the same files.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use eka::{
    device::{SessionOptions, Threads},
    device_spec::CacheChoice,
    engine::{Forward, Timeline, TimelineOptions},
    export::{AdapterSource, Layout, Options, Source, Storage, WeightFormat, export},
    manifest::Dtype,
    model::Model,
};
use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::support::{
    models::{OPTIONS, open_directory, open_with, runtime},
    program::root,
};

/// Greatest difference of a logit that is allowed; the greatest seen is 4e-6.
const TOLERANCE: f32 = 5e-5;

struct Case {
    name: String,
    dir: PathBuf,
    prompt: Vec<u32>,
    base: Vec<f32>,
    merged: Vec<f32>,
    greedy: Vec<u32>,
}

/// The cases that every test here runs.
fn cases() -> Vec<Case> {
    cases_in("tests/fixtures/models", 14)
}

/// The cases in `folder`, at least `count`.
fn cases_in(folder: &str, count: usize) -> Vec<Case> {
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= count, "{dirs:?}");
    dirs.iter().map(|dir| Case::read(dir)).collect()
}

impl Case {
    fn read(dir: &Path) -> Self {
        let bytes = fs::read(dir.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let (chunks, _) = tensors.tensor(name).unwrap().data().as_chunks::<4>();
            chunks.iter().map(|four| f32::from_le_bytes(*four)).collect()
        };
        let ids = |name: &str| -> Vec<u32> {
            let (chunks, _) = tensors.tensor(name).unwrap().data().as_chunks::<8>();
            chunks.iter().map(|eight| u32::try_from(i64::from_le_bytes(*eight)).unwrap()).collect()
        };
        Self {
            name: dir.file_name().unwrap().to_str().unwrap().into(),
            dir: dir.into(),
            prompt: ids("input_ids"),
            base: floats("logits_base"),
            merged: floats("logits_merged"),
            greedy: ids("greedy_merged"),
        }
    }

    fn merged_source(&self) -> Source {
        Source::Checkpoint {
            base: self.dir.join("base"),
            adapters: vec![AdapterSource { dir: self.dir.join("adapter"), weight: 1.0 }],
        }
    }

    /// A copy of the base with another tokenizer.
    fn with_tokenizer(&self, dir: &Path) -> PathBuf {
        let copy = dir.join("base");
        fs::create_dir(&copy).unwrap();
        let tokenizer = root().join("tests/fixtures/llama/base");
        for from in
            [&self.dir.join("base").join("config.json"), &self.dir.join("base").join("model.safetensors")]
        {
            fs::copy(from, copy.join(from.file_name().unwrap())).unwrap();
        }
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(tokenizer.join(name), copy.join(name)).unwrap();
        }
        copy
    }

    /// The base with its configuration as transformers 4 wrote it.
    fn older_base(&self, dir: &Path) -> PathBuf {
        let older = dir.join("older");
        fs::create_dir(&older).unwrap();
        for entry in fs::read_dir(self.dir.join("base")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), older.join(entry.file_name())).unwrap();
        }
        fs::rename(older.join("config.transformers4.json"), older.join("config.json")).unwrap();
        older
    }
}

fn open(source: Source, weights: WeightFormat, dtype: Dtype, chunk: usize) -> (Timeline, TempDir) {
    open_as(Layout::Eka, (source, weights, dtype), chunk)
}

fn open_as(
    layout: Layout,
    (source, weights, dtype): (Source, WeightFormat, Dtype),
    chunk: usize,
) -> (Timeline, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model");
    let weights = Storage { format: weights, ..Storage::default() };
    let options = Options { weights, dtype, layout, ..Options::new(source, output.clone()) };
    export(&options, &()).unwrap();
    (open_directory(&output, chunk), dir)
}

fn open_exact(source: Source, chunk: usize) -> (Timeline, TempDir) {
    open(source, WeightFormat::Full, Dtype::Float32, chunk)
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The continuation of the case's prompt, which the timeline has read.
fn greedy(timeline: &mut Timeline, case: &Case) -> Vec<u32> {
    timeline.rewind(case.prompt.len() - 1);
    let mut token = *case.prompt.last().unwrap();
    let next = |_: &u32| {
        token = top(timeline.forward(&[token]).unwrap());
        token
    };
    case.greedy.iter().map(next).collect()
}

fn top(row: &[f32]) -> u32 {
    let max = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    u32::try_from(max.0).unwrap()
}

fn weights(dir: &TempDir) -> Vec<u8> {
    fs::read(dir.path().join("model/model.onnx.data")).unwrap()
}

#[test]
fn logits_of_every_architecture_match_transformers_at_every_position() {
    let mut seen = BTreeMap::new();
    for case in cases() {
        let base = Source::Checkpoint { base: case.dir.join("base"), adapters: Vec::new() };
        let (mut timeline, _dir) = open_exact(base, 64);
        let alone = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.base);
        let (mut timeline, _dir) = open_exact(case.merged_source(), 64);
        let merged = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.merged);
        assert!(alone <= TOLERANCE && merged <= TOLERANCE, "{}: {alone} alone, {merged} merged", case.name);
        assert_eq!(greedy(&mut timeline, &case), case.greedy, "{}", case.name);
        assert_eq!(timeline.model().manifest().end_tokens, [2], "{}", case.name);
        // LongRoPE's short divisors are for the original context.
        let context = if case.name == "phi3-long" { 128 } else { timeline.capacity() };
        assert_eq!(timeline.capacity(), context, "{}", case.name);
        seen.insert(case.name, alone.max(merged));
    }
    println!("greatest differences: {seen:?}");
}

/// `scripts/architectures` compares the same cases, and prints what it finds.
#[test]
fn logits_of_further_architectures_match_transformers_at_every_position() {
    let mut seen = BTreeMap::new();
    for case in cases_in("tests/fixtures/architectures", 70) {
        let copies = tempfile::tempdir().unwrap();
        let base = case.with_tokenizer(copies.path());
        let alone = Source::Checkpoint { base: base.clone(), adapters: Vec::new() };
        let (mut timeline, _dir) = open_exact(alone, 64);
        let alone = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.base);
        let adapters = vec![AdapterSource { dir: case.dir.join("adapter"), weight: 1.0 }];
        let (mut timeline, _dir) = open_exact(Source::Checkpoint { base, adapters }, 7);
        let merged = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.merged);
        assert!(alone <= TOLERANCE && merged <= TOLERANCE, "{}: {alone} alone, {merged} merged", case.name);
        assert_eq!(greedy(&mut timeline, &case), case.greedy, "{}", case.name);
        seen.insert(case.name, alone.max(merged));
    }
    println!("greatest differences: {seen:?}");
}

#[test]
fn blocks_of_four_bits_with_offsets_lose_nothing_in_an_int4_export() {
    let gguf = |file| Source::Checkpoint {
        base: root().join("tests/fixtures/gguf").join(file),
        adapters: Vec::new(),
    };
    // Tables have no offsets, rows of the down projection are not whole blocks, and heads of eight are padded.
    let keep = ["embed_tokens=none", "lm_head=none", "down_proj=none", "o_proj=none"];
    let keep = keep.map(|keep| keep.parse().unwrap()).to_vec();
    let prompt: Vec<u32> = (3..43).collect();
    let logits = |file, format| {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model");
        let weights = Storage { format, keep: keep.clone(), ..Storage::default() };
        export(&Options { weights, ..Options::new(gguf(file), output.clone()) }, &()).unwrap();
        open_directory(&output, 16).forward_all(&prompt).unwrap()
    };
    let lost = |file| apart(&logits(file, WeightFormat::Int4), &logits(file, WeightFormat::Full));
    // What is left is the rounding of activations.
    let (kept, rounded) = (lost("q4_1.gguf"), lost("llama3-rope.gguf"));
    assert!(kept < 0.2 * rounded, "{kept} with the file's blocks, {rounded} with those of a file of floats");
}

#[test]
fn a_transformers_4_configuration_gives_the_same_export() {
    for case in cases() {
        let (_, new_dir) =
            open_exact(Source::Checkpoint { base: case.dir.join("base"), adapters: Vec::new() }, 64);
        let older = tempfile::tempdir().unwrap();
        let base = case.older_base(older.path());
        let (mut timeline, dir) = open_exact(Source::Checkpoint { base, adapters: Vec::new() }, 64);
        assert!(weights(&dir) == weights(&new_dir), "{}: the weights differ", case.name);
        let difference = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.base);
        assert!(difference <= TOLERANCE, "{}: {difference}", case.name);
    }
}

#[test]
fn one_pass_chunks_and_single_tokens_give_the_same_logits_also_after_a_rewind() {
    for case in cases() {
        let (mut whole, _dir) = open_exact(case.merged_source(), 64);
        let expected = whole.forward_all(&case.prompt).unwrap();
        for chunk in [7, 1] {
            let (mut timeline, _dir) = open_exact(case.merged_source(), chunk);
            let difference = apart(&timeline.forward_all(&case.prompt).unwrap(), &expected);
            assert!(difference <= 1e-4, "{} in chunks of {chunk}: {difference}", case.name);
        }
        // Another continuation, forgotten, leaves nothing behind.
        let rest = |timeline: &mut Timeline| {
            timeline.rewind(20);
            timeline.forward_all(&case.prompt[20..]).unwrap()
        };
        let first = rest(&mut whole);
        assert!(apart(&first, &expected[20 * whole.vocabulary()..]) <= 1e-4, "{}", case.name);
        whole.rewind(20);
        whole.forward_all(&[5; 11]).unwrap();
        assert!(rest(&mut whole) == first, "{}: rewinding leaves something behind", case.name);
    }
}

#[test]
fn a_genai_layout_export_gives_the_same_logits() {
    for case in cases() {
        let sources = (case.merged_source(), WeightFormat::Full, Dtype::Float32);
        let (mut timeline, dir) = open_as(Layout::Genai, sources, 64);
        assert!(dir.path().join("model/genai_config.json").is_file());
        let difference = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.merged);
        assert!(difference <= TOLERANCE, "{}: {difference}", case.name);
        timeline.rewind(0);
        timeline.forward(&case.prompt).unwrap();
        assert_eq!(greedy(&mut timeline, &case), case.greedy, "{}", case.name);
    }
}

#[test]
fn a_directory_built_by_onnxruntime_genai_matches_transformers() {
    let all = root().join("tests/fixtures/genai");
    let built: Vec<Case> = cases().into_iter().filter(|case| all.join(&case.name).is_dir()).collect();
    assert_eq!(built.len(), 2);
    for case in built {
        let built = all.join(&case.name);
        for chunk in [64, 7] {
            let mut timeline = open_directory(&built, chunk);
            let difference = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.base);
            assert!(difference <= TOLERANCE, "{}: {difference}", case.name);
            timeline.rewind(3);
            let last = timeline.forward(&case.prompt[3..7]).unwrap().to_vec();
            let vocabulary = last.len();
            assert!(apart(&last, &case.base[6 * vocabulary..7 * vocabulary]) <= TOLERANCE, "{}", case.name);
        }
    }
}

#[test]
fn a_shorter_context_gives_the_same_logits_up_to_its_end() {
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model");
        let shorter = Options {
            context_length: NonZeroUsize::new(40),
            ..Options::new(case.merged_source(), output.clone())
        };
        export(&shorter, &()).unwrap();
        let mut timeline = open_directory(&output, 64);
        let difference = apart(&timeline.forward_all(&case.prompt).unwrap(), &case.merged);
        assert!(difference <= TOLERANCE, "{}: {difference}", case.name);
        assert!(timeline.forward(&[1]).is_err(), "{} has no position 41", case.name);
        let longer = Options { context_length: NonZeroUsize::new(100_000), ..shorter };
        let message = export(&longer, &()).unwrap_err().to_string();
        assert!(message.contains("100000"), "{message}");
    }
}

#[test]
fn random_weights_need_only_the_configuration() {
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model");
        let source = Source::Random { config: case.dir.join("base/config.json"), seed: 3 };
        export(&Options::new(source, output.clone()), &()).unwrap();
        let logits = open_directory(&output, 64).forward_all(&case.prompt).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()) && size(&logits) > 1e-3, "{}", case.name);
    }
}

#[test]
fn float16_and_integer_weights_stay_close_on_every_architecture() {
    // Shares of the logits' own size. Weights of these models are noise, which quantizes as badly as can be.
    for (weights, dtype, tolerance) in [
        (WeightFormat::Full, Dtype::Float16, 0.003),
        (WeightFormat::Int8, Dtype::Float32, 0.08),
        (WeightFormat::Int4, Dtype::Float16, 0.8),
    ] {
        let mut seen = BTreeMap::new();
        for case in cases() {
            let (mut timeline, _dir) = open(case.merged_source(), weights, dtype, 64);
            let logits = timeline.forward_all(&case.prompt).unwrap();
            let errors: Vec<f32> = logits.iter().zip(&case.merged).map(|(a, b)| a - b).collect();
            seen.insert(case.name, size(&errors) / size(&case.merged));
        }
        println!("{weights:?}, {dtype:?}: {seen:.4?}");
        let worst = seen.values().copied().fold(0.0, f32::max);
        assert!(worst <= tolerance, "{weights:?}, {dtype:?}: {seen:?}");
    }
}

#[test]
fn own_operators_are_as_close_to_float32_as_onnx_runtimes() {
    let mut replaced = 0;
    for case in cases() {
        for (layout, block_size) in [(Layout::Eka, "32"), (Layout::Genai, "128")] {
            let dir = tempfile::tempdir().unwrap();
            let output = dir.path().join("model");
            let weights = Storage {
                format: WeightFormat::Int4,
                block_size: block_size.parse().unwrap(),
                ..Storage::default()
            };
            let options = Options { weights, layout, ..Options::new(case.merged_source(), output.clone()) };
            export(&options, &()).unwrap();
            let own = open_directory(&output, 64);
            let theirs = open_with(&output, 64, SessionOptions { own_operators: false, ..OPTIONS });
            let [own_nodes, their_nodes] = [&own, &theirs].map(products);
            assert_eq!(own_nodes[0] + own_nodes[1], their_nodes[1], "{}", case.name);
            assert_eq!(their_nodes[0], 0, "{}", case.name);
            replaced += own_nodes[0];
            let [own, theirs] = [own, theirs].map(|mut timeline| {
                let logits = timeline.forward_all(&case.prompt).unwrap();
                let errors: Vec<f32> = logits.iter().zip(&case.merged).map(|(a, b)| a - b).collect();
                size(&errors) / size(&case.merged)
            });
            assert!(own <= theirs * 1.05, "{} at {block_size}: {own}, ONNX Runtime {theirs}", case.name);
        }
    }
    assert!(replaced > 100, "only {replaced} nodes were ours");
}

/// Products with quantized weights: by our operator, by ONNX Runtime's.
fn products(timeline: &Timeline) -> [usize; 2] {
    let [four, theirs] = nodes(timeline, ["MatMulInt4", "MatMulNBits"]);
    [four + nodes(timeline, ["MatMulInt8", ""])[0], theirs]
}

fn nodes(timeline: &Timeline, operators: [&str; 2]) -> [usize; 2] {
    let placement = timeline.model().session().placement().unwrap();
    operators.map(|operator| placement.values().filter_map(|operators| operators.get(operator)).sum())
}

#[test]
fn the_number_of_threads_does_not_change_the_logits() {
    let ways = [(4, 4), (1, 1), (2, 3), (3, 2)].map(|(decode, prefill)| Threads { decode, prefill });
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model");
        let weights = Storage { format: WeightFormat::Int4, ..Storage::default() };
        export(&Options { weights, ..Options::new(case.merged_source(), output.clone()) }, &()).unwrap();
        let logits = ways.map(|threads| {
            let mut model =
                Model::open(runtime(), &output, SessionOptions { threads: 4, ..OPTIONS }).unwrap();
            model.set_threads(threads);
            assert_eq!(model.session().threads(), Some(threads), "{}", case.name);
            let options = TimelineOptions { chunk: 64, ..TimelineOptions::default() };
            fed_in_pieces(&mut Timeline::new(model, options).unwrap(), &case)
        });
        assert!(logits.iter().all(|some| *some == logits[0]), "{}", case.name);
        let mut warm = open_with(&output, 64, SessionOptions { threads: 4, ..OPTIONS });
        warm.warm_up().unwrap();
        let learned = warm.model().session().threads().unwrap();
        assert!([learned.decode, learned.prefill].iter().all(|n| (1..=4).contains(n)), "{learned:?}");
        assert_eq!(fed_in_pieces(&mut warm, &case), logits[0], "{}, {learned:?}", case.name);
        // ONNX Runtime's operator has no setting for it.
        let theirs = open_with(&output, 64, SessionOptions { own_operators: false, ..OPTIONS });
        assert_eq!(theirs.model().session().threads(), None);
    }
}

/// Logits of the prompt, which is fed in pieces of several lengths: a prompt, guesses, single tokens.
fn fed_in_pieces(timeline: &mut Timeline, case: &Case) -> Vec<f32> {
    let (first, rest) = case.prompt.split_at(case.prompt.len() / 2);
    let (guesses, single) = rest.split_at(rest.len() / 2);
    let mut logits = timeline.forward_all(first).unwrap();
    logits.extend(timeline.forward_all(guesses).unwrap());
    for token in single {
        logits.extend_from_slice(timeline.forward(&[*token]).unwrap());
    }
    logits
}

#[test]
fn own_attention_matches_onnx_runtimes_and_stays_close_with_a_smaller_cache() {
    // Shares of the logits' own size.
    let closeness = [(CacheChoice::Auto, 1e-5), (CacheChoice::Float16, 2e-3), (CacheChoice::Int8, 0.05)];
    let mut seen = BTreeMap::new();
    for case in cases() {
        for layout in [Layout::Eka, Layout::Genai] {
            let dir = tempfile::tempdir().unwrap();
            let output = dir.path().join("model");
            export(&Options { layout, ..Options::new(case.merged_source(), output.clone()) }, &()).unwrap();
            let mut theirs = open_with(&output, 64, SessionOptions { own_operators: false, ..OPTIONS });
            let expected = fed_in_pieces(&mut theirs, &case);
            for (cache, max) in closeness {
                let mut own = open_with(&output, 64, SessionOptions { cache, ..OPTIONS });
                let [ours, others] = nodes(&own, ["Attention", "GroupQueryAttention"]);
                let layers = own.model().manifest().dims.layers;
                assert_eq!([ours, others], [layers, 0], "{}", case.name);
                let logits = fed_in_pieces(&mut own, &case);
                let errors: Vec<f32> = logits.iter().zip(&expected).map(|(a, b)| a - b).collect();
                let off = size(&errors) / size(&expected);
                assert!(off <= max, "{} with {cache}: {off}", case.name);
                seen.insert((case.name.clone(), cache.to_string()), off);
            }
        }
    }
    println!("{seen:.6?}");
}

/// Root of the mean square.
fn size(values: &[f32]) -> f32 {
    let square: f32 = values.iter().map(|x| x * x).sum();
    (square / values.len() as f32).sqrt()
}
