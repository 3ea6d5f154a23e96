//! Attention over the key-value cache.
//!
//! Query, key and value read the same input, so their weights are stacked into one matrix: their input is quantized once,
//! and one node does the work of three. Quantization is by row, so stacking changes no bit of a weight. Only models that
//! normalise the heads of queries and keys have separate matrices, because ONNX Runtime's attention can normalise heads only
//! on a GPU.

use super::{
    super::{
        blueprint::{Attention, HeadNorms, Latent, Linear, Norm},
        data_layout::{Stack, TooLarge},
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
        let projected = self.projections(&scope, attention, input)?;
        let [query, key, value] = projected.clone();
        self.projected.push(projected);
        let (names, lengths) = (self.names.clone(), self.lengths.clone());
        let [past_key, past_value, present_key, present_value] =
            [&names.past_key, &names.past_value, &names.present_key, &names.present_value]
                .map(|template| of_layer(template, layer));
        let rotary = attention.rotary.filter(|_| !attention.rotates_first);
        let [cosines, sines] = rotary.map(rotary_names).unwrap_or_default();
        let mut sinks = String::new();
        if let Some(param) = &attention.sinks {
            sinks = format!("{scope}.sinks");
            self.floats(&sinks, Stack(vec![param.clone()]))?;
        }
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
            &sinks,
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
            int_attribute("do_rotary", (attention.rotary.is_some() && !attention.rotates_first).into()),
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
        if let Some(latent) = &attention.latent {
            return self.latent_projections(scope, (attention, latent), input);
        }
        let Attention { query, key, value, clip, .. } = attention;
        let Some(norms) = &attention.head_norms else {
            let stacked = self.projection(&format!("{scope}.qkv"), &[query, key, value], input, *clip)?;
            return Ok([stacked, String::new(), String::new()]);
        };
        let (HeadNorms::Each([query_norm, key_norm]) | HeadNorms::Whole([query_norm, key_norm])) = norms;
        let query = self.normed_projection(scope, ("query", query, query_norm), attention, input)?;
        if let Some([_, key, value]) = attention.shares.and_then(|layer| self.projected.get(layer)) {
            return Ok([query, key.clone(), value.clone()]);
        }
        let key = self.normed_projection(scope, ("key", key, key_norm), attention, input)?;
        let flat = self.projection(&format!("{scope}.value"), &[value], input, *clip)?;
        let value = match &attention.value_norm {
            Some(norm) => self.normed_heads(&format!("{scope}.value.heads"), norm, &flat)?,
            None => flat,
        };
        Ok([query, key, value])
    }

    /// Queries, keys and values of multi-head latent attention. Keys are the sum of dimensions without positions, which each
    /// head has, and of rotated ones, which all heads share; either has zeros where the other is.
    fn latent_projections(
        &mut self,
        scope: &str,
        (attention, latent): (&Attention, &Latent),
        input: &str,
    ) -> Result<[String; 3], TooLarge> {
        let name = |part: &str| format!("{scope}.{part}");
        let narrow = match &latent.query {
            Some((linear, norm)) => {
                let narrow = self.linear(&name("query.compression"), &[linear], input)?;
                self.norm(&name("query.compression.norm"), norm, &narrow)?
            }
            None => input.to_owned(),
        };
        let query = self.linear(&name("query"), &[&attention.query], &narrow)?;
        let (linear, norm) = &latent.compression;
        let compressed = self.linear(&name("compression"), &[linear], input)?;
        let compressed = self.norm(&name("compression.norm"), norm, &compressed)?;
        let still = self.linear(&name("key.still"), &[&attention.key], &compressed)?;
        let value = self.linear(&name("value"), &[&attention.value], &compressed)?;
        let rotated = self.linear(&name("key.rotated"), &[&latent.rotated_key], input)?;
        let head_dim = signed(self.dims.head_dim);
        let [still_heads, rotated_heads, heads, key] =
            ["key.still.heads", "key.rotated.heads", "key.heads", "key"].map(name);
        self.reshape(&still_heads, &still, &[0, 0, -1, head_dim]);
        self.reshape(&rotated_heads, &rotated, &[0, 0, 1, head_dim]);
        self.graph.add(Op::plain("Add", &[&still_heads, &rotated_heads], &[&heads]));
        self.reshape(&key, &heads, &[0, 0, -1]);
        Ok([query, key, value])
    }

    fn normed_projection(
        &mut self,
        scope: &str,
        (name, linear, norm): (&str, &Linear, &Norm),
        attention: &Attention,
        input: &str,
    ) -> Result<String, TooLarge> {
        let scope = format!("{scope}.{name}");
        let mut flat = self.projection(&format!("{scope}.projection"), &[linear], input, attention.clip)?;
        if attention.rotates_first {
            flat = self.rotated(&scope, attention, flat);
        }
        match attention.head_norms {
            Some(HeadNorms::Each(_)) => self.normed_heads(&scope, norm, &flat),
            _ => self.norm(&scope, norm, &flat),
        }
    }

    /// `flat` with the rotation of each token's position, which attention itself does otherwise.
    fn rotated(&mut self, scope: &str, attention: &Attention, flat: String) -> String {
        let Some(rotary) = attention.rotary else { return flat };
        let [cosines, sines] = rotary_names(rotary);
        let positions = self.position_ids();
        let output = format!("{scope}.rotated");
        self.graph.add(Op::microsoft("RotaryEmbedding", &[&flat, &positions, &cosines, &sines], &[&output]));
        output
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
