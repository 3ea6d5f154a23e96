//! Logits and answers of the device against transformers and the CPU.

use std::{fs, ops::ControlFlow, path::Path};

use eka::{
    engine::{self, Forward, Speculation, Step, Timeline, TimelineOptions},
    job::{Job, JobId},
    manifest::Dtype,
    model::Model,
    units::Bytes,
};
use serde_json::Value;

use crate::{Setup, session, soak::BenchResult, table::Table};

/// Maximum difference of logits between half and single precision. The demo's logits are within ±30.
const TOLERANCE: f64 = 0.15;

pub(crate) fn run(setup: &Setup, table: &mut Table) -> BenchResult<()> {
    for fixture in ["llama", "llama3-rope-rslora"] {
        verify(setup, table, fixture)?;
    }
    let types: &[Dtype] = if setup.is_gpu() { &[Dtype::Float16, Dtype::Bfloat16] } else { &[Dtype::Float32] };
    for &dtype in types {
        prompts(setup, table, dtype)?;
    }
    ways(setup, table)
}

/// One text read in every way: in chunks, token by token (whose steps are captured on a GPU), the same after
/// memory was trimmed and steps had to be captured again, and from the middle on after a rewind.
fn ways(setup: &Setup, table: &mut Table) -> BenchResult<()> {
    let mut timeline = setup.open(&setup.demo(setup.dtype())?, Bytes(0))?;
    let vocabulary = timeline.vocabulary();
    let text: Vec<u32> = expected_answers(setup)?.0.iter().flat_map(PromptAnswer::text).take(300).collect();
    let chunks = logits(&mut timeline, &text)?;
    let steps = stepped(&mut timeline, &text)?;
    timeline.clear();
    timeline.trim(Bytes(0));
    let again = stepped(&mut timeline, &text)?;
    let half = text.len() / 2;
    timeline.rewind(half);
    let rest = timeline.forward(&text[half..])?.to_vec();
    let last = &chunks[chunks.len() - vocabulary..];
    for (name, here, there) in [
        ("token by token against chunks", &steps[..], &chunks[..]),
        ("the same after a trim", &again, &steps),
        ("half of it read again after a rewind", &rest, last),
    ] {
        let max = here.iter().zip(there).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        let met = here.len() == there.len() && max <= TOLERANCE;
        table.check(
            &format!("logits of {} tokens, {name}", text.len()),
            "within 0.15",
            &format!("{max:.2e} at most"),
            met,
        );
    }
    Ok(())
}

fn stepped(timeline: &mut Timeline, text: &[u32]) -> BenchResult<Vec<f32>> {
    timeline.rewind(0);
    let mut all = Vec::new();
    for token in text {
        all.extend_from_slice(timeline.forward(&[*token])?);
    }
    Ok(all)
}

/// One of the ten prompts, and its greedy answer in single precision.
struct PromptAnswer {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl PromptAnswer {
    fn text(&self) -> Vec<u32> {
        [&*self.prompt, &self.answer].concat()
    }
}

/// The ten prompts, and the tokens that end an answer.
fn expected_answers(setup: &Setup) -> BenchResult<(Vec<PromptAnswer>, Vec<u32>)> {
    let file = fs::read(setup.root.join("tests/fixtures/demo/expected.json"))?;
    let document: Value = serde_json::from_slice(&file)?;
    let entries = document["prompts"].as_array().ok_or("no prompts")?;
    let one = |entry: &Value| PromptAnswer {
        prompt: ids(&entry["prompt_ids"]),
        answer: ids(&entry["merged"]["ids"]),
    };
    Ok((entries.iter().map(one).collect(), ids(&document["stop_ids"])))
}

fn verify(setup: &Setup, table: &mut Table, fixture: &str) -> BenchResult<()> {
    let from = setup.root.join("tests/fixtures").join(fixture);
    let dir = setup.export(&from, fixture, &["--dtype", &setup.dtype().to_string()])?;
    let mut command = setup.on_device(&["verify", "--json"]);
    command.arg("--atol").arg(TOLERANCE.to_string()).arg(&dir).arg(from.join("expected.safetensors"));
    let output = command.output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let found = format!(
        "logits differ by {:.2e} at most, greedy {}",
        report["max_difference"].as_f64().unwrap_or(f64::NAN),
        report["greedy"]
    );
    let bar = format!("within {TOLERANCE}");
    table.check(&format!("{fixture} against transformers"), &bar, &found, report["passed"] == true);
    Ok(())
}

/// The ten prompts: logits beside those of the CPU in single precision, and the greedy answers.
fn prompts(setup: &Setup, table: &mut Table, dtype: Dtype) -> BenchResult<()> {
    let mut device = setup.open(&setup.demo(dtype)?, Bytes(0))?;
    let mut single = on_cpu(setup, &setup.demo(Dtype::Float32)?)?;
    let (prompts, ends) = expected_answers(setup)?;
    let (mut same, mut max, mut squares, mut count) = (0, 0f32, 0f64, 0usize);
    for one in &prompts {
        let text = one.text();
        let (here, there) = (logits(&mut device, &text)?, logits(&mut single, &text)?);
        for (here, there) in here.iter().zip(&there) {
            max = max.max((here - there).abs());
            squares += f64::from(here - there).powi(2);
        }
        count += there.len();
        let said = answer(&mut device, one.prompt.clone(), &ends, one.answer.len())?;
        same += usize::from(one.answer.starts_with(&said) && said.len() + 1 >= one.answer.len());
    }
    let all = prompts.len();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rms = (squares / count.max(1) as f64).sqrt();
    let found = format!("{same} of {all}");
    table.check(
        &format!("greedy answers to the ten prompts in {dtype}"),
        "all as on the CPU",
        &found,
        same == all,
    );
    let found = format!("{max:.3} at most, {rms:.4} rms");
    table.info(&format!("logits of those, {dtype} against float32 on the CPU"), &found);
    Ok(())
}

fn on_cpu(setup: &Setup, dir: &Path) -> BenchResult<Timeline> {
    let model = Model::open(setup.device.runtime(), dir, session(false))?;
    Ok(Timeline::new(model, TimelineOptions::default())?)
}

fn ids(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().into_iter().flatten().filter_map(Value::as_u64);
    numbers.filter_map(|id| u32::try_from(id).ok()).collect()
}

fn logits(timeline: &mut Timeline, tokens: &[u32]) -> BenchResult<Vec<f32>> {
    timeline.rewind(0);
    Ok(timeline.forward_all(tokens)?)
}

fn answer(timeline: &mut Timeline, prompt: Vec<u32>, ends: &[u32], max: usize) -> BenchResult<Vec<u32>> {
    let job = Job { end_tokens: ends.to_vec(), ..Job::new(JobId(0), prompt, max) };
    let mut said = Vec::new();
    engine::generate(timeline, &job, None, &mut Speculation::new(), |step| {
        if let Step::Token(id) = step {
            said.push(id);
        }
        ControlFlow::Continue(())
    })?;
    Ok(said)
}
