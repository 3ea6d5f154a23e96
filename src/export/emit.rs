//! Turns a blueprint into a graph and a plan of the data file.
//!
//! Query, key and value read the same input, so their weights are stacked into one matrix: their input is quantized once,
//! and one node does the work of three. Quantization is by row, so stacking changes no bit of a weight. Gate and up are
//! kept apart: stacked, their product would have to be copied apart again, which costs what it saves.
//!
//! Linear layers in float32 are `FusedMatMul` with a transposed second factor, because checkpoints store `[out, in]`; it
//! was measured to be as fast as `MatMul` over a transposed copy, for one position and for many. SiLU is `QuickGelu` with
//! a factor of one, which is what ONNX Runtime makes of `Sigmoid` and `Mul` itself.

use crate::manifest::{Dims, GraphNames};

use super::{
    blueprint::{Attention, Blueprint, Head, Linear, Mlp, Norm, Param},
    graph::{Builder, Dim, Op, float_attribute, int_attribute},
    onnx::ElementType,
    plan::{Plan, QuantizedAt, Region, Stack, TooLarge},
    quantize::Quantizer,
    rope::Table,
};

/// Lets the CPU multiply in int8; every other level is slower there, up to a hundred times with 8-bit weights.
pub(super) const ACCURACY_LEVEL: u8 = 4;

/// What an export is made of: the graph, and how to fill the data file.
pub(super) struct Emitted {
    /// Content of `model.onnx`.
    pub graph: Vec<u8>,
    pub plan: Plan,
}

/// Emits `blueprint` with weights quantized by `quantizer`, or in float32, over the data file `data_file`.
pub(super) fn emit(
    blueprint: &Blueprint,
    quantizer: Option<Quantizer>,
    data_file: &'static str,
) -> Result<Emitted, TooLarge> {
    let mut emitter = Emitter {
        dims: blueprint.dims,
        names: GraphNames::default(),
        quantizer,
        graph: Builder::new(blueprint.architecture, data_file),
        plan: Plan::default(),
    };
    emitter.model(blueprint)?;
    Ok(Emitted { graph: emitter.graph.encode(), plan: emitter.plan })
}

struct Emitter {
    dims: Dims,
    names: GraphNames,
    quantizer: Option<Quantizer>,
    graph: Builder,
    plan: Plan,
}

/// Names of the constant tables of the rotary positions.
const COSINES: &str = "rotary.cos";
const SINES: &str = "rotary.sin";

/// A matrix in the data file, as linear layers read it.
#[derive(Clone, Copy)]
enum Matrix {
    Floats(Region),
    Quantized(Quantizer, QuantizedAt),
}

/// The two ends of a sum that has not been added up yet: the next norm adds them.
struct Residual {
    stream: String,
    update: Option<String>,
}

impl Emitter {
    fn model(&mut self, blueprint: &Blueprint) -> Result<(), TooLarge> {
        self.inputs();
        self.rotary_tables(blueprint.context_length)?;
        let (stream, table) = self.embedding(&blueprint.embedding)?;
        let mut residual = Residual { stream, update: None };
        for (i, layer) in blueprint.layers.iter().enumerate() {
            let scope = format!("layers.{i}");
            let normed =
                self.norm(&format!("{scope}.attention_norm"), &layer.attention_norm, &mut residual)?;
            residual.update = Some(self.attention(i, &layer.attention, &normed)?);
            let normed = self.norm(&format!("{scope}.mlp_norm"), &layer.mlp_norm, &mut residual)?;
            residual.update = Some(self.mlp(&format!("{scope}.mlp"), &layer.mlp, &normed)?);
        }
        let normed = self.norm("final_norm", &blueprint.final_norm, &mut residual)?;
        match &blueprint.head {
            Head::Own(linear) => self.head(&linear.weight, None, &normed),
            Head::Tied { .. } => self.head(&blueprint.embedding, Some(table), &normed),
        }
    }

    fn inputs(&mut self) {
        let names = self.names.clone();
        self.graph.input(&names.input_ids, ElementType::Int64, &[Dim::Known(1), Dim::Named("n")]);
        self.graph.input(&names.seqlens_k, ElementType::Int32, &[Dim::Known(1)]);
        self.graph.input(&names.total_sequence_length, ElementType::Int32, &[]);
        self.graph.input(&names.logits_index, ElementType::Int64, &[Dim::Named("k")]);
        let dims = [Dim::Known(1), Dim::Named("k"), Dim::Known(self.dims.vocab)];
        self.graph.output(&names.logits, ElementType::Float, &dims);
        let Dims { kv_heads, head_dim, .. } = self.dims;
        let cache = [Dim::Known(1), Dim::Known(kv_heads), Dim::Named("capacity"), Dim::Known(head_dim)];
        for layer in 0..self.dims.layers {
            for name in [&names.past_key, &names.past_value] {
                self.graph.input(&of_layer(name, layer), ElementType::Float, &cache);
            }
            for name in [&names.present_key, &names.present_value] {
                self.graph.output(&of_layer(name, layer), ElementType::Float, &cache);
            }
        }
    }

