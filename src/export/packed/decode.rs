//! The arithmetic of each layout.

use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;

use super::{
    float8,
    matrix::{EXPERT_BLOCK_BYTES, Layout, PackedMatrix},
    settings::Method,
};
use crate::{
    export::{quantize::Quantizer, tensors::TensorFile, tensors_error::TensorsError},
    manifest::MAX_DIMENSION,
};

/// Where AWQ puts the outputs of a word, from its lowest bits on.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The largest description of a table that is read.
const MAX_STATE_BYTES: usize = 4096;

/// What bitsandbytes says about a matrix.
#[derive(Deserialize)]
pub(super) struct TableState {
    blocksize: usize,
    pub(super) shape: [usize; 2],
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// Numbers of `bits` bits in words, from the lowest bits on.
fn unpack(word: u32, bits: u32, place: usize) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "a place in a word")]
    let shift = place as u32 * bits;
    word >> shift & (u32::MAX >> (u32::BITS - bits))
}

impl PackedMatrix {
    /// The given outputs, `[lines, in]`, as float32.
    pub(in crate::export) fn read(
        &self,
        files: &[TensorFile],
        lines: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        match self.layout {
            Layout::WordsOfInputs => self.read_words_of_inputs(files, lines),
            Layout::WordsOfOutputs => self.read_words_of_outputs(files, lines),
            Layout::Rows => self.read_rows(files, lines),
            Layout::Scaled => self.read_scaled(files, lines),
            Layout::Table => self.read_table(files, lines),
            Layout::Floats4 => self.read_floats_4(files, lines),
            Layout::ExpertFloats4 => self.read_expert_floats_4(files, lines),
        }
    }

    /// The scales of the blocks of `lines`, if groups are whole blocks of `quantizer` with zero points in the middle: its codes
    /// are then those of the matrix.
    pub(in crate::export) fn scales(
        &self,
        files: &[TensorFile],
        lines: &Range<usize>,
        quantizer: Quantizer,
    ) -> Result<Option<Vec<f32>>, TensorsError> {
        let (inputs, is_by_line) = (self.shape[1], self.layout == Layout::Rows);
        let (scales, end) = match self.layout {
            Layout::WordsOfInputs | Layout::WordsOfOutputs => {
                (self.columns(files, ".scales", lines)?, ".g_idx")
            }
            Layout::Rows => (self.scales_of_rows(files, lines)?, ".weight_g_idx"),
            Layout::Scaled | Layout::Table | Layout::Floats4 | Layout::ExpertFloats4 => return Ok(None),
        };
        let groups = scales.len() / lines.len().max(1);
        let size = inputs / groups.max(1);
        let blocks = quantizer.blocks_of_group(self.packing.bits, size).filter(|_| groups * size == inputs);
        let Some(blocks) = blocks else { return Ok(None) };
        let is_in_order = |(input, group): (usize, &usize)| input / size == *group;
        let middle = (1u32 << (self.packing.bits - 1)) as f32;
        if !self.groups(files, end, groups)?.iter().enumerate().all(is_in_order)
            || self.zeros(files, lines, groups)?.iter().any(|zero| *zero != middle)
        {
            return Ok(None);
        }
        let scale = |line: usize, group: usize| {
            scales[if is_by_line { line * groups + group } else { group * lines.len() + line }]
        };
        let of_line = |line| (0..groups).flat_map(move |group| std::iter::repeat_n((line, group), blocks));
        Ok(Some((0..lines.len()).flat_map(of_line).map(|(line, group)| scale(line, group)).collect()))
    }

    /// Zero points of groups of words, in the order of their scales.
    fn zeros(
        &self,
        files: &[TensorFile],
        lines: &Range<usize>,
        groups: usize,
    ) -> Result<Vec<f32>, TensorsError> {
        let awq = |place: usize| AWQ_ORDER[place % AWQ_ORDER.len()];
        let (mut zeros, added) = match (self.layout, self.packing.method) {
            (Layout::Rows, _) => {
                (self.packed_zeros(files, lines, groups)?, (1u32 << (self.packing.bits - 1)) as f32)
            }
            (Layout::WordsOfOutputs, _) => (self.zeros_along_outputs(files, (lines, groups), awq)?, 0.0),
            (_, Method::Gptq { is_second: true }) => {
                (self.zeros_along_outputs(files, (lines, groups), |place| place)?, 0.0)
            }
            _ => (self.zeros_along_outputs(files, (lines, groups), |place| place)?, 1.0),
        };
        zeros.iter_mut().for_each(|zero| *zero += added);
        Ok(zeros)
    }

