//! Ways into the parsers of what comes from outside, for `tests/fuzz` and for the seeded run of the ordinary tests.
//!
//! Each parses, checks, and drops. Whatever the bytes are, none may panic, run for long or take much memory.

use std::{io::Cursor, path::Path};

use crate::manifest::{Dtype, GraphNames, Manifest};

use super::{
    Storage, WeightFormat, adapter, architectures, checkpoint,
    data_layout::DATA_FILE,
    emit::{Precision, emit},
    gguf,
    inspect::operators,
    json_config::{JsonConfig, JsonConfigError},
    safetensors_header::Header,
    tokenizer, torch,
};

/// One parser: whether it took the bytes.
pub type Parser = fn(&[u8]) -> bool;

/// Every parser, by the name of its target under `tests/fuzz`.
pub const PARSERS: [(&str, Parser); 9] = [
    ("config", config),
    ("adapter_config", adapter_config),
    ("safetensors_index", safetensors_index),
    ("safetensors_header", safetensors_header),
    ("gguf", gguf),
    ("torch_file", torch_file),
    ("sentence_piece", sentence_piece),
    ("manifest", manifest),
    ("graph", graph),
];

/// `config.json`, as far as a graph and the places of all weights.
pub fn config(json: &[u8]) -> bool {
    let storage = Storage { format: WeightFormat::Int4, ..Storage::default() };
    let blueprint = parse(json).and_then(|config| architectures::read(&config));
    blueprint.is_ok_and(|blueprint| {
        drop(blueprint.angles());
        let Ok(formats) = storage.formats(&blueprint) else { return false };
        let precision = Precision { dtype: Dtype::Float32, formats };
        emit(&blueprint, precision, GraphNames::default(), DATA_FILE).is_ok()
    })
}

/// `adapter_config.json`.
pub fn adapter_config(json: &[u8]) -> bool {
    parse(json).is_ok_and(|config| adapter::check_settings(&config).is_ok())
}

/// `model.safetensors.index.json`.
pub fn safetensors_index(json: &[u8]) -> bool {
    parse(json).is_ok_and(|index| checkpoint::read_index(&index).is_ok())
}

/// A safetensors file, as far as its header.
pub fn safetensors_header(file: &[u8]) -> bool {
    Header::read(&mut { file }, Path::new("fuzzed"), file.len() as u64).is_ok()
}

/// A GGUF file, as far as its configuration and tokenizer.
pub fn gguf(file: &[u8]) -> bool {
    gguf::check_header(file, file.len() as u64).is_ok()
}

/// A PyTorch `.bin` file, as far as the places of its tensors.
pub fn torch_file(file: &[u8]) -> bool {
    torch::read(&mut Cursor::new(file), Path::new("fuzzed")).is_ok()
}

/// SentencePiece's or tiktoken's `tokenizer.model`, as far as a tokenizer.
pub fn sentence_piece(file: &[u8]) -> bool {
    tokenizer::check_sentence_piece(file).is_ok()
}

/// `eka.json`.
pub fn manifest(json: &[u8]) -> bool {
    Manifest::parse(Path::new("fuzzed"), json).is_ok()
}

/// `model.onnx`.
pub fn graph(onnx: &[u8]) -> bool {
    operators(onnx).is_ok()
}

fn parse(json: &[u8]) -> Result<JsonConfig, JsonConfigError> {
    JsonConfig::parse(Path::new("fuzzed"), json)
}
