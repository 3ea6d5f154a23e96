//! Runs an export: opens the sources, emits the graph, writes the weights and commits the directory.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::{
    ExportError, Keep, Layout, Options, Source, Storage,
    adapter_base::{self, AdapterBase},
    data_layout::{DATA_FILE, DataLayout},
    emit::{Emitted, Precision, emit},
    genai,
    load_sources::LoadedSources,
    progress::{Progress, Stage},
    provenance,
    staging::{self, Staging, StagingError},
    write_weights::{Fill, pieces, write_weights},
    written_pieces::{self, WrittenPieces},
};
use crate::{
    files,
    manifest::{self, FileRecord, Manifest, Provenance},
    units::Bytes,
};

/// The result of an export.
#[derive(Clone, Debug)]
pub struct Report {
    /// The model directory.
    pub output: PathBuf,
    /// Number of parameters, a tied head counted once.
    pub parameters: u64,
    /// Length of the weights' file.
    pub weight_bytes: Bytes,
    /// How much of it an earlier run had written, which was killed.
    pub continued: Bytes,
    /// The modules with a different format than most.
    pub kept: Vec<Keep>,
    /// Tensors of the checkpoint and its adapters that the graph does not need.
    pub skipped: Vec<String>,
    /// Notes for the user about the merge.
    pub notes: Vec<String>,
    /// Whether the directory has a tokenizer; one of random weights has none.
    pub has_tokenizer: bool,
}

impl Report {
    /// Bits of the weights' file for each parameter, scales and position tables included.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        self.weight_bytes.0 as f64 * 8.0 / self.parameters.max(1) as f64
    }
}

/// The graph's file name in a model directory.
pub(super) const GRAPH_FILE: &str = "model.onnx";

/// The exporter's name and version in the manifest.
const EXPORTER: &str = concat!("eka ", env!("CARGO_PKG_VERSION"));

/// Increases when the written bytes change between two versions of eka, so that cached exports become outdated.
const REVISION: u32 = 7;

/// Fails when the export should stop.
fn check_cancelled(progress: &dyn Progress) -> Result<(), ExportError> {
    if progress.is_cancelled() { Err(ExportError::Cancelled) } else { Ok(()) }
}

/// Writes a model directory, complete or not at all.
///
/// # Errors
/// [`ExportError`] when the sources are incomplete, contradict each other or ask for something that is not supported,
/// when a weight is not finite, when the output exists or cannot be written, or when `progress` cancels.
pub fn export(options: &Options, progress: &dyn Progress) -> Result<Report, ExportError> {
    let mut input = load(options)?;
    let storage = options.weights.within_budget(&input.blueprint, options.dtype)?;
    let formats = storage.formats(&input.blueprint)?.for_graph(options.dtype);
    let formats =
        formats.with_offsets(&input.blueprint, |param, quantizer| input.weights.repacks(param, quantizer));
    let precision = Precision { dtype: options.dtype, formats };
    let Emitted { graph, layout, products, .. } =
        emit(&input.blueprint, precision, options.names(), DATA_FILE)?;
    for dir in options.source.dirs() {
        staging::check_apart(&options.output, dir)?;
    }
    let staging = Staging::new(&options.output, options.existing, &[DATA_FILE, written_pieces::FILE])?;
    staging.reserve(DATA_FILE, Bytes(layout.bytes()))?;
    let sources = input.identify(progress)?;
    check_cancelled(progress)?;
    let written = written_pieces(&staging, &layout, &identity(options, &sources))?;
    let angles = input.blueprint.angles();
    let fill = Fill {
        layout: &layout,
        weights: &input.weights,
        angles: &angles,
        calibration: options.calibration.as_deref(),
        written: &written,
    };
    let continued = write_weights(&staging.path(DATA_FILE), fill, progress)?;
    staging.write(GRAPH_FILE, &graph)?;
    let base = AdapterBase::new(&input.config, &input.blueprint, products);
    staging.write(adapter_base::FILE, &base.to_json())?;
    if let Some(tokenizer_files) = &input.tokenizer_files {
        tokenizer_files.write(&staging)?;
    }
    let mut manifest = describe(&input, (options, &storage), sources);
    if options.layout == Layout::Genai {
        let generation =
            input.tokenizer_files.as_ref().and_then(|tokenizer_files| tokenizer_files.generations.first());
        staging.write(genai::CONFIG, format!("{:#}\n", genai::config(&manifest, generation)).as_bytes())?;
    }
    let files: Vec<_> =
        staging.files()?.into_iter().filter(|(name, _)| name != written_pieces::FILE).collect();
    manifest.files = provenance::identify_all(&files, Stage::Checksums, progress)?;
    check_cancelled(progress)?;
    // Before the manifest, which makes a model of the directory.
    staging.remove(written_pieces::FILE)?;
    staging.write(manifest::FILE_NAME, manifest.to_json().as_bytes())?;
    staging.commit()?;
    Ok(Report {
        continued,
        output: options.output.clone(),
        parameters: input.blueprint.parameters(),
        weight_bytes: Bytes(layout.bytes()),
        notes: input.notes(),
        kept: storage.rules(&input.blueprint),
        skipped: input.skipped,
        has_tokenizer: input.tokenizer_files.is_some(),
    })
}

