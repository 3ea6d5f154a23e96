//! `eka inspect`: describes a model directory, its sources and its graph. It only reads, and does not need ONNX Runtime.

use std::{
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::{
    exit::{Exit, WithExit},
    output::{self, OutputFlags},
};
use crate::{
    config::{ConfigArgs, Settings},
    device_spec::{CacheChoice, Verify},
    export::{self, Operator},
    files::{self, ListedFile},
    manifest::{
        AdapterSummary, CalibrationRecord, ExportOptions, FileRecord, Manifest, Quantization, layout,
    },
    model::{self, Scope, expected_cache_shape},
    units::Bytes,
};

/// Largest message of Protocol Buffers.
const MAX_GRAPH: Bytes = Bytes::mib(2048);

/// Describe a model directory, its sources and its graph
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model directory written by `eka export`
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Compute the SHA-256 of every file
    #[arg(long)]
    hash: bool,

    /// Compare every file with the size and SHA-256 in the manifest
    #[arg(long)]
    verify: bool,

    /// Data type of the key-value cache: auto, float32, float16 or int8 [default: the setting engine.kv_cache]
    #[arg(long, value_name = "FORMAT")]
    kv_cache: Option<CacheChoice>,

    #[command(flatten)]
    pub(super) output: OutputFlags,
}

/// Description of a model directory.
#[derive(Debug, Serialize)]
struct Inspection {
    manifest: Manifest,
    files: Vec<FileEntry>,
    /// Size of the weights per parameter.
    bits_per_weight: f64,
    /// Weights that a step of one token reads: of experts only those that a token has.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_bytes_per_token: Option<u64>,
    /// Size of the cache per position, with the configured data type.
    kv_bytes_per_token: u64,
    /// Data type of the cache.
    kv_cache: String,
    operators: Vec<OperatorEntry>,
}

/// A file of the directory.
#[derive(Debug, Serialize)]
struct FileEntry {
    name: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// Only with --verify.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
}

/// Comparison of a file with the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Unchanged,
    Changed,
    Missing,
    NotRecorded,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unchanged => "unchanged",
            Self::Changed => "CHANGED",
            Self::Missing => "MISSING",
            Self::NotRecorded => "not recorded",
        })
    }
}

#[derive(Debug, Serialize)]
struct OperatorEntry {
    operator: String,
    nodes: usize,
}

/// Prints the description.
///
/// # Errors
/// When the directory is not a model directory, or cannot be read.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let cache = stored(args)?;
    let mut inspection = inspect(&args.dir, args.hash || args.verify, cache).with_exit(Exit::Model)?;
    if args.verify {
        compare(&mut inspection);
    }
    if args.output.json {
        output::document(&inspection)?;
    } else {
        output::result(|out| print(out, &args.dir, &inspection))?;
    }
    if args.verify { verified(&args.dir, &inspection).with_exit(Exit::Model) } else { Ok(()) }
}

/// Compares the files with the manifest.
fn compare(inspection: &mut Inspection) {
    let Inspection { manifest, files, .. } = inspection;
    for file in &mut *files {
        let record = manifest.files.iter().find(|record| record.path == file.name);
        file.state = Some(match record {
            None => State::NotRecorded,
            Some(record) if file.sha256.as_ref() == Some(&record.sha256) => State::Unchanged,
            Some(_) => State::Changed,
        });
    }
    let missing = manifest.files.iter().filter(|record| !files.iter().any(|file| file.name == record.path));
    let entry = |record: &FileRecord| FileEntry {
        name: record.path.clone(),
        bytes: record.bytes,
        sha256: None,
        state: Some(State::Missing),
    };
    let missing: Vec<_> = missing.map(entry).collect();
    files.extend(missing);
}

/// Fails if a file differs from the manifest, or the manifest has no hashes.
fn verified(dir: &Path, inspection: &Inspection) -> anyhow::Result<()> {
    model::check_directory(dir, Verify::Size, Scope::Weights)?;
    ensure!(
        !inspection.manifest.files.is_empty(),
        "{}: the manifest has no hashes; export the model again",
        dir.display()
    );
    let is_wrong = |file: &&FileEntry| matches!(file.state, Some(State::Changed | State::Missing));
    let wrong: Vec<&str> = inspection.files.iter().filter(is_wrong).map(|file| &*file.name).collect();
    ensure!(
        wrong.is_empty(),
        "{}: these files differ from the manifest: {}; copy the directory again, or export the model again",
        dir.display(),
        wrong.join(", ")
    );
    Ok(())
}