    fn rotary_tables(&mut self, positions: usize) -> Result<(), TooLarge> {
        let pairs = self.dims.head_dim / 2;
        for (name, table) in [(COSINES, Table::Cosine), (SINES, Table::Sine)] {
            let region = self.plan.rotary(table, positions, pairs)?;
            self.graph.initializer(name, ElementType::Float, &[positions, pairs], region);
        }
        Ok(())
    }

    /// Looks the input up; also gives the table, for a head that is tied to it.
    fn embedding(&mut self, param: &Param) -> Result<(String, Matrix), TooLarge> {
        let (rows, cols) = (param.shape.rows(), param.shape.cols());
        let stack = Stack(vec![param.clone()]);
        let Some(quantizer) = self.quantizer else {
            let region = self.plan.floats(stack)?;
            self.graph.initializer("embedding.weight", ElementType::Float, &[rows, cols], region);
            self.gather("embedding", "embedding.weight", &self.names.input_ids.clone(), 0);
            return Ok(("embedding".into(), Matrix::Floats(region)));
        };
        let row_bytes = quantizer.bits.bytes(cols);
        let at = self.plan.quantized(stack, quantizer, row_bytes)?;
        self.graph.initializer("embedding.codes", ElementType::Uint8, &[rows, row_bytes], at.codes);
        let scales = [rows, quantizer.blocks(cols)];
        self.graph.initializer("embedding.scales", ElementType::Float, &scales, at.scales);
        let inputs = ["embedding.codes", &self.names.input_ids, "embedding.scales"];
        self.graph.add(Op::microsoft("GatherBlockQuantized", &inputs, &["embedding"]).with(vec![
            int_attribute("gather_axis", 0),
            int_attribute("quantize_axis", 1),
            int_attribute("block_size", quantizer.block_size),
            int_attribute("bits", quantizer.bits.count().into()),
        ]));
        Ok(("embedding".into(), Matrix::Quantized(quantizer, at)))
    }

    /// Adds up `residual`, and normalises the sum.
    fn norm(&mut self, scope: &str, norm: &Norm, residual: &mut Residual) -> Result<String, TooLarge> {
        let weight = format!("{scope}.weight");
        let region = self.plan.floats(Stack(vec![norm.weight.clone()]))?;
        self.graph.initializer(&weight, ElementType::Float, &[norm.weight.shape.cols()], region);
        let epsilon = vec![float_attribute("epsilon", norm.epsilon)];
        let Some(update) = residual.update.take() else {
            let inputs = [&*residual.stream, &weight];
            self.graph.add(Op::plain("SimplifiedLayerNormalization", &inputs, &[scope]).with(epsilon));
            return Ok(scope.into());
        };
        let sum = format!("{scope}.sum");
        let inputs = [&*residual.stream, &update, &weight];
        let outputs = [scope, "", "", &sum];
        self.graph.add(Op::microsoft("SkipSimplifiedLayerNormalization", &inputs, &outputs).with(epsilon));
        residual.stream = sum;
        Ok(scope.into())
    }

    fn attention(&mut self, layer: usize, attention: &Attention, input: &str) -> Result<String, TooLarge> {
        let scope = format!("layers.{layer}.attention");
        let Attention { query, key, value, output } = attention;
        let stacked = self.linear(&format!("{scope}.qkv"), &[query, key, value], input)?;
        let GraphNames { past_key, past_value, present_key, present_value, .. } = &self.names;
        let [past_key, past_value, present_key, present_value] =
            [past_key, past_value, present_key, present_value].map(|template| of_layer(template, layer));
        let GraphNames { seqlens_k, total_sequence_length, .. } = &self.names;
        // Keys and values left out: the first input holds all three.
        let inputs =
            [&*stacked, "", "", &past_key, &past_value, seqlens_k, total_sequence_length, COSINES, SINES];
        let outputs = [&*scope, &present_key, &present_value];
        self.graph.add(Op::microsoft("GroupQueryAttention", &inputs, &outputs).with(vec![
            int_attribute("num_heads", self.dims.heads),
            int_attribute("kv_num_heads", self.dims.kv_heads),
            int_attribute("do_rotary", 1),
            int_attribute("rotary_interleaved", 0),
        ]));
        self.linear(&format!("{scope}.output"), &[output], &scope)
    }

