//! Weights and biases as a model directory serves them.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use prost::Message;

use super::error::UnmergedError;
use crate::{
    export::positioned_io::PositionedFile,
    files,
    onnx::{ElementType, Graph, Model, Node, Tensor, external::is_within},
    units::Bytes,
};

/// The largest graph that is read. Those of eka have a few megabytes.
const MAX_GRAPH: Bytes = Bytes::mib(256);

/// The weights of a model directory.
pub(super) struct ServedWeights {
    dir: PathBuf,
    path: PathBuf,
    graph: Graph,
}

/// A matrix of a node, and the file that it is in.
pub(super) struct ServedMatrix<'a> {
    weights: &'a ServedWeights,
    file: PositionedFile,
    storage: Storage<'a>,
    /// Added to every weight of a block, and weights of a block.
    offsets: Option<(&'a Tensor, usize)>,
    columns: usize,
    depth: usize,
}

enum Storage<'a> {
    Floats(&'a Tensor),
    Quantized {
        codes: &'a Tensor,
        scales: StoredScales<'a>,
        zero_points: Option<&'a Tensor>,
        bits: usize,
        block: usize,
    },
}

/// Scales as they are stored.
#[derive(Clone, Copy)]
struct StoredScales<'a> {
    tensor: &'a Tensor,
    /// What they are multiplied with.
    factor: f32,
}

impl ServedWeights {
    /// Opens the graph `name` in `dir`.
    pub(super) fn open(dir: &Path, name: &str) -> Result<Self, UnmergedError> {
        let path = dir.join(name);
        let content = files::read(&path, MAX_GRAPH)
            .map_err(|source| UnmergedError::Weights { path: path.clone(), source })?;
        let graph = Model::decode(&*content).ok().and_then(|model| model.graph);
        let wrong = || UnmergedError::Graph { path: path.clone(), message: "it is not a graph".into() };
        Ok(Self { dir: dir.into(), graph: graph.ok_or_else(wrong)?, path })
    }

