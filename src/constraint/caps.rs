//! Limits on a schema: keywords whose cost grows exponentially, or that no answer can satisfy.
//!
//! The process that compiles schemas is killed when it takes too long, and that gives a client no reason. So the known
//! causes of exponential cost are counted first, and rejected with their keyword and place. Measured with llguidance 1.9:
//! twelve patterns in one string take tenths of a second, forty take minutes; 64 pattern properties a third of a second, 300
//! more than half a minute; a divisor of 10,007 a fifth of a second, one of 1,000,003 half a minute.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    ConstraintError,
    bounds::{COUNTS, MAX_EXACT_INTEGER, MAX_PARTS},
    schema_walk,
};

/// Patterns and formats that one string may have to match at once: the compiler builds the product of their automata.
const MAX_PATTERNS: usize = 8;

/// Pattern properties of an object: the compiler intersects each with each.
const MAX_PATTERN_PROPERTIES: usize = 64;

/// Remainders that a decimal number has with a divisor, but for its factors of two and five: one state each.
const MAX_REMAINDERS: u64 = 1 << 14;

/// Rejects what would explode in `root`, whose bounds have been cut.
pub(super) fn check(root: &Value) -> Result<(), ConstraintError> {
    schema_walk::each(root, "#", &mut |object, place| {
        let refuse = |(keyword, reason): (&str, String)| ConstraintError::Cap {
            keyword: keyword.into(),
            place: place.into(),
            reason,
        };
        check_patterns(root, object).map_err(refuse)?;
        check_divisors(root, object).map_err(refuse)?;
        check_bounds(object).map_err(refuse)
    })
}

/// `Err` has a keyword and the reason why it is rejected.
type Found = Result<(), (&'static str, String)>;

fn check_patterns(root: &Value, object: &Map<String, Value>) -> Found {
    let patterns = intersected(root, object, &["pattern", "format"]).len();
    if patterns > MAX_PATTERNS {
        let reason = format!(
            "makes one string match {patterns} patterns and formats at once, at most {MAX_PATTERNS}; join them into one pattern"
        );
        return Err(("pattern", reason));
    }
    let properties = object.get("patternProperties").and_then(Value::as_object).map_or(0, Map::len);
    if properties > MAX_PATTERN_PROPERTIES {
        let reason = format!(
            "has {properties} patterns, at most {MAX_PATTERN_PROPERTIES}; list the properties by name"
        );
        return Err(("patternProperties", reason));
    }
    Ok(())
}

fn check_divisors(root: &Value, object: &Map<String, Value>) -> Found {
    let divisors = intersected(root, object, &["multipleOf"]);
    let mut product = 1_u64;
    for divisor in divisors.iter().filter_map(|value| value.as_f64()) {
        if divisor == 0.0 {
            return Err(("multipleOf", "is 0; divide by a number above it".into()));
        }
        product = product.saturating_mul(remainders(divisor));
    }
    if product > MAX_REMAINDERS {
        let reason = format!(
            "is too large a divisor: at most {MAX_REMAINDERS}, not counting its factors 2 and 5; leave it out, or check the answer for it"
        );
        return Err(("multipleOf", reason));
    }
    Ok(())
}

/// The divisor's digits as a whole number, without its factors of two and five. A divisor without a decimal form is left to
/// the compiler, which rejects it.
fn remainders(divisor: f64) -> u64 {
    let digits: String = format!("{divisor}").chars().filter(char::is_ascii_digit).collect();
    let Ok(mut left) = digits.parse::<u64>() else { return 1 };
    for factor in [2, 5] {
        while left > 0 && left.is_multiple_of(factor) {
            left /= factor;
        }
    }
    left
}

fn check_bounds(object: &Map<String, Value>) -> Found {
    for [min, _] in COUNTS {
        if object.get(min).and_then(Value::as_u64).is_some_and(|count| count > MAX_PARTS) {
            return Err((min, format!("asks for more than {MAX_PARTS}, which no answer holds; lower it")));
        }
    }
    let bound = |keyword: &str| object.get(keyword).and_then(Value::as_f64);
    #[expect(clippy::cast_precision_loss, reason = "it is exact by its definition")]
    let greatest = MAX_EXACT_INTEGER as f64;
    for keyword in ["minimum", "exclusiveMinimum"] {
        if bound(keyword).is_some_and(|bound| bound > greatest) {
            return Err((keyword, "leaves only numbers of more than 18 digits; lower it".into()));
        }
    }
    for keyword in ["maximum", "exclusiveMaximum"] {
        if bound(keyword).is_some_and(|bound| bound < -greatest) {
            return Err((keyword, "leaves only numbers of more than 18 digits; raise it".into()));
        }
    }
    check_values(object)
}

/// The compiler reads numbers as floats, so the model would have to write another number than the schema asks for.
fn check_values(object: &Map<String, Value>) -> Found {
    let listed =
        object.get("enum").and_then(Value::as_array).into_iter().flatten().map(|value| ("enum", value));
    let single = object.get("const").map(|value| ("const", value));
    for (keyword, value) in listed.chain(single) {
        let Value::Number(number) = value else { continue };
        let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
        #[expect(clippy::cast_possible_truncation, reason = "floats of 64-bit integers are far below 2^127")]
        let is_exact = whole.is_none_or(|whole| number.as_f64().is_some_and(|float| float as i128 == whole));
        if !is_exact {
            let reason = format!("has {number}, which cannot be kept to the last digit; send it as a string");
            return Err((keyword, reason));
        }
    }
    Ok(())
}

/// The values of these keywords that apply to the same JSON value: those of the schema itself, of all its `allOf` and
/// `$ref`, and of the worst branch of each choice.
fn intersected<'a>(root: &'a Value, object: &'a Map<String, Value>, keywords: &[&str]) -> Vec<&'a Value> {
    Intersection { root, keywords, seen: BTreeSet::new() }.of(object)
}

struct Intersection<'a, 'k> {
    root: &'a Value,
    keywords: &'k [&'k str],
    /// References already followed: each counts once, and references may form a cycle.
    seen: BTreeSet<&'a str>,
}

