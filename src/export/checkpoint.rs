//! A base checkpoint: one file of tensors, or several with an index.
//!
//! Tensors are known by their names without prefixes (`tensor_names`).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    blueprint::{Blueprint, LmHead},
    json_config::{JsonConfig, JsonConfigError},
    known_blocks::KnownBlocks,
    packed::{PackedMatrix, Packing, Part},
    param::{Param, Run},
    quantize::Quantizer,
    tensor_names::{canonical, is_buffer, is_of_a_sense},
    tensors::TensorFile,
    tensors_error::TensorsError,
    torch,
};
use crate::files;

/// The file of a checkpoint that is not sharded.
const SINGLE: &str = "model.safetensors";

/// The index of a checkpoint that is.
const INDEX: &str = "model.safetensors.index.json";

/// Where weights are, in the order of transformers: the file, or the index beside its shards.
const FILES: [(&str, &str); 2] = [(SINGLE, INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json")];

/// Suffixes of the tensors that quantization tools write.
const PACKED: [&str; 13] = [
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_shape",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
    ".weight.absmax",
    ".weight.quant_map",
    ".weight_format",
    ".input_scale",
    ".SCB",
];

/// Extensions of weight files that are neither safetensors nor pickles.
const OTHER_FORMATS: [&str; 4] = [".gguf", ".ggml", ".h5", ".msgpack"];

/// Names that an error lists.
const MAX_NAMED: usize = 5;

/// Rows that are compared at once.
const COMPARED: usize = 1 << 18;

/// Why a checkpoint cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// One of its files cannot be used.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
    /// Its index cannot be used.
    #[error(transparent)]
    JsonConfig(#[from] JsonConfigError),
    /// The directory has no file of tensors.
    #[error(
        "{}: neither {SINGLE} nor {INDEX} is there, nor pytorch_model.bin or its index; download the whole checkpoint",
        dir.display()
    )]
    NoTensors {
        /// The directory.
        dir: PathBuf,
    },
    /// There are only weights of another format.
    #[error(
        "{}: only {file} is there, and the weights of a directory are read from safetensors or pytorch_model.bin; take the revision \
         or the original repository that has them, or name a .gguf file itself as the base",
        dir.display()
    )]
    OtherFormat {
        /// The directory.
        dir: PathBuf,
        /// A file that is there.
        file: String,
    },
    /// Its weights are quantized already.
    #[error(
        "{}: {tensor} shows that weights are packed, in a way that quantization_config in config.json does not describe; \
         take the model that they were quantized from, and quantize it here with --quantize",
        dir.display()
    )]
    Packed {
        /// The directory.
        dir: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A packed weight has another shape than the configuration asks for.
    #[error(
        "{}: {tensor} unpacks to {found:?}, the configuration makes it {expected:?}; do the two belong together?",
        dir.display()
    )]
    PackedShape {
        /// The directory.
        dir: PathBuf,
        /// The weight, without prefixes.
        tensor: String,
        /// Its shape.
        found: [usize; 2],
        /// The shape by the configuration.
        expected: Vec<usize>,
    },
    /// The index names a file outside of the directory.
    #[error("{}: weight_map names the file {file:?}; expected a plain name that ends in {extension}", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The file that it names.
        file: String,
        /// The end that it should have.
        extension: &'static str,
    },
    /// The index promises a tensor that its file does not hold.
    #[error("{}: {tensor} should be in it by {index}, but is not; download both again", path.display())]
    NotInShard {
        /// The file.
        path: PathBuf,
        /// The index.
        index: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A file holds a tensor that the index does not place there.
    #[error("{}: it holds {tensor}, which {index} does not place there; download both again", path.display())]
    NotInIndex {
        /// The file.
        path: PathBuf,
        /// The index.
        index: String,
        /// The tensor's name.
        tensor: String,
    },
    /// Two tensors have the same name, or would without their prefixes.
    #[error("{}: {first} and {second} would be the same tensor; keep one", dir.display())]
    Twice {
        /// The directory.
        dir: PathBuf,
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// The model needs a tensor that is not there.
    #[error(
        "{}: the configuration needs {tensor} of shape {shape}, which is not there; download the whole checkpoint",
        dir.display()
    )]
    MissingTensor {
        /// The directory.
        dir: PathBuf,
        /// Its name without prefixes.
        tensor: String,
        /// The shape it would have.
        shape: String,
    },
    /// Tensors that the model has no place for.
    #[error("{}: nothing uses {}; is config.json of the same model?", dir.display(), some(tensors))]
    Unused {
        /// The directory.
        dir: PathBuf,
        /// Their names.
        tensors: Vec<String>,
    },
}

