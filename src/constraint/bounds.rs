//! Tightens the bounds of a schema to numbers that the compiler supports.
//!
//! The compiler reads every number as a 64-bit float and writes bounds digit by digit into a regular expression, with 64-bit
//! integers in between. So bounds beyond 18 digits overflow, and integers above 2^53 are rounded. People write such bounds
//! to mean "any": `minimum: -9223372036854775808`. So each bound is moved inwards, to the next number that the compiler
//! represents exactly. Every answer that the tighter bound allows satisfies the original schema. A bound that would allow
//! nothing after the move, such as a minimum above 18 digits, is left for [`caps`](super::caps) to reject.

use serde_json::{Map, Number, Value};

/// Greatest 18-digit number that a float holds exactly.
pub(super) const MAX_EXACT_INTEGER: i64 = 999_999_999_999_999_872;

/// Smallest distance from zero: a smaller one has more digits than the compiler can nest.
const MIN_MAGNITUDE: f64 = 1e-30;

/// Maximum number of characters, items or properties that are counted; no answer holds as many.
pub(super) const MAX_PARTS: u64 = 1 << 30;

/// Which side of a range a bound is on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Lower,
    Upper,
}

const NUMBERS: [(&str, Side); 4] = [
    ("minimum", Side::Lower),
    ("exclusiveMinimum", Side::Lower),
    ("maximum", Side::Upper),
    ("exclusiveMaximum", Side::Upper),
];

/// The keywords for the minimum and maximum number of characters, items and properties.
pub(super) const COUNTS: [[&str; 2]; 3] =
    [["minLength", "maxLength"], ["minItems", "maxItems"], ["minProperties", "maxProperties"]];

/// Tightens the bounds of this schema itself, not those of inner schemas.
pub(super) fn tighten(schema: &mut Map<String, Value>) {
    for (keyword, side) in NUMBERS {
        if let Some(Value::Number(bound)) = schema.get_mut(keyword) {
            *bound = inward(bound, side);
        }
    }
    for [min, max] in COUNTS {
        for keyword in [min, max] {
            if let Some(Value::Number(count)) = schema.get_mut(keyword) {
                *count = whole(count);
            }
        }
        if schema.get(max).and_then(Value::as_u64).is_some_and(|count| count > MAX_PARTS) {
            schema.shift_remove(max);
        }
    }
}

/// The next number within the range that the compiler represents exactly; the bound itself if there is none.
fn inward(bound: &Number, side: Side) -> Number {
    let whole = bound.as_i64().map(i128::from).or_else(|| bound.as_u64().map(i128::from));
    let Some(float) = bound.as_f64() else { return bound.clone() };
    let float = whole.map_or(float, |whole| exact(whole, float, side));
    let greatest = float_of(MAX_EXACT_INTEGER);
    match side {
        Side::Lower if float < -greatest => (-MAX_EXACT_INTEGER).into(),
        Side::Upper if float > greatest => MAX_EXACT_INTEGER.into(),
        Side::Lower if float > 0.0 && float < MIN_MAGNITUDE => number(MIN_MAGNITUDE, bound),
        Side::Upper if float < 0.0 && float > -MIN_MAGNITUDE => number(-MIN_MAGNITUDE, bound),
        _ if whole.is_some_and(|whole| whole.unsigned_abs() <= 1 << f64::MANTISSA_DIGITS) => bound.clone(),
        _ => number(float, bound),
    }
}

/// The float nearest to a whole number from inside of the range; `nearest` is the nearest from either side.
fn exact(whole: i128, nearest: f64, side: Side) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "64-bit integers and their floats are far below 2^127"
    )]
    let rounded = nearest as i128;
    match side {
        Side::Lower if rounded < whole => nearest.next_up(),
        Side::Upper if rounded > whole => nearest.next_down(),
        _ => nearest,
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is exact by its definition")]
const fn float_of(exact: i64) -> f64 {
    exact as f64
}

fn number(float: f64, otherwise: &Number) -> Number {
    Number::from_f64(float).unwrap_or_else(|| otherwise.clone())
}

/// `5.0` is a whole number in JSON Schema, and so is `1e30`.
fn whole(count: &Number) -> Number {
    match count.as_f64() {
        Some(float) if count.is_f64() && float >= 0.0 && float.fract() == 0.0 => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative, and greater ones become the greatest"
            )]
            let whole = float as u64;
            whole.into()
        }
        _ => count.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cut_to(mut schema: Value) -> Value {
        tighten(schema.as_object_mut().unwrap());
        schema
    }

    #[test]
    fn bounds_move_inwards_to_the_next_exact_number() {
        for (bound, cut) in [
            (json!({ "minimum": i64::MIN }), json!({ "minimum": -MAX_EXACT_INTEGER })),
            (json!({ "exclusiveMinimum": -1e300 }), json!({ "exclusiveMinimum": -MAX_EXACT_INTEGER })),
            (json!({ "maximum": u64::MAX }), json!({ "maximum": MAX_EXACT_INTEGER })),
            (json!({ "exclusiveMaximum": 1e19 }), json!({ "exclusiveMaximum": MAX_EXACT_INTEGER })),
            (json!({ "minimum": 9_007_199_254_740_993_u64 }), json!({ "minimum": 9_007_199_254_740_994.0 })),
            (json!({ "maximum": 9_007_199_254_740_993_u64 }), json!({ "maximum": 9_007_199_254_740_992.0 })),
            (json!({ "minimum": 1e-300 }), json!({ "minimum": 1e-30 })),
            (json!({ "maximum": -1e-300 }), json!({ "maximum": -1e-30 })),
            (json!({ "maxLength": u64::MAX, "minLength": 5.0 }), json!({ "minLength": 5 })),
            (json!({ "maxItems": 1e30, "minItems": 0 }), json!({ "minItems": 0 })),
        ] {
            assert_eq!(cut_to(bound.clone()), cut, "{bound}");
        }
    }

    #[test]
    fn ordinary_bounds_and_values_that_are_not_numbers_are_unchanged() {
        let schema = json!({ "minimum": -5, "maximum": 120, "exclusiveMinimum": true, "exclusiveMaximum": 0.5,
            "minLength": "a", "maxLength": 1000, "maxItems": 0, "minProperties": 1.5 });
        assert_eq!(cut_to(schema.clone()), schema);
    }
}
