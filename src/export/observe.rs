//! The float graph of a model, with the inputs of its linear layers as outputs.

use prost::Message;

use super::{
    ExportError, Layout, Options, Storage,
    data_layout::DATA_FILE,
    emit::{Emitted, LayerInput, Precision, emit},
    graph::{Dim, value_info},
    run::load,
};
use crate::{
    manifest::{Dims, Dtype, GraphNames},
    onnx::{ElementType, Model},
};

/// A model whose linear layers can be observed.
#[derive(Debug)]
pub struct ObservedModel {
    graph: Vec<u8>,
    names: GraphNames,
    dims: Dims,
    inputs: Vec<ObservedInput>,
}

/// A tensor that linear layers read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedInput {
    /// Its name in the graph.
    pub tensor: String,
    /// Its width.
    pub columns: usize,
    /// The linear layers, named as in the checkpoint.
    pub modules: Vec<String>,
}

impl ObservedModel {
    /// The float32 graph that [`export`](super::export) writes for `options` if nothing is quantized.
    ///
    /// # Errors
    /// [`ExportError`] when the sources cannot be exported.
    pub fn new(options: &Options) -> Result<Self, ExportError> {
        let float = options.unquantized();
        let input = load(&float)?;
        let formats = float.weights.formats(&input.blueprint)?;
        let precision = Precision { dtype: float.dtype, formats };
        let names = float.names();
        let Emitted { graph, layer_inputs, .. } =
            emit(&input.blueprint, precision, names.clone(), DATA_FILE)?;
        let mut inputs: Vec<ObservedInput> = Vec::new();
        for LayerInput { tensor, columns, module } in layer_inputs {
            match inputs.iter_mut().find(|input| input.tensor == tensor) {
                Some(input) => input.modules.push(module),
                None => inputs.push(ObservedInput { tensor, columns, modules: vec![module] }),
            }
        }
        Ok(Self { graph, names, dims: input.blueprint.dims, inputs })
    }

    /// The tensors that linear layers read, in the order in which the graph computes them.
    #[must_use]
    pub fn inputs(&self) -> &[ObservedInput] {
        &self.inputs
    }

    /// The sizes of the model.
    #[must_use]
    pub fn dims(&self) -> Dims {
        self.dims
    }

    /// The names of the graph's inputs.
    #[must_use]
    pub fn names(&self) -> &GraphNames {
        &self.names
    }

    /// The graph with `observed` as its only outputs: nodes that none of them needs are not computed.
    ///
    /// # Errors
    /// When the graph cannot be decoded, which it was encoded by.
    pub fn graph(&self, observed: &[ObservedInput]) -> Result<Vec<u8>, prost::DecodeError> {
        let mut model = Model::decode(&*self.graph)?;
        if let Some(graph) = &mut model.graph {
            let output = |input: &ObservedInput| {
                let dims = [Dim::Known(1), Dim::Named("n"), Dim::Known(input.columns)];
                value_info(&input.tensor, ElementType::Float, &dims)
            };
            graph.output = observed.iter().map(output).collect();
        }
        Ok(model.encode_to_vec())
    }
}

impl Options {
    /// The same model in float32, for eka.
    #[must_use]
    pub fn unquantized(&self) -> Self {
        let (dtype, layout) = (Dtype::Float32, Layout::Eka);
        Self { weights: Storage::default(), dtype, layout, calibration: None, ..self.clone() }
    }
}
