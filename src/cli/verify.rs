//! `eka verify`: compares a model's logits and greedy continuation with those of a reference implementation.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use super::{
    engine_args::EngineArgs,
    exit::{Exit, WithExit},
    logits::Difference,
    output::{self, ERROR, GOOD, OutputFlags},
};
use crate::{
    engine::{Forward, Sampler, Timeline},
    job::Sampling,
};

/// Compare a model's logits and greedy answer with a reference
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model directory written by `eka export`
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,

    /// Reference: `input_ids` int64 [T], logits float32 [T, V], greedy int64 [N], as a safetensors file
    #[arg(value_name = "EXPECTED.safetensors")]
    expected: PathBuf,

    /// Name of the logits to compare with: [T, V], or [V] for only the last position
    #[arg(long, value_name = "NAME", default_value = "logits_merged")]
    logits: String,

    /// Name of the greedy continuation to compare with, if the reference has one
    #[arg(long, value_name = "NAME", default_value = "greedy_merged")]
    greedy: String,

    /// Largest absolute difference of a logit that passes
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    atol: f32,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    pub(super) output: OutputFlags,
}

/// Compares and prints. Returns whether everything is within the tolerance.
///
/// # Errors
/// When the model or the reference cannot be used.
pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    args.check().with_exit(Exit::Usage)?;
    let reference = Reference::read(args).with_exit(Exit::Usage)?;
    let device = args.engine.device()?;
    let mut timeline = args.engine.open_on(&device, &args.model)?;
    let vocabulary = timeline.vocabulary();
    ensure!(
        reference.vocabulary == vocabulary,
        "{:?} has {} logits per position, but the model has {vocabulary}; use a reference of this model",
        args.logits,
        reference.vocabulary
    );
    let logits = timeline.forward_all(&reference.input_ids)?;
    let difference = compare(&logits, &reference.logits, vocabulary);
    let greedy =
        reference.greedy.as_deref().map(|expected| equal_greedy_tokens(&mut timeline, &reference, expected));
    let greedy = greedy.transpose()?;
    let report = Report::new(args, &difference, greedy);
    if args.output.json {
        output::document(&report)?;
    } else {
        output::result(|out| report.print(args, out))?;
    }
    Ok(report.passed)
}

impl Args {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.atol >= 0.0, "--atol is {}; use 0 or more", self.atol);
        Ok(())
    }
}

/// Values of the reference implementation.
struct Reference {
    input_ids: Vec<u32>,
    logits: Vec<f32>,
    vocabulary: usize,
    greedy: Option<Vec<u32>>,
}

impl Reference {
    fn read(args: &Args) -> anyhow::Result<Self> {
        let path = args.expected.display();
        let bytes = fs::read(&args.expected).with_context(|| format!("cannot read {path}"))?;
        let tensors =
            SafeTensors::deserialize(&bytes).with_context(|| format!("{path} is not a safetensors file"))?;
        let (input_ids, _) = ids(&tensors, "input_ids")?;
        let (logits, shape) = floats(&tensors, &args.logits)?;
        let vocabulary = *shape.last().with_context(|| format!("{:?} is a single number", args.logits))?;
        let rows = logits.len().checked_div(vocabulary).unwrap_or(0);
        ensure!(
            rows == input_ids.len() || rows == 1,
            "{:?} has {rows} positions, input_ids has {}",
            args.logits,
            input_ids.len()
        );
        let greedy = match tensors.tensor(&args.greedy) {
            Ok(_) => Some(ids(&tensors, &args.greedy)?.0),
            Err(_) => None,
        };
        Ok(Self { input_ids, logits, vocabulary, greedy })
    }
}

/// Data and shape of a tensor of type `dtype`.
fn values<'a>(tensors: &'a SafeTensors, name: &str, dtype: Dtype) -> anyhow::Result<(&'a [u8], Vec<usize>)> {
    let Ok(tensor) = tensors.tensor(name) else {
        let mut names = tensors.names();
        names.sort_unstable();
        bail!("the reference has no {name:?}; it has {names:?}");
    };
    ensure!(tensor.dtype() == dtype, "{name:?} is {:?}, expected {dtype:?}", tensor.dtype());
    Ok((tensor.data(), tensor.shape().to_vec()))
}

