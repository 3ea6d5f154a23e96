//! `POST /v1/completions` in OpenAI's wire format.

use serde_json::{Value, json};

use super::{
    completion_stream::{Ending, Progress, Said},
    format::{ApiFormat, ResponseMeta, prompt_progress, timings, usage},
    logprobs::{Scored, lists},
};
use crate::http::request::completions::CompletionRequest;

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
    type Request = CompletionRequest;

    const ROUTE: &'static str = "/v1/completions";
    const ID_PREFIX: &'static str = "cmpl-";

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
