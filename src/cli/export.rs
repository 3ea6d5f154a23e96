//! `eka export`: converts a checkpoint and its adapters to a model directory.

use std::{
    io::{self, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::{
    calibration_text::{CalibrationInput, CalibrationSource},
    engine_args::EngineArgs,
    export_report::{Figures, Reporter},
    float_export::FloatExport,
    output::{self, OutputFlags},
    progress::{Bars, CalibrationBar},
};
use crate::{
    calibration::{self, Limits},
    device::Device,
    export::{
        self, AdapterSource, BitBudget, BlockSize, Calibration, Existing, Keep, Layout, ObservedModel,
        Options, Report, Source, Storage, WeightFormat, ZeroPoints,
    },
    manifest::{Dtype, Manifest},
    text::Text,
    units::Bytes,
};

/// Convert a checkpoint and its LoRA adapters to a model directory
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint directory in Hugging Face's layout (config.json, weights, tokenizer), or a GGUF file
    #[arg(long, value_name = "DIR_OR_GGUF", required_unless_present = "random_weights")]
    base: Option<PathBuf>,

    /// PEFT adapter directory to merge, or a GGUF file with a LoRA adapter. Can be repeated; the weight changes of
    /// each adapter are multiplied by its WEIGHT
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]", requires = "base", value_parser = parse_adapter)]
    adapters: Vec<AdapterSource>,

    /// Factor for the weight changes of all adapters, like PEFT's set_scale: applied before DoRA's magnitudes, and not to
    /// modules that an adapter replaces
    #[arg(long, value_name = "FACTOR", default_value = "1", requires = "adapters", value_parser = parse_factor)]
    #[arg(allow_negative_numbers = true)]
    adapter_scale: f32,

    /// Model directory to create; its name becomes the model's id
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Weight format
    #[arg(long, value_enum, default_value_t)]
    quantize: WeightFormat,

    /// Bits per weight of the whole file, from 4 to 9: as many modules as fit have eight bits, the most sensitive first, and the others
    /// four with zero points
    #[arg(long, value_name = "BITS", conflicts_with = "quantize")]
    bits: Option<BitBudget>,

    /// Data type of computation and unquantized weights: float32 for a CPU, the others for a GPU
    #[arg(long, value_enum, default_value_t)]
    dtype: Float,

    /// Compatibility with other runtimes
    #[arg(long, value_enum, default_value_t)]
    layout: LayoutName,

    /// Context length, if shorter than the model's
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<NonZeroUsize>,

    /// Number of weights that share a scale: 32, 64 or 128
    #[arg(long, value_name = "WEIGHTS", default_value = "32")]
    block_size: BlockSize,

    /// Store a zero point per block (asymmetric quantization): more accurate, and slightly larger
    #[arg(long)]
    zero_points: bool,

    /// Format of some modules, such as lm_head=int8 or layers.0.*=none. PATTERN is a module's name in the checkpoint or its end
    /// after a dot, with * as a wildcard; FORMAT is none, int8 or int4. Can be repeated; the last match wins. A head that is
    /// tied to the embedding shares its matrix and format: with int4 it is int8 unless set here
    #[arg(long, value_name = "PATTERN=FORMAT")]
    keep: Vec<Keep>,

    /// Calibrate int4 weights on a text: a text file, a .jsonl file with a conversation {"messages": [...]} in each line, or auto for a
    /// built-in text in many languages. Rounding then costs the least where the model is used
    #[arg(long, value_name = "TEXT|JSONL|auto", conflicts_with = "random_weights")]
    calibrate: Option<CalibrationSource>,

    /// Number of tokens of the calibration text that the model processes
    #[arg(long, value_name = "TOKENS", default_value = "20000", requires = "calibrate")]
    calibration_tokens: NonZeroUsize,

    /// Compare the export with a float32 export on this text: logits, divergence, perplexity
    #[arg(long, value_name = "TEXT_FILE", conflicts_with = "random_weights")]
    report: Option<PathBuf>,

    /// Replace the output directory if it is a model directory
    #[arg(long)]
    force: bool,

    /// Generate random weights for this config.json, for speed measurements
    #[arg(long, value_name = "CONFIG", conflicts_with = "base")]
    random_weights: Option<PathBuf>,

    /// Seed of the random weights
    #[arg(long, default_value_t = 0, requires = "random_weights")]
    seed: u64,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    pub(super) output: OutputFlags,
}

