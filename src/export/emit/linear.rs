//! Weights as matrices: linear layers, the embedding's table, and the head.
//!
//! Linear layers in floats are `FusedMatMul` with a transposed second factor, because checkpoints store `[out, in]`; it
//! was measured to be as fast as `MatMul` over a transposed copy, for one position and for many.

use super::{
    super::{
        blueprint::Linear,
        data_layout::{DataRange, QuantizedAt, Stack, TooLarge},
        formats::ACCURACY_LEVEL,
        graph::{Op, int_attribute},
        param::Param,
        quantize::Quantizer,
    },
    emitter::{Emitter, ProductNode, element},
    matrix::Matrix,
};
use crate::onnx::ElementType;

impl Emitter {
    /// Stacks `linears` by their rows and applies them to `input`.
    pub(super) fn linear(
        &mut self,
        scope: &str,
        linears: &[&Linear],
        input: &str,
    ) -> Result<String, TooLarge> {
        let mut formats = linears.iter().map(|linear| self.precision.formats.of(&linear.weight));
        let first = formats.next();
        if formats.any(|format| Some(format) != first) {
            return self.side_by_side(scope, linears, input);
        }
        linears.iter().for_each(|linear| self.reads(&linear.weight, input));
        let stack = Stack(linears.iter().map(|linear| linear.weight.clone()).collect());
        let shape = [stack.rows(), stack.cols()];
        let matrix = self.place(stack)?;
        let biases: Vec<Param> = linears.iter().filter_map(|linear| linear.bias.clone()).collect();
        let numbers = linears.iter().filter_map(|linear| self.number(&linear.weight)).collect();
        if biases.is_empty() {
            self.multiply(scope, matrix, (shape, numbers), [input, scope]);
            return Ok(scope.into());
        }
        let [product, bias] = ["product", "bias"].map(|name| format!("{scope}.{name}"));
        self.multiply(scope, matrix, (shape, numbers), [input, &product]);
        self.floats(&bias, Stack(biases))?;
        self.graph.add(Op::plain("Add", &[&product, &bias], &[scope]));
        Ok(scope.into())
    }

    /// What [`linear`](Self::linear) computes, for layers that cannot be stacked because they are stored differently.
    fn side_by_side(&mut self, scope: &str, linears: &[&Linear], input: &str) -> Result<String, TooLarge> {
        let part = |(i, linear): (usize, &&Linear)| self.linear(&format!("{scope}.{i}"), &[linear], input);
        let parts = linears.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.graph.add(Op::plain("Concat", &parts, &[scope]).with(vec![int_attribute("axis", 2)]));
        Ok(scope.into())
    }

    /// The head by the rows of the embedding's table, over the same bytes where they can be shared.
    pub(super) fn tied_head(
        &mut self,
        param: &Param,
        table: Matrix,
        input: &str,
    ) -> Result<String, TooLarge> {
        self.reads(param, input);
        let stack = Stack(vec![param.clone()]);
        let shape = [stack.rows(), stack.cols()];
        let matrix = if table.has_whole_blocks(shape[1]) { table } else { self.place(stack)? };
        self.multiply("head", matrix, (shape, vec![self.linears.len()]), [input, "head"]);
        Ok("head".into())
    }

    /// Looks the input up in a table of rows; `scope` names what is found.
    pub(super) fn lookup(&mut self, scope: &str, param: &Param) -> Result<Matrix, TooLarge> {
        let (rows, cols) = (param.shape.rows(), param.shape.cols());
        let stack = Stack(vec![param.clone()]);
        let ids = self.names.input_ids.clone();
        let Some(quantizer) = self.precision.formats.of(param) else {
            let region = self.layout.floats(stack, self.precision.dtype)?;
            let weight = format!("{scope}.weight");
            self.graph.initializer(&weight, self.float(), &[rows, cols], region);
            self.gather(scope, &weight, &ids, 0);
            return Ok(Matrix::Floats(region));
        };
        let row_bytes = quantizer.bits.bytes(cols);
        let at = self.layout.quantized(stack, quantizer, row_bytes, self.precision.dtype)?;
        let codes = format!("{scope}.codes");
        self.graph.initializer(&codes, ElementType::Uint8, &[rows, row_bytes], at.codes);
        let decoding = self.decoding(scope, quantizer, at, [rows, cols]);
        let inputs: Vec<&str> =
            [&*codes, &ids].into_iter().chain(decoding.iter().map(String::as_str)).collect();
        self.graph.add(Op::microsoft("GatherBlockQuantized", &inputs, &[scope]).with(vec![
            int_attribute("gather_axis", 0),
            int_attribute("quantize_axis", 1),
            int_attribute("block_size", quantizer.block_size),
            int_attribute("bits", quantizer.bits.count().into()),
        ]));
        Ok(Matrix::Quantized(quantizer, at))
    }

    fn place(&mut self, stack: Stack) -> Result<Matrix, TooLarge> {
        let dtype = self.precision.dtype;
        let Some(quantizer) = stack.0.first().and_then(|param| self.precision.formats.of(param)) else {
            return Ok(Matrix::Floats(self.layout.floats(stack, dtype)?));
        };
        let row_bytes = quantizer.padded_row_bytes(stack.cols());
        Ok(Matrix::Quantized(quantizer, self.layout.quantized(stack, quantizer, row_bytes, dtype)?))
    }

    /// The number of the linear layer with this weight.
    fn number(&self, weight: &Param) -> Option<usize> {
        self.linears.iter().position(|param| param == weight)
    }

