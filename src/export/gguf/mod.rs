//! A GGUF file as a base: the same files and tensors that a Hugging Face checkpoint has, made from its metadata.
//!
//! | module | what it makes |
//! |---|---|
//! | `reader` | metadata and the places of tensors, checked |
//! | `metadata` | typed access |
//! | `architectures` | `config.json` and the checkpoint's names of tensors |
//! | `lora` | an adapter in PEFT's layout |
//! | `tokenizer`, `pre_tokenizers` | `tokenizer.json` and `tokenizer_config.json` |
//!
//! Everything behind it (blueprint, adapters, quantization) then works as for a checkpoint. Two conversions of llama.cpp's are
//! undone while tensors are read: the order of rows of rotated heads, and the 1 that is added to Gemma's norms.

mod architectures;
mod error;
mod lora;
mod metadata;
mod pre_tokenizers;
mod reader;
mod tokenizer;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    json_config::{JsonConfig, JsonConfigError},
    tensors::{StoredTensor, TensorFile},
    tensors_error::TensorsError,
};
use crate::manifest::layout::{GENERATION_CONFIG, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, TOOL_TEMPLATE};

pub use error::GgufError;
pub(super) use lora::GgufLora;

pub(super) use architectures::HeadSizes;
use architectures::{Architecture, RopeFactors, Shapes, head_sizes};
use metadata::Metadata;
use reader::{Header, TensorEntry};
use tokenizer::Tokenizer;

/// The extension of GGUF files.
const EXTENSION: &str = "gguf";

/// Tensors that hold divisors of rotary frequencies.
const ROPE_ALL: &str = "rope_freqs.weight";
const ROPE_BY_LENGTH: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Whether `path` is a GGUF file by its name, and not a directory.
#[must_use]
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(EXTENSION)) && !path.is_dir()
}

/// A model in one GGUF file, or in several parts.
#[derive(Debug)]
pub(super) struct Gguf {
    path: PathBuf,
    metadata: Metadata,
    config: Vec<u8>,
    tensors: Vec<TensorFile>,
    tokenizer: Tokenizer,
}

impl Gguf {
    /// Opens the file at `path`, and the other parts of a split model.
    pub(super) fn open(path: &Path) -> Result<Self, GgufError> {
        let (file, mut header) = Header::open(path)?;
        let mut parts = other_parts(&header)?;
        let metadata = Metadata::new(&mut header)?;
        parts.insert(0, (file, header));
        let architecture = Architecture::of(&metadata)?;
        let sizes = head_sizes(&metadata)?;
        let mut all = BTreeMap::new();
        for (_, header) in &parts {
            for entry in &header.tensors {
                if all.insert(entry.name.clone(), entry.clone()).is_some() {
                    return Err(metadata.wrong(&format!("tensor {}", entry.name), "there twice", "once"));
                }
            }
        }
        let shapes = shapes(&metadata, &all)?;
        let architecture = architecture.with_shapes(&shapes);
        let mut tensors = Vec::new();
        let mut factors = RopeFactors::default();
        for (file, header) in parts {
            let mut file = part(&metadata, architecture, sizes, (file, &header))?;
            read_factors(&mut file, &header, &mut factors)?;
            tensors.push(file);
        }
        let config = architecture.config(&metadata, &shapes, &factors)?;
        let config = Value::Object(config).to_string().into_bytes();
        let tokenizer = Tokenizer::read(&metadata)?;
        Ok(Self { path: path.into(), metadata, config, tensors, tokenizer })
    }

    /// The model's `config.json`; errors about it name the GGUF file.
    pub(super) fn config(&self) -> Result<JsonConfig, JsonConfigError> {
        JsonConfig::parse(&self.path, &self.config)
    }

    /// Writes the tokenizer, chat templates and settings of generation into a directory, as a checkpoint has them.
    pub(super) fn write_embedded(&self) -> Result<TempDir, GgufError> {
        let failed = |source| GgufError::Embedded { path: self.path.clone(), source };
        let dir = TempDir::with_prefix("eka-gguf").map_err(failed)?;
        let Tokenizer { tokenizer, config, end_tokens } = &self.tokenizer;
        let mut texts = vec![
            (TOKENIZER, tokenizer.to_string()),
            (TOKENIZER_CONFIG, config.to_string()),
            (GENERATION_CONFIG, json!({ "eos_token_id": end_tokens }).to_string()),
        ];
        for (file, key) in [(TEMPLATE, "chat_template"), (TOOL_TEMPLATE, "chat_template.tool_use")] {
            texts.extend(self.metadata.tokenizer_text(key)?.map(|template| (file, template.to_owned())));
        }
        for (name, text) in texts {
            let path = dir.path().join(name);
            path.parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::write(&path, text))
                .map_err(failed)?;
        }
        Ok(dir)
    }

    /// The files with tensors by their names in a checkpoint.
    pub(super) fn into_tensors(self) -> Vec<TensorFile> {
        self.tensors
    }
}

