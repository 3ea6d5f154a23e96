//! Fields of other servers' APIs that eka does not have.
//!
//! Clients send every field of the library that they are written for, mostly at the value that turns it off. At such a value
//! a field is ignored. At any other value the request is refused, because its answer would not be what the client expects.
//! Each line of the tables is a name, the values that are off, and what to send instead. `null` is always off.
//!
//! The fields are those of OpenAI, vLLM, llama-server, SGLang, TGI and Ollama, and the samplers of text-generation-webui and
//! Aphrodite that clients send to all of these.

mod openai;
mod peers;

pub(crate) use self::{
    openai::{
        ANTHROPIC, ANTHROPIC_BLOCK, ANTHROPIC_TOOL, CALL, CALLED_FUNCTION, CHAT, COMPLETIONS, EMBEDDINGS,
        ITEM, MESSAGE, NAMED_SCHEMA, NOT_STORED, OLLAMA, OLLAMA_CALL, OLLAMA_EMBED, OLLAMA_GENERATE,
        OLLAMA_MESSAGE, OLLAMA_OPTIONS, OLLAMA_SHOW, OPENAI, PART, REASONING_ITEM, RESPONSES, SINGLE,
        STREAM_OPTIONS, TEMPLATE, TEXT_OBJECT, TEXT_OPTIONS, TOKENIZE, TOOL, WITHOUT_TOOLS,
    },
    peers::{PEERS, STRUCTURED_OUTPUTS, WITHOUT_THINKING, WITHOUT_TOKENS},
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::http::request::schema::Accepted;

    #[test]
    fn every_off_value_is_json_and_no_name_stands_twice_in_a_table() {
        let of_bodies = [
            OPENAI,
            COMPLETIONS,
            CHAT,
            RESPONSES,
            WITHOUT_TOOLS,
            WITHOUT_THINKING,
            SINGLE,
            NOT_STORED,
            WITHOUT_TOKENS,
            PEERS,
            TOKENIZE,
            TEMPLATE,
        ];
        let of_objects = [MESSAGE, PART, CALL, CALLED_FUNCTION, ITEM, TOOL, STREAM_OPTIONS, TEXT_OPTIONS];
        for table in of_bodies.into_iter().chain(of_objects) {
            let names: Vec<_> = table.iter().flat_map(|field| field.names).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
            for field in table {
                let Accepted::Values(values) = field.accepted else { continue };
                for value in values {
                    let value: Value = serde_json::from_str(value).unwrap();
                    assert!(field.accepted.allows(&value), "{:?}", field.names);
                }
            }
        }
    }

    #[test]
    fn an_object_whose_fields_are_null_is_empty() {
        let empty = Accepted::Values(&["{}"]);
        assert!(empty.allows(&json!({ "enable_thinking": null })) && empty.allows(&json!({})));
        assert!(!empty.allows(&json!({ "enable_thinking": false })));
    }
}
