//! `POST /v1/completions` in OpenAI's wire format.

use serde_json::{Value, json};

use super::{
    answer::Ending,
    ask::{Ask, Rules, prompt_of, take_tokens},
    dialect::{Dialect, Head, OF_COMPLETIONS, timings, usage},
    fields::{FieldError, Fields, Known},
};

/// OpenAI's completions.
pub(super) struct Completions(Head);

impl From<Head> for Completions {
    fn from(head: Head) -> Self {
        Self(head)
    }
}

impl Completions {
    fn document(&self, choices: Value) -> Value {
        let Head { id, created, model, .. } = &self.0;
        json!({ "id": id, "object": "text_completion", "created": created, "model": model, "choices": choices })
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.document(choices);
        if self.0.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

fn choice(text: &str, finish_reason: Option<&str>) -> Value {
    json!([{ "index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason }])
}

impl Dialect for Completions {
    const ROUTE: &'static str = "/v1/completions";
    const ID_PREFIX: &'static str = "cmpl";
    const TEMPERATURE: f32 = 1.0;
    const KNOWN: &'static [Known] = OF_COMPLETIONS;

    fn ask(fields: &mut Fields, rules: &Rules) -> Result<Ask, FieldError> {
        let prompt = prompt_of(fields.require("prompt")?, "prompt")?;
        let max_tokens = take_tokens(fields, "max_tokens")?;
        Ask::take(fields, rules, prompt, max_tokens)
    }

    fn whole(&self, ending: &Ending) -> Value {
        let mut document = self.document(choice(&ending.text, Some(ending.reason.as_str())));
        document["usage"] = usage(ending);
        document["timings"] = timings(ending);
        document
    }

    fn opening(&self) -> Option<Value> {
        None
    }

    fn delta(&self, text: &str) -> Value {
        self.chunk(choice(text, None))
    }

    fn closing(&self, ending: &Ending) -> Vec<Value> {
        let mut last = self.chunk(choice("", Some(ending.reason.as_str())));
        last["timings"] = timings(ending);
        let mut closing = vec![last];
        if self.0.include_usage {
            let mut chunk = self.document(json!([]));
            chunk["usage"] = usage(ending);
            closing.push(chunk);
        }
        closing
    }
}
