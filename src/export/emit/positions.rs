//! Positions that are not rotary: learned ones, and ALiBi.
//!
//! Which positions the `n` new tokens have follows from one length, the total, without asking any tensor for its shape:
//! counting ones from the back gives how far each token is from the last.

use super::{
    super::{
        blueprint::{Blueprint, Positions},
        data_layout::{Stack, TooLarge},
        dtype_encoding,
        graph::{Op, int_attribute},
    },
    emitter::{Emitter, Length, rotary_names},
};
use crate::onnx::ElementType;

impl Emitter {
    /// Adds the row of each token's position.
    pub(super) fn add_positions(
        &mut self,
        added: &Positions,
        stream: &str,
        blueprint: &Blueprint,
    ) -> Result<String, TooLarge> {
        let positions = self.position_ids();
        match added {
            Positions::Learned(table) => {
                self.floats("positions.weight", Stack(vec![table.clone()]))?;
                self.gather("positions.rows", "positions.weight", &positions, 0);
            }
            Positions::Sinusoidal(sinusoid) => {
                let number = blueprint.rotaries.len();
                self.rotary_tables(number, sinusoid.dims / 2, blueprint.context_length)?;
                let [cosines, sines] = rotary_names(number);
                self.gather("positions.cosines", &cosines, &positions, 0);
                self.gather("positions.sines", &sines, &positions, 0);
                let halves = ["positions.sines", "positions.cosines"];
                self.graph.add(
                    Op::plain("Concat", &halves, &["positions.rows"]).with(vec![int_attribute("axis", 2)]),
                );
            }
        }
        self.graph.add(Op::plain("Add", &[stream, "positions.rows"], &["positions"]));
        Ok("positions".into())
    }

    /// What each head adds to each query's score of each key, `[1, heads, n, total]`: its slope for each step between
    /// them.
    ///
    /// Trained models add `slope · key position` instead. The difference is the same for all keys of a query, so the
    /// softmax takes it away; ours stays small, which matters in half precision.
    pub(super) fn alibi(&mut self, slopes: &[f32]) -> String {
        let positions = self.position_ids();
        let zero = self.constant("alibi.zero", ElementType::Int32, &[], &0i32.to_le_bytes());
        let one = self.constant("alibi.one", ElementType::Int32, &[], &1i32.to_le_bytes());
        let total = self.lengths.total.clone();
        self.graph.add(Op::plain("Range", &[&zero, &total, &one], &["alibi.keys.int"]));
        self.cast("alibi.keys", "alibi.keys.int", ElementType::Float);
        self.cast("alibi.queries.flat", &positions, ElementType::Float);
        self.reshape("alibi.queries", "alibi.queries.flat", &[1, 1, -1, 1]);
        self.graph.add(Op::plain("Sub", &["alibi.keys", "alibi.queries"], &["alibi.steps.single"]));
        // Steps first: single precision holds every position, half precision only the first two thousand.
        self.cast("alibi.steps", "alibi.steps.single", self.float());
        let bytes = dtype_encoding::encode(slopes, self.precision.dtype);
        let slopes = self.constant("alibi.slopes", self.float(), &[1, slopes.len(), 1, 1], &bytes);
        self.graph.add(Op::plain("Mul", &["alibi.steps", &slopes], &["alibi"]));
        "alibi".into()
    }

    /// Works lengths out from a mask of ones, `[1, total]`.
    pub(super) fn lengths_of(&mut self, mask: &str) -> Length {
        let one = self.constant("lengths.axis", ElementType::Int64, &[1], &1i64.to_le_bytes());
        let second = self.constant("lengths.second", ElementType::Int64, &[], &1i64.to_le_bytes());
        self.graph.add(
            Op::plain("ReduceSum", &[mask, &one], &["lengths.sum"]).with(vec![int_attribute("keepdims", 0)]),
        );
        self.graph.add(Op::plain("Sub", &["lengths.sum", &one], &["lengths.last.long"]));
        self.cast("lengths.last", "lengths.last.long", ElementType::Int32);
        self.graph.add(Op::plain("Shape", &[mask], &["lengths.shape"]));
        self.gather("lengths.total.long", "lengths.shape", &second, 0);
        self.cast("lengths.total", "lengths.total.long", ElementType::Int32);
        Length { last: "lengths.last".into(), total: "lengths.total".into() }
    }

    /// int64 `[1, n]`.
    pub(super) fn position_ids(&mut self) -> String {
        const IDS: &str = "positions.ids";
        if self.has_position_ids {
            return IDS.into();
        }
        self.has_position_ids = true;
        let long = |n: i64| n.to_le_bytes();
        let zero = self.constant("positions.zero", ElementType::Int64, &[], &long(0));
        let one = self.constant("positions.one", ElementType::Int64, &[], &long(1));
        let ids = self.names.input_ids.clone();
        let last = self.lengths.last.clone();
        self.graph.add(Op::plain("Mul", &[&ids, &zero], &["positions.zeros"]));
        self.graph.add(Op::plain("Add", &["positions.zeros", &one], &["positions.ones"]));
        self.graph.add(
            Op::plain("CumSum", &["positions.ones", &one], &["positions.from_last"])
                .with(vec![int_attribute("exclusive", 1), int_attribute("reverse", 1)]),
        );
        self.cast("positions.last", &last, ElementType::Int64);
        self.graph.add(Op::plain("Sub", &["positions.last", "positions.from_last"], &[IDS]));
        IDS.into()
    }

    fn cast(&mut self, output: &str, input: &str, to: ElementType) {
        self.graph.add(Op::plain("Cast", &[input], &[output]).with(vec![int_attribute("to", to as usize)]));
    }
}
