//! How a token is picked: OpenAI's fields, and common ones of llama.cpp and vLLM.

use std::ops::RangeInclusive;

use super::{
    logit_bias::{BiasTarget, LogitBias, logit_bias},
    prompt::{check_id, check_ids, token_ids},
    sampling_texts::{DEFAULT_BREAKERS, SamplingTexts, bad_words, breakers},
    schema::{FieldType, Modify, integer, number, shape},
};
use crate::{
    http::field_error::FieldError,
    job::{Dry, Sampling, SamplingDefaults},
};

/// Range of distinct seeds. OpenAI's may be negative.
const SEEDS: RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

/// Most tokens that an answer may be restricted to. Each step of it reads them all.
const MAX_ALLOWED_TOKENS: usize = 1 << 16;

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
        /// Added to the logits of tokens, by their ids or by texts: -100 all but forbids a token, 100 all but forces it, and
        /// `false` forbids it. A text stands for each of its tokens; a text of digits is an id.
        logit_bias: Vec<LogitBias> = logit_bias().or_empty();
        /// The answer has only these tokens: at most 65,536. An end token that is not among them cannot end it.
        allowed_token_ids: Option<Vec<u32>> = token_ids().items(1..=MAX_ALLOWED_TOKENS).optional();
        /// The answer does not have the tokens of these texts in their order: at most 256 texts of 256 bytes.
        bad_words: Vec<String> = bad_words().or_empty();
        /// The same seed gives the same answer, as long as model and program are the same. By default, and with -1, it is
        /// random.
        seed: Option<i128> = integer(SEEDS).optional().unset_at("-1");
    }
}

/// -1 keeps all tokens, also if the model has another default.
fn top_k() -> impl FieldType<Value = i128> {
    integer(-1..=i128::from(i64::MAX)).map(|top_k| top_k.max(0))
}

impl SamplingFields {
    /// The parameters for a model with this `vocabulary` and these defaults, and the texts that are not tokens yet.
    pub(crate) fn resolve(
        self,
        vocabulary: usize,
        defaults: SamplingDefaults,
    ) -> Result<(Sampling, SamplingTexts), FieldError> {
        let mut logit_bias = Vec::with_capacity(self.logit_bias.len());
        let (mut banned, mut biases) = (Vec::new(), Vec::new());
        for (target, bias) in self.logit_bias {
            match target {
                BiasTarget::Token(token) => {
                    check_id(token, &format_args!("logit_bias.{token}"), vocabulary)?;
                    match bias {
                        Some(bias) => logit_bias.push((token, bias)),
                        None => banned.push(vec![token]),
                    }
                }
                BiasTarget::Text(text) => biases.push((text, bias)),
            }
        }
        let mut allowed_tokens = self.allowed_token_ids.unwrap_or_default();
        check_ids(&allowed_tokens, "allowed_token_ids", vocabulary)?;
        allowed_tokens.sort_unstable();
        allowed_tokens.dedup();
        let (multiplier, base, allowed_length) =
            (self.dry_multiplier, self.dry_base, self.dry_allowed_length);
        let dry = Dry { multiplier, base, allowed_length, breakers: Vec::new() };
        let top_k = self.top_k.map(|top_k| usize::try_from(top_k).unwrap_or(usize::MAX));
        let sampling = Sampling {
            allowed_tokens,
            banned,
            logit_bias,
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
        let texts = SamplingTexts { breakers: self.dry_sequence_breakers, biases, bad_words: self.bad_words };
        Ok((sampling, texts))
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
