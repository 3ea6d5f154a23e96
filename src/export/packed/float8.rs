//! Numbers in 8 and in 4 bits.

/// E4M3 without infinities: a sign, four bits of exponent and three of fraction.
pub(super) fn e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * fraction * 2f32.powi(-9),
        _ => sign * (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// E8M0: a power of two.
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// E2M1 in the lowest four bits.
pub(super) fn e2m1(code: u8) -> f32 {
    const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = VALUES[usize::from(code & 7)];
    if code & 8 == 0 { value } else { -value }
}

/// E5M2: half precision without its last eight bits.
pub(super) fn e5m2(byte: u8) -> f32 {
    half::f16::from_bits(u16::from(byte) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `torch.float8_e4m3fn` and `torch.float8_e5m2`.
    #[test]
    fn numbers_are_those_of_torch() {
        for (byte, value) in
            [(0x00, 0.0), (0x01, 0.001_953_125), (0x38, 1.0), (0x7e, 448.0), (0xc0, -2.0), (0x47, 3.75)]
        {
            assert_eq!(e4m3(byte), value, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        for (byte, value) in [(0x3c, 1.0), (0x7b, 57344.0), (0xc1, -2.5), (0x01, 2f32.powi(-16))] {
            assert_eq!(e5m2(byte), value, "{byte:#x}");
        }
        for (byte, value) in
            [(0, 2f32.powi(-127)), (1, 2f32.powi(-126)), (127, 1.0), (130, 8.0), (254, 2f32.powi(127))]
        {
            assert_eq!(e8m0(byte), value, "{byte}");
        }
        assert_eq!([1, 7, 9, 15].map(e2m1), [0.5, 6.0, -0.5, -6.0]);
    }
}
