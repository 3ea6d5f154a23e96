//! The half of a layer that processes each position separately.
//!
//! Gate and up are separate matrices: splitting the product of a stacked matrix costs as much as the stacking saves.

use super::{
    super::{
        blueprint::{Activation, Inner, Mlp},
        data_layout::TooLarge,
        graph::{Op, float_attribute},
    },
    emitter::Emitter,
};

impl Emitter {
    pub(super) fn mlp(&mut self, scope: &str, mlp: &Mlp, input: &str) -> Result<String, TooLarge> {
        let [activated, product] = ["activated", "product"].map(|name| format!("{scope}.{name}"));
        let wide = match &mlp.inner {
            Inner::Plain { up } => {
                let up = self.linear(&format!("{scope}.up"), &[up], input)?;
                self.activate(mlp.activation, [&up, &activated]);
                activated
            }
            Inner::Gated { gate, up } => {
                let gate = self.linear(&format!("{scope}.gate"), &[gate], input)?;
                let up = self.linear(&format!("{scope}.up"), &[up], input)?;
                self.activate(mlp.activation, [&gate, &activated]);
                self.graph.add(Op::plain("Mul", &[&activated, &up], &[&product]));
                product
            }
        };
        self.linear(&format!("{scope}.down"), &[&mlp.down], &wide)
    }

    fn activate(&mut self, activation: Activation, [input, output]: [&str; 2]) {
        let (inputs, outputs) = ([input], [output]);
        if activation == Activation::ReluSquared {
            let positive = format!("{output}.positive");
            self.graph.add(Op::plain("Relu", &inputs, &[&positive]));
            self.graph.add(Op::plain("Mul", &[&positive, &positive], &outputs));
            return;
        }
        self.graph.add(match activation {
            // What ONNX Runtime makes of `Sigmoid` and `Mul` itself.
            Activation::Sigmoid { alpha } => {
                Op::microsoft("QuickGelu", &inputs, &outputs).with(vec![float_attribute("alpha", alpha)])
            }
            Activation::Gelu => Op::microsoft("Gelu", &inputs, &outputs),
            Activation::GeluTanh => Op::microsoft("FastGelu", &inputs, &outputs),
            Activation::Relu | Activation::ReluSquared => Op::plain("Relu", &inputs, &outputs),
        });
    }
}
