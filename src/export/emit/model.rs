//! Emits a model from its embedding to its logits.

use std::collections::BTreeSet;

use super::{
    emitter::{Emitter, LayerInput, Length, Precision, ProductNode, of_layer, rotary_names},
    matrix::Matrix,
};
use crate::{
    export::{
        blueprint::{Blueprint, FeedForward, Layer, LmHead, Norm, NormKind, Order},
        data_layout::{DataLayout, Stack, TooLarge},
        graph::{Builder, Dim, Op, float_attribute, int_attribute},
        rope::Table,
    },
    manifest::{Dims, Dtype, GraphNames, Lengths},
    onnx::ElementType,
};

/// What an export is made of: the graph, and how to fill the data file.
pub(in crate::export) struct Emitted {
    /// Content of `model.onnx`.
    pub graph: Vec<u8>,
    pub layout: DataLayout,
    /// In the order of the graph.
    pub layer_inputs: Vec<LayerInput>,
    /// The nodes that compute linear layers.
    pub products: Vec<ProductNode>,
}

/// Emits `blueprint` with `precision` and inputs as `names` has them, over the data file `data_file`.
pub(in crate::export) fn emit(
    blueprint: &Blueprint,
    precision: Precision,
    names: GraphNames,
    data_file: &'static str,
) -> Result<Emitted, TooLarge> {
    let mut emitter = Emitter {
        dims: blueprint.dims,
        names,
        lengths: Length::default(),
        precision,
        graph: Builder::new(blueprint.architecture, data_file),
        layout: DataLayout::default(),
        projected: Vec::new(),
        block_sums: BTreeSet::new(),
        layer_inputs: Vec::new(),
        linears: blueprint.linears().map(|linear| linear.weight.clone()).collect(),
        products: Vec::new(),
        mixtures: Vec::new(),
        has_position_ids: false,
    };
    emitter.model(blueprint)?;
    let Emitter { graph, layout, layer_inputs, products, .. } = emitter;
    Ok(Emitted { graph: graph.encode(), layout, layer_inputs, products })
}

/// Index of the last position, for graphs without an input that selects positions.
const LAST: &str = "last_position";

/// The two operands of a sum that the next norm adds.
struct Residual {
    stream: String,
    update: Option<String>,
}

impl Emitter {
    fn model(&mut self, blueprint: &Blueprint) -> Result<(), TooLarge> {
        self.inputs();
        for (i, rotary) in blueprint.rotaries.iter().enumerate() {
            self.rotary_tables(i, rotary.pairs(), blueprint.context_length)?;
        }
        let (stream, table) = self.embedding(blueprint)?;
        self.per_layer_inputs(blueprint.per_layer.as_ref(), &stream)?;
        let bias = blueprint.slopes.as_deref().map(|slopes| self.alibi(slopes));
        let mut residual = Residual { stream, update: None };
        for (i, layer) in blueprint.layers.iter().enumerate() {
            self.layer(i, layer, &mut residual, bias.as_deref())?;
        }
        let normed = self.next_norm("final_norm", Some(&blueprint.final_norm), &mut residual)?;
        let product = match &blueprint.head {
            LmHead::Separate(linear) => self.linear("head", &[linear], &normed)?,
            LmHead::Tied { .. } => self.tied_head(&blueprint.embedding.table, table, &normed)?,
        };
        self.logits(product, blueprint.logits_scale, blueprint.logits_cap);
        Ok(())
    }