impl<'a> Intersection<'a, '_> {
    fn of(&mut self, object: &'a Map<String, Value>) -> Vec<&'a Value> {
        let list = |keyword: &str| object.get(keyword).and_then(Value::as_array).into_iter().flatten();
        let mut found: Vec<_> = self.keywords.iter().filter_map(|keyword| object.get(*keyword)).collect();
        for part in list("allOf") {
            found.extend(self.within(part));
        }
        for choice in ["anyOf", "oneOf"] {
            let branches = list(choice).map(|branch| self.within(branch));
            found.extend(branches.max_by_key(Vec::len).unwrap_or_default());
        }
        let reference =
            object.get("$ref").and_then(Value::as_str).filter(|reference| self.seen.insert(reference));
        let target = reference.and_then(|reference| self.root.pointer(reference.strip_prefix('#')?));
        found.extend(target.map(|target| self.within(target)).unwrap_or_default());
        found
    }

    fn within(&mut self, value: &'a Value) -> Vec<&'a Value> {
        value.as_object().map(|object| self.of(object)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> Option<(String, String)> {
        match check(schema) {
            Ok(()) => None,
            Err(ConstraintError::Cap { keyword, place, .. }) => Some((keyword, place)),
            Err(other) => panic!("{other}"),
        }
    }

    fn patterns(n: usize) -> Vec<Value> {
        (0..n).map(|i| json!({ "pattern": format!(".*{i}.*") })).collect()
    }

    /// Each part refers to the next one twice: there are 2^n ways through them.
    fn shared_parts(n: usize) -> Value {
        let part =
            |i: usize| json!({ "allOf": vec![json!({ "$ref": format!("#/$defs/{}", (i + 1) % n) }); 2] });
        let parts: Map<String, Value> = (0..n).map(|i| (i.to_string(), part(i))).collect();
        json!({ "$ref": "#/$defs/0", "$defs": parts })
    }

    #[test]
    fn patterns_that_hold_at_once_are_counted_through_all_of_references_and_choices() {
        for (schema, place) in [
            (json!({ "allOf": patterns(9) }), "#"),
            (json!({ "allOf": [{ "allOf": patterns(5) }, { "allOf": patterns(4) }] }), "#"),
            (json!({ "items": { "pattern": "a", "allOf": patterns(8) } }), "#/items"),
            (json!({ "properties": { "a": { "format": "date", "allOf": patterns(8) } } }), "#/properties/a"),
            (
                json!({ "$defs": { "a": { "allOf": patterns(5) } }, "allOf": [{ "$ref": "#/$defs/a" }, { "allOf": patterns(4) }] }),
                "#",
            ),
            (json!({ "anyOf": [{ "allOf": patterns(6) }, {}], "allOf": patterns(3) }), "#"),
        ] {
            assert_eq!(refused(&schema), Some(("pattern".into(), place.into())), "{schema}");
        }
        for schema in [
            json!({ "allOf": patterns(8) }),
            json!({ "anyOf": patterns(100) }),
            json!({ "properties": { "pattern": { "const": { "allOf": patterns(9) } } } }),
            json!({ "items": { "$ref": "#" } }),
            shared_parts(100),
        ] {
            assert_eq!(refused(&schema), None, "{schema}");
        }
    }

    #[test]
    fn each_keyword_that_explodes_is_refused_by_name() {
        let many: Map<String, Value> = (0..65).map(|i| (format!("^{i}$"), json!({}))).collect();
        for (keyword, schema) in [
            ("patternProperties", json!({ "patternProperties": many })),
            ("multipleOf", json!({ "multipleOf": 1_000_003 })),
            ("multipleOf", json!({ "multipleOf": 0 })),
            ("multipleOf", json!({ "allOf": [{ "multipleOf": 10_007 }, { "multipleOf": 3.7 }] })),
            ("minLength", json!({ "minLength": u64::MAX })),
            ("minItems", json!({ "minItems": u64::MAX })),
            ("minProperties", json!({ "minProperties": u64::MAX })),
            ("minimum", json!({ "minimum": 1e300 })),
            ("exclusiveMaximum", json!({ "exclusiveMaximum": i64::MIN })),
            ("const", json!({ "const": i64::MAX })),
            ("enum", json!({ "enum": [1, u64::MAX] })),
        ] {
            assert_eq!(refused(&schema), Some((keyword.into(), "#".into())), "{schema}");
        }
        for schema in
            [json!({ "multipleOf": 1_000_000 }), json!({ "multipleOf": 0.01 }), json!({ "const": 1e300 })]
        {
            assert_eq!(refused(&schema), None, "{schema}");
        }
    }
}
