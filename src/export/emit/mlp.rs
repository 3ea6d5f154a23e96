//! The half of a layer that processes each position separately.
//!
//! Gate and up are separate matrices: splitting the product of a stacked matrix costs as much as the stacking saves.

use super::{
    super::{
        blueprint::{Activation, Inner, Mlp},
        data_layout::{Stack, TooLarge},
        graph::{Op, float_attribute},
        param::Param,
    },
    emitter::Emitter,
};

impl Emitter {
    pub(super) fn mlp(&mut self, scope: &str, mlp: &Mlp, input: &str) -> Result<String, TooLarge> {
        let [activated, product] = ["activated", "product"].map(|name| format!("{scope}.{name}"));
        let wide = match &mlp.inner {
            Inner::Plain { up } => {
                let up = self.linear(&format!("{scope}.up"), &[up], input)?;
                self.activate(&mlp.activation, [&up, &activated])?;
                activated
            }
            Inner::Gated { gate, up } => {
                let gate = self.linear(&format!("{scope}.gate"), &[gate], input)?;
                let up = self.linear(&format!("{scope}.up"), &[up], input)?;
                self.activate(&mlp.activation, [&gate, &activated])?;
                self.graph.add(Op::plain("Mul", &[&activated, &up], &[&product]));
                product
            }
        };
        self.linear(&format!("{scope}.down"), &[&mlp.down], &wide)
    }

    pub(super) fn activate(
        &mut self,
        activation: &Activation,
        [input, output]: [&str; 2],
    ) -> Result<(), TooLarge> {
        let (inputs, outputs) = ([input], [output]);
        if *activation == Activation::ReluSquared {
            let positive = self.relu(input, output);
            self.graph.add(Op::plain("Mul", &[&positive, &positive], &outputs));
            return Ok(());
        }
        self.graph.add(match activation {
            // What ONNX Runtime makes of `Sigmoid` and `Mul` itself.
            Activation::Sigmoid { alpha } => {
                Op::microsoft("QuickGelu", &inputs, &outputs).with(vec![float_attribute("alpha", *alpha)])
            }
            Activation::Gelu => Op::microsoft("Gelu", &inputs, &outputs),
            Activation::GeluTanh => Op::microsoft("FastGelu", &inputs, &outputs),
            Activation::Relu | Activation::ReluSquared => Op::plain("Relu", &inputs, &outputs),
            Activation::Xielu { positive, negative } => {
                return self.xielu([positive, negative], [input, output]);
            }
        });
        Ok(())
    }

    /// `Elu` is zero less than its input for positive inputs, so that each term is zero on the other's side.
    fn xielu(
        &mut self,
        [positive, negative]: [&Param; 2],
        [input, output]: [&str; 2],
    ) -> Result<(), TooLarge> {
        let name = |part: &str| format!("{output}.{part}");
        let half = self.scalar(&name("half"), 0.5);
        for (part, param) in [("positive", positive), ("negative", negative)] {
            self.floats(&name(part), Stack(vec![param.clone()]))?;
            self.graph.add(Op::plain("Softplus", &[&name(part)], &[&name(&format!("{part}.factor"))]));
        }
        let base = self.relu(input, output);
        let steps: [(&str, [String; 2], String); 7] = [
            ("Mul", [base.clone(), base], name("square")),
            ("Mul", [name("square"), name("positive.factor")], name("upper")),
            ("Sub", [name("elu"), input.into()], name("below")),
            ("Add", [name("negative.factor"), half.clone()], name("lower.factor")),
            ("Mul", [name("below"), name("lower.factor")], name("lower")),
            ("Mul", [input.into(), half], name("linear")),
            ("Add", [name("upper"), name("lower")], name("curved")),
        ];
        self.graph.add(Op::plain("Elu", &[input], &[&name("elu")]));
        for (operator, [left, right], result) in steps {
            self.graph.add(Op::plain(operator, &[&left, &right], &[&result]));
        }
        self.graph.add(Op::plain("Add", &[&name("curved"), &name("linear")], &[output]));
        Ok(())
    }

    fn relu(&mut self, input: &str, output: &str) -> String {
        let positive = format!("{output}.relu");
        self.graph.add(Op::plain("Relu", &[input], &[&positive]));
        positive
    }
}
