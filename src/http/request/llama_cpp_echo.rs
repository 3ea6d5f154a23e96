//! What answers of llama-server's own routes repeat of their requests.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{job::Sampling, units::Tokens};

/// What an answer in llama-server's format repeats of its request.
#[derive(Debug)]
pub(crate) struct LlamaCppEcho {
    /// The prompts that were sent as texts.
    pub(crate) prompts: Vec<String>,
    /// How many answers each prompt has.
    pub(crate) choices: usize,
    pub(crate) return_tokens: bool,
    /// Paths of the fields that a complete answer has; empty for all.
    pub(crate) response_fields: Vec<String>,
    pub(crate) settings: GenerationSettings,
}

/// How an answer was generated, under llama-server's names.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct GenerationSettings {
    /// Most tokens of the answer; -1 for what the context has room for.
    pub(super) n_predict: i64,
    pub(super) seed: u64,
    pub(super) temperature: f32,
    pub(super) top_k: usize,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
    pub(super) typical_p: f32,
    pub(super) repeat_penalty: f32,
    pub(super) presence_penalty: f32,
    pub(super) frequency_penalty: f32,
    pub(super) dry_multiplier: f32,
    pub(super) n_probs: usize,
    /// Of token ids; with `ignore_eos`, also that of the end tokens.
    pub(super) logit_bias: Vec<TokenBias>,
    pub(super) stop: Vec<String>,
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
}

/// The bias of a token.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct TokenBias {
    pub(super) token: u32,
    /// Null for tokens that an answer does not have.
    #[schema(required)]
    pub(super) bias: Option<f32>,
}

impl GenerationSettings {
    /// The settings of requests with these parameters.
    pub(crate) fn new(sampling: &Sampling, max_new: Option<Tokens>) -> Self {
        Self {
            n_predict: max_new.map_or(-1, |max| i64::try_from(max.0).unwrap_or(i64::MAX)),
            seed: sampling.seed,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            repeat_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            dry_multiplier: sampling.dry.as_ref().map_or(0.0, |dry| dry.multiplier),
            n_probs: 0,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            ignore_eos: false,
            stream: false,
        }
    }
}
