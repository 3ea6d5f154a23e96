//! The graph and the data file that grow while a model is emitted, and what all layers need.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    export::{
        blueprint::{Norm, NormKind},
        data_layout::{DataLayout, Stack, TooLarge},
        dtype_encoding,
        formats::Formats,
        graph::{Builder, Op, float_attribute, int_attribute},
        param::Param,
    },
    manifest::{Dims, Dtype, GraphNames},
    onnx::{Attribute, ElementType},
};

/// How numbers are stored.
#[derive(Clone, Debug)]
pub(in crate::export) struct Precision {
    /// Of activations, of the key-value cache, and of weights that are not quantized.
    pub dtype: Dtype,
    pub formats: Formats,
}

/// Emits nodes, and lays out the weights that they read.
pub(super) struct Emitter {
    pub(super) dims: Dims,
    pub(super) names: GraphNames,
    pub(super) lengths: Length,
    pub(super) precision: Precision,
    pub(super) graph: Builder,
    pub(super) layout: DataLayout,
    /// Names of query, key and value of each layer so far.
    pub(super) projected: Vec<[String; 3]>,
    /// Inputs of linear layers whose blocks are summed.
    pub(super) block_sums: BTreeSet<String>,
    /// What each linear layer reads.
    pub(super) layer_inputs: Vec<LayerInput>,
    /// The weights of the blueprint's linear layers, in its order.
    pub(super) linears: Vec<Param>,
    /// The nodes that compute them.
    pub(super) products: Vec<ProductNode>,
    /// Attributes of the functions for experts, by their numbers.
    pub(super) mixtures: Vec<Vec<Attribute>>,
    /// Whether the graph computes position ids.
    pub(super) has_position_ids: bool,
}

/// What a linear layer reads.
#[derive(Clone, Debug)]
pub(in crate::export) struct LayerInput {
    /// The tensor's name.
    pub tensor: String,
    /// Its width.
    pub columns: usize,
    /// The linear layer, named as in the checkpoint.
    pub module: String,
}

/// A node that computes linear layers, one after the other in its output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::export) struct ProductNode {
    /// Its name.
    pub node: String,
    /// The node that adds what the offsets of blocks give to the same output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<String>,
    /// Numbers of the layers in the order of [`Blueprint::linears`](crate::export::blueprint::Blueprint::linears). A head that is
    /// tied to the embedding has the number after the last.
    pub linears: Vec<usize>,
}

/// Names of the tensors that hold the total length, as attention wants it.
#[derive(Clone, Default)]
pub(super) struct Length {
    /// int32 `[1]`: the total less one.
    pub(super) last: String,
    /// int32 scalar.
    pub(super) total: String,
}

impl Emitter {
    /// Normalises the rows of `input`.
    pub(super) fn norm(&mut self, scope: &str, norm: &Norm, input: &str) -> Result<String, TooLarge> {
        let weights = self.norm_weights(scope, norm)?;
        let inputs: Vec<&str> = [input].into_iter().chain(weights.iter().map(String::as_str)).collect();
        let name = match norm.kind {
            NormKind::Layer => "LayerNormalization",
            NormKind::Rms => "SimplifiedLayerNormalization",
        };
        let epsilon = vec![float_attribute("epsilon", norm.epsilon)];
        self.graph.add(Op::plain(name, &inputs, &[scope]).with(epsilon));
        Ok(scope.into())
    }

    pub(super) fn norm_weights(&mut self, scope: &str, norm: &Norm) -> Result<Vec<String>, TooLarge> {
        let mut names = Vec::new();
        for (kind, param) in [("weight", Some(&norm.weight)), ("bias", norm.bias.as_ref())] {
            let Some(param) = param else { continue };
            let name = format!("{scope}.{kind}");
            self.floats(&name, Stack(vec![param.clone()]))?;
            names.push(name);
        }
        Ok(names)
    }

    /// Records that `input` is read by the linear layer of `weight`.
    pub(super) fn reads(&mut self, weight: &Param, input: &str) {
        let (columns, module) = (weight.shape.cols(), weight.module().into());
        self.layer_inputs.push(LayerInput { tensor: input.into(), columns, module });
    }

    /// The type of activations.
    pub(super) fn float(&self) -> ElementType {
        element(self.precision.dtype)
    }

    /// Places weights of the activations' type, and names them; a stack of vectors is a vector.
    pub(super) fn floats(&mut self, name: &str, stack: Stack) -> Result<(), TooLarge> {
        let dims = stack.dims();
        let region = self.layout.floats(stack, self.precision.dtype)?;
        self.graph.initializer(name, self.float(), &dims, region);
        Ok(())
    }

    /// A number of the activations' type.
    pub(super) fn scalar(&mut self, name: &str, value: f32) -> String {
        self.constant(name, self.float(), &[], &dtype_encoding::encode(&[value], self.precision.dtype))
    }

    /// A few numbers within the graph itself.
    pub(super) fn constant(
        &mut self,
        name: &str,
        element: ElementType,
        dims: &[usize],
        bytes: &[u8],
    ) -> String {
        self.graph.constant(name, element, dims, bytes);
        name.into()
    }

    pub(super) fn gather(&mut self, output: &str, data: &str, index: &str, axis: usize) {
        self.graph
            .add(Op::plain("Gather", &[data, index], &[output]).with(vec![int_attribute("axis", axis)]));
    }

    /// `input` with other dimensions; zero keeps a dimension, minus one infers it.
    pub(super) fn reshape(&mut self, output: &str, input: &str, dims: &[i64]) {
        let bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let shape = self.constant(&format!("{output}.shape"), ElementType::Int64, &[dims.len()], &bytes);
        self.graph.add(Op::plain("Reshape", &[input, &shape], &[output]));
    }
}

/// Names of the tables of rotary positions number `rotary`: cosines, sines.
pub(super) fn rotary_names(rotary: usize) -> [String; 2] {
    ["cos", "sin"].map(|table| format!("rotary.{rotary}.{table}"))
}

pub(super) fn of_layer(template: &str, layer: usize) -> String {
    template.replace("{i}", &layer.to_string())
}

/// The element type of `dtype` in a graph.
pub(super) const fn element(dtype: Dtype) -> ElementType {
    match dtype {
        Dtype::Float32 => ElementType::Float,
        Dtype::Float16 => ElementType::Float16,
        Dtype::Bfloat16 => ElementType::Bfloat16,
    }
}