    fn mlp(&mut self, scope: &str, mlp: &Mlp, input: &str) -> Result<String, TooLarge> {
        let gate = self.linear(&format!("{scope}.gate"), &[&mlp.gate], input)?;
        let up = self.linear(&format!("{scope}.up"), &[&mlp.up], input)?;
        let [activated, product] = ["activated", "product"].map(|name| format!("{scope}.{name}"));
        let alpha = vec![float_attribute("alpha", 1.0)];
        self.graph.add(Op::microsoft("QuickGelu", &[&gate], &[&activated]).with(alpha));
        self.graph.add(Op::plain("Mul", &[&activated, &up], &[&product]));
        self.linear(&format!("{scope}.down"), &[&mlp.down], &product)
    }

    /// Logits of the positions that `logits_index` names, by rows of `param`, which may be in the file already.
    fn head(&mut self, param: &Param, table: Option<Matrix>, input: &str) -> Result<(), TooLarge> {
        let GraphNames { logits_index, logits, .. } = self.names.clone();
        self.gather("final_norm.chosen", input, &logits_index, 1);
        let stack = Stack(vec![param.clone()]);
        let (rows, cols) = (stack.rows(), stack.cols());
        let matrix = match table {
            Some(table) if table.has_whole_blocks(cols) => table,
            _ => self.place(stack)?,
        };
        self.multiply("head", matrix, [rows, cols], ["final_norm.chosen", &logits]);
        Ok(())
    }

    /// Stacks `linears` by their rows and applies them to `input`.
    fn linear(&mut self, scope: &str, linears: &[&Linear], input: &str) -> Result<String, TooLarge> {
        let stack = Stack(linears.iter().map(|linear| linear.weight.clone()).collect());
        let shape = [stack.rows(), stack.cols()];
        let matrix = self.place(stack)?;
        let biases: Vec<Param> = linears.iter().filter_map(|linear| linear.bias.clone()).collect();
        if biases.is_empty() {
            self.multiply(scope, matrix, shape, [input, scope]);
            return Ok(scope.into());
        }
        let [product, bias] = ["product", "bias"].map(|name| format!("{scope}.{name}"));
        self.multiply(scope, matrix, shape, [input, &product]);
        let region = self.plan.floats(Stack(biases))?;
        self.graph.initializer(&bias, ElementType::Float, &[shape[0]], region);
        self.graph.add(Op::plain("Add", &[&product, &bias], &[scope]));
        Ok(scope.into())
    }

    fn place(&mut self, stack: Stack) -> Result<Matrix, TooLarge> {
        let Some(quantizer) = self.quantizer else {
            return Ok(Matrix::Floats(self.plan.floats(stack)?));
        };
        let row_bytes = quantizer.padded_row_bytes(stack.cols());
        Ok(Matrix::Quantized(quantizer, self.plan.quantized(stack, quantizer, row_bytes)?))
    }

    /// `input · matrixᵀ`: checkpoints store `[out, in]`, and both operators take it that way.
    fn multiply(
        &mut self,
        scope: &str,
        matrix: Matrix,
        [rows, cols]: [usize; 2],
        [input, output]: [&str; 2],
    ) {
        match matrix {
            Matrix::Floats(region) => {
                let weight = format!("{scope}.weight");
                self.graph.initializer(&weight, ElementType::Float, &[rows, cols], region);
                let attributes = vec![int_attribute("transB", 1)];
                self.graph.add(Op::microsoft("FusedMatMul", &[input, &weight], &[output]).with(attributes));
            }
            Matrix::Quantized(quantizer, at) => {
                let [codes, scales] = ["codes", "scales"].map(|name| format!("{scope}.{name}"));
                let blocks = quantizer.blocks(cols);
                let block_bytes = quantizer.bits.bytes(quantizer.block_size);
                self.graph.initializer(&codes, ElementType::Uint8, &[rows, blocks, block_bytes], at.codes);
                self.graph.initializer(&scales, ElementType::Float, &[rows, blocks], at.scales);
                let attributes = vec![
                    int_attribute("K", cols),
                    int_attribute("N", rows),
                    int_attribute("bits", quantizer.bits.count().into()),
                    int_attribute("block_size", quantizer.block_size),
                    int_attribute("accuracy_level", ACCURACY_LEVEL.into()),
                ];
                self.graph
                    .add(Op::microsoft("MatMulNBits", &[input, &codes, &scales], &[output]).with(attributes));
            }
        }
    }

    fn gather(&mut self, output: &str, data: &str, index: &str, axis: usize) {
        self.graph
            .add(Op::plain("Gather", &[data, index], &[output]).with(vec![int_attribute("axis", axis)]));
    }
}

impl Matrix {
    /// Whether rows of `cols` weights end where a block does, so that padded and packed rows are the same.
    fn has_whole_blocks(self, cols: usize) -> bool {
        match self {
            Self::Floats(_) => true,
            Self::Quantized(quantizer, _) => cols.is_multiple_of(quantizer.block_size),
        }
    }
}

fn of_layer(template: &str, layer: usize) -> String {
    template.replace("{i}", &layer.to_string())
}
