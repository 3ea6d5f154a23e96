//! Runs the export of an adapter.

use std::path::{Path, PathBuf};

use super::{
    column_lengths::Lengths,
    error::UnmergedError,
    input_change::{InputChange, input_changes},
    served_weights::ServedWeights,
    tensors::{AdapterTensors, spread},
};
use crate::{
    export::{
        AdapterSource, Existing, ExportError, Progress, Stage, WeightsError,
        adapter::{Adapter, MergePlan, NodeDelta},
        adapter_base::AdapterBase,
        blueprint::{Blueprint, Linear},
        emit::ProductNode,
        load_sources::open_adapter,
        param::Param,
        provenance::{self, SourceFiles},
        staging::{self, Staging},
    },
    manifest::{self, ADAPTER_FILE, ADAPTER_SCHEMA, ADAPTER_TENSORS, AdapterManifest, Manifest},
    units::Bytes,
};

/// What to export.
#[derive(Clone, Debug)]
pub struct AdapterOptions {
    /// The model directory of the base.
    pub base: PathBuf,
    /// A directory in PEFT's layout, or a GGUF file with a LoRA adapter.
    pub adapter: PathBuf,
    /// The adapter's name; by default that of its directory.
    pub name: Option<String>,
    /// The directory to write; by default the adapter's own in the base.
    pub output: Option<PathBuf>,
    /// What to do if there is such an adapter.
    pub existing: Existing,
}

/// The result of the export of an adapter.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// The adapter's directory.
    pub output: PathBuf,
    /// Its name.
    pub name: String,
    /// The rank of most of its matrices.
    pub rank: usize,
    /// Length of the file with its tensors.
    pub bytes: Bytes,
    /// Number of graph nodes that it changes.
    pub products: usize,
    /// Names of its tensors that are not used.
    pub skipped: Vec<String>,
}

/// Exports an adapter beside its base, complete or not at all.
///
/// # Errors
/// [`ExportError`] when the adapter does not fit the base, changes what is not a linear layer, or cannot be written.
pub fn export_adapter(
    options: &AdapterOptions,
    progress: &dyn Progress,
) -> Result<AdapterReport, ExportError> {
    let AdapterOptions { base, adapter: source, existing, .. } = options;
    let name = name(options)?;
    let model = Manifest::read(base).map_err(UnmergedError::from)?;
    let (description, blueprint) = AdapterBase::read(base, &model)?;
    let adapter = open_adapter(&AdapterSource { dir: source.clone(), weight: 1.0 }, &blueprint)?;
    let (skipped, summary, paths) = (adapter.unused().collect(), adapter.summary(), adapter.paths());
    let (plan, blueprint) = MergePlan::new(vec![adapter], blueprint)?;
    let weights = ServedWeights::open(base, &model.graph.file)?;
    let changes = node_changes((&plan, &blueprint), &description.products, &weights, source)?;
    let (tensors, mut products, is_exclusive) = encode(&changes, &weights)?;
    products.sort_by(|one, other| one.node.cmp(&other.node));
    let output = options.output.clone().unwrap_or_else(|| manifest::adapter_dir(base, &name));
    if source.is_dir() {
        staging::check_apart(&output, source)?;
    }
    let staging = Staging::with_manifest(&output, *existing, ADAPTER_FILE)?;
    let content = tensors.encode()?;
    staging.write(ADAPTER_TENSORS, &content)?;
    let mut sources = SourceFiles::default();
    sources.add("adapter", paths);
    let count = products.len();
    let manifest = AdapterManifest {
        schema: ADAPTER_SCHEMA,
        exporter: model.provenance.exporter.clone(),
        base: manifest::identity(base).map_err(UnmergedError::from)?,
        rank: summary.rank,
        alpha: summary.alpha,
        targets: summary.targets,
        exclusive: is_exclusive.map(Into::into),
        products,
        sources: sources.identify(progress)?,
        files: provenance::identify_all(&staging.files()?, Stage::Checksums, progress)?,
    };
    staging.write(ADAPTER_FILE, manifest.to_json().as_bytes())?;
    staging.commit()?;
    let (rank, bytes) = (manifest.rank, Bytes::from(content.len()));
    Ok(AdapterReport { output, name, rank, bytes, products: count, skipped })
}

/// Whether `output` has this adapter already, exported from the same files for the same base.
#[must_use]
pub fn is_exported(options: &AdapterOptions) -> bool {
    let Ok(name) = name(options) else { return false };
    let output = options.output.clone().unwrap_or_else(|| manifest::adapter_dir(&options.base, &name));
    let (Ok((known, _)), Ok(base)) = (AdapterManifest::read(&output), manifest::identity(&options.base))
    else {
        return false;
    };
    let Ok(adapter) = Adapter::open(&options.adapter, 1.0) else { return false };
    let mut sources = SourceFiles::default();
    sources.add("adapter", adapter.paths());
    known.base == base && sources.identify(&()).is_ok_and(|sources| sources == known.sources)
}

