//! `POST /v1/chat/completions` in OpenAI's wire format.

use serde_json::{Value, json};

use super::{
    answer::Ending,
    ask::{Ask, Rules, conversation_of, take_tokens},
    dialect::{Dialect, Head, OF_CHAT, timings, usage},
    fields::{FieldError, Fields, Known},
};
use crate::units::Tokens;

/// OpenAI's chat completions.
pub(super) struct Chat(Head);

impl From<Head> for Chat {
    fn from(head: Head) -> Self {
        Self(head)
    }
}

impl Chat {
    fn document(&self, object: &str, choices: Value) -> Value {
        let Head { id, created, model, .. } = &self.0;
        json!({ "id": id, "object": object, "created": created, "model": model, "choices": choices })
    }

    fn chunk(&self, delta: &Value, finish_reason: Option<&str>) -> Value {
        let choice =
            json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason }]);
        let mut chunk = self.document("chat.completion.chunk", choice);
        if self.0.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Dialect for Chat {
    const ROUTE: &'static str = "/v1/chat/completions";
    const ID_PREFIX: &'static str = "chatcmpl";
    const TEMPERATURE: f32 = 1.0;
    const KNOWN: &'static [Known] = OF_CHAT;

    fn ask(fields: &mut Fields, rules: &Rules) -> Result<Ask, FieldError> {
        let prompt = conversation_of(fields.require("messages")?, "messages")?;
        let most = take_most(fields)?;
        Ask::take(fields, rules, prompt, most)
    }

    fn whole(&self, ending: &Ending) -> Value {
        let message = json!({ "role": "assistant", "content": ending.text, "refusal": null });
        let reason = ending.reason.as_str();
        let choice = json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": reason }]);
        let mut document = self.document("chat.completion", choice);
        document["usage"] = usage(ending);
        document["timings"] = timings(ending);
        document
    }

    fn opening(&self) -> Option<Value> {
        Some(self.chunk(&json!({ "role": "assistant", "content": "" }), None))
    }

    fn delta(&self, text: &str) -> Value {
        self.chunk(&json!({ "content": text }), None)
    }

    fn closing(&self, ending: &Ending) -> Vec<Value> {
        let mut last = self.chunk(&json!({}), Some(ending.reason.as_str()));
        last["timings"] = timings(ending);
        let mut closing = vec![last];
        if self.0.include_usage {
            let mut chunk = self.document("chat.completion.chunk", json!([]));
            chunk["usage"] = usage(ending);
            closing.push(chunk);
        }
        closing
    }
}

/// `max_completion_tokens`, or its deprecated name.
fn take_most(fields: &mut Fields) -> Result<Option<Tokens>, FieldError> {
    let newer = take_tokens(fields, "max_completion_tokens")?;
    let older = take_tokens(fields, "max_tokens")?;
    match (newer, older) {
        (Some(newer), Some(older)) if newer != older => {
            let said = format!("is {}, and max_completion_tokens is {}; send one of them", older.0, newer.0);
            Err(FieldError::value("max_tokens", said))
        }
        (newer, older) => Ok(newer.or(older)),
    }
}