    /// The matrix of the node called `name`; `offsets` is the node that adds what the offsets of blocks give.
    pub(super) fn matrix(
        &self,
        name: &str,
        offsets: Option<&str>,
    ) -> Result<ServedMatrix<'_>, UnmergedError> {
        let node = self.node(name)?;
        let number = |wanted: &str| {
            let found = node.attribute.iter().find(|attribute| attribute.name == wanted);
            found.and_then(|attribute| usize::try_from(attribute.i?).ok())
        };
        let missing = || self.wrong(format!("the node {name} is not a product with a matrix"));
        let (storage, columns, depth) = match node.op_type.as_str() {
            "FusedMatMul" => {
                let tensor = self.input(node, 1)?;
                let [columns, depth] = tensor.dims[..] else { return Err(missing()) };
                let size = |size| usize::try_from(size).map_err(|_| missing());
                (Storage::Floats(tensor), size(columns)?, size(depth)?)
            }
            "MatMulNBits" => {
                let [bits, block, columns, depth] = ["bits", "block_size", "N", "K"].map(number);
                let (Some(bits), Some(block), Some(columns), Some(depth)) = (bits, block, columns, depth)
                else {
                    return Err(missing());
                };
                let zero_points = (node.input.len() > 3).then(|| self.input(node, 3)).transpose()?;
                let (codes, scales) = (self.input(node, 1)?, self.scales(node)?);
                if !matches!(bits, 4 | 8) || block == 0 || !block.is_multiple_of(2) {
                    return Err(missing());
                }
                (Storage::Quantized { codes, scales, zero_points, bits, block }, columns, depth)
            }
            _ => return Err(missing()),
        };
        let block = if let Storage::Quantized { block, .. } = storage { block } else { depth };
        let offsets = offsets.map(|name| self.input(self.node(name)?, 1)).transpose()?;
        let offsets = offsets.map(|offsets| (offsets, block));
        let first = match &storage {
            Storage::Floats(tensor) => tensor,
            Storage::Quantized { codes, .. } => codes,
        };
        Ok(ServedMatrix { weights: self, file: self.file(first)?, storage, offsets, columns, depth })
    }

    /// The bias that is added to the output of the node called `name`.
    pub(super) fn bias(&self, name: &str) -> Result<Vec<f32>, UnmergedError> {
        let mut output = self.node(name)?.output.first().cloned().unwrap_or_default();
        // The offsets of blocks are added before the bias.
        for _ in 0..2 {
            let reads = |node: &&Node| node.op_type == "Add" && node.input.first() == Some(&output);
            let Some(add) = self.graph.node.iter().find(reads) else { break };
            if let Ok(bias) = self.input(add, 1) {
                let count = usize::try_from(bias.dims.iter().product::<i64>()).unwrap_or(0);
                return self.floats(&self.file(bias)?, bias, 0..count);
            }
            output = add.output.first().cloned().unwrap_or_default();
        }
        Err(self.wrong(format!("the node {name} has no bias")))
    }

    /// The vector called `name`.
    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>, UnmergedError> {
        let found = self.graph.initializer.iter().find(|tensor| tensor.name == name);
        let tensor = found.ok_or_else(|| self.wrong(format!("{name} is missing")))?;
        let count = usize::try_from(tensor.dims.iter().product::<i64>()).unwrap_or(0);
        self.floats(&self.file(tensor)?, tensor, 0..count)
    }

    /// The nodes that read the tensor called `name`, or a conversion or choice of its rows.
    pub(super) fn readers(&self, name: &str) -> Vec<&Node> {
        let (mut names, mut readers) = (vec![name], Vec::new());
        while let Some(name) = names.pop() {
            for node in self.graph.node.iter().filter(|node| node.input.iter().any(|input| input == name)) {
                let passes_on = matches!(node.op_type.as_str(), "Cast" | "Gather") && node.input[0] == name;
                if passes_on {
                    names.extend(node.output.first().map(String::as_str));
                } else {
                    readers.push(node);
                }
            }
        }
        readers
    }

    fn node(&self, name: &str) -> Result<&Node, UnmergedError> {
        let found = self.graph.node.iter().find(|node| node.name == name);
        found.ok_or_else(|| self.wrong(format!("the node {name} is missing")))
    }

    fn input(&self, node: &Node, index: usize) -> Result<&Tensor, UnmergedError> {
        let name = node.input.get(index);
        let found = name.and_then(|name| self.graph.initializer.iter().find(|tensor| tensor.name == *name));
        found.ok_or_else(|| self.wrong(format!("input {index} of the node {} is not a weight", node.name)))
    }

    /// The scales of a quantized matrix, which may be stored in 16 bits, cast and multiplied by a number.
    fn scales(&self, node: &Node) -> Result<StoredScales<'_>, UnmergedError> {
        let found = self.input(node, 2);
        if let Ok(tensor) = found {
            return Ok(StoredScales { tensor, factor: 1.0 });
        }
        let cast = || {
            let product = self.producer(node.input.get(2)?, "Mul")?;
            let factor = self.input(product, 1).ok().filter(|factor| factor.dims.is_empty())?;
            let factor = f32::from_le_bytes(<[u8; 4]>::try_from(&*factor.raw_data).ok()?);
            let tensor = self.input(self.producer(product.input.first()?, "Cast")?, 0).ok()?;
            Some(StoredScales { tensor, factor })
        };
        cast().map_or_else(|| found.map(|tensor| StoredScales { tensor, factor: 1.0 }), Ok)
    }

    /// The node of type `op_type` that computes `value`.
    fn producer(&self, value: &str, op_type: &str) -> Option<&Node> {
        self.graph
            .node
            .iter()
            .find(|node| node.op_type == op_type && node.output.iter().any(|output| output == value))
    }

    fn wrong(&self, message: String) -> UnmergedError {
        UnmergedError::Graph { path: self.path.clone(), message }
    }

    fn file(&self, tensor: &Tensor) -> Result<PositionedFile, UnmergedError> {
        let location = entry(tensor, "location").filter(|location| is_within(location));
        let location =
            location.ok_or_else(|| self.wrong(format!("{} is not in a file beside it", tensor.name)))?;
        let path = self.dir.join(location);
        match files::open(&path) {
            Ok(file) => Ok(PositionedFile::new(file)),
            Err(source) => Err(UnmergedError::Weights { path, source }),
        }
    }

    /// Bytes `range` of a tensor.
    fn bytes(
        &self,
        file: &PositionedFile,
        tensor: &Tensor,
        range: Range<usize>,
    ) -> Result<Vec<u8>, UnmergedError> {
        let number = |key| entry(tensor, key).and_then(|text| text.parse::<u64>().ok());
        let (offset, length) = (number("offset").unwrap_or(0), number("length").unwrap_or(0));
        if range.end as u64 > length || range.start > range.end {
            return Err(self.wrong(format!("{} has {length} bytes, and {} are read", tensor.name, range.end)));
        }
        let mut bytes = vec![0; range.len()];
        match file.read_exact_at(&mut bytes, offset + range.start as u64) {
            Ok(()) => Ok(bytes),
            Err(source) => Err(UnmergedError::Weights { path: self.path.clone(), source }),
        }
    }

    /// Numbers `range` of a float tensor.
    fn floats(
        &self,
        file: &PositionedFile,
        tensor: &Tensor,
        range: Range<usize>,
    ) -> Result<Vec<f32>, UnmergedError> {
        let element = ElementType::try_from(tensor.data_type);
        let size = if element == Ok(ElementType::Float) { 4 } else { 2 };
        let bytes = self.bytes(file, tensor, range.start * size..range.end * size)?;
        let pairs = bytes.as_chunks::<2>().0.iter();
        Ok(match element {
            Ok(ElementType::Float) => {
                bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
            }
            Ok(ElementType::Float16) => pairs.map(|pair| f16::from_le_bytes(*pair).to_f32()).collect(),
            Ok(ElementType::Bfloat16) => pairs.map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect(),
            _ => return Err(self.wrong(format!("{} does not have floats", tensor.name))),
        })
    }
}