/// The name of the adapter.
fn name(options: &AdapterOptions) -> Result<String, UnmergedError> {
    let of_directory = || {
        let resolved = options.adapter.canonicalize().unwrap_or_else(|_| options.adapter.clone());
        let name = if resolved.is_dir() { resolved.file_name() } else { resolved.file_stem() };
        name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let name = options.name.clone().unwrap_or_else(of_directory);
    if manifest::is_adapter_name(&name) { Ok(name) } else { Err(UnmergedError::Name { name }) }
}

/// What the adapter changes about a node.
struct NodeChange<'a> {
    product: &'a ProductNode,
    delta: NodeDelta,
    input: Option<InputChange>,
}

/// The nodes that the adapter changes.
fn node_changes<'a>(
    (plan, blueprint): (&MergePlan, &Blueprint),
    products: &'a [ProductNode],
    weights: &ServedWeights,
    source: &Path,
) -> Result<Vec<NodeChange<'a>>, ExportError> {
    let linears: Vec<&Linear> = blueprint.linears().collect();
    let mut open = plan.changed();
    let mut inputs = input_changes((plan, blueprint), weights, products, &mut open)?;
    let mut changes = Vec::new();
    for (number, product) in products.iter().enumerate() {
        let input = inputs.remove(&number);
        let layers: Vec<&Linear> =
            product.linears.iter().filter_map(|number| linears.get(*number).copied()).collect();
        // A tied head has no linear layer unless the adapter changes it.
        let delta = if layers.len() < product.linears.len() {
            NodeDelta::default()
        } else {
            plan.node_delta(&layers, &mut open).map_err(WeightsError::from)?
        };
        check_finite(&delta, &layers, source)?;
        if !delta.is_empty() || input.is_some() {
            changes.push(NodeChange { product, delta, input });
        }
    }
    if open.is_empty() {
        return Ok(changes);
    }
    Err(UnmergedError::NotLinear { adapter: source.into(), tensors: open.into_iter().collect() }.into())
}

fn check_finite(delta: &NodeDelta, layers: &[&Linear], source: &Path) -> Result<(), UnmergedError> {
    let is_finite = |values: &[f32]| values.iter().fold(true, |all, value| all & value.is_finite());
    let pairs = delta.pairs.iter().flat_map(|pair| [Some(&pair.a), Some(&pair.b), pair.magnitude.as_ref()]);
    let biases = delta.biases.iter().chain(&delta.whole_biases).map(|(_, values)| Some(values));
    if pairs.chain(biases).flatten().all(|values| is_finite(values)) {
        return Ok(());
    }
    let tensor = layers.first().map_or("", |linear| Param::module(&linear.weight)).to_owned();
    Err(UnmergedError::NotFinite { adapter: source.into(), tensor })
}

/// The tensors of the changed nodes, their descriptions, and why they cannot be mixed with those of other adapters.
fn encode(
    changes: &[NodeChange<'_>],
    weights: &ServedWeights,
) -> Result<(AdapterTensors, Vec<manifest::AdapterProduct>, Option<&'static str>), UnmergedError> {
    let (mut tensors, mut products, mut is_exclusive) = (AdapterTensors::default(), Vec::new(), None);
    for NodeChange { product: ProductNode { node, offsets, .. }, delta, input } in changes {
        let matrix = weights.matrix(node, offsets.as_deref())?;
        let shape = [matrix.columns(), matrix.depth()];
        let mut product = tensors.add(node, delta, shape);
        if let Some(input) = input {
            is_exclusive = Some("it replaces norms");
            product.changes_input = true;
            tensors.add_input(node, input);
        }
        products.push(product);
        if !delta.whole_biases.is_empty() {
            is_exclusive = Some("it replaces biases");
            let served = weights.bias(node)?;
            let mut changes = delta.whole_biases.clone();
            for (first, values) in &mut changes {
                let served = served.get(*first..*first + values.len()).unwrap_or_default();
                values.iter_mut().zip(served).for_each(|(value, served)| *value -= served);
            }
            tensors.add_bias(node, &spread(&changes, shape[0]));
        }
        if let Some(lengths) = Lengths::measure(delta, &matrix)? {
            is_exclusive = Some("it has DoRA's magnitudes");
            tensors.add_lengths(node, &lengths);
            if let Some(offsets) = offsets {
                tensors.add_lengths(offsets, &lengths);
                products.push(manifest::AdapterProduct {
                    node: offsets.clone(),
                    pairs: Vec::new(),
                    changes_input: false,
                });
            }
        }
    }
    Ok((tensors, products, is_exclusive))
}
