//! Gives every head of a model the layout that attention operators take.
//!
//! All layers have the same number of key heads and heads of one size, because the cache has one shape for all: smaller
//! heads are padded with zeros, and fewer key heads are repeated.

use std::collections::BTreeMap;

use super::{
    blueprint::{Attention, Blueprint, Linear, Norm},
    head_layout::{HeadLayout, STEP, half},
    param::{Param, Shape},
    rope::Rotary,
};

/// The layouts of one layer.
struct Layouts {
    /// Of queries and keys.
    rotated: Option<HeadLayout>,
    /// Of values.
    plain: Option<HeadLayout>,
    width: usize,
}

impl Blueprint {
    /// The same model with heads that the operators take.
    pub(super) fn with_supported_heads(mut self) -> Self {
        let widest = self.layers.iter().map(|layer| layer.attention.head_dim).max();
        let widest = widest.unwrap_or(self.dims.head_dim);
        let width = widest.next_multiple_of(if self.rotaries.is_empty() { STEP / 2 } else { STEP });
        let stored_by_rotary: Vec<usize> = (0..self.rotaries.len())
            .map(|number| {
                let mut layers = self.layers.iter().map(|layer| &layer.attention);
                layers
                    .find(|attention| attention.rotary == Some(number))
                    .map_or(widest, |found| found.head_dim)
            })
            .collect();
        let rotaries = || self.rotaries.iter().zip(&stored_by_rotary);
        let halves: Vec<usize> = rotaries().map(|(rotary, stored)| half(rotary, *stored, width)).collect();
        // Once for all layers: a hostile configuration has many layers, and heads of millions of dimensions.
        let rotated: Vec<Option<HeadLayout>> = rotaries()
            .zip(&halves)
            .map(|((rotary, stored), half)| {
                HeadLayout::rotated(*stored, width, rotary, *half).unless_as_stored()
            })
            .collect();
        let mut plain = BTreeMap::new();
        for layer in &mut self.layers {
            let attention = &mut layer.attention;
            let stored = attention.head_dim;
            if attention.latent.is_some() {
                let number = attention.rotary.unwrap_or_default();
                arrange_latent(attention, width, self.rotaries.get(number).zip(halves.get(number).copied()));
                continue;
            }
            let plain = plain
                .entry(stored)
                .or_insert_with(|| HeadLayout::padded(stored, width).unless_as_stored())
                .clone();
            let rotated = attention.rotary.map_or_else(|| plain.clone(), |number| rotated[number].clone());
            arrange(attention, &Layouts { rotated, plain, width });
        }
        for (rotary, half) in self.rotaries.iter_mut().zip(halves) {
            rotary.interleaved = false;
            rotary.still_pairs = half - rotary.dims / 2;
        }
        self.dims.head_dim = width;
        self
    }
}

fn arrange(attention: &mut Attention, layouts: &Layouts) {
    let Layouts { rotated, plain, width } = layouts;
    let stored = attention.head_dim;
    for linear in [&mut attention.query, &mut attention.key] {
        arrange_lines(linear, rotated.as_ref());
    }
    arrange_lines(&mut attention.value, plain.as_ref());
    if let (Some(heads), Shape::Matrix { cols, .. }) = (plain, &mut attention.output.weight.shape) {
        *cols = *cols / stored * width;
        attention.output.weight.column_heads = Some(heads.clone());
    }
    if let (Some(norms), Some(heads)) = (&mut attention.head_norms, rotated) {
        norms.each_mut().iter_mut().for_each(|norm| arrange_norm(norm, heads));
    }
    if let (Some(norm), Some(heads)) = (&mut attention.value_norm, plain) {
        arrange_norm(norm, heads);
    }
    if stored != *width && attention.scale.is_none() {
        attention.scale = Some((stored as f32).sqrt().recip());
    }
}

/// Heads of latent attention, whose rotated dimensions are stored last, and whose values may be narrower.
fn arrange_latent(attention: &mut Attention, width: usize, rotary: Option<(&Rotary, usize)>) {
    let (stored, Some(latent), Some((rotary, half))) = (attention.head_dim, &mut attention.latent, rotary)
    else {
        return;
    };
    let heads = HeadLayout::rotated_last(stored, width, rotary, half);
    let still = stored - latent.rotated;
    arrange_lines(&mut attention.query, Some(&heads));
    arrange_lines(&mut attention.key, Some(&heads.part(0..still)));
    arrange_lines(&mut latent.rotated_key, Some(&heads.part(still..stored)));
    let values = HeadLayout::padded(latent.value_dim, width);
    arrange_lines(&mut attention.value, Some(&values));
    if let Shape::Matrix { cols, .. } = &mut attention.output.weight.shape {
        *cols = *cols / latent.value_dim * width;
        attention.output.weight.column_heads = Some(values);
    }
}

fn arrange_lines(linear: &mut Linear, heads: Option<&HeadLayout>) {
    let Some(heads) = heads else { return };
    [&mut linear.weight].into_iter().chain(&mut linear.bias).for_each(|param| arrange_param(param, heads));
}

fn arrange_param(param: &mut Param, heads: &HeadLayout) {
    let (Shape::Vector(lines) | Shape::Matrix { rows: lines, .. }) = &mut param.shape;
    *lines = *lines / heads.stored_width() * heads.width();
    param.line_heads = Some(heads.clone());
}

/// The mean square is over more dimensions, with zeros among them: what makes it smaller is taken back by the weights. The
/// mean of layer normalisation does not allow that; architectures with it refuse such heads.
fn arrange_norm(norm: &mut Norm, heads: &HeadLayout) {
    let share = heads.stored_width() as f32 / heads.width() as f32;
    [&mut norm.weight].into_iter().chain(&mut norm.bias).for_each(|param| arrange_param(param, heads));
    norm.weight.factor *= share.sqrt();
    norm.epsilon *= share;
}
