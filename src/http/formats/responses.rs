//! `POST /v1/responses` in OpenAI's wire format, for text and calls of functions.
//!
//! Nothing is kept from one request to the next, so each has to send the whole conversation: an absent `store` is read as
//! false, and `previous_response_id` is refused. A stream is events with a type and a number each, and ends with
//! `response.completed`, or `response.incomplete` where the tokens ran out.

use serde_json::{Value, json};

use super::{
    completion_stream::{Ending, Progress, Reason, Said},
    format::{ApiFormat, ResponseMeta, prompt_progress, timings},
    response_id,
};
use crate::{http::request::responses::ResponseCall, text::Call};

const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// OpenAI's responses.
pub(crate) struct Responses {
    head: ResponseMeta,
    /// Events that were sent.
    events: usize,
    /// Items of the output that were begun; the last one may still be open.
    items: Vec<Item>,
    is_open: bool,
}

/// One item of the output.
struct Item {
    id: String,
    part: Part,
}

enum Part {
    Message(String),
    Call(Call),
}

impl Item {
    fn new(part: Part) -> Self {
        let prefix = if matches!(part, Part::Message(_)) { "msg_" } else { "fc_" };
        Self { id: response_id::new(prefix), part }
    }

    fn document(&self, status: &str) -> Value {
        let id = &self.id;
        match &self.part {
            Part::Message(text) => {
                let content = json!([part(text)]);
                json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
            }
            Part::Call(Call { id: call, name, arguments, .. }) => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call, "name": name, "arguments": arguments,
            }),
        }
    }
}

impl From<ResponseMeta> for Responses {
    fn from(head: ResponseMeta) -> Self {
        Self { head, events: 0, items: Vec::new(), is_open: false }
    }
}

impl ApiFormat for Responses {
    type Request = ResponseCall;

    const ROUTE: &'static str = "/v1/responses";
    const ID_PREFIX: &'static str = "resp_";
    const OPERATION: &'static str = "chat";
    const TYPED_EVENTS: bool = true;

    fn whole(&self, endings: &[Ending]) -> Value {
        let Some(ending) = endings.first() else { return Value::Null };
        let mut items = Vec::new();
        if !ending.text.is_empty() || ending.calls.is_empty() {
            items.push(Item::new(Part::Message(ending.text.clone())));
        }
        items.extend(ending.calls.iter().cloned().map(|call| Item::new(Part::Call(call))));
        self.complete(&items, ending)
    }

    fn progress(&mut self, progress: &Progress) -> Value {
        self.event("response.prompt_progress", json!({ "prompt_progress": prompt_progress(progress) }))
    }

    fn opening(&mut self, _: usize) -> Vec<Value> {
        let response = self.document("in_progress", &[]);
        ["response.created", "response.in_progress"]
            .map(|kind| self.event(kind, json!({ "response": response })))
            .into()
    }

    fn delta(&mut self, _: usize, said: &Said) -> Vec<Value> {
        let mut events = Vec::new();
        if !said.text.is_empty() {
            self.say(&said.text, &mut events);
        }
        for call in &said.calls {
            self.call(call, &mut events);
        }
        events
    }

    fn closing(&mut self, _: usize, ending: &Ending) -> Vec<Value> {
        let mut events = Vec::new();
        if self.items.is_empty() {
            self.say("", &mut events);
        }
        self.close(if ending.is_cut() { INCOMPLETE } else { COMPLETED }, &mut events);
        let response = self.complete(&self.items, ending);
        let kind = if ending.reason == Reason::Length { "response.incomplete" } else { "response.completed" };
        events.push(self.event(kind, json!({ "response": response })));
        events
    }

    fn summary(&mut self, _: &[Ending]) -> Vec<Value> {
        Vec::new()
    }

    fn failure(&mut self, mut error: Value) -> Value {
        let error = error["error"].take();
        let said = json!({ "code": error["code"], "message": error["message"], "param": error["param"] });
        self.event("error", said)
    }
}

