//! The requests of llama-server's own routes, `POST /completion` and `POST /infill`.
//!
//! Sampling fields that are not sent have eka's defaults, not llama-server's.

use super::{
    compat,
    generation::{
        GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams, choices,
        max_tokens_or_none, within,
    },
    infill,
    llama_cpp_echo::{GenerationSettings, LlamaCppEcho, TokenBias},
    prompt::{Prompt, check_answers, prompts},
    schema::{FieldType, Modify, array, boolean, integer, number, object, shape, string, string_list},
    token_details::TokenDetails,
};
use crate::{http::field_error::FieldError, units::Tokens};

/// Maximum number of alternatives to each token.
const MAX_PROBS: usize = 20;

/// Most fields that an answer is reduced to, and the longest of their paths in bytes.
const MAX_RESPONSE_FIELDS: usize = 64;
const MAX_RESPONSE_FIELD_BYTES: usize = 128;

/// Maximum number of files in `input_extra`.
const MAX_EXTRA: usize = 64;

shape! {
    /// Fields that llama-server's own generating routes share.
    pub(crate) struct LlamaCppFields {
        ..generation: Generation;
        /// Most tokens of the answer; by default, and with -1, `engine.default_max_new_tokens` or what the context has room for. 0
        /// only reads the prompt.
        n_predict: Option<Tokens> = max_tokens_or_none();
        /// Another name of `n_predict`.
        max_tokens: Option<Tokens> = max_tokens_or_none();
        /// Adds the log-probabilities of the answer's tokens, and of this many alternatives to each.
        n_probs: usize = integer(0..=MAX_PROBS).or(0);
        /// With `n_probs`: probabilities from 0 to 1 of the tokens that the sampler draws from, after all other sampling fields,
        /// instead of the model's log-probabilities.
        post_sampling_probs: bool = boolean().or(false);
        /// A complete answer has only these fields, such as `content` and `generation_settings/n_predict`: at most 64. Those that it
        /// does not have are left out.
        response_fields: Vec<String> = response_fields().or_empty();
        /// Complete answers have the ids of their tokens. Events of a stream always have them.
        return_tokens: bool = boolean().or(false);
        /// Another name of `repetition_penalty`.
        repeat_penalty: Option<f32> = number(0.1..=10.0).optional();
        /// Another name of `typical_p`.
        typ_p: Option<f32> = number(0.0..=1.0).optional();
        /// Another name of `max_time_ms`; 0 and -1 mean no limit.
        t_max_predict_ms: Option<u64> = time_limit().optional();
    }
}

shape! {
    /// A request of `/completion`.
    pub(crate) struct LlamaCompletionRequest {
        ..fields: LlamaCppFields;
        /// The texts to continue: at most 64.
        prompt: Vec<Prompt> = prompts();
        /// Answers to generate for each prompt, together.
        n_cmpl: usize = choices().or(1);
    }
    accepts compat::OPENAI, compat::NOT_STORED, compat::WITHOUT_TOKENS, compat::SINGLE, compat::WITHOUT_TOOLS, compat::WITHOUT_THINKING, compat::PEERS;
}

shape! {
    /// A request of `/infill`, for models whose tokenizer has tokens for filling in the middle.
    pub(crate) struct InfillRequest {
        ..fields: LlamaCppFields;
        /// The text before the gap.
        input_prefix: String = string().or(String::new());
        /// The text after the gap.
        input_suffix: String = string().or(String::new());
        /// Text before the gap that follows `input_prefix`, such as the beginning of its line.
        prompt: String = string().or(String::new());
        /// Other files that the model may draw on.
        input_extra: Vec<ExtraText> = array(object::<ExtraText>()).items(0..=MAX_EXTRA).or_empty();
    }
    accepts compat::OPENAI, compat::NOT_STORED, compat::WITHOUT_TOKENS, compat::SINGLE, compat::WITHOUT_TOOLS, compat::WITHOUT_THINKING, compat::PEERS;
}

shape! {
    /// A file that a model may draw on.
    pub(crate) struct ExtraText {
        text: String = string();
        filename: Option<String> = string().optional();
    }
}

