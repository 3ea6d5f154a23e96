//! Embeddings that every layer reads beside the stream.

use super::{
    super::{
        blueprint::{PerLayer, PerLayerInputs},
        data_layout::TooLarge,
        graph::Op,
    },
    emitter::Emitter,
};
use crate::onnx::ElementType;

/// What all layers read, `[1, n, layers, size]`.
const INPUTS: &str = "per_layer.inputs";

impl Emitter {
    /// Adds the token's rows to the projection of its embedding, which is `stream`.
    pub(super) fn per_layer_inputs(
        &mut self,
        inputs: Option<&PerLayerInputs>,
        stream: &str,
    ) -> Result<(), TooLarge> {
        let Some(PerLayerInputs { table, scale, projection, norm, size }) = inputs else { return Ok(()) };
        self.lookup("per_layer.embedding", table)?;
        let scale = self.scalar("per_layer.scale", *scale);
        self.graph.add(Op::plain("Mul", &["per_layer.embedding", &scale], &["per_layer.rows.flat"]));
        let flat = self.linear("per_layer.projection", &[projection], stream)?;
        #[expect(clippy::cast_possible_wrap, reason = "sizes of a blueprint are far below 2^63")]
        let by_layer = [0, 0, -1, *size as i64];
        self.reshape("per_layer.rows", "per_layer.rows.flat", &by_layer);
        self.reshape("per_layer.projected", &flat, &by_layer);
        let normed = self.norm("per_layer.norm", norm, "per_layer.projected")?;
        self.graph.add(Op::plain("Add", &[&normed, "per_layer.rows"], &[INPUTS]));
        Ok(())
    }

    /// What layer `number` adds to `stream`.
    pub(super) fn per_layer(
        &mut self,
        number: usize,
        parts: &PerLayer,
        stream: &str,
    ) -> Result<String, TooLarge> {
        let scope = format!("layers.{number}.per_layer");
        let name = |part: &str| format!("{scope}.{part}");
        let index = (number as u64).to_le_bytes();
        let index = self.constant(&name("index"), ElementType::Int64, &[], &index);
        let is_last = number + 1 == self.dims.layers;
        let inputs = if is_last { self.chosen(INPUTS) } else { INPUTS.into() };
        self.gather(&name("input"), &inputs, &index, 2);
        let gate = self.linear(&name("gate"), &[&parts.gate], stream)?;
        self.activate(&parts.activation, [&gate, &name("activated")])?;
        self.graph.add(Op::plain("Mul", &[&name("activated"), &name("input")], &[&name("product")]));
        let projected = self.linear(&name("projection"), &[&parts.projection], &name("product"))?;
        self.norm(&name("norm"), &parts.norm, &projected)
    }
}
