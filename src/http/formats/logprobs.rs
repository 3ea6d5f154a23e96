//! Log-probabilities in OpenAI's two shapes.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    http::request::TokenDetails,
    job::TokenLogprobs,
    text::{Text, TokenText},
};

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    token: String,
    /// Null for the first token of a prompt, which the model did not predict.
    #[schema(required)]
    logprob: Option<f64>,
    /// Null for tokens without bytes, such as special tokens.
    #[schema(required)]
    bytes: Option<Vec<u8>>,
    #[serde(skip)]
    id: u32,
}

/// A token with its log-probability and the most probable alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct ScoredToken {
    #[serde(flatten)]
    token: TokenLogprob,
    top_logprobs: Vec<TokenLogprob>,
    /// Characters of the text before it.
    #[serde(skip)]
    offset: usize,
}

impl TokenLogprob {
    fn new(TokenText { text, bytes }: TokenText, id: u32, logprob: Option<f32>) -> Self {
        Self { token: text, logprob: logprob.map(f64::from), bytes, id }
    }
}

impl ScoredToken {
    /// Its log-probability; `None` for the first token of a prompt.
    pub(crate) const fn logprob(&self) -> Option<f64> {
        self.token.logprob
    }

    /// Number of alternatives that are reported with it.
    pub(crate) const fn alternatives(&self) -> usize {
        self.top_logprobs.len()
    }
}

/// Makes scored tokens, in the order of the text.
#[derive(Debug)]
pub(crate) struct Scoring {
    offset: usize,
    /// Alternatives to each token.
    top: usize,
    names_ids: bool,
}

impl Scoring {
    pub(crate) fn new(details: TokenDetails) -> Self {
        Self { offset: 0, top: details.top.unwrap_or(0), names_ids: details.names_ids }
    }

    /// A token with its score.
    pub(crate) fn scored(&mut self, text: &Text, score: &TokenLogprobs) -> ScoredToken {
        let top = score.top.iter().take(self.top);
        let top = top.map(|(id, logprob)| self.named(text.token(*id), *id, Some(*logprob))).collect();
        self.next(text, score.token, (Some(score.logprob), top))
    }

    /// A token that the model did not predict.
    pub(crate) fn unscored(&mut self, text: &Text, token: u32) -> ScoredToken {
        self.next(text, token, (None, Vec::new()))
    }

    fn next(&mut self, text: &Text, id: u32, score: (Option<f32>, Vec<TokenLogprob>)) -> ScoredToken {
        let ((logprob, top_logprobs), token, offset) = (score, text.token(id), self.offset);
        self.offset += token.characters();
        ScoredToken { token: self.named(token, id, logprob), top_logprobs, offset }
    }

    fn named(&self, token: TokenText, id: u32, logprob: Option<f32>) -> TokenLogprob {
        let token = TokenLogprob::new(token, id, logprob);
        if self.names_ids { TokenLogprob { token: format!("token_id:{id}"), ..token } } else { token }
    }
}

/// A token with its probability and the most probable alternatives, in llama-server's shape.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenProbability<'a> {
    id: u32,
    token: &'a str,
    /// Empty for tokens without bytes, such as special tokens.
    bytes: &'a [u8],
    #[serde(flatten)]
    probability: Probability<'a>,
}

/// Of the model, or of what the sampler draws from.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Probability<'a> {
    OfModel {
        logprob: f64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        #[schema(no_recursion, value_type = Vec<Object>)]
        top_logprobs: Vec<TokenProbability<'a>>,
    },
    /// With `post_sampling_probs`.
    AfterSampling {
        /// From 0 to 1.
        prob: f64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        #[schema(no_recursion, value_type = Vec<Object>)]
        top_probs: Vec<TokenProbability<'a>>,
    },
}

impl<'a> TokenProbability<'a> {
    /// Of a token whose log-probability is one of the sampler or of the model.
    pub(crate) fn new(scored: &'a ScoredToken, after_sampling: bool) -> Self {
        let top = scored.top_logprobs.iter().map(|token| Self::of(token, Vec::new(), after_sampling));
        Self::of(&scored.token, top.collect(), after_sampling)
    }

    fn of(token: &'a TokenLogprob, top: Vec<Self>, after_sampling: bool) -> Self {
        let logprob = token.logprob.unwrap_or_default();
        let probability = if after_sampling {
            Probability::AfterSampling { prob: logprob.exp(), top_probs: top }
        } else {
            Probability::OfModel { logprob, top_logprobs: top }
        };
        let bytes = token.bytes.as_deref().unwrap_or_default();
        Self { id: token.id, token: &token.token, bytes, probability }
    }
}

/// A token of the prompt, or an alternative to it, with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct PromptLogprob {
    logprob: f64,
    /// 1 is the most probable token.
    rank: usize,
    decoded_token: String,
}

/// The log-probability of a token of the prompt and of the most probable tokens, by token id, as vLLM has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PromptLogprobs(Vec<(u32, PromptLogprob)>);

impl PromptLogprobs {
    pub(crate) fn new(text: &Text, score: &TokenLogprobs, top: usize) -> Self {
        let one = |id: u32, logprob: f32, rank| {
            (id, PromptLogprob { logprob: logprob.into(), rank, decoded_token: text.token(id).text })
        };
        let own = one(score.token, score.logprob, score.rank);
        let ranked = score.top.iter().take(top).zip(1..);
        let others = ranked.filter(|((id, _), _)| *id != score.token);
        Self([own].into_iter().chain(others.map(|((id, logprob), rank)| one(*id, *logprob, rank))).collect())
    }

    /// How many tokens it has.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }
}

impl Serialize for PromptLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, logprob)| (id.to_string(), logprob)))
    }
}

/// Log-probabilities in chat completions.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatLogprobs<'a> {
    content: &'a [ScoredToken],
    /// Always null.
    #[schema(required)]
    refusal: Option<&'static str>,
}

impl<'a> From<&'a [ScoredToken]> for ChatLogprobs<'a> {
    fn from(content: &'a [ScoredToken]) -> Self {
        Self { content, refusal: None }
    }
}

/// Log-probabilities in completions, with one entry per token in each list.
#[derive(Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs<'a> {
    tokens: Vec<&'a str>,
    /// Null for the first token of an echoed prompt.
    token_logprobs: Vec<Option<f64>>,
    /// Log-probabilities by token.
    #[schema(value_type = Vec<Option<std::collections::BTreeMap<String, f64>>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters of the text before the token.
    text_offset: Vec<usize>,
}

impl<'a> From<&'a [ScoredToken]> for CompletionLogprobs<'a> {
    fn from(tokens: &'a [ScoredToken]) -> Self {
        Self {
            tokens: tokens.iter().map(|scored| scored.token.token.as_str()).collect(),
            token_logprobs: tokens.iter().map(|scored| scored.token.logprob).collect(),
            top_logprobs: tokens.iter().map(top).collect(),
            text_offset: tokens.iter().map(|scored| scored.offset).collect(),
        }
    }
}

/// The alternatives in the order of their probability, and the token itself, as OpenAI has it.
fn top(scored: &ScoredToken) -> Option<Map<String, Value>> {
    scored.token.logprob?;
    let all = scored.top_logprobs.iter().chain([&scored.token]);
    Some(all.map(|token| (token.token.clone(), token.logprob.into())).collect())
}
