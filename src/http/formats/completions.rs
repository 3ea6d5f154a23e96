//! `POST /v1/completions` in OpenAI's wire format.

use serde_json::{Value, json};

use super::{
    completion_stream::{Ending, Progress, Said},
    format::{ApiFormat, ResponseMeta, prompt_progress, timings, usage},
    logprobs::{Scored, lists},
};
use crate::{
    http::{
        field_error::FieldError,
        request::{
            compat::{self, OtherField},
            fields::{Fields, whole_of},
            generation::{Ask, Rules, asked, prompt_of, take_choices, take_tokens},
        },
    },
    job::LogprobOptions,
};

/// OpenAI's completions.
pub(crate) struct Completions(ResponseMeta);

impl From<ResponseMeta> for Completions {
    fn from(head: ResponseMeta) -> Self {
        Self(head)
    }
}

impl Completions {
    fn document(&self, choices: Value) -> Value {
        let ResponseMeta { id, created, model, fingerprint, .. } = &self.0;
        json!({
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
            "choices": choices,
        })
    }

    fn choice(&self, choice: usize, text: &str, scored: Option<&[Scored]>, reason: Option<&str>) -> Value {
        let logprobs = scored.filter(|_| self.0.scored).map_or(Value::Null, lists);
        json!({ "index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason })
    }

    fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.document(json!([choice]));
        if self.0.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl ApiFormat for Completions {
    const ROUTE: &'static str = "/v1/completions";
    const ID_PREFIX: &'static str = "cmpl-";
    const TEMPERATURE: f32 = 1.0;
    const OTHERS: &'static [&'static [OtherField]] =
        &[compat::OPENAI, compat::COMPLETIONS, compat::WITHOUT_TOOLS, compat::PEERS];

    fn ask(fields: &mut Fields, rules: &Rules) -> Result<Ask, FieldError> {
        let prompt = prompt_of(fields.require("prompt")?, "prompt")?;
        let max_tokens = take_tokens(fields, "max_tokens")?;
        let ask = Ask::take(fields, rules, prompt, max_tokens)?;
        let choices = take_choices(fields)?;
        check_best_of(fields, choices)?;
        let echo = fields.take("echo")?.unwrap_or(false);
        let scores = take_scores(fields, echo)?;
        Ok(Ask { choices, echo, scores, ..ask })
    }

    fn whole(&self, endings: &[Ending]) -> Value {
        let choice = |(index, ending): (usize, &Ending)| {
            self.choice(index, &ending.text, Some(&ending.scored), Some(ending.reason.as_str()))
        };
        let mut document = self.document(endings.iter().enumerate().map(choice).collect());
        document["usage"] = usage(endings);
        document["timings"] = timings(endings);
        document
    }

    fn progress(&mut self, progress: &Progress) -> Value {
        let mut chunk = self.document(json!([]));
        chunk["prompt_progress"] = prompt_progress(progress);
        chunk
    }

    fn opening(&mut self, _: usize) -> Vec<Value> {
        Vec::new()
    }

    fn delta(&mut self, choice: usize, said: &Said) -> Vec<Value> {
        vec![self.chunk(self.choice(choice, &said.text, Some(&said.scored), None))]
    }

    fn closing(&mut self, choice: usize, ending: &Ending) -> Vec<Value> {
        let mut last = self.chunk(self.choice(choice, "", None, Some(ending.reason.as_str())));
        last["timings"] = timings(std::slice::from_ref(ending));
        vec![last]
    }

    fn summary(&mut self, endings: &[Ending]) -> Vec<Value> {
        let mut chunk = self.document(json!([]));
        chunk["usage"] = usage(endings);
        if self.0.include_usage { vec![chunk] } else { Vec::new() }
    }
}

/// Every choice that is generated is sent, so the best of more than those is not to be had.
fn check_best_of(fields: &mut Fields, choices: usize) -> Result<(), FieldError> {
    match fields.whole("best_of", 1..=u64::from(u32::MAX))? {
        Some(best_of) if best_of != choices as u64 => {
            let said = format!(
                "is {best_of}, and n is {choices}; eka sends every choice that it generates, so leave it out or send {choices}"
            );
            Err(FieldError::value("best_of", said))
        }
        _ => Ok(()),
    }
}

/// `logprobs`: how many others. `false` is what some clients send for none.
fn take_scores(fields: &mut Fields, echo: bool) -> Result<Option<LogprobOptions>, FieldError> {
    const MOST: u64 = 5;
    match fields.take::<Value>("logprobs")? {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(top) => {
            let allowed = top.as_number().and_then(whole_of).and_then(|top| u64::try_from(top).ok());
            let allowed = allowed.filter(|top| *top <= MOST);
            let range = || format!("0 to {MOST}");
            let wrong =
                || FieldError::Range { param: "logprobs".into(), found: top.to_string(), range: range() };
            allowed.map(|top| Some(asked(top, echo))).ok_or_else(wrong)
        }
    }
}
