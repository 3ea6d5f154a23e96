//! How a token is picked, as requests say it: OpenAI's fields, and those of llama.cpp and vLLM that people miss there.

use std::{collections::HashSet, ops::RangeInclusive};

use serde_json::{Map, Number, Value};

use super::{
    fields::{Fields, number_within, typed, whole_of},
    generation::{Rules, check_id, check_strings},
};
use crate::{
    http::field_error::FieldError,
    job::{Dry, Sampling},
};

/// Range of distinct seeds.
const SEEDS: RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

/// Most tokens with a bias. OpenAI's limit is 300; lists of the tokens of several hundred words to avoid need more. Every
/// step of every answer adds them all, and each is sent to the worker.
const MOST_BIASES: usize = 1024;

/// Takes the fields that say how a token is picked.
pub(crate) fn take(fields: &mut Fields, rules: &Rules) -> Result<Sampling, FieldError> {
    Ok(Sampling {
        logit_bias: take_logit_bias(fields, rules.vocabulary)?,
        repetition_penalty: fields.number("repetition_penalty", 0.1..=10.0)?.unwrap_or(1.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        dry: take_dry(fields)?,
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(rules.temperature),
        top_k: take_top_k(fields, rules.vocabulary)?,
        typical_p: fields.number("typical_p", 0.0..=1.0)?.unwrap_or(1.0),
        // OpenAI allows 0, which must still leave the most probable token.
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0).max(f32::MIN_POSITIVE),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        seed: take_seed(fields)?,
    })
}

/// 0 keeps all tokens, and so does -1, which is what vLLM and llama-server call it, or more than there are.
fn take_top_k(fields: &mut Fields, vocabulary: usize) -> Result<usize, FieldError> {
    let Some(found) = fields.take::<Number>("top_k")? else { return Ok(0) };
    match whole_of(&found) {
        Some(-1) => Ok(0),
        Some(top_k @ 0..) => Ok(usize::try_from(top_k).unwrap_or(usize::MAX).min(vocabulary)),
        _ => {
            let range = "-1 and whole numbers from 0".into();
            Err(FieldError::Range { param: fields.path("top_k"), found: found.to_string(), range })
        }
    }
}

/// A seed of the request's own, else a random one that every JSON reader can hold exactly. -1 asks for a random one, as in
/// llama-server.
fn take_seed(fields: &mut Fields) -> Result<u64, FieldError> {
    const EXACT_IN_A_DOUBLE: u64 = (1 << 53) - 1;
    let random = || rand::random::<u64>() & EXACT_IN_A_DOUBLE;
    let Some(found) = fields.take::<Number>("seed")? else { return Ok(random()) };
    let Some(seed) = whole_of(&found).filter(|seed| SEEDS.contains(seed)) else {
        let range = format!("{} to {}, whole numbers", i64::MIN, u64::MAX);
        return Err(FieldError::Range { param: fields.path("seed"), found: found.to_string(), range });
    };
    if seed == -1 {
        return Ok(random());
    }
    // OpenAI's seeds may be negative; as bits they are as good as any.
    let negative = i64::try_from(seed).map(i64::cast_unsigned);
    Ok(u64::try_from(seed).or(negative).unwrap_or_default())
}

/// Takes `logit_bias` in one pass. The same token may be written in several ways ("7", "07"), and several biases for it
/// would be ambiguous.
fn take_logit_bias(fields: &mut Fields, vocabulary: usize) -> Result<Vec<(u32, f32)>, FieldError> {
    let Some(biases) = fields.take::<Map<String, Value>>("logit_bias")? else { return Ok(Vec::new()) };
    let path = fields.path("logit_bias");
    if biases.len() > MOST_BIASES {
        let said = format!(
            "{} entries, at most {MOST_BIASES}; to restrict an answer to some characters, send regex or grammar",
            biases.len()
        );
        return Err(FieldError::value(path, said));
    }
    let mut seen = HashSet::with_capacity(biases.len());
    let mut taken = Vec::with_capacity(biases.len());
    for (id, bias) in biases {
        let path = format!("{path}.{id}");
        let token = id.parse().map_err(|_| FieldError::value(&path, "is not a token id"))?;
        check_id(token, &path, vocabulary)?;
        if !seen.insert(token) {
            return Err(FieldError::value(path, format!("token {token} has more than one bias")));
        }
        let bias: Option<Number> = typed(bias, &path)?;
        if let Some(bias) = bias {
            taken.push((token, number_within(&bias, &path, &(-100.0..=100.0))?));
        }
    }
    Ok(taken)
}

/// llama.cpp's fields and defaults. A multiplier of 0 is off.
fn take_dry(fields: &mut Fields) -> Result<Option<Dry>, FieldError> {
    let multiplier = fields.number("dry_multiplier", 0.0..=100.0)?.unwrap_or(0.0);
    let base = fields.number("dry_base", 1.0..=100.0)?.unwrap_or(1.75);
    let allowed_length = fields.whole("dry_allowed_length", 1..=u64::from(u32::MAX))?.unwrap_or(2);
    let allowed_length = usize::try_from(allowed_length).unwrap_or(usize::MAX);
    Ok((multiplier > 0.0).then_some(Dry { multiplier, base, allowed_length, breakers: Vec::new() }))
}

/// What a repetition does not reach across: as in llama.cpp, the ends of lines, of names and of quotations.
pub(crate) fn take_breakers(fields: &mut Fields) -> Result<Vec<String>, FieldError> {
    const MOST: usize = 16;
    // Longer than a token is, whose text it has to stand in.
    const MOST_BYTES: usize = 64;
    let path = fields.path("dry_sequence_breakers");
    let Some(breakers) = fields.take::<Vec<String>>("dry_sequence_breakers")? else {
        return Ok(["\n", ":", "\"", "*"].map(str::to_owned).into());
    };
    check_strings(&breakers, &path, [MOST, MOST_BYTES], "an empty sequence breaker would match everywhere")?;
    Ok(breakers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn biases(object: Value) -> Result<Vec<(u32, f32)>, FieldError> {
        let mut fields = Fields::parse(json!({ "logit_bias": object }).to_string().as_bytes()).unwrap();
        take_logit_bias(&mut fields, 1_000_000)
    }

    #[test]
    fn one_request_has_at_most_so_many_biases_and_the_error_names_the_limit() {
        let many = |n: usize| (0..n).map(|id| (format!("{id:0>9}"), json!(1))).collect::<Map<_, _>>();
        assert_eq!(biases(many(MOST_BIASES).into()).unwrap().len(), MOST_BIASES);
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
}
