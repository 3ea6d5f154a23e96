//! A packed matrix: which tensors it is made of, and their layout.

use std::collections::BTreeMap;

use super::settings::{Method, Packing};
use crate::export::{tensors::TensorFile, tensors_error::TensorsError};

/// Parts of a packed matrix by the ends of their names.
type Parts = BTreeMap<&'static str, Part>;

/// A tensor of a packed matrix.
#[derive(Clone, Debug)]
pub(in crate::export) struct Part {
    /// Which of the checkpoint's files.
    pub file: usize,
    /// Its name there.
    pub name: String,
}

/// A packed matrix.
#[derive(Clone, Debug)]
pub(in crate::export) struct PackedMatrix {
    pub(super) packing: Packing,
    pub(super) layout: Layout,
    parts: Parts,
    /// `[out, in]`.
    pub shape: [usize; 2],
}

/// How the numbers of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Words with several inputs of one output: `[in / n, out]`.
    WordsOfInputs,
    /// Words with several outputs of one input: `[in, out / n]`.
    WordsOfOutputs,
    /// Words with several inputs of one output: `[out, in / n]`.
    Rows,
    /// `[out, in]` numbers, and scales.
    Scaled,
    /// Codes of a table.
    Table,
    /// `[out, in / 2]` bytes with two floats in four bits each, the first one lowest.
    Floats4,
    /// The same in blocks, of all experts of a layer: `[experts, out, blocks, 16]`, and exponents `[experts, out, blocks]`.
    ExpertFloats4,
}

/// Bytes of a block of [`Layout::ExpertFloats4`].
pub(super) const EXPERT_BLOCK_BYTES: usize = 16;

/// For each layout the end of the name that shows it, and those of all parts.
const LAYOUTS: [(Layout, &str, &[&str]); 9] = [
    (Layout::WordsOfInputs, ".qweight", &[".qweight", ".qzeros", ".scales", ".g_idx"]),
    (
        Layout::Rows,
        ".weight_packed",
        &[
            ".weight_packed",
            ".weight_scale",
            ".weight_zero_point",
            ".weight_shape",
            ".weight_g_idx",
            ".weight_global_scale",
            ".input_global_scale",
        ],
    ),
    (Layout::Floats4, ".weight_scale_2", &[".weight", ".weight_scale", ".weight_scale_2", ".input_scale"]),
    (
        Layout::Table,
        ".weight.absmax",
        &[
            ".weight",
            ".weight.absmax",
            ".weight.quant_map",
            ".weight.nested_absmax",
            ".weight.nested_quant_map",
            ".weight.quant_state.bitsandbytes__nf4",
            ".weight.quant_state.bitsandbytes__fp4",
        ],
    ),
    (Layout::Scaled, ".SCB", &[".weight", ".SCB", ".weight_format"]),
    (
        Layout::Scaled,
        ".weight_scale_inv",
        &[".weight", ".weight_scale_inv", ".input_scale", ".activation_scale"],
    ),
    (
        Layout::Scaled,
        ".weight_scale",
        &[".weight", ".weight_scale", ".weight_zero_point", ".input_scale", ".input_scale_ub"],
    ),
    (Layout::Scaled, ".scale_weight", &[".weight", ".scale_weight"]),
    (Layout::ExpertFloats4, "_blocks", &["_blocks", "_scales"]),
];

impl PackedMatrix {
    /// The packed matrices among `tensors`, by the names that they would have unpacked; takes their parts out of `tensors`.
    pub(in crate::export) fn find(
        packing: Packing,
        tensors: &mut BTreeMap<String, Part>,
        files: &[TensorFile],
    ) -> Result<BTreeMap<String, Self>, TensorsError> {
        let mut found = BTreeMap::new();
        for (layout, mark, ends) in LAYOUTS {
            let modules: Vec<String> =
                tensors.keys().filter_map(|name| name.strip_suffix(mark)).map(str::to_owned).collect();
            for module in modules {
                let part = |end: &&'static str| Some((*end, tensors.remove(&format!("{module}{end}"))?));
                let parts: Parts = ends.iter().filter_map(part).collect();
                let layout = match layout {
                    Layout::WordsOfInputs if packing.method == Method::Awq => Layout::WordsOfOutputs,
                    Layout::Rows if packing.is_float => Layout::Floats4,
                    other => other,
                };
                let mut matrix = Self { packing, layout, parts, shape: [0, 0] };
                matrix.shape = matrix.find_shape(files)?;
                let end = if layout == Layout::ExpertFloats4 { "" } else { ".weight" };
                found.insert(format!("{module}{end}"), matrix);
            }
        }
        Ok(found)
    }

    /// Numbers in a word of 32 bits.
    pub(super) fn per_word(&self) -> usize {
        (u32::BITS / self.packing.bits) as usize
    }

    /// The end of the name of the tensor with floats in four bits.
    pub(super) fn packed_floats(&self) -> &'static str {
        if self.has(".weight_packed") { ".weight_packed" } else { ".weight" }
    }

    fn find_shape(&self, files: &[TensorFile]) -> Result<[usize; 2], TensorsError> {
        let per_word = self.per_word();
        let two = |end| -> Result<[usize; 2], TensorsError> {
            let (file, name) = self.part(files, end)?;
            <[usize; 2]>::try_from(file.shape(name)).map_err(|_| file.shape_error(name, "a matrix"))
        };
        Ok(match self.layout {
            Layout::WordsOfInputs => {
                let [words, out] = two(".qweight")?;
                [out, words.saturating_mul(per_word)]
            }
            Layout::WordsOfOutputs => {
                let [inputs, words] = two(".qweight")?;
                [words.saturating_mul(per_word), inputs]
            }
            Layout::Rows => {
                let [out, words] = two(".weight_packed")?;
                [out, words.saturating_mul(per_word)]
            }
            Layout::Floats4 => {
                let [out, pairs] = two(self.packed_floats())?;
                [out, pairs.saturating_mul(2)]
            }
            Layout::Scaled => two(".weight")?,
            Layout::Table => self.table_state(files)?.shape,
            Layout::ExpertFloats4 => {
                let (file, name) = self.part(files, "_blocks")?;
                let &[experts, out, blocks, EXPERT_BLOCK_BYTES] = file.shape(name) else {
                    return Err(file.shape_error(name, "[experts, out, blocks, 16]"));
                };
                let (file, name) = self.part(files, "_scales")?;
                if file.shape(name) != [experts, out, blocks] {
                    return Err(file.shape_error(name, format!("[{experts}, {out}, {blocks}]")));
                }
                [experts.saturating_mul(out), blocks.saturating_mul(2 * EXPERT_BLOCK_BYTES)]
            }
        })
    }

    pub(super) fn part<'a>(
        &'a self,
        files: &'a [TensorFile],
        end: &'static str,
    ) -> Result<(&'a TensorFile, &'a str), TensorsError> {
        let missing = || {
            let beside = self.parts.values().next();
            let file = beside.and_then(|part| files.get(part.file)).or(files.first());
            let path = file.map(|file| file.path().to_owned()).unwrap_or_default();
            let tensor = beside.map(|part| part.name.clone()).unwrap_or_default();
            TensorsError::NoPart { path, tensor, end }
        };
        let part = self.parts.get(end).ok_or_else(missing)?;
        Ok((files.get(part.file).ok_or_else(missing)?, &part.name))
    }

    pub(super) fn has(&self, end: &str) -> bool {
        self.parts.contains_key(end)
    }
}
