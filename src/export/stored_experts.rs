//! Where a checkpoint stores experts: under names of their own, or in tensors of all experts of a layer.
//!
//! Which of them does not follow from the configuration: published checkpoints have names of their own, GGUF files have a
//! tensor for each of gate, up and down, and some programs save what transformers has in memory, gate and up in one.

use super::{
    blueprint::{Blueprint, Expert, FeedForward, Linear},
    checkpoint::Checkpoint,
    param::{Lines, Param, Stacked},
};

/// The model of `blueprint` with experts as `checkpoint` stores them.
pub(super) fn resolve(checkpoint: &Checkpoint, mut blueprint: Blueprint) -> Blueprint {
    for layer in &mut blueprint.layers {
        let FeedForward::Sparse(sparse) = &mut layer.mlp else { continue };
        let experts = sparse.experts.len();
        for (number, Expert { gate, up, down }) in sparse.experts.iter_mut().enumerate() {
            for (part, linear) in [gate, up, down].into_iter().enumerate() {
                find(checkpoint, linear, part, (number, experts));
            }
        }
    }
    blueprint
}

/// Finds the weights of one expert: gate, up or down.
fn find(checkpoint: &Checkpoint, linear: &mut Linear, part: usize, (expert, experts): (usize, usize)) {
    let Linear { weight, .. } = linear;
    if weight.stacked.is_some() {
        // Packed weights are never transposed.
        weight.transposed &= !checkpoint.is_packed(weight.stored_name());
        return;
    }
    if checkpoint.holds(&weight.name) {
        return;
    }
    let Some((around, name)) = around(weight, expert) else { return };
    let stacked = |name: String| Some(Stacked { name, expert, experts });
    let alone = format!("{around}.{name}.weight");
    if checkpoint.holds(&alone) {
        weight.stacked = stacked(alone);
        return;
    }
    let (fused, lines) = match part {
        2 => (format!("{around}.down_proj"), Lines::All),
        _ => {
            let width = weight.shape.rows();
            (format!("{around}.gate_up_proj"), Lines::From { start: part * width, of: 2 * width })
        }
    };
    if checkpoint.holds(&fused) {
        (weight.stacked, weight.lines) = (stacked(fused), lines);
    }
}

/// The module of all experts, and the name of this one's own.
fn around(weight: &Param, expert: usize) -> Option<(&str, &str)> {
    let (before, name) = weight.module().rsplit_once('.')?;
    let (around, number) = before.rsplit_once('.')?;
    (number.parse() == Ok(expert)).then_some((around, name))
}
