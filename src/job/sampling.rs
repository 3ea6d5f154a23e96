//! How tokens are picked, and which log-probabilities are reported.

use serde::{Deserialize, Serialize};

/// Log-probabilities to report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogprobOptions {
    /// Number of most probable alternatives at each position.
    pub top: usize,
    /// Also report the prompt's tokens except the first.
    pub prompt: bool,
    /// Probabilities of the answer's tokens are those that the sampler draws from, after bias, penalties, temperature and
    /// truncation, and not the model's.
    #[serde(default)]
    pub after_sampling: bool,
}

/// Log-probability of a token before it was picked or read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Position of the token, counted from the start of the prompt.
    pub position: usize,
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// How many tokens are at least as probable, itself included; 1 is the most probable token.
    pub rank: usize,
    /// The most probable tokens at this position with their log-probabilities, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// How a token is picked from the logits. The fields apply in the order of their declaration, the seed last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The answer has only these tokens, in ascending order. Empty allows all.
    #[serde(default)]
    pub allowed_tokens: Vec<u32>,
    /// Sequences of tokens that the answer does not have. None of them is empty.
    #[serde(default)]
    pub banned: Vec<Vec<u32>>,
    /// Added to the logits of these ids (OpenAI's `logit_bias`).
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive and multiplies negative logits of ids in prompt or output (CTRL's penalty). 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of ids in the output. 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a logit once for each occurrence of its id in the output. 0 is off.
    pub frequency_penalty: f32,
    /// Penalizes tokens that continue a repetition. `None` is off.
    pub dry: Option<Dry>,
    /// Divides the logits. 0 is greedy: the greatest logit, and the lowest id among equals.
    pub temperature: f32,
    /// Keeps only the `top_k` greatest. 0 is off.
    pub top_k: usize,
    /// Keeps only tokens whose information is nearest to the average, until their probabilities sum to `typical_p`. 1 is off.
    pub typical_p: f32,
    /// Keeps only the most probable tokens, until their probabilities sum to `top_p`. 1 is off.
    pub top_p: f32,
    /// Keeps only tokens at least `min_p` times as probable as the most probable one. 0 is off.
    pub min_p: f32,
    /// The same seed, job and model give the same tokens.
    pub seed: u64,
}

/// Sampling parameters of a model, for requests that send none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// As [`Sampling::top_p`].
    pub top_p: Option<f32>,
    /// As [`Sampling::top_k`].
    pub top_k: Option<usize>,
    /// As [`Sampling::min_p`].
    pub min_p: Option<f32>,
    /// As [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

impl Sampling {
    /// Always picks the most probable token, with every option off.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            allowed_tokens: Vec::new(),
            banned: Vec::new(),
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            temperature: 0.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

/// DRY ("don't repeat yourself"): how tokens that continue a repetition are penalized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dry {
    /// Penalty for the shortest repetition that counts.
    pub multiplier: f32,
    /// Factor for each further token of the repetition.
    pub base: f32,
    /// Length of the shortest repetition that counts, in tokens.
    pub allowed_length: usize,
    /// Tokens that end a repetition, in ascending order.
    pub breakers: Vec<u32>,
}
