//! `eka inspect`: what a model directory is, what it was made from, and what its graph computes.
//!
//! It only reads, and needs no ONNX Runtime: a directory can be looked at where it could not run.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;

use super::{
    exit::{EndsAs, Exit},
    print::{self, Output},
};
use crate::{
    choice::CacheChoice,
    config::{ConfigArgs, Settings},
    export::{self, Operator},
    manifest::{AdapterSummary, ExportOptions, Manifest, Quantization},
    model::expected_cache_shape,
    units::Bytes,
};

/// Say what a model directory is, what it was made from, and what its graph computes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model directory, as `eka export` writes it
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Compute the SHA-256 of every file in the directory too
    #[arg(long)]
    hash: bool,

    /// What the key-value cache is stored in: auto, float32, float16 or int8 [default: engine.kv_cache of the settings]
    #[arg(long, value_name = "FORMAT")]
    kv_cache: Option<CacheChoice>,

    #[command(flatten)]
    pub(super) output: Output,
}

/// A model directory, looked at.
#[derive(Debug, Serialize)]
struct Inspection {
    manifest: Manifest,
    files: Vec<FileEntry>,
    /// Of all weights' files, for each parameter.
    bits_per_weight: f64,
    /// Keys and values of one position, as the settings have them stored.
    kv_bytes_per_token: u64,
    /// What they are stored in.
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
}

#[derive(Debug, Serialize)]
struct OperatorEntry {
    operator: String,
    nodes: usize,
}

/// Looks at the directory and prints what it is.
///
/// # Errors
/// When the directory is no model directory, or cannot be read.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let cache = stored(args)?;
    let inspection = inspect(&args.dir, args.hash, cache).ends_as(Exit::Model)?;
    if args.output.json {
        return print::document(&inspection);
    }
    print::result(|out| print(out, &args.dir, &inspection))
}

/// How the key-value cache is to be stored where our operators compute, if they do.
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
    let content = fs::read(&graph).with_context(|| graph.display().to_string())?;
    let operators = export::operators(&content).with_context(|| graph.display().to_string())?;
    let files = files(dir, hash).with_context(|| dir.display().to_string())?;
    let weights = format!("{}.data", manifest.graph.file);
    let weight_bytes = files.iter().find(|file| file.name == weights).map_or(0, |file| file.bytes);
    let shape = expected_cache_shape(dir, &manifest, cache);
    Ok(Inspection {
        bits_per_weight: weight_bytes as f64 * 8.0 / manifest.parameters.max(1) as f64,
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

fn files(dir: &Path, hash: bool) -> anyhow::Result<Vec<FileEntry>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = fs::metadata(entry.path())?;
        if !metadata.is_file() {
            continue;
        }
        let sha256 = if hash { Some(export::identify(&entry.path())?.sha256) } else { None };
        let name = entry.file_name().to_string_lossy().into_owned();
        files.push(FileEntry { name, bytes: metadata.len(), sha256 });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

fn print(out: &mut dyn Write, dir: &Path, inspection: &Inspection) -> io::Result<()> {
    writeln!(out, "{}", dir.display())?;
    print_model(out, inspection)?;
    print_origin(out, &inspection.manifest)?;
    writeln!(out, "\nfiles")?;
    for FileEntry { name, bytes, sha256 } in &inspection.files {
        let sha256 = sha256.as_deref().unwrap_or_default();
        writeln!(out, "{}", format!("  {name:<24} {:>12}  {sha256}", Bytes(*bytes).to_string()).trim_end())?;
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
        ("computes in", dtype),
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
        Some(Quantization { bits, block_size, .. }) => format!("int{bits} in blocks of {block_size}"),
        None => "not quantized".into(),
    }
}

/// Options as flags of `eka export`.
fn flags(options: &ExportOptions) -> String {
    let mut flags = format!("--quantize {}", options.quantize);
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
    writeln!(out, "\nmade by {}", provenance.exporter)?;
    if let Some(options) = &provenance.options {
        writeln!(out, "  {}", flags(options))?;
    }
    for adapter in &provenance.adapters {
        let AdapterSummary { weight, rank, alpha, targets, replaced } = adapter;
        write!(out, "  adapter of rank {rank}, alpha {alpha}, times {weight}, on {}", targets.join(", "))?;
        if !replaced.is_empty() {
            write!(out, "; it replaces {}", replaced.join(", "))?;
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