/// Compatibility of the graph.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LayoutName {
    /// Only eka: the smallest graph
    #[default]
    Eka,
    /// onnxruntime-genai too
    Genai,
}

impl From<LayoutName> for Layout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Eka => Self::Eka,
            LayoutName::Genai => Self::Genai,
        }
    }
}

/// Data type of computation.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Float {
    #[default]
    Float32,
    Float16,
    Bfloat16,
}

impl From<Float> for Dtype {
    fn from(float: Float) -> Self {
        match float {
            Float::Float32 => Self::Float32,
            Float::Float16 => Self::Float16,
            Float::Bfloat16 => Self::Bfloat16,
        }
    }
}

/// Exports and prints a summary.
///
/// # Errors
/// When the export fails.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut options = args.options();
    ensure!(
        args.calibrate.is_none() || args.quantize == WeightFormat::Int4 || args.bits.is_some(),
        "--calibrate changes how int4 weights are rounded; add --quantize int4 or --bits"
    );
    let input = args.calibrate.as_ref().map(CalibrationInput::read).transpose()?;
    // A process opens its device once.
    let device = (args.report.is_some() || input.is_some()).then(|| args.engine.device()).transpose()?;
    let reporter = args.report.as_deref().zip(device.as_ref());
    let reporter = reporter.map(|(path, device)| Reporter::new(path, &args.engine, device)).transpose()?;
    let started = Instant::now();
    if device.is_some() {
        // What is wrong with the options is known before minutes of work.
        export::check(&options)?;
    }
    let float = device.is_some().then(|| FloatExport::new(&options)).transpose()?;
    if let (Some(input), Some(float), Some(device)) = (&input, &float, &device) {
        options.calibration = Some(Arc::new(args.calibrate(input, (float, device), &options)?));
    }
    let report = export::export(&options, &Bars::until_signal()?)?;
    let summary = Summary::new(&report, started.elapsed());
    let compare = || match (&reporter, &float) {
        (Some(reporter), Some(float)) => reporter.compare(&options.output, float.path()).map(Some),
        _ => Ok(None),
    };
    if args.output.json {
        let comparison = compare()?.map(|found| found.figures());
        return output::document(&Summary { comparison, ..summary });
    }
    output::result(|out| summary.print(out))?;
    if let Some(comparison) = compare()? {
        output::result(|out| comparison.print(out))?;
    }
    Ok(())
}

/// Summary of an export.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    output: &'a Path,
    parameters: u64,
    weight_bytes: u64,
    /// How many of them an earlier run had written, which was killed.
    continued_bytes: u64,
    bits_per_weight: f64,
    seconds: f64,
    /// Peak resident memory of this process.
    peak_memory_bytes: Option<u64>,
    /// Modules with another format.
    kept: Vec<String>,
    /// Tensors of the sources that the graph does not use.
    skipped: &'a [String],
    notes: &'a [String],
    has_tokenizer: bool,
    /// Only with `--report`.
    comparison: Option<Figures>,
}

/// Memory for the Gram matrices of a calibration.
const CALIBRATION_MEMORY: Bytes = Bytes::mib(1024);

impl Args {
    /// Runs the float32 export over the calibration text.
    fn calibrate(
        &self,
        input: &CalibrationInput,
        (float, device): (&FloatExport, &Device),
        options: &Options,
    ) -> anyhow::Result<Calibration> {
        let text = Text::open(float.path(), "calibration")?;
        let context_length = Manifest::read(float.path())?.context_length;
        let text = input.tokenize(&text, (self.calibration_tokens.get(), context_length))?;
        let model = ObservedModel::new(options)?;
        let limits = Limits { threads: self.engine.threads(), memory: CALIBRATION_MEMORY };
        let bar = CalibrationBar::new(text.record.tokens);
        let dir = float.path().parent().unwrap_or(float.path());
        let file =
            tempfile::tempfile_in(dir).context("cannot create a temporary file for the calibration")?;
        let source = (device.runtime(), float.path());
        Ok(calibration::calibrate(source, &model, &text, (file, limits), &mut |share| bar.advance(share))?)
    }