/// A checkpoint, open: its tensors by their names without prefixes.
#[derive(Debug)]
pub(super) struct Checkpoint {
    dir: PathBuf,
    index: Option<PathBuf>,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Part>,
    /// Weights that other programs have packed.
    packed: BTreeMap<String, PackedMatrix>,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir` and reads its headers.
    pub(super) fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let (files, index) = open_files(dir)?;
        Ok(Self { index, ..Self::of(dir, files)? })
    }

    /// The checkpoint whose tensors are in `files`; `dir` is its name in errors.
    pub(super) fn of(dir: &Path, files: Vec<TensorFile>) -> Result<Self, CheckpointError> {
        let mut tensors: BTreeMap<String, Part> = BTreeMap::new();
        for (file, names) in files.iter().enumerate() {
            for name in names.names() {
                let place = Part { file, name: name.into() };
                if let Some(other) = tensors.insert(canonical(name).into_owned(), place) {
                    let (first, second) = (other.name, name.into());
                    return Err(CheckpointError::Twice { dir: dir.into(), first, second });
                }
            }
        }
        Ok(Self { dir: dir.into(), index: None, files, tensors, packed: BTreeMap::new() })
    }

    /// Finds weights that are packed as `packing` says.
    pub(super) fn unpack(&mut self, packing: Packing) -> Result<(), CheckpointError> {
        self.packed = PackedMatrix::find(packing, &mut self.tensors, &self.files)?;
        Ok(())
    }

    /// Paths of its safetensors files and, if it has one, its index.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|file| file.path().to_owned()).chain(self.index.clone())
    }

    /// The model of `blueprint` with its head as the checkpoint stores it: an embedding and a head that differ are two
    /// tensors, whatever the configuration says, and one of them stands for both if only one is stored.
    pub(super) fn resolve_head(&mut self, blueprint: Blueprint) -> Result<Blueprint, CheckpointError> {
        let LmHead::Tied { stored_as } = &blueprint.head else { return Ok(blueprint) };
        let table = &blueprint.embedding.table;
        if !self.holds(stored_as) {
            return Ok(blueprint);
        }
        if !self.holds(&table.name) {
            // `safetensors.torch.save_model` keeps the first name of a shared tensor in alphabetical order.
            let location = self.tensors.remove(stored_as);
            self.tensors.extend(location.map(|location| (table.name.clone(), location)));
            return Ok(blueprint);
        }
        let is_tied = self.is_tied_head(stored_as, table)?;
        Ok(if is_tied { blueprint } else { blueprint.untied() })
    }

    /// Checks that the checkpoint holds what `blueprint` is made of, and nothing else; gives the names of buffers that
    /// are not used.
    pub(super) fn check(&self, blueprint: &Blueprint) -> Result<Vec<String>, CheckpointError> {
        self.refuse_packed()?;
        let mut unused: BTreeSet<&str> =
            self.tensors.keys().chain(self.packed.keys()).map(String::as_str).collect();
        for param in blueprint.params().filter(|param| param.is_stored()) {
            self.check_param(param)?;
            unused.remove(param.stored_name());
        }
        if let LmHead::Tied { stored_as } = &blueprint.head {
            unused.remove(stored_as.as_str());
        }
        let name = |canonical: &&str| {
            self.tensors.get(*canonical).map_or_else(|| (*canonical).to_owned(), |part| part.name.clone())
        };
        let (buffers, unused): (Vec<_>, Vec<_>) = unused.iter().map(name).partition(|name| is_buffer(name));
        let (senses, unused): (Vec<_>, Vec<_>) = unused.into_iter().partition(|name| is_of_a_sense(name));
        let first = blueprint.layers.len();
        let behind = first..first.saturating_add(blueprint.prediction_layers);
        let is_behind = |name: &String| layer_of(name).is_some_and(|layer| behind.contains(&layer));
        let (predicting, unused): (Vec<_>, Vec<_>) = unused.into_iter().partition(is_behind);
        if unused.is_empty() {
            return Ok(buffers.into_iter().chain(senses).chain(predicting).collect());
        }
        Err(CheckpointError::Unused { dir: self.dir.clone(), tensors: unused })
    }

    /// The given rows of `param`, row by row, as float32.
    pub(super) fn rows(&self, param: &Param, rows: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        if let Some(matrix) = self.packed.get(param.stored_name()) {
            let before = param.stacked.as_ref().map_or(0, |stacked| stacked.expert * param.stored_lines());
            let read =
                |lines: Range<usize>| matrix.read(&self.files, before + lines.start..before + lines.end);
            return Ok(param.read(rows, read)?);
        }
        let (file, name) = self.find(param.stored_name()).ok_or_else(|| self.missing(param))?;
        Ok(file.read_param(name, param, rows)?)
    }

    /// Whether `param` is stored in blocks that `quantizer` repacks, in a file of blocks.
    pub(super) fn repacks(&self, param: &Param, quantizer: Quantizer) -> bool {
        let found = self.find(param.stored_name()).filter(|_| !self.packed.contains_key(param.stored_name()));
        found.is_some_and(|(file, name)| file.repacks(name, param, quantizer))
    }

    /// The blocks of rows of `param`, if it is stored in blocks that `quantizer` repacks.
    pub(super) fn known_blocks(
        &self,
        param: &Param,
        rows: Range<usize>,
        quantizer: Quantizer,
    ) -> Result<Option<KnownBlocks>, CheckpointError> {
        if let Some(matrix) = self.packed.get(param.stored_name()) {
            return Ok(self.packed_blocks(matrix, (param, rows), quantizer)?);
        }
        let (file, name) = self.find(param.stored_name()).ok_or_else(|| self.missing(param))?;
        Ok(file.read_blocks_of(name, (param, rows), quantizer)?)
    }

    fn packed_blocks(
        &self,
        matrix: &PackedMatrix,
        (param, rows): (&Param, Range<usize>),
        quantizer: Quantizer,
    ) -> Result<Option<KnownBlocks>, TensorsError> {
        let cols = param.shape.cols();
        // Padding within a row moves its blocks.
        if param.transposed || param.stacked.is_some() || param.stored_cols() != cols {
            return Ok(None);
        }
        let mut known = KnownBlocks::default();
        for run in param.stored(rows) {
            match run {
                Run::Zeros(count) => known.extend(quantizer.zero_blocks(count * quantizer.blocks(cols))),
                Run::Stored(lines) => match matrix.scales(&self.files, &lines, quantizer)? {
                    Some(scales) => known.scales.extend(scales),
                    None => return Ok(None),
                },
            }
        }
        Ok(Some(known))
    }

    /// Whether there is a tensor of this name.
    pub(super) fn holds(&self, canonical: &str) -> bool {
        self.tensors.contains_key(canonical) || self.packed.contains_key(canonical)
    }

    /// Whether the tensor of this name is packed.
    pub(super) fn is_packed(&self, canonical: &str) -> bool {
        self.packed.contains_key(canonical)
    }

    fn refuse_packed(&self) -> Result<(), CheckpointError> {
        let mut names = self.tensors.values().map(|part| &part.name);
        match names.find(|name| PACKED.iter().any(|end| name.ends_with(end))) {
            Some(tensor) => Err(CheckpointError::Packed { dir: self.dir.clone(), tensor: tensor.clone() }),
            None => Ok(()),
        }
    }

    fn find(&self, canonical: &str) -> Option<(&TensorFile, &str)> {
        let place = self.tensors.get(canonical)?;
        Some((self.files.get(place.file)?, &place.name))
    }

    fn check_param(&self, param: &Param) -> Result<(), CheckpointError> {
        if let Some(matrix) = self.packed.get(param.stored_name()) {
            let experts = param.stacked.as_ref().map_or(1, |stacked| stacked.experts);
            let expected = vec![experts * param.stored_lines(), param.stored_cols()];
            if expected == matrix.shape && !param.transposed {
                return Ok(());
            }
            let tensor = param.name.clone();
            return Err(CheckpointError::PackedShape {
                dir: self.dir.clone(),
                tensor,
                found: matrix.shape,
                expected,
            });
        }
        let (file, name) = self.find(param.stored_name()).ok_or_else(|| self.missing(param))?;
        let shape = param.stored_shape();
        if file.shape(name) != shape {
            return Err(file.shape_error(name, format!("{shape:?}")).into());
        }
        Ok(file.check_type(name)?)
    }

    /// Whether the stored head holds the embedding's numbers.
    fn is_tied_head(&self, stored_as: &str, embedding: &Param) -> Result<bool, CheckpointError> {
        let head = Param { name: stored_as.into(), ..embedding.clone() };
        self.check_param(&head)?;
        self.check_param(embedding)?;
        let rows = embedding.shape.rows();
        let step = (COMPARED / embedding.shape.cols()).max(1);
        for start in (0..rows).step_by(step) {
            let rows = start..rows.min(start + step);
            if self.rows(&head, rows.clone())? != self.rows(embedding, rows)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn missing(&self, param: &Param) -> CheckpointError {
        CheckpointError::MissingTensor {
            dir: self.dir.clone(),
            tensor: param.name.clone(),
            shape: param.shape.to_string(),
        }
    }
}

/// The number of the layer that the tensor called `name` is in.
fn layer_of(name: &str) -> Option<usize> {
    canonical(name).strip_prefix("layers.")?.split('.').next()?.parse().ok()
}

/// The first few of `names`.
fn some(names: &[String]) -> String {
    match names.len().checked_sub(MAX_NAMED) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MAX_NAMED].join(", ")),
    }
}

/// The single file wins over an index, as it does in transformers.
fn open_files(dir: &Path) -> Result<(Vec<TensorFile>, Option<PathBuf>), CheckpointError> {
    for (single, index) in FILES {
        let (single, index) = (dir.join(single), dir.join(index));
        if files::exists(&single) {
            return Ok((vec![torch::open(&single)?], None));
        }
        if files::exists(&index) {
            return Ok((open_shards(dir, &index)?, Some(index)));
        }
    }
    Err(no_tensors(dir))
}

/// The error for a directory without weights that can be read, which depends on its other files.
fn no_tensors(dir: &Path) -> CheckpointError {
    let entries = dir.read_dir().into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let other = names.filter(|name| OTHER_FORMATS.iter().any(|end| name.ends_with(end))).min();
    match other {
        Some(file) => CheckpointError::OtherFormat { dir: dir.into(), file },
        None => CheckpointError::NoTensors { dir: dir.into() },
    }
}

fn open_shards(dir: &Path, index: &Path) -> Result<Vec<TensorFile>, CheckpointError> {
    let shards = read_index(&JsonConfig::read(index)?)?;
    let open = |(file, tensors): (String, BTreeSet<String>)| open_shard(&dir.join(file), index, &tensors);
    shards.into_iter().map(open).collect()
}

/// The files that an index names, each with the tensors that should be in it.
pub(super) fn read_index(index: &JsonConfig) -> Result<BTreeMap<String, BTreeSet<String>>, CheckpointError> {
    let map = index.section("weight_map")?.ok_or_else(|| index.missing("weight_map", "an object"))?;
    let is_torch = index.path().file_name().is_some_and(|name| name == FILES[1].1);
    let extension = if is_torch { ".bin" } else { ".safetensors" };
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in map.fields() {
        let file = plain_name(file, extension).ok_or_else(|| CheckpointError::ShardName {
            path: index.path().into(),
            file: file.as_str().map_or_else(|| file.to_string(), Into::into),
            extension,
        })?;
        shards.entry(file.into()).or_default().insert(tensor.into());
    }
    Ok(shards)
}

fn open_shard(path: &Path, index: &Path, promised: &BTreeSet<String>) -> Result<TensorFile, CheckpointError> {
    let file = torch::open(path)?;
    let index = || index.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(tensor) = promised.iter().find(|tensor| !file.contains(tensor)) {
        return Err(CheckpointError::NotInShard {
            path: path.into(),
            index: index(),
            tensor: tensor.clone(),
        });
    }
    let extra = file.names().find(|name| !promised.contains(*name) && !is_buffer(name));
    if let Some(tensor) = extra {
        return Err(CheckpointError::NotInIndex { path: path.into(), index: index(), tensor: tensor.into() });
    }
    Ok(file)
}

/// An index comes from outside: a name with a path in it could reach any file of this machine.
fn plain_name<'a>(file: &'a Value, extension: &str) -> Option<&'a str> {
    file.as_str().filter(|name| name.ends_with(extension) && !name.contains(['/', '\\', ':', '\0']))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::export::testing::{self, Tensor};

    fn blueprint(tied: bool) -> Blueprint {
        testing::blueprint(tied)
    }

    #[test]
    fn every_tensor_is_used_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = testing::tensors(false);
        tensors.push(Tensor::new("model.layers.0.self_attn.rotary_emb.inv_freq", &[8]));
        testing::write(&dir.path().join(SINGLE), &tensors);
        let skipped = Checkpoint::open(dir.path()).unwrap().check(&blueprint(false)).unwrap();
        assert_eq!(skipped, ["model.layers.0.self_attn.rotary_emb.inv_freq"]);

        tensors.push(Tensor::new("model.layers.0.self_attn.sinks", &[8]));
        testing::write(&dir.path().join(SINGLE), &tensors);
        let message = Checkpoint::open(dir.path()).unwrap().check(&blueprint(false)).unwrap_err().to_string();
        assert!(message.contains("nothing uses model.layers.0.self_attn.sinks;"), "{message}");
    }

    #[test]
    fn a_missing_tensor_and_a_wrong_shape_are_named_with_the_shapes() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = testing::tensors(true);
        let removed = tensors.remove(1);
        testing::write(&dir.path().join(SINGLE), &tensors);
        let message = Checkpoint::open(dir.path()).unwrap().check(&blueprint(true)).unwrap_err().to_string();
        assert!(message.contains(&*canonical(&removed.name)), "{message}");

        tensors.push(Tensor::new(&removed.name, &[3, 5]));
        testing::write(&dir.path().join(SINGLE), &tensors);
        let message = Checkpoint::open(dir.path()).unwrap().check(&blueprint(true)).unwrap_err().to_string();
        assert!(message.contains("[3, 5]") && message.contains("makes it ["), "{message}");
    }

    #[test]
    fn a_stored_head_that_differs_from_the_embedding_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = testing::tensors(true);
        let embedding = tensors.iter().find(|t| t.name.contains("embed_tokens")).unwrap().clone();
        tensors.push(Tensor { name: "lm_head.weight".into(), ..embedding });
        let resolved = |tensors: &[Tensor]| {
            testing::write(&dir.path().join(SINGLE), tensors);
            let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
            let blueprint = checkpoint.resolve_head(blueprint(true)).unwrap();
            checkpoint.check(&blueprint).unwrap();
            blueprint.head
        };
        assert!(matches!(resolved(&tensors), LmHead::Tied { .. }));
        tensors.last_mut().unwrap().values[3] += 1.0;
        assert!(matches!(resolved(&tensors), LmHead::Separate(_)));
    }

    #[test]
    fn an_index_may_only_name_files_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["../secret.safetensors", "/etc/x.safetensors", "model.bin", "c:x.safetensors"] {
            fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#)).unwrap();
            assert!(matches!(Checkpoint::open(dir.path()), Err(CheckpointError::ShardName { .. })), "{file}");
        }
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = testing::tensors(false);
        let (first, second) = tensors.split_at(3);
        testing::write(&dir.path().join("a.safetensors"), first);
        testing::write(&dir.path().join("b.safetensors"), second);
        let of = |part: &[Tensor], file: &str| {
            part.iter().map(|t| format!("\"{}\": \"{file}\"", t.name)).collect::<Vec<_>>()
        };
        let map = [of(first, "a.safetensors"), of(second, "b.safetensors")].concat().join(",");
        fs::write(dir.path().join(INDEX), format!("{{\"weight_map\": {{{map}}}}}")).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.check(&blueprint(false)).unwrap();
        assert_eq!(checkpoint.paths().count(), 3);
    }

    #[test]
    fn a_bare_pickle_is_refused_with_the_way_to_the_zip_format() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Checkpoint::open(dir.path()), Err(CheckpointError::NoTensors { .. })));
        fs::write(dir.path().join("pytorch_model.bin"), b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
            .unwrap();
        let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("torch.save"), "{message}");
    }
}