impl Responses {
    /// Fields that are there in every response, and those of the request that it repeats.
    fn document(&self, status: &str, output: &[Value]) -> Value {
        let ResponseMeta { id, created, model, echoed, .. } = &self.head;
        let mut document = json!({
            "id": id,
            "object": "response",
            "created_at": created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "model": model,
            "output": output,
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": null,
        });
        for (name, value) in echoed {
            document[name] = value.clone();
        }
        document
    }

    fn complete(&self, items: &[Item], ending: &Ending) -> Value {
        let is_out_of_tokens = ending.reason == Reason::Length;
        let status = if is_out_of_tokens { INCOMPLETE } else { COMPLETED };
        let last = items.len().saturating_sub(1);
        let status_of = |place: usize| if place == last && ending.is_cut() { INCOMPLETE } else { COMPLETED };
        let output = items.iter().enumerate().map(|(place, item)| item.document(status_of(place)));
        let mut document = self.document(status, &output.collect::<Vec<_>>());
        if is_out_of_tokens {
            document["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        let (input, output) = (ending.usage.prompt_tokens, ending.usage.completion_tokens);
        document["usage"] = json!({
            "input_tokens": input,
            "input_tokens_details": { "cached_tokens": ending.usage.cached_tokens },
            "output_tokens": output,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": input + output,
        });
        document["timings"] = timings(std::slice::from_ref(ending));
        document
    }

    fn event(&mut self, kind: &str, mut event: Value) -> Value {
        event["type"] = kind.into();
        event["sequence_number"] = self.events.into();
        self.events += 1;
        event
    }

    /// An event about the last item; `place` says where in it.
    fn event_of_last(&mut self, kind: &str, mut event: Value) -> Value {
        let place = self.items.len() - 1;
        event["item_id"] = self.items[place].id.as_str().into();
        event["output_index"] = place.into();
        if matches!(self.items[place].part, Part::Message(_)) {
            event["content_index"] = 0.into();
        }
        self.event(kind, event)
    }

    fn say(&mut self, text: &str, events: &mut Vec<Value>) {
        if !self.is_open || !matches!(self.items.last(), Some(Item { part: Part::Message(_), .. })) {
            self.open(Part::Message(String::new()), events);
            events.push(self.event_of_last("response.content_part.added", json!({ "part": part("") })));
        }
        if let Some(Item { part: Part::Message(whole), .. }) = self.items.last_mut() {
            whole.push_str(text);
        }
        if !text.is_empty() {
            let delta = json!({ "delta": text, "logprobs": [] });
            events.push(self.event_of_last("response.output_text.delta", delta));
        }
    }

    fn call(&mut self, call: &Call, events: &mut Vec<Value>) {
        if call.id.is_some() {
            self.open(Part::Call(Call { arguments: String::new(), ..call.clone() }), events);
        }
        if let Some(Item { part: Part::Call(whole), .. }) = self.items.last_mut() {
            whole.arguments.push_str(&call.arguments);
        }
        let delta = json!({ "delta": call.arguments });
        events.push(self.event_of_last("response.function_call_arguments.delta", delta));
    }

    fn open(&mut self, part: Part, events: &mut Vec<Value>) {
        self.close(COMPLETED, events);
        let place = self.items.len();
        let item = Item::new(part);
        let mut shown = item.document("in_progress");
        if matches!(item.part, Part::Message(_)) {
            shown["content"] = json!([]);
        }
        self.items.push(item);
        self.is_open = true;
        events
            .push(self.event("response.output_item.added", json!({ "output_index": place, "item": shown })));
    }

    /// Says that the last item is over, if that was not said.
    fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.is_open, false) {
            return;
        }
        let place = self.items.len() - 1;
        match &self.items[place].part {
            Part::Message(text) => {
                let (done, part) = (json!({ "text": text, "logprobs": [] }), json!({ "part": part(text) }));
                events.push(self.event_of_last("response.output_text.done", done));
                events.push(self.event_of_last("response.content_part.done", part));
            }
            Part::Call(call) => {
                let done = json!({ "name": call.name, "arguments": call.arguments });
                events.push(self.event_of_last("response.function_call_arguments.done", done));
            }
        }
        let item = self.items[place].document(status);
        events.push(self.event("response.output_item.done", json!({ "output_index": place, "item": item })));
    }
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}