fn ids(tensors: &SafeTensors, name: &str) -> anyhow::Result<(Vec<u32>, Vec<usize>)> {
    let (bytes, shape) = values(tensors, name, Dtype::I64)?;
    let id = |bytes: &[u8]| {
        let id = i64::from_le_bytes(bytes.try_into()?);
        u32::try_from(id).with_context(|| format!("{name:?} contains {id}, which is not a token id"))
    };
    let ids: Vec<_> = bytes.chunks_exact(8).map(id).collect::<Result<_, _>>()?;
    ensure!(!ids.is_empty(), "{name:?} is empty");
    Ok((ids, shape))
}

fn floats(tensors: &SafeTensors, name: &str) -> anyhow::Result<(Vec<f32>, Vec<usize>)> {
    let (bytes, shape) = values(tensors, name, Dtype::F32)?;
    let float = |bytes: &[u8]| Ok(f32::from_le_bytes(bytes.try_into()?));
    Ok((bytes.chunks_exact(4).map(float).collect::<anyhow::Result<_>>()?, shape))
}

/// Compares the last positions of `found` with `expected`, both `[positions, vocabulary]`.
fn compare(found: &[f32], expected: &[f32], vocabulary: usize) -> Difference {
    let mut difference = Difference::default();
    let positions = found.rchunks_exact(vocabulary).zip(expected.rchunks_exact(vocabulary));
    positions.for_each(|(found, expected)| difference.add(found, expected));
    difference
}

/// Number of tokens of the greedy continuation before the first difference, and their total.
fn equal_greedy_tokens(
    timeline: &mut Timeline,
    reference: &Reference,
    expected: &[u32],
) -> anyhow::Result<(usize, usize)> {
    let sampling = Sampling::greedy();
    let mut sampler = Sampler::new(&sampling, &reference.input_ids);
    timeline.rewind(0);
    let (last, earlier) = reference.input_ids.split_last().context("input_ids is empty")?;
    for chunk in earlier.chunks(timeline.chunk()) {
        timeline.forward(chunk)?;
    }
    let mut next = *last;
    for (same, wanted) in expected.iter().enumerate() {
        match sampler.pick(timeline.forward(&[next])?) {
            Some(token) if token == *wanted => next = token,
            _ => return Ok((same, expected.len())),
        }
    }
    Ok((expected.len(), expected.len()))
}

/// Result of the comparison.
#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a Path,
    reference: &'a Path,
    /// Name of the reference logits.
    logits: &'a str,
    positions: usize,
    /// Null if a logit is NaN.
    max_difference: f32,
    mean_difference: f64,
    atol: f32,
    /// Positions with the same most probable token.
    same_top: usize,
    greedy: Option<Greedy>,
    passed: bool,
}

/// Equal tokens before the first difference, and all tokens of the greedy continuation.
#[derive(Clone, Copy, Debug, Serialize)]
struct Greedy {
    equal: usize,
    tokens: usize,
}

impl<'a> Report<'a> {
    fn new(args: &'a Args, difference: &Difference, greedy: Option<(usize, usize)>) -> Self {
        let is_same = greedy.is_none_or(|(equal, tokens)| equal == tokens);
        Self {
            model: &args.model,
            reference: &args.expected,
            logits: &args.logits,
            positions: difference.positions,
            max_difference: difference.max,
            mean_difference: difference.mean(),
            atol: args.atol,
            same_top: difference.same_top,
            greedy: greedy.map(|(equal, tokens)| Greedy { equal, tokens }),
            passed: difference.max <= args.atol && is_same,
        }
    }

    fn print(&self, args: &Args, out: &mut dyn Write) -> io::Result<()> {
        let Self { model, reference, logits, positions, max_difference: max, atol, same_top, .. } = self;
        writeln!(out, "{} against {logits:?} of {}", model.display(), reference.display())?;
        let (verdict, style) = if max <= atol { ("within", GOOD) } else { ("BEYOND", ERROR) };
        writeln!(out, "  max  |difference|  {max:.3e}   {style}{verdict}{style:#} {atol:.0e}")?;
        writeln!(out, "  mean |difference|  {:.3e}", self.mean_difference)?;
        writeln!(out, "  same most probable token at {same_top} of {positions} positions")?;
        match self.greedy {
            None => writeln!(out, "  no {:?} to compare the greedy continuation with", args.greedy),
            Some(Greedy { equal, tokens }) => {
                writeln!(out, "  greedy continuation: {equal} of {tokens} tokens equal")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_positions_are_compared() {
        let difference = compare(&[9.0, 9.0, 1.0, 2.0, 3.0, 1.0], &[1.0, 2.5, 3.0, 4.0], 2);
        assert_eq!((difference.positions, difference.max, difference.same_top), (2, 3.0, 1));
    }
}