    /// `input · matrixᵀ` of the layers with these numbers: checkpoints store `[out, in]`, and both operators take it that way.
    fn multiply(
        &mut self,
        scope: &str,
        matrix: Matrix,
        ([rows, cols], linears): ([usize; 2], Vec<usize>),
        [input, output]: [&str; 2],
    ) {
        let mut node = ProductNode { node: output.into(), offsets: None, linears };
        match matrix {
            Matrix::Floats(region) => {
                let weight = format!("{scope}.weight");
                self.graph.initializer(&weight, self.float(), &[rows, cols], region);
                let attributes = vec![int_attribute("transB", 1)];
                self.graph.add(Op::microsoft("FusedMatMul", &[input, &weight], &[output]).with(attributes));
            }
            Matrix::Quantized(quantizer, at) => {
                let codes = format!("{scope}.codes");
                let dims = [rows, quantizer.blocks(cols), quantizer.bits.bytes(quantizer.block_size)];
                self.graph.initializer(&codes, ElementType::Uint8, &dims, at.codes);
                let decoding = self.decoding(scope, quantizer, at, [rows, cols]);
                let inputs: Vec<&str> =
                    [input, &codes].into_iter().chain(decoding.iter().map(String::as_str)).collect();
                let attributes = vec![
                    int_attribute("K", cols),
                    int_attribute("N", rows),
                    int_attribute("bits", quantizer.bits.count().into()),
                    int_attribute("block_size", quantizer.block_size),
                    int_attribute("accuracy_level", ACCURACY_LEVEL.into()),
                ];
                let product =
                    if quantizer.has_offsets { format!("{scope}.centred") } else { output.to_owned() };
                self.graph.add(Op::microsoft("MatMulNBits", &inputs, &[&product]).with(attributes));
                if quantizer.has_offsets {
                    node = ProductNode {
                        node: product.clone(),
                        offsets: Some(format!("{scope}.offset")),
                        ..node
                    };
                    self.add_offsets(scope, (quantizer, at), [rows, cols], [input, &product, output]);
                }
            }
        }
        self.products.push(node);
    }

    /// Adds to `product` what the offsets of blocks add to it: each times the sum of the inputs of its block.
    fn add_offsets(
        &mut self,
        scope: &str,
        (quantizer, at): (Quantizer, QuantizedAt),
        [rows, cols]: [usize; 2],
        [input, product, output]: [&str; 3],
    ) {
        let sums = self.block_sums(input, quantizer.block_size);
        let [offsets, added] = ["offsets", "offset"].map(|name| format!("{scope}.{name}"));
        self.graph.initializer(&offsets, self.float(), &[rows, quantizer.blocks(cols)], at.offsets);
        let transposed = vec![int_attribute("transB", 1)];
        self.graph.add(Op::microsoft("FusedMatMul", &[&sums, &offsets], &[&added]).with(transposed));
        self.graph.add(Op::plain("Add", &[product, &added], &[output]));
    }

    /// The sums of the blocks of each row of `input`.
    fn block_sums(&mut self, input: &str, block_size: usize) -> String {
        let sums = format!("{input}.sums");
        if self.block_sums.insert(input.to_owned()) {
            let blocks = format!("{input}.blocks");
            #[expect(clippy::cast_possible_wrap, reason = "a block has at most 128 weights")]
            self.reshape(&blocks, input, &[0, 0, -1, block_size as i64]);
            let last = self.constant(&format!("{sums}.axis"), ElementType::Int64, &[1], &3i64.to_le_bytes());
            let keep = vec![int_attribute("keepdims", 0)];
            self.graph.add(Op::plain("ReduceSum", &[&blocks, &last], &[&sums]).with(keep));
        }
        sums
    }

    /// Scales and, if they are not all in the middle, zero points: both operators take the same.
    fn decoding(
        &mut self,
        scope: &str,
        quantizer: Quantizer,
        at: QuantizedAt,
        [rows, cols]: [usize; 2],
    ) -> Vec<String> {
        let scales = self.scales(scope, quantizer, at.scales, [rows, quantizer.blocks(cols)]);
        let row_bytes = quantizer.zero_point_row_bytes(cols);
        if row_bytes == 0 {
            return vec![scales];
        }
        let zero_points = format!("{scope}.zero_points");
        self.graph.initializer(&zero_points, ElementType::Uint8, &[rows, row_bytes], at.zero_points);
        vec![scales, zero_points]
    }

    /// Scales in the type of the activations, which may be stored in another.
    fn scales(&mut self, scope: &str, quantizer: Quantizer, at: DataRange, dims: [usize; 2]) -> String {
        let scales = format!("{scope}.scales");
        let stored = element(quantizer.scale_type.stored());
        if stored == self.float() {
            self.graph.initializer(&scales, stored, &dims, at);
            return scales;
        }
        let [stored_scales, cast] = ["stored", "cast"].map(|name| format!("{scales}.{name}"));
        self.graph.initializer(&stored_scales, stored, &dims, at);
        let to = vec![int_attribute("to", self.float() as usize)];
        self.graph.add(Op::plain("Cast", &[&stored_scales], &[&cast]).with(to));
        let unit = self.scalar(SCALE_UNIT, quantizer.scale_type.factor().recip());
        self.graph.add(Op::plain("Mul", &[&cast, &unit], &[&scales]));
        scales
    }
}

/// What stored scales are multiplied with.
const SCALE_UNIT: &str = "scales.unit";
