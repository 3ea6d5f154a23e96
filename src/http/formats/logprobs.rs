//! Log-probabilities in OpenAI's two spellings.

use serde_json::{Map, Value, json};

use crate::{
    job::TokenLogprobs,
    text::{Text, TokenText},
};

/// A token and what the model thought of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored {
    token: TokenText,
    /// The first token of a prompt has none, for the model was not asked.
    logprob: Option<f32>,
    top: Vec<(TokenText, f32)>,
    /// Characters of the text before it.
    offset: usize,
}

impl Scored {
    /// Number of alternative tokens that are reported with it.
    pub(crate) const fn alternatives(&self) -> usize {
        self.top.len()
    }
}

/// Makes them one after another.
#[derive(Debug, Default)]
pub(crate) struct Scoring {
    offset: usize,
}

impl Scoring {
    /// A token with its score.
    pub(crate) fn scored(&mut self, text: &Text, score: &TokenLogprobs) -> Scored {
        let top = score.top.iter().map(|(id, logprob)| (text.token(*id), *logprob)).collect();
        self.next(text.token(score.token), Some(score.logprob), top)
    }

    /// A token that the model was not asked about.
    pub(crate) fn unscored(&mut self, text: &Text, token: u32) -> Scored {
        self.next(text.token(token), None, Vec::new())
    }

    fn next(&mut self, token: TokenText, logprob: Option<f32>, top: Vec<(TokenText, f32)>) -> Scored {
        let offset = self.offset;
        self.offset += token.characters();
        Scored { token, logprob, top, offset }
    }
}

/// As in chat completions.
pub(crate) fn content(scored: &[Scored]) -> Value {
    let one = |token: &TokenText, logprob: Option<f32>| json!({ "token": token.text, "logprob": logprob, "bytes": token.bytes });
    let entry = |scored: &Scored| {
        let mut entry = one(&scored.token, scored.logprob);
        entry["top_logprobs"] =
            scored.top.iter().map(|(token, logprob)| one(token, Some(*logprob))).collect();
        entry
    };
    json!({ "content": scored.iter().map(entry).collect::<Value>(), "refusal": null })
}

/// As in completions.
pub(crate) fn lists(scored: &[Scored]) -> Value {
    let top = |scored: &Scored| -> Value {
        if scored.logprob.is_none() {
            return Value::Null;
        }
        // The token itself is always among them, as OpenAI has it.
        let own = scored.logprob.map(|logprob| (scored.token.text.clone(), json!(logprob)));
        let others = scored.top.iter().map(|(token, logprob)| (token.text.clone(), json!(logprob)));
        Value::Object(others.chain(own).collect::<Map<_, _>>())
    };
    json!({
        "tokens": scored.iter().map(|scored| &*scored.token.text).collect::<Vec<_>>(),
        "token_logprobs": scored.iter().map(|scored| scored.logprob).collect::<Vec<_>>(),
        "top_logprobs": scored.iter().map(top).collect::<Vec<_>>(),
        "text_offset": scored.iter().map(|scored| scored.offset).collect::<Vec<_>>(),
    })
}