    fn options(&self) -> Options {
        let scaled = |adapter: &AdapterSource| AdapterSource {
            dir: adapter.dir.clone(),
            weight: adapter.weight * self.adapter_scale,
        };
        let adapters = self.adapters.iter().map(scaled).collect();
        let source = match (&self.base, &self.random_weights) {
            (Some(base), _) => Source::Checkpoint { base: base.clone(), adapters },
            (None, config) => Source::Random { config: config.clone().unwrap_or_default(), seed: self.seed },
        };
        let weights = Storage {
            format: self.quantize,
            block_size: self.block_size,
            zero_points: if self.zero_points { ZeroPoints::PerBlock } else { ZeroPoints::Middle },
            bits: self.bits,
            keep: self.keep.clone(),
            ..Storage::default()
        };
        let existing = if self.force { Existing::Replace } else { Existing::Keep };
        Options {
            source,
            weights,
            dtype: self.dtype.into(),
            layout: self.layout.into(),
            context_length: self.context_length,
            calibration: None,
            output: self.out.clone(),
            existing,
        }
    }
}

/// A directory, or a directory, `=` and a weight. An existing directory may contain `=` itself.
#[expect(clippy::unnecessary_wraps, reason = "clap takes parsers that may fail")]
fn parse_adapter(text: &str) -> Result<AdapterSource, String> {
    let whole = AdapterSource { dir: text.into(), weight: 1.0 };
    if whole.dir.is_dir() {
        return Ok(whole);
    }
    let weighted = text.rsplit_once('=').and_then(|(dir, weight)| {
        Some(AdapterSource { dir: dir.into(), weight: parse_factor(weight).ok()? })
    });
    Ok(weighted.unwrap_or(whole))
}

fn parse_factor(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|factor: &f32| factor.is_finite())
        .ok_or_else(|| "expected a finite number".into())
}

impl<'a> Summary<'a> {
    fn new(report: &'a Report, time: Duration) -> Self {
        Self {
            output: &report.output,
            parameters: report.parameters,
            weight_bytes: report.weight_bytes.0,
            continued_bytes: report.continued.0,
            bits_per_weight: report.bits_per_weight(),
            seconds: time.as_secs_f64(),
            peak_memory_bytes: peak_memory().map(|peak| peak.0),
            kept: report.kept.iter().map(ToString::to_string).collect(),
            skipped: &report.skipped,
            notes: &report.notes,
            has_tokenizer: report.has_tokenizer,
            comparison: None,
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.output.display())?;
        let (millions, weights) = (self.parameters as f64 / 1e6, Bytes(self.weight_bytes));
        writeln!(
            out,
            "  {millions:.1} million parameters, {weights}, {:.2} bits per weight",
            self.bits_per_weight
        )?;
        let peak = self.peak_memory_bytes.map(|peak| format!(", peak memory {}", Bytes(peak)));
        writeln!(out, "  in {:.1} s{}", self.seconds, peak.unwrap_or_default())?;
        if self.continued_bytes > 0 {
            let continued = Bytes(self.continued_bytes);
            writeln!(
                out,
                "  continued: an earlier export, which was killed, had written {continued} of the weights"
            )?;
        }
        if !self.kept.is_empty() {
            writeln!(out, "  other formats: {}", self.kept.join(", "))?;
        }
        if !self.skipped.is_empty() {
            let shown = 4.min(self.skipped.len());
            let more = self.skipped.len() - shown;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            writeln!(out, "  not used by the graph: {}{more}", self.skipped[..shown].join(", "))?;
        }
        for note in self.notes {
            writeln!(out, "  {note}")?;
        }
        if !self.has_tokenizer {
            writeln!(out, "  no tokenizer: this model can be benchmarked, but not served")?;
        }
        Ok(())
    }
}

/// Peak resident memory of this process, on Linux.
fn peak_memory() -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok().map(Bytes::kib)
}
