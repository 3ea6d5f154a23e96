//! The same tokens give the same bits, whatever they are computed beside: in chunks of any length, on any number of threads,
//! with drafts, and continued by another worker. The same seed gives the same text.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use eka::{
    device::SessionOptions,
    device_spec::CacheChoice,
    engine::{self, Forward, Speculation, Step, Timeline, TimelineOptions},
    export::{BlockSize, Layout, Options, Source, Storage, WeightFormat, ZeroPoints, export},
    job::{Job, LogprobOptions},
    manifest::Dtype,
    model::Model,
};
use serde_json::{Value, json};

use crate::support::{
    decoding::{assert_same, jobs, timeline},
    models::{OPTIONS, export_long, long_model, open_with, runtime},
    program::{Program, root},
    server::events,
};

/// Tokens of a sequence: longer than the widest chunk, and longer than a span of attention.
const LENGTH: usize = 600;

/// How the weights of an export are stored.
struct Weights {
    name: &'static str,
    storage: Storage,
    dtype: Dtype,
}

fn weights() -> [Weights; 6] {
    let stored = |format, zero_points, block_size: &str| Storage {
        format,
        zero_points,
        block_size: block_size.parse::<BlockSize>().unwrap(),
        ..Storage::default()
    };
    let of = |name, storage, dtype| Weights { name, storage, dtype };
    [
        of("float32", Storage::default(), Dtype::Float32),
        of("float16", Storage::default(), Dtype::Float16),
        of("int8", stored(WeightFormat::Int8, ZeroPoints::Middle, "32"), Dtype::Float32),
        of("int4", stored(WeightFormat::Int4, ZeroPoints::Middle, "64"), Dtype::Float32),
        of("int8 with zero points", stored(WeightFormat::Int8, ZeroPoints::PerBlock, "64"), Dtype::Float32),
        of("int4 with zero points", stored(WeightFormat::Int4, ZeroPoints::PerBlock, "32"), Dtype::Float32),
    ]
}

/// Sizes that are multiples of nothing, so that every operator has rows which begin in the middle of a vector.
fn odd_model(activation: &str) -> Value {
    json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": activation,
        "hidden_size": 74,
        "intermediate_size": 154,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 48,
        "vocab_size": 333,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2
    })
}

/// The configurations of all fixtures, and of models with odd sizes.
fn configurations(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut fixtures: Vec<PathBuf> = fs::read_dir(root().join("tests/fixtures/models"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("base/config.json"))
        .collect();
    fixtures.sort();
    let named = |path: PathBuf| {
        let name = path.iter().rev().nth(2).unwrap().to_str().unwrap().to_owned();
        (name, path)
    };
    let mut all: Vec<(String, PathBuf)> = fixtures.into_iter().map(named).collect();
    for activation in ["silu", "gelu", "gelu_pytorch_tanh", "relu"] {
        let path = dir.join(format!("{activation}.json"));
        fs::write(&path, odd_model(activation).to_string()).unwrap();
        all.push((format!("odd sizes with {activation}"), path));
    }
    all
}

fn exported(config: &Path, weights: &Weights, output: &Path) {
    let source = Source::Random { config: config.into(), seed: 11 };
    let options = Options {
        weights: weights.storage.clone(),
        dtype: weights.dtype,
        layout: Layout::Eka,
        ..Options::new(source, output.into())
    };
    export(&options, &()).unwrap();
}

fn tokens(timeline: &Timeline) -> Vec<u32> {
    let vocabulary = u32::try_from(timeline.vocabulary()).unwrap();
    let mut state = 12_345u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    (0..LENGTH.min(timeline.capacity())).map(next).collect()
}

/// Where two runs first differ, and by how much they do at most.
fn difference(a: &[f32], b: &[f32], vocabulary: usize) -> Option<String> {
    assert_eq!(a.len(), b.len());
    let first = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits())?;
    let most = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    Some(format!("first at position {} (logit {}), at most {most}", first / vocabulary, first % vocabulary))
}

fn options(threads: usize, cache: CacheChoice) -> SessionOptions {
    SessionOptions { threads, cache, ..OPTIONS }
}

/// Logits of `tokens` in passes of `chunk`.
fn in_chunks(dir: &Path, chunk: usize, options: SessionOptions) -> Vec<f32> {
    let mut timeline = open_with(dir, chunk, options);
    let tokens = tokens(&timeline);
    if chunk > 1 {
        return timeline.forward_all(&tokens).unwrap();
    }
    tokens.iter().flat_map(|token| timeline.forward(&[*token]).unwrap().to_vec()).collect()
}

