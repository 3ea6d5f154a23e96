//! How a token is picked: OpenAI's fields, and common ones of llama.cpp and vLLM.

use std::{collections::HashSet, ops::RangeInclusive};

use serde_json::{Value, json};

use super::{
    prompt::check_id,
    schema::{FieldType, Location, Modify, counted, custom, integer, nullable, number, shape, string_list},
};
use crate::{
    http::field_error::FieldError,
    job::{Dry, Sampling, SamplingDefaults},
};

/// Range of distinct seeds. OpenAI's may be negative.
const SEEDS: RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

/// Most tokens with a bias. OpenAI's limit is 300; lists of the tokens of several hundred words to avoid need more. Every
/// step of every answer adds them all, and each is sent to the worker.
const MAX_BIASES: usize = 1024;

/// Most sequence breakers, and their longest in bytes: longer than a token, which must contain it.
const MAX_BREAKERS: usize = 16;
const MAX_BREAKER_BYTES: usize = 64;

/// As in llama.cpp: the ends of lines, of names and of quotations.
const DEFAULT_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

shape! {
    /// Fields that control how a token is picked.
    pub(crate) struct SamplingFields {
        /// 0 always picks the most probable token. The default is that of the model's `generation_config.json`, else 1, and 0 on
        /// `/generate-lite`. The model's file has defaults for `top_p`, `top_k`, `min_p` and `repetition_penalty` as well.
        temperature: Option<f32> = number(0.0..=2.0).optional();
        /// Keeps the most probable tokens that together have this probability.
        top_p: Option<f32> = number(0.0..=1.0).optional();
        /// Number of most probable tokens to sample from; 0 and -1 keep all.
        top_k: Option<i128> = top_k().optional();
        /// Keeps tokens at least this fraction as probable as the most probable one.
        min_p: Option<f32> = number(0.0..=1.0).optional();
        /// Locally typical sampling; 1 is off.
        typical_p: f32 = number(0.0..=1.0).or(1.0);
        /// Divides the logits of tokens that the prompt or the answer already has; 1 is off.
        repetition_penalty: Option<f32> = number(0.1..=10.0).optional();
        /// Subtracted from the logits of tokens that the answer already has.
        presence_penalty: f32 = number(-2.0..=2.0).or(0.0);
        /// Subtracted once for every time that the answer already has the token.
        frequency_penalty: f32 = number(-2.0..=2.0).or(0.0);
        /// Strength of the DRY penalty on repeated sequences; 0 is off.
        dry_multiplier: f32 = number(0.0..=100.0).or(0.0);
        /// How fast the DRY penalty grows with the length of the repetition.
        dry_base: f32 = number(1.0..=100.0).or(1.75);
        /// Longest repetition, in tokens, that DRY does not penalize.
        dry_allowed_length: usize = integer(1..=u32::MAX as usize).or(2);
        /// Strings that end a repeated sequence for DRY; none may be empty.
        dry_sequence_breakers: Vec<String> = breakers().or(DEFAULT_BREAKERS.map(str::to_owned).into());
        /// Added to the logits of tokens, by their ids: -100 all but forbids a token, 100 all but forces it.
        logit_bias: Vec<(u32, f32)> = logit_bias().or_empty();
        /// The same seed gives the same answer, as long as model and program are the same. By default, and with -1, it is
        /// random.
        seed: Option<i128> = integer(SEEDS).optional().unset_at("-1");
    }
}

/// -1 keeps all tokens, also if the model has another default.
fn top_k() -> impl FieldType<Value = i128> {
    integer(-1..=i128::from(i64::MAX)).map(|top_k| top_k.max(0))
}

fn breakers() -> impl FieldType<Value = Vec<String>> {
    let empty = "an empty sequence breaker would match everywhere";
    string_list(MAX_BREAKERS, MAX_BREAKER_BYTES, empty)
}

/// An object with a bias for each token id, or an array of pairs of both, as llama.cpp has it.
fn logit_bias() -> impl FieldType<Value = Vec<(u32, f32)>> {
    custom(read_biases, |schemas| {
        let (token, bias) = (token_id().schema(schemas), bias().schema(schemas));
        let pair = json!({ "type": "array", "prefixItems": [token, bias], "minItems": 2, "maxItems": 2 });
        let object = json!({ "type": "object", "additionalProperties": nullable(bias) });
        json!({ "oneOf": [object, counted(pair, &(0..=MAX_BIASES))] })
    })
}

fn bias() -> impl FieldType<Value = f32> {
    number(-100.0..=100.0)
}

fn token_id() -> impl FieldType<Value = u32> {
    integer(0..=u32::MAX)
}