    /// Scales `[lines, groups]` of compressed-tensors.
    fn scales_of_rows(&self, files: &[TensorFile], lines: &Range<usize>) -> Result<Vec<f32>, TensorsError> {
        let (file, scale) = self.part(files, ".weight_scale")?;
        let groups = file.shape(scale).get(1).copied().unwrap_or(1).max(1);
        file.read(scale, lines.start * groups..lines.end * groups)
    }

    /// `(number - zero) · scale` of the input's group.
    fn read_words_of_inputs(
        &self,
        files: &[TensorFile],
        lines: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let bits = self.packing.bits;
        let (per_word, [out, inputs]) = (self.per_word(), self.shape);
        let scales = self.columns(files, ".scales", &lines)?;
        let groups = scales.len() / lines.len().max(1);
        let zeros = self.zeros(files, &lines, groups)?;
        let group_of = self.groups(files, ".g_idx", groups)?;
        let (file, words) = self.part(files, ".qweight")?;
        let mut values = vec![0.0; lines.len() * inputs];
        for word_row in 0..inputs / per_word {
            let start = word_row * out;
            let row = file.read_words(words, start + lines.start..start + lines.end)?;
            for (line, word) in row.into_iter().enumerate() {
                for place in 0..per_word {
                    let input = word_row * per_word + place;
                    let at = group_of[input] * lines.len() + line;
                    let number = unpack(word, bits, place) as f32;
                    values[line * inputs + input] = (number - zeros[at]) * scales[at];
                }
            }
        }
        Ok(values)
    }

    /// The same, with words along the output.
    fn read_words_of_outputs(
        &self,
        files: &[TensorFile],
        lines: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let (bits, per_word, [out, inputs]) = (self.packing.bits, self.per_word(), self.shape);
        let order = |place: usize| AWQ_ORDER[place % AWQ_ORDER.len()];
        let scales = self.columns(files, ".scales", &lines)?;
        let groups = scales.len() / lines.len().max(1);
        let zeros = self.zeros(files, &lines, groups)?;
        let group_of = self.groups(files, ".g_idx", groups)?;
        let (file, words) = self.part(files, ".qweight")?;
        let wanted = lines.start / per_word..lines.end.div_ceil(per_word);
        let mut values = vec![0.0; lines.len() * inputs];
        for (input, group) in group_of.iter().enumerate() {
            let start = input * (out / per_word);
            let row = file.read_words(words, start + wanted.start..start + wanted.end)?;
            for (line, output) in lines.clone().enumerate() {
                let number =
                    unpack(row[output / per_word - wanted.start], bits, order(output % per_word)) as f32;
                let at = group * lines.len() + line;
                values[line * inputs + input] = (number - zeros[at]) * scales[at];
            }
        }
        Ok(values)
    }

    /// compressed-tensors: numbers from the lowest to the highest that their bits hold, and perhaps zero points.
    fn read_rows(&self, files: &[TensorFile], lines: Range<usize>) -> Result<Vec<f32>, TensorsError> {
        let (bits, per_word, [_, inputs]) = (self.packing.bits, self.per_word(), self.shape);
        let scales = self.scales_of_rows(files, &lines)?;
        let groups = scales.len() / lines.len().max(1);
        let zeros = self.zeros(files, &lines, groups)?;
        let group_of = self.groups(files, ".weight_g_idx", groups)?;
        let (file, words) = self.part(files, ".weight_packed")?;
        let width = inputs / per_word;
        let row = file.read_words(words, lines.start * width..lines.end * width)?;
        let mut values = Vec::with_capacity(lines.len() * inputs);
        for line in 0..lines.len() {
            for (input, group) in group_of.iter().enumerate() {
                let number = unpack(row[line * width + input / per_word], bits, input % per_word) as f32;
                let at = line * groups + group;
                values.push((number - zeros[at]) * scales[at]);
            }
        }
        Ok(values)
    }

