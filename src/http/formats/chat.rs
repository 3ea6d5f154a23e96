//! `POST /v1/chat/completions` in OpenAI's wire format.

use serde_json::{Map, Value, json};

use super::{
    completion_stream::{Ending, Progress, Said},
    format::{ApiFormat, ResponseMeta, prompt_progress, timings, usage},
    logprobs::{Scored, content},
};
use crate::{http::request::chat::ChatRequest, text::Call};

/// OpenAI's chat completions.
pub(crate) struct Chat(ResponseMeta);

impl From<ResponseMeta> for Chat {
    fn from(head: ResponseMeta) -> Self {
        Self(head)
    }
}

impl Chat {
    fn document(&self, object: &str, choices: Value) -> Value {
        let ResponseMeta { id, created, model, fingerprint, .. } = &self.0;
        json!({
            "id": id,
            "object": object,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
            "choices": choices,
        })
    }

    fn logprobs(&self, scored: &[Scored]) -> Value {
        if self.0.scored { content(scored) } else { Value::Null }
    }

    fn chunk(&self, choice: usize, delta: &Value, logprobs: Value, reason: Option<&str>) -> Value {
        let choice =
            json!([{ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason }]);
        let mut chunk = self.document("chat.completion.chunk", choice);
        if self.0.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl ApiFormat for Chat {
    type Request = ChatRequest;

    const ROUTE: &'static str = "/v1/chat/completions";
    const ID_PREFIX: &'static str = "chatcmpl-";
    const OPERATION: &'static str = "chat";

    fn whole(&self, endings: &[Ending]) -> Value {
        let choice = |(index, ending): (usize, &Ending)| {
            let message = message(ending);
            let (logprobs, reason) = (self.logprobs(&ending.scored), ending.reason.as_str());
            json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
        };
        let choices = endings.iter().enumerate().map(choice).collect();
        let mut document = self.document("chat.completion", choices);
        document["usage"] = usage(endings);
        document["timings"] = timings(endings);
        document
    }

    fn progress(&mut self, progress: &Progress) -> Value {
        let mut chunk = self.document("chat.completion.chunk", json!([]));
        chunk["prompt_progress"] = prompt_progress(progress);
        chunk
    }

    fn opening(&mut self, choice: usize) -> Vec<Value> {
        vec![self.chunk(choice, &json!({ "role": "assistant", "content": "" }), Value::Null, None)]
    }

    fn delta(&mut self, choice: usize, said: &Said) -> Vec<Value> {
        let mut delta = Map::new();
        if !said.text.is_empty() || said.calls.is_empty() {
            delta.insert("content".into(), said.text.as_str().into());
        }
        if !said.calls.is_empty() {
            delta.insert("tool_calls".into(), said.calls.iter().map(call_delta).collect());
        }
        vec![self.chunk(choice, &delta.into(), self.logprobs(&said.scored), None)]
    }

    fn closing(&mut self, choice: usize, ending: &Ending) -> Vec<Value> {
        let mut last = self.chunk(choice, &json!({}), Value::Null, Some(ending.reason.as_str()));
        last["timings"] = timings(std::slice::from_ref(ending));
        vec![last]
    }

    fn summary(&mut self, endings: &[Ending]) -> Vec<Value> {
        let mut chunk = self.document("chat.completion.chunk", json!([]));
        chunk["usage"] = usage(endings);
        if self.0.include_usage { vec![chunk] } else { Vec::new() }
    }
}

fn message(ending: &Ending) -> Value {
    let mut message = json!({ "role": "assistant", "content": ending.text, "refusal": null });
    if !ending.calls.is_empty() {
        let call = |call: &Call| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "id": call.id, "type": "function", "function": function })
        };
        message["tool_calls"] = ending.calls.iter().map(call).collect();
        if ending.text.is_empty() {
            message["content"] = Value::Null;
        }
    }
    message
}

/// A call where it begins, or more of its arguments.
fn call_delta(call: &Call) -> Value {
    let Call { index, id, name, arguments } = call;
    match id {
        Some(id) => {
            let function = json!({ "name": name, "arguments": arguments });
            json!({ "index": index, "id": id, "type": "function", "function": function })
        }
        None => json!({ "index": index, "function": { "arguments": arguments } }),
    }
}