/// Finds what would stop an export before it writes weights, without reading any.
///
/// # Errors
/// [`ExportError`] when [`export`] would fail before writing.
pub fn check(options: &Options) -> Result<(), ExportError> {
    let input = load(options)?;
    options.weights.within_budget(&input.blueprint, options.dtype)?.formats(&input.blueprint)?;
    for dir in options.source.dirs() {
        staging::check_apart(&options.output, dir)?;
    }
    Ok(staging::check_existing(&options.output, options.existing, manifest::FILE_NAME)?)
}

/// Identifies what an export would write: equal for equal sources, options and versions of the exporter, wherever the
/// files lie. Reads every source once.
///
/// # Errors
/// [`ExportError`] when [`export`] would fail before writing.
pub fn fingerprint(options: &Options) -> Result<String, ExportError> {
    let mut input = load(options)?;
    options.weights.within_budget(&input.blueprint, options.dtype)?.formats(&input.blueprint)?;
    let sources = input.identify(&())?;
    Ok(identity(options, &sources))
}

/// Identifies what an export of these sources writes.
fn identity(options: &Options, sources: &[FileRecord]) -> String {
    let mut hash = Sha256::new();
    let scales: Vec<f32> = match &options.source {
        Source::Checkpoint { adapters, .. } => adapters.iter().map(|adapter| adapter.weight).collect(),
        Source::Random { .. } => Vec::new(),
    };
    hash.update(format!("{EXPORTER} {REVISION}\n{:?} {scales:?}\n", options.asked()));
    for FileRecord { path, bytes, sha256 } in sources {
        hash.update(format!("{path} {bytes} {sha256}\n"));
    }
    files::hexadecimal(hash)
}

/// The pieces of the weights that a killed run of this export has written; all zeros in place of what another export has left.
fn written_pieces(
    staging: &Staging,
    layout: &DataLayout,
    export: &str,
) -> Result<WrittenPieces, StagingError> {
    let (path, pieces) = (staging.path(written_pieces::FILE), pieces(layout));
    if let Some(written) = WrittenPieces::read(&path, export, pieces) {
        return Ok(written);
    }
    staging.remove(written_pieces::FILE)?;
    staging.reserve_again(DATA_FILE, Bytes(layout.bytes()))?;
    WrittenPieces::create(&path, export, pieces).map_err(|source| StagingError::Write { path, source })
}

/// Opens the sources and applies what concerns the whole model.
pub(super) fn load(options: &Options) -> Result<LoadedSources, ExportError> {
    let mut input = LoadedSources::open(&options.source)?;
    if let Some(asked) = options.context_length {
        let most = input.blueprint.longest_context;
        if asked.get() > most {
            return Err(ExportError::Context { asked, max: most });
        }
        input.set_context(asked.get());
    }
    Ok(input)
}

fn describe(
    input: &LoadedSources,
    (options, storage): (&Options, &Storage),
    sources: Vec<FileRecord>,
) -> Manifest {
    Manifest {
        schema: manifest::SCHEMA,
        architecture: input.blueprint.architecture.into(),
        dims: input.blueprint.dims,
        dtype: options.dtype,
        quantization: storage.quantization(),
        overrides: storage.overrides(&input.blueprint),
        context_length: input.blueprint.context_length,
        end_tokens: input.end_tokens.clone(),
        parameters: input.blueprint.parameters(),
        graph: options.names(),
        provenance: Provenance {
            exporter: EXPORTER.into(),
            sources,
            adapters: input.adapter_summaries(),
            options: Some(options.asked()),
        },
        files: Vec::new(),
    }
}