fn entry<'a>(tensor: &'a Tensor, key: &str) -> Option<&'a str> {
    tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value)
}

impl ServedMatrix<'_> {
    pub(super) const fn columns(&self) -> usize {
        self.columns
    }

    pub(super) const fn depth(&self) -> usize {
        self.depth
    }

    /// The weights of output columns `rows`, `[rows, depth]`.
    pub(super) fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>, UnmergedError> {
        let mut weights = match self.storage {
            Storage::Floats(tensor) => {
                return self.weights.floats(
                    &self.file,
                    tensor,
                    rows.start * self.depth..rows.end * self.depth,
                );
            }
            Storage::Quantized { codes, scales, zero_points, bits, block } => {
                self.quantized(rows.clone(), (codes, scales, zero_points), [bits, block])?
            }
        };
        if let Some((offsets, block)) = self.offsets {
            let blocks = self.depth.div_ceil(block);
            let values = self.weights.floats(&self.file, offsets, rows.start * blocks..rows.end * blocks)?;
            for (row, offsets) in weights.chunks_exact_mut(self.depth).zip(values.chunks_exact(blocks)) {
                for (weights, offset) in row.chunks_mut(block).zip(offsets) {
                    weights.iter_mut().for_each(|weight| *weight += offset);
                }
            }
        }
        Ok(weights)
    }

    fn quantized(
        &self,
        rows: Range<usize>,
        (codes, scales, zero_points): (&Tensor, StoredScales, Option<&Tensor>),
        [bits, block]: [usize; 2],
    ) -> Result<Vec<f32>, UnmergedError> {
        let blocks = self.depth.div_ceil(block);
        let row_bytes = blocks * block * bits / 8;
        let bytes = self.weights.bytes(&self.file, codes, rows.start * row_bytes..rows.end * row_bytes)?;
        let StoredScales { tensor, factor } = scales;
        let scales = self.weights.floats(&self.file, tensor, rows.start * blocks..rows.end * blocks)?;
        let zero_bytes = (blocks * bits).div_ceil(8);
        let zeros = zero_points.map(|zeros| {
            self.weights.bytes(&self.file, zeros, rows.start * zero_bytes..rows.end * zero_bytes)
        });
        let zeros = zeros.transpose()?;
        let code = |bytes: &[u8], at: usize| match bits {
            4 => f32::from((bytes[at / 2] >> (at % 2 * 4)) & 15),
            _ => f32::from(bytes[at]),
        };
        let middle = if bits == 4 { 8.0 } else { 128.0 };
        let mut weights = Vec::with_capacity(rows.len() * self.depth);
        for row in 0..rows.len() {
            let of_row = &bytes[row * row_bytes..][..row_bytes];
            for at in 0..self.depth {
                let zero = zeros
                    .as_ref()
                    .map_or(middle, |zeros| code(&zeros[row * zero_bytes..][..zero_bytes], at / block));
                weights.push((code(of_row, at) - zero) * scales[row * blocks + at / block] * factor);
            }
        }
        Ok(weights)
    }
}