/// The same token may be written in several ways ("7", "07"), and several biases for it would be ambiguous.
fn read_biases(value: Value, at: &Location) -> Result<Vec<(u32, f32)>, FieldError> {
    let entries = match &value {
        Value::Object(biases) => biases.len(),
        Value::Array(pairs) => pairs.len(),
        other => return Err(at.wrong_type("an object or an array of pairs", other)),
    };
    if entries > MAX_BIASES {
        return Err(at.invalid(format!(
            "{entries} entries, at most {MAX_BIASES}; to restrict an answer to some characters, send regex or grammar"
        )));
    }
    let mut seen = HashSet::with_capacity(entries);
    let mut taken = Vec::with_capacity(entries);
    let mut add = |token, bias: Value, at: &Location| {
        if !seen.insert(token) {
            return Err(at.invalid(format!("token {token} has more than one bias")));
        }
        if !bias.is_null() {
            taken.push((token, self::bias().read(bias, at)?));
        }
        Ok(())
    };
    match value {
        Value::Object(biases) => biases.into_iter().try_for_each(|(id, bias)| {
            let at = at.field(&id);
            add(id.parse().map_err(|_| at.invalid("not a token id"))?, bias, &at)
        })?,
        Value::Array(pairs) => pairs.into_iter().enumerate().try_for_each(|(index, pair)| {
            let at = at.item(index);
            let (token, bias) = read_pair(pair, &at)?;
            add(token, bias, &at)
        })?,
        _ => {}
    }
    Ok(taken)
}

/// A token id and its bias.
fn read_pair(value: Value, at: &Location) -> Result<(u32, Value), FieldError> {
    match value {
        Value::Array(mut pair) if pair.len() == 2 && !pair[1].is_null() => {
            let bias = pair.swap_remove(1);
            Ok((token_id().read(pair.swap_remove(0), at)?, bias))
        }
        Value::Array(_) => Err(at.invalid("not a pair of a token id and a bias")),
        other => Err(at.wrong_type("an array of a token id and a bias", &other)),
    }
}

impl SamplingFields {
    /// The parameters for a model with this `vocabulary` and these defaults, and the sequence breakers of DRY, which are not tokens yet.
    pub(crate) fn resolve(
        self,
        vocabulary: usize,
        defaults: SamplingDefaults,
    ) -> Result<(Sampling, Vec<String>), FieldError> {
        for (token, _) in &self.logit_bias {
            check_id(*token, &format_args!("logit_bias.{token}"), vocabulary)?;
        }
        let (multiplier, base, allowed_length) =
            (self.dry_multiplier, self.dry_base, self.dry_allowed_length);
        let dry = Dry { multiplier, base, allowed_length, breakers: Vec::new() };
        let top_k = self.top_k.map(|top_k| usize::try_from(top_k).unwrap_or(usize::MAX));
        let sampling = Sampling {
            logit_bias: self.logit_bias,
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            dry: (multiplier > 0.0).then_some(dry),
            temperature: self.temperature.or(defaults.temperature).unwrap_or(1.0),
            top_k: top_k.or(defaults.top_k).unwrap_or(0).min(vocabulary),
            typical_p: self.typical_p,
            // OpenAI allows 0, which must still leave the most probable token.
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0).max(f32::MIN_POSITIVE),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            seed: self.seed.map_or_else(random_seed, seed_bits),
        };
        Ok((sampling, self.dry_sequence_breakers))
    }
}

/// A seed that every JSON reader can hold exactly, because the answer contains it.
fn random_seed() -> u64 {
    const EXACT_IN_A_DOUBLE: u64 = (1 << 53) - 1;
    rand::random::<u64>() & EXACT_IN_A_DOUBLE
}

/// Negative seeds are taken by their bits.
fn seed_bits(seed: i128) -> u64 {
    let negative = i64::try_from(seed).map(i64::cast_unsigned);
    u64::try_from(seed).or(negative).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::http::request::schema::Fields;

    fn biases(object: Value) -> Result<Vec<(u32, f32)>, FieldError> {
        let mut fields = Fields::parse(json!({ "logit_bias": object }).to_string().as_bytes()).unwrap();
        fields.take("logit_bias", logit_bias())
    }

    #[test]
    fn the_number_of_biases_is_limited_and_the_error_names_the_limit() {
        let many = |n: usize| (0..n).map(|id| (format!("{id:0>9}"), json!(1))).collect::<Map<_, _>>();
        assert_eq!(biases(many(MAX_BIASES).into()).unwrap().len(), MAX_BIASES);
        let error = biases(many(40_960).into()).unwrap_err();
        assert_eq!((error.param(), error.code()), ("logit_bias", "invalid_value"));
        assert!(error.to_string().contains("40960 entries, at most 1024"), "{error}");
    }

    #[test]
    fn one_token_in_two_spellings_is_refused() {
        let error = biases(json!({ "1": 1, "01": 2 })).unwrap_err();
        assert_eq!(error.param(), "logit_bias.01");
        assert!(error.to_string().contains("token 1 has more than one bias"), "{error}");
        assert_eq!(biases(json!({ "1": 1, "2": null, "3": -2.5 })).unwrap(), [(1, 1.0), (3, -2.5)]);
    }

    #[test]
    fn biases_may_be_a_list_of_pairs_as_in_llama_cpp() {
        assert_eq!(biases(json!([[1, 1], [3.0, -2.5]])).unwrap(), [(1, 1.0), (3, -2.5)]);
        for (wrong, param) in [
            (json!([[1, 1], [1, 2]]), "logit_bias[1]"),
            (json!([[1]]), "logit_bias[0]"),
            (json!([["a", 1]]), "logit_bias[0]"),
            (json!([[1, false]]), "logit_bias[0]"),
            (json!([[1, 101]]), "logit_bias[0]"),
            (json!([1, 2]), "logit_bias[0]"),
            (json!(vec![[1, 1]; MAX_BIASES + 1]), "logit_bias"),
        ] {
            assert_eq!(biases(wrong).unwrap_err().param(), param);
        }
    }
}