/// Paths of fields: names with `/` between them.
fn response_fields() -> impl FieldType<Value = Vec<String>> {
    string_list(MAX_RESPONSE_FIELDS, MAX_RESPONSE_FIELD_BYTES, "every field of an answer has a name")
}

/// Milliseconds; 0 and -1 mean no limit.
fn time_limit() -> impl FieldType<Value = u64> {
    integer(-1..=i64::MAX).map(|ms| u64::try_from(ms).unwrap_or(0))
}

impl LlamaCppFields {
    /// Checks a request for `choices` answers to each of these prompts.
    fn resolve(
        self,
        prompts: Vec<Prompt>,
        choices: usize,
        context: &RequestContext<'_>,
    ) -> Result<GenerateParams, FieldError> {
        let Self { mut generation, n_predict, max_tokens, n_probs, return_tokens, .. } = self;
        let sampling = &mut generation.sampling;
        // llama-server's names count if both are sent.
        sampling.repetition_penalty = self.repeat_penalty.or(sampling.repetition_penalty);
        sampling.typical_p = self.typ_p.unwrap_or(sampling.typical_p);
        let time = self.t_max_predict_ms.filter(|ms| *ms > 0);
        within("t_max_predict_ms", time, context.deadlines.total)?;
        generation.max_time_ms = generation.max_time_ms.or(time);
        let (ignore_eos, stream) = (generation.ignore_eos, generation.stream);
        let asked = n_predict.or(max_tokens);
        let prompt_only = asked == Some(Tokens(0));
        let texts = prompts.iter().map(|prompt| prompt.text().unwrap_or_default()).collect();
        let mut prompts = prompts.into_iter();
        let first = prompts.next().ok_or_else(|| FieldError::EmptyPrompt { param: "prompt".into() })?;
        let more_prompts: Vec<Prompt> = prompts.collect();
        for (index, prompt) in more_prompts.iter().enumerate() {
            prompt.check(&format!("prompt[{}]", index + 1), context.vocabulary)?;
        }
        // The model generates at least one token.
        let route = RouteParams::new(first, asked.map(|most| most.max(Tokens(1))));
        let params = generation.resolve(route, context)?;
        let biased = params.sampling.logit_bias.iter().map(|(token, bias)| (*token, Some(*bias)));
        let ends = context.end_tokens.iter().filter(|_| ignore_eos);
        let banned = params.sampling.banned.iter().flatten().chain(ends).map(|token| (*token, None));
        let logit_bias = biased.chain(banned).map(|(token, bias)| TokenBias { token, bias }).collect();
        let settings = GenerationSettings {
            n_probs,
            logit_bias,
            stop: params.stop.clone(),
            ignore_eos,
            stream,
            ..GenerationSettings::new(&params.sampling, asked)
        };
        let top = (n_probs > 0).then_some(n_probs);
        let after_sampling = self.post_sampling_probs;
        let details = TokenDetails { has_ids: true, top, after_sampling, ..TokenDetails::default() };
        let response_fields = self.response_fields;
        let echo = LlamaCppEcho { prompts: texts, choices, return_tokens, response_fields, settings };
        let scores = details.scores(false);
        let llama_cpp = Some(Box::new(echo));
        Ok(GenerateParams { more_prompts, choices, prompt_only, scores, details, llama_cpp, ..params })
    }
}

impl GenerateRequest for LlamaCompletionRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        check_answers("n_cmpl", self.prompt.len(), self.n_cmpl)?;
        self.fields.resolve(self.prompt, self.n_cmpl, context)
    }
}

impl GenerateRequest for InfillRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        let Self { mut fields, input_prefix, input_suffix, prompt, input_extra } = self;
        let before = input_prefix + &prompt;
        let mut prompts = [Prompt::Text(before)];
        let ends = infill::apply(&mut prompts, ("input_suffix", &input_suffix), context)?;
        fields.generation.stop_token_ids.extend(ends);
        let extra = input_extra.iter().map(|extra| (extra.filename.as_deref(), extra.text.as_str()));
        if let (Some(format), [Prompt::Text(prompt)]) = (context.fill_in_middle, &mut prompts) {
            prompt.insert_str(0, &format.files(extra));
        }
        fields.resolve(prompts.into(), 1, context)
    }
}
