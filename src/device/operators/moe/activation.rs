//! What experts do between their two products: `activation(gate) · up`.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use super::super::{
    cpu_isa::{CpuIsa, Task},
    simd_f32::{LANES, SimdF32, exp},
    simd_i8::SimdI8,
};

/// SwiGLU: `(up + up_offset) · gate · sigmoid(alpha · gate)`, over clamped inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SwiGlu {
    /// One for SiLU.
    pub alpha: f32,
    /// The gate is at most this, and the rest within it.
    pub limit: Option<f32>,
    /// Added to what the gate multiplies.
    pub up_offset: f32,
}

impl SwiGlu {
    /// Computes rows of the width of `biases` (of gate and up; empty without), into `gate`.
    ///
    /// # Safety
    /// The processor must be of `kind`.
    pub(super) unsafe fn apply(&self, kind: CpuIsa, gate: &mut [f32], up: &[f32], biases: [&[f32]; 2]) {
        // SAFETY: as the caller promises.
        unsafe { kind.run(Rows { settings: *self, gate, up, biases }) }
    }

    /// # Safety
    /// As of [`SimdF32`].
    #[inline(always)]
    unsafe fn of<V: SimdF32>(&self, gate: V::Floats, up: V::Floats) -> V::Floats {
        // SAFETY: as the caller promises.
        unsafe {
            let (mut gate, mut up) = (gate, up);
            if let Some(limit) = self.limit {
                // The second operand is kept where one is NaN.
                gate = V::min(V::splat(limit), gate);
                up = V::max(V::splat(-limit), V::min(V::splat(limit), up));
            }
            up = V::add(up, V::splat(self.up_offset));
            // Exponentials of nothing above zero: of x or zero, and of -|x|.
            let x = V::mul(gate, V::splat(self.alpha));
            let negative = V::min(V::splat(0.0), x);
            let magnitude = V::sub(V::add(negative, negative), x);
            let share = V::div(exp::<V>(negative), V::add(V::splat(1.0), exp::<V>(magnitude)));
            V::mul(V::mul(gate, share), up)
        }
    }
}

/// Rows of gate and up.
struct Rows<'a> {
    settings: SwiGlu,
    gate: &'a mut [f32],
    up: &'a [f32],
    biases: [&'a [f32]; 2],
}

impl Task for Rows<'_> {
    #[inline(always)]
    unsafe fn run<P: SimdI8>(self) {
        let Self { settings, gate, up, biases: [gate_bias, up_bias] } = self;
        let width = gate_bias.len();
        if width > 0 {
            for row in gate.chunks_exact_mut(width) {
                row.iter_mut().zip(gate_bias).for_each(|(number, bias)| *number += bias);
            }
        }
        let mut start = 0;
        while start < gate.len() {
            let len = LANES.min(gate.len() - start);
            let (mut gates, mut ups) = ([0.0; LANES], [0.0; LANES]);
            gates[..len].copy_from_slice(&gate[start..start + len]);
            ups[..len].copy_from_slice(&up[start..start + len]);
            if width > 0 {
                for (at, number) in ups[..len].iter_mut().enumerate() {
                    *number += up_bias[(start + at) % width];
                }
            }
            // SAFETY: sixteen numbers each; the instructions are there, as the caller promises.
            unsafe {
                let product = settings.of::<P>(P::load(gates.as_ptr()), P::load(ups.as_ptr()));
                P::store(product, gates.as_mut_ptr());
            }
            gate[start..start + len].copy_from_slice(&gates[..len]);
            start += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(settings: SwiGlu, gate: f32, up: f32) -> f64 {
        let limit = f64::from(settings.limit.unwrap_or(f32::MAX));
        let (gate, up) = (f64::from(gate).min(limit), f64::from(up).clamp(-limit, limit));
        let sigmoid = 1.0 / (1.0 + (-gate * f64::from(settings.alpha)).exp());
        (up + f64::from(settings.up_offset)) * gate * sigmoid
    }

    #[test]
    fn every_processor_computes_swiglu_also_of_great_numbers_and_with_biases() {
        let silu = SwiGlu { alpha: 1.0, limit: None, up_offset: 0.0 };
        let clamped = SwiGlu { alpha: 1.702, limit: Some(7.0), up_offset: 1.0 };
        let gate: Vec<f32> = (0..42).map(|i| (i as f32 - 20.0) * 0.9).chain([-1e4, 90.0]).collect();
        let up: Vec<f32> = (0..44).map(|i| 3.0 - i as f32 * 0.4).collect();
        let bias: [Vec<f32>; 2] = [vec![0.5, -1.0, 0.0, 2.0], vec![1.0, 0.25, -3.0, 0.0]];
        for kind in CpuIsa::all() {
            for settings in [silu, clamped] {
                for biases in [[&[][..], &[]], [&bias[0], &bias[1]]] {
                    let mut found = gate.clone();
                    // SAFETY: this machine has that kind.
                    unsafe { settings.apply(kind, &mut found, &up, biases) };
                    for (at, found) in found.iter().enumerate() {
                        let bias = biases.map(|bias| if bias.is_empty() { 0.0 } else { bias[at % 4] });
                        let expected = plain(settings, gate[at] + bias[0], up[at] + bias[1]);
                        let off = (f64::from(*found) - expected).abs();
                        assert!(
                            off <= 1e-5 * expected.abs().max(1.0),
                            "{kind:?} {at}: {found}, not {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for kind in CpuIsa::all() {
            let clamped = SwiGlu { alpha: 1.702, limit: Some(7.0), up_offset: 1.0 };
            let mut gate = [f32::NAN, 1.0];
            // SAFETY: this machine has that kind.
            unsafe { clamped.apply(kind, &mut gate, &[1.0, f32::NAN], [&[], &[]]) };
            assert!(gate.iter().all(|number| number.is_nan()), "{kind:?} {gate:?}");
        }
    }
}
