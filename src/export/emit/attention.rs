//! Attention over the key-value cache.
//!
//! Query, key and value read the same input, so their weights are stacked into one matrix: their input is quantized once,
//! and one node does the work of three. Quantization is by row, so stacking changes no bit of a weight. Only models that
//! normalise the heads of queries and keys have separate matrices, because ONNX Runtime's attention can normalise heads only
//! on a GPU.

use super::{
    super::{
        blueprint::{Attention, HeadNorms, Linear, Norm},
        data_layout::TooLarge,
        graph::{Op, float_attribute, int_attribute},
    },
    emitter::{Emitter, of_layer, rotary_names},
};
use crate::onnx::{Attribute, gqa};

impl Emitter {
    /// What each head sees, side by side, not multiplied by the output weights yet. `bias` is added to scores.
    pub(super) fn attention(
        &mut self,
        layer: usize,
        attention: &Attention,
        input: &str,
        bias: Option<&str>,
    ) -> Result<String, TooLarge> {
        let scope = format!("layers.{layer}.attention");
        let [query, key, value] = self.projections(&scope, attention, input)?;
        let (names, lengths) = (self.names.clone(), self.lengths.clone());
        let [past_key, past_value, present_key, present_value] =
            [&names.past_key, &names.past_value, &names.present_key, &names.present_value]
                .map(|template| of_layer(template, layer));
        let [cosines, sines] = attention.rotary.map(rotary_names).unwrap_or_default();
        let mut inputs = vec![
            &*query,
            &key,
            &value,
            &past_key,
            &past_value,
            &lengths.last,
            &lengths.total,
            &cosines,
            &sines,
            // Position ids: they follow from the lengths.
            "",
            bias.unwrap_or_default(),
        ];
        while inputs.last().is_some_and(|name| name.is_empty()) {
            inputs.pop();
        }
        let outputs = [&*scope, &present_key, &present_value];
        let attributes = self.attention_attributes(attention);
        self.graph.add(Op::microsoft(gqa::NAME, &inputs, &outputs).with(attributes));
        Ok(scope)
    }

    fn attention_attributes(&self, attention: &Attention) -> Vec<Attribute> {
        let mut attributes = vec![
            int_attribute("num_heads", self.dims.heads),
            int_attribute("kv_num_heads", self.dims.kv_heads),
            int_attribute("do_rotary", attention.rotary.is_some().into()),
            int_attribute("rotary_interleaved", 0),
        ];
        attributes.extend(attention.window.map(|window| int_attribute("local_window_size", window)));
        attributes.extend(attention.scale.map(|scale| float_attribute("scale", scale)));
        attributes.extend(attention.cap.map(|cap| float_attribute("softcap", cap)));
        attributes
    }

    /// Query, key and value; the first holds all three when the others are empty.
    fn projections(
        &mut self,
        scope: &str,
        attention: &Attention,
        input: &str,
    ) -> Result<[String; 3], TooLarge> {
        let Attention { query, key, value, clip, .. } = attention;
        let Some(norms) = &attention.head_norms else {
            let stacked = self.projection(&format!("{scope}.qkv"), &[query, key, value], input, *clip)?;
            return Ok([stacked, String::new(), String::new()]);
        };
        let (HeadNorms::Each([query_norm, key_norm]) | HeadNorms::Whole([query_norm, key_norm])) = norms;
        let is_each = matches!(norms, HeadNorms::Each(_));
        let mut normed = |name: &str, linear, norm| {
            let scope = format!("{scope}.{name}");
            let flat = self.projection(&format!("{scope}.projection"), &[linear], input, *clip)?;
            if is_each { self.normed_heads(&scope, norm, &flat) } else { self.norm(&scope, norm, &flat) }
        };
        let (query, key) = (normed("query", query, query_norm)?, normed("key", key, key_norm)?);
        Ok([query, key, self.projection(&format!("{scope}.value"), &[value], input, *clip)?])
    }

    fn projection(
        &mut self,
        scope: &str,
        linears: &[&Linear],
        input: &str,
        clip: Option<f32>,
    ) -> Result<String, TooLarge> {
        let product = self.linear(scope, linears, input)?;
        let Some(most) = clip else { return Ok(product) };
        let [least, most] = [("clip.least", -most), ("clip.most", most)]
            .map(|(name, value)| self.scalar(&format!("{scope}.{name}"), value));
        let clipped = format!("{scope}.clipped");
        self.graph.add(Op::plain("Clip", &[&product, &least, &most], &[&clipped]));
        Ok(clipped)
    }

    fn normed_heads(&mut self, scope: &str, norm: &Norm, flat: &str) -> Result<String, TooLarge> {
        let heads = format!("{scope}.heads");
        self.reshape(&heads, flat, &[0, 0, -1, signed(self.dims.head_dim)]);
        let normed = self.norm(&format!("{scope}.norm"), norm, &heads)?;
        self.reshape(scope, &normed, &[0, 0, -1]);
        Ok(scope.into())
    }
}

#[expect(clippy::cast_possible_wrap, reason = "sizes of a blueprint are far below 2^63")]
fn signed(n: usize) -> i64 {
    n as i64
}