    /// Numbers times the scale of their block.
    fn read_scaled(&self, files: &[TensorFile], lines: Range<usize>) -> Result<Vec<f32>, TensorsError> {
        let [out, inputs] = self.shape;
        let (file, weight) = self.part(files, ".weight")?;
        let mut values = read_numbers(file, weight, lines.start * inputs..lines.end * inputs)?;
        if self.has(".SCB") {
            let (file, scale) = self.part(files, ".SCB")?;
            for (row, scale) in values.chunks_exact_mut(inputs).zip(file.read(scale, lines)?) {
                row.iter_mut().for_each(|value| *value *= scale / 127.0);
            }
            return Ok(values);
        }
        let ends = [".weight_scale_inv", ".weight_scale", ".scale_weight"];
        let end = ends.into_iter().find(|end| self.has(end)).unwrap_or(".weight_scale");
        let (file, scale) = self.part(files, end)?;
        let (rows, columns) = grid(file.shape(scale));
        let sizes = [block(out, rows, self.packing.block[0]), block(inputs, columns, self.packing.block[1])];
        if rows * columns > MAX_DIMENSION
            || (out - 1) / sizes[0] >= rows
            || (inputs - 1) / sizes[1] >= columns
        {
            return Err(file.shape_error(scale, format!("scales of a matrix of shape {:?}", self.shape)));
        }
        let scales = file.read(scale, 0..rows * columns)?;
        let zeros = match self.has(".weight_zero_point") {
            true => {
                let (file, zero) = self.part(files, ".weight_zero_point")?;
                read_numbers(file, zero, 0..rows * columns)?
            }
            false => vec![0.0; rows * columns],
        };
        for (line, row) in lines.zip(values.chunks_exact_mut(inputs)) {
            for (input, value) in row.iter_mut().enumerate() {
                let at = line / sizes[0] * columns + input / sizes[1];
                *value = (*value - zeros[at]) * scales[at];
            }
        }
        Ok(values)
    }

    /// NVFP4 and MXFP4: floats of four bits, times the scale of their group, and the scale of the whole matrix if it has one.
    fn read_floats_4(&self, files: &[TensorFile], lines: Range<usize>) -> Result<Vec<f32>, TensorsError> {
        let inputs = self.shape[1];
        let (file, name) = self.part(files, ".weight_scale")?;
        let &[_, groups] = file.shape(name) else { return Err(file.shape_error(name, "a matrix")) };
        if groups == 0 || !inputs.is_multiple_of(groups) {
            return Err(file.shape_error(name, format!("[{}, groups] for {inputs} inputs", self.shape[0])));
        }
        let wanted = lines.start * groups..lines.end * groups;
        let scales = match file.part_type(name) {
            Some(Dtype::U8 | Dtype::F8_E8M0) => {
                file.read_bytes(name, wanted)?.into_iter().map(float8::e8m0).collect()
            }
            _ => read_numbers(file, name, wanted)?,
        };
        let whole = self.whole_scale(files)?;
        let (file, name) = self.part(files, self.packed_floats())?;
        let bytes = file.read_bytes(name, lines.start * inputs / 2..lines.end * inputs / 2)?;
        let codes = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        let scales = scales.iter().flat_map(|scale| std::iter::repeat_n(scale * whole, inputs / groups));
        Ok(codes.zip(scales).map(|(code, scale)| float8::e2m1(code) * scale).collect())
    }

    /// MXFP4 of gpt-oss: lines of all experts, one after the other.
    fn read_expert_floats_4(
        &self,
        files: &[TensorFile],
        lines: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let blocks = self.shape[1] / (2 * EXPERT_BLOCK_BYTES);
        let wanted = lines.start * blocks..lines.end * blocks;
        let (file, name) = self.part(files, "_scales")?;
        let scales = file.read_bytes(name, wanted.clone())?;
        let (file, name) = self.part(files, "_blocks")?;
        let bytes =
            file.read_bytes(name, wanted.start * EXPERT_BLOCK_BYTES..wanted.end * EXPERT_BLOCK_BYTES)?;
        let blocks = bytes.chunks_exact(EXPERT_BLOCK_BYTES).zip(scales);
        let decoded = blocks.flat_map(|(block, scale)| {
            let scale = float8::e8m0(scale);
            let codes = block.iter().flat_map(|byte| [byte & 15, byte >> 4]);
            codes.map(move |code| float8::e2m1(code) * scale)
        });
        Ok(decoded.collect())
    }

