//! Mixtures of experts.
//!
//! The router is a float product like any other. What follows it is one node of a function that the graph defines by
//! plain nodes (`moe_function`): weights of all experts are three tensors, `[experts, rows, columns]`.

use super::{
    super::{
        blueprint::{Expert, Linear, SharedMlp, SparseMlp},
        data_layout::{Stack, TooLarge},
        graph::{Op, float_attribute, int_attribute},
        param::Param,
        quantize::{Quantizer, ScaleType, ZeroPoints},
        routing::Scores,
    },
    emitter::Emitter,
    moe_function::{self, Projection},
};
use crate::{
    manifest::Dtype,
    onnx::{Attribute, ElementType, moe},
};

impl Emitter {
    pub(super) fn sparse_mlp(
        &mut self,
        scope: &str,
        sparse: &SparseMlp,
        input: &str,
    ) -> Result<String, TooLarge> {
        let logits = self.linear(&format!("{scope}.router"), &[&sparse.router], input)?;
        let experts = self.experts(&format!("{scope}.experts"), sparse, [input, &logits])?;
        let Some(shared) = &sparse.shared else { return Ok(experts) };
        let shared = self.shared_mlp(&format!("{scope}.shared"), shared, input)?;
        let sum = format!("{scope}.sum");
        self.graph.add(Op::plain("Add", &[&experts, &shared], &[&sum]));
        Ok(sum)
    }

    fn shared_mlp(&mut self, scope: &str, shared: &SharedMlp, input: &str) -> Result<String, TooLarge> {
        let SharedMlp { mlp, gate } = shared;
        let output = self.mlp(scope, mlp, input)?;
        let Some(gate) = gate else { return Ok(output) };
        let [opened, gated] = ["opening.share", "gated"].map(|name| format!("{scope}.{name}"));
        let gate = self.linear(&format!("{scope}.opening"), &[gate], input)?;
        self.graph.add(Op::plain("Sigmoid", &[&gate], &[&opened]));
        self.graph.add(Op::plain("Mul", &[&output, &opened], &[&gated]));
        Ok(gated)
    }

    fn experts(
        &mut self,
        scope: &str,
        sparse: &SparseMlp,
        [input, logits]: [&str; 2],
    ) -> Result<String, TooLarge> {
        let mut inputs = vec![input.to_owned(), logits.to_owned()];
        if let Some(correction) = &sparse.correction {
            let name = format!("{scope}.correction");
            let stack = Stack(vec![correction.clone()]);
            let region = self.layout.floats(stack, Dtype::Float32)?;
            self.graph.initializer(&name, ElementType::Float, &[sparse.experts.len()], region);
            inputs.push(name);
        }
        let parts: [fn(&Expert) -> &Linear; 3] =
            [|expert| &expert.gate, |expert| &expert.up, |expert| &expert.down];
        let named = ["gate", "up", "down"].into_iter().zip(parts);
        let has_biases = sparse.experts.iter().any(|expert| expert.gate.bias.is_some());
        if has_biases {
            for (name, part) in named.clone() {
                inputs.push(self.stacked_biases(&format!("{scope}.{name}.bias"), sparse, part)?);
            }
        }
        let mut projections = Vec::new();
        for (name, part) in named {
            let weights = sparse.experts.iter().map(|expert| part(expert).weight.clone()).collect();
            let (projection, names) = self.stacked_weights(&format!("{scope}.{name}"), weights)?;
            projections.push(projection);
            inputs.extend(names);
        }
        let attributes = attributes(sparse, has_biases, &projections);
        let function = self.define_function(&attributes, &projections);
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.graph.add(Op::of(moe::DOMAIN, &function, &inputs, &[scope]).with(attributes));
        Ok(scope.into())
    }

    fn stacked_biases(
        &mut self,
        name: &str,
        sparse: &SparseMlp,
        part: fn(&Expert) -> &Linear,
    ) -> Result<String, TooLarge> {
        let biases: Vec<Param> =
            sparse.experts.iter().filter_map(|expert| part(expert).bias.clone()).collect();
        let dims = [biases.len(), biases.first().map_or(0, |bias| bias.shape.cols())];
        let region = self.layout.floats(Stack(biases), self.precision.dtype)?;
        self.graph.initializer(name, self.float(), &dims, region);
        Ok(name.into())
    }