    fn layer(
        &mut self,
        number: usize,
        layer: &Layer,
        residual: &mut Residual,
        bias: Option<&str>,
    ) -> Result<(), TooLarge> {
        let scope = format!("layers.{number}");
        let mut normed =
            self.next_norm(&format!("{scope}.attention_norm"), layer.attention_norm.as_ref(), residual)?;
        let mut attended = self.attention(number, &layer.attention, &normed, bias)?;
        if number + 1 == self.dims.layers {
            attended = self.chosen(&attended);
            // Where nothing was normalised, this is the stream.
            let is_stream = normed == residual.stream;
            residual.stream = self.chosen(&residual.stream);
            if layer.order == Order::Parallel && layer.mlp_norm.is_none() {
                normed = if is_stream { residual.stream.clone() } else { self.chosen(&normed) };
            }
        }
        let output =
            self.linear(&format!("{scope}.attention.output"), &[&layer.attention.output], &attended)?;
        let output = self.end(&format!("{scope}.attention_end"), layer.attention_end.as_ref(), output)?;
        let mlp_norm = format!("{scope}.mlp_norm");
        let wide = match (layer.order, &layer.mlp_norm) {
            (Order::Sequential, norm) => {
                residual.update = Some(output.clone());
                self.next_norm(&mlp_norm, norm.as_ref(), residual)?
            }
            (Order::Parallel, Some(norm)) => self.norm(&mlp_norm, norm, &residual.stream)?,
            (Order::Parallel, None) => normed,
        };
        let mlp_scope = format!("{scope}.mlp");
        let update = match &layer.mlp {
            FeedForward::Dense(mlp) => self.mlp(&mlp_scope, mlp, &wide)?,
            FeedForward::Sparse(sparse) => self.sparse_mlp(&mlp_scope, sparse, &wide)?,
        };
        let update = self.end(&format!("{scope}.mlp_end"), layer.mlp_end.as_ref(), update)?;
        residual.update = Some(match layer.order {
            Order::Sequential => update,
            Order::Parallel => {
                let both = format!("{scope}.update");
                self.graph.add(Op::plain("Add", &[&output, &update], &[&both]));
                both
            }
        });
        self.layer_end(number, layer, residual)
    }

    /// What a layer does after both halves.
    fn layer_end(&mut self, number: usize, layer: &Layer, residual: &mut Residual) -> Result<(), TooLarge> {
        let scope = format!("layers.{number}");
        if let Some(parts) = &layer.per_layer {
            let stream = self.next_norm(&format!("{scope}.mlp"), None, residual)?;
            residual.update = Some(self.per_layer(number, parts, &stream)?);
        }
        if let Some(scalar) = &layer.scalar {
            let stream = self.next_norm(&format!("{scope}.end"), None, residual)?;
            let (factor, scaled) = (format!("{scope}.scalar"), format!("{scope}.scaled"));
            self.floats(&factor, Stack(vec![scalar.clone()]))?;
            self.graph.add(Op::plain("Mul", &[&stream, &factor], &[&scaled]));
            residual.stream = scaled;
        }
        Ok(())
    }

    fn inputs(&mut self) {
        let names = self.names.clone();
        self.graph.input(&names.input_ids, ElementType::Int64, &[Dim::Known(1), Dim::Named("n")]);
        self.lengths = self.length_inputs(&names.lengths);
        let rows = match names.lengths {
            Lengths::Separate { .. } => Dim::Named("k"),
            Lengths::Mask { .. } => Dim::Known(1),
        };
        let dims = [Dim::Known(1), rows, Dim::Known(self.dims.vocab)];
        // Sampling takes single precision, independent of the graph's type.
        self.graph.output(&names.logits, ElementType::Float, &dims);
        let Dims { kv_heads, head_dim, .. } = self.dims;
        let cache = [Dim::Known(1), Dim::Known(kv_heads), Dim::Named("capacity"), Dim::Known(head_dim)];
        for layer in 0..self.dims.layers {
            for name in [&names.past_key, &names.past_value] {
                self.graph.input(&of_layer(name, layer), self.float(), &cache);
            }
            for name in [&names.present_key, &names.present_value] {
                self.graph.output(&of_layer(name, layer), self.float(), &cache);
            }
        }
    }

    fn length_inputs(&mut self, lengths: &Lengths) -> Length {
        match lengths {
            Lengths::Separate { seqlens_k, total_sequence_length, logits_index } => {
                self.graph.input(seqlens_k, ElementType::Int32, &[Dim::Known(1)]);
                self.graph.input(total_sequence_length, ElementType::Int32, &[]);
                self.graph.input(logits_index, ElementType::Int64, &[Dim::Named("k")]);
                Length { last: seqlens_k.clone(), total: total_sequence_length.clone() }
            }
            Lengths::Mask { attention_mask } => {
                let dims = [Dim::Known(1), Dim::Named("total_sequence_length")];
                self.graph.input(attention_mask, ElementType::Int64, &dims);
                self.graph.constant(LAST, ElementType::Int64, &[1], &(-1i64).to_le_bytes());
                self.lengths_of(attention_mask)
            }
        }
    }

    pub(super) fn rotary_tables(
        &mut self,
        rotary: usize,
        pairs: usize,
        positions: usize,
    ) -> Result<(), TooLarge> {
        for (name, table) in rotary_names(rotary).into_iter().zip([Table::Cosine, Table::Sine]) {
            let region = self.layout.rotary(rotary, table, [positions, pairs], self.precision.dtype)?;
            self.graph.initializer(&name, self.float(), &[positions, pairs], region);
        }
        Ok(())
    }