/// Data type of the key-value cache with eka's own operators; `None` without them.
fn stored(args: &Args) -> anyhow::Result<Option<CacheChoice>> {
    if args.kv_cache.is_some() {
        return Ok(args.kv_cache);
    }
    let engine = Settings::load(&ConfigArgs::default())?.config.engine;
    Ok(engine.own_operators.then_some(engine.kv_cache))
}

fn inspect(dir: &Path, hash: bool, cache: Option<CacheChoice>) -> anyhow::Result<Inspection> {
    let manifest = Manifest::read(dir)?;
    let graph = dir.join(&manifest.graph.file);
    let content = files::read(&graph, MAX_GRAPH).with_context(|| graph.display().to_string())?;
    let operators = export::operators(&content).with_context(|| graph.display().to_string())?;
    let files = files(dir, hash).with_context(|| dir.display().to_string())?;
    let weights = format!("{}.data", manifest.graph.file);
    let weight_bytes = files.iter().find(|file| file.name == weights).map_or(0, |file| file.bytes);
    let shape = expected_cache_shape(dir, &manifest, cache);
    Ok(Inspection {
        bits_per_weight: weight_bytes as f64 * 8.0 / manifest.parameters.max(1) as f64,
        weight_bytes_per_token: model::weights_read(dir, &manifest).map(|bytes| bytes.0),
        kv_bytes_per_token: shape.bytes(1).0,
        kv_cache: shape.kind.to_string(),
        operators: operators.into_iter().map(OperatorEntry::from).collect(),
        manifest,
        files,
    })
}

impl From<Operator> for OperatorEntry {
    fn from(Operator { domain, name, nodes }: Operator) -> Self {
        let operator = if domain.is_empty() { name } else { format!("{domain}.{name}") };
        Self { operator, nodes }
    }
}

