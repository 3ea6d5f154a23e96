//! What architectures change in a family's blueprint.

use super::super::{
    blueprint::{Blueprint, Inner, Layer, Linear, LmHead, Order},
    param::{Lines, Param},
};

/// How query, key and value lie in one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fused {
    /// All queries, all keys, all values.
    Stacked,
    /// For each key head its queries, the key and the value.
    ByKeyHead,
}

impl Blueprint {
    /// The same model, with a window for each layer.
    pub(super) fn with_windows(mut self, windows: Vec<Option<usize>>) -> Self {
        for (layer, window) in self.layers.iter_mut().zip(windows) {
            layer.attention.window = window;
        }
        self
    }

    /// The same model, where each layer turns by the rotary positions of the number that `rotary` gives for it.
    pub(super) fn with_rotary(self, rotary: impl Fn(usize) -> Option<usize>) -> Self {
        self.with_layers(|number, layer| layer.attention.rotary = rotary(number))
    }

    /// The same model, with each layer changed.
    pub(super) fn with_layers(mut self, change: impl Fn(usize, &mut Layer)) -> Self {
        self.layers.iter_mut().enumerate().for_each(|(number, layer)| change(number, layer));
        self
    }

    /// The same model, whose MLP reads what attention reads: by the norm of its own, or by the same one.
    pub(super) fn in_parallel(self, has_two_norms: bool) -> Self {
        self.with_layers(|_, layer| {
            layer.order = Order::Parallel;
            if !has_two_norms {
                layer.mlp_norm = None;
            }
        })
    }

    /// The same model, with norms after each half of a layer instead of before. Their names are those that the norms
    /// before have here.
    pub(super) fn with_norms_after(self) -> Self {
        self.with_layers(|_, layer| {
            layer.attention_end = layer.attention_norm.take();
            layer.mlp_end = layer.mlp_norm.take();
        })
    }

    /// The same model with other names: in every tensor's name, the first of each pair becomes the second.
    pub(super) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let rename = |name: &mut String| {
            for (here, there) in names {
                if let Some(start) = position(name, here) {
                    name.replace_range(start..start + here.len(), there);
                }
            }
        };
        self.each_param(|param| {
            rename(&mut param.name);
            if let Some(stacked) = &mut param.stacked {
                rename(&mut stacked.name);
            }
        });
        if let LmHead::Tied { stored_as } = &mut self.head {
            rename(stored_as);
        }
        self
    }

    /// The same model, where query, key and value of a layer are in the tensor of the module called `name`.
    pub(super) fn with_fused_qkv(self, name: &str, order: Fused) -> Self {
        let (heads, kv_heads, head_dim) = (self.dims.heads, self.dims.kv_heads, self.dims.head_dim);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let parts = [(0, q), (q, kv), (q + kv, kv)].map(|(start, width)| match order {
            Fused::Stacked => Lines::From { start, of: q + 2 * kv },
            Fused::ByKeyHead => {
                Lines::Turns { start: start / kv_heads, width: width / kv_heads, of: (q + 2 * kv) / kv_heads }
            }
        });
        self.with_layers(|_, layer| {
            let attention = &mut layer.attention;
            let linears = [&mut attention.query, &mut attention.key, &mut attention.value];
            for (linear, (part, lines)) in
                linears.into_iter().zip(["q_proj", "k_proj", "v_proj"].iter().zip(parts))
            {
                fuse(linear, (part, name), lines);
            }
        })
    }

    /// The same model, where the MLP's gate and what it multiplies are in the tensor of the module called `name`.
    pub(super) fn with_fused_gate(self, name: &str) -> Self {
        let width = self.dims.intermediate;
        let part = |start| Lines::From { start, of: 2 * width };
        self.with_layers(|_, layer| {
            if let Some(Inner::Gated { gate, up }) = layer.mlp.dense_mut().map(|mlp| &mut mlp.inner) {
                fuse(gate, ("gate_proj", name), part(0));
                fuse(up, ("up_proj", name), part(width));
            }
        })
    }

    /// The same model, whose head has a bias.
    pub(super) fn with_head_bias(mut self) -> Self {
        let vocab = self.dims.vocab;
        if let LmHead::Separate(head) = &mut self.head {
            head.bias = Some(Param::vector(format!("{}.bias", head.weight.module()), vocab));
        }
        self
    }

    /// The same model, where what the halves of a layer add to the stream is multiplied by `factor`.
    pub(super) fn with_residual_factor(self, factor: f32) -> Self {
        self.with_layers(|_, layer| {
            let outputs = layer.mlp.outputs_mut().into_iter().chain([&mut layer.attention.output]);
            for linear in outputs {
                [&mut linear.weight]
                    .into_iter()
                    .chain(&mut linear.bias)
                    .for_each(|param| param.factor *= factor);
            }
        })
    }
}

/// Where `part` is in `name`, as whole parts between dots.
fn position(name: &str, part: &str) -> Option<usize> {
    name.match_indices(part).map(|(start, _)| start).find(|start| {
        let (before, after) = (&name[..*start], &name[start + part.len()..]);
        (before.is_empty() || before.ends_with('.')) && (after.is_empty() || after.starts_with('.'))
    })
}

/// Takes a layer from `lines` of the module `name` instead of all of `part`.
fn fuse(linear: &mut Linear, (part, name): (&str, &str), lines: Lines) {
    for param in [&mut linear.weight].into_iter().chain(&mut linear.bias) {
        param.name = param.name.replace(part, name);
        param.lines = lines;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::testing;

    #[test]
    fn names_are_replaced_as_whole_parts() {
        let blueprint = testing::blueprint(true).renamed(&[
            ("self_attn", "attn"),
            ("norm", "ln_f"),
            ("lm_head", "output"),
        ]);
        let names: Vec<String> = blueprint.params().map(|param| param.name.clone()).collect();
        assert!(names.contains(&"layers.0.attn.q_proj.weight".into()), "{names:?}");
        assert!(
            names.contains(&"ln_f.weight".into())
                && names.contains(&"layers.0.input_layernorm.weight".into())
        );
        assert!(matches!(blueprint.head, LmHead::Tied { stored_as } if stored_as == "output.weight"));
    }

    #[test]
    fn fused_tensors_hold_the_parts_in_order() {
        let lines = |order| {
            let blueprint = testing::blueprint(false).with_fused_qkv("qkv", order);
            let layer = &blueprint.layers[1].attention;
            assert_eq!(layer.key.weight.name, "layers.1.self_attn.qkv.weight");
            [&layer.query, &layer.key, &layer.value]
                .map(|linear| (linear.weight.lines, linear.weight.stored_shape()))
        };
        let [query, key, value] = lines(Fused::Stacked);
        assert_eq!(query, (Lines::From { start: 0, of: 128 }, vec![128, 64]));
        assert_eq!(
            (key.0, value.0),
            (Lines::From { start: 64, of: 128 }, Lines::From { start: 96, of: 128 })
        );
        let [query, key, value] = lines(Fused::ByKeyHead);
        assert_eq!(query, (Lines::Turns { start: 0, width: 32, of: 64 }, vec![128, 64]));
        assert_eq!(
            (key.0, value.0),
            (Lines::Turns { start: 32, width: 16, of: 64 }, Lines::Turns { start: 48, width: 16, of: 64 })
        );
    }
}