/// Opens the parts of a split model after the first, which are called `…-00002-of-00003.gguf` and so on.
fn other_parts(first: &Header) -> Result<Vec<(File, Header)>, GgufError> {
    let number = |key: &str| match first.metadata.get(key) {
        Some(reader::Value::Unsigned(value)) => usize::try_from(*value).unwrap_or(0),
        _ => 0,
    };
    let (count, own) = (number("split.count"), number("split.no"));
    if count <= 1 {
        return Ok(Vec::new());
    }
    let path = &first.path;
    let part_path = |part: usize| {
        let name = path.file_name()?.to_str()?;
        let start = name.strip_suffix(&format!("-{:05}-of-{count:05}.gguf", own + 1))?;
        Some(path.with_file_name(format!("{start}-{part:05}-of-{count:05}.gguf")))
    };
    let missing =
        |missing| GgufError::MissingPart { path: path.clone(), part: own + 1, parts: count, missing };
    if own != 0 {
        // Only the first part has the metadata.
        return Err(missing(part_path(1).unwrap_or_default()));
    }
    (2..=count)
        .map(|part| {
            let path = part_path(part).unwrap_or_default();
            if path.is_file() { Header::open(&path) } else { Err(missing(path)) }
        })
        .collect()
}

fn shapes(metadata: &Metadata, tensors: &BTreeMap<String, TensorEntry>) -> Result<Shapes, GgufError> {
    const TABLE: &str = "token_embd.weight";
    let table = tensors.get(TABLE).and_then(|entry| entry.shape.first());
    Ok(Shapes {
        vocab: *table
            .ok_or_else(|| metadata.wrong(&format!("tensor {TABLE}"), "missing", "the embedding"))?,
        has_head: tensors.contains_key("output.weight"),
        biases: [&["attn_q", "attn_qkv"][..], &["attn_output"], &["ffn_up"]]
            .map(|parts| parts.iter().any(|part| tensors.contains_key(&format!("blk.0.{part}.bias")))),
        has_two_norms: tensors.contains_key("blk.0.attn_norm_2.weight"),
        has_experts: tensors.keys().any(|name| name.ends_with(".ffn_gate_inp.weight")),
    })
}

/// The tensors of a part, by their names in a checkpoint.
fn part(
    metadata: &Metadata,
    architecture: Architecture,
    sizes: HeadSizes,
    (file, header): (File, &Header),
) -> Result<TensorFile, GgufError> {
    let mut tensors = BTreeMap::new();
    for TensorEntry { name, shape, stored_type, start, bytes } in &header.tensors {
        let is_factor = name == ROPE_ALL || ROPE_BY_LENGTH.contains(&name.as_str());
        let checkpoint_name = architecture.checkpoint_name(name).or_else(|| is_factor.then(|| name.clone()));
        let checkpoint_name = checkpoint_name.ok_or_else(|| metadata.unknown_tensor(name))?;
        let row_order = architecture.row_order(name, sizes);
        let mut shape = shape.clone();
        if name.ends_with(".ffn_gate_inp_shexp.weight") && shape.len() == 1 {
            // A checkpoint has a matrix of one row.
            shape.insert(0, 1);
        }
        let tensor = StoredTensor {
            stored_type: Ok(*stored_type),
            start: *start,
            bytes: *bytes,
            row_order,
            offset: architecture.offset(name),
            ..StoredTensor::plain(shape)
        };
        tensors.insert(checkpoint_name, tensor);
    }
    Ok(TensorFile::new(&header.path, file, tensors))
}

/// Reads the divisors of frequencies that are among the tensors of a part.
fn read_factors(file: &mut TensorFile, header: &Header, factors: &mut RopeFactors) -> Result<(), GgufError> {
    let mut take = |name: &str| -> Result<Option<Vec<f32>>, GgufError> {
        let Some(&size) = file.shape(name).first() else { return Ok(None) };
        let failed = |error: TensorsError| GgufError::Damaged {
            path: header.path.clone(),
            position: 0,
            problem: error.to_string(),
        };
        let divisors = file.read(name, 0..size).map_err(failed)?;
        file.remove(name);
        Ok(Some(divisors))
    };
    if let Some(all) = take(ROPE_ALL)? {
        factors.all = Some(all);
    }
    if let (Some(short), Some(long)) = (take(ROPE_BY_LENGTH[0])?, take(ROPE_BY_LENGTH[1])?) {
        factors.by_length = Some([short, long]);
    }
    Ok(())
}

/// A GGUF file as far as its header; for the fuzzer.
pub(super) fn check_header(file: impl Read, bytes: u64) -> Result<(), GgufError> {
    let mut header = Header::read(file, Path::new("fuzzed"), bytes)?;
    let metadata = Metadata::new(&mut header)?;
    let tensors = header.tensors.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let architecture = Architecture::of(&metadata)?;
    architecture.config(&metadata, &shapes(&metadata, &tensors)?, &RopeFactors::default())?;
    Tokenizer::read(&metadata).map(drop)
}