/// The files of a model directory, including those in its directory of templates.
fn files(dir: &Path, hash: bool) -> anyhow::Result<Vec<FileEntry>> {
    let mut files = entries(dir, "", hash)?;
    let (templates, _) = layout::TOOL_TEMPLATE.split_once('/').unwrap_or_default();
    if dir.join(templates).is_dir() {
        files.extend(entries(&dir.join(templates), &format!("{templates}/"), hash)?);
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// The files of one directory, whose names begin with `prefix`.
fn entries(dir: &Path, prefix: &str, hash: bool) -> anyhow::Result<Vec<FileEntry>> {
    let entry = |ListedFile { name, path, metadata }| {
        let sha256 = if hash { Some(export::identify(&path)?.sha256) } else { None };
        Ok(FileEntry { name: format!("{prefix}{name}"), bytes: metadata.len(), sha256, state: None })
    };
    files::list(dir)?.into_iter().map(entry).collect()
}

fn print(out: &mut dyn Write, dir: &Path, inspection: &Inspection) -> io::Result<()> {
    writeln!(out, "{}", dir.display())?;
    print_model(out, inspection)?;
    print_origin(out, &inspection.manifest)?;
    writeln!(out, "\nfiles")?;
    let width = inspection.files.iter().map(|file| file.name.len()).max().unwrap_or(0).max(24);
    for FileEntry { name, bytes, sha256, state } in &inspection.files {
        let sha256 = sha256.as_deref().unwrap_or_default();
        let state = state.map(|state| format!("  {state:<12}")).unwrap_or_default();
        let line = format!("  {name:<width$} {:>12}{state}  {sha256}", Bytes(*bytes).to_string());
        writeln!(out, "{}", line.trim_end())?;
    }
    let total: usize = inspection.operators.iter().map(|entry| entry.nodes).sum();
    writeln!(out, "\noperators, {total} nodes")?;
    let width = inspection.operators.iter().map(|entry| entry.operator.len()).max().unwrap_or(0);
    for OperatorEntry { operator, nodes } in &inspection.operators {
        writeln!(out, "  {operator:<width$} {nodes:>6}")?;
    }
    Ok(())
}

fn print_model(out: &mut dyn Write, inspection: &Inspection) -> io::Result<()> {
    let Inspection { manifest, bits_per_weight, kv_bytes_per_token, kv_cache, .. } = inspection;
    let dims = manifest.dims;
    let weights = weights(manifest.quantization.as_ref());
    let others = manifest.overrides.iter();
    let others: String = others
        .map(|other| format!("; {}: {}", other.modules, self::weights(other.quantization.as_ref())))
        .collect();
    let dtype = format!("{:?}", manifest.dtype).to_lowercase();
    let heads = format!("{} of {}, {} of keys and values", dims.heads, dims.head_dim, dims.kv_heads);
    let sizes = format!("{} wide, {} in the MLP", dims.hidden, dims.intermediate);
    for (what, is) in [
        ("architecture", manifest.architecture.clone()),
        ("parameters", format!("{:.1} million", manifest.parameters as f64 / 1e6)),
        ("weights", format!("{weights}, {bits_per_weight:.2} bits per weight{others}")),
        (
            "weights read",
            inspection
                .weight_bytes_per_token
                .map_or("unknown".into(), |bytes| format!("{} per token", Bytes(bytes))),
        ),
        ("data type", dtype),
        ("layers", format!("{}, {sizes}", dims.layers)),
        ("heads", heads),
        ("vocabulary", dims.vocab.to_string()),
        ("context", format!("{} tokens", manifest.context_length)),
        ("KV cache", format!("{} per token, in {kv_cache}", Bytes(*kv_bytes_per_token))),
        ("end tokens", format!("{:?}", manifest.end_tokens)),
    ] {
        writeln!(out, "  {what:<14} {is}")?;
    }
    Ok(())
}

fn weights(quantization: Option<&Quantization>) -> String {
    match quantization {
        Some(Quantization { bits, block_size, zero_points, .. }) => {
            let zero_points = if *zero_points { " with zero points" } else { "" };
            format!("int{bits} in blocks of {block_size}{zero_points}")
        }
        None => "not quantized".into(),
    }
}

/// Options as flags of `eka export`.
fn flags(options: &ExportOptions) -> String {
    let mut flags = match &options.bits {
        Some(bits) => format!("--bits {bits}"),
        None => format!("--quantize {}", options.quantize),
    };
    if let Some(size) = options.block_size {
        flags += &format!(" --block-size {size}");
    }
    if options.zero_points {
        flags += " --zero-points";
    }
    for keep in &options.keep {
        flags += &format!(" --keep {keep}");
    }
    flags +=
        &format!(" --dtype {} --layout {}", format!("{:?}", options.dtype).to_lowercase(), options.layout);
    if let Some(tokens) = options.context_length {
        flags += &format!(" --context-length {tokens}");
    }
    if let Some(seed) = options.random_seed {
        flags += &format!(" --seed {seed}");
    }
    flags
}

fn print_origin(out: &mut dyn Write, manifest: &Manifest) -> io::Result<()> {
    let provenance = &manifest.provenance;
    writeln!(out, "\nexported by {}", provenance.exporter)?;
    if let Some(options) = &provenance.options {
        writeln!(out, "  {}", flags(options))?;
        if let Some(CalibrationRecord { text, sha256, tokens }) = &options.calibration {
            writeln!(out, "  calibrated on {text}, {tokens} tokens, SHA-256 {sha256}")?;
        }
    }
    for adapter in &provenance.adapters {
        let AdapterSummary { weight, rank, alpha, targets, replaced } = adapter;
        write!(out, "  adapter of rank {rank}, alpha {alpha}, times {weight}, on {}", targets.join(", "))?;
        if !replaced.is_empty() {
            write!(out, "; replaces {}", replaced.join(", "))?;
        }
        writeln!(out)?;
    }
    let width = provenance.sources.iter().map(|source| source.path.len()).max().unwrap_or(0);
    for source in &provenance.sources {
        writeln!(
            out,
            "  {:<width$} {:>12}  {}",
            source.path,
            Bytes(source.bytes).to_string(),
            source.sha256
        )?;
    }
    Ok(())
}
