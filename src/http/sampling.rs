//! How a token is picked, as requests say it: OpenAI's fields, and those of llama.cpp and vLLM that people miss there.

use serde_json::{Map, Number, Value};

use super::{
    ask::{Rules, check_id},
    fields::{FieldError, Fields},
};
use crate::job::{Dry, Sampling};

/// Takes the fields that say how a token is picked.
pub(super) fn take(fields: &mut Fields, rules: &Rules) -> Result<Sampling, FieldError> {
    let top_k = fields.whole("top_k", 0..=rules.vocabulary as u64)?.unwrap_or(0);
    Ok(Sampling {
        logit_bias: take_logit_bias(fields, rules.vocabulary)?,
        repetition_penalty: fields.number("repetition_penalty", 0.1..=10.0)?.unwrap_or(1.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        dry: take_dry(fields)?,
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(rules.temperature),
        top_k: usize::try_from(top_k).unwrap_or(usize::MAX),
        typical_p: fields.number("typical_p", 0.0..=1.0)?.unwrap_or(1.0),
        // OpenAI allows 0, which must still leave the most probable token.
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0).max(f32::MIN_POSITIVE),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        seed: take_seed(fields)?,
    })
}

/// A seed of the request's own, else a random one that every JSON reader can hold exactly.
fn take_seed(fields: &mut Fields) -> Result<u64, FieldError> {
    const EXACT_IN_A_DOUBLE: u64 = (1 << 53) - 1;
    let Some(seed) = fields.take::<Number>("seed")? else {
        return Ok(rand::random::<u64>() & EXACT_IN_A_DOUBLE);
    };
    // OpenAI's seeds may be negative; as bits they are as good as any.
    let bits = seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned));
    bits.ok_or_else(|| {
        let range = format!("{} to {}, whole numbers", i64::MIN, u64::MAX);
        FieldError::Range { param: fields.path("seed"), found: seed.to_string(), range }
    })
}

fn take_logit_bias(fields: &mut Fields, vocabulary: usize) -> Result<Vec<(u32, f32)>, FieldError> {
    let Some(biases) = fields.take::<Map<String, Value>>("logit_bias")? else { return Ok(Vec::new()) };
    let ids: Vec<String> = biases.keys().cloned().collect();
    let mut biases = Fields::nested(Value::Object(biases), &fields.path("logit_bias"))?;
    let mut taken = Vec::with_capacity(ids.len());
    for id in &ids {
        let path = biases.path(id);
        let token = id.parse().map_err(|_| FieldError::value(&path, "is not a token id"))?;
        check_id(token, &path, vocabulary)?;
        taken.extend(biases.number(id, -100.0..=100.0)?.map(|bias| (token, bias)));
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
pub(super) fn take_breakers(fields: &mut Fields) -> Result<Vec<String>, FieldError> {
    const MOST: usize = 16;
    let path = fields.path("dry_sequence_breakers");
    let Some(breakers) = fields.take::<Vec<String>>("dry_sequence_breakers")? else {
        return Ok(["\n", ":", "\"", "*"].map(str::to_owned).into());
    };
    if breakers.len() > MOST {
        return Err(FieldError::value(path, format!("{} strings, at most {MOST}", breakers.len())));
    }
    match breakers.iter().position(String::is_empty) {
        Some(place) => {
            Err(FieldError::value(path, format!("string {place} is empty and would stand everywhere")))
        }
        None => Ok(breakers),
    }
}