    /// What all scales of a matrix are multiplied with; compressed-tensors stores what they are divided by.
    fn whole_scale(&self, files: &[TensorFile]) -> Result<f32, TensorsError> {
        let read = |end: &'static str| -> Result<Option<f32>, TensorsError> {
            if !self.has(end) {
                return Ok(None);
            }
            let (file, name) = self.part(files, end)?;
            Ok(file.read(name, 0..1)?.first().copied())
        };
        Ok(match (read(".weight_scale_2")?, read(".weight_global_scale")?) {
            (Some(scale), _) => scale,
            (None, Some(divisor)) => 1.0 / divisor,
            (None, None) => 1.0,
        })
    }

    /// bitsandbytes in 4 bits: the table's value of each code, times the greatest of its block.
    fn read_table(&self, files: &[TensorFile], lines: Range<usize>) -> Result<Vec<f32>, TensorsError> {
        let (state, inputs) = (self.table_state(files)?, self.shape[1]);
        let (file, map) = self.part(files, ".weight.quant_map")?;
        let table = file.read(map, 0..16)?;
        let wanted = lines.start * inputs..lines.end * inputs;
        let blocks = wanted.start / state.blocksize..wanted.end.div_ceil(state.blocksize);
        let greatest = self.greatest(files, &state, blocks.clone())?;
        let (file, weight) = self.part(files, ".weight")?;
        let bytes = file.read_bytes(weight, wanted.start / 2..wanted.end.div_ceil(2))?;
        let value = |at: usize| {
            let byte = bytes[at / 2 - wanted.start / 2];
            let code = if at.is_multiple_of(2) { byte >> 4 } else { byte & 0xf };
            table[usize::from(code)] * greatest[at / state.blocksize - blocks.start]
        };
        Ok(wanted.clone().map(value).collect())
    }

    /// The greatest number of each block, which may be quantized itself.
    fn greatest(
        &self,
        files: &[TensorFile],
        state: &TableState,
        blocks: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let (file, absmax) = self.part(files, ".weight.absmax")?;
        let (true, Some(size)) = (self.has(".weight.nested_absmax"), state.nested_blocksize) else {
            return file.read(absmax, blocks);
        };
        let codes = file.read_bytes(absmax, blocks.clone())?;
        let (file, map) = self.part(files, ".weight.nested_quant_map")?;
        let table = file.read(map, 0..256)?;
        let (file, nested) = self.part(files, ".weight.nested_absmax")?;
        let size = size.max(1);
        let first = blocks.start / size;
        let scales = file.read(nested, first..blocks.end.div_ceil(size))?;
        let offset = state.nested_offset.unwrap_or(0.0);
        let value =
            |(block, code): (usize, u8)| table[usize::from(code)] * scales[block / size - first] + offset;
        Ok(blocks.zip(codes).map(value).collect())
    }

    pub(super) fn table_state(&self, files: &[TensorFile]) -> Result<TableState, TensorsError> {
        let ends = [".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"];
        let end = ends.into_iter().find(|end| self.has(end)).unwrap_or(ends[0]);
        let (file, name) = self.part(files, end)?;
        let length: usize = file.shape(name).iter().product();
        let json = file.read_bytes(name, 0..length.min(MAX_STATE_BYTES))?;
        let state: Option<TableState> = serde_json::from_slice(&json).ok();
        let is_sound = |state: &TableState| {
            state.blocksize > 0 && state.shape.iter().all(|size| (1..=MAX_DIMENSION).contains(size))
        };
        state.filter(is_sound).ok_or_else(|| file.shape_error(name, "the state of a matrix as JSON"))
    }

    /// Some columns of a matrix of floats, row by row.
    fn columns(
        &self,
        files: &[TensorFile],
        end: &'static str,
        lines: &Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let (file, name) = self.part(files, end)?;
        let &[rows, width] = file.shape(name) else { return Err(file.shape_error(name, "a matrix")) };
        if width != self.shape[0] || rows == 0 || rows > self.shape[1] {
            return Err(file.shape_error(name, format!("[groups, {}]", self.shape[0])));
        }
        let mut values = Vec::with_capacity(rows * lines.len());
        for row in 0..rows {
            values.extend(file.read(name, row * width + lines.start..row * width + lines.end)?);
        }
        Ok(values)
    }

    /// Zero points `[groups, lines]`, packed along outputs; `order` is where a word has its outputs.
    fn zeros_along_outputs(
        &self,
        files: &[TensorFile],
        (lines, groups): (&Range<usize>, usize),
        order: impl Fn(usize) -> usize,
    ) -> Result<Vec<f32>, TensorsError> {
        let per_word = self.per_word();
        let (file, name) = self.part(files, ".qzeros")?;
        let width = self.shape[0].div_ceil(per_word);
        if file.shape(name) != [groups, width] {
            return Err(file.shape_error(name, format!("[{groups}, {width}]")));
        }
        let words = lines.start / per_word..lines.end.div_ceil(per_word);
        let mut values = Vec::with_capacity(groups * lines.len());
        for group in 0..groups {
            let row = file.read_words(name, group * width + words.start..group * width + words.end)?;
            values.extend(lines.clone().map(|line| {
                unpack(row[line / per_word - words.start], self.packing.bits, order(line % per_word)) as f32
            }));
        }
        Ok(values)
    }

    /// Zero points `[lines, groups]` of compressed-tensors, which packs them along outputs; zeros where there are none.
    fn packed_zeros(
        &self,
        files: &[TensorFile],
        lines: &Range<usize>,
        groups: usize,
    ) -> Result<Vec<f32>, TensorsError> {
        if !self.has(".weight_zero_point") {
            return Ok(vec![0.0; lines.len() * groups]);
        }
        let (bits, per_word) = (self.packing.bits, self.per_word());
        let lowest = (1u32 << (bits - 1)) as f32;
        let (file, name) = self.part(files, ".weight_zero_point")?;
        let words = lines.start / per_word..lines.end.div_ceil(per_word);
        let rows = file.read_words(name, words.start * groups..words.end * groups)?;
        let value = |line: usize, group: usize| {
            let word = rows[(line / per_word - words.start) * groups + group];
            unpack(word, bits, line % per_word) as f32 - lowest
        };
        Ok(lines
            .clone()
            .flat_map(|line| (0..groups).map(move |group| (line, group)))
            .map(|(l, g)| value(l, g))
            .collect())
    }

    /// The group of each input: as stored, or one after the other.
    fn groups(
        &self,
        files: &[TensorFile],
        end: &'static str,
        groups: usize,
    ) -> Result<Vec<usize>, TensorsError> {
        let inputs = self.shape[1];
        let size = inputs.div_ceil(groups.max(1)).max(1);
        if !self.has(end) {
            return Ok((0..inputs).map(|input| input / size).collect());
        }
        let (file, name) = self.part(files, end)?;
        if file.shape(name) != [inputs] {
            return Err(file.shape_error(name, format!("[{inputs}]")));
        }
        let stored: Vec<usize> =
            file.read_words(name, 0..inputs)?.into_iter().map(|group| group as usize).collect();
        if stored.iter().any(|group| *group >= groups) {
            return Err(file.shape_error(name, format!("groups below {groups}")));
        }
        Ok(stored)
    }
}

/// Rows and columns of a tensor of scales.
fn grid(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [] => (1, 1),
        [rows] => (rows, 1),
        [rows, columns, ..] => (rows, columns),
    }
}

/// How many of `size` share one of `scales`; `stated` where that is not clear.
fn block(size: usize, scales: usize, stated: usize) -> usize {
    match scales {
        0 | 1 => size.max(1),
        scales if scales == size => 1,
        scales if size.div_ceil(stated.max(1)) == scales => stated.max(1),
        scales => size.div_ceil(scales).max(1),
    }
}

/// Numbers in 8 bits as float32, or as other weights.
fn read_numbers(file: &TensorFile, name: &str, range: Range<usize>) -> Result<Vec<f32>, TensorsError> {
    let decode: fn(u8) -> f32 = match file.part_type(name) {
        Some(Dtype::F8_E4M3) => float8::e4m3,
        Some(Dtype::F8_E5M2) => float8::e5m2,
        Some(Dtype::I8) => |byte| f32::from(i8::from_le_bytes([byte])),
        _ => return file.read(name, range),
    };
    Ok(file.read_bytes(name, range)?.into_iter().map(decode).collect())
}