#[test]
fn chunks_and_threads_do_not_change_a_bit_of_the_logits() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, config) in configurations(dir.path()) {
        for weights in weights() {
            let output = dir.path().join(format!("{name} {}", weights.name));
            exported(&config, &weights, &output);
            let vocabulary = open_with(&output, 1, OPTIONS).vocabulary();
            let expected = in_chunks(&output, 1, options(1, CacheChoice::Auto));
            for (chunk, threads) in [(7, 1), (64, 2), (512, 3), (1, 3), (512, 1)] {
                let logits = in_chunks(&output, chunk, options(threads, CacheChoice::Auto));
                if let Some(difference) = difference(&logits, &expected, vocabulary) {
                    wrong.push(format!(
                        "{name}, {}, chunks of {chunk}, {threads} threads: {difference}",
                        weights.name
                    ));
                }
            }
            fs::remove_dir_all(&output).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_graph_that_eka_writes_is_row_invariant_with_its_own_operators_only() {
    let dir = tempfile::tempdir().unwrap();
    for (name, config) in configurations(dir.path()) {
        for weights in weights() {
            let output = dir.path().join(format!("{name} {}", weights.name));
            exported(&config, &weights, &output);
            let is_invariant = |own_operators| {
                let options = SessionOptions { own_operators, ..OPTIONS };
                Model::open(runtime(), &output, options).unwrap().is_row_invariant()
            };
            assert!(is_invariant(true) && !is_invariant(false), "{name}, {}", weights.name);
            fs::remove_dir_all(&output).unwrap();
        }
    }
}

fn steps(timeline: &mut Timeline, job: &Job, speculation: &mut Speculation<Timeline>) -> Vec<Step> {
    let mut said = Vec::new();
    engine::generate(timeline, job, None, speculation, |step| {
        if !matches!(step, Step::Progress { .. }) {
            said.push(step);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    said
}

#[test]
fn drafts_and_resumed_answers_do_not_change_a_bit_with_any_weights() {
    for format in [WeightFormat::Full, WeightFormat::Int8, WeightFormat::Int4] {
        let dir = match format {
            WeightFormat::Full => long_model().to_path_buf(),
            _ => export_long(&format!("long-{format}"), |options| Options {
                weights: Storage { format, ..Storage::default() },
                ..options
            }),
        };
        let (mut guessing, mut plain) = (timeline(&dir, 7), timeline(&dir, 0));
        for job in jobs() {
            let job = Job {
                logprobs: job.logprobs.or(Some(LogprobOptions { top: 1, ..LogprobOptions::default() })),
                ..job
            };
            let expected = steps(&mut plain, &job, &mut Speculation::new());
            assert_same(&steps(&mut guessing, &job, &mut Speculation::eager()), &expected, &job);
            let tokens: Vec<u32> = expected
                .iter()
                .filter_map(|step| if let Step::Token(token) = step { Some(*token) } else { None })
                .collect();
            let answer = tokens[..tokens.len() / 2].to_vec();
            let rest = 2 * (tokens.len() - answer.len());
            let resumed = Job { answer, ..job };
            let said = steps(&mut guessing, &resumed, &mut Speculation::eager());
            assert_same(&said[said.len() - rest..], &expected[expected.len() - rest..], &resumed);
        }
    }
}

#[test]
fn an_exact_model_whose_passes_matter_has_neither_drafts_nor_kept_prompts() {
    let open = |own_operators| {
        let options = SessionOptions { own_operators, ..OPTIONS };
        let model = Model::open(runtime(), long_model(), options).unwrap();
        let prefixes = eka::units::Bytes::mib(4);
        let options =
            TimelineOptions { chunk: 48, drafts: 7, exact: true, prefixes, ..TimelineOptions::default() };
        Timeline::new(model, options).unwrap()
    };
    let (own, theirs) = (open(true), open(false));
    assert_eq!((own.rows(), own.answer_chunk()), (8, 48));
    assert_eq!((theirs.rows(), theirs.answer_chunk()), (1, 1));
    for (mut timeline, is_kept) in [(own, true), (theirs, false)] {
        let job = jobs().nth(3).unwrap();
        let prompt = [7; 60].to_vec();
        let job = Job { prompt, answer: Vec::new(), logprobs: None, ..job };
        let mut cached = [0, 0];
        for cached in &mut cached {
            let outcome = engine::generate(&mut timeline, &job, None, &mut Speculation::new(), |_| {
                ControlFlow::Continue(())
            });
            *cached = outcome.unwrap().usage.cached_tokens;
            timeline.settle(true);
        }
        assert_eq!((cached[0], cached[1] > 0), (0, is_kept));
    }
}

/// The text of a streamed completion.
async fn streamed(program: &Program, request: &Value) -> String {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let stream = program.post("/v1/completions", &request).send().await.unwrap().text().await.unwrap();
    let (documents, is_done) = events(&stream);
    assert!(is_done, "{stream}");
    let texts = documents.iter().filter_map(|document| document["choices"][0]["text"].as_str());
    texts.collect()
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text_on_every_route_streamed_or_whole_and_as_one_of_several_choices() {
    let program = Program::start(&[]).await;
    let request = |seed: u64| {
        json!({
            "model": "demo", "prompt": "Once upon a time", "max_tokens": 24, "seed": seed,
            "temperature": 1.3, "top_p": 0.95, "top_k": 60, "ignore_eos": true,
        })
    };
    let text = |answer: &Value, choice: usize| answer["choices"][choice]["text"].as_str().unwrap().to_owned();
    let mut alone = Vec::new();
    for seed in 40..43 {
        let (status, answer) = program.ask("/v1/completions", &request(seed)).await;
        assert_eq!(status, 200, "{answer}");
        alone.push(text(&answer, 0));
        assert_eq!(streamed(&program, &request(seed)).await, *alone.last().unwrap());
        let mut own = request(seed);
        own["max_new_tokens"] = own["max_tokens"].take();
        own.as_object_mut().unwrap().retain(|field, _| field != "max_tokens" && field != "model");
        let (status, answer) = program.ask("/generate-lite", &own).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["text"], json!(alone.last().unwrap()));
    }
    assert!(alone[0] != alone[1] && alone[1] != alone[2], "{alone:?}");
    let mut several = request(40);
    several["n"] = json!(3);
    let (status, answer) = program.ask("/v1/completions", &several).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!([0, 1, 2].map(|choice| text(&answer, choice)).to_vec(), alone);
}
