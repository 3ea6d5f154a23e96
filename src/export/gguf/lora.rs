//! A LoRA adapter in a GGUF file, as llama.cpp's `convert_lora_to_gguf.py` writes it, as an adapter in PEFT's layout.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{
    architectures::{Architecture, HeadSizes},
    error::GgufError,
    metadata::Metadata,
    reader::{Header, TensorEntry},
};
use crate::export::tensors::{RowOrder, StoredTensor, TensorFile};

/// What PEFT puts before the names of the base's modules.
const MODEL: &str = "base_model.model.";

/// An adapter, with tensors by PEFT's names.
#[derive(Debug)]
pub(in crate::export) struct GgufLora {
    pub file: TensorFile,
    /// Its `adapter_config.json`.
    pub config: Vec<u8>,
}

impl GgufLora {
    /// Opens the file at `path`, for a base with heads of these sizes.
    pub(in crate::export) fn open(path: &Path, sizes: HeadSizes) -> Result<Self, GgufError> {
        let (file, mut header) = Header::open(path)?;
        let entries = std::mem::take(&mut header.tensors);
        let metadata = Metadata::new(&mut header)?;
        for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
            let found = metadata.required(key, "a string", super::reader::Value::as_text)?;
            if found != expected {
                return Err(metadata.unsupported(key, found, expected));
            }
        }
        let alpha = metadata.required("adapter.lora.alpha", "a number", super::reader::Value::as_float)?;
        let architecture = Architecture::of(&metadata)?;
        let mut tensors = BTreeMap::new();
        let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
        for entry in entries {
            let (module, part) = place(&metadata, architecture, &entry)?;
            let rank = *entry.shape.get(usize::from(part == "lora_B")).unwrap_or(&0);
            if entry.shape.len() != 2
                || entry.stored_type.block() != 1
                || ranks.insert(module.clone(), rank).is_some_and(|other| other != rank)
            {
                let expected = "a matrix in F32, F16 or BF16, of the same rank as its other half";
                let found = format!("{} of shape {:?}", entry.stored_type, entry.shape);
                return Err(metadata.wrong(&format!("tensor {}", entry.name), found, expected));
            }
            let name = format!("{MODEL}{module}.{part}.weight");
            let row_order = if part == "lora_B" {
                architecture.row_order(&entry.name, sizes)
            } else {
                RowOrder::Checkpoint
            };
            let view = view(row_order, [entry.shape[0], entry.shape[1]]);
            if view.is_none() && row_order != RowOrder::Checkpoint {
                let expected = "an adapter whose query, key and value have as many heads as the base's; use PEFT's file of it";
                return Err(metadata.wrong(&format!("tensor {}", entry.name), "not that", expected));
            }
            let tensor = StoredTensor {
                stored_type: Ok(entry.stored_type),
                start: entry.start,
                bytes: entry.bytes,
                view,
                ..StoredTensor::plain(entry.shape)
            };
            tensors.insert(name, tensor);
        }
        let config = config(alpha, &ranks).to_string().into_bytes();
        Ok(Self { file: TensorFile::new(path, file, tensors), config })
    }
}

/// The module of the base that a tensor changes, and which half of the product it is.
fn place(
    metadata: &Metadata,
    architecture: Architecture,
    entry: &TensorEntry,
) -> Result<(String, &'static str), GgufError> {
    let halves = [(".lora_a", "lora_A"), (".lora_b", "lora_B")];
    let found = halves.into_iter().find_map(|(end, part)| Some((entry.name.strip_suffix(end)?, part)));
    let module = found.and_then(|(tensor, part)| {
        // The halves of an embedding are transposed, and llama.cpp's converter writes none for most models.
        let name = architecture.checkpoint_name(tensor).filter(|_| !tensor.starts_with("token_embd"))?;
        Some((name.strip_suffix(".weight")?.to_owned(), part))
    });
    module.ok_or_else(|| metadata.unknown_tensor(&entry.name))
}

/// The order in which a checkpoint has the elements of a matrix, where the file has another.
fn view(row_order: RowOrder, [rows, cols]: [usize; 2]) -> Option<Vec<(usize, usize)>> {
    match row_order {
        RowOrder::Interleaved { head_dim } if head_dim > 0 && rows.is_multiple_of(head_dim) => {
            Some(vec![(rows / head_dim, head_dim * cols), (2, cols), (head_dim / 2, 2 * cols), (cols, 1)])
        }
        RowOrder::Stacked { groups, queries, keys } if queries == keys && rows == 3 * groups * keys => {
            Some(vec![(groups, keys * cols), (3, groups * keys * cols), (keys, cols), (cols, 1)])
        }
        _ => None,
    }
}

/// The settings with which PEFT would read the tensors.
fn config(alpha: f64, ranks: &BTreeMap<String, usize>) -> Value {
    let rank = ranks.values().next().copied().unwrap_or(1);
    let last = |module: &str| module.rsplit('.').next().unwrap_or_default().to_owned();
    let targets: BTreeSet<String> = ranks.keys().map(|module| last(module)).collect();
    let others: Map<String, Value> = ranks
        .iter()
        .filter(|(_, other)| **other != rank)
        .map(|(module, other)| (fancy_regex::escape(module).into_owned(), json!(other)))
        .collect();
    json!({ "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, "rank_pattern": others })
}