    /// Looks the input up; also gives the table, for a head that is tied to it.
    fn embedding(&mut self, blueprint: &Blueprint) -> Result<(String, Matrix), TooLarge> {
        let embedding = &blueprint.embedding;
        let table = self.lookup("embedding", &embedding.table)?;
        let mut stream = "embedding".to_owned();
        if let Some(scale) = embedding.scale {
            let factor = self.scalar("embedding.scale", scale);
            self.graph.add(Op::plain("Mul", &[&stream, &factor], &["embedding.scaled"]));
            stream = "embedding.scaled".into();
        }
        if let Some(positions) = &embedding.positions {
            stream = self.add_positions(positions, &stream, blueprint)?;
        }
        if let Some(norm) = &embedding.norm {
            stream = self.norm("embedding.norm", norm, &stream)?;
        }
        Ok((stream, table))
    }

    /// Adds up `residual`, and normalises the sum if there is a norm.
    fn next_norm(
        &mut self,
        scope: &str,
        norm: Option<&Norm>,
        residual: &mut Residual,
    ) -> Result<String, TooLarge> {
        let sum = format!("{scope}.sum");
        match (residual.update.take(), norm) {
            (None, None) => return Ok(residual.stream.clone()),
            (None, Some(norm)) => return self.norm(scope, norm, &residual.stream),
            (Some(update), None) => {
                self.graph.add(Op::plain("Add", &[&residual.stream, &update], &[&sum]));
                residual.stream.clone_from(&sum);
                return Ok(sum);
            }
            (Some(update), Some(norm)) => {
                let weights = self.norm_weights(scope, norm)?;
                let inputs: Vec<&str> = [&*residual.stream, &update]
                    .into_iter()
                    .chain(weights.iter().map(String::as_str))
                    .collect();
                let name = match norm.kind {
                    NormKind::Layer => "SkipLayerNormalization",
                    NormKind::Rms => "SkipSimplifiedLayerNormalization",
                };
                let epsilon = vec![float_attribute("epsilon", norm.epsilon)];
                self.graph.add(Op::microsoft(name, &inputs, &[scope, "", "", &sum]).with(epsilon));
            }
        }
        residual.stream = sum;
        Ok(scope.into())
    }

    fn end(&mut self, scope: &str, norm: Option<&Norm>, update: String) -> Result<String, TooLarge> {
        match norm {
            Some(norm) => self.norm(scope, norm, &update),
            None => Ok(update),
        }
    }

    /// The rows of `input` whose logits are wanted. The logits of other positions are not read, so nothing is computed for
    /// them once the last layer's keys and values are in the cache. In prefill that saves the head, and nine tenths of a
    /// layer.
    pub(super) fn chosen(&mut self, input: &str) -> String {
        let output = format!("{input}.chosen");
        let index = match &self.names.lengths {
            Lengths::Separate { logits_index, .. } => logits_index.clone(),
            Lengths::Mask { .. } => LAST.into(),
        };
        self.gather(&output, input, &index, 1);
        output
    }

    /// The steps from `product` to the logits.
    fn logits(&mut self, product: String, scale: Option<f32>, cap: Option<f32>) {
        let mut steps: Vec<(&str, Option<String>)> = Vec::new();
        if self.precision.dtype != Dtype::Float32 {
            steps.push(("Cast", None));
        }
        if let Some(scale) = scale {
            let scale = self.constant("head.scale", ElementType::Float, &[], &scale.to_le_bytes());
            steps.push(("Mul", Some(scale)));
        }
        if let Some(cap) = cap {
            let cap = self.constant("head.cap", ElementType::Float, &[], &cap.to_le_bytes());
            steps.extend([("Div", Some(cap.clone())), ("Tanh", None), ("Mul", Some(cap))]);
        }
        if steps.is_empty() {
            let logits = self.names.logits.clone();
            self.graph.rename_last_output(&logits);
            return;
        }
        let mut input = product;
        let last = steps.len() - 1;
        for (i, (name, factor)) in steps.into_iter().enumerate() {
            let output = if i == last { self.names.logits.clone() } else { format!("head.step.{i}") };
            let inputs: Vec<&str> = [&*input].into_iter().chain(factor.as_deref()).collect();
            let attributes = if name == "Cast" {
                vec![int_attribute("to", ElementType::Float as usize)]
            } else {
                Vec::new()
            };
            self.graph.add(Op::plain(name, &inputs, &[&output]).with(attributes));
            input = output;
        }
    }
}