    /// Places the weights of all experts, which have the format of the first one; also gives the names of their tensors.
    fn stacked_weights(
        &mut self,
        scope: &str,
        weights: Vec<Param>,
    ) -> Result<(Projection, Vec<String>), TooLarge> {
        let name = |part: &str| format!("{scope}.{part}");
        let (experts, dtype) = (weights.len(), self.precision.dtype);
        let quantizer = weights.first().and_then(|first| self.precision.formats.of(first));
        let quantizer = quantizer.map(|quantizer| quantizer.with_scales(ScaleType::of_activations(dtype)));
        let stack = Stack(weights);
        let (rows, columns) = (stack.rows() / experts.max(1), stack.cols());
        let projection = Projection { rows, columns, quantizer };
        let Some(quantizer) = quantizer else {
            let region = self.layout.floats(stack, dtype)?;
            self.graph.initializer(&name("weight"), self.float(), &[experts, rows, columns], region);
            return Ok((projection, vec![name("weight")]));
        };
        let row_bytes = quantizer.padded_row_bytes(columns);
        let at = self.layout.quantized(stack, quantizer, row_bytes, dtype)?;
        self.graph.initializer(&name("codes"), ElementType::Uint8, &[experts, rows, row_bytes], at.codes);
        let dims = [experts, rows, quantizer.blocks(columns)];
        self.graph.initializer(&name("scales"), self.float(), &dims, at.scales);
        let mut names = vec![name("codes"), name("scales")];
        if quantizer.zero_points == ZeroPoints::PerBlock {
            let dims = [experts, rows, quantizer.zero_point_row_bytes(columns)];
            self.graph.initializer(&name("zero_points"), ElementType::Uint8, &dims, at.zero_points);
            names.push(name("zero_points"));
        }
        Ok((projection, names))
    }

    /// The name of the function with these attributes, which say everything that it computes.
    fn define_function(&mut self, attributes: &[Attribute], projections: &[Projection]) -> String {
        let known = self.mixtures.iter().position(|known| *known == attributes);
        let number = known.unwrap_or_else(|| {
            self.mixtures.push(attributes.to_vec());
            self.mixtures.len() - 1
        });
        let name = format!("{}{number}", moe::NAME);
        if known.is_none() {
            self.graph.define(moe_function::define(&name, attributes, projections, self.float()));
        }
        name
    }
}

fn attributes(sparse: &SparseMlp, has_biases: bool, projections: &[Projection]) -> Vec<Attribute> {
    let SparseMlp { routing, activation, correction, experts, .. } = sparse;
    let (scores, tolerance) = match routing.scores {
        Scores::Softmax => (moe::SOFTMAX, 0.0),
        Scores::Sigmoid => (moe::SIGMOID, 0.0),
        Scores::SoftmaxOfChosen => (moe::SOFTMAX_OF_CHOSEN, 0.0),
        Scores::SparseMixer { tolerance } => (moe::SPARSE_MIXER, tolerance),
    };
    let (hidden, width) = projections.first().map_or((0, 0), |gate| (gate.columns, gate.rows));
    let ints = [
        (moe::EXPERTS, experts.len()),
        (moe::HIDDEN, hidden),
        (moe::WIDTH, width),
        (moe::CHOSEN, routing.chosen),
        (moe::SCORES, scores),
        (moe::NORMALIZED, routing.is_normalized.into()),
        (moe::GROUPS, routing.groups.count),
        (moe::CHOSEN_GROUPS, routing.groups.chosen),
        (moe::GROUP_BEST, routing.groups.best),
        (moe::SCALES_INPUT, routing.scales_input.into()),
        (moe::CORRECTION, correction.is_some().into()),
        (moe::BIASES, has_biases.into()),
    ];
    let floats = [
        (moe::TOLERANCE, tolerance),
        (moe::SCALE, routing.scale),
        (moe::ALPHA, activation.alpha),
        (moe::LIMIT, activation.limit.unwrap_or(0.0)),
        (moe::UP_OFFSET, activation.up_offset),
    ];
    let formats = projections.iter().enumerate().flat_map(|(part, projection)| {
        let of = |number: fn(Quantizer) -> usize| projection.quantizer.map_or(0, number);
        [
            (moe::BITS[part], of(|quantizer| quantizer.bits.count().into())),
            (moe::BLOCK_SIZE[part], of(|quantizer| quantizer.block_size)),
            (moe::ZERO_POINTS[part], of(|quantizer| (quantizer.zero_points == ZeroPoints::PerBlock).into())),
        ]
    });
    let ints = ints.into_iter().chain(formats).map(|(name, value)| int_attribute(name, value));
    ints.chain(floats.map(|(name, value)| float_attribute(name, value))).collect()
}
